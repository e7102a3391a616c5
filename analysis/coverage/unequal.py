"""Simulated tables whose noise is not equal: how often F and the wild bootstrap reject a true null."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import fdtrc

from analysis.arrays import Array, Mask
from analysis.compare.nested import FLIPS, LEVEL, JointFit, leverage, sampled_statistics, signs
from analysis.compare.slopes import detectable_difference, joint
from analysis.coverage.nulls import NAMES, WIDE, Setting, clean_groups, real_test
from analysis.coverage.simulate import NOISE, Tick
from analysis.laws import POWER

TIMES = 3.0
"""How many times as large the noise is where it is larger."""
PLACES = (
    "nowhere",
    "at the smallest size",
    "at the largest size",
    "at the two largest sizes",
    "at the middle size",
    "in the first structure",
)
DESIGNS = ((5, 5, 3), (3, 6, 1), (3, 4, 1), (2, 5, 3))
TOGETHER = 40
"""Tables whose samples are in memory at once."""


@dataclass(frozen=True)
class Unequal:
    """How often equality of slopes without E was rejected at the 5 % level, though it held and where not.

    design: structures, sizes and seeds.
    place: where the noise is `TIMES` as large.
    nulls: simulated tables; `by_f` and `by_wild` of them were rejected by F and by the wild bootstrap.
    found_by_f, found_by_wild: the same of tables whose first slope differs by what a t test of two slopes
        finds with 80 % probability where all noise is the smaller one.
    checked: tables that were given to `slope_test` as well.
    gap: over these, the largest difference of a p of the wild bootstrap.
    """

    design: Setting
    place: str
    nulls: int
    by_f: int
    by_wild: int
    found_by_f: int
    found_by_wild: int
    checked: int
    gap: float

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        body = {**vars(self), **vars(self.design)}
        del body["design"], body["note"], body["permuted"]
        return body


def unequal_settings() -> tuple[tuple[Setting, str], ...]:
    """All that are reported: designs, and where their noise is larger."""
    return tuple((Setting(*design, WIDE, "none"), place) for design in DESIGNS for place in PLACES)


def larger(design: Setting, place: str) -> Mask:
    """The runs whose noise is larger, in the order of `clean_groups`, shape (n,)."""
    size = np.tile(np.repeat(np.arange(design.sizes), design.seeds), design.structures)
    structure = np.repeat(np.arange(design.structures), design.sizes * design.seeds)
    places: dict[str, Mask] = {
        "nowhere": np.zeros(size.size, bool),
        "at the smallest size": size == 0,
        "at the largest size": size == design.sizes - 1,
        "at the two largest sizes": size >= design.sizes - 2,
        "at the middle size": size == design.sizes // 2,
        "in the first structure": structure == 0,
    }
    return places[place]


def reject_unequal(
    design: Setting, place: str, nulls: int, seed: Sequence[int], checks: int, tick: Tick
) -> Unequal:
    """Simulate tables of one common slope and unequal noise, test each, and count what is rejected.

    Args:
        design: structures, sizes and seeds, without E.
        place: one of `PLACES`.
        nulls: how many tables.
        seed: of the noise.
        checks: how many tables go through `slope_test` as well.
        tick: told how far this is.
    """
    tick(f"unequal noise {place}, {design.words}")
    groups = clean_groups(design)
    null, full = joint(POWER, groups, ("k",)), joint(POWER, groups, ("k", "alpha"))
    clean = np.log(np.concatenate([loss for _, loss in groups.values()]))
    noise = NOISE * np.where(larger(design, place), TIMES, 1.0)
    tables = clean + noise * np.random.default_rng(list(seed)).standard_normal((nulls, clean.size))
    p_f, p_wild = _tested(null, full, tables)
    bound, basis = full.whole, full.whole.jacobian(full.optimum.phi)
    apart = contrast_error(basis, bound.place("alpha", NAMES[0]), bound.place("alpha", NAMES[1]))
    slope = basis[:, bound.place("alpha", NAMES[0])]
    found_f, found_wild = _tested(null, full, tables + detectable_difference(NOISE * apart, full.dof) * slope)
    gap = 0.0
    for i in range(min(checks, nulls)):
        found = real_test(design, groups, tables[i], 0).test.wild_p
        # None: too few points to reject with; then it has not.
        gap = max(gap, float(p_wild[i] < LEVEL) if found is None else abs(found - float(p_wild[i])))
    return Unequal(
        design=design,
        place=place,
        nulls=nulls,
        by_f=int(np.sum(p_f < LEVEL)),
        by_wild=int(np.sum(p_wild < LEVEL)),
        found_by_f=int(np.sum(found_f < LEVEL)),
        found_by_wild=int(np.sum(found_wild < LEVEL)),
        checked=min(checks, nulls),
        gap=gap,
    )


def contrast_error(jacobian: Array, one: int, other: int) -> float:
    """Standard error of a difference of two parameters under noise of standard deviation 1."""
    known = np.linalg.inv(jacobian.T @ jacobian)
    return float(np.sqrt(known[one, one] + known[other, other] - 2 * known[one, other]))


def _tested(null: JointFit, full: JointFit, tables: Array) -> tuple[Array, Array]:
    """The p of F and of the wild bootstrap of each table, shape (b,)."""
    statistic = sampled_statistics(null, full, tables)
    places = [slice(i, i + TOGETHER) for i in range(0, len(tables), TOGETHER)]
    wild = np.concatenate([_wild(null, full, tables[place], statistic[place]) for place in places])
    return np.asarray(fdtrc(full.parameters - null.parameters, full.dof, statistic)), wild


def _wild(null: JointFit, full: JointFit, tables: Array, statistic: Array) -> Array:
    """The p of each table's wild bootstrap, whose signs are those of `nested.flipped_statistics`."""
    basis, _ = np.linalg.qr(null.whole.jacobian(null.optimum.phi))
    fitted = (tables @ basis) @ basis.T
    residual = (tables - fitted) / (1 - leverage(null.whole, null.optimum.phi))
    samples = fitted[:, None] + signs(FLIPS, tables.shape[1], 0) * residual[:, None]
    drawn = sampled_statistics(null, full, samples.reshape(-1, tables.shape[1]))
    as_large = drawn.reshape(len(tables), -1) >= statistic[:, None] * (1 - 1e-6)
    return np.asarray((1 + as_large.sum(axis=1)) / (1 + FLIPS))
