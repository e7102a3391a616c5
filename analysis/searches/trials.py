"""The trials of a study of shapes, read from trials.csv and importance.csv and checked."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from analysis.digits import quantity
from analysis.errors import AnalysisError
from analysis.runs.labels import structure_order
from analysis.searches.series import seedless, variants

FOLDER, TRIALS, IMPORTANCE = "searches", "trials.csv", "importance.csv"
KINDS = ("width", "width-params", "lr", "tokens", "pareto")
STATES = ("done", "pruned", "diverged", "failed")
FREE = ("width-params", "lr")
"""Kinds that hold no training FLOPs fixed; what their tables say of a budget is not read."""
SEARCH = "search."
NUMBERS = (
    "budget_flops", "d_model", "n_layers", "d_ff", "n_heads", "rank", "n_blocks", "params", "tokens",
    "tokens_per_param", "batch_tokens", "peak_lr", "train_flops", "val_loss", "val_loss_se", "progress",
    "second", "seconds", "attempts",
)  # fmt: skip
NEEDED = ("study", "kind", "cell", "structure", "trial", "state", "repeat", "run_id", "params", "val_loss")
IMPORTANCES = ("study", "cell", "dimension", "importance")
Values = tuple[tuple[str, float], ...]


def words(values: Values) -> str:
    """A shape in words: `d_model 48, n_layers 4`; whole numbers in full."""
    return ", ".join(f"{name} {shown(value)}" for name, value in values)


def shown(value: float) -> str:
    """A searched value: whole numbers in full, others in four significant digits."""
    return f"{value:.0f}" if value == round(value) else f"{value:.4g}"


@dataclass(frozen=True)
class Trial:
    """One proposal that is over, and the run that answered it.

    number: within the cell, from 0. repeat: its shape had been proposed before. from_ledger: the run had been
    trained before, and cost nothing. searched: value of each dimension that the cell searches. numbers: of
    `NUMBERS`, NaN where empty; FLOPs are planned for the whole run, val_loss is in nats per token. structure
    and size: those of the cell. result_sha256: checksum of the run's result.json, empty where not known.
    """

    cell: str
    structure: str
    size: str
    number: int
    state: str
    repeat: bool
    from_ledger: bool
    run_id: str
    sampler: str
    seed: str
    second_name: str
    searched: Values
    numbers: Mapping[str, float]
    result_sha256: str = ""

    @property
    def loss(self) -> float:
        """Held-out loss, nats per token; NaN unless done."""
        return self.numbers["val_loss"]

    @property
    def se(self) -> float:
        """Standard error of the loss over the held-out text, NaN where it is not known."""
        return self.numbers["val_loss_se"]

    @property
    def words(self) -> str:
        """The shape: `d_model 48, n_layers 4`."""
        return words(self.searched)


@dataclass(frozen=True)
class Importance:
    """The share of a cell's variance of loss that a dimension explains, from so many trials."""

    cell: str
    dimension: str
    share: float
    method: str = ""
    trials: str = ""


@dataclass(frozen=True)
class Cell:
    """The trials of one cell in the order of their proposal.

    structure: with the values of the study's further axes, as `dense, weight_decay=0.1`: a series. size: in
    a study of rates with the budget, where there are several. budget: target of training FLOPs, NaN where
    there is none.
    """

    label: str
    structure: str
    size: str
    budget: float
    trials: tuple[Trial, ...]

    @property
    def title(self) -> str:
        """Structure, size and budget: `dense, 2.00e+12 FLOPs`."""
        budget = "" if math.isnan(self.budget) else f"{quantity(self.budget)} FLOPs"
        return ", ".join(filter(None, [self.structure, self.size, budget]))

    @property
    def distinct(self) -> list[Trial]:
        """One trial a run; of several of one run that which is done, else the first."""
        kept: dict[str, Trial] = {}
        for trial in self.trials:
            before = kept.get(trial.run_id)
            if before is None or (trial.state == "done" and before.state != "done"):
                kept[trial.run_id] = trial
        return list(kept.values())

    @property
    def done(self) -> list[Trial]:
        """The runs that have a loss, each once."""
        return [trial for trial in self.distinct if trial.state == "done"]

    @property
    def dimensions(self) -> list[str]:
        """The dimensions searched, in the order of the table's columns."""
        return list(dict.fromkeys(name for trial in self.trials for name, _ in trial.searched))


