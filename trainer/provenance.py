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

from trainer.rundir import read_json

PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "pydantic")
ROOT = Path(__file__).resolve().parent.parent
SOURCE = "SOURCE.json"
"""In a copy of the program: what it was copied from."""
ROOMS = ("analysis", "sweeps", "trainer")


def source_files(root: Path = ROOT) -> list[Path]:
    """All files of the program itself, in a fixed order: no tests, no results, nothing that Python wrote."""
    files = (path for room in ROOMS for path in (root / room).rglob("*") if path.is_file())
    return sorted(path for path in files if "__pycache__" not in path.parts and path.suffix != ".pyc")


def source_sha256(root: Path = ROOT) -> str:
    """Hash of the program's files and their names: what ran, whatever git says of it."""
    digest = hashlib.sha256()
    for path in source_files(root):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


@lru_cache(maxsize=2)
def code_version(root: Path = ROOT) -> dict[str, str | None]:
    """Hash of the program's files, commit, and hash of uncommitted changes (None outside a git checkout).

    A copy of the program (see sweeps.source) tells of what it was copied from.
    """
    source = {"source_sha256": source_sha256(root)}
    if (copied := read_json(root / SOURCE)) is not None:
        return {"git_sha": copied.get("git_sha"), "git_diff": copied.get("git_diff"), **source}
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return {"git_sha": None, "git_diff": None, **source}
    digest = hashlib.sha256()
    changes = _git(root, "diff", "HEAD", "--", "*.py", "*.toml") or ""
    untracked = (
        _git(root, "ls-files", "--others", "--exclude-standard", "--", "*.py", "*.toml") or ""
    ).split()
    digest.update(changes.encode())
    for name in untracked:
        digest.update(name.encode() + b"\0" + (root / name).read_bytes())
    dirty = digest.hexdigest()[:12] if changes or untracked else None
    return {"git_sha": commit.strip(), "git_diff": dirty, **source}


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
