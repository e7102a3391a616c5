"""A worker: claims one run after the other, trains it, and says how it went.

    python -m sweeps.worker SESSION.json [--slot N] [--launcher PID] [--events FD]

It needs nothing but the session file and the ledger: a launcher is told of events, but not needed.  TERM and
USR2 ask it to stop: the run checkpoints and stays resumable.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from sweeps.errors import SweepError
from sweeps.lease import Lease, LeaseLost
from sweeps.ledger import LOG, Ledger
from sweeps.prune import PruneWatch, forget_prune, prune_line
from sweeps.session import Session, read_session
from trainer.config import RunConfig
from trainer.corpora import Corpus, DataConfig, open_corpus
from trainer.errors import ConfigError, DeviceError, RunDirError, TrainerError
from trainer.execution import Execution
from trainer.rundir import RESULT, io_errors, read_status

EXIT_DONE, EXIT_USER, EXIT_DISK = 0, 2, 3
PROBE_BYTES = 1 << 16
CHECK_SECONDS = 1.0
FEED_SECONDS = 0.1
"""Between two looks for something to do, while more runs may come by the feed."""

Train = Callable[..., str]


class Events:
    """Lines of JSON to the launcher; without one, or once it is gone, they go nowhere."""

    def __init__(self, descriptor: int | None) -> None:
        self._file = os.fdopen(descriptor, "w", buffering=1) if descriptor is not None else None

    def send(self, event: str, **facts: Any) -> None:
        """Send one event."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"event": event, **facts}) + "\n")
        except OSError:
            # The launcher died; `Stop` notices by itself, and the run is in the ledger anyway.
            self._file = None


class Stop:
    """Whether this worker was asked to stop: by a signal, by `cancel`, or because its launcher is gone."""

    def __init__(self, session: Session, launcher: int | None) -> None:
        self.session, self.launcher = session, launcher
        self.reason: str | None = None
        self._checked = 0.0

    def listen(self) -> None:
        """Take signals; Ctrl-C belongs to the launcher."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._ask)

    def __call__(self) -> bool:
        """Whether to stop now; cheap enough to be asked after every step."""
        now = time.monotonic()
        if self.reason is None and now - self._checked >= CHECK_SECONDS:
            self._checked = now
            if self.launcher is not None and os.getppid() != self.launcher:
                self.reason = "its launcher is gone"
            elif self.session.stop_asked:
                self.reason = "cancelled"
        return self.reason is not None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name


class Worker:
    """Works through a session.

    Args:
        session: the runs and how to execute them.
        events: whom to tell.
        stop: when to end.
        train: trains one run, as trainer.loop.train does.
    """

    def __init__(self, session: Session, events: Events, stop: Stop, train: Train) -> None:
        self.session, self.events, self.stop, self.train = session, events, stop, train
        self.ledger = Ledger(Path(session.results))
        self.execution = Execution.model_validate(session.execution)
        self.over: set[str] = set()
        self.begun = False
        # Workers started by hand may share one session, and are no siblings of each other.
        self.lease_session = session.session if stop.launcher is not None else None
        self._corpora: dict[DataConfig, Corpus] = {}

    def work(self) -> int:
        """Train until nothing is left to claim or a stop is asked for; the exit code."""
        while not self.stop():
            run_id = None
            try:
                more = self.session.look()
                if (claimed := self._claim()) is None:
                    if not more:
                        return EXIT_DONE
                    time.sleep(FEED_SECONDS)
                    continue
                run_id, lease = claimed
                with lease:
                    self._attempt(run_id, lease)
            except LeaseLost:
                # Whoever has it now goes on with it; this worker must not write there any more.
                self.events.send("end", run=run_id, state="lost")
            except RunDirError as error:
                self.events.send("abort", run=run_id, message=str(error))
                print(f"error: {error}", file=sys.stderr)
                return EXIT_DISK
            gc.collect()
        return EXIT_DONE

    def _claim(self) -> tuple[str, Lease] | None:
        """The first run of the list that is free, failed ones last; None where nothing is left."""
        for retrying in (False, True):
            for run_id in self.session.known:
                if run_id in self.over or self.stop():
                    continue
                # What was started in time begins something, however long the start took.
                if self.begun and not self.session.fits(run_id):
                    continue
                if (lease := self._claim_one(run_id, retrying)) is not None:
                    return run_id, lease
        return None

    def _claim_one(self, run_id: str, retrying: bool) -> Lease | None:
        state = self.ledger.state(run_id).state
        if state in ("done", "diverged", "corrupt") or self._stays_pruned(state):
            self.over.add(run_id)
        if state not in (*self.session.resumable, "failed") or (state == "failed") != retrying:
            return None
        if retrying and self._given_up(run_id):
            self.over.add(run_id)
            return None
        lease = Lease(self.ledger.run_dir(run_id), self.lease_session)
        if not lease.claim():
            return None
        # Between the look and the claim another worker may have finished it, or failed it once more.
        if self._still_open(run_id, retrying):
            self.begun = True
            return lease
        lease.release()
        return None

    def _still_open(self, run_id: str, retrying: bool) -> bool:
        folder = self.ledger.run_dir(run_id)
        if (folder / RESULT).exists():
            return False
        said = read_status(folder)["state"]
        if self._stays_pruned(said):
            return False
        failed = said == "failed"
        return failed == retrying and not (failed and self._given_up(run_id))

    def _stays_pruned(self, state: str) -> bool:
        return state == "pruned" and self.session.prunes

    def _given_up(self, run_id: str) -> bool:
        return self.ledger.gives_up(run_id, self.session.session, self.session.max_attempts)

    def _attempt(self, run_id: str, lease: Lease) -> None:
        """Train one claimed run; every failure but an unwritable disk is the run's own."""
        started, folder = time.monotonic(), self.ledger.run_dir(run_id)
        try:
            with _own_log(folder):
                config = self.session.config(run_id)
                prune = PruneWatch(folder, lease.owner, self.session.prunes)
                self.events.send("start", run=run_id, total=config.steps, owner=lease.owner)
                state = self._train(run_id, config, lease, prune)
                message = self._mark_pruned(run_id, lease, prune) if state == "preempted" else None
        except RunDirError as error:
            self._fail(run_id, str(error), str(error), permanent=True, counts=False)
            raise
        except TrainerError as error:
            self._probe(run_id)
            self._fail(run_id, str(error), str(error), permanent=True)
        except Exception as error:
            self._probe(run_id)
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            self._fail(run_id, line, traceback.format_exc())
        else:
            if state in ("done", "diverged"):
                self.over.add(run_id)
                self.ledger.forget_failures(run_id)
            ending = {"state": state} if message is None else {"state": "pruned", "message": message}
            self.events.send("end", run=run_id, **ending, seconds=time.monotonic() - started)

    def _mark_pruned(self, run_id: str, lease: Lease, prune: PruneWatch) -> str | None:
        """Mark a run that stopped with a checkpoint as pruned, if that is why; the line that says so."""
        if prune.request is None:
            return None
        line = prune_line(prune.request)
        lease.check()
        self.ledger.set_state(run_id, "pruned", line)
        forget_prune(self.ledger.run_dir(run_id))
        self.over.add(run_id)
        return line

    def _train(self, run_id: str, config: RunConfig, lease: Lease, prune: PruneWatch) -> str:
        if config.data not in self._corpora:
            self._corpora[config.data] = open_corpus(config.data, self.ledger.results)
        corpus = self._corpora[config.data]
        if config.run_id(corpus.fingerprint) != run_id:
            raise ConfigError(
                f"{run_id}: its configuration or corpus is not what was planned (one of them changed since); "
                f"start the sweep again"
            )

        def should_stop() -> bool:
            lease.check()
            return self.stop() or prune()

        def on_progress(progress: Any) -> None:
            lease.check()
            self._report(run_id, progress)

        folder = self.ledger.run_dir(run_id)
        return self.train(config, corpus, folder, run_id, self.execution, should_stop, on_progress)

    def _report(self, run_id: str, progress: Any) -> None:
        if progress.note:
            print(progress.note, flush=True)
            return
        self.events.send(
            "progress",
            run=run_id,
            phase=progress.phase,
            step=progress.step,
            total=progress.total,
            loss=progress.train_loss,
            speed=progress.tokens_per_second,
            eta=progress.eta_seconds,
        )

    def _fail(
        self, run_id: str, line: str, report: str, permanent: bool = False, counts: bool = True
    ) -> None:
        try:
            self.ledger.record_failure(run_id, line, report, self.session.session, permanent, counts)
        except RunDirError:
            # A disk that takes no training takes no report either; the caller raises what is wrong.
            if counts:
                raise
        self.events.send("end", run=run_id, state="failed", message=line)

    def _probe(self, run_id: str) -> None:
        """Raise RunDirError where the folder cannot be written: then every further run would fail as well."""
        path = self.ledger.run_dir(run_id) / f".probe.{os.getpid()}.tmp"
        with io_errors(path.parent):
            try:
                path.write_bytes(b"\0" * PROBE_BYTES)
            finally:
                path.unlink(missing_ok=True)


