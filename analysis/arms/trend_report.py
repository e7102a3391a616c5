"""Tables and sentences about gaps to dense over size: Markdown, LaTeX, JSON, CSV, and rows for a terminal."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from analysis.arms.gapline import Line
from analysis.arms.gaps import Difference
from analysis.arms.trend import DECADE, SizeGap, Trend, Trends, percent, to_dict
from analysis.digits import interval, number, p_cell, probability, quantity, significant, with_error
from analysis.report import plain
from analysis.tables import Table, latex_file

SLOPE_HEADER = (
    "structure", "sizes", "pairs", "slope over ln FLOPs", "per decade (%)", "95 % interval",
    "95 %, unequal noise", "p", "p (Holm)", "p (lack of fit)", "found with 80 % (%)", "verdict",
)  # fmt: skip
SIZE_HEADER = (
    "structure", "size", "dense FLOPs", "pairs", "gap (%)", "95 % interval", "gap (nats/token)",
    "95 % interval of nats",
)  # fmt: skip
CSV_HEADER = (
    "structure", "treatment", "sizes", "pairs", "diverged", "reference_diverged", "flops_low", "flops_high",
    "slope", "slope_se", "dof", "slope_low", "slope_high", "p_value", "p_holm", "robust_se", "robust_low",
    "robust_high", "robust_p_value", "percent_per_decade", "residual_sd", "misfit_f", "misfit_p",
    "detectable_slope", "smallest_gap", "smallest_gap_low", "smallest_gap_high", "smallest_nats",
    "smallest_nats_low", "smallest_nats_high", "largest_gap", "largest_gap_low", "largest_gap_high",
    "largest_nats", "largest_nats_low", "largest_nats_high", "verdict",
)  # fmt: skip
METHOD = (
    "A gap is log loss less that of the dense run of the same size, token budget and seed (in per cent of "
    "the dense loss, or in nats). The line is least squares of gaps on the log of the dense runs' FLOPs, "
    "every pair with equal weight. Its interval and p take noise to be equal at all sizes: Student's t on "
    "pairs - 2 degrees of freedom. Beside it is one for noise that differs from size to size: HC3 standard "
    "errors (MacKinnon and White 1985; Long and Ervin 2000) with the same t. The lack of fit holds the mean "
    "gaps of sizes about the line against the spread of pairs of one size, as if that were equal too. "
    "Intervals at one size are Student's t over its pairs alone.",
    "The dense runs are the same for all structures, so that an odd one moves all gaps of its size alike, "
    "and slopes that agree are less evidence than as many studies would be; Holm's correction holds under "
    "any such dependence. All runs are scored on one held-out text, whose sampling is in no interval.",
    "A slope is a change of the relative gap with size, not a difference of exponents: under "
    "L = E + k C^-alpha with one E and one alpha for all, every gap shrinks towards 0. Nor does it allow for "
    "FLOPs: a structure spends fewer than dense at equal size and tokens, and where that share falls with "
    "size, the gap of one that lies exactly on the dense curve grows; NAME_matched has gaps at equal FLOPs. "
    "Found with 80 %: the "
    "smallest change per decade that a study of this standard error finds in 80 of 100 cases at the 5 % "
    "level, Holm's correction not counted.",
)


def slope_rows(result: Trends) -> list[list[str]]:
    """The lines as table rows under `SLOPE_HEADER`, arms without one at the end."""
    rows = []
    for arm in result.arms:
        line = arm.line
        pairs = str(len(arm.pairs))
        lost = [f"{arm.diverged} diverged"] * (arm.diverged > 0)
        lost += [f"{arm.reference_diverged} dense diverged"] * (arm.reference_diverged > 0)
        pairs += f" (+ {', '.join(lost)})" * bool(lost)
        cells = [arm.label, str(len({one.size for one in arm.sizes})), pairs]
        cells += [_signed(line.slope, line.se), *per_decade(line)]
        cells += [
            p_cell(line.p_value),
            p_cell(arm.holm),
            p_cell(line.misfit and line.misfit[2]),
            _found(line),
        ]
        rows.append([*cells, arm.verdict or _why_none(line)])
    return rows + [[one.label, *["-"] * 10, one.reason] for one in result.refused]


def size_rows(result: Trends) -> list[list[str]]:
    """The gaps of each size as table rows under `SIZE_HEADER`."""
    rows = []
    for arm in result.arms:
        for i, one in enumerate(arm.sizes):
            cells = [arm.label if i == 0 else "", one.size, quantity(one.flops), str(one.log.pairs)]
            rows.append([*cells, *percent_cells(one.log), *nats_cells(one.nats)])
    return rows


def _signed(value: float, se: float | None) -> str:
    text = with_error(value, se)
    return text if value < 0 else f"+{text}"


def per_decade(line: Line) -> list[str]:
    """Per cent per decade with both intervals."""
    change = percent(line.slope * DECADE)
    if line.interval is None or line.robust_interval is None or line.se is None:
        return [f"{change:+.3g}", "-", "-"]
    se = (100 + change) * DECADE * line.se
    both = (interval(*_percents(ends, DECADE), se) for ends in (line.interval, line.robust_interval))
    return [signed_number(change, se), *both]


def _percents(ends: tuple[float, float], unit: float = 1.0) -> tuple[float, float]:
    return percent(unit * ends[0]), percent(unit * ends[1])


def signed_number(value: float, se: float) -> str:
    """A number with its sign, to the digits that its error leaves."""
    text = number(value, se)
    return text if text.startswith("-") else f"+{text}"


def _lack(line: Line) -> str:
    assert line.misfit is not None
    statistic, (a, b), p_value = line.misfit
    return f"lack of fit F({a}, {b}) = {statistic:.1f}, p {probability(p_value)}"


def _found(line: Line) -> str:
    return "-" if line.detectable is None else significant(percent(line.detectable * DECADE))


def _why_none(line: Line) -> str:
    if line.se is None:
        return "no noise about the line: no interval"
    return "no change shown, not on a line" if line.bends else "no change shown"


def percent_cells(d: Difference) -> list[str]:
    """A difference of log losses in per cent, and its interval."""
    if d.interval is None or d.se is None:
        return [f"{percent(d.mean):+.2f}", "-"]
    se = (100 + percent(d.mean)) * d.se
    return [
        signed_number(percent(d.mean), se),
        interval(*_percents(d.interval), se),
    ]


def nats_cells(d: Difference) -> list[str]:
    """A difference of losses in nats, and its interval."""
    if d.interval is None or d.se is None:
        return [f"{d.mean:+.4f}", "-"]
    return [signed_number(d.mean, d.se), interval(*d.interval, d.se)]


def sentence(arm: Trend) -> str:
    """What an arm's slope comes to, in words."""
    line, first, last = arm.line, arm.sizes[0], arm.sizes[-1]
    change = percent(line.slope * DECADE)
    way = "rises" if line.slope > 0 else "falls"
    if line.interval is None or line.se is None:
        return (
            f"{arm.label}: per decade of FLOPs its loss {way} by {abs(change):.3g} % against that of dense; "
            "its gaps lie on a line, so there is no noise to hold that against."
        )
    se = (100 + change) * DECADE * line.se
    ends = interval(*_percents(line.interval, DECADE), se)
    tested = f"p {probability(line.p_value or 0.0)}"
    tested += (
        f", {p_cell(arm.holm)} after Holm's correction" if line.settled else ": no change is not rejected"
    )
    parts = [
        f"{arm.label}: per decade of FLOPs its loss {way} by {number(abs(change), se)} % against that of "
        f"dense (95 % interval {ends} %; {tested})",
        f"on the line the gap goes from {_end(line, first)} to {_end(line, last)}, over {arm.decades:.1f} "
        "decades",
    ]
    if not line.settled and line.detectable is not None:
        found = percent(line.detectable * DECADE)
        parts.append(
            f"a change of {significant(found)} % per decade would have been found in 80 of 100 such studies"
        )
    if line.settled != line.settled_robustly:
        holds = "excludes" if line.settled_robustly else "holds"
        parts.append(f"the interval for unequal noise {holds} 0")
    if line.bends:
        parts.append(
            "but the gaps do not lie on a line: they change with size, not at one rate, and the slope is a "
            f"summary over these sizes ({_lack(line)})"
        )
    return "; ".join(parts) + "."


