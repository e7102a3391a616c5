"""What a broken power law shows of its break: whether the points have one, where, and how sharp."""

from __future__ import annotations

import math

from analysis.compare.ftest import NO_BREAK, break_test
from analysis.digits import number
from analysis.engine.broken import SHARP, BrokenBound
from analysis.engine.solve import Optimum
from analysis.findings import Finding
from analysis.uncertainty import Spread


def break_findings(optimum: Optimum, spread: Spread | None) -> list[Finding]:
    """Why the break is not identified: the first reason of no break, d outside, f at a limit, and errors.

    Args:
        optimum: of any law; there is nothing to find without a break.
        spread: its errors; None where there are none.
    """
    bound = optimum.bound
    if not isinstance(bound, BrokenBound):
        return []
    if reason := break_test(optimum):
        return [Finding("SL007", reason)]
    names = [column.name for column in bound.columns]
    natural = {**dict(zip(names, bound.natural(optimum.phi), strict=True)), **optimum.fixed}
    if "d" in optimum.fixed:
        edge = "lowest" if bound.held["d"] <= bound.limits[0][0] else "highest"
        place = f"d is at its bound {natural['d']:.3g}, the {edge} {bound.law.variables[0]}"
        return [Finding("SL007", f"{NO_BREAK}: {place}")]
    if "f" in optimum.fixed:
        return [_width(natural["f"], bound)]
    if spread is None:
        return []
    open_ones = []
    for name in ("d", "f"):
        # The error of a logarithm is that of the value over the value.
        error = math.sqrt(spread.covariance[bound.place(name), bound.place(name)])
        if error > 1:
            open_ones.append(f"{name} = {natural[name]:.3g} ± {natural[name] * error:.2g}")
    return [Finding("SL006", f"{', '.join(open_ones)}: the error exceeds the value")] if open_ones else []


def _width(width: float, bound: BrokenBound) -> Finding:
    if bound.held["f"] >= bound.limits[1][1]:
        sentence = f"f is at its upper bound {width:.3g}, the range of the points in logarithms: all is bend"
        return Finding("SL003", sentence)
    sentence = (
        f"f is at its lower bound {width:.2g}, {SHARP} of the distance between points: the break is sharper "
        "than they can tell"
    )
    return Finding("SL003", sentence)


def break_signs(optimum: Optimum) -> list[Finding]:
    """Where a broken law does not fall; c1 alone may have either sign."""
    bound = optimum.bound
    slopes = [float(optimum.phi[bound.place(name)]) for name in ("c0", "c1")]
    errors = [f"c0 = {number(slopes[0], None)} below d"] if slopes[0] <= 0 else []
    if sum(slopes) <= 0:
        errors.append(f"c0 + c1 = {number(sum(slopes), None)} beyond d")
    return [Finding("SL022", f"{', '.join(errors)}: the loss does not fall there")] if errors else []
