"""Simulated structures that share one exponent: how often the tests say that theirs differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import chdtrc, fdtrc

from analysis.arrays import Array
from analysis.compare.nested import LEVEL, JointFit, sampled_statistics
from analysis.compare.slopes import SlopeTest, joint, slope_test
from analysis.coverage.simulate import NOISE, Tick
from analysis.engine.newton import minimise
from analysis.laws import IRREDUCIBLE, POWER

NAMES = ("dense", "lowrank", "blockdense", "blockshuffle", "monarch")
WIDE, NARROW = (1e17, 1e21), (1e18, 1e19)
"""Ranges of training FLOPs: over the one an irreducible loss shows, over the other hardly."""
MIDDLE = 1e19
ALPHA = {"none": 0.05, "shared": 0.15, "separate": 0.15}
FLOORS = {"none": (0.0,) * 5, "shared": (1.7, 1.7, 1.7), "separate": (1.7, 1.77, 1.84)}
LEVELS = {"none": (3.0, 3.2, 2.9, 3.1, 2.8), "shared": (0.28, 0.32, 0.25), "separate": (0.28, 0.32, 0.25)}
"""k C^-alpha at MIDDLE, for each structure."""
OPEN_FLOOR = (
    "the points hardly identify E, which cannot be below 0 and so takes up less of the noise than a "
    "parameter of a linear law: the test is conservative"
)
PERMUTATIONS = 199
ROUNDS = (10, 20, 40, 70, PERMUTATIONS)
"""Permutations after which tables are left out whose test can reject no more."""


@dataclass(frozen=True)
class Setting:
    """A design, and the test that is made of it.

    flops: lowest and highest budget.
    hypothesis: `none`, `shared` or `separate`, the irreducible loss of the truth as of the test.
    permuted: whether the permutation test is made too.
    note: why its rate is off, where it is.
    """

    structures: int
    sizes: int
    seeds: int
    flops: tuple[float, float]
    hypothesis: str
    permuted: bool = False
    note: str = ""

    @property
    def range(self) -> str:
        """The budgets in words."""
        return f"{self.flops[0]:.0e} to {self.flops[1]:.0e}"

    @property
    def words(self) -> str:
        """The design in words."""
        return f"{self.structures} structures x {self.sizes} sizes x {self.seeds} seed{'s'[: self.seeds - 1]}"


@dataclass(frozen=True)
class Rejections:
    """How often equality of exponents was rejected at the 5 % level though it held.

    nulls: simulated tables; `by_f` and `by_likelihood` of them were rejected by F and likelihood ratio.
    permuted: of these, tables on which the permutation test was made too; `by_permutation` were rejected.
    floor_error: standard error of E that the design implies; None where none is fitted.
    checked: tables that were given to `slope_test` as well.
    gap: over these, the largest relative difference of F.
    disagreed: over these, permutation tests that decided otherwise.
    """

    setting: Setting
    nulls: int
    by_f: int
    by_likelihood: int
    permuted: int
    by_permutation: int
    floor_error: float | None
    checked: int
    gap: float
    disagreed: int

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        body = {**vars(self), **vars(self.setting)}
        del body["setting"], body["note"]
        # The number of permuted tables, not whether there are any.
        return {**body, "permuted": self.permuted}


def settings() -> tuple[Setting, ...]:
    """All that are reported."""
    return tuple(
        Setting(
            *design,
            flops,
            hypothesis,
            permuted=design == (3, 4, 1),
            note=OPEN_FLOOR if (flops, hypothesis) == (NARROW, "separate") else "",
        )
        for design in ((3, 4, 1), (3, 6, 1), (2, 5, 3))
        for flops in (WIDE, NARROW)
        for hypothesis in ("none", "shared", "separate")
    )


def clean_groups(setting: Setting) -> dict[str, tuple[Array, Array]]:
    """Structure -> FLOPs and losses without noise."""
    flops = np.repeat(np.geomspace(*setting.flops, setting.sizes), setting.seeds)
    name = setting.hypothesis
    curve = (flops / MIDDLE) ** -ALPHA[name]
    return {NAMES[i]: (flops, FLOORS[name][i] + LEVELS[name][i] * curve) for i in range(setting.structures)}


def reject(
    setting: Setting, nulls: int, permuted: int, seed: Sequence[int], checks: int, tick: Tick
) -> Rejections:
    """Simulate tables of one common exponent, test each, and count what is rejected.

    Args:
        setting: design and test.
        nulls: how many tables.
        permuted: on how many of them the permutation test is made, where the setting asks for it.
        seed: of the noise.
        checks: how many tables go through `slope_test` as well.
        tick: told how far this is.
    """
    tick(f"rejections of {setting.words}, E {setting.hypothesis}")
    groups = clean_groups(setting)
    law = POWER if setting.hypothesis == "none" else IRREDUCIBLE
    own = ("E",) if setting.hypothesis == "separate" else ()
    null, full = joint(law, groups, (*own, "k")), joint(law, groups, (*own, "k", "alpha"))
    dice = np.random.default_rng(list(seed))
    clean = np.log(np.concatenate([loss for _, loss in groups.values()]))
    tables = clean + NOISE * dice.standard_normal((nulls, clean.size))
    statistic = sampled_statistics(null, full, tables)
    constraints, dof = full.parameters - null.parameters, full.dof
    ratio = clean.size * np.log1p(statistic * constraints / dof)
    some = tables[: permuted if setting.permuted else 0]
    by_permutation = permutation_rejects(null, full, some, statistic[: len(some)], tick, setting.words)
    gap, disagreed = 0.0, 0
    for i in range(min(checks, nulls)):
        test = real_test(setting, groups, tables[i], PERMUTATIONS if i < len(some) else 0)
        gap = max(gap, abs(test.statistic - statistic[i]) / max(test.statistic, 1e-6))
        if (p_value := test.test.permutation_p) is not None:
            disagreed += bool(by_permutation[i]) != (p_value <= LEVEL)
    return Rejections(
        setting=setting,
        nulls=nulls,
        by_f=int(np.sum(fdtrc(constraints, dof, statistic) < LEVEL)),
        by_likelihood=int(np.sum(chdtrc(constraints, ratio) < LEVEL)),
        permuted=len(some),
        by_permutation=int(np.sum(by_permutation)),
        floor_error=floor_error(full),
        checked=min(checks, nulls),
        gap=gap,
        disagreed=disagreed,
    )


def real_test(
    setting: Setting, groups: dict[str, tuple[Array, Array]], log_loss: Array, permutations: int
) -> SlopeTest:
    """The test of one simulated table as a comparison makes it."""
    parts = np.split(np.exp(log_loss), setting.structures)
    table = {name: (flops, loss) for (name, (flops, _)), loss in zip(groups.items(), parts, strict=True)}
    found = slope_test(table, setting.hypothesis, permutations=permutations)
    assert isinstance(found, SlopeTest), found.reason
    return found


def floor_error(full: JointFit) -> float | None:
    """Standard error of the first structure's E that the noise and the design imply."""
    bound, phi = full.optimum.bound, full.optimum.phi
    places = [place for place, column in enumerate(bound.columns) if column.name == "E"]
    if not places:
        return None
    jacobian = bound.jacobian(phi)
    known = NOISE**2 * np.linalg.inv(jacobian.T @ jacobian)
    return float(np.exp(phi[places[0]]) * np.sqrt(known[places[0], places[0]]))


