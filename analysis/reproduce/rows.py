"""One published number against ours: what a row holds, how its verdict is found, and where the data lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.arrays import Array
from analysis.errors import AnalysisError

REPRODUCED, LOWER, DIFFERS = "reproduced", "lower objective", "differs"
NEVER_LEFT = "never left its start"
VERDICTS = (REPRODUCED, LOWER, NEVER_LEFT, DIFFERS)
CONVERGED = 1e-5
"""An objective that is lower by less than this share counts as the same: two optimisers, one optimum."""


@dataclass(frozen=True)
class Row:
    """A published number and what its data give here."""

    study: str
    quantity: str
    published: float
    ours: float
    tolerance: float
    """Differences up to this are none; absolute."""
    verdict: str
    """One of VERDICTS; `lower objective`: theirs had not converged."""
    note: str = ""
    """The reason, where they differ."""
    expected: bool = True
    """False where it is known that the data at hand cannot give the published number; the note says why."""

    @property
    def holds(self) -> bool:
        """Whether the row is as it should be: only a difference without a known reason is not."""
        return self.verdict != DIFFERS or not self.expected


def compare(
    study: str,
    quantity: str,
    published: float,
    ours: float,
    tolerance: float,
    note: str = "",
    expected: bool = True,
) -> Row:
    """Compare two numbers."""
    near = abs(ours - published) <= tolerance
    return Row(
        study, quantity, published, ours, tolerance, REPRODUCED if near else DIFFERS, note, near or expected
    )


def compare_objectives(
    study: str, quantity: str, published: float, ours: float, rounding: float, note: str = ""
) -> Row:
    """Compare two minima of one objective.

    Args:
        study: name of the study.
        quantity: what was minimised, on what.
        published: the minimum as printed.
        ours: our minimum.
        rounding: half a unit of the last digit that was printed.
        note: what else to say.
    """
    tolerance = CONVERGED * published + rounding
    verdict = REPRODUCED if abs(ours - published) <= tolerance else LOWER if ours < published else DIFFERS
    return Row(study, quantity, published, ours, tolerance, verdict, note)


def read(folder: Path, name: str) -> pd.DataFrame:
    """Read a table of published facts.

    Raises:
        AnalysisError: there is no such file, or it is none.
    """
    path = folder / name
    try:
        return pd.read_csv(path)
    except FileNotFoundError:
        raise AnalysisError(f"{path}: no such file; check the repository out again") from None
    except (OSError, ValueError) as error:
        raise AnalysisError(f"{path}: cannot be read ({error}); check the file out again") from error


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    """Read a table of published facts, row by row.

    Raises:
        AnalysisError: as `read`.
    """
    return [{str(key): value for key, value in row.items()} for row in read(folder, name).to_dict("records")]


def numbers(table: pd.DataFrame, column: str) -> Array:
    """A column as float64, shape (n,)."""
    return np.asarray(table[column].to_numpy(), np.float64)


def slope(x: Array, y: Array, weights: Array | None = None) -> tuple[float, float]:
    """Slope and intercept of a straight line by (weighted) least squares; all shapes (n,)."""
    w = np.ones_like(x) if weights is None else weights / weights.sum() * x.size
    middle, height = float(np.average(x, weights=w)), float(np.average(y, weights=w))
    steep = float(np.sum(w * (x - middle) * (y - height)) / np.sum(w * (x - middle) ** 2))
    return steep, height - steep * middle
