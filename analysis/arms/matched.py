"""Whether a structure is better than dense at equal training FLOPs, and whether that changes: no law needed.

The dense loss at a run's own FLOPs is read off the dense runs of its seed, log-log, on the straight line
between the two nearest. At equal size and tokens a structure spends fewer FLOPs than dense, by a share that
grows with size, since embeddings are a smaller part of larger networks; here that is allowed for.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.arms.gapline import Line, fit_line
from analysis.arms.gaps import LEVEL, Difference, holm, paired
from analysis.arms.trend_report import SIZE_HEADER, nats_cells, per_decade, percent_cells
from analysis.compare.slopes import UNCONFIRMED
from analysis.digits import p_cell, quantity
from analysis.errors import AnalysisError
from analysis.report import plain
from analysis.runs.table import Runs, structures_of
from analysis.tables import Table, latex_file

DENSE = "dense"
SIZES = 3
BEYOND = math.log(1.5)
"""How far, in log FLOPs, the dense line is followed beyond its first and last run."""
SLOPE_HEADER = (
    "structure", "sizes", "runs", "per decade (%)", "95 % interval", "95 %, unequal noise", "p (Holm)",
    "p, unequal noise (Holm)", "verdict",
)  # fmt: skip
METHOD = (
    "A gap is log loss less that of dense at the run's own training FLOPs, on the log-log line between the "
    "two nearest dense runs of its seed (beyond the first or last by a factor of 1.5 at most, along the "
    "nearest segment). The slope is least squares of gaps on log FLOPs; intervals as of gaps at equal size: "
    "Student's t under equal noise, and HC3 with noise that differs between sizes; Holm over the structures. "
    "At one size: Student's t over seeds. Neighbouring gaps share dense runs, which is in no interval: of "
    "1,000 simulated ladders of 5 sizes and 3 seeds the first interval holds the truth in 92 %, in 86 % if "
    "seeds scatter by .3 % at small and 3 % at large sizes; the second in 94 and 92 %, that at the largest "
    "size in 94 %.",
)


@dataclass(frozen=True)
class MatchedSize:
    """The mean gap at one size: as log loss, and in nats per token; FLOPs are the structure's own."""

    size: str
    flops: float
    log: Difference
    nats: Difference


@dataclass(frozen=True)
class Matched:
    """One structure at equal FLOPs: its gaps by size, their line over log FLOPs, and p corrected (Holm)."""

    structure: str
    sizes: tuple[MatchedSize, ...]
    line: Line
    runs: int
    holm: float | None = None
    robust_holm: float | None = None

    @property
    def verdict(self) -> str:
        """What both corrected p say of a change, and the interval at the largest size of the gap itself."""
        ps = [p is not None and p < LEVEL for p in (self.holm, self.robust_holm)]
        side = "falls behind dense" if self.line.slope > 0 else "gains on dense"
        change = side if all(ps) else f"{side}, {UNCONFIRMED}" if any(ps) else "no change shown"
        last = self.sizes[-1].log
        there = ("worse" if last.mean > 0 else "better") if last.settled else "undecided"
        return f"{change}; at the largest: {there}"


def matched(runs: Runs, name: str) -> tuple[Matched, ...]:
    """Gaps to dense at equal FLOPs of every structure that has them at three sizes.

    Raises:
        AnalysisError: no dense ladder of one seed, or no structure with gaps at three sizes.
    """
    table = runs.table
    ladders: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for row in table[table["structure"] == DENSE].to_dict("records"):
        ladders[int(row["seed"])].append((math.log(row["train_flops"]), math.log(row["val_loss"])))
    usable = {
        seed: sorted(ladder) for seed, ladder in ladders.items() if len({c for c, _ in ladder}) >= SIZES
    }
    if not usable:
        raise AnalysisError(f"{name}: no seed has dense runs of {SIZES} budgets to read losses between")
    found = []
    for structure in structures_of(table):
        rows = table[(table["structure"] == structure) & (structure != DENSE)].to_dict("records")
        one = _structure(structure, rows, usable)
        if one is not None:
            found.append(one)
    if not found:
        raise AnalysisError(f"{name}: no structure has runs at {SIZES} sizes within the dense runs' FLOPs")
    plain_p = holm([Difference(m.runs, m.line.slope, p_value=m.line.p_value) for m in found])
    robust_p = holm([Difference(m.runs, m.line.slope, p_value=m.line.robust_p_value) for m in found])
    return tuple(
        replace(one, holm=None if p is None else p.holm, robust_holm=None if r is None else r.holm)
        for one, p, r in zip(found, plain_p, robust_p, strict=True)
    )


