"""What this machine has to run on (cores, GPUs, their names), found without loading torch."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True)
class Gpu:
    """One GPU of this machine."""

    index: str
    """What CUDA_VISIBLE_DEVICES calls it."""
    name: str
    """As torch names it, for example "NVIDIA H200"."""


@lru_cache(maxsize=1)
def cores() -> int:
    """Cores that this process may use: its affinity, further limited by the container's CPU quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return count
    return count if quota == "max" else max(1, min(count, int(quota) // int(period)))


@lru_cache(maxsize=1)
def gpus() -> tuple[Gpu, ...]:
    """The GPUs that CUDA would see, in its order; none where there is no driver."""
    names = _driver_gpus() or _smi_gpus()
    if names and not _torch_has_cuda():
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(Gpu(str(i), name) for i, name in enumerate(names))
    chosen = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdigit() and int(entry) < len(names):
            chosen.append(Gpu(entry, names[int(entry)]))
        elif entry.startswith(("GPU-", "MIG-")) and names:
            chosen.append(Gpu(entry, names[0]))
        else:
            # CUDA itself ignores everything from the first invalid entry on.
            break
    return tuple(chosen)


def _driver_gpus() -> list[str]:
    folder = Path("/proc/driver/nvidia/gpus")
    names = []
    try:
        for path in sorted(folder.glob("*/information")):
            match = re.search(r"^Model:\s*(.+)$", path.read_text(), re.MULTILINE)
            if match and Path("/dev/nvidiactl").exists():
                names.append(match[1].strip())
    except OSError:
        return []
    return names


def _torch_has_cuda() -> bool:
    """Whether the installed torch is a CUDA build, as its version file says."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).with_name("version.py").read_text()
    return re.search(r"^cuda\b[^=]*= *['\"]", version, re.MULTILINE) is not None


def _smi_gpus() -> list[str]:
    if not Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def step_back(pid: int, niceness: int = 10) -> None:
    """Have a process of ours take the processor after others: its niceness, and that of its session.

    Where Linux shares the processor between sessions (autogroup), a niceness counts within the session only,
    and a process that leads one of its own would take as much as a run. One that has ended is left alone.
    """
    with suppress(OSError):
        own = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, pid, min(19, own + niceness))
        if os.getsid(pid) == pid:
            Path(f"/proc/{pid}/autogroup").write_text(str(min(19, own + niceness)))
