"""manifest.json: for every figure and table the inputs, runs, code, versions and command that made it."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.errors import AnalysisError
from analysis.figures.style import style_sha256
from analysis.output import write_if_changed
from analysis.products.tracked import SOURCE_TREE, Tracked
from analysis.runs.table import RESULT_HASH
from trainer.provenance import code_version

FILE = "manifest.json"
SCHEMA = 1
PACKAGES = ("numpy", "scipy", "pandas", "matplotlib")
"""What the bytes of a figure depend on besides this program and its tables."""

Entry = dict[str, Any]
ENTRY = {"inputs": dict, "outputs": dict, "versions": dict, "style_sha256": str, "command": str}
"""What every entry holds."""


@dataclass(frozen=True)
class Stale:
    """A figure whose files no longer follow from what is there, and why."""

    name: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Drawn:
    """A product whose files have been written.

    inputs, outputs: by name below the results folder, the SHA-256 of their content.
    """

    name: str
    shows: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@cache
def _hash(path: Path, changed: int, size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sha256(path: Path) -> str:
    """The hash of a file's content; a file that has not changed is read once."""
    seen = path.stat()
    return _hash(path, seen.st_mtime_ns, seen.st_size)


def key(path: Path, root: Path) -> str:
    """How the manifest names a file: below the results folder, also where the source tree's stands in."""
    for folder in (root, SOURCE_TREE):
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return Path(path.parent.name, path.name).as_posix()


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a results folder; an empty one where there is none.

    Raises:
        AnalysisError: it is no manifest.
    """
    path = root / FILE
    if not path.is_file():
        return {"schema": SCHEMA, "figures": {}, "tables": {}}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA or not isinstance(content["tables"], dict):
            raise ValueError("unknown form")
        for name, entry in content["figures"].items():
            if not all(isinstance(entry[part], kind) for part, kind in ENTRY.items()):
                raise ValueError(f"unknown form of {name}")
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AnalysisError(
            f"{path}: is no manifest ({error}); delete it and run 'python -m analysis figures'"
        ) from None
    manifest: dict[str, Any] = content
    return manifest


def record(root: Path, drawn: Sequence[Drawn], tracked: Tracked) -> Path:
    """Write down what has been drawn; entries whose inputs and files are as before stay as they are.

    So the code and the versions of an entry are those that first made these bytes, and drawing again changes
    nothing. Entries of figures whose files are all gone are dropped.
    """
    manifest = read_manifest(root)
    figures: dict[str, Entry] = manifest["figures"]
    for one in drawn:
        before = figures.get(one.name)
        inputs, outputs = dict(sorted(one.inputs.items())), dict(sorted(one.outputs.items()))
        if before is None or any(before[k] != v for k, v in (("inputs", inputs), ("outputs", outputs))):
            before = {"inputs": inputs, "outputs": outputs, **_made_by(one.name)}
        figures[one.name] = {**before, "shows": one.shows}
    just = {one.name for one in drawn}
    kept = {name: entry for name, entry in figures.items() if name in just or _anything_left(entry, root)}
    runs = {**manifest["tables"], **_run_ids(root, tracked)}
    used = {digest for entry in kept.values() for digest in entry["inputs"].values()}
    content = {
        "schema": SCHEMA,
        "figures": dict(sorted(kept.items())),
        "tables": {digest: runs[digest] for digest in sorted(used & runs.keys())},
    }
    path = root / FILE
    write_if_changed(path, json.dumps(content, indent=1) + "\n")
    return path


def _made_by(name: str) -> Entry:
    code = code_version()
    return {
        "command": f"python -m analysis figures --only {name}",
        "git_sha": code["git_sha"],
        "source_sha256": code["source_sha256"],
        "style_sha256": style_sha256(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of Python and the libraries that a figure's bytes depend on."""
    return {"python": platform.python_version(), **{p: metadata.version(p) for p in PACKAGES}}


def drawings(root: Path) -> dict[str, dict[str, str]]:
    """Name -> ending -> SHA-256 of the figures on record that were made in this style by these libraries."""
    here = style_sha256(), versions()
    return {
        name: {Path(file).suffix[1:]: digest for file, digest in entry["outputs"].items()}
        for name, entry in read_manifest(root)["figures"].items()
        if (entry["style_sha256"], entry["versions"]) == here
    }


def _anything_left(entry: Entry, root: Path) -> bool:
    return any(_find(name, root) is not None for name in entry["outputs"])


def _run_ids(root: Path, tracked: Tracked) -> dict[str, Entry]:
    """By the hash of each table of runs or trials: its name and the ids of its runs, finished and not."""
    found: dict[str, Entry] = {}
    for name in tracked.names:
        runs = tracked.runs(name)
        if "run_id" in runs.table:
            ids = {"done": [str(run_id) for run_id in runs.table["run_id"]]}
            ids |= {state: list(lost) for state, lost in runs.absent() if lost}
            path = tracked.path(name)
            found[sha256(path)] = {"file": key(path, root), "run_ids": ids, **_results(runs.table)}
    for name in tracked.studies:
        path = tracked.trials(name)
        study = tracked.study(name)
        hashes = {trial.run_id: trial.result_sha256 for trial in study.trials if trial.result_sha256}
        entry = {"file": key(path, root), "run_ids": study.run_ids()}
        found[sha256(path)] = entry | ({"result_sha256": hashes} if hashes else {})
    return found


def _results(table: pd.DataFrame) -> Entry:
    """By run id the checksum of the result.json that a row was read from, where the table has them."""
    if RESULT_HASH not in table:
        return {}
    rows = zip(table["run_id"], table[RESULT_HASH], strict=True)
    known = {str(run_id): str(digest) for run_id, digest in rows if digest and str(digest) != "nan"}
    return {"result_sha256": known} if known else {}


def _find(name: str, root: Path) -> Path | None:
    """The file that the manifest names, in the results folder or, if published, in the source tree."""
    folders = (root, SOURCE_TREE) if name.startswith("published/") else (root,)
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def check(root: Path, known: Sequence[str]) -> list[Stale]:
    """Which figures no longer follow from the tables that are there; nothing is drawn.

    Args:
        root: results folder.
        known: names of all that could be drawn.

    Raises:
        AnalysisError: there is no manifest, or it is none.
    """
    if not (root / FILE).is_file():
        raise AnalysisError(f"{root / FILE}: is not there; run 'python -m analysis figures' first")
    figures: dict[str, Entry] = read_manifest(root)["figures"]
    stale = [Stale(name, tuple(_changes(entry, root))) for name, entry in figures.items()]
    new = [name for name in known if name not in figures]
    stale += [Stale(name, ("has not been drawn yet",)) for name in new]
    return [one for one in stale if one.reasons]


def _changes(entry: Entry, root: Path) -> list[str]:
    reasons = []
    for kind in ("inputs", "outputs"):
        for name, digest in entry[kind].items():
            path = _find(name, root)
            if path is None:
                reasons.append(f"{name} is gone")
            elif sha256(path) != digest:
                reasons.append(f"{name} has changed")
    return reasons
