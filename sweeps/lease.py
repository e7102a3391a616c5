"""Claims: a lease in the run folder, held with a heartbeat, so that no run is trained by two workers.

    lease.json   owner (uuid), session, host, machine, pid, process start, heartbeat; replaced atomically
    lease.lock   file lock under which a lease is read, judged and replaced

A lease is stale when its heartbeat is too old or, on the same machine, its process is gone.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trainer.rundir import io_errors

LEASE = "lease.json"
LOCK = "lease.lock"
HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
"""Long enough for a busy network file system and for clocks some seconds apart."""
LOCK_SECONDS = 30.0


class LeaseLost(BaseException):
    """Another worker owns the run now; nothing more may be written into its folder.

    Not an Exception, so that nothing between the heartbeat and the worker takes it for an error of the run.
    """


@lru_cache(maxsize=1)
def machine_id() -> str:
    """This boot of this machine and its process namespace: where a process id means the same process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{socket.gethostname()}/{uuid.getnode()}"


def process_start(pid: int) -> str | None:
    """When a process of this machine started, in whatever unit the system has; None where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        # A zombie has ended; only its parent has not yet asked how.
        return None if fields[0] in (b"Z", b"X") else fields[19].decode()
    except (FileNotFoundError, ProcessLookupError):
        if os.path.isdir("/proc/self"):
            return None
    done = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def is_stale(lease: dict[str, Any], now: float, timeout: float = STALE_SECONDS) -> bool:
    """Whether a lease may be taken over."""
    try:
        if now - float(lease["heartbeat"]) > timeout:
            return True
        if lease["machine"] != machine_id():
            return False
        return process_start(int(lease["pid"])) != str(lease["process_start"])
    except (KeyError, TypeError, ValueError):
        # Leases are replaced atomically, so one that makes no sense was not written by a live worker.
        return True


def read_lease(run_dir: Path) -> dict[str, Any] | None:
    """The lease of a run, or None; one that is not JSON is an empty one, hence stale."""
    try:
        value = json.loads((run_dir / LEASE).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


class Lease:
    """A claim on one run.  Use as a context manager: renews itself in a thread, lets go at the end.

    Args:
        run_dir: the run's folder.
        session: the launch that the claimant belongs to.  What a worker of the same launch left behind when
            it died is not taken over: the launcher has to count the failure first.
        heartbeat: seconds between renewals.
        timeout: seconds after which a lease that was not renewed is stale.
    """

    def __init__(
        self,
        run_dir: Path,
        session: str | None = None,
        heartbeat: float = HEARTBEAT_SECONDS,
        timeout: float = STALE_SECONDS,
    ) -> None:
        self.run_dir = run_dir
        self.owner = uuid.uuid4().hex
        self.session = session
        self.heartbeat, self.timeout = heartbeat, timeout
        self.lost = False
        self._renewed = 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def claim(self) -> bool:
        """Take the lease unless a live one is there.  RunDirError where the folder cannot be written."""
        with io_errors(self.run_dir):
            self.run_dir.mkdir(parents=True, exist_ok=True)
            with _locked(self.run_dir):
                there = read_lease(self.run_dir)
                if there is not None and not self._may_take(there):
                    return False
                self._write()
        return True

    def _may_take(self, there: dict[str, Any]) -> bool:
        sibling = self.session is not None and there.get("session") == self.session
        return not sibling and is_stale(there, time.time(), self.timeout)

    def renew(self) -> bool:
        """Refresh the heartbeat; False, for good, once the lease belongs to someone else."""
        if self.lost:
            return False
        with _locked(self.run_dir):
            there = read_lease(self.run_dir)
            if there is None or there.get("owner") != self.owner:
                self.lost = True
            else:
                self._write()
        return not self.lost

    def check(self) -> None:
        """Raise LeaseLost unless the lease is ours: asked before every write of the run.

        After a suspension (a laptop asleep, a stopped process) the heartbeat thread may not have run yet,
        so a lease that was not renewed lately is looked at again.
        """
        if not self.lost and time.time() - self._renewed > self.timeout / 2:
            there = read_lease(self.run_dir)
            self.lost = there is None or there.get("owner") != self.owner
        if self.lost:
            raise LeaseLost(self.run_dir.name)

    def release(self) -> None:
        """Let go of the lease if it is still ours."""
        with _locked(self.run_dir):
            there = read_lease(self.run_dir)
            if there is not None and there.get("owner") == self.owner:
                (self.run_dir / LEASE).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._keep, name=f"lease {self.run_dir.name}", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self.release()
        except OSError:
            # A disk that fails here has already failed the run; the lease goes stale by itself.
            self.lost = True

    def _keep(self) -> None:
        while not self._ended.wait(self.heartbeat):
            try:
                if not self.renew():
                    return
            except OSError:
                # A full disk or a hanging server: `check` looks at the owner until renewal works again.
                continue

    def _write(self) -> None:
        now = time.time()
        lease = {
            "owner": self.owner,
            "session": self.session,
            "host": socket.gethostname(),
            "machine": machine_id(),
            "pid": os.getpid(),
            "process_start": process_start(os.getpid()),
            "heartbeat": now,
        }
        temp = self.run_dir / f".{LEASE}.{self.owner}.tmp"
        try:
            temp.write_text(json.dumps(lease) + "\n")
            os.replace(temp, self.run_dir / LEASE)
        except OSError:
            temp.unlink(missing_ok=True)
            raise
        self._renewed = now


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    # Imported here: the planner reads leases and never locks.
    from filelock import FileLock, Timeout

    try:
        with FileLock(run_dir / LOCK, timeout=LOCK_SECONDS):
            yield
    except Timeout:
        raise OSError(f"{run_dir / LOCK}: no lock within {LOCK_SECONDS:.0f} s") from None
