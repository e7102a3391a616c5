"""The code of jobs and frozen launches: a copy of the program for each state of it, which no edit reaches."""

from __future__ import annotations

import os
import shutil
import stat
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from sweeps.errors import SweepError
from sweeps.slot import PACKAGE_ROOT
from trainer.provenance import SOURCE, code_version, source_files, source_sha256
from trainer.rundir import io_errors, write_json


@dataclass(frozen=True)
class Source:
    """One state of the program."""

    path: str
    """Folder of the copy; PYTHONPATH of what runs it."""
    source_sha256: str
    """Hash of all its files."""
    git_sha: str | None
    """Commit it was made from, None outside git."""
    git_diff: str | None
    """Hash of what was not committed; None where all was."""

    @property
    def label(self) -> str:
        """Commit, and whether it was changed since, for people."""
        if self.git_sha is None:
            return f"source {self.source_sha256[:12]}, no git"
        changed = f" with changes {self.git_diff}" if self.git_diff else ""
        return f"commit {self.git_sha[:12]}{changed}, source {self.source_sha256[:12]}"


def current_source(results: Path, root: Path = PACKAGE_ROOT) -> Source:
    """This state of the program, and where its copy is or would be."""
    version = code_version(root)
    digest = str(version["source_sha256"])
    path = (results / "sweeps" / "code").resolve() / digest[:16]
    return Source(str(path), digest, version["git_sha"], version["git_diff"])


def keep_source(source: Source, root: Path = PACKAGE_ROOT) -> None:
    """Copy the program below the results folder, unless that very state of it is there already.

    Copies are complete or absent (a rename makes them), read-only, and checked before they are used again.
    Raises RunDirError where the folder cannot be written, SweepError where the program changes meanwhile.
    """
    path = Path(source.path)
    with io_errors(path):
        if path.is_dir() and source_sha256(path) != source.source_sha256:
            os.rename(path, path.with_name(f".{path.name}.damaged-{uuid.uuid4().hex[:8]}"))
        if not path.is_dir():
            _copy(root, path, source)


def _copy(root: Path, path: Path, source: Source) -> None:
    temp = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        for file in source_files(root):
            target = temp / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            # A slip of the editor in the copy would change runs that are queued, or train.
            target.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        if source_sha256(temp) != source.source_sha256:
            raise SweepError(f"{root}: files were changed while they were copied; start again")
        write_json(temp / SOURCE, {key: value for key, value in asdict(source).items() if key != "path"})
        try:
            os.rename(temp, path)
        except OSError:
            # Another launcher was quicker with the same copy.
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temp, ignore_errors=True)
