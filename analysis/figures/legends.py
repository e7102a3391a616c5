"""Legends below a figure: as many columns as its width has room for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.lines import Line2D

HANDLE, LETTER = 0.5, 0.052
"""Inches of a handle with its gaps, and of a letter of a label."""


def legend_columns(handles: Sequence[Line2D], inches: float, most: int) -> int:
    """How many columns of a legend, `most` at the most, fit in so many inches; 1 where none do."""
    letters = [len(str(handle.get_label())) for handle in handles]
    for columns in range(min(most, len(handles)), 1, -1):
        # A legend is filled column by column, each as wide as its longest label.
        longest = [max(part) for part in np.array_split(letters, columns)]
        if sum(HANDLE + LETTER * count for count in longest) <= inches:
            return columns
    return 1
