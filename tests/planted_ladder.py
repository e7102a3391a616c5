"""A planted ladder on text of known entropy: structures, budgets and seeds under a law that is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.arrays import Array
from analysis.runs.table import Runs

E, ALPHA, EXCESS = 2.8302, 0.25, 0.9
BUDGETS = np.geomspace(7.4e10, 7.6e12, 5)
STRUCTURES = {"dense": 1.0, "lowrank-63": 0.85, "lowrank-32": 0.75}
"""Structure -> its FLOPs as a share of those of dense."""

Excess = Callable[[Array, str], Array]
"""From training FLOPs, and the structure, to L - E."""


def one_power(flops: Array, structure: str) -> Array:
    """EXCESS nats at the middle of the ladder, falling by ALPHA."""
    return np.asarray(EXCESS * (flops / BUDGETS[2]) ** -ALPHA)


def flattening(flops: Array, structure: str) -> Array:
    """An excess whose local exponent falls over the ladder, from about 0.33 to about 0.14."""
    x = np.log(flops / BUDGETS[2])
    return np.asarray(EXCESS * np.exp(-0.235 * x + 0.025 * x**2))


def ladder(
    seed: int = 0,
    noise: float = 0.004,
    excess: Excess = one_power,
    seeds: Sequence[int] = (11, 12, 13),
    structures: Mapping[str, float] = STRUCTURES,
    floor: float = E,
    column: str | None = "val_entropy",
    budgets: Array = BUDGETS,
) -> Runs:
    """Runs of every structure, seed and budget with noise in log loss; `column` holds `floor`."""
    dice = np.random.default_rng(seed)
    rows = []
    for structure, share in structures.items():
        for i, dense in enumerate(budgets):
            flops = dense * share
            size = (dense / 120) ** 0.5
            for s in seeds:
                clean = floor + float(excess(np.array([flops]), structure)[0])
                rows.append({
                    "run_id": f"{structure}{i}{s}", "size": f"d{i}", "structure": structure, "seed": s,
                    "params": size * (0.4 + 0.6 * share), "tokens": 20 * size, "train_flops": flops,
                    "val_loss": clean * float(np.exp(noise * dice.standard_normal())), "val_loss_se": 0.012,
                })  # fmt: skip
    table = pd.DataFrame(rows)
    return Runs(table if column is None else table.assign(**{column: floor}))
