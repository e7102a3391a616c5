"""The Markdown and LaTeX of one law on a table: parameters, optimal allocation, findings, methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from analysis.allocation import Allocation, Known
from analysis.digits import estimate, interval, number, quantity, significant
from analysis.findings import Finding
from analysis.fit import Fit, Refusal
from analysis.lawfits import LawFits
from analysis.tables import Table, latex_file

PARAMETER_HEADER = ("structure", "runs", "parameter", "value", "95 % interval")
EVIDENCE_HEADER = ("structure", "objective", "noise sd", "delta", "starts", "minima", "gradient", "condition")
OPTIMUM_HEADER = ("structure", "FLOPs", "N*", "95 % interval", "D*", "95 % interval", "loss", "95 % interval")
WIDE = 10
"""Times the value; of an interval that reaches further, the standard error says nothing of its ends."""


def parameter_rows(fits: Sequence[Fit | Refusal]) -> list[list[str]]:
    """One row a parameter."""
    rows = []
    for fit in fits:
        if isinstance(fit, Refusal):
            rows.append([fit.group, str(fit.n), "-", "-", "-"])
            continue
        for i, (name, value) in enumerate(fit.params.items()):
            head = [fit.group, str(fit.n)] if i == 0 else ["", ""]
            rows.append([*head, name, *_value(value, name, fit)])
    return rows


def _value(value: float | None, name: str, fit: Fit) -> list[str]:
    if value is None:
        return ["-", "-"]
    error = (fit.standard_errors or {}).get(name)
    edges = (fit.intervals or {}).get(name)
    if error is None or edges is None or not math.isfinite(error):
        return [f"{value:.4g}", "-"]
    if edges[1] > WIDE * abs(value):
        return list(estimate(value, *edges))
    return [number(value, error), interval(*edges, error)]


def evidence_rows(fits: Sequence[Fit | Refusal]) -> list[list[str]]:
    """One row a fit: objective and certificate."""
    rows = []
    for fit in fits:
        if isinstance(fit, Refusal):
            continue
        seen = fit.certificate
        rows.append(
            [
                fit.group,
                f"{fit.objective:.6g}",
                "-" if fit.residual_sd is None else significant(fit.residual_sd),
                "least squares" if fit.huber_delta is None else f"{fit.huber_delta:.2g}",
                str(seen.starts),
                str(seen.minima),
                f"{seen.gradient:.0e}",
                f"{seen.condition:.2g}",
            ]
        )
    return rows


def exponent_lines(fits: Sequence[Fit | Refusal], optima: Sequence[Allocation | None]) -> list[str]:
    """The exponents of compute-optimal size and tokens, in words."""
    lines = []
    for fit, found in zip(fits, optima, strict=True):
        if found is not None:
            a, b = (
                (f"{found.a.value:.3g} (fixed by the law)", f"{found.b.value:.3g}")
                if found.fixed
                else (_known(found.a), _known(found.b))
            )
            lines.append(f"{fit.group}: N* ~ C^a with a = {a}, D* ~ C^b with b = {b}; {found.cost.formula}.")
    return lines


def _known(found: Known) -> str:
    return " ".join(estimate(found.value, found.low, found.high))


def optimum_rows(fits: Sequence[Fit | Refusal], optima: Sequence[Allocation | None]) -> list[list[str]]:
    """One row a budget."""
    rows = []
    for fit, found in zip(fits, optima, strict=True):
        for i, at in enumerate(found.optima if found is not None else ()):
            beyond = " (beyond the runs)" if at.extrapolated else ""
            known = [estimate(one.value, one.low, one.high) for one in (at.params, at.tokens, at.loss)]
            rows.append(
                [
                    fit.group if i == 0 else "",
                    quantity(at.train_flops) + beyond,
                    *(text for pair in known for text in pair),
                ]
            )
    return rows


def finding_lines(found: Sequence[tuple[str, Finding]]) -> list[str]:
    """One line a finding, structures that share one together, with the remedy."""
    merged: dict[Finding, list[str]] = {}
    for group, finding in found:
        merged.setdefault(finding, []).append(group)
    return [
        f"{finding.code} {finding.name} ({', '.join(dict.fromkeys(groups))}): {finding.sentence}. "
        f"Remedy: {finding.remedy}."
        for finding, groups in sorted(merged.items(), key=lambda item: item[0].code)
    ]


def method(fits: Sequence[Fit | Refusal]) -> str:
    """How the fits and intervals were computed."""
    done = [fit for fit in fits if isinstance(fit, Fit)]
    robust = any(fit.huber_delta is not None for fit in done)
    least = any(fit.huber_delta is None for fit in done)
    kinds = " and ".join(words for words, yes in (("Huber's loss", robust), ("least squares", least)) if yes)
    ways = ", ".join(dict.fromkeys(fit.interval_method for fit in done if fit.interval_method))
    what = f"Sum over runs of {kinds} of log residuals, every run with equal weight"
    return f"{what}; intervals: {ways or 'none'}."


def cautions(fits: Sequence[Fit | Refusal]) -> list[str]:
    """Which structures have no fit, and whose numbers are not identified."""
    lines = [f"{fit.group}: no fit: {fit.reason}." for fit in fits if isinstance(fit, Refusal)]
    open_ones = [fit.group for fit in fits if isinstance(fit, Fit) and not fit.identified]
    if open_ones:
        lines.append(f"Not identified: {', '.join(open_ones)}. Its numbers are nominal; see the findings.")
    return lines


def _found(fits: Sequence[Fit | Refusal]) -> list[str]:
    return finding_lines([(fit.group, one) for fit in fits if isinstance(fit, Fit) for one in fit.findings])


def _data(result: LawFits) -> str:
    return f"Data: {result.runs.coverage()}. Law: {result.law.source}."


def parameter_table(result: LawFits) -> Table:
    """The parameters of each structure with intervals."""
    caption = f"{result.name}: parameters of {result.law.formula}."
    return Table(PARAMETER_HEADER, parameter_rows(result.fits), caption)


def evidence_table(result: LawFits) -> Table:
    """Objective and certificate of each fit; the notes say how they were made, and which are none."""
    fits = result.fits
    caption = f"{result.name}: objective and convergence of the fits of {result.law.formula}."
    return Table(EVIDENCE_HEADER, evidence_rows(fits), caption, (method(fits), *cautions(fits)))


def optimum_table(result: LawFits) -> Table:
    """Compute-optimal size, tokens and loss of each structure by budget."""
    caption = f"{result.name}: compute-optimal size N*, tokens D* and loss under {result.law.formula}."
    return Table(OPTIMUM_HEADER, optimum_rows(result.fits, result.allocations), caption)


def latex(result: LawFits) -> str:
    r"""All tables of the report as one file to \input; what is not identified stands in their notes."""
    fits, name = result.fits, f"tab:{result.name}-{result.law.name}"
    notes = _data(result), method(fits), *cautions(fits), *_found(fits)
    tables = [(f"{name}-parameters", replace(parameter_table(result), notes=notes))]
    tables.append((f"{name}-evidence", evidence_table(result)))
    if lines := exponent_lines(fits, result.allocations):
        tables.append((f"{name}-optima", replace(optimum_table(result), notes=(*lines, *cautions(fits)))))
    return latex_file(tables)


def markdown(result: LawFits) -> str:
    """The whole report."""
    parts = [
        f"# {result.name}: {result.law.formula}",
        _data(result),
        parameter_table(result).markdown(),
        evidence_table(result).markdown(),
    ]
    if lines := exponent_lines(result.fits, result.allocations):
        parts += ["## Compute-optimal size and tokens", "\n".join(f"- {line}" for line in lines)]
        parts.append(optimum_table(result).markdown())
    if found := _found(result.fits):
        parts += ["## Findings", "\n".join(f"- {line}" for line in found)]
    return "\n\n".join(parts) + "\n"
