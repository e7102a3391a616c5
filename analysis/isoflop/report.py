"""Tables and sentences about compute-optimal size and tokens: Markdown, LaTeX, JSON, and terminal rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis.digits import estimate, interval, number, quantity, with_error
from analysis.findings import Finding
from analysis.isoflop.envelope import Envelope, EnvelopeLine
from analysis.isoflop.frontier import Exponent, NoExponent, plain
from analysis.isoflop.optima import Budget, IsoFlop
from analysis.tables import Table, latex_file

BUDGET_HEADER = (
    "budget (FLOPs)", "points", "N*", "95 % interval", "N* (Akima)", "D*", "loss at N*", "verdict",
)  # fmt: skip
ENVELOPE_HEADER = ("FLOPs from", "FLOPs to", "run", "N*", "D* from", "D* to", "verdict")
METHOD = (
    "Approach 2 of Hoffmann et al. (arXiv 2203.15556): per budget of realised FLOPs a parabola of log loss "
    "in log N through the points near the lowest loss; Fieller intervals of the vertex, D* = C / (kappa N*). "
    "Exponents by weighted log-log regression, weights 1 / (se² + tau²), tau by Paule and Mandel, standard "
    "error by Knapp and Hartung, Student's t. Vertex errors are of noise "
    "only: on an asymmetric curve a parabola is biased beside them; compare Akima's minima."
)
METHOD_1 = (
    "Approach 1: the lowest of all training curves at log-spaced FLOPs, interpolated within each run; least "
    "squares on its points that are of neither the smallest nor the largest size there; intervals by "
    "bootstrap over runs. Curves whose learning rate has not decayed lie too high."
)


@dataclass(frozen=True)
class Optima:
    """What was found about one structure."""

    structure: str
    budgets: IsoFlop | None
    """Approach 2, where asked for."""
    envelope: Envelope | None
    """Approach 1, where asked for and possible."""
    findings: tuple[Finding, ...] = ()
    """Beyond those of approach 2."""
    notes: tuple[str, ...] = ()
    """Why an approach has no answer."""


def budget_rows(found: IsoFlop) -> list[list[str]]:
    """The budgets of approach 2 as rows under `BUDGET_HEADER`."""
    return [
        [
            quantity(budget.flops),
            _points(budget),
            *_optima(budget),
            "-" if budget.params.loss is None else with_error(budget.params.loss, budget.params.loss_se, 5),
            _verdict(budget),
        ]
        for budget in found.budgets
    ]


def _points(budget: Budget) -> str:
    """How many, and how many of them the parabola is fitted to."""
    fitted = budget.params.fitted
    return str(budget.points) if fitted in (0, budget.points) else f"{fitted} of {budget.points}"


def _optima(budget: Budget) -> list[str]:
    """N*, its interval, Akima's minimum and D*, with the digits that the error of the vertex supports."""
    curve, tokens = budget.params, budget.optimal_tokens
    value, low, high = curve.optimum, curve.low, curve.high
    error = None if curve.log_se is None or value is None else curve.log_se * value
    akima = "-" if curve.akima is None else _quantity(curve.akima, error)
    shown = "-" if tokens is None else _quantity(tokens, (budget.optimal_tokens_log_se or 0.0) * tokens)
    if value is None:
        return ["-", "-", akima, shown]
    if low is None or high is None:
        return [_quantity(value, error), "-", akima, shown]
    return [*estimate(value, low, high, error), akima, shown]


def _quantity(value: float, error: float | None = None) -> str:
    return number(value, error) if error else f"{value:.3g}" if value < 1000 else f"{value:.2e}"


def _verdict(budget: Budget) -> str:
    curve = budget.params
    if curve.code:
        return f"{curve.verdict} ({curve.code})"
    if curve.low is not None and curve.high is not None:
        if curve.low < budget.smallest or curve.high > budget.largest:
            return "usable; interval beyond the sizes"
    return curve.verdict


def envelope_rows(found: Envelope) -> list[list[str]]:
    """The pieces of the envelope that one run is lowest on, as rows under `ENVELOPE_HEADER`."""
    change = [
        i
        for i in range(1, len(found.run))
        if found.run[i] != found.run[i - 1] or found.edge[i] != found.edge[i - 1]
    ]
    return [
        [
            quantity(float(found.flops[start])),
            quantity(float(found.flops[end - 1])),
            found.run[start],
            _quantity(float(found.params[start])),
            _quantity(float(found.tokens[start])),
            _quantity(float(found.tokens[end - 1])),
            "edge (SL015)" if found.edge[start] else "usable",
        ]
        for start, end in zip([0, *change], [*change, len(found.run)], strict=True)
    ]


def sentences(found: Optima) -> list[str]:
    """Exponents and findings of one structure, a sentence each."""
    lines = []
    if found.budgets is not None:
        lines += [
            _exponent("N*", "a", found.budgets.a, found.budgets.a_akima),
            _exponent("D*", "b", found.budgets.b, None),
        ]
        if _differ(found.budgets.b, found.budgets.b_direct):
            lines.append(_exponent("D* (parabola in log D)", "b", found.budgets.b_direct, None))
        if found.budgets.moved:
            spread = max(budget.spread for budget in found.budgets.budgets)
            lines.append(
                f"Points lie up to {100 * spread:.2g} % from their budget's FLOPs and were moved to it along "
                "the line of optima."
            )
    if found.envelope is not None:
        lines += [
            _line("N*", "a", found.envelope, found.envelope.a),
            _line("D*", "b", found.envelope, found.envelope.b),
        ]
    lines += found.notes
    known = found.budgets.findings if found.budgets is not None else ()
    return [*lines, *map(str, (*found.findings, *known))]


