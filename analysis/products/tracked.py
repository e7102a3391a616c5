"""The tracked tables, each read and fitted at most once, however many figures are made of it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from analysis.analyse import Analysis, analyse
from analysis.errors import AnalysisError
from analysis.runs.reading import read_csv
from analysis.runs.table import Runs
from analysis.searches.trials import Study, no_sweep, read_study

RUNS = "_runs.csv"
TRIALS, IMPORTANCE = "_trials.csv", "_importance.csv"
PUBLISHED = Path("published")
SOURCE_TREE = Path(__file__).parents[2] / "results"


class Tracked:
    """The tables below a results folder; `problems` says in a line each which of them cannot be read.

    Args:
        root: results folder, with tables/ and perhaps published/.
        published: folder whose published/ is looked at after that of `root`; the source tree's comes last.
            None for no published numbers at all.
        only: names of the runs tables and studies to read; all without.
    """

    def __init__(
        self, root: Path, published: Path | None = SOURCE_TREE, only: Collection[str] | None = None
    ) -> None:
        self.root = root
        self.tables = root / "tables"
        self.problems: list[str] = []
        self._published = [] if published is None else [root, published, SOURCE_TREE]
        self._runs: dict[str, Runs] = {}
        self._analyses: dict[str, Analysis] = {}
        self._studies: dict[str, Study] = {}
        for path in sorted(self.tables.glob(f"*{RUNS}")):
            name = path.name.removesuffix(RUNS)
            if only is not None and name not in only:
                continue
            try:
                self._runs[name] = read_csv(path)
            except AnalysisError as error:
                # The figures of all other tables still come out.
                self.problems.append(str(error))
        for path in sorted(self.tables.glob(f"*{TRIALS}")):
            name = path.name.removesuffix(TRIALS)
            if only is not None and name not in only:
                continue
            try:
                self._studies[name] = read_study(path, self.tables / f"{name}{IMPORTANCE}", name)
            except AnalysisError as error:
                self.problems.append(str(error))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the runs tables, `lowrank` for tables/lowrank_runs.csv."""
        return tuple(self._runs)

    @property
    def studies(self) -> tuple[str, ...]:
        """The names of the studies of shapes, `width-cpu` for tables/width-cpu_trials.csv."""
        return tuple(self._studies)

    def study(self, name: str) -> Study:
        """A study's trials."""
        return self._studies[name]

    def trials(self, name: str) -> Path:
        """The file of a study's trials."""
        return self.tables / f"{name}{TRIALS}"

    def importance(self, name: str) -> Path | None:
        """The file of a study's importances, or None where it is not there."""
        return self.table(f"{name}{IMPORTANCE}")

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
        """A runs table."""
        return self._runs[name]

    def analysis(self, name: str) -> Analysis:
        """The laws and the verdict of a runs table.

        Raises:
            AnalysisError: it holds no finished run, or is a study of shapes.
        """
        if name not in self._runs and name in self._studies:
            raise AnalysisError(no_sweep(name))
        if name not in self._analyses:
            self._analyses[name] = analyse(self.runs(name), name)
        return self._analyses[name]
