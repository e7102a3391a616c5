"""Gaps to dense: how far every arm of a sweep is from the dense runs of its size, paired by seed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtr

from analysis.errors import AnalysisError
from analysis.runs.labels import structure_order
from analysis.runs.table import Runs
from analysis.runs.treatments import (
    EQUAL,
    FIXED_FLOPS,
    FIXED_STEPS,
    MORE_TOKENS,
    PLAIN,
    STATIC,
    TREATMENTS,
    Place,
    place_diverged,
    places,
)
from analysis.uncertainty import t_quantile

LEVEL = 0.05

Losses = Mapping[int, float]
Cell = tuple[str, int]


@dataclass(frozen=True)
class Difference:
    """The mean of differences between runs of the same seeds, nats per token.

    interval: 95 %, Student's t on n - 1 degrees of freedom; it and `se`, `p_value` are None below two pairs,
        or where the differences are all the same. holm: the p-value corrected for the others of its table.
    """

    pairs: int
    mean: float
    se: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    holm: float | None = None

    @property
    def settled(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True)
class Row:
    """One arm: its runs, and its gap to the dense runs of its size and budget.

    diverged: its runs that ended without a loss; reference_runs, reference_diverged: how many dense runs
    ended, and without a loss. tokens: seen in training, repeated ones each time. flops_ratio: over the dense
    runs' FLOPs. se: of the mean loss over seeds. gap is None for the dense runs, and where no seed is shared
    with them.
    """

    place: Place
    seeds: tuple[int, ...]
    diverged: int
    reference_runs: int
    reference_diverged: int
    tokens: float
    flops: float
    flops_ratio: float
    loss: float
    se: float | None
    losses: tuple[float, ...]
    gap: Difference | None

    @property
    def verdict(self) -> str:
        """What the interval says, in words; empty where it does not exclude zero."""
        if self.gap is None:
            return ""
        mine = _Side("better than dense", "", len(self.seeds) + self.diverged, self.diverged)
        dense = _Side("worse than dense", "dense", self.reference_runs, self.reference_diverged)
        return _verdict(self.gap, mine, dense)


@dataclass(frozen=True)
class Contrast:
    """The difference of two treatments of one structure; flops_ratio is the first one's over the second's.

    first_runs, second_runs: those that ended; first_diverged, second_diverged: of these, without a loss.
    """

    place: Place
    first: str
    second: str
    flops_ratio: float
    difference: Difference
    first_runs: int
    first_diverged: int
    second_runs: int
    second_diverged: int

    @property
    def words(self) -> str:
        """The two treatments, e.g. `self-guided, fixed steps - unguided`."""
        return f"{self.first or 'unguided'} \N{MINUS SIGN} {self.second or 'unguided'}"

    @property
    def verdict(self) -> str:
        """Which of the two is better, where the interval excludes zero."""
        names = [name or "unguided" for name in (self.first, self.second)]
        first = _Side(f"{names[0]} is better", names[0], self.first_runs, self.first_diverged)
        second = _Side(f"{names[1]} is better", names[1], self.second_runs, self.second_diverged)
        return _verdict(self.difference, first, second)


@dataclass(frozen=True)
class Gaps:
    """All arms of a table in order, the contrasts within structures, and what could not be placed."""

    name: str
    rows: tuple[Row, ...]
    contrasts: tuple[Contrast, ...]
    notes: tuple[str, ...]
    coverage: str

    @property
    def sizes(self) -> list[str]:
        """Sizes from small to large, by the FLOPs of their dense runs."""
        return list(dict.fromkeys(row.place.size for row in self.rows))

    @property
    def worth_drawing(self) -> bool:
        """Whether a figure of gaps shows more than the scaling figure: treatments, or budgets of one size."""
        cells = {(row.place.size, row.place.budget) for row in self.rows}
        arms = any(not row.place.is_reference for row in self.rows)
        treated = any(row.place.treatment != PLAIN for row in self.rows)
        return arms and (treated or len(cells) > len(self.sizes))


def gaps(runs: Runs, name: str) -> Gaps:
    """Hold every arm against the dense runs of its size, and treatments of one structure against each other.

    Runs are paired by seed, which fixes data order and the initialisation of what two networks share.

    Raises:
        AnalysisError: no run, no dense run, or two runs of one arm and seed.
    """
    records = [{str(key): value for key, value in row.items()} for row in runs.table.to_dict("records")]
    if not records:
        raise AnalysisError(f"{name}: no finished run ({runs.coverage()}); run or resume the sweep first")
    placed = list(zip(records, places(records), strict=True))
    arms: dict[Place, list[Mapping[str, Any]]] = defaultdict(list)
    for record, place in placed:
        if place is not None:
            arms[place].append(record)
    if not any(place.is_reference for place in arms):
        raise AnalysisError(
            f"{name}: no dense run to hold others against (structures: "
            f"{', '.join(sorted({str(r['structure']) for r in records}))}); add 'dense' to the sweep"
        )
    lost, unknown = _diverged(runs, placed)
    notes = _notes([r for r, place in placed if place is None], unknown, arms, lost)
    losses = {place: _by_seed(rows, place, name) for place, rows in arms.items()}
    ordered = _ordered(arms)
    rows = [_row(place, arms, losses, lost) for place in ordered]
    contrasts = [c for place in ordered for c in _contrasts(place, arms, losses, lost)]
    return Gaps(
        name,
        tuple(replace(row, gap=gap) for row, gap in zip(rows, holm([r.gap for r in rows]), strict=True)),
        tuple(
            replace(c, difference=difference)
            for c, difference in zip(contrasts, holm([c.difference for c in contrasts]), strict=True)
            if difference is not None
        ),
        notes,
        runs.coverage(),
    )


def paired(first: Losses, second: Losses) -> Difference | None:
    """The mean difference first - second over the seeds that both have; None where there is none."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    d = np.array([first[seed] - second[seed] for seed in seeds])
    mean, n = float(d.mean()), len(seeds)
    se = float(d.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    # Losses are known to about seven digits: a smaller spread is that of rounding, not of seeds.
    if se <= 1e-7 * max(abs(first[seed]) for seed in seeds):
        return Difference(n, mean)
    half = t_quantile(n - 1) * se
    p = 2 * float(stdtr(n - 1, -abs(mean) / se))
    return Difference(n, mean, se, (mean - half, mean + half), p)


def holm(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """Correct the p-values of a family for their number (Holm 1979: step-down, any dependence)."""
    known = [(d.p_value, i) for i, d in enumerate(differences) if d is not None and d.p_value is not None]
    corrected = list(differences)
    largest = 0.0
    for rank, (p, i) in enumerate(sorted(known)):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        difference = differences[i]
        assert difference is not None
        corrected[i] = replace(difference, holm=largest)
    return corrected


class _Side(NamedTuple):
    """One of two arms that are compared."""

    better: str
    """The verdict where this arm has the lower loss."""
    name: str
    runs: int
    diverged: int

    @property
    def lost(self) -> str:
        return f"{self.diverged} of {self.runs} diverged" + (f" ({self.name})" if self.name else "")


def _verdict(difference: Difference, first: _Side, second: _Side) -> str:
    """Which arm is better, in words; not judged where runs that diverged flatter the one that seems so.

    A run that diverges would have had a high loss, so what an arm's other runs show is too good.
    """
    better, worse = (first, second) if difference.mean < 0 else (second, first)
    if better.diverged:
        return f"not judged: {better.lost}"
    if not difference.settled:
        return ""
    survives = difference.holm is not None and difference.holm < LEVEL
    doubts = ["not after correction"] * (not survives) + [f"though {worse.lost}"] * (worse.diverged > 0)
    return ", ".join([better.better, *doubts])


def _by_seed(rows: Sequence[Mapping[str, Any]], place: Place, name: str) -> dict[int, float]:
    losses: dict[int, float] = {}
    for row in rows:
        seed = int(row["seed"])
        if seed in losses:
            raise AnalysisError(
                f"{name}: two runs of {place.structure} ({place.treatment or 'unguided'}) at size "
                f"{place.size or '-'} have seed {seed}; tell them apart by column 'seed' or by structure"
            )
        losses[seed] = float(row["val_loss"])
    return losses


def _ordered(arms: Mapping[Place, Sequence[Mapping[str, Any]]]) -> list[Place]:
    """Small sizes and budgets first; within them the dense runs, structures in order, then treatments."""
    cost: dict[Cell, float] = {}
    smallest: dict[str, float] = {}
    for place, rows in arms.items():
        if place.is_reference:
            flops = float(rows[0]["train_flops"])
            cost[place.size, place.budget] = flops
            smallest[place.size] = min(flops, smallest.get(place.size, math.inf))

    def key(place: Place) -> tuple[Any, ...]:
        known = TREATMENTS.index(place.treatment) if place.treatment in TREATMENTS else len(TREATMENTS)
        cell = cost.get((place.size, place.budget), math.inf)
        order = structure_order(place.structure)
        return smallest[place.size], place.size, cell, not place.is_reference, order, known, place.treatment

    return sorted(arms, key=key)


def _row(
    place: Place,
    arms: Mapping[Place, Sequence[Mapping[str, Any]]],
    losses: Mapping[Place, Losses],
    lost: Mapping[Place, int],
) -> Row:
    mine = losses[place]
    values = np.array([mine[seed] for seed in sorted(mine)])
    dense = _sibling(place, PLAIN, place.reference)
    flops, tokens = (_mean(arms[place], name) for name in ("train_flops", "tokens"))
    return Row(
        place=place,
        seeds=tuple(sorted(mine)),
        diverged=lost.get(place, 0),
        reference_runs=len(arms[dense]) + lost.get(dense, 0),
        reference_diverged=lost.get(dense, 0),
        tokens=tokens,
        flops=flops,
        flops_ratio=flops / _mean(arms[dense], "train_flops"),
        loss=float(values.mean()),
        se=float(values.std(ddof=1)) / math.sqrt(values.size) if values.size > 1 else None,
        losses=tuple(map(float, values)),
        gap=None if place.is_reference else paired(mine, losses[dense]),
    )


def _sibling(place: Place, treatment: str, structure: str | None = None) -> Place:
    return replace(place, treatment=treatment, structure=structure or place.structure)


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(np.mean([float(row[name]) for row in rows]))


def _contrasts(
    place: Place,
    arms: Mapping[Place, Sequence[Mapping[str, Any]]],
    losses: Mapping[Place, Losses],
    lost: Mapping[Place, int],
) -> list[Contrast]:
    """Guided against unguided on the same tokens, and against unguided on more tokens at equal FLOPs."""
    if place.treatment in (PLAIN, MORE_TOKENS):
        return []
    others = [PLAIN]
    if place.treatment.startswith(FIXED_FLOPS):
        others.append(MORE_TOKENS)
    if place.treatment in (FIXED_STEPS + STATIC, FIXED_FLOPS + STATIC):
        others.append(place.treatment.removesuffix(STATIC))
    found = []
    for treatment in others:
        other = _sibling(place, treatment)
        difference = paired(losses[place], losses.get(other, {}))
        if difference is not None:
            ratio = _mean(arms[place], "train_flops") / _mean(arms[other], "train_flops")
            counts = [n for p in (place, other) for n in (len(arms[p]) + lost.get(p, 0), lost.get(p, 0))]
            found.append(Contrast(place, place.treatment, treatment, ratio, difference, *counts))
    return found


def _diverged(
    runs: Runs, placed: Sequence[tuple[Mapping[str, Any], Place | None]]
) -> tuple[dict[Place, int], list[str]]:
    """How many runs of each arm diverged, and the ids of those that could not be told."""
    counts: dict[Place, int] = defaultdict(int)
    told = set()
    for record in runs.lost:
        place = place_diverged(record, placed)
        if place is not None:
            counts[place] += 1
            told.add(record.get("run_id"))
    return counts, [run_id for run_id in runs.diverged if run_id not in told]


def _notes(
    unplaced: Sequence[Mapping[str, Any]],
    unknown: Sequence[str],
    arms: Mapping[Place, Any],
    lost: Mapping[Place, int],
) -> tuple[str, ...]:
    notes = []
    for record in unplaced:
        notes.append(
            f"{record['structure']} at size {record.get('size') or '-'}, seed {record['seed']}: no dense run "
            f"of that size has its tokens, or its FLOPs within {100 * EQUAL:g} %; left out"
        )
    for place, count in lost.items():
        if place not in arms:
            what = f"{place.structure} ({place.treatment or 'unguided'}) at size {place.size or '-'}"
            notes.append(f"{what}: all {count} finished runs diverged, so it has no row")
    if unknown:
        notes.append(f"diverged, of an arm that cannot be told: {', '.join(run[:12] for run in unknown)}")
    return tuple(notes)


def to_dict(result: Gaps) -> dict[str, Any]:
    """JSON form, float64 at full precision."""
    rows = [{**_flat(asdict(row)), "verdict": row.verdict} for row in result.rows]
    contrasts = [{**_flat(asdict(c)), "words": c.words, "verdict": c.verdict} for c in result.contrasts]
    return {
        "name": result.name,
        "coverage": result.coverage,
        "level": LEVEL,
        "rows": rows,
        "contrasts": contrasts,
        "notes": list(result.notes),
    }


def _flat(body: dict[str, Any]) -> dict[str, Any]:
    return {**body.pop("place"), **body}
