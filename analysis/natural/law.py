"""L = E + A N^-alpha + B D^-beta on one curve, with E fitted or, where it is known, held."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analysis.arrays import Array
from analysis.digits import estimate
from analysis.engine.solve import Optimum, solve
from analysis.engine.sums import Bound, bind
from analysis.findings import Finding
from analysis.fit import LEAST_SQUARES_DOF, Certificate, Fit, Refusal, Settings, fit_law
from analysis.fitcheck import fit_findings
from analysis.laws import CHINCHILLA
from analysis.natural.estimate import Floor
from analysis.uncertainty import condition_number, spread_of

CAUTIONS = ("SL008", "SL021")
"""Findings that leave a law identified and yet should be read beside its numbers."""


def free_law(
    params: Array, tokens: Array, loss: Array, label: str, settings: Settings, clusters: Sequence[str] | None
) -> Fit | Refusal:
    """The law with its irreducible loss fitted; arrays of shape (n,)."""
    data = {"params": params, "tokens": tokens}
    return fit_law(CHINCHILLA, data, loss, label, settings=settings, clusters=clusters)


def held_law(
    params: Array,
    tokens: Array,
    loss: Array,
    label: str,
    floor: float,
    settings: Settings,
    clusters: Sequence[str] | None,
) -> Fit:
    """The law with a known irreducible loss: A, alpha, B and beta alone are fitted.

    Its `predict` and `band` know nothing of the constant; what is read off is alpha, beta and the optimum.

    Args:
        params: N, shape (n,), of at least three sizes.
        tokens: D, shape (n,), of at least three budgets.
        loss: nats per token, above `floor`, shape (n,).
        label: what reports call these points.
        floor: E, nats per token.
        settings: how to fit.
        clusters: the run of each point, or None.
    """
    bound = _held(bind(CHINCHILLA, {"params": params, "tokens": tokens}, loss), floor)
    p = len(bound.columns)
    delta = settings.huber_delta
    if delta is None and bound.n - p < LEAST_SQUARES_DOF:
        delta = math.inf
    optimum = solve(bound, delta)
    spread = spread_of(optimum, settings.interval, clusters, settings.resamples, settings.seed)
    findings, identified = fit_findings(
        optimum, spread, condition_number(optimum.bound, optimum.phi), None, clusters
    )
    residual = optimum.bound.log_value(optimum.phi) - optimum.bound.log_loss
    intervals = None
    if spread is not None and identified:
        low, high = spread.interval(lambda at: at, optimum.phi)
        intervals = {
            column.name: (float(low[place]), float(high[place]))
            for place, column in enumerate(optimum.bound.columns)
            if column.name in CHINCHILLA.exponents
        }
    natural = optimum.bound.natural(optimum.phi)
    found = {column.name: float(v) for column, v in zip(optimum.bound.columns, natural, strict=True)}
    return Fit(
        law=CHINCHILLA.name,
        formula=f"{CHINCHILLA.formula}, E = {floor:.6g} known",
        group=label,
        n=bound.n,
        params={"E": floor, **{c.name: found.get(c.name) for c in bound.columns}},
        standard_errors=None,
        intervals=intervals,
        interval_method=spread.method if spread is not None and intervals is not None else None,
        objective=optimum.cost,
        huber_delta=optimum.delta if math.isfinite(optimum.delta) else None,
        dof=bound.n - p,
        residual_sd=float(np.sqrt(residual @ residual / max(1, bound.n - p))),
        r_squared=None,
        aicc=None,
        certificate=_certificate(optimum),
        identified=identified,
        findings=tuple(findings),
        optimum=optimum,
        spread=spread,
    )


def _held(bound: Bound, floor: float) -> Bound:
    """The constant term moved from the parameters to what every point reads."""
    kept = [place for place, column in enumerate(bound.columns) if column.name != "E"]
    offset = bound.offset.copy()
    offset[:, 0] = math.log(floor) if floor > 0 else -math.inf
    columns = tuple(bound.columns[place] for place in kept)
    return replace(bound, columns=columns, terms=bound.terms[:, :, kept], offset=offset)


def _certificate(optimum: Optimum) -> Certificate:
    return Certificate(
        gradient=optimum.gradient,
        converged=optimum.converged,
        starts=optimum.starts,
        moved=optimum.moved,
        minima=len(optimum.minima),
        ranges={},
        at_bound=optimum.vanished,
        condition=condition_number(optimum.bound, optimum.phi),
    )


def why_not(fit: Fit | Refusal) -> str:
    """Why a law says nothing of its runs, in words; empty where it is identified with its errors."""
    if isinstance(fit, Refusal):
        return fit.reason
    if fit.identified and fit.spread is not None and fit.intervals is not None:
        return ""
    reasons = [str(finding) for finding in fit.findings if finding.code not in CAUTIONS]
    return (reasons or ["its errors are not known"])[0]


def cautions(fit: Fit | Refusal) -> list[Finding]:
    """What should be read beside the numbers of an identified law."""
    return [] if isinstance(fit, Refusal) else [f for f in fit.findings if f.code in CAUTIONS]


def lack_of_fit(fit: Fit | Refusal) -> str:
    """A clause on replicates that reject an identified law (SL021); empty without."""
    found = [finding.sentence for finding in cautions(fit) if finding.code == "SL021"]
    if not found or why_not(fit):
        return ""
    return f"the replicates reject the law: {found[0].replace('the law misses', 'it misses')}"


def fitted_floor(fit: Fit | Refusal) -> Floor:
    """The irreducible loss that a free fit gives."""
    reason = why_not(fit)
    if reason or isinstance(fit, Refusal) or fit.intervals is None:
        return Floor(None, reason=reason)
    return Floor(fit.value("E"), "fitted", *fit.intervals["E"])


def beside_known(fit: Fit | Refusal, floor: float) -> str:
    """A sentence on what a free fit makes of an irreducible loss that is known."""
    reason = why_not(fit)
    if reason or isinstance(fit, Refusal) or fit.intervals is None:
        return f"fitted freely, E is not identified ({reason}): the known one is used"
    low, high = fit.intervals["E"]
    e, ends = estimate(fit.value("E"), low, high)
    b, of_beta = estimate(fit.value("beta"), *fit.intervals["beta"])
    agrees = "holds" if low <= floor <= high else "does not hold"
    return f"fitted freely, E is {e} {ends}, which {agrees} the known {floor:.4g}; beta is then {b} {of_beta}"
