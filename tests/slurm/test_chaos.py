"""Twenty random kills of workers, launchers and nodes' daemons over a sweep of 24 runs: nothing is lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

from slurm.lab import Lab
from slurm.sweep import ROOT, SmallSweep, processes, undisturbed, wait_until

KILLS = 20


def launch(sweep: SmallSweep) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        sweep.command("run", str(sweep.file), "--executor", "slurm"),
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def kill_one_of(words: list[str], results: Path, dice: random.Random) -> bool:
    found = []
    for pid in processes(words):
        with contextlib.suppress(OSError):
            if str(results) in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
    if not found:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(dice.choice(found), signal.SIGKILL)
        return True
    return False


def test_twenty_kills(slurm: Lab, tmp_path: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED", "1"))
    dice = random.Random(seed)
    sweep = SmallSweep(
        tmp_path, seeds=list(range(1, 13)), steps=400, checkpoint_seconds=0.3,
        slurm={"job_minutes": 0.5, "jobs": 4, "cpus": 2, "idle_restarts": 30},
    )  # fmt: skip
    launcher, kills, victims = launch(sweep), 0, []
    until = time.monotonic() + 240
    while kills < KILLS and time.monotonic() < until:
        time.sleep(dice.uniform(0.2, 2.0))
        victim = dice.choice(["worker", "job", "launcher", "node"])
        if victim == "worker":
            hit = kill_one_of(["sweeps.worker"], sweep.results, dice)
        elif victim == "job":
            hit = kill_one_of(["sweeps.job", "work"], sweep.results, dice)
        elif victim == "launcher":
            # One that is at work, or one that has only just begun.
            if launcher.poll() is not None:
                launcher = launch(sweep)
                time.sleep(dice.uniform(0.0, 1.5))
            hit = launcher.poll() is None
            launcher.kill()
            launcher.wait()
        else:
            node = dice.randint(1, 4)
            slurm.slurmd_kill(node)
            slurm.node_start(node)
            hit = True
        kills += hit
        victims += [victim] * hit
        if launcher.poll() is not None and not any(job["live"] for job in sweep.jobs()):
            launcher = launch(sweep)
    assert kills == KILLS, victims
    launcher.wait(60)

    def finished() -> bool:
        if sum((run / "result.json").is_file() for run in sweep.runs) == 24:
            return True
        sweep("retry", str(sweep.file))
        if not any(job["live"] for job in sweep.jobs()):
            sweep.submit()
        return False

    wait_until(finished, 300, lambda: f"{victims}\n{sweep.logs()}", every=3.0)
    wait_until(lambda: not any(job["live"] for job in sweep.jobs()), 120, sweep.logs)
    assert sweep.losses() == undisturbed(sweep)
    assert sweep.counts() == {"done": 24}
    for run in sweep.runs:
        # Trained to the end once: whoever else came across it found it done.
        assert (run / "metrics.jsonl").read_text().count('"step": 400,') == 1
        assert not (run / "lease.json").exists()
        assert not list(run.glob("*.tmp"))
    assert not processes(["sweeps.worker", str(sweep.results)])
