"""Several processes of one Slurm job that train one run after another together (DDP over GPUs or nodes).

The first process claims runs, heartbeats and writes, exactly as a worker that trains alone; the others are
told the run and go along.  When one process fails, all end: what they hold in common is beyond repair.  The
job is then requeued, and goes on from the last checkpoint.  A request to prune a run is heeded by the first
process, and by the others with it, as a stop is.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from sweeps.clusterfile import SlurmSettings
from sweeps.errors import NoGpuError
from sweeps.lease import STALE_SECONDS
from sweeps.ledger import newest_checkpoint
from sweeps.local import View
from sweeps.session import Session
from sweeps.sweepfile import SweepExecution
from sweeps.worker import Events, Stop, Worker
from trainer.batches import check_corpus
from trainer.config import RunConfig
from trainer.corpora import Corpus, DataConfig, open_corpus
from trainer.device import gpu_count
from trainer.errors import ConfigError, RunDirError
from trainer.execution import Execution
from trainer.ownership import check_owner
from trainer.rundir import read_result

PATIENCE = STALE_SECONDS + 15
"""Seconds to wait for runs that others hold: a lease that nobody renews is stale by then."""
LOOK_SECONDS = 2.0
EXIT_BROKEN = 1
BROKEN = "broken"
"""The outcome of a gang in which a process failed."""


def train_together(
    session: Session, execution: SweepExecution, settings: SlurmSettings, view: View
) -> tuple[str, str | None]:
    """Work a session off with the processes that Slurm has started; called by each of them.

    Args:
        session: the runs.
        execution: how the sweep is executed.
        settings: what Slurm was asked for.
        view: whom the first process tells of its runs.

    Returns: how it ended, as LocalQueue.run does, or "aborted" or BROKEN, and why.  After these two the
    caller has to end its process with `end_process`.
    """
    from sweeps.cluster import join_processes

    visible = gpu_count() if settings.has_gpu else 0
    if settings.has_gpu and not visible:
        raise NoGpuError(f"{socket.gethostname()}: no GPU that torch can use, although the job asks for one")
    join_processes(visible)
    size = int(os.environ["WORLD_SIZE"])
    if size != settings.processes:
        raise ConfigError(
            f"Slurm started {size} processes, slurm.nodes x slurm.tasks are {settings.processes}; "
            f"drop options that change the number of tasks"
        )
    from trainer.distributed import Gang

    stop = Stop(session, None)
    stop.listen()
    end_when_stuck(0.8 * settings.notice, view.say)
    one = execution.of_one_run(execution.threads or settings.cpus, execution.device)
    session = replace(session, execution=one.model_dump(mode="json"))
    with Gang(one.device) as gang:
        if gang.rank == 0:
            return _Leader(session, stop, gang, view).lead()
        try:
            _follow(session, one, stop, gang)
        except BaseException:
            # The others wait for this process in a collective call; its end is what tells them.
            traceback.print_exc()
            end_process()
    return "finished", None


def end_process() -> NoReturn:
    """End this process at once and srun ends the others: nothing is parted in order any more."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_BROKEN)


def end_when_stuck(seconds: float, say: Callable[[str], None]) -> None:
    """See to it that this process ends within some seconds of a request to stop.

    A process that waits in a collective call for one that hangs is deaf: Python calls no signal handler in
    the middle of it.  The rest of the notice is then left for the batch script to have the job requeued.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        os.read(reader, 1)
        time.sleep(seconds)
        say(f"stuck: {seconds:.0f} s after it was told to stop, process {os.getpid()} ends itself")
        end_process()

    threading.Thread(target=watch, name="end when stuck", daemon=True).start()


class _Tell(Events):
    """Events of the first process: into the job's log, and to its mirror."""

    def __init__(self, view: View) -> None:
        super().__init__(None)
        self._view = view
        self.aborted: str | None = None

    def send(self, event: str, **facts: Any) -> None:
        """Pass one event on."""
        if event == "abort":
            self.aborted = facts["message"]
        elif facts.get("run") is not None:
            self._view.event(facts["run"], {"event": event, **facts})
        self._view.tick()


