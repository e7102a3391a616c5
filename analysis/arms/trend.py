"""Whether the gap of a structure to dense, at equal size and equal tokens, changes with size: no law needed.

What multiplies the losses of both alike cancels in a gap, however much their curves bend over FLOPs. What is
added to both, an irreducible loss, does not: under L = E + k C^-alpha with one E and one alpha, gaps shrink.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from analysis.arms.gapline import Line, fit_line
from analysis.arms.gaps import LEVEL, Difference, Row, gaps, holm, paired
from analysis.compare.slopes import UNCONFIRMED
from analysis.errors import AnalysisError
from analysis.runs.table import Cells, Runs
from analysis.runs.treatments import EQUAL, PLAIN, Place, place_diverged, places

SIZES = 3
"""So many sizes a line takes."""
DECADE = math.log(10)


@dataclass(frozen=True)
class Pair:
    """A run and the dense run of its size, budget and seed.

    flops: of the dense runs of that size and budget, their mean. Losses in nats per token.
    """

    size: str
    budget: int
    seed: int
    flops: float
    loss: float
    reference_loss: float

    @property
    def gap(self) -> float:
        """Log loss less that of the dense run."""
        return math.log(self.loss / self.reference_loss)


@dataclass(frozen=True)
class SizeGap:
    """The mean gap at one size (and budget): as log loss, and in nats per token."""

    size: str
    budget: int
    flops: float
    log: Difference
    nats: Difference


@dataclass(frozen=True)
class Trend:
    """One arm over sizes.

    sizes: its mean gaps from the smallest dense FLOPs on.
    holm: p of the slope, corrected for the other arms of the table.
    diverged, reference_diverged: runs without a loss among its own, and among the dense runs at its sizes.
    flattered: whether losses of runs that diverged push the slope to the side on which it lies.
    """

    structure: str
    treatment: str
    pairs: tuple[Pair, ...]
    sizes: tuple[SizeGap, ...]
    line: Line
    diverged: int
    reference_diverged: int
    flattered: bool
    holm: float | None = None

    @property
    def label(self) -> str:
        """The arm in words."""
        return arm_label(self.structure, self.treatment)

    @property
    def decades(self) -> float:
        """Powers of ten from the least to the most FLOPs of its dense runs."""
        return math.log10(self.sizes[-1].flops / self.sizes[0].flops)

    @property
    def verdict(self) -> str:
        """What the interval under equal noise says, and what speaks against it; empty where it holds 0."""
        line = self.line
        if not line.settled:
            return ""
        lost = [f"{self.diverged} diverged"] * (self.diverged > 0)
        lost += [f"{self.reference_diverged} dense diverged"] * (self.reference_diverged > 0)
        if self.flattered:
            return f"not judged: {', '.join(lost)}"
        doubts = ["not after correction"] * (self.holm is None or self.holm >= LEVEL)
        doubts += [UNCONFIRMED] * (not line.settled_robustly)
        doubts += ["not on a line"] * line.bends
        doubts += [f"though {' and '.join(lost)}"] * bool(lost)
        side = "falls behind dense with size" if line.slope > 0 else "gains on dense with size"
        return ", ".join([side, *doubts])


@dataclass(frozen=True)
class NoTrend:
    """An arm without a slope, and why."""

    structure: str
    treatment: str
    reason: str

    @property
    def label(self) -> str:
        """The arm in words."""
        return arm_label(self.structure, self.treatment)


@dataclass(frozen=True)
class Trends:
    """All arms of a table, those that have no slope, and what has to be said besides."""

    name: str
    arms: tuple[Trend, ...]
    refused: tuple[NoTrend, ...]
    notes: tuple[str, ...]
    coverage: str

    @property
    def ladder(self) -> bool:
        """Whether every size has one budget, so that a slope over FLOPs is one over size."""
        cells = {(one.size, one.budget) for arm in self.arms for one in arm.sizes}
        return len(cells) == len({size for size, _ in cells})

    @property
    def replicated(self) -> bool:
        """Whether any size of any arm has two pairs."""
        return any(one.log.pairs > 1 for arm in self.arms for one in arm.sizes)


def arm_label(structure: str, treatment: str) -> str:
    """A structure and its treatment, such as `lowrank-32: self-guided, fixed FLOPs`."""
    return f"{structure}: {treatment}" if treatment else structure


def trend(runs: Runs, name: str) -> Trends:
    """Regress every arm's gap to dense on log FLOPs of the dense run.

    Raises:
        AnalysisError: no sizes; what `gaps` refuses; only dense runs; or no arm with pairs at three sizes.
    """
    if not (runs.table.empty or any(str(size or "") for size in runs.table.get("size", ()))):
        raise AnalysisError(
            f"{name}: the runs name no size, over which gaps are followed; add a column 'size'"
        )
    found = gaps(runs, name)
    lost = _lost(runs)
    reference = {row.place: row for row in found.rows if row.place.is_reference}
    arms: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in found.rows:
        if not row.place.is_reference:
            arms[row.place.structure, row.place.treatment].append(row)
    if not arms:
        raise AnalysisError(
            f"{name}: only dense runs have ended ({runs.coverage()}): no gap to dense; add a structure, or "
            "wait for its runs"
        )
    made = [_arm(rows, reference, lost) for rows in arms.values()]
    done = [one for one in made if isinstance(one, Trend)]
    refused = tuple(one for one in made if isinstance(one, NoTrend))
    if not done:
        more = f", and the other {len(refused) - 1} arms have none either" if len(refused) > 1 else ""
        raise AnalysisError(f"{name}: no slope over size: {refused[0].label}: {refused[0].reason}{more}")
    notes = (*found.notes, *_lost_notes(lost), *_unpaired(arms, reference, lost))
    return Trends(name, _corrected(done), refused, notes, found.coverage)


def _arm(
    rows: Sequence[Row], reference: Mapping[Place, Row], lost: Mapping[Place, Sequence[Cells]]
) -> Trend | NoTrend:
    structure, treatment = rows[0].place.structure, rows[0].place.treatment
    pairs: list[Pair] = []
    cell: list[int] = []
    sizes: list[SizeGap] = []
    for row in sorted(rows, key=lambda row: reference[_dense(row.place)].flops):
        dense = reference[_dense(row.place)]
        mine, theirs = (dict(zip(one.seeds, one.losses, strict=True)) for one in (row, dense))
        logs = ({seed: math.log(loss) for seed, loss in losses.items()} for losses in (mine, theirs))
        log = paired(*logs)
        if log is None or row.gap is None:
            continue
        size, budget = row.place.size, row.place.budget
        seeds = sorted(mine.keys() & theirs.keys())
        pairs += [Pair(size, budget, seed, dense.flops, mine[seed], theirs[seed]) for seed in seeds]
        cell += [len(sizes)] * len(seeds)
        sizes.append(SizeGap(size, budget, dense.flops, log, row.gap))
    reason = _too_few(rows, sizes)
    if reason is not None:
        return NoTrend(structure, treatment, reason)
    flops, gap = (np.array([getattr(pair, name) for pair in pairs]) for name in ("flops", "gap"))
    line = fit_line(flops, gap, np.array(cell))
    own = {p: len(r) for p, r in lost.items() if (p.structure, p.treatment) == (structure, treatment)}
    dense_lost = {dense: len(lost.get(dense, ())) for dense in {_dense(row.place) for row in rows}}
    # A run that diverged would have had a high loss: without an arm's the gap of that size is too small, and
    # without a dense one too large. The side of the middle on which the size lies says which way that turns
    # the slope.
    turned = [(p, -1) for p in own if _dense(p) in reference] + [(p, 1) for p, n in dense_lost.items() if n]
    apart = [side * (math.log(reference[_dense(p)].flops) - line.middle) for p, side in turned]
    flattered = any(way * line.slope > 0 for way in apart)
    counts = sum(own.values()), sum(dense_lost.values())
    return Trend(structure, treatment, tuple(pairs), tuple(sizes), line, *counts, flattered)


def _too_few(rows: Sequence[Row], sizes: Sequence[SizeGap]) -> str | None:
    """Why pairs at these sizes have no slope, and what would mend it; None where they have one."""
    if not sizes:
        return "no seed shared with dense; train both with the same seeds, named in a column 'seed'"
    names = list(dict.fromkeys(one.size for one in sizes))
    if len(names) < SIZES:
        unpaired = sorted({row.place.size for row in rows} - set(names))
        more = f", and at {', '.join(unpaired)} no seed is shared" if unpaired else ""
        many = "1 size" if len(names) == 1 else f"{len(names)} sizes"
        return f"pairs with dense at {many} ({', '.join(names)}){more}; {SIZES} sizes are needed"
    logs = np.sort([math.log(one.flops) for one in sizes])
    levels = 1 + int(np.sum(np.diff(logs) > math.log1p(EQUAL)))
    if levels < SIZES:
        return f"the dense runs of its sizes have {levels} different FLOPs; {SIZES} are needed"
    return None


def _corrected(arms: Sequence[Trend]) -> tuple[Trend, ...]:
    """The arms with Holm's p over all of them."""
    tests = holm([Difference(len(a.pairs), a.line.slope, p_value=a.line.p_value) for a in arms])
    return tuple(
        replace(arm, holm=test.holm if test is not None else None)
        for arm, test in zip(arms, tests, strict=True)
    )