def permutation_rejects(
    null: JointFit, full: JointFit, tables: Array, statistic: Array, tick: Tick, words: str
) -> Array:
    """Whether each table's permutation test rejects at the 5 % level: 1 or 0, shape (b,).

    The permutations are those of `nested.permuted_statistics`; a table is left out as soon as so many of its
    samples have an F as large that the others cannot make it reject.

    Args:
        null: the smaller fit of the losses without noise.
        full: the larger.
        tables: log losses, shape (b, n).
        statistic: F of each, shape (b,).
        tick: told how far this is.
        words: the design.
    """
    if not len(tables):
        return np.zeros(0)
    dice = np.random.default_rng(0)
    order = np.array([dice.permutation(tables.shape[1]) for _ in range(PERMUTATIONS)])
    fitted = null_curves(null, tables)
    most = int(LEVEL * (PERMUTATIONS + 1)) - 1
    larger, first = np.zeros(len(tables), int), 0
    for last in ROUNDS:
        tick(f"permutations of {words}: {first} of {PERMUTATIONS}")
        left = np.flatnonzero(larger <= most)
        if not left.size:
            break
        samples = fitted[left, None] + (tables - fitted)[left][:, order[first:last]]
        drawn = sampled_statistics(null, full, samples.reshape(-1, tables.shape[1]))
        as_large = drawn.reshape(len(left), -1) >= statistic[left, None] * (1 - 1e-6)
        larger[left] += np.sum(as_large, axis=1)
        first = last
    return np.asarray(larger <= most, np.float64)


def null_curves(null: JointFit, tables: Array) -> Array:
    """The smaller fit's log losses of each table, with its constants or without, shape (b, n)."""
    columns = null.whole.columns
    bare = null.whole.without([column for column in columns if column.name == "E"])
    best, curves = np.full(len(tables), np.inf), np.zeros(tables.shape)
    for bound in [null.whole] if len(bare.columns) == len(columns) else [null.whole, bare]:
        phi = null.optimum.phi[[columns.index(column) for column in bound.columns]]
        found = minimise(bound, np.tile(phi, (len(tables), 1)), log_loss=tables)
        better = found.cost < best
        best[better] = found.cost[better]
        curves[better] = np.stack([bound.log_value(one) for one in found.phi])[better]
    return curves
