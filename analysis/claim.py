"""A fit that somebody published, held against the data that it was fitted to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analysis.arrays import Array
from analysis.engine.sums import SumLaw
from analysis.errors import AnalysisError
from analysis.findings import Finding
from analysis.fit import Fit, Refusal, Settings, fit_law

SAME = 1e-6
BETTER = 1e-3
"""A claimed objective counts as not converged where ours is lower by more than this share."""
NARROW = 0.5
"""An interval is implausibly narrow below this share of the width that the design and the noise imply."""
KEYS = ("law", "group", "params", "intervals", "huber_delta", "starts", "bounds")
OURS = (
    "formula", "n", "standard_errors", "interval_method", "objective", "dof", "residual_sd", "r_squared",
    "aicc", "certificate", "identified", "diagnostics", "allocation", "resamples_failed",
)  # fmt: skip
"""Further keys of the JSON that `fit` writes."""


@dataclass(frozen=True)
class Claim:
    """What was published of a fit.

    params: values by name.
    intervals: by name.
    huber_delta: of their objective; least squares on log loss without.
    starts: for each parameter the values that their optimiser began from.
    bounds: for each parameter its lowest and highest allowed value.
    group: the structure that it is of, or None for all.
    half_units: half a unit of the last digit that each value is printed with, where that is known.
    """

    params: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    huber_delta: float | None = None
    starts: dict[str, list[float]] = field(default_factory=dict)
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)
    group: str | None = None
    half_units: dict[str, float] = field(default_factory=dict)


def read_claim(path: Path) -> Claim:
    """Read a claim from JSON with the keys of `Claim`; the JSON that `fit --json` writes is one too.

    Raises:
        AnalysisError: no file, no JSON, or values of another kind.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AnalysisError(f"--claim {path}: cannot be read ({error.strerror}); give a JSON file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AnalysisError(f'--claim {path}: is no JSON ({error}); write {{"params": {{...}}}}') from None
    if not isinstance(body, dict) or not isinstance(body.get("params"), dict):
        raise AnalysisError(
            f'--claim {path}: has no object \'params\'; write {{"params": {{"E": 1.69, ...}}}}'
        )
    unknown = [key for key in body if key not in KEYS and key not in OURS]
    if unknown:
        raise AnalysisError(f"--claim {path}: '{unknown[0]}' is no key; its keys are {', '.join(KEYS)}")
    place = f"--claim {path}"
    params = {name: _finite(value, f"{place}: params.{name}") for name, value in body["params"].items()}
    delta = body.get("huber_delta")
    return Claim(
        params=params,
        intervals=_pairs(body.get("intervals"), params, f"{place}: intervals"),
        huber_delta=None if delta is None else _finite(delta, f"{place}: huber_delta"),
        starts=_lists(body.get("starts"), params, f"{place}: starts"),
        bounds=_pairs(body.get("bounds"), params, f"{place}: bounds"),
        group=body.get("group") if isinstance(body.get("group"), str) else None,
        half_units={name: _half_unit(str(value)) for name, value in body["params"].items()},
    )


def _finite(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise AnalysisError(f"{place} = {value!r} is no finite number; mend it")
    return float(value)


def _half_unit(text: str) -> float:
    """Half a unit of the last digit that a number is printed with."""
    mantissa, _, power = text.lower().partition("e")
    decimals = len(mantissa.partition(".")[2])
    return 0.5 * 10.0 ** (int(power or 0) - decimals)


def _pairs(values: Any, params: Mapping[str, float], place: str) -> dict[str, tuple[float, float]]:
    found = {}
    for name, ends in _lists(values, params, place).items():
        if len(ends) != 2 or not ends[0] <= ends[1]:
            raise AnalysisError(f"{place}.{name} = {ends} is no pair [low, high]; mend it")
        found[name] = (ends[0], ends[1])
    return found


def _lists(values: Any, params: Mapping[str, float], place: str) -> dict[str, list[float]]:
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise AnalysisError(f'{place} is no object of lists by parameter; write {{"E": [0.5, 1]}}')
    for name, several in values.items():
        if name not in params:
            raise AnalysisError(f"{place}.{name}: params has no '{name}'; it has {', '.join(params)}")
        if not isinstance(several, list):
            raise AnalysisError(f"{place}.{name} = {several!r} is no list of numbers; mend it")
    return {name: [_finite(v, f"{place}.{name}") for v in several] for name, several in values.items()}


def claim_findings(claim: Claim, law: SumLaw, data: Mapping[str, Array], loss: Array) -> list[Finding]:
    """What is wrong with a claim: never left its start, at a bound, not converged, intervals too narrow.

    Args:
        claim: the published fit.
        law: its law.
        data: the variables, shape (n,).
        loss: shape (n,).

    Raises:
        AnalysisError: the claim lacks a parameter of the law.
    """
    wrong = [name for name in law.coefficients if claim.params.get(name, 1.0) <= 0]
    if wrong:
        raise AnalysisError(f"--claim: {wrong[0]} = {claim.params[wrong[0]]:g} is not above zero; mend it")
    missing = [name for name in law.parameters if name not in claim.params]
    if missing:
        raise AnalysisError(
            f"--claim: no value of {missing[0]}; {law.name} has {', '.join(law.parameters)}; "
            "name another --law, or add it"
        )
    return [*_starts(claim), *_bounds(claim), *_refit(claim, law, data, loss)]


def _starts(claim: Claim) -> list[Finding]:
    known = {name: values for name, values in claim.starts.items() if name in claim.params}
    if not known or not all(
        any(_same(claim.params[name], value) for value in values) for name, values in known.items()
    ):
        return []
    where = ", ".join(f"{name} = {claim.params[name]:.6g}" for name in known)
    return [Finding("SL002", f"the published {where} is a point of its grid of starts")]


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= SAME * max(abs(one), abs(other))


def _bounds(claim: Claim) -> list[Finding]:
    at = []
    for name, (low, high) in claim.bounds.items():
        value = claim.params.get(name)
        if value is None:
            continue
        reach = SAME * (high - low) if math.isfinite(high - low) else 0.0
        for edge, word in ((low, "lower"), (high, "upper")):
            if math.isfinite(edge) and (_same(value, edge) or abs(value - edge) <= reach):
                at.append(f"{name} = {value:.6g} is its {word} bound")
    return [Finding("SL003", f"the published {'; '.join(at)}")] if at else []


def _refit(claim: Claim, law: SumLaw, data: Mapping[str, Array], loss: Array) -> list[Finding]:
    delta = math.inf if claim.huber_delta is None else claim.huber_delta
    ours = fit_law(law, data, loss, settings=Settings(huber_delta=delta, interval="delta"))
    if isinstance(ours, Refusal):
        return []
    found = []
    theirs = _objective(claim, law, data, loss, delta)
    if theirs > ours.objective * (1 + BETTER) + 1e-12 and not _rounded(claim, law, ours):
        moved = ", ".join(
            f"{name} {claim.params[name]:.4g} to {value:.4g}"
            for name, value in ours.params.items()
            if name in law.exponents and value is not None
        )
        found.append(
            Finding(
                "SL001", f"objective {theirs:.6g} as published, {ours.objective:.6g} at the optimum: {moved}"
            )
        )
    return [*found, *_narrow(claim, ours)]


def _rounded(claim: Claim, law: SumLaw, ours: Fit) -> bool:
    """Whether the printed digits alone explain a higher objective: the exponents agree to them."""
    return all(
        abs(claim.params[name] - ours.value(name)) <= 2 * claim.half_units.get(name, 0.0)
        for name in law.exponents
    )


def _objective(claim: Claim, law: SumLaw, data: Mapping[str, Array], loss: Array, delta: float) -> float:
    value = np.zeros(len(loss))
    with np.errstate(over="ignore", under="ignore"):
        return _summed(claim, law, data, loss, delta, value)


def _summed(
    claim: Claim, law: SumLaw, data: Mapping[str, Array], loss: Array, delta: float, value: Array
) -> float:
    for term in law.terms:
        part = np.full(len(loss), claim.params[term.coefficient])
        for variable, exponent in term.powers.items():
            part = part * np.asarray(data[variable], np.float64) ** -claim.params[exponent]
        value += part
    residual = np.abs(np.log(np.maximum(value, 1e-300)) - np.log(loss))
    inside = np.minimum(residual, delta)
    return float(np.sum(inside * (residual - 0.5 * inside)))


def _narrow(claim: Claim, ours: Fit) -> list[Finding]:
    parts = []
    for name, (low, high) in claim.intervals.items():
        edges = (ours.intervals or {}).get(name)
        if edges is None or not math.isfinite(edges[1] - edges[0]) or edges[1] <= edges[0]:
            continue
        share = (high - low) / (edges[1] - edges[0])
        if share < NARROW:
            ours_words = f"[{edges[0]:.4g}, {edges[1]:.4g}]"
            parts.append(f"{name} [{low:.4g}, {high:.4g}] has {share:.2g} of the width of {ours_words}")
    if not parts:
        return []
    return [Finding("SL013", f"{'; '.join(parts)}, which these runs and their noise imply")]
