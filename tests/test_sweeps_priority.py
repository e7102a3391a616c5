"""Processes that serve a sweep take the processor after its runs, also where sessions share it as groups."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.machine import step_back

SLEEPER = [sys.executable, "-c", "input()"]


def group_niceness(pid: int) -> int | None:
    """The niceness of a process's autogroup; None where it has none (an empty file)."""
    path = Path(f"/proc/{pid}/autogroup")
    words = path.read_text().split() if path.is_file() else []
    return int(words[-1]) if words else None


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="not Linux")
@pytest.mark.parametrize("own_session", [True, False])
def test_a_process_steps_back_and_a_session_of_its_own_with_it(own_session: bool) -> None:
    process = subprocess.Popen(SLEEPER, stdin=subprocess.PIPE, start_new_session=own_session)
    try:
        before = group_niceness(process.pid)
        step_back(process.pid, 7)
        wanted = min(19, os.getpriority(os.PRIO_PROCESS, 0) + 7)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == wanted
        if before is not None:
            # The group of a session that others are in is left as it is.
            assert group_niceness(process.pid) == (wanted if own_session else before)
    finally:
        process.communicate(b"\n", timeout=10)
    step_back(process.pid, 7)