class _Leader:
    """The first process."""

    def __init__(
        self, session: Session, stop: Stop, gang: Any, view: View, patience: float = PATIENCE
    ) -> None:
        self.session, self.stop, self.gang, self.view, self.patience = session, stop, gang, view, patience
        self.events = _Tell(view)
        self.worker = Worker(session, self.events, stop, self._train)
        # By it the job's next start knows what died with this one.
        self.worker.lease_session = session.session
        self.problem: str | None = None
        self.begun = 0

    def lead(self) -> tuple[str, str | None]:
        """Claim and train until nothing is left; how it ended."""
        code, outcome = self._work()
        if self.problem is not None:
            self.gang.broken = True
        else:
            self.gang.tell(None)
        if code:
            return "aborted", self.events.aborted
        if self.problem is not None:
            return BROKEN, self.problem
        if self.stop.reason is not None:
            return ("cancelled" if self.session.stop_asked else "interrupted"), self.stop.reason
        return outcome, None

    def _work(self) -> tuple[int, str]:
        """Train what can be claimed, and wait for a while where others hold the rest."""
        begun, until = -1, 0.0
        while True:
            if code := self.worker.work():
                return code, ""
            outcome, owners = self._rest()
            if self.begun > begun:
                begun, until = self.begun, time.monotonic() + self.patience
            if outcome != "elsewhere" or self.stop() or time.monotonic() > until:
                return 0, outcome
            self.view.waiting(owners)
            self.view.tick()
            time.sleep(LOOK_SECONDS)

    def _rest(self) -> tuple[str, dict[str, str]]:
        """What became of the runs that could not be claimed, and who holds which."""
        states = self.worker.ledger.scan(self.session.known)
        owners = {run_id: str(state.owner) for run_id, state in states.items() if state.state == "running"}
        # These are free, but too long for the time that is left.
        if any(state.state in self.session.resumable for state in states.values()):
            return "late", owners
        return ("elsewhere" if owners else "finished"), owners

    def _train(
        self, config: RunConfig, corpus: Corpus, folder: Path, run_id: str, execution: Execution, *rest: Any
    ) -> str:
        """Train a run together with the others, as trainer.loop.train does alone."""
        from trainer.distributed import lost_another
        from trainer.loop import train

        # What every process would refuse is refused here, where the others need not end for it.
        check_owner(folder, config, run_id, corpus.fingerprint)
        check_corpus(config, corpus)
        _check_division(config, self.gang.size)
        before, told = newest_checkpoint(folder) or 0, False
        try:
            self.gang.tell(run_id)
            told = True
            self.begun += 1
            return train(config, corpus, folder, run_id, execution, *rest)
        except BaseException as error:
            self.problem = f"{run_id}: {type(error).__name__}: {error}".splitlines()[0]
            self.stop.reason = "a process failed"
            if not lost_another(error):
                raise
            self.problem = f"{run_id}: another process ended or is silent; see its own log"
            # Nodes die and are taken away.  It is the run's own failure only where it always dies there.
            if told and (newest_checkpoint(folder) or 0) <= before:
                raise
            if told:
                self.worker.ledger.set_state(run_id, "preempted", self.problem)
            return "preempted"


def _check_division(config: RunConfig, processes: int) -> None:
    """Refuse a batch that processes cannot share evenly."""
    if config.batch_sequences % processes:
        raise ConfigError(
            f"a batch of {config.batch_sequences} sequences does not divide over {processes} processes; "
            f"change optim.batch_tokens, or slurm.nodes x slurm.tasks"
        )


def _follow(session: Session, execution: Execution, stop: Stop, gang: Any) -> None:
    """Train along whatever run the first process names."""
    from trainer.loop import train

    corpora: dict[DataConfig, Corpus] = {}
    while (run_id := gang.hear()) is not None:
        config = session.config(run_id)
        if config.data not in corpora:
            corpora[config.data] = open_corpus(config.data, Path(session.results))
        folder = Path(session.results) / "runs" / run_id
        if read_result(folder) is not None:
            # It would leave at once and be out of step; a network file system may show a file that is gone.
            raise RunDirError(f"{folder}: has a result here, and none where the first process looks")
        train(config, corpora[config.data], folder, run_id, execution, stop)
