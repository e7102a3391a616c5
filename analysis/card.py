"""The methods card: everything that a reader must know to repeat a fit, after the (Mis)Fitting checklist.

Li et al., (Mis)Fitting: A Survey of Scaling Laws, arXiv 2502.18969.  What a table does not say is shown as
`not recorded`, so that it is asked for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.digits import quantity
from analysis.errors import AnalysisError
from analysis.fit import Fit, Refusal
from analysis.lawfits import LawFits
from analysis.output import write_if_changed
from analysis.report import plain
from analysis.runs.table import structures_of
from analysis.tables import Table, latex_file

UNKNOWN = "not recorded"
RECORDED = {
    "dataset": ("corpus", "dataset", "data"),
    "learning rate": ("peak_lr", "lr", "learning_rate"),
    "schedule": ("schedule", "lr_schedule"),
    "decayed learning rate": ("lr_decayed",),
    "batch tokens": ("batch_tokens", "batch_size"),
    "tries per cell": ("n_trials", "tries", "best_of"),
    "code": ("git_sha", "commit"),
}
"""Entry of the card -> columns that a table may record it in."""

Card = dict[str, dict[str, str]]


def methods_card(result: LawFits) -> Card:
    """The card of a fit, section by section."""
    fits = [fit for fit in result.fits if isinstance(fit, Fit)]
    return {
        "law": {
            "form": result.law.formula,
            "source": result.law.source,
            "variables": ", ".join(result.law.variables),
            "fits": ", ".join(f"{fit.group} ({fit.n} runs)" for fit in fits),
            "refused": "; ".join(f"{f.group}: {f.reason}" for f in result.fits if isinstance(f, Refusal))
            or "none",
        },
        "runs": _runs(result.runs.table, result.runs.coverage()),
        "fit": _fit(fits),
        "validation": _validation(fits),
    }


def _runs(table: pd.DataFrame, coverage: str) -> dict[str, str]:
    section = {
        "points": coverage,
        "structures": ", ".join(structures_of(table)),
        "sizes": _range(table, "params"),
        "tokens": _range(table, "tokens"),
        "training FLOPs": _range(table, "train_flops"),
        "parameters counted": _counted(table),
        "FLOPs rule": _rule(table),
        "seeds": ", ".join(str(seed) for seed in sorted(set(table["seed"]))),
        "loss": _loss(table),
        "checkpoints": _checkpoints(table),
    }
    for entry, names in RECORDED.items():
        there = [name for name in names if name in table]
        values = list(dict.fromkeys(str(v) for v in table[there[0]])) if there else []
        section[entry] = ", ".join(values[:6]) + (" ..." if len(values) > 6 else "") if values else UNKNOWN
    return section


def _loss(table: pd.DataFrame) -> str:
    kinds = [name for name in ("loss_kind", "split", "loss_split") if name in table]
    if not kinds:
        return f"column val_loss; whether held out, smoothed and per token is {UNKNOWN}"
    return f"column val_loss; {kinds[0]}: {', '.join(sorted({str(v) for v in table[kinds[0]]}))}"


def _checkpoints(table: pd.DataFrame) -> str:
    for name in ("run", "run_name", "run_id"):
        if name in table:
            runs = table[name].nunique()
            return "one point a run" if runs == len(table) else f"{len(table)} points of {runs} runs"
    return UNKNOWN


def _range(table: pd.DataFrame, column: str) -> str:
    values = table[column].dropna().to_numpy(np.float64)
    if not values.size:
        return UNKNOWN
    count = len(np.unique(values))
    return f"{count} from {quantity(float(values.min()))} to {quantity(float(values.max()))}"


def _counted(table: pd.DataFrame) -> str:
    """The convention of `params` is the table's own, unless it has others beside it."""
    others = [name for name in table.columns if str(name).startswith("params_")]
    return f"params; the table also has {', '.join(others)}" if others else "params, as the table gives them"


def _rule(table: pd.DataFrame) -> str:
    if table[["train_flops", "params", "tokens"]].isna().any(axis=None):
        return UNKNOWN
    ratio = table["train_flops"] / (table["params"] * table["tokens"])
    low, high = float(ratio.min()), float(ratio.max())
    if high - low < 1e-3 * high:
        return f"C = {np.mean([low, high]):.4g} N D in every run"
    return f"counted: C / (N D) from {low:.3g} to {high:.3g}"


def _fit(fits: list[Fit]) -> dict[str, str]:
    def each(words: list[str]) -> str:
        return ", ".join(dict.fromkeys(words)) or "none"

    return {
        "objective": each(
            [
                "sum of half squared residuals"
                if fit.huber_delta is None
                else f"sum of Huber losses, delta {fit.huber_delta:.3g}"
                for fit in fits
            ]
        ),
        "loss space": "log loss",
        "weights": "every run 1",
        "optimiser": "batched damped Newton with the exact Hessian",
        "starts": each([str(fit.certificate.starts) for fit in fits]) + ", by variable projection",
        "bounds": "coefficients above zero; exponents free",
        "tolerance": "projected gradient below 1e-13 of the residuals, or no further descent",
        "intervals": each([fit.interval_method or "none" for fit in fits]) + ", 95 %",
    }


def _validation(fits: list[Fit]) -> dict[str, str]:
    section = {}
    for fit in fits:
        seen = fit.certificate
        codes = ", ".join(dict.fromkeys(finding.code for finding in fit.findings)) or "none"
        known = "identified" if fit.identified else "not identified"
        section[fit.group] = (
            f"objective {fit.objective:.6g}, gradient {seen.gradient:.0e}, {seen.minima} minima within 5 %, "
            f"condition {seen.condition:.2g}, {known}, findings: {codes}"
        )
    return section


def markdown(card: Card, name: str) -> str:
    """The card as Markdown."""
    parts = [f"# Methods card: {name}"]
    for title, section in card.items():
        parts += [
            f"## {title.capitalize()}",
            "\n".join(f"- {entry}: {text}" for entry, text in section.items()),
        ]
    return "\n\n".join(parts) + "\n"


def latex(card: Card, name: str) -> str:
    r"""The card as one table to \input."""
    rows = [
        [title if i == 0 else "", entry, text]
        for title, section in card.items()
        for i, (entry, text) in enumerate(section.items())
    ]
    table = Table(("section", "entry", "value"), rows, f"Methods card: {name}.")
    return latex_file([(f"tab:{name}-card", table)])


def write_card(path: Path, result: LawFits) -> None:
    """Write the card as Markdown, LaTeX or JSON, as the file's ending says.

    Raises:
        AnalysisError: another ending, or a file that cannot be written.
    """
    card = methods_card(result)
    if path.suffix == ".json":
        body: Any = {"table": result.name, **card}
        write_if_changed(path, json.dumps(plain(body), indent=1) + "\n")
    elif path.suffix == ".md":
        write_if_changed(path, markdown(card, result.name))
    elif path.suffix == ".tex":
        write_if_changed(path, latex(card, result.name))
    else:
        raise AnalysisError(f"--card {path}: must end in .md, .tex or .json; mend the name")
