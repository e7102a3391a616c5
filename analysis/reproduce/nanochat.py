"""nanochat: exponents of IsoFLOP optima by three ways to count parameters; budgets must not be rounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from analysis.reproduce.rows import Row, compare, numbers, read, records, slope

STUDY = "nanochat"
ROUNDING = 0.005
"""The exponents are printed with two decimals."""
BUDGETS = (
    ("flops", "budgets as run", "", True),
    ("flops_printed", "budgets as printed", "2e18 and 5e18 stand for 2.15e18 and 4.64e18", False),
)


def reproduce(folder: Path) -> list[Row]:
    """The exponents of N and D in C, with the budgets as run, and what their printed labels would give."""
    optima = read(folder, "nanochat_optima.csv")
    rows = []
    for column, label, note, expected in BUDGETS:
        for target in records(folder, "nanochat_exponents.csv"):
            points = optima[optima["convention"] == target["convention"]]
            x = np.log(numbers(points, column))
            for letter, values in (("n", "params"), ("d", "tokens")):
                ours, _ = slope(x, np.log(numbers(points, values)))
                name = f"{target['convention']}: exponent of {letter.upper()}, {label}"
                published = target[f"{letter}_exponent"]
                rows.append(compare(STUDY, name, published, ours, ROUNDING, note, expected))
    return rows
