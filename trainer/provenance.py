"""env.json: what code, packages and machine made a run (no environment variables: they hold secrets)."""

from __future__ import annotations

import hashlib
import platform
import socket
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "pydantic")


@lru_cache(maxsize=1)
def code_version() -> dict[str, str | None]:
    """Commit of the code and a hash of its uncommitted changes; None outside a git checkout."""
    root = Path(__file__).resolve().parent.parent
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return {"git_sha": None, "git_diff": None}
    digest = hashlib.sha256()
    changes = _git(root, "diff", "HEAD", "--", "*.py", "*.toml") or ""
    untracked = (
        _git(root, "ls-files", "--others", "--exclude-standard", "--", "*.py", "*.toml") or ""
    ).split()
    digest.update(changes.encode())
    for name in untracked:
        digest.update(name.encode() + b"\0" + (root / name).read_bytes())
    dirty = digest.hexdigest()[:12] if changes or untracked else None
    return {"git_sha": commit.strip(), "git_diff": dirty}


def environment(device: str, threads: int) -> dict[str, Any]:
    """The content of env.json."""
    return {
        **code_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "host": socket.gethostname(),
        "device": device,
        "threads": threads,
        "argv": sys.argv,
    }


def _git(root: Path, *args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *args], cwd=root, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
