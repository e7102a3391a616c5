"""Tables and sentences of one analysis: Markdown, LaTeX, JSON, and the rows that a terminal shows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.analyse import Analysis
from analysis.digits import interval, number, quantity, significant, with_error
from analysis.fit import Fit, Refusal
from analysis.laws import IRREDUCIBLE, POWER
from analysis.tables import Table, latex_file

FIT_HEADER = ("structure", "runs", "alpha without E", "95 % interval", "residual sd", "alpha with E", "E")
RUN_HEADER = (
    "run", "size", "structure", "seed", "params", "tokens", "FLOPs",
    "loss (nats/token)", "bits/byte", "seconds",
)  # fmt: skip
RUN_COLUMNS = (
    "run_id", "size", "structure", "seed", "params", "tokens", "train_flops", "val_loss", "val_loss_se",
    "val_bits_per_byte", "seconds",
)  # fmt: skip
METHOD = (
    "Least squares on log loss, every run with equal weight; alpha ± standard error (delta method), "
    "intervals by Student's t. A dash: the data give no such number. [1], [2] ...: see the notes."
)


@dataclass
class _Note:
    """A remark, and the structures that share it."""

    text: str
    structures: list[str]

    def __str__(self) -> str:
        # A label with a variant holds commas of its own.
        between = "; " if any(", " in name for name in self.structures) else ", "
        return f"{between.join(self.structures)}: {self.text}"


def fit_rows(analysis: Analysis) -> tuple[list[list[str]], list[str]]:
    """The fits as table rows under `FIT_HEADER`, and the notes that the rows refer to by number."""
    notes: list[_Note] = []
    rows = []
    for structure in analysis.structures:
        power, bent = analysis.power[structure], analysis.irreducible[structure]
        rows.append([structure, str(power.n), *_power_cells(power, notes), *_bent_cells(bent, notes)])
    return rows, [str(note) for note in notes]


def _noted(notes: list[_Note], texts: Sequence[str], structure: str) -> str:
    """File remarks once each among the notes, the structures that share one together; returns ` [1]`."""
    marks = []
    for text in texts:
        for i, note in enumerate(notes):
            if note.text == text:
                if structure not in note.structures:
                    note.structures.append(structure)
                marks.append(f"[{i + 1}]")
                break
        else:
            notes.append(_Note(text, [structure]))
            marks.append(f"[{len(notes)}]")
    return " " + "".join(dict.fromkeys(marks)) if marks else ""


def _power_cells(fit: Fit | Refusal, notes: list[_Note]) -> list[str]:
    if isinstance(fit, Refusal):
        return ["-" + _noted(notes, [fit.reason], fit.group), "-", "-"]
    mark = _noted(notes, [str(finding) for finding in fit.findings], fit.group)
    alpha = fit.value("alpha")
    if fit.standard_errors is None or fit.intervals is None:
        return [number(alpha) + mark, "-", "-"]
    se = fit.standard_errors["alpha"]
    sd = "-" if fit.residual_sd is None else significant(fit.residual_sd)
    return [with_error(alpha, se) + mark, interval(*fit.intervals["alpha"], se), sd]


def _bent_cells(fit: Fit | Refusal, notes: list[_Note]) -> list[str]:
    if isinstance(fit, Refusal):
        return ["-" + _noted(notes, [fit.reason], fit.group), "-"]
    mark = _noted(notes, [str(finding) for finding in fit.findings], fit.group)
    errors = fit.standard_errors or {}
    cells = [with_error(fit.value(name), errors.get(name), 3) for name in ("alpha", "E")]
    return [cells[0] + mark, cells[1]]


def run_rows(table: pd.DataFrame) -> list[list[str]]:
    """The runs as table rows under `RUN_HEADER`."""
    rows = []
    for run in table.to_dict("records"):
        value = {str(name): cell for name, cell in run.items()}
        loss, se = float(value["val_loss"]), _float(value.get("val_loss_se"))
        bits = _float(value.get("val_bits_per_byte"))
        # Bits per byte share the relative error of the loss, hence its digits.
        bits_se = None if se is None or bits is None else se * bits / loss
        rows.append(
            [
                str(value.get("run_id") or "-")[:12],
                str(value.get("size") or "-"),
                str(value["structure"]),
                str(value["seed"]),
                quantity(float(value["params"])),
                quantity(float(value["tokens"])),
                quantity(float(value["train_flops"])),
                with_error(loss, se, 5),
                "-" if bits is None else with_error(bits, bits_se),
                "-" if _float(value.get("seconds")) is None else f"{float(value['seconds']):.0f}",
            ]
        )
    return rows


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def fit_table(analysis: Analysis) -> Table:
    """The exponents of each structure."""
    rows, notes = fit_rows(analysis)
    marked = [f"[{i}] {note}" for i, note in enumerate(notes, 1)]
    return Table(
        FIT_HEADER,
        rows,
        f"{analysis.name}: exponents of held-out loss in training FLOPs, for {POWER.formula} and with an "
        f"irreducible loss, {IRREDUCIBLE.formula}.",
        (METHOD, *marked),
    )


def run_table(analysis: Analysis) -> Table:
    """The runs, one row each."""
    caption = (
        f"{analysis.name}: all finished runs. Held-out loss and bits per byte with the standard error over "
        "the held-out text."
    )
    return Table(RUN_HEADER, run_rows(analysis.runs.table), caption)


def latex(analysis: Analysis, runs: bool = True) -> str:
    r"""All tables of the report as one file to \input; verdict and missing runs stand in the notes."""
    fits = fit_table(analysis)
    said = analysis.comparison.verdict, f"Data: {analysis.runs.coverage()}."
    tables = [(f"tab:{analysis.name}-fits", replace(fits, notes=(*said, *fits.notes)))]
    if runs:
        table = run_table(analysis)
        tables.append((f"tab:{analysis.name}-runs", replace(table, notes=(said[1],))))
    return latex_file(tables)


def markdown(analysis: Analysis, runs: bool = True) -> str:
    """The whole report as Markdown, without anything that depends on time or place."""
    parts = [
        f"# {analysis.name}: held-out loss over training FLOPs",
        f"**Verdict.** {analysis.comparison.verdict}",
        f"Data: {analysis.runs.coverage()}.",
        fit_table(analysis).markdown(),
    ]
    if runs:
        parts += ["## Runs", run_table(analysis).markdown()]
    return "\n\n".join(parts) + "\n"


def to_json(analysis: Analysis) -> str:
    """The whole report as JSON: float64 at full precision, sorted keys, null where there is no number."""
    runs = [
        {
            str(name): cell
            for name, cell in run.items()
            if name in RUN_COLUMNS or str(name).startswith("flops_")
        }
        for run in analysis.runs.table.to_dict("records")
    ]
    body = {
        **analysis.to_dict(),
        "coverage": {state: list(ids) for state, ids in analysis.runs.absent()} | {"done": len(runs)},
        "runs": runs,
    }
    return json.dumps(plain(body), indent=1, sort_keys=True, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """JSON's own types, with null for NaN and infinity."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
