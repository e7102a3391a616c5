"""The tracked tables, each read and fitted at most once, however many figures are made of it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from analysis.analyse import Analysis, analyse
from analysis.runs.reading import read_csv
from analysis.runs.table import Runs

RUNS = "_runs.csv"
PUBLISHED = Path("published")
SOURCE_TREE = Path(__file__).parents[2] / "results"


class Tracked:
    """The tables below a results folder.

    Args:
        root: results folder, with tables/ and perhaps published/.
        published: folder whose published/ is looked at next; the source tree's comes last.
    """

    def __init__(self, root: Path, published: Path | None = None) -> None:
        self.root = root
        self.tables = root / "tables"
        self._published = [root, *([published] if published is not None else []), SOURCE_TREE]
        self._runs: dict[str, Runs] = {}
        self._analyses: dict[str, Analysis] = {}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the runs tables, `lowrank` for tables/lowrank_runs.csv."""
        return tuple(sorted(path.name.removesuffix(RUNS) for path in self.tables.glob(f"*{RUNS}")))

    def path(self, name: str) -> Path:
        """The file of a runs table."""
        return self.tables / f"{name}{RUNS}"

    def table(self, file: str) -> Path | None:
        """Another file in tables/, or None where it is not there."""
        path = self.tables / file
        return path if path.is_file() else None

    def published(self, file: str) -> Path | None:
        """A file of published numbers, or None where it is nowhere."""
        places = (folder / PUBLISHED / file for folder in self._published)
        return next((path for path in places if path.is_file()), None)

    def runs(self, name: str) -> Runs:
        """A runs table.

        Raises:
            AnalysisError: it cannot be read.
        """
        if name not in self._runs:
            self._runs[name] = read_csv(self.path(name))
        return self._runs[name]

    def analysis(self, name: str) -> Analysis:
        """The laws and the verdict of a runs table.

        Raises:
            AnalysisError: it cannot be read, or holds no finished run.
        """
        if name not in self._analyses:
            self._analyses[name] = analyse(self.runs(name), name)
        return self._analyses[name]
