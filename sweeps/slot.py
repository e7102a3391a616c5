"""One slot of the local queue: a worker process, its event pipe and its log."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PROCESS_GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PACKAGE_ROOT = Path(__file__).resolve().parent.parent


def program(root: Path) -> dict[str, str]:
    """Environment variables with which a process runs the program at `root`, not the current folder's."""
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


class Slot:
    """Starts, listens to and ends one worker at a time.

    Args:
        command: the worker's command; the slot adds the option --events.
        environment: variables set for it.
        log: takes what it prints outside of runs.
        root: folder of the program that it runs.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, root: Path = PACKAGE_ROOT
    ) -> None:
        self.command, self.environment, self.log, self.root = command, environment, log, root
        self.run: str | None = None
        self.idle_crashes = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: int | None = None
        self._buffer = b""
        self._eof = False

    @property
    def pipe(self) -> int | None:
        """Descriptor that is readable once the worker has told something or has ended; None without one."""
        # A pipe that has ended is always readable, and the process may take a while to end as well.
        return None if self._eof else self._pipe

    @property
    def running(self) -> bool:
        """Whether there is a worker whose end was not yet told."""
        return self._process is not None

    def start(self) -> None:
        """Start a worker in a session of its own: Ctrl-C on the terminal reaches only the launcher."""
        reader, writer = os.pipe()
        # A launcher started by Slurm or torchrun must not make its workers join that process group.
        inherited = {key: value for key, value in os.environ.items() if key not in PROCESS_GROUP}
        try:
            with open(self.log, "ab") as log:
                self._process = subprocess.Popen(
                    [*self.command, "--events", str(writer)],
                    env={**inherited, **self.environment, **program(self.root)},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(writer,),
                    start_new_session=True,
                )
        finally:
            os.close(writer)
        os.set_blocking(reader, False)
        self._pipe, self._buffer, self._eof, self.run = reader, b"", False, None

    def events(self) -> Iterator[dict[str, Any]]:
        """What the worker has reported since the last time."""
        if self._pipe is None:
            return
        if select.select([self._pipe], [], [], 0)[0]:
            self._eof = not self._fill()
            while self._fill():
                continue
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            yield json.loads(line)

    def ended(self) -> int | None:
        """The exit code of a worker that ended and whose events were all read; None otherwise."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        if self._pipe is not None and select.select([self._pipe], [], [], 0)[0] and self._fill():
            return None
        self._close()
        return code

    def terminate(self) -> None:
        """Ask the worker to stop after its step."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """End the worker and whatever it started."""
        if self._process is None:
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()

    def _fill(self) -> bool:
        chunk = self._read()
        self._buffer += chunk
        return bool(chunk)

    def _read(self) -> bytes:
        assert self._pipe is not None
        try:
            return os.read(self._pipe, 1 << 16)
        except BlockingIOError:
            return b""

    def _close(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
        self._process, self._pipe = None, None


def wait_for_news(slots: Sequence[Slot], seconds: float) -> None:
    """Wait until one of the workers has told something or has ended, or some seconds have passed."""
    select.select([slot.pipe for slot in slots if slot.pipe is not None], [], [], seconds)
