"""The schedule of self-guided training: how strong the dense branch is, and how often it runs.

o = a W x + (1 - a) U V x; W starts as the layer's merged weight and a falls from 1 to 0 along a cosine
over the guided steps (arXiv 2406.16450 sec. 3.2).  Loads neither torch nor numpy: the planner prices runs
with it.
"""

from __future__ import annotations

import math
from fractions import Fraction

DEFAULT_FRACTION = 0.5
"""Share of the base steps that `fixed_steps` guides, as in the paper."""


def guide_weight(step: int, guided_steps: int) -> float:
    """The mixing weight a of update `step` (0-based): 1 at the start of the guided steps, 0 at their end.

    It is taken at the middle of each step, so that its mean is exactly 1/2, the share by which the paper
    counts the stochastic dense branch.
    """
    if step >= guided_steps:
        return 0.0
    return 0.5 * (1 + math.cos(math.pi * (step + 0.5) / guided_steps))


def expected_passes(steps: int, guided_steps: int, stochastic: bool) -> Fraction:
    """How many of the first `steps` steps run a map's dense branch: the mean where it is drawn.

    Exact at the end of guidance (one half of the guided steps); within it, the sum of a over the steps done.
    """
    if not stochastic or steps == 0:
        return Fraction(min(steps, guided_steps))
    if steps >= guided_steps:
        return Fraction(guided_steps, 2)
    angle = math.pi / guided_steps
    return Fraction(steps, 2) + Fraction(math.sin(angle * steps) / (4 * math.sin(angle / 2)))
