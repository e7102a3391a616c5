"""Slurm does what every executor must, and what only a queue can: wait, follow after, run yesterday's code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance import SECONDS, Bench, Conformance, Executor, Mistake

from slurm.lab import Lab
from slurm.sweep import ROOT, wait_until
from trainer.provenance import ROOMS, source_sha256


class Slurm(Executor):
    """Jobs on the nodes of a lab; `run` queues them."""

    name, detached = "slurm", True
    mistakes = (
        Mistake("did you mean 'slurm'", args=("--executor", "slrm")),
        Mistake("did you mean 'cpus'", change=("cpus =", "cpu =")),
        Mistake("slurm.partition = 'nosuch': there are high, low, main", change=("jobs", 'partition = "nosuch"\njobs')),
        Mistake("than the partition allows (5 min)", change=("jobs", 'partition = "short"\njobs')),
        Mistake("gpus and gres both", change=("jobs", 'gpus = 1\ngres = "gpu:1"\njobs')),
        Mistake("jobs ask for no GPU", args=("--device", "cuda")),
        Mistake("did you mean 'example'", args=("--cluster", "exampel")),
        Mistake("n99", change=("jobs", 'options = { nodelist = "n99" }\njobs')),
        Mistake("there is no Slurm here", env={"PATH": "/nonexistent"}),
    )

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def settings(self, at_once: int) -> dict[str, Any]:
        # One job that has two slots, or a job for each run, one of which waits for the other.
        return {"cpus": 2, "job_minutes": 30} if at_once == 2 else {"jobs": at_once}

    def options(self, at_once: int) -> list[str]:
        return []

    def jobs(self) -> dict[str, str]:
        return self.lab.jobs()


class TestSlurm(Conformance):
    @pytest.fixture
    def executor(self, slurm: Lab) -> Iterator[Slurm]:
        slurm.run("scontrol", "create", "partitionname=short", "nodes=ALL", "maxtime=5")
        yield Slurm(slurm)
        for job in slurm.jobs():
            slurm.run("scancel", job)
        wait_until(lambda: not slurm.jobs(), 60)
        slurm.run("scontrol", "delete", "partitionname=short")
