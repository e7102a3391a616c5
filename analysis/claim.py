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


@dataclass(frozen=True)
class Claim:
    """What was published of a fit.

    params: values by name.
    intervals: by name.
    huber_delta: of their objective; least squares on log loss without.
    starts: for each parameter the values that their optimiser began from.
    bounds: for each parameter its lowest and highest allowed value.
    group: the structure that it is of, or None for all.
    """

    params: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    huber_delta: float | None = None
    starts: dict[str, list[float]] = field(default_factory=dict)
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)
    group: str | None = None


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
    try:
        return Claim(
            params={name: float(value) for name, value in body["params"].items()},
            intervals=_pairs(body.get("intervals")),
            huber_delta=None if body.get("huber_delta") is None else float(body["huber_delta"]),
            starts={name: [float(v) for v in values] for name, values in (body.get("starts") or {}).items()},
            bounds=_pairs(body.get("bounds")),
            group=body.get("group") if isinstance(body.get("group"), str) else None,
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise AnalysisError(f"--claim {path}: {error}; its keys are {', '.join(KEYS)}") from None


def _pairs(values: Mapping[str, Any] | None) -> dict[str, tuple[float, float]]:
    return {name: (float(low), float(high)) for name, (low, high) in (values or {}).items()}


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
    if theirs > ours.objective * (1 + BETTER) + 1e-12:
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


def _objective(claim: Claim, law: SumLaw, data: Mapping[str, Array], loss: Array, delta: float) -> float:
    value = np.zeros(len(loss))
    for term in law.terms:
        part = np.full(len(loss), claim.params[term.coefficient])
        for variable, exponent in term.powers.items():
            part = part * np.asarray(data[variable], np.float64) ** -claim.params[exponent]
        value += part
    residual = np.abs(np.log(value) - np.log(loss))
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
