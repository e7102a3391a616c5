"""Reads and checks the stages of curriculum runs, and tabulates what each sequence length took to learn."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.digits import quantity, significant
from analysis.errors import AnalysisError
from analysis.runs.table import Runs, cell
from analysis.tables import Table, latex_file

COLUMN = "stages"
UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
HEADER = (
    "run_id", "corpus", "structure", "seed", "params", "seq_len", "steps", "tokens", "seconds",
    "seconds_per_step", "cumulative_seconds", "stage_val_loss", "solved", "val_loss", "val_accuracy",
    "val_exact_match",
)  # fmt: skip
"""Columns of the CSV, a row a stage; those behind `solved` are of the whole run at full length."""


@dataclass(frozen=True)
class Stage:
    """One sequence length of a run: what it took.

    seconds: of training, held-out measurements within it included; cumulative: since the run began.
    val_loss: last held-out loss at this length, nats per scored token, nan where none was measured.
    """

    seq_len: int
    steps: int
    tokens: int
    seconds: float
    cumulative: float
    val_loss: float
    solved: bool


@dataclass(frozen=True)
class StagedRun:
    """One run with its stages, from short to long.

    name: what tells it apart from the others of its table. accuracy, exact_match: shares of right tokens and
    of sequences without a wrong one, nan where the corpus has no answers.
    """

    name: str
    run_id: str
    corpus: str
    structure: str
    seed: int
    params: float
    train_flops: float
    val_loss: float
    accuracy: float
    exact_match: float
    stages: tuple[Stage, ...]

    @property
    def reached(self) -> int:
        """The longest length that it solved, 0 for none."""
        return max((stage.seq_len for stage in self.stages if stage.solved), default=0)


@dataclass(frozen=True)
class Published:
    """What a paper reports of a network on a task: percent of right answers, and where it says so."""

    task: str
    model: str
    params: float
    accuracy: float
    source: str


def staged(runs: Runs) -> bool:
    """Whether any run of a table went through a curriculum; another's column of that name holds no lists."""
    return COLUMN in runs.table and bool(runs.table[COLUMN].astype(str).str.startswith("[").any())


