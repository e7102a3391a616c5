"""Which processes belong to a lab, found by a mark in their environment or in the files mounted for them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path


def owned(mark: str) -> list[int]:
    """Return the process ids that carry the mark; zombies do not count."""
    return [
        int(entry) for entry in filter(str.isdigit, os.listdir("/proc")) if _carries(entry, mark.encode())
    ]


def _carries(entry: str, mark: bytes) -> bool:
    for name in ("environ", "mountinfo"):
        with contextlib.suppress(OSError):
            if mark in Path("/proc", entry, name).read_bytes():
                return True
    return False


def program(pid: int) -> str:
    """Return the name of a process's program, empty if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def kill(mark: str, only: str = "", timeout: float = 15) -> None:
    """Kill all that carry the mark, or those of one program; TimeoutError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    # More than once: a process found alive may have forked before its end.
    while pids := [pid for pid in owned(mark) if only in ("", program(pid))]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes that SIGKILL does not end: {pids}")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