@contextmanager
def _own_log(run_dir: Path) -> Iterator[None]:
    """Send this process' output, that of libraries included, to the run's worker.log."""
    with io_errors(run_dir):
        log = os.open(run_dir / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    before = [os.dup(1), os.dup(2)]
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        print(time.strftime("--- %Y-%m-%d %H:%M:%S"), f"process {os.getpid()}", flush=True)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for target, descriptor in enumerate(before, 1):
            os.dup2(descriptor, target)
            os.close(descriptor)
        os.close(log)


def _trainer(session: Session) -> Train:
    """The training loop, loaded only where runs are trained: it brings torch.

    Raises DeviceError here, before a run is claimed that would fail for it.
    """
    from trainer.device import select_device
    from trainer.loop import train

    select_device(Execution.model_validate(session.execution))
    # What is loaded by now stays; looking through it after every run takes longer than a short run's start.
    gc.collect()
    gc.freeze()
    return train


def main(argv: list[str] | None = None, train: Train | None = None) -> int:
    """Run a worker; `train` replaces trainer.loop.train, for other ways of training a run."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.worker")
    parser.add_argument("session", type=Path)
    parser.add_argument("--launcher", type=int)
    parser.add_argument("--events", type=int)
    options = parser.parse_args(argv)
    faulthandler.enable()
    events = Events(options.events)
    try:
        session = read_session(options.session)
        stop = Stop(session, options.launcher)
        stop.listen()
        return Worker(session, events, stop, train or _trainer(session)).work()
    except (SweepError, TrainerError) as error:
        events.send("abort", run=None, message=str(error), no_device=isinstance(error, DeviceError))
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER


if __name__ == "__main__":
    sys.exit(main())