def read_stages(runs: Runs, source: str) -> list[StagedRun]:
    """The runs of a table that have stages, in the order of their names; the others are left out.

    Args:
        runs: the table.
        source: what error messages call it.

    Raises:
        AnalysisError: a cell that holds no stages, or stages that cannot be those of a run.
    """
    rows = [row for row in runs.table.to_dict("records") if str(row.get(COLUMN, "")).strip()]
    names = _names([{str(name): value for name, value in row.items()} for row in rows])
    found = [
        StagedRun(
            name=name,
            run_id=str(row.get("run_id", "")),
            corpus=str(row.get("corpus", "")),
            structure=str(row["structure"]),
            seed=int(row["seed"]),
            params=float(row["params"]),
            train_flops=float(row["train_flops"]),
            val_loss=float(row["val_loss"]),
            accuracy=_share(row.get("val_accuracy"), f"{source}: {name}: val_accuracy"),
            exact_match=_share(row.get("val_exact_match"), f"{source}: {name}: val_exact_match"),
            stages=_stages(str(row[COLUMN]), f"{source}: {name}: {COLUMN}"),
        )
        for name, row in zip(names, rows, strict=True)
    ]
    return sorted(found, key=lambda run: run.name)


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Task, structure and seed of each run, as far as they are needed to tell the runs apart."""
    parts = [(str(r.get("corpus", "")) or str(r["structure"]), str(r["structure"])) for r in rows]
    names = [task for task, _ in parts]
    if len(set(parts)) > len(set(names)):
        names = [structure if structure == task else f"{task}: {structure}" for task, structure in parts]
    if len(set(names)) < len(names):
        names = [f"{name}, seed={row['seed']}" for name, row in zip(names, rows, strict=True)]
    if len(set(names)) < len(names):
        names = [
            f"{name}, run={row.get('run_id', i)}"
            for i, (name, row) in enumerate(zip(names, rows, strict=True))
        ]
    return names


def _share(value: object, place: str) -> float:
    text = str(value if value is not None else "").strip()
    if not text:
        return math.nan
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise AnalysisError(f"{place} = {text!r} is no share from 0 to 1; mend the row")
    return share


def _stages(text: str, place: str) -> tuple[Stage, ...]:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, list) or not content:
        raise AnalysisError(f"{place} = {text[:40]!r} is no JSON list of stages; export the runs again")
    stages: list[Stage] = []
    spent = 0.0
    for i, item in enumerate(content, 1):
        stage = _stage(item, spent, f"{place}: stage {i}")
        spent = stage.cumulative
        if stages and stage.seq_len <= stages[-1].seq_len:
            raise AnalysisError(f"{place}: stage {i}: seq_len = {stage.seq_len} does not rise; mend the row")
        # A stage that the run's last step began has nothing to tell.
        if stage.steps:
            stages.append(stage)
    if not stages:
        raise AnalysisError(f"{place}: no stage has a step; mend the row")
    if unsolved := [stage.seq_len for stage in stages[:-1] if not stage.solved]:
        raise AnalysisError(
            f"{place}: length {unsolved[0]} is not solved, yet a longer one follows; mend the row"
        )
    return tuple(stages)


def _stage(item: object, before: float, place: str) -> Stage:
    """One stage, of which `before` seconds were spent earlier."""
    if not isinstance(item, dict):
        raise AnalysisError(f"{place} is no table of seq_len, steps, tokens ...; export the runs again")
    missing = [name for name in ("seq_len", "steps", "tokens", "seconds", "solved") if name not in item]
    if missing:
        raise AnalysisError(f"{place} has no {', '.join(missing)}; export the runs again")
    counts = {name: item[name] for name in ("seq_len", "steps", "tokens")}
    for name, value in counts.items():
        least = 1 if name == "seq_len" else 0
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise AnalysisError(f"{place}: {name} = {value!r} is no whole number from {least}; mend the row")
    if not isinstance(item["solved"], bool):
        raise AnalysisError(f"{place}: solved = {item['solved']!r} is neither true nor false; mend the row")
    seconds = _amount(item["seconds"], f"{place}: seconds")
    loss = item.get("val_loss")
    return Stage(
        **counts,
        seconds=seconds,
        cumulative=before + seconds,
        val_loss=math.nan if loss is None else _amount(loss, f"{place}: val_loss"),
        solved=item["solved"],
    )


def _amount(value: object, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise AnalysisError(f"{place} = {value!r} is no number from 0; mend the row")
    return float(value)


def unit(seconds: float) -> tuple[str, float]:
    """The unit in which so long a time is best told, and its seconds."""
    return next((one for one in UNITS if seconds >= 2 * one[1]), UNITS[-1])


def three(value: float) -> str:
    """Three digits, or all before the point: `0.0261`, `283`, `12,345`; a dash where it is not known."""
    return f"{value:,.0f}" if value >= 1000 else significant(value, 3)


def clock(seconds: float) -> str:
    """A time in words, such as `42.1 seconds` or `5.20 hours`."""
    name, size = unit(seconds)
    return f"{three(seconds / size)} {name}"


def tables(name: str, runs: Sequence[StagedRun], published: Sequence[Published] = ()) -> list[Table]:
    """What each length took, and what each run came to beside published runs of such tasks."""
    return [_stage_table(name, runs), _result_table(name, runs, published)]


def _stage_table(name: str, runs: Sequence[StagedRun]) -> Table:
    words, size = unit(max(run.stages[-1].cumulative for run in runs))
    body = []
    for run in runs:
        for i, stage in enumerate(run.stages):
            body.append(
                [
                    run.name if i == 0 else "", f"{stage.seq_len:,}", f"{stage.steps:,}",
                    f"{stage.tokens:,}", three(stage.seconds), three(stage.seconds / stage.steps),
                    three(stage.cumulative / size), three(stage.val_loss), "yes" if stage.solved else "no",
                ]
            )  # fmt: skip
    head = ("run", "length", "steps", "tokens", "seconds", "seconds per step", f"{words} in all")
    note = (
        "Time is that of training, held-out measurements included. Held-out loss, nats per scored token: the "
        "last measurement at that length; a length is solved where that fell below the threshold."
    )
    caption = f"Curriculum of {name}: what each sequence length took."
    return Table((*head, "held-out loss", "solved"), body, caption, (note,))


def _result_table(name: str, runs: Sequence[StagedRun], published: Sequence[Published]) -> Table:
    words, size = unit(max(run.stages[-1].cumulative for run in runs))
    body = [
        [
            run.name, f"{run.params:,.0f}", f"{run.reached:,}" if run.reached else "-",
            quantity(run.train_flops), three(run.stages[-1].cumulative / size), three(run.val_loss),
            percent(run.accuracy), percent(run.exact_match),
        ]
        for run in runs
    ]  # fmt: skip
    body += [
        [f"{one.task}, {one.model} [1]", f"{one.params:,.0f}", *["-"] * 4, f"{one.accuracy:g}", "-"]
        for one in published
    ]
    head = ("run", "parameters", "longest solved", "training FLOPs", words, "final held-out loss")
    notes = ["Final held-out loss, accuracy and exact matches are at full length, after training."]
    if published:
        notes.append(f"[1] As published: {', '.join(dict.fromkeys(one.source for one in published))}.")
    return Table((*head, "accuracy (%)", "exact matches (%)"), body, f"Results of the runs of {name}.", notes)


def percent(share: float) -> str:
    """A share in percent: `41.2`, `99.998`, and `100` only where nothing is wrong."""
    if math.isnan(share):
        return "-"
    if share in (0.0, 1.0):
        return f"{100 * share:.0f}"
    digits = next((d for d in range(1, 12) if 0 < float(f"{100 * share:.{d}f}") < 100), 12)
    return f"{100 * share:.{digits}f}"


def markdown(name: str, runs: Sequence[StagedRun], published: Sequence[Published] = ()) -> str:
    """Both tables in Markdown."""
    parts = [f"# Curriculum of {name}"]
    for table in tables(name, runs, published):
        parts += [table.caption, table.markdown()]
    return "\n\n".join(parts) + "\n"


def latex(name: str, runs: Sequence[StagedRun], published: Sequence[Published] = ()) -> str:
    r"""Both tables as one file to \input."""
    stages, results = tables(name, runs, published)
    return latex_file([(f"tab:{name}-stages", stages), (f"tab:{name}-stages-results", results)])


def to_csv(runs: Sequence[StagedRun]) -> str:
    """A row a stage, for programs; see `HEADER`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADER)
    for run in runs:
        for stage in run.stages:
            row = (
                run.run_id, run.corpus, run.structure, run.seed, run.params, stage.seq_len, stage.steps,
                stage.tokens, stage.seconds, stage.seconds / stage.steps, round(stage.cumulative, 3),
                stage.val_loss, stage.solved, run.val_loss, run.accuracy, run.exact_match,
            )  # fmt: skip
            writer.writerow(["" if isinstance(v, float) and math.isnan(v) else cell(v) for v in row])
    return out.getvalue()
