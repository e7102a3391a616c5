"""Times the engine: one fit from all starts, many bootstrap refits at once, and what importing costs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from analysis.engine.solve import Optimum, solve
from analysis.engine.sums import Bound, bind
from analysis.laws import CHINCHILLA
from analysis.uncertainty import refits, resampling_weights

SIZES, RATIOS, NOISE = 20, 12, 0.004
RESAMPLES = 4000
IMPORTS = ("analysis", "analysis.fit", "analysis.compare.slopes")


@dataclass(frozen=True)
class Timing:
    """One thing that was timed.

    seconds: of processor time, the median over repeats; imports less an empty interpreter.
    low, high: the range over repeats.
    """

    what: str
    seconds: float
    low: float
    high: float


def planted_table() -> Bound:
    """240 points of L(N, D) with noise of 0.4 %: 20 sizes, 12 ratios."""
    n = np.repeat(np.geomspace(1e7, 1e10, SIZES), RATIOS)
    d = n * np.tile(np.geomspace(5, 80, RATIOS), SIZES)
    clean = 1.69 + 406.4 * n**-0.34 + 410.7 * d**-0.28
    loss = clean * np.exp(NOISE * np.random.default_rng(0).standard_normal(n.size))
    return bind(CHINCHILLA, {"params": n, "tokens": d}, loss)


def bench(repeats: int, watch: Callable[[int], None]) -> tuple[list[Timing], Optimum]:
    """Time everything, interleaved.

    Args:
        repeats: of each.
        watch: told how many repeats are done.

    Returns the timings, and the fit that was timed.
    """
    bound = planted_table()
    optimum = solve(bound)
    weights = resampling_weights(bound.n, RESAMPLES, 0)
    starts = optimum.starts
    jobs: dict[str, Callable[[], float]] = {
        f"fit of L(N, D) to {bound.n} points from {starts} starts": lambda: _cpu(lambda: solve(bound)),
        f"{RESAMPLES} bootstrap refits of them": lambda: _cpu(lambda: refits(optimum, weights)),
        **{f"import {name}": lambda name=name: _import(name) for name in IMPORTS},  # type: ignore[misc]
    }
    taken: dict[str, list[float]] = {what: [] for what in jobs}
    for done in range(repeats):
        for what, job in jobs.items():
            taken[what].append(job())
        watch(done + 1)
    return [Timing(what, median(times), min(times), max(times)) for what, times in taken.items()], optimum


def _cpu(job: Callable[[], object]) -> float:
    begun = time.process_time()
    job()
    return time.process_time() - begun


def _import(name: str) -> float:
    def spent(code: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    return max(0.0, spent(f"import {name}") - spent("pass"))