def _dense(place: Place) -> Place:
    return replace(place, structure=place.reference, treatment=PLAIN)


def _lost(runs: Runs) -> dict[Place, list[Cells]]:
    """The runs of each arm that diverged, as far as their arm can be told."""
    records = [{str(key): value for key, value in row.items()} for row in runs.table.to_dict("records")]
    placed = list(zip(records, places(records), strict=True))
    lost = defaultdict(list)
    for record in runs.lost:
        place = place_diverged(record, placed)
        if place is not None:
            lost[place].append(record)
    return lost


def _lost_notes(lost: Mapping[Place, Sequence[Cells]]) -> list[str]:
    """Each arm's runs that diverged, by seed and run id."""
    notes = []
    for place, rows in lost.items():
        ids = {_seed(row): str(row.get("run_id", ""))[:12] for row in rows}
        named = [f"{seed}" + f" (run {run_id})" * bool(run_id) for seed, run_id in sorted(ids.items())]
        which = "seed" if len(named) == 1 else "seeds"
        arm = arm_label(place.structure, place.treatment)
        notes.append(f"{arm} at size {place.size or '-'}: diverged, so no pair: {which} {', '.join(named)}")
    return notes


def _seed(record: Cells) -> int:
    return int(float(record.get("seed") or 0))


