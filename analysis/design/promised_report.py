"""Tables and sentences on promised and obtained standard errors: Markdown, LaTeX, JSON, CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace

import numpy as np

from analysis.compare.verdict import HYPOTHESES
from analysis.design.promised import Entry, Promised, View
from analysis.digits import number, p_cell, probability, significant, with_error
from analysis.report import plain
from analysis.tables import Table, latex_file

HEADER = (
    "irreducible loss", "exponent", "fitted", "se promised", "se obtained", "obtained / promised", "runs x",
    "law x", "noise x", "detectable, promised", "detectable, obtained",
)  # fmt: skip
NOISE_HEADER = ("irreducible loss", "sd assumed", "between seeds", "about the fit", "lack of fit, F", "p")
CSV_HEADER = (
    "irreducible_loss", "exponent", "fitted", "se_promised", "se_with_runs", "se_with_law", "se_obtained",
    "ratio", "runs_factor", "law_factor", "noise_factor", "detectable_promised", "detectable_obtained",
    "noise_promised", "residual_sd", "replicate_sd", "lack_p",
)  # fmt: skip
NAMES = {"none": "none", "shared": "one, shared", "separate": "one each"}
METHOD = (
    "Standard errors are of least squares on log loss. Obtained over promised is the product of three: the "
    "runs that finished in place of those planned (assumed law and noise), the fitted law in place of the "
    "assumed one (assumed noise), and the residual standard deviation of the fit in place of the assumed "
    "noise. Detectable: the smallest true difference that a two-sided t test at the 5 % level finds with "
    "80 % probability. What was obtained is not known where E is at its bound 0. Between seeds: the pooled "
    "standard deviation of log loss of runs that differ in their seed alone, with its 95 % interval; what "
    "the fit has beyond it is lack of fit."
)


def rows(found: Promised) -> list[list[str]]:
    """Exponents and differences as rows under `HEADER`."""
    out = []
    for view in found.views:
        for i, one in enumerate(view.entries):
            factors = [_factor(part) for part in (one.ratio, *one.factors)]
            cells = [
                NAMES[view.hypothesis] if i == 0 else "",
                one.what,
                _fitted(one),
            ]
            cells += [_two(one.promised), _two(one.obtained), *factors]
            out.append([*cells, _two(one.detectable_promised), _two(one.detectable)])
    return out


def noise_rows(found: Promised) -> list[list[str]]:
    """Noise assumed, measured and left, as rows under `NOISE_HEADER`."""
    spread, out = found.replicates, []
    between = "-"
    if spread is not None:
        between = f"{_two(spread.sd)} [{_two(spread.low)}, {_two(spread.high)}]"
    for view in found.views:
        if view.residual_sd is None:
            continue
        lack, p = "-", "-"
        if view.lack is not None:
            statistic, (a, b), value = view.lack
            lack, p = f"F({a}, {b}) = {statistic:.2f}", p_cell(value)
        out.append([NAMES[view.hypothesis], _two(found.noise), between, _two(view.residual_sd), lack, p])
    return out


def _two(value: float | None) -> str:
    return "-" if value is None else significant(value)


def _fitted(one: Entry) -> str:
    """The value and its error; without one, four places, which is more than most exponents are known to."""
    return with_error(one.value, one.obtained) if one.obtained is not None else f"{one.value:.4f}"


def _factor(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def opening(found: Promised) -> str:
    """Runs planned and finished."""
    text = f"Promised on {found.date}: {found.planned} runs, of which {found.finished} have finished"
    text += f"; {found.unplanned} finished besides" if found.unplanned else ""
    if found.renamed:
        text += (
            f"; {found.renamed} of them under another run id than planned, so a setting that costs no FLOPs "
            "(a learning rate, say) was changed after the plan"
        )
    return f"{text}. Data: {found.coverage}."


def sentences(found: Promised) -> list[str]:
    """For each view what came of the promise, and why."""
    return [_sentence(found, view) for view in found.views]


def _sentence(found: Promised, view: View) -> str:
    opening = f"{HYPOTHESES[view.hypothesis]}"
    if view.refused is not None:
        return f"{opening} there is no fit: {view.refused}."
    told = _told(view)
    ratios = [one.ratio for one in told if one.ratio is not None]
    if not ratios and any(one.promised is not None for one in told):
        return f"{opening} no standard errors are known to hold the promise against: {view.caution}."
    if not ratios:
        why = view.not_promised or "no reason is known"
        return f"{opening} nothing was promised ({why}); obtained: {_range(view)}."
    runs, law, noise = (_middle(told, i) for i in range(3))
    what = "differences" if len(told) < len(view.entries) else "exponents"
    text = (
        f"{opening} standard errors of {what} are {np.median(ratios):.2f} times those promised in the "
        f"median: runs x {_factor(runs)}, law x {_factor(law)}{_law_words(view)}, noise x {_factor(noise)}"
        f"{_noise_words(found, view)}"
    )
    return f"{text}; {view.caution}." if view.caution else f"{text}."


def _told(view: View) -> list[Entry]:
    """What the verdict rests on: the differences between structures; without these the exponents."""
    return [one for one in view.entries if one.of_two] or list(view.entries)


def _range(view: View) -> str:
    errors = [one.obtained for one in view.entries if one.obtained is not None]
    if not errors:
        return f"no standard errors are known: {view.caution}"
    return f"standard errors from {significant(min(errors))} to {significant(max(errors))}"


def _middle(entries: list[Entry], part: int) -> float | None:
    values = [value for one in entries if (value := one.factors[part]) is not None]
    return float(np.median(values)) if values else None


def _law_words(view: View) -> str:
    """Assumed and fitted parameters, means over structures."""
    parts = []
    for name in ("E", "alpha"):
        before, after = (_mean(values, name) for values in (view.assumed, view.fitted))
        if before is not None and after is not None:
            parts.append(f"{name} {before:.3g} assumed, {number(after, None, 3)} fitted")
    return f" ({'; '.join(parts)})" if parts else ""


def _mean(values: dict[str, float], name: str) -> float | None:
    own = [value for label, value in values.items() if label.split("[")[0] == name]
    return float(np.mean(own)) if own else None


def _noise_words(found: Promised, view: View) -> str:
    """What of the noise factor is the seeds', and what is left of the law."""
    assert view.residual_sd is not None
    spread = found.replicates
    if spread is None:
        return " (no replicates to tell noise from lack of fit)"
    seeds, rest = spread.sd / found.noise, view.residual_sd / spread.sd
    inside = spread.low <= found.noise <= spread.high
    words = f" (seeds over assumed x {seeds:.2f}, {'no more than' if inside else 'beyond'} its own error"
    words += f"; residuals over seeds x {rest:.2f}"
    if view.lack is not None:
        words += f", lack of fit p {probability(view.lack[2])}"
    return f"{words})"


