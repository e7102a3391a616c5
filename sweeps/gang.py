"""Several processes of one Slurm job that train one run after another together (DDP over GPUs or nodes).

The first process claims runs, heartbeats and writes, exactly as a worker that trains alone; the others are
told the run and go along.  When one process fails, all end: what they hold in common is beyond repair.
"""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeps.clusterfile import SlurmSettings
from sweeps.session import Session
from sweeps.sweepfile import SweepExecution
from sweeps.worker import Events, Stop, Worker
from trainer.config import RunConfig
from trainer.corpora import open_corpus
from trainer.errors import ConfigError
from trainer.execution import Execution


def train_together(
    session: Session, execution: SweepExecution, settings: SlurmSettings
) -> tuple[str, str | None]:
    """Work a session off with the processes that Slurm has started; called by each of them.

    Args:
        session: the runs.
        execution: how the sweep is executed.
        settings: what Slurm was asked for.

    Returns: how it ended, as LocalQueue.run does, or "aborted", and why.
    """
    from sweeps.cluster import join_processes

    join_processes(settings.has_gpu)
    size = int(os.environ["WORLD_SIZE"])
    if size != settings.processes:
        raise ConfigError(
            f"Slurm started {size} processes, slurm.nodes x slurm.tasks are {settings.processes}; "
            f"drop options that change the number of tasks"
        )
    from trainer.distributed import Gang

    stop = Stop(session, None)
    stop.listen()
    one = execution.of_one_run(execution.threads or settings.cpus, execution.device)
    session = replace(session, execution=one.model_dump(mode="json"))
    with Gang(one.device) as gang:
        if gang.rank == 0:
            return _lead(session, stop, gang)
        try:
            _follow(session, one, stop, gang)
        except BaseException:
            # The others wait for this process in a collective call; its end is what tells them.
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    return "finished", None


def _lead(session: Session, stop: Stop, gang: Any) -> tuple[str, str | None]:
    from trainer.loop import train

    broken: list[str] = []

    def together(config: RunConfig, corpus: Any, folder: Path, run_id: str, *rest: Any) -> str:
        gang.tell(run_id)
        try:
            return train(config, corpus, folder, run_id, *rest)
        except BaseException as error:
            broken.append(f"{run_id}: {type(error).__name__}: {error}".splitlines()[0])
            stop.reason = "the processes are out of step"
            raise

    worker = Worker(session, Events(None), stop, together)
    code = worker.work()
    if broken:
        return "interrupted", broken[0]
    gang.tell(None)
    if code:
        return "aborted", "the results folder cannot be written"
    if stop.reason is not None:
        return ("cancelled" if session.stop_asked else "interrupted"), stop.reason
    return _rest(session, worker)


def _rest(session: Session, worker: Worker) -> tuple[str, str | None]:
    """Nothing could be claimed: whatever is left is too long for the time that is left, or others have it."""
    states = worker.ledger.scan(run_id for run_id, _ in session.runs)
    free = [run_id for run_id, state in states.items() if state.state in ("new", "preempted")]
    if free:
        return "late", None
    held = any(state.state == "running" for state in states.values())
    return ("elsewhere" if held else "finished"), None


def _follow(session: Session, execution: Execution, stop: Stop, gang: Any) -> None:
    from trainer.loop import train

    while (run_id := gang.hear()) is not None:
        config = session.config(run_id)
        corpus = open_corpus(config.data, Path(session.results))
        folder = Path(session.results) / "runs" / run_id
        train(config, corpus, folder, run_id, execution, stop)