def _differ(one: Exponent | NoExponent, other: Exponent | NoExponent) -> bool:
    """Whether a parabola in log D says anything else: with one kappa for all sizes it is the same one."""
    if isinstance(one, NoExponent) or isinstance(other, NoExponent):
        return type(one) is not type(other)
    return abs(one.value - other.value) > 1e-9


def _exponent(what: str, name: str, found: Exponent | NoExponent, akima: float | None) -> str:
    start = f"Approach 2: {what} ~ C^{name}"
    if isinstance(found, NoExponent):
        code = f" ({found.code})" if found.code else ""
        return f"{start}: no exponent{code}: {found.reason}."
    parts = [
        f"{start}: {name} = {with_error(found.value, found.se)}, {100 * found.level:g} % interval "
        f"{interval(found.low, found.high, found.se)} (t, {found.dof} dof, {found.budgets} budgets)",
        f"unweighted {with_error(found.ols, found.ols_se)}",
    ]
    if found.bootstrap_low is not None and found.bootstrap_high is not None:
        ends = interval(found.bootstrap_low, found.bootstrap_high, found.se)
        parts.append(f"bootstrap {ends} ({found.resamples} resamples)")
    if akima is not None:
        parts.append(f"Akima's minima {number(akima, found.se)}")
    fit = f"{100 * found.tau:.2g} % beyond the vertex errors" if found.tau else "within the vertex errors"
    return f"{'; '.join(parts)}; scatter of the optima {fit}."


def _line(what: str, name: str, envelope: Envelope, found: EnvelopeLine | NoExponent) -> str:
    start = f"Approach 1: {what} ~ C^{name}"
    if isinstance(found, NoExponent):
        return f"{start}: no exponent ({found.code}): {found.reason}."
    share = f"{envelope.used} of {len(envelope.run)} points of the envelope of {envelope.runs} runs"
    if found.low is None or found.high is None:
        return f"{start}: {name} = {number(found.value)} from {share}; too few resamples have an interval."
    # A quarter of a 95 % interval stands for a standard error, to tell how many digits there are.
    ends = interval(found.low, found.high, (found.high - found.low) / 4 or None)
    return (
        f"{start}: {name} = {number(found.value, (found.high - found.low) / 4 or None)} {ends} from {share}."
    )


def tables(found: Optima) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """The tables of one structure: title, header, rows."""
    out: list[tuple[str, Sequence[str], list[list[str]]]] = []
    if found.budgets is not None:
        out.append((f"{found.structure}: optima by budget", BUDGET_HEADER, budget_rows(found.budgets)))
    if found.envelope is not None:
        out.append(
            (f"{found.structure}: envelope of its runs", ENVELOPE_HEADER, envelope_rows(found.envelope))
        )
    return out


def _drawn_up(name: str, found: Optima) -> list[Table]:
    return [Table(header, rows, f"{name}, {title}.") for title, header, rows in tables(found)]


def latex(name: str, all_found: Sequence[Optima]) -> str:
    r"""All tables as one file to \input; exponents, findings and refusals stand in their notes."""
    out = []
    for i, found in enumerate(all_found, 1):
        drawn = _drawn_up(name, found)
        for j, table in enumerate(drawn, 1):
            said = (*sentences(found), *methods(all_found)) if j == len(drawn) else ()
            out.append((f"tab:{name}-isoflop-{i}-{j}", replace(table, notes=said)))
    return latex_file(out)


def methods(all_found: Sequence[Optima]) -> list[str]:
    """How the numbers came about, for the approaches that have some."""
    used = [any(f.budgets for f in all_found), any(f.envelope for f in all_found)]
    return [text for text, there in zip((METHOD, METHOD_1), used, strict=True) if there]


def markdown(name: str, all_found: Sequence[Optima]) -> str:
    """The whole report as Markdown, without anything that depends on time or place."""
    parts = [f"# {name}: compute-optimal size and tokens"]
    for found in all_found:
        for (title, _, _), table in zip(tables(found), _drawn_up(name, found), strict=True):
            parts += [f"## {title}", table.markdown()]
        parts.append("\n".join(f"- {line}" for line in sentences(found)))
    return "\n\n".join([*parts, *methods(all_found)]) + "\n"


def to_json(name: str, all_found: Sequence[Optima]) -> str:
    """The whole report as JSON: float64 at full precision, sorted keys, null where there is no number."""
    structures = {
        found.structure: {
            "approach_2": found.budgets.to_dict() if found.budgets is not None else None,
            "approach_1": found.envelope.to_dict() if found.envelope is not None else None,
            "findings": [finding.to_dict() for finding in found.findings],
            "notes": list(found.notes),
        }
        for found in all_found
    }
    body = plain({"name": name, "structures": structures})
    return json.dumps(body, indent=1, sort_keys=True, allow_nan=False) + "\n"