def tables(found: Promised) -> list[tuple[str, Table]]:
    """Standard errors, and the noise."""
    caption = f"{found.name}: standard errors promised and obtained."
    noise = f"{found.name}: noise of log loss assumed, between seeds, and about the fits."
    return [
        ("promised", Table(HEADER, rows(found), caption)),
        ("noise", Table(NOISE_HEADER, noise_rows(found), noise)),
    ]


def remarks(found: Promised) -> list[str]:
    """What was not promised, how the numbers were made, and what was left out."""
    reasons = dict.fromkeys(
        f"No promise, irreducible loss {NAMES[view.hypothesis]}: {view.not_promised}."
        for view in found.views
        if view.not_promised and not any(one.promised for one in view.entries)
    )
    return [*reasons, *found.notes, METHOD]


def markdown(found: Promised) -> str:
    """The whole report as Markdown, without anything that depends on time or place."""
    (_, errors), (_, noise) = tables(found)
    told = "\n".join(f"- {text}" for text in sentences(found))
    parts = [f"# {found.name}: precision promised and obtained", opening(found), told]
    parts += [errors.markdown(), "## Noise", noise.markdown(), *remarks(found)]
    return "\n\n".join(parts) + "\n"


def latex(found: Promised) -> str:
    r"""All tables as one file to \input."""
    (label, errors), (second, noise) = tables(found)
    notes = (opening(found), *sentences(found), *remarks(found))
    return latex_file(
        [(f"tab:{found.name}-{label}", replace(errors, notes=notes)), (f"tab:{found.name}-{second}", noise)]
    )


def to_json(found: Promised) -> str:
    """The whole report as JSON: float64 at full precision, sorted keys, null where there is no number."""
    return json.dumps(plain(found.to_dict()), indent=1, sort_keys=True, allow_nan=False) + "\n"


def to_csv(found: Promised) -> str:
    """A row for each exponent and difference under `CSV_HEADER`, full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    spread = None if found.replicates is None else found.replicates.sd
    for view in found.views:
        lack = None if view.lack is None else view.lack[2]
        for one in view.entries:
            numbers = [*_numbers(one), found.noise, view.residual_sd, spread, lack]
            writer.writerow([view.hypothesis, one.what, *map(_cell, numbers)])
    return out.getvalue()


def _numbers(one: Entry) -> list[float | None]:
    stages = [one.value, one.promised, one.with_runs, one.with_law, one.obtained]
    return [*stages, one.ratio, *one.factors, one.detectable_promised, one.detectable]


def _cell(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(value)
