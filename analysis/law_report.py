"""The Markdown of one law on a table: parameters with intervals, optimal allocation, findings, methods."""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis.allocation import Allocation, Known
from analysis.digits import interval, number, quantity
from analysis.findings import Finding
from analysis.fit import Fit, Refusal
from analysis.lawfits import LawFits
from analysis.report import markdown_table

PARAMETER_HEADER = ("structure", "runs", "parameter", "value", "95 % interval")
EVIDENCE_HEADER = ("structure", "objective", "noise sd", "delta", "starts", "minima", "gradient", "condition")
OPTIMUM_HEADER = ("structure", "FLOPs", "N*", "95 % interval", "D*", "95 % interval", "loss", "95 % interval")
WIDE = 1e4


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
    if abs(value) >= WIDE or error == 0 or edges[1] > 10 * abs(value):
        return [f"{value:.4g}", f"[{edges[0]:.3g}, {edges[1]:.3g}]"]
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
                "-" if fit.residual_sd is None else f"{fit.residual_sd:.2g}",
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
    error = (found.high - found.low) / 4
    return f"{number(found.value, error)} {interval(found.low, found.high, error)}"


def optimum_rows(fits: Sequence[Fit | Refusal], optima: Sequence[Allocation | None]) -> list[list[str]]:
    """One row a budget."""
    rows = []
    for fit, found in zip(fits, optima, strict=True):
        for i, at in enumerate(found.optima if found is not None else ()):
            beyond = " (beyond the runs)" if at.extrapolated else ""
            error = (at.loss.high - at.loss.low) / 4
            rows.append(
                [
                    fit.group if i == 0 else "",
                    quantity(at.train_flops) + beyond,
                    quantity(at.params.value),
                    f"[{quantity(at.params.low)}, {quantity(at.params.high)}]",
                    quantity(at.tokens.value),
                    f"[{quantity(at.tokens.low)}, {quantity(at.tokens.high)}]",
                    number(at.loss.value, error),
                    interval(at.loss.low, at.loss.high, error),
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


def markdown(result: LawFits) -> str:
    """The whole report."""
    fits, optima = result.fits, result.allocations
    parts = [
        f"# {result.name}: {result.law.formula}",
        f"Data: {result.runs.coverage()}. Law: {result.law.source}.",
        markdown_table(PARAMETER_HEADER, parameter_rows(fits)),
        markdown_table(EVIDENCE_HEADER, evidence_rows(fits)),
        method(fits),
    ]
    parts += [f"{fit.group}: no fit: {fit.reason}." for fit in fits if isinstance(fit, Refusal)]
    open_ones = [fit.group for fit in fits if isinstance(fit, Fit) and not fit.identified]
    if open_ones:
        parts.append(f"Not identified: {', '.join(open_ones)}. Its numbers are nominal; see the findings.")
    if lines := exponent_lines(fits, optima):
        parts += ["## Compute-optimal size and tokens", "\n".join(f"- {line}" for line in lines)]
        parts.append(markdown_table(OPTIMUM_HEADER, optimum_rows(fits, optima)))
    found = [(fit.group, finding) for fit in fits if isinstance(fit, Fit) for finding in fit.findings]
    if found:
        parts += ["## Findings", "\n".join(f"- {line}" for line in finding_lines(found))]
    return "\n\n".join(parts) + "\n"
