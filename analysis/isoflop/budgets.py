"""Training FLOPs as a table gives them: budgets, rounded labels, and 6ND against a count."""

from __future__ import annotations

import math

import numpy as np

from analysis.arrays import Array, Places
from analysis.errors import AnalysisError
from analysis.findings import Finding

ROUNDED = "SL011"
NOT_SIX_ND = "SL012"
LABEL_DIGITS = 2
OFF_LABEL = 0.01
ONE_RATIO = 3.0
"""Tokens per parameter within this factor count as one ratio."""
OFF_SIX_ND = 0.05


def checked(
    params: Array, tokens: Array, train_flops: Array, loss: Array
) -> tuple[Array, Array, Array, Array]:
    """Logarithms of the columns; AnalysisError where lengths differ or a value has none."""
    logs = []
    columns = {"params": params, "tokens": tokens, "train_flops": train_flops, "val_loss": loss}
    for name, column in columns.items():
        value = np.asarray(column, np.float64)
        if value.ndim != 1 or value.size != np.size(loss) or value.size == 0:
            raise AnalysisError(f"{name}: {value.size} values for {np.size(loss)} losses; give one a run")
        if not bool(np.all(np.isfinite(value) & (value > 0))):
            raise AnalysisError(f"{name}: must be finite and above zero; drop the other runs")
        logs.append(np.log(value))
    return logs[0], logs[1], logs[2], logs[3]


def group_budgets(train_flops: Array, tolerance: float = 0.05) -> list[Places]:
    """Group points into budgets by their realised FLOPs; returns the places of each, in order of FLOPs.

    Points are parted at their largest gap in log C until all are within `tolerance` of their geometric mean;
    a chain of small steps is therefore no budget.
    """
    order = np.argsort(train_flops, kind="stable")
    logs = np.log(np.asarray(train_flops, np.float64))[order]
    # Labels that differ in the last bit are the same budget even at a tolerance of zero.
    reach = math.log1p(tolerance) + 1e-12
    waiting, groups = [(0, logs.size)], []
    while waiting:
        start, end = waiting.pop()
        part = logs[start:end]
        if np.max(np.abs(part - part.mean())) <= reach:
            groups.append(order[start:end])
            continue
        cut = start + 1 + int(np.argmax(np.diff(part)))
        waiting += [(cut, end), (start, cut)]
    return groups


def significant_digits(value: float) -> int:
    """Digits of a number that are not trailing zeros, at most 15."""
    return len(f"{value:.14e}".split("e")[0].replace(".", "").rstrip("0")) or 1


def rounded_budgets(
    train_flops: Array, params: Array, tokens: Array, realised: Array | None = None
) -> Finding | None:
    """Find out whether the column of FLOPs holds labels such as 2e18 in place of what was spent (SL011).

    A label has at most two significant digits, and C / (N D) is then off by more than 1 % from that of other
    runs of the same size; where sizes do not come again, from a straight line in log N, since attention and
    embeddings make C / (N D) a smooth function of the size.

    Args:
        train_flops: the column, shape (n,).
        params: N, shape (n,).
        tokens: D, shape (n,).
        realised: FLOPs counted from the runs, shape (n,), where they are known: compared with directly.

    Returns:
        The finding with the largest distance; None where nothing is wrong.
    """
    n, d, c, _ = checked(params, tokens, train_flops, np.ones(np.size(train_flops)))
    digits = max(significant_digits(float(value)) for value in np.unique(train_flops))
    if digits > LABEL_DIGITS:
        return None
    if realised is not None:
        off = c - checked(params, tokens, realised, np.ones(n.size))[2]
    else:
        off = _unexplained(n, c - n - d)
    worst = math.expm1(float(np.max(np.abs(off))))
    if worst <= OFF_LABEL:
        return None
    told = "at most two significant digits" if digits > 1 else "one significant digit"
    against = "the realised FLOPs" if realised is not None else "C / (N D) of the other runs"
    return Finding(
        ROUNDED,
        f"train_flops has {told} and differs by up to {100 * worst:.1f} % from "
        f"{against}: these are labels of budgets",
    )


def _unexplained(n: Array, kappa: Array) -> Array:
    """Distance of log kappa from its size's median, or from a line in log N where most sizes are single."""
    _, group, count = np.unique(n, return_inverse=True, return_counts=True)
    again = count[group] > 1
    if float(again.mean()) >= 0.5:
        medians = np.array([np.median(kappa[group == size]) for size in range(count.size)])
        return np.where(again, kappa - medians[group], 0.0)
    away, rest = n - n.mean(), kappa - kappa.mean()
    square = float(away @ away)
    return np.asarray(rest - away * float(away @ rest) / square if square > 0 else rest, np.float64)


def six_nd_gap(params: Array, tokens: Array, train_flops: Array) -> Finding | None:
    """Compare 6 N D with the FLOPs of the table; a finding where any run is off by over 5 % (SL012).

    Returns:
        The finding with the range of C / (6 N D) - 1; None where no run is off.

    Source: 6 N D is Kaplan et al., arXiv 2001.08361, section 2.1, for dense layers without attention's T^2.
    """
    n, d, c, _ = checked(params, tokens, train_flops, np.ones(np.size(train_flops)))
    gap = np.expm1(c - n - d - math.log(6))
    worst = float(gap[np.argmax(np.abs(gap))])
    if abs(worst) <= OFF_SIX_ND:
        return None
    return Finding(
        NOT_SIX_ND,
        f"counted FLOPs are {100 * float(gap.min()):+.0f} to {100 * float(gap.max()):+.0f} % off 6 N D: "
        "exponents in C depend on which of the two is used",
    )


def mixed_ratios(params: Array, tokens: Array) -> Finding | None:
    """Find out whether runs differ much in tokens per parameter, so that FLOPs alone do not set their loss.

    Args:
        params: N of one structure's runs, shape (n,).
        tokens: D, shape (n,).
    """
    ratio = tokens / params
    if not ratio.size or float(ratio.max()) <= ONE_RATIO * float(ratio.min()):
        return None
    sentence = (
        f"from {ratio.min():.3g} to {ratio.max():.3g} tokens per parameter: a law in FLOPs takes what the "
        "ratio does for noise"
    )
    return Finding("SL024", sentence)