@dataclass(frozen=True)
class Study:
    """A study of shapes: kind, cells in order of structures, sizes and budgets, and importances."""

    name: str
    kind: str
    cells: tuple[Cell, ...]
    importance: tuple[Importance, ...] = ()

    def title(self, cell: Cell) -> str:
        """What a cell is called: its own title, or its label where two have that."""
        alike = sum(other.title == cell.title for other in self.cells)
        return cell.title if alike == 1 else cell.label

    @property
    def pooled(self) -> Study:
        """The study with the cells that differ in their seed alone as one, whose runs are replicates.

        Trials of such a cell are in the order of the seeds' cells, and their numbers are not unique.
        """
        groups: dict[str, list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault(seedless(cell.label), []).append(cell)
        if len(groups) == len(self.cells):
            return self
        cells = [
            replace(mine[0], label=label, trials=tuple(trial for cell in mine for trial in cell.trials))
            for label, mine in groups.items()
        ]
        return replace(self, cells=tuple(cells))

    @property
    def trials(self) -> list[Trial]:
        """All trials, cell by cell."""
        return [trial for cell in self.cells for trial in cell.trials]

    @property
    def done(self) -> int:
        """How many distinct runs have a loss."""
        return len({trial.run_id for trial in self.trials if trial.state == "done"})

    def run_ids(self) -> dict[str, list[str]]:
        """The ids of the distinct runs by state, `done` first."""
        ids: dict[str, list[str]] = {state: [] for state in STATES}
        seen: set[str] = set()
        for state in STATES:
            for trial in self.trials:
                if trial.state == state and trial.run_id not in seen:
                    seen.add(trial.run_id)
                    ids[state].append(trial.run_id)
        return {state: found for state, found in ids.items() if found or state == "done"}

    def coverage(self) -> str:
        """How many trials and runs there are, and what became of those without a loss."""
        ids = self.run_ids()
        total = sum(map(len, ids.values()))
        count = len(self.trials)
        parts = [
            f"{count} trial{'s' * (count > 1)} of {total} run{'s' * (total > 1)}, {len(ids['done'])} done"
        ]
        parts += [f"{len(found)} {state}" for state, found in ids.items() if state != "done"]
        repeats = sum(trial.repeat for trial in self.trials)
        known = len({t.run_id for t in self.trials if t.from_ledger and not t.repeat})
        if repeats:
            parts.append(f"{repeats} repeat{'s' if repeats > 1 else ''}")
        if known:
            parts.append(f"{known} known before")
        return ", ".join(parts)


def read_study(path: Path, importance: Path | None = None, name: str = "") -> Study:
    """Read and check a study's trials, and beside them its importances.

    Args:
        path: trials.csv, or its tracked copy.
        importance: importance.csv; None, or a file that is not there, for none.
        name: that the study must have; any without.

    Raises:
        AnalysisError: a file cannot be read, or says what cannot be.
    """
    rows = _rows(path, NEEDED)
    if not rows:
        raise AnalysisError(f"{path}: holds no trial; {_again(name)} first")
    trials = [_trial(row, f"{path}, line {i}") for i, row in rows]
    for column in ("study", "kind"):
        others = sorted({row[column] for _, row in rows})
        if len(others) > 1:
            raise AnalysisError(f"{path}: {column} is both {others[0]!r} and {others[1]!r}; {_again(name)}")
    study, kind = rows[0][1]["study"], rows[0][1]["kind"]
    if name and study != name:
        raise AnalysisError(f"{path}: holds the trials of study {study!r}, not of {name!r}; {_again(name)}")
    if kind not in KINDS:
        raise AnalysisError(f"{path}: kind = {kind!r} is none of {', '.join(KINDS)}; {_again(study)}")
    cells = _cells(trials, kind, path)
    found: tuple[Importance, ...] = ()
    if importance is not None and importance.is_file():
        found = _importances(importance, study, {cell.label for cell in cells})
    return Study(study, kind, cells, found)


def no_sweep(name: str) -> str:
    """What whoever asks for the laws of a study is told."""
    return (
        f"{name}: is a study of shapes, no sweep: its runs are no curve of a law; take the sweep that "
        f"'python -m sweeps search {name} --export-sweep FILE' writes"
    )


def _again(name: str) -> str:
    return f"write it again with 'python -m sweeps search {name or 'STUDY'}'"


def _rows(path: Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The lines of a CSV that has these columns, with their numbers."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            lines = [(reader.line_num, cells) for cells in reader if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AnalysisError(f"{path}: cannot be read ({error}); {_again('')}") from None
    if missing := [name for name in needed if name not in header]:
        raise AnalysisError(f"{path}: has no column {missing[0]!r}; {_again('')}")
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise AnalysisError(f"{path}: has the column {twice[0]!r} twice; {_again('')}")
    for i, cells in lines:
        if len(cells) != len(header):
            raise AnalysisError(
                f"{path}, line {i}: {len(cells)} cells under {len(header)} columns; {_again('')}"
            )
    return [(i, dict(zip(header, cells, strict=True))) for i, cells in lines]


def _trial(row: Mapping[str, str], place: str) -> Trial:
    if row["state"] not in STATES:
        raise AnalysisError(f"{place}: state = {row['state']!r} is none of {', '.join(STATES)}; {_again('')}")
    for name in ("cell", "structure", "run_id"):
        if not row[name]:
            raise AnalysisError(f"{place}: {name} is empty; {_again('')}")
    if not row["trial"].isdecimal():
        raise AnalysisError(f"{place}: trial = {row['trial']!r} is not a whole number from 0; {_again('')}")
    numbers = {name: _number(row.get(name, ""), f"{place}: {name}") for name in NUMBERS}
    done = row["state"] == "done"
    if done and not numbers["val_loss"] > 0:
        raise AnalysisError(f"{place}: a trial that is done has val_loss {row['val_loss']!r}; {_again('')}")
    if not done:
        # What a pruned run had reached is the loss of another budget.
        numbers |= {"val_loss": math.nan, "val_loss_se": math.nan}
    searched = tuple(
        (name.removeprefix(SEARCH), _number(text, f"{place}: {name}"))
        for name, text in row.items()
        if name.startswith(SEARCH) and text
    )
    if any(value < 0 for _, value in searched):
        raise AnalysisError(f"{place}: a searched dimension is below zero; {_again('')}")
    return Trial(
        cell=row["cell"], structure=row["structure"], size=row.get("size", ""), number=int(row["trial"]),
        state=row["state"], repeat=row["repeat"] == "1", from_ledger=row.get("from_ledger") == "1",
        run_id=row["run_id"], sampler=row.get("sampler", ""), seed=row.get("seed", ""),
        second_name=row.get("second_name", ""), searched=searched, numbers=numbers,
        result_sha256=row.get("result_sha256", ""),
    )  # fmt: skip


def _number(text: str, place: str) -> float:
    try:
        value = float(text) if text else math.nan
    except ValueError:
        raise AnalysisError(f"{place} = {text!r} is not a number; {_again('')}") from None
    if text and not math.isfinite(value):
        raise AnalysisError(f"{place} = {text} is not finite; {_again('')}")
    return value


def _cells(trials: Sequence[Trial], kind: str, path: Path) -> tuple[Cell, ...]:
    """The trials by cell, checked against each other."""
    groups: dict[str, list[Trial]] = {}
    losses: dict[str, float] = {}
    for trial in trials:
        groups.setdefault(trial.cell, []).append(trial)
        if trial.state == "done" and losses.setdefault(trial.run_id, trial.loss) != trial.loss:
            raise AnalysisError(f"{path}: run {trial.run_id} has two losses; {_again('')}")
    cells = []
    added = variants(list(groups), kind)
    for label, mine in groups.items():
        mine.sort(key=lambda trial: trial.number)
        for before, trial in pairwise(mine):
            if before.number == trial.number:
                raise AnalysisError(f"{path}: {label} has trial {trial.number} twice; {_again('')}")
        # As text, since an empty budget is NaN, which equals nothing.
        budgets = {str(trial.numbers["budget_flops"]) for trial in mine if kind not in FREE}
        if len({(trial.structure, trial.size) for trial in mine}) > 1 or len(budgets) > 1:
            raise AnalysisError(f"{path}: {label} has several structures or budgets; {_again('')}")
        first, (variant, place) = mine[0], added[label]
        structure = ", ".join(filter(None, [first.structure, variant]))
        size = ", ".join(filter(None, [first.size, place]))
        budget = math.nan if kind in FREE else first.numbers["budget_flops"]
        named = tuple(replace(trial, structure=structure, size=size) for trial in mine)
        cells.append(Cell(label, structure, size, budget, named))
    return tuple(sorted(cells, key=_order))


def _order(cell: Cell) -> tuple[object, ...]:
    budget = 0.0 if math.isnan(cell.budget) else cell.budget
    # Sizes by their parameters: cpu-xs comes before cpu-s.
    size, tokens = (
        float(np.median(known)) if cell.size and known else 0.0
        for known in (
            [trial.numbers[name] for trial in cell.trials if trial.numbers[name] > 0]
            for name in ("params", "tokens")
        )
    )
    return structure_order(cell.structure), size, tokens, cell.size, budget, cell.label


def _importances(path: Path, study: str, cells: set[str]) -> tuple[Importance, ...]:
    found = []
    for i, row in _rows(path, IMPORTANCES):
        place = f"{path}, line {i}"
        share = _number(row["importance"], f"{place}: importance")
        if row["study"] != study or row["cell"] not in cells:
            raise AnalysisError(f"{place}: is of no cell of study {study!r}; {_again(study)}")
        if not 0 <= share <= 1 + 1e-9:
            raise AnalysisError(
                f"{place}: importance = {row['importance']} is no share of 1; {_again(study)}"
            )
        dimension = row["dimension"].removeprefix(SEARCH)
        found.append(Importance(row["cell"], dimension, share, row.get("method", ""), row.get("trials", "")))
    return tuple(found)


def tidy(path: Path, study: Study) -> str:
    """The text of a checked file of trials, its rows by cell and number: the same trials, the same bytes."""
    place = {cell.label: i for i, cell in enumerate(study.cells)}
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    header, lines = rows[0], [row for row in rows[1:] if row]
    cell, number = header.index("cell"), header.index("trial") if "trial" in header else None
    # Importances have no numbers: they keep their order within a cell.
    lines.sort(key=lambda row: (place[row[cell]], int(row[number]) if number is not None else 0))
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header, *lines])
    return out.getvalue()
