"""Simulated studies of a known law: how often the 95 % intervals of a fit hold the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.allocation import SIX, Cost, allocation
from analysis.arrays import Array
from analysis.engine.newton import minimise
from analysis.engine.solve import EFFICIENT, LEAST_DELTA, Optimum, noise_sd, solve, vanished
from analysis.engine.sums import Bound, bind
from analysis.fit import LEAST_SQUARES_DOF, Fit, Settings, fit_law
from analysis.laws import SUM_LAWS
from analysis.uncertainty import FEW, spread_of

NOISE = 0.004
"""Standard deviation of log loss."""
COMMON = 0.5
"""Standard deviation of the error that checkpoints of a run have in common, as a share of NOISE."""
GAUSSIAN, HEAVY = "Gaussian", "Student t3"
WITHOUT_RESAMPLES = 5
"""Studies whose intervals need no resamples are simulated so many times as often."""
DELTA_ROUNDS = 3
"""As engine.solve has them."""

CHINCHILLA_TRUTH = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
"""Constants of the size of those printed in arXiv 2203.15556."""
IRREDUCIBLE_TRUTH = {"E": 1.7, "k": 200.0, "alpha": 0.15}

CARELESS = "the errors that checkpoints of a run have in common go uncounted, so the intervals are too narrow"

Tick = Callable[[str], None]
"""Told what is being simulated, every now and then."""


@dataclass(frozen=True, eq=False)
class Study:
    """A law, the runs that are made, and their noise.

    words: the runs in words.
    data: variables of the law, each of shape (n,).
    truth: parameters of the law.
    noise: `Gaussian` or `Student t3`, in log loss, both of standard deviation NOISE.
    runs: the run of each point, whose points then have an error in common; None where each is a run.
    told: whether the fit is told of the runs.
    note: why its coverage is off, where it is.
    """

    law: str
    words: str
    data: dict[str, Array]
    truth: dict[str, float]
    noise: str = GAUSSIAN
    runs: tuple[str, ...] | None = None
    told: bool = False
    note: str = ""

    @property
    def n(self) -> int:
        """Points."""
        return len(next(iter(self.data.values())))

    @property
    def clusters(self) -> tuple[str, ...] | None:
        """What the fit is told of the runs."""
        return self.runs if self.told else None

    @property
    def resampled(self) -> bool:
        """Whether the intervals are by the bootstrap."""
        return (self.n if self.clusters is None else len(set(self.clusters))) >= FEW


@dataclass(frozen=True)
class Coverage:
    """How the intervals of one study did.

    method: how they were computed.
    simulations: simulated tables; `without` of them gave no interval.
    below, above: by quantity, intervals that end below the truth, and that begin above it.
    checked: tables that were fitted by `fit_law` as well.
    gap: over these, the largest difference of an interval's end, as a share of its width.
    """

    study: Study
    method: str
    simulations: int
    without: int
    below: dict[str, int]
    above: dict[str, int]
    checked: int
    gap: float

    def share(self, name: str) -> float:
        """Share of the intervals of a quantity that hold the truth."""
        made = self.simulations - self.without
        return 1 - (self.below[name] + self.above[name]) / made if made else math.nan

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        study = self.study
        kept = {name: value for name, value in vars(self).items() if name != "study"}
        about = {"law": study.law, "runs": study.words, "n": study.n, "noise": study.noise}
        return {**about, **kept, "coverage": {name: self.share(name) for name in self.below}}


def plane(sizes: int, ratios: int) -> dict[str, Array]:
    """Sizes from 10 M to 10 G parameters, each trained on several multiples, 5 to 80, of its size."""
    params = np.repeat(np.geomspace(1e7, 1e10, sizes), ratios)
    return {"params": params, "tokens": params * np.tile(np.geomspace(5, 80, ratios), sizes)}


def line(budgets: int, seeds: int) -> dict[str, Array]:
    """Budgets from 1e17 to 1e21 FLOPs, each with several seeds."""
    return {"train_flops": np.repeat(np.geomspace(1e17, 1e21, budgets), seeds)}


def checkpoints(sizes: int, ratios: int, each: int) -> tuple[dict[str, Array], tuple[str, ...]]:
    """The runs of `plane` at so many equally spaced checkpoints, and the run of each."""
    whole = plane(sizes, ratios)
    steps = np.arange(1, each + 1) / each
    data = {
        "params": np.repeat(whole["params"], each),
        "tokens": (whole["tokens"][:, None] * steps).ravel(),
    }
    return data, tuple(f"run {i}" for i in range(sizes * ratios) for _ in range(each))


def studies() -> tuple[Study, ...]:
    """All that are reported."""
    found = [
        Study("chinchilla", f"{s} sizes x {r} ratios", plane(s, r), CHINCHILLA_TRUTH, noise)
        for s, r in ((4, 3), (6, 4), (8, 6))
        for noise in (GAUSSIAN, HEAVY)
    ]
    found += [
        Study("irreducible", f"{b} budgets x {s} seeds", line(b, s), IRREDUCIBLE_TRUTH, noise)
        for b, s in ((4, 3), (6, 4))
        for noise in (GAUSSIAN, HEAVY)
    ]
    for sizes, ratios, told in ((4, 3, False), (4, 3, True), (6, 4, True)):
        data, runs = checkpoints(sizes, ratios, 6)
        how = "taken together by run" if told else "taken for runs of their own"
        words = f"{sizes * ratios} runs x 6 checkpoints, {how}"
        note = "" if told else CARELESS
        found.append(Study("chinchilla", words, data, CHINCHILLA_TRUTH, GAUSSIAN, runs, told, note))
    return tuple(found)


def clean_losses(study: Study) -> Array:
    """The law without noise, shape (n,)."""
    total = np.zeros(study.n)
    for term in SUM_LAWS[study.law].terms:
        part = np.full(study.n, study.truth[term.coefficient])
        for variable, exponent in term.powers.items():
            part *= study.data[variable] ** -study.truth[exponent]
        total += part
    return total


def errors(study: Study, simulations: int, dice: np.random.Generator) -> Array:
    """Noise in log loss, shape (simulations, n)."""
    shape = (simulations, study.n)
    own = dice.standard_normal(shape) if study.noise == GAUSSIAN else dice.standard_t(3, shape) / math.sqrt(3)
    if study.runs is None:
        return np.asarray(NOISE * own)
    names = list(dict.fromkeys(study.runs))
    index = np.array([names.index(name) for name in study.runs])
    common = dice.standard_normal((simulations, len(names)))[:, index]
    return np.asarray(NOISE * (math.sqrt(1 - COMMON**2) * own + COMMON * common))


def optima(bound: Bound, log_loss: Array, delta: float | None) -> list[Optimum]:
    """The optima of many tables of one design, descended to together from that of the bound losses.

    The steps are those of `engine.solve.solve` but for its map of starts; where a descent has not converged
    or a term has vanished, `solve` itself decides.

    Args:
        bound: law and design, with losses near to all others, such as those without noise.
        log_loss: shape (b, n).
        delta: as that of `solve`.
    """
    b, p = len(log_loss), len(bound.columns)
    kink = np.full(b, np.inf if delta is None else delta)
    found = minimise(bound, np.tile(solve(bound, np.inf).phi, (b, 1)), delta=kink, log_loss=log_loss)

    def sigmas() -> Array:
        fitted = np.stack([bound.log_value(phi) for phi in found.phi])
        return np.array([noise_sd(residual, p) for residual in fitted - log_loss])

    for _ in range(DELTA_ROUNDS if delta is None else 0):
        kink = np.maximum(EFFICIENT * sigmas(), LEAST_DELTA)
        found = minimise(bound, found.phi, delta=kink, log_loss=log_loss)
    out = []
    for i, sigma in enumerate(sigmas()):
        table, phi = replace(bound, log_loss=log_loss[i]), found.phi[i]
        if not found.converged[i] or vanished(table, phi):
            out.append(solve(table, delta))
            continue
        cost, gradient = float(found.cost[i]), float(found.gradient[i])
        out.append(
            Optimum(table, phi, cost, float(kink[i]), float(sigma), gradient, True, 1, True, phi[None], ())
        )
    return out


def quantities(bound: Bound) -> tuple[tuple[str, ...], Callable[[Array], Array]]:
    """Names of what is known of a law, and a function from phi (..., p) to its values (..., m).

    Coefficients other than a constant are taken by their logarithms, as the intervals of `Fit` are.
    """
    labels = [column.label for column in bound.columns]
    constants = {term.coefficient for term in bound.law.terms if not term.powers}
    by_logarithm = [
        i for i, c in enumerate(bound.columns) if c.name in set(bound.law.coefficients) - constants
    ]
    split = {"alpha", "beta"} <= set(labels)

    def values(phi: Array) -> Array:
        with np.errstate(divide="ignore", over="ignore"):
            out = bound.natural(phi)
            out[..., by_logarithm] = np.log(out[..., by_logarithm])
        if not split:
            return out
        alpha, beta = (out[..., labels.index(name)] for name in ("alpha", "beta"))
        return np.concatenate([out, (beta / (alpha + beta))[..., None]], axis=-1)

    return (*labels, "a") if split else tuple(labels), values


def true_values(study: Study, names: Sequence[str]) -> Array:
    """What the quantities are, in the order of their names."""
    truth = study.truth
    known = {name: math.log(v) if name in ("A", "B", "k") else v for name, v in truth.items()}
    if "a" in names:
        known["a"] = truth["beta"] / (truth["alpha"] + truth["beta"])
    return np.array([known[name] for name in names])


def cover(study: Study, simulations: int, seed: Sequence[int], checks: int, tick: Tick) -> Coverage:
    """Simulate a study, fit every table, and count the intervals that hold the truth.

    Args:
        study: what to simulate.
        simulations: how many tables.
        seed: of the noise; that of the resampling is the number of the table.
        checks: on how many of the tables `fit_law` is to give the same intervals.
        tick: told how far this is.
    """
    clean = clean_losses(study)
    bound = bind(SUM_LAWS[study.law], study.data, clean)
    tables = np.log(clean) + errors(study, simulations, np.random.default_rng(list(seed)))
    names, values = quantities(bound)
    truth = true_values(study, names)
    few = study.n - len(bound.columns) < LEAST_SQUARES_DOF
    below, above = np.zeros(len(names), int), np.zeros(len(names), int)
    without, gap, method = 0, 0.0, "none"
    for i, optimum in enumerate(optima(bound, tables, math.inf if few else None)):
        tick(f"coverage of {study.law}, {study.words}: {i} of {simulations}")
        spread = None if optimum.vanished else spread_of(optimum, clusters=study.clusters, seed=i)
        if spread is None:
            without += 1
            continue
        low, high = spread.interval(values, optimum.phi)
        below += high < truth
        above += low > truth
        method = spread.method
        if i < checks:
            gap = max(gap, difference(study, tables[i], i, names, low, high))
    return Coverage(
        study=study,
        method=method,
        simulations=simulations,
        without=without,
        below=dict(zip(names, below.tolist(), strict=True)),
        above=dict(zip(names, above.tolist(), strict=True)),
        checked=min(checks, simulations),
        gap=gap,
    )


def difference(
    study: Study, log_loss: Array, seed: int, names: Sequence[str], low: Array, high: Array
) -> float:
    """How far intervals are from those of `fit_law`, as a share of their width."""
    settings = Settings(seed=seed)
    fit = fit_law(study.law, study.data, np.exp(log_loss), settings=settings, clusters=study.clusters)
    if not isinstance(fit, Fit) or fit.intervals is None:
        return math.inf
    split = allocation(fit, Cost(SIX, 1.0, 1.0), (), (0.0, 0.0)) if "a" in names else None
    worst = 0.0
    for place, name in enumerate(names):
        if name != "a":
            ends = np.array(fit.intervals[name])
            ends = np.log(ends) if name in ("A", "B", "k") else ends
        elif split is not None:
            ends = np.array([split.a.low, split.a.high])
        else:
            continue
        mine = np.array([low[place], high[place]])
        worst = max(worst, float(np.max(np.abs(ends - mine)) / (mine[1] - mine[0])))
    return worst
