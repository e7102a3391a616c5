"""What the estimates of one curve say together, in one sentence that claims no more than intervals do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from analysis.digits import number
from analysis.natural.estimate import BAND, BOUNDS, CHINCHILLA, DATA, Estimate, Group, digits_of

SHORT = {
    "agnostic": "1 - 2 beta",
    "realizable": "1 - beta",
    "measured": "measured",
    "law": "compute-optimal by the law",
    "isoflop": "compute-optimal by parabolas",
}
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


def verdict(group: Group) -> str:
    """The sentence."""
    known = [group.estimates[kind] for kind in DATA if group.estimates[kind].known]
    deciding = [one for one in known if one.decides]
    if known:
        told = ", ".join(f"{' '.join(value_words(one))} ({_named(one)})" for one in known)
        parts = [f"gamma is {told}", *_agreement(deciding), *_decided(known, deciding)]
    else:
        told = "; ".join(f"{SHORT[kind]}: {group.estimates[kind].reason}" for kind in DATA)
        parts = [f"the runs identify no gamma ({told})"]
    parts += group.against
    parts.append(_bounds(group, known, deciding))
    missing = [SHORT[kind] for kind in DATA if not group.estimates[kind].known]
    if missing and known:
        parts.append(f"not identified: {_listed(missing)}")
    return f"{group.label}: {'; '.join(part for part in parts if part)}."


def overall(groups: Sequence[Group]) -> str:
    """What several curves say together: a count of what the estimates of each decide."""
    found = [[group.estimates[kind] for kind in DATA if group.estimates[kind].known] for group in groups]
    known = [estimates for estimates in found if estimates]
    deciding = [own for estimates in known if (own := [one for one in estimates if one.decides])]
    inside, outside = (sum(all(one.against_band() == side for one in e) for e in deciding) for side in SIDES)
    out = sum(all(not one.holds(CHINCHILLA) for one in e) for e in deciding)
    within = sum(all(one.holds(CHINCHILLA) for one in e) for e in deciding)
    band = f"the published band [{BAND[0]}, {BAND[1]}]"
    silent = len(known) - len(deciding)
    doubted = (
        f" ({silent} by a law alone that its own runs contradict, which decides nothing)" if silent else ""
    )
    return (
        f"Of {len(groups)} curves {len(known)} identify a gamma{doubted}: all estimates of {inside} lie "
        f"inside {band}, all of {outside} outside it, the others leave it open or are divided; all estimates "
        f"of {out} exclude Chinchilla's 1.0, none of {within} does."
    )


def _named(one: Estimate) -> str:
    """What an estimate is, and what contradicts the law that it rests on."""
    if not one.doubt:
        return SHORT[one.kind]
    return f"{'compute-optimal' if one.kind == 'law' else SHORT[one.kind]} {one.doubt}"


def _decided(known: Sequence[Estimate], deciding: Sequence[Estimate]) -> list[str]:
    """What the intervals say of the band and of 1.0; those of a law that is contradicted say nothing."""
    if not deciding:
        them = "it" if len(known) == 1 else "they"
        return [f"{them} can decide neither the published band [{BAND[0]}, {BAND[1]}] nor Chinchilla's 1.0"]
    silent = [SHORT[one.kind] for one in known if not one.decides]
    said = [_band(deciding, bool(silent)), _chinchilla(deciding, bool(silent))]
    return [f"{_listed(silent)} can decide nothing", *said] if silent else said


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


def _band(known: Sequence[Estimate], by_name: bool) -> str:
    """What intervals say of the band; estimates are named where others are known that decide nothing."""
    band = f"the published band [{BAND[0]}, {BAND[1]}]"
    sides: dict[str, list[str]] = {"inside": [], "outside": [], "undecided": []}
    for one in known:
        sides[one.against_band()].append(SHORT[one.kind])
    if len(known) == len(sides["undecided"]):
        what = _listed(sides["undecided"]) if by_name else "it"
        return f"whether {what} lies in {band} is left open"
    parts = [
        f"{_listed(names)} {'lies' if len(names) == 1 else 'lie'} {side} {band}"
        for side, names in sides.items()
        if names and side != "undecided"
    ]
    if sides["undecided"]:
        parts.append(f"{_listed(sides['undecided'])} {'leaves' if len(sides['undecided']) == 1 else 'leave'} "
                     "that open")  # fmt: skip
    return ", ".join(parts)


def _chinchilla(known: Sequence[Estimate], by_name: bool) -> str:
    out = [SHORT[one.kind] for one in known if not one.holds(CHINCHILLA)]
    within = [SHORT[one.kind] for one in known if one.holds(CHINCHILLA)]
    if not out:
        return f"Chinchilla's 1.0 is not excluded{f' by {_listed(within)}' if by_name else ''}"
    if not within:
        return f"Chinchilla's 1.0 is excluded{f' by {_listed(out)}' if by_name else ''}"
    return f"Chinchilla's 1.0 is excluded by {_listed(out)}, not by {_listed(within)}"


def _bounds(group: Group, known: Sequence[Estimate], deciding: Sequence[Estimate]) -> str:
    low, high = (group.estimates[kind] for kind in BOUNDS)
    if high.meaningless:
        return f"our {RECONSTRUCTED} is {high.reason}"
    if low.meaningless and high.known:
        value, ends = value_words(high)
        return (
            f"our {RECONSTRUCTED} gives {value} {ends} at its end 1 - beta, which says nothing of the data "
            f"beyond beta; its end 1 - 2 beta is {low.reason}"
        )
    if not (low.known and high.known):
        return f"beta is not identified either, so the {RECONSTRUCTED} gives nothing" if not known else (
            f"beta is not identified, so the {RECONSTRUCTED} gives nothing"
        )  # fmt: skip
    (first, of_first), (second, of_second) = value_words(low), value_words(high)
    of_law = " of that law" if low.doubt else ""
    text = (
        f"our {RECONSTRUCTED} gives from {first} {of_first} to {second} {of_second}, which says nothing of "
        f"the data beyond beta{of_law}"
    )
    if not deciding or of_law:
        return text
    start, end = low.interval()[0], high.interval()[1]
    inside = all(start <= one.interval()[0] and one.interval()[1] <= end for one in deciding)
    beyond = all(one.interval()[1] < start or one.interval()[0] > end for one in deciding)
    where = "inside" if inside else "outside" if beyond else "partly within"
    return f"{text} (the estimates lie {where} it)"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
