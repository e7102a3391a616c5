"""What the estimates of one curve say together, in one sentence that claims no more than intervals do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from analysis.digits import estimate, number
from analysis.natural.estimate import BAND, BOUNDS, CHINCHILLA, DATA, Estimate, Group

SHORT = {
    "agnostic": "1 - 2 beta",
    "realizable": "1 - beta",
    "measured": "measured",
    "law": "compute-optimal by the law",
    "isoflop": "compute-optimal by parabolas",
}
EXACT = 1e-7
"""Intervals narrower than this are rounding."""
SIDES = ("inside", "outside")
RECONSTRUCTED = "reconstruction of the paper's bound"


def value_words(one: Estimate) -> tuple[str, str]:
    """Value and interval with the digits that the interval supports; `-` for what is not known."""
    if one.value is None:
        return "-", "-"
    if one.low is None or one.high is None:
        return number(one.value, None, 3), "-"
    if math.isinf(one.high) or math.isinf(one.low):
        ends = [number(end, None, 2) if math.isfinite(end) else f"{end:g}" for end in one.interval()]
        return number(one.value, None, 2), f"[{ends[0]}, {ends[1]}]"
    return digits_of(one.value, one.low, one.high)


def digits_of(value: float, low: float, high: float) -> tuple[str, str]:
    """A value and its interval with the digits that the interval supports; six where it is but rounding."""
    if high - low < EXACT * max(1.0, abs(value)):
        return f"{value:.6g}", f"[{low:.6g}, {high:.6g}]"
    return estimate(value, low, high)


def verdict(group: Group) -> str:
    """The sentence."""
    known = [group.estimates[kind] for kind in DATA if group.estimates[kind].known]
    if known:
        told = ", ".join(f"{' '.join(value_words(one))} ({SHORT[one.kind]})" for one in known)
        parts = [f"gamma is {told}", *_agreement(known), _band(known), _chinchilla(known)]
    else:
        told = "; ".join(f"{SHORT[kind]}: {group.estimates[kind].reason}" for kind in DATA)
        parts = [f"the runs identify no gamma ({told})"]
    parts.append(_bounds(group, known))
    missing = [SHORT[kind] for kind in DATA if not group.estimates[kind].known]
    if missing and known:
        parts.append(f"not identified: {_listed(missing)}")
    return f"{group.label}: {'; '.join(part for part in parts if part)}."


def overall(groups: Sequence[Group]) -> str:
    """What several curves say together: a count of what the estimates of each decide."""
    found = [[group.estimates[kind] for kind in DATA if group.estimates[kind].known] for group in groups]
    known = [estimates for estimates in found if estimates]
    inside, outside = (sum(all(one.against_band() == side for one in e) for e in known) for side in SIDES)
    out = sum(all(not one.holds(CHINCHILLA) for one in e) for e in known)
    within = sum(all(one.holds(CHINCHILLA) for one in e) for e in known)
    band = f"the published band [{BAND[0]}, {BAND[1]}]"
    return (
        f"Of {len(groups)} curves {len(known)} identify a gamma: all estimates of {inside} lie inside "
        f"{band}, all of {outside} outside it, the others leave it open or are divided; all estimates of "
        f"{out} exclude Chinchilla's 1.0, none of {within} does."
    )


def _agreement(known: Sequence[Estimate]) -> list[str]:
    """Whether intervals meet; where they do, that is no proof of equality."""
    if len(known) < 2:
        return []
    apart = [(a, b) for a, b in combinations(known, 2) if not _meet(a, b)]
    if not apart:
        return ["these cannot be told apart"]
    pairs = [f"{SHORT[a.kind]} and {SHORT[b.kind]}" for a, b in apart]
    return [f"{_listed(pairs)} differ (their intervals do not meet)"]


def _meet(one: Estimate, other: Estimate) -> bool:
    (a, b), (c, d) = one.interval(), other.interval()
    return a <= d and c <= b


def _band(known: Sequence[Estimate]) -> str:
    band = f"the published band [{BAND[0]}, {BAND[1]}]"
    sides: dict[str, list[str]] = {"inside": [], "outside": [], "undecided": []}
    for one in known:
        sides[one.against_band()].append(SHORT[one.kind])
    if len(known) == len(sides["undecided"]):
        return f"whether it lies in {band} is left open"
    parts = [
        f"{_listed(names)} {'lies' if len(names) == 1 else 'lie'} {side} {band}"
        for side, names in sides.items()
        if names and side != "undecided"
    ]
    if sides["undecided"]:
        parts.append(f"{_listed(sides['undecided'])} {'leaves' if len(sides['undecided']) == 1 else 'leave'} "
                     "that open")  # fmt: skip
    return ", ".join(parts)


def _chinchilla(known: Sequence[Estimate]) -> str:
    out = [SHORT[one.kind] for one in known if not one.holds(CHINCHILLA)]
    within = [SHORT[one.kind] for one in known if one.holds(CHINCHILLA)]
    if not out:
        return "Chinchilla's 1.0 is not excluded"
    if not within:
        return "Chinchilla's 1.0 is excluded"
    return f"Chinchilla's 1.0 is excluded by {_listed(out)}, not by {_listed(within)}"


def _bounds(group: Group, known: Sequence[Estimate]) -> str:
    low, high = (group.estimates[kind] for kind in BOUNDS)
    if not (low.known and high.known):
        return f"beta is not identified either, so the {RECONSTRUCTED} gives nothing" if not known else (
            f"beta is not identified, so the {RECONSTRUCTED} gives nothing"
        )  # fmt: skip
    (first, of_first), (second, of_second) = value_words(low), value_words(high)
    text = (
        f"our {RECONSTRUCTED} gives from {first} {of_first} to {second} {of_second}, which says nothing of "
        "the data beyond beta"
    )
    if not known:
        return text
    start, end = low.interval()[0], high.interval()[1]
    inside = all(start <= one.interval()[0] and one.interval()[1] <= end for one in known)
    beyond = all(one.interval()[1] < start or one.interval()[0] > end for one in known)
    where = "inside" if inside else "outside" if beyond else "partly within"
    return f"{text} (the estimates lie {where} it)"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