def _end(line: Line, one: SizeGap) -> str:
    flops = np.array([one.flops])
    value, error = percent(float(line.at(flops)[0])), 100 * float(line.error(flops)[0])
    return f"{signed_number(value, error)} %" + f" at {one.size}" * bool(one.size)


def remarks(result: Trends) -> list[str]:
    """What has to be said of this table besides the method."""
    notes = []
    if not result.replicated:
        notes.append(
            "No size has two pairs: noise is what the line leaves over, a bend of the gap with it, nothing "
            "tests the line, and a gap at one size has no interval and may be the seed's."
        )
    elif all(arm.line.misfit is None for arm in result.arms):
        notes.append("Too few sizes have two pairs or more for a test of the line (lack of fit).")
    if not result.ladder:
        notes.append(
            "Sizes have several token budgets: FLOPs grow with tokens as well as with size, and so a slope "
            "is along both."
        )
    refused = [f"{one.label}: no slope: {one.reason}." for one in result.refused]
    return [*notes, *refused, *result.notes]


def slope_table(result: Trends) -> Table:
    """The line of every arm."""
    caption = f"{result.name}: does the gap to dense at equal size and seed change with size?"
    return Table(SLOPE_HEADER, slope_rows(result), caption)


def size_table(result: Trends) -> Table:
    """The mean gap of every arm at every size."""
    caption = f"{result.name}: mean gap to dense at each size, paired by seed."
    return Table(SIZE_HEADER, size_rows(result), caption)


