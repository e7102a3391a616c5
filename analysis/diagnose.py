"""All that is wrong with a table for a scaling law: the fit's own findings, and what its columns say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.allocation import Cost, allocation, cost_of
from analysis.arrays import Array
from analysis.claim import Claim, claim_findings
from analysis.engine.sums import SumLaw
from analysis.errors import AnalysisError
from analysis.findings import Finding
from analysis.fit import Fit, Refusal, Settings, fit_law
from analysis.isoflop.budgets import group_budgets, mixed_ratios, rounded_budgets, six_nd_gap
from analysis.isoflop.optima import Exponent, agreement, isoflop
from analysis.lawfits import variables
from analysis.laws import CHINCHILLA, IRREDUCIBLE
from analysis.runs.table import Runs, structures_of

TRIES = ("n_trials", "tries", "best_of", "n_lrs", "candidates")
DECAYED = "lr_decayed"
HELD_OUT = ("loss_kind", "split", "loss_split")
RATES = ("peak_lr", "lr", "learning_rate")
CURVE_POINTS = 4
SHORT = 10.0


@dataclass(frozen=True)
class Diagnosis:
    """What was found about one structure.

    group: the structure.
    n: runs.
    law: the law that was fitted.
    refused: why there is no fit, or None.
    """

    group: str
    n: int
    law: str
    refused: str | None
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        body = {**vars(self), "diagnostics": [finding.to_dict() for finding in self.findings]}
        del body["findings"]
        return body


def default_law(runs: Runs) -> SumLaw:
    """L(N, D) where the table has both and points enough for it, else the law in FLOPs."""
    known = not bool(runs.table[["params", "tokens"]].isna().any(axis=None))
    least = int(runs.table.groupby("structure").size().min()) if len(runs.table) else 0
    return CHINCHILLA if known and least > len(CHINCHILLA.parameters) else IRREDUCIBLE


def diagnose(
    runs: Runs,
    name: str,
    law: SumLaw,
    *,
    settings: Settings | None = None,
    clusters: Sequence[str] | None = None,
    claim: Claim | None = None,
    watch: Callable[[int], None] | None = None,
) -> list[Diagnosis]:
    """Look for every pitfall of the catalogue, structure by structure.

    Args:
        runs: the table.
        name: what messages call it.
        law: to fit.
        settings: how.
        clusters: the run of each point, where several are of one run.
        claim: a published fit to hold against the data.
        watch: told the number of structures done so far.

    Raises:
        AnalysisError: no runs, a column that the law needs is missing, or a claim of another law.
    """
    if runs.table.empty:
        raise AnalysisError(f"{name}: no finished run ({runs.coverage()}); run or resume the sweep first")
    data = variables(runs, law)
    loss = data.pop("val_loss")
    labels = runs.table["structure"].to_numpy(str)
    if claim is not None and claim.group is not None and claim.group not in labels:
        claim = Claim(**{**vars(claim), "group": None})
    out = []
    for structure in structures_of(runs.table):
        mine = labels == structure
        part = {key: value[mine] for key, value in data.items()}
        of = None if clusters is None else [run for run, yes in zip(clusters, mine, strict=True) if yes]
        fit = fit_law(law, part, loss[mine], structure, settings=settings, clusters=of)
        findings = [*(fit.findings if isinstance(fit, Fit) else ()), *_columns(runs.table[mine], of)]
        findings += _counts(runs.table[mine], fit, law)
        findings += _range(part)
        if claim is not None and claim.group in (None, structure):
            findings += claim_findings(claim, law, part, loss[mine])
        refused = fit.reason if isinstance(fit, Refusal) else None
        unique = tuple(sorted(dict.fromkeys(findings), key=lambda finding: finding.code))
        out.append(Diagnosis(structure, int(mine.sum()), law.name, refused, unique))
        if watch is not None:
            watch(len(out))
    return out


def _columns(table: pd.DataFrame, clusters: Sequence[str] | None) -> list[Finding]:
    return [*_decay(table), *_selection(table), *_kind(table), *_checkpoints(table, clusters)]


def _decay(table: pd.DataFrame) -> list[Finding]:
    if DECAYED not in table:
        return []
    truth = {"true": True, "1": True, "1.0": True, "yes": True}
    decayed = [truth.get(str(value).strip().lower(), False) for value in table[DECAYED]]
    count = sum(decayed)
    if count in (0, len(decayed)):
        return []
    return [
        Finding("SL009", f"{len(decayed) - count} of {len(decayed)} points have an undecayed learning rate")
    ]


def _selection(table: pd.DataFrame) -> list[Finding]:
    """Cells (size and tokens) that were chosen from unequal numbers of tries."""
    for column in (name for name in TRIES if name in table):
        counts = sorted(set(pd.to_numeric(table[column], errors="coerce").dropna()))
        if len(counts) > 1:
            return [Finding("SL010", f"{column} goes from {counts[0]:g} to {counts[-1]:g} between cells")]
    for column in (name for name in RATES if name in table):
        tries = table.groupby(["params", "tokens"], dropna=False)[column].nunique()
        if len(tries) > 1 and tries.max() > 1 and tries.min() < tries.max():
            sentence = f"cells have {tries.min()} to {tries.max()} values of {column}"
            return [Finding("SL010", sentence)]
    return []


def _kind(table: pd.DataFrame) -> list[Finding]:
    for column in (name for name in HELD_OUT if name in table):
        bad = sorted(
            {str(v) for v in table[column] if "train" in str(v).lower() or "smooth" in str(v).lower()}
        )
        if bad:
            return [Finding("SL019", f"{column} says {', '.join(bad)}")]
    return []


def _checkpoints(table: pd.DataFrame, clusters: Sequence[str] | None) -> list[Finding]:
    if clusters is None or len(set(clusters)) == len(clusters):
        return []
    sentence = f"{len(clusters)} points come from {len(set(clusters))} runs; intervals resample whole runs"
    finding = [Finding("SL018", sentence)]
    if DECAYED not in table:
        finding.append(
            Finding(
                "SL009",
                "checkpoints along a run have other learning rates than its end; no column lr_decayed",
            )
        )
    return finding


def _counts(table: pd.DataFrame, fit: Fit | Refusal, law: SumLaw) -> list[Finding]:
    """How FLOPs are counted, and curves of equal FLOPs where there are any."""
    if table[["params", "tokens", "train_flops"]].isna().any(axis=None) or len(table) < 3:
        return []
    n, d, c, y = (table[k].to_numpy(np.float64) for k in ("params", "tokens", "train_flops", "val_loss"))
    mixed = mixed_ratios(n, d) if law.variables == ("train_flops",) else None
    found = [finding for finding in (rounded_budgets(c, n, d), six_nd_gap(n, d, c), mixed) if finding]
    sizes = [len(np.unique(n[list(budget)])) for budget in group_budgets(c)]
    if len(sizes) < 2 or float(np.median(sizes)) < CURVE_POINTS:
        return found
    curves = isoflop(n, d, c, y)
    return [*found, *curves.findings, *_disagreement(curves.a, fit, cost_of(n, d, c))]


def _disagreement(a: Any, fit: Fit | Refusal, cost: Cost) -> list[Finding]:
    """Approach 2 against approach 3 on the same runs."""
    if isinstance(fit, Refusal) or not isinstance(a, Exponent) or fit.spread is None:
        return []
    found = allocation(fit, cost, [], (0.0, 0.0))
    if found is None:
        return []
    joint = agreement(a, found.a.value, (found.a.high - found.a.low) / (2 * 1.96), fit.spread.dof)
    return [joint.finding] if joint.finding is not None else []


def _range(data: dict[str, Array]) -> list[Finding]:
    short = [
        f"{name} spans a factor of {float(value.max() / value.min()):.2g}"
        for name, value in data.items()
        if float(value.max() / value.min()) < SHORT
    ]
    return [Finding("SL023", f"{' and '.join(short)}")] if short else []