def _unpaired(
    arms: Mapping[tuple[str, str], Sequence[Row]],
    reference: Mapping[Place, Row],
    lost: Mapping[Place, Sequence[Cells]],
) -> list[str]:
    """Seeds of an arm or of its dense runs without a partner, but for those that diverged."""
    notes = []
    for (structure, treatment), rows in arms.items():
        parts = []
        for row in rows:
            dense = _dense(row.place)
            mine, theirs = set(row.seeds), set(reference[dense].seeds)
            gone, dense_gone = ({_seed(r) for r in lost.get(place, ())} for place in (row.place, dense))
            size = row.place.size or "-"
            parts += [f"{size} seed {seed} (no dense run)" for seed in sorted(mine - theirs - dense_gone)]
            parts += [f"{size} seed {seed} (a dense run alone)" for seed in sorted(theirs - mine - gone)]
        if parts:
            notes.append(f"{arm_label(structure, treatment)}: no pair, left out: {', '.join(parts)}")
    return notes


def to_dict(result: Trends) -> dict[str, Any]:
    """JSON form, float64 at full precision; slopes are of log loss over ln FLOPs."""
    return {
        "name": result.name,
        "coverage": result.coverage,
        "level": LEVEL,
        "arms": [
            {
                **asdict(arm),
                "pairs": [{**asdict(pair), "gap": pair.gap} for pair in arm.pairs],
                "percent_per_decade": percent(arm.line.slope * DECADE),
                "bends": arm.line.bends,
                "verdict": arm.verdict,
            }
            for arm in result.arms
        ],
        "refused": [asdict(one) for one in result.refused],
        "notes": list(result.notes),
    }


def percent(log: float) -> float:
    """A difference of log losses in per cent of the second: 100 (exp(log) - 1)."""
    return 100 * math.expm1(log)