def latex(result: Trends) -> str:
    r"""All tables of the report as one file to \input, how the numbers were made in their notes."""
    said = [sentence(arm) for arm in result.arms]
    notes = (f"Data: {result.coverage}.", *said, *remarks(result))
    tables = [
        (f"tab:{result.name}-trend", replace(slope_table(result), notes=notes)),
        (f"tab:{result.name}-trend-sizes", replace(size_table(result), notes=METHOD)),
    ]
    return latex_file(tables)


def markdown(result: Trends) -> str:
    """The whole report as Markdown, without anything that depends on time or place."""
    parts = [
        f"# {result.name}: does the gap to dense change with size?",
        f"Data: {result.coverage}.",
        _list(sentence(arm) for arm in result.arms),
        slope_table(result).markdown(),
        "## Gaps at each size",
        size_table(result).markdown(),
        "## How",
        *METHOD,
    ]
    notes = remarks(result)
    if notes:
        parts.append(_list(notes))
    return "\n\n".join(parts) + "\n"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def to_json(result: Trends) -> str:
    """The whole report as JSON: float64 at full precision, sorted keys, null where there is no number."""
    body = to_dict(result) | {"sentences": [sentence(arm) for arm in result.arms]}
    return json.dumps(plain(body), indent=1, sort_keys=True, allow_nan=False) + "\n"


def to_csv(result: Trends) -> str:
    """The arms as CSV under `CSV_HEADER`, full precision: gaps as log loss, slopes over ln FLOPs."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for arm in result.arms:
        line, ends = arm.line, (arm.sizes[0], arm.sizes[-1])
        f, p = (None, None) if line.misfit is None else (line.misfit[0], line.misfit[2])
        numbers: list[float | None] = [
            ends[0].flops, ends[1].flops, line.slope, line.se, line.dof, *_pair(line.interval), line.p_value,
            arm.holm, line.robust_se, *_pair(line.robust_interval), line.robust_p_value,
            percent(line.slope * DECADE), line.residual_sd, f, p, line.detectable,
            *(n for one in ends for d in (one.log, one.nats) for n in (d.mean, *_pair(d.interval))),
        ]  # fmt: skip
        counts = [len({one.size for one in arm.sizes}), len(arm.pairs), arm.diverged, arm.reference_diverged]
        writer.writerow([arm.structure, arm.treatment, *counts, *map(_cell, numbers), arm.verdict])
    return out.getvalue()


def _pair(ends: Sequence[float] | None) -> Sequence[float | None]:
    return (None, None) if ends is None else ends


def _cell(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(value)