def _structure(
    structure: str, rows: Sequence[Mapping[Any, Any]], dense: Mapping[int, Sequence[tuple[float, float]]]
) -> Matched | None:
    cells: dict[tuple[float, str], dict[int, tuple[float, float]]] = defaultdict(dict)
    for row in rows:
        at = _dense_loss(dense.get(int(row["seed"]), ()), math.log(row["train_flops"]))
        if at is not None:
            cell = (float(row["train_flops"]), str(row.get("size") or ""))
            cells[cell][int(row["seed"])] = (math.log(row["val_loss"]), at)
    if len(cells) < SIZES:
        return None
    sizes, flops, gaps, places = [], [], [], []
    for place, ((spent, size), seeds) in enumerate(sorted(cells.items())):
        mine, theirs = ({seed: pair[i] for seed, pair in seeds.items()} for i in (0, 1))
        nats = ({seed: math.exp(value) for seed, value in one.items()} for one in (mine, theirs))
        log, difference = paired(mine, theirs), paired(*nats)
        assert log is not None and difference is not None
        sizes.append(MatchedSize(size, spent, log, difference))
        flops += [spent] * len(seeds)
        gaps += [own - at for own, at in seeds.values()]
        places += [place] * len(seeds)
    line = fit_line(np.array(flops), np.array(gaps), np.array(places))
    return Matched(structure, tuple(sizes), line, len(gaps))


def _dense_loss(ladder: Sequence[tuple[float, float]], c: float) -> float | None:
    """Log loss of dense at log FLOPs c, on the line between its two nearest runs; None too far outside."""
    if not ladder or not ladder[0][0] - BEYOND <= c <= ladder[-1][0] + BEYOND:
        return None
    after = min(max(1, sum(x <= c for x, _ in ladder)), len(ladder) - 1)
    (x0, y0), (x1, y1) = ladder[after - 1], ladder[after]
    return y0 + (y1 - y0) * (c - x0) / (x1 - x0)


def matched_texts(found: Sequence[Matched], runs: Runs, name: str) -> dict[str, str]:
    """NAME_matched as Markdown, LaTeX and JSON, by file name."""
    slopes = Table(SLOPE_HEADER, [_slope_row(one) for one in found], f"{name}: gap to dense at equal FLOPs.")
    rows = [
        [one.structure if i == 0 else "", size.size, quantity(size.flops), str(size.log.pairs),
         *percent_cells(size.log), *nats_cells(size.nats)]
        for one in found for i, size in enumerate(one.sizes)
    ]  # fmt: skip
    head_row = tuple("FLOPs" if cell == "dense FLOPs" else cell for cell in SIZE_HEADER)
    sizes = Table(head_row, rows, f"{name}: gap to dense at equal FLOPs, by size.", METHOD)
    stem = f"{name}_matched"
    head = [f"# {name}: gap to dense at equal training FLOPs", f"Data: {runs.coverage()}."]
    parts = [*head, slopes.markdown(), "## Gaps at each size", sizes.markdown()]
    body = {"name": name, "structures": [{**_plain(one), "verdict": one.verdict} for one in found]}
    return {
        f"{stem}.md": "\n\n".join(parts) + "\n",
        f"{stem}.tex": latex_file([(f"tab:{name}-matched", slopes), (f"tab:{name}-matched-sizes", sizes)]),
        f"{stem}.json": json.dumps(plain(body), indent=1, sort_keys=True, allow_nan=False) + "\n",
    }


def _plain(one: Matched) -> dict[str, Any]:
    sizes = [{"size": s.size, "flops": s.flops, "log": vars(s.log), "nats": vars(s.nats)} for s in one.sizes]
    return {
        "structure": one.structure, "runs": one.runs, "line": vars(one.line), "holm": one.holm,
        "robust_holm": one.robust_holm, "sizes": sizes,
    }  # fmt: skip


def _slope_row(one: Matched) -> list[str]:
    ps = [p_cell(p) for p in (one.holm, one.robust_holm)]
    return [one.structure, str(len(one.sizes)), str(one.runs), *per_decade(one.line), *ps, one.verdict]
