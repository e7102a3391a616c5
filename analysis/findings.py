"""The catalogue of what can be wrong with a scaling-law fit: codes SL001 ..., names and remedies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CATALOGUE: dict[str, tuple[str, str]] = {
    "SL001": ("not converged", "report no number of this fit; simplify the law or add runs"),
    "SL002": ("optimum equals a start", "the optimiser did not move: check weights, gradients and tolerance"),
    "SL003": (
        "at a bound",
        "the bound decides the number: report the law without that term, or widen the bound",
    ),
    "SL004": ("several minima", "report the range, not one number; add runs where the minima differ most"),
    "SL005": ("Huber delta far from the noise", "leave --huber-delta out, or set it to 1.3 times the noise"),
    "SL006": (
        "design does not identify the law",
        "vary size and tokens independently, or fit a law in FLOPs",
    ),
    "SL007": ("vanishing term", "what vanishes is not identified: give no number for it; extend the runs"),
    "SL008": ("influential outliers", "look at those runs; report the fit with and without them"),
    "SL009": (
        "learning rate not decayed",
        "fit finished runs only, or those at the same stage of their decay",
    ),
    "SL010": (
        "best of unequal numbers of tries",
        "spend the same number of tries on every cell, and record it",
    ),
    "SL011": ("rounded budgets", "give realised FLOPs of each run, not the label of its budget"),
    "SL012": (
        "6ND in place of counted FLOPs",
        "count FLOPs from the architecture, or say 6ND in every label",
    ),
    "SL013": (
        "implausibly narrow interval",
        "say how it was computed; spread over starts is no standard error",
    ),
    "SL014": ("inverted parabola", "the budget has no minimum in range: drop it, or add sizes"),
    "SL015": (
        "optimum at the edge of the sizes",
        "add sizes beyond the edge; an extrapolated optimum is none",
    ),
    "SL016": ("flat or short curve", "sample at least four sizes over a wider range"),
    "SL017": ("approaches disagree", "report both; a parabola is biased on an asymmetric surface"),
    "SL018": ("points of one run", "resample whole runs (--cluster names their column), never single points"),
    "SL019": ("not a held-out loss", "fit the loss on held-out text, unsmoothed"),
    "SL020": ("too few points", "add sizes or seeds"),
    "SL021": (
        "lack of fit",
        "the law misses more than the seeds scatter: try another law or a smaller range",
    ),
    "SL022": ("exponent of the wrong sign", "the loss does not fall with this variable over this range"),
    "SL023": ("short range", "extend the sizes: less than a factor of ten does not show a power law"),
    "SL024": (
        "runs of other ratios on one curve",
        "fit a law in N and D, or keep to one ratio with --filter",
    ),
}
"""Code -> (name, remedy)."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or may mislead.

    code: key of the catalogue.
    sentence: what was seen, with the numbers.
    """

    code: str
    sentence: str

    @property
    def name(self) -> str:
        """What the catalogue calls it."""
        return CATALOGUE[self.code][0]

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return CATALOGUE[self.code][1]

    def __str__(self) -> str:
        return f"{self.code} {self.name}: {self.sentence}"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"code": self.code, "name": self.name, "sentence": self.sentence, "remedy": self.remedy}
