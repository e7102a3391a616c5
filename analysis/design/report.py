"""Sentences and tables on what a planned sweep can and cannot tell: Markdown, LaTeX, JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis.design.additions import Additions, Goal
from analysis.design.candidates import Candidate
from analysis.design.precision import Design, Difference, Impossible, Predicted, scattered
from analysis.digits import quantity, significant, with_error
from analysis.engine.sums import ALL
from analysis.report import plain
from analysis.tables import Table, latex_file

DIFFERENCE_HEADER = ("irreducible loss", "exponent", "structures", "se of difference", "dof", "detectable")
ADDITION_HEADER = ("structure", "run", "params", "tokens", "FLOPs each", "runs")
FLOORS = {"none": "none", "shared": "one, shared", "separate": "one each"}
WITH = {
    "none": "",
    "shared": " with one irreducible loss for all",
    "separate": " with an irreducible loss for each",
}
MOST_PAIRS = 6
"""Pairs of structures in a table; of more, those with the first structure and the worst are shown."""
METHOD = (
    "Least squares on log loss, every run with equal weight: covariance = noise² (J'J)⁻¹ at the assumed law, "
    "intervals ± t standard errors at the fit's degrees of freedom; exact for a power law, first-order for "
    "the others, so rough where an error is more than a third of its value. Detectable: the smallest true "
    "difference that a two-sided t test at the 5 % level finds with 80 % probability. A law that does not "
    "hold, or learning rates tuned unequally, come on top of the noise."
)


LATTICE = (
    "Sizes and tokens are those of the grid's log lattice, half-way and one step beyond it included: take "
    "the nearest that can be built, and beyond the grid only where the law is trusted to hold."
)


@dataclass(frozen=True)
class Planning:
    """A table of planned runs under one or several laws.

    shape: the design in words, such as `4 sizes x 1 seed`.
    train_flops: of all runs.
    additions: by law, where a goal was given.
    """

    name: str
    shape: str
    train_flops: float
    designs: tuple[Design, ...]
    additions: dict[str, Additions | Impossible]

    def to_json(self) -> str:
        """JSON, float64 at full precision, sorted keys."""
        body = {
            "name": self.name,
            "design": self.shape,
            "train_flops": self.train_flops,
            "structures": list(self.designs[0].grid.structures),
            "laws": [design.to_dict() for design in self.designs],
            "additions": {name: found.to_dict() for name, found in self.additions.items()},
        }
        return json.dumps(plain(body), indent=1, sort_keys=True, allow_nan=False) + "\n"


def markdown(planning: Planning) -> str:
    """The whole report."""
    parts = [
        f"# {planning.name}: what the planned runs can tell",
        _planned(planning),
        _bullets([_told(design) for design in planning.designs]),
    ]
    if planning.additions:
        parts += ["## Cheapest additions", *_additions(planning)]
    used = _used(planning)
    if used:
        parts += ["## Assumed", _bullets(_assumptions(used))]
    for design in used:
        fits, differences = fit_table(planning, design), difference_table(planning, design)
        if fits is not None:
            parts += [f"## {design.assumed.law.name}: {design.assumed.law.formula}", fits.markdown()]
        if differences is not None:
            parts.append(differences.markdown())
    return "\n\n".join([*parts, *([METHOD] if used else [])]) + "\n"


def latex(planning: Planning) -> str:
    r"""All tables of the report as one file to \input; what is assumed and refused stands in the notes."""
    out = []
    for design in _used(planning):
        name, fits = design.assumed.law.name, fit_table(planning, design)
        notes = (_planned(planning), _told(design), *_assumptions([design]), METHOD)
        for kind, table in (("fits", fits), ("differences", difference_table(planning, design))):
            if table is not None:
                out.append((f"{name}-{kind}", replace(table, notes=notes)))
        found = planning.additions.get(name)
        if isinstance(found, Additions) and found.picks:
            notes = (_first(found), LATTICE)
            out.append((f"{name}-additions", replace(addition_table(planning, name, found), notes=notes)))
    return latex_file((f"tab:{planning.name}-design-{label}", table) for label, table in out)


def _planned(planning: Planning) -> str:
    count = planning.designs[0].grid.n
    names = _listed(planning.designs[0].grid.structures)
    shape = f" ({planning.shape})" if planning.shape != f"{count} runs" else ""
    return f"{count} runs{shape} of {names}; {quantity(planning.train_flops)} FLOPs."


def _told(design: Design) -> str:
    return f"**{design.assumed.law.formula}.** {' '.join(sentences(design))}"


def _used(planning: Planning) -> list[Design]:
    """The laws that have more to show than a refusal."""
    return [one for one in planning.designs if _depends(one) or one.assumed.law.name in planning.additions]


def _depends(design: Design) -> bool:
    """Whether anything said of a law rests on what is assumed of it."""
    refused = [fit for fit in design.alone.values() if isinstance(fit, Impossible)]
    return len(refused) < len(design.alone) or any(one.kind in ("condition", "error") for one in refused)


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _listed(names: Sequence[str], shown: int = 4) -> str:
    # A label with a variant holds commas of its own.
    between = "; " if any(", " in name for name in names) else ", "
    more = f"{between}{len(names) - shown} more" if len(names) > shown else ""
    return between.join(names[:shown]) + more


def sentences(design: Design) -> list[str]:
    """What the runs can and cannot tell under one law."""
    lines = _alone(design)
    said = {fit.kind for fit in design.alone.values() if isinstance(fit, Impossible)}
    for hypothesis, found in design.differences.items():
        start = f"Compared{WITH[hypothesis]}"
        if isinstance(found, Impossible):
            if found.kind not in said:
                lines.append(f"{start}, exponents are not identified: {found.reason}.")
            continue
        for exponent in dict.fromkeys(one.exponent for one in found):
            worst = max((one for one in found if one.exponent == exponent), key=lambda one: one.detectable)
            value = design.assumed.value(exponent)
            lines.append(
                f"{start}, a difference of {exponent} between two structures is found from "
                f"{_two(worst.detectable)} on ({_per_cent(worst.detectable / value)} of {exponent})."
            )
    if any(scattered(design.assumed.law, design.grid.of(name)) for name in design.grid.structures):
        lines.append("But its runs differ in tokens per parameter, which a law in FLOPs alone leaves out.")
    able = any(not isinstance(found, Impossible) for found in design.differences.values())
    if len(design.grid.structures) > 1 and not able:
        lines.append("Structures cannot be compared.")
    return lines


def _alone(design: Design) -> list[str]:
    """Each structure's own fit, those alike together."""
    lines = []
    fits = [fit for fit in design.alone.values() if isinstance(fit, Predicted)]
    if fits:
        who = "each structure" if len(fits) > 1 else fits[0].group
        if len(fits) < len(design.alone):
            who = _listed([fit.group for fit in fits])
        constants = [term.coefficient for term in design.assumed.law.terms if not term.powers]
        known = [_known(name, fits) for name in (*design.assumed.law.exponents, *constants)]
        if all(fit.allocation() is not None for fit in fits):
            worst = max((a for fit in fits if (a := fit.allocation()) is not None), key=lambda a: a[1])
            known.append(f"N* ~ C^a with a = {with_error(*worst)}")
        dof = sorted({fit.dof for fit in fits})
        freedom = f"{dof[0]} to {dof[-1]} degrees" if len(dof) > 1 else f"{dof[0]} degree{'s' * (dof[0] > 1)}"
        lines.append(f"Of {who} by itself, with {freedom} of freedom: {'; '.join(known)}.")
    refused = [fit for fit in design.alone.values() if isinstance(fit, Impossible)]
    for kind in dict.fromkeys(one.kind for one in refused):
        same = [one for one in refused if one.kind == kind]
        alike = f", and likewise for {len(same) - 1} more" if len(same) > 1 else ""
        lines.append(f"Not identified for {same[0].group}: {same[0].reason}{alike}.")
    return lines


def _known(name: str, fits: Sequence[Predicted]) -> str:
    """A parameter with the largest of its errors, and half of that interval."""
    worst = max(fits, key=lambda fit: fit.errors()[name])
    error = worst.errors()[name]
    most = " at worst" if len(fits) > 1 and error > 1.05 * min(fit.errors()[name] for fit in fits) else ""
    value, half = worst.values()[name], worst.t * error
    lost = ", not told from 0" if half >= value else ""
    return f"{name} = {with_error(value, error)}{most} (95 %: ± {_two(half)}{lost})"


def _per_cent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.995 else f"{100 * share:.2g} %"


def _two(value: float) -> str:
    return significant(value)


def _assumptions(designs: Sequence[Design]) -> list[str]:
    lines = []
    for design in designs:
        assumed = design.assumed
        values = ", ".join(f"{name} = {value:.4g}" for name, value in assumed.values.items())
        lines.append(f"{assumed.law.name}: {values}. Source: {assumed.sources[0]}.")
    noises = dict.fromkeys((design.assumed.noise, design.assumed.sources[1]) for design in designs)
    for noise, source in noises:
        of = [
            d.assumed.law.name for d in designs if (d.assumed.noise, d.assumed.sources[1]) == (noise, source)
        ]
        under = f" under {', '.join(of)}" if len(noises) > 1 else ""
        lines.append(f"noise{under}: sd of log loss {noise:.2g}. Source: {source}.")
    return lines


def fit_table(planning: Planning, design: Design) -> Table | None:
    """What each structure's own fit would give; None where none is possible."""
    law, rows = design.assumed.law, fit_rows(design)
    a = ("a",) if _has_a(design) else ()
    header = ("irreducible loss", "structure", "runs", "dof", "t", *law.parameters, *a)
    caption = f"{planning.name}: standard errors that the planned runs give under {law.formula}."
    return Table(header, rows, caption) if rows else None


def difference_table(planning: Planning, design: Design) -> Table | None:
    """What differences of exponents would be found; None where none can be tested."""
    rows = difference_rows(design)
    caption = f"{planning.name}: detectable differences of exponents under {design.assumed.law.formula}."
    return Table(DIFFERENCE_HEADER, rows, caption) if rows else None


def fit_rows(design: Design) -> list[list[str]]:
    """Standard errors of each structure's own fit, and of the joint one where the constant is shared."""
    law, rows = design.assumed.law, []
    floor = any(not term.powers for term in law.terms)
    for name, fit in design.alone.items():
        if isinstance(fit, Predicted):
            rows.append([FLOORS["separate" if floor else "none"], name, *_fit_cells(fit, name, fit.bound.n)])
    if isinstance(design.joint, Predicted):
        groups = design.joint.bound.groups
        for name in dict.fromkeys(groups):
            cells = _fit_cells(design.joint, name, groups.count(name))
            rows.append([FLOORS["shared"], name, *cells, *([""] if _has_a(design) else [])])
    return rows


def _has_a(design: Design) -> bool:
    return any(isinstance(f, Predicted) and f.allocation() is not None for f in design.alone.values())


def _fit_cells(fit: Predicted, group: str, runs: int) -> list[str]:
    values, errors = fit.values(), fit.errors()
    cells = [str(runs), str(fit.dof), f"{fit.t:.2f}"]
    for name in fit.bound.law.parameters:
        label = fit.bound.columns[fit.bound.place(name, group)].label
        value, error = values[label], errors[label]
        cells.append(with_error(value, error))
    found = fit.allocation() if fit.group != ALL else None
    return [*cells, with_error(*found)] if found is not None else cells


def difference_rows(design: Design) -> list[list[str]]:
    """What differences of exponents can be found, as rows under `DIFFERENCE_HEADER`."""
    rows = []
    for hypothesis, found in design.differences.items():
        if isinstance(found, Impossible):
            continue
        for exponent in dict.fromkeys(one.exponent for one in found):
            for one in _shown([one for one in found if one.exponent == exponent], design.grid.structures[0]):
                error = _two(one.standard_error)
                pair = " - ".join(one.pair)
                cells = [exponent, pair, error, str(one.dof), _two(one.detectable)]
                rows.append([FLOORS[hypothesis], *cells])
    return rows


def _shown(found: Sequence[Difference], first: str) -> list[Difference]:
    if len(found) <= MOST_PAIRS:
        return list(found)
    worst = max(found, key=lambda one: one.detectable)
    return [one for one in found if first in one.pair or one is worst]


def _additions(planning: Planning) -> list[str]:
    parts, shown = [], planning.additions.values()
    for name, found in planning.additions.items():
        parts.append(f"{name}: {addition_sentence(found)}" if len(planning.designs) > 1 else _first(found))
        if isinstance(found, Additions) and found.picks:
            parts.append(addition_table(planning, name, found).markdown())
    return [*parts, LATTICE] if any(isinstance(one, Additions) and one.picks for one in shown) else parts


def addition_table(planning: Planning, law: str, found: Additions) -> Table:
    """The runs to add."""
    caption = f"{planning.name}: cheapest runs to add, under the law {law}."
    return Table(ADDITION_HEADER, addition_rows(found.picks), caption)


def _first(found: Additions | Impossible) -> str:
    text = addition_sentence(found)
    return text[0].upper() + text[1:]


def addition_sentence(found: Additions | Impossible) -> str:
    """What the runs to add come to, or why there are none."""
    if isinstance(found, Impossible):
        return f"no runs to advise: {found.reason}."
    goal = _goal(found.goal)
    if found.reached and not found.picks:
        return f"{goal} is reached by the planned runs themselves: {_two(found.before or 0.0)}."
    before = "the planned runs do not identify it"
    if found.before is not None:
        before = f"the planned runs give {_two(found.before)}"
    after = "no number" if found.after is None else _two(found.after)
    count = f"{len(found.picks)} run{'s' if len(found.picks) != 1 else ''}"
    spent = f"{quantity(found.spent)} FLOPs, {_per_cent(found.spent / found.planned)} of the planned runs'"
    if not found.reached:
        return (
            f"{goal} cannot be reached with at most {found.limit} more runs on the grid's lattice: {before}, "
            f"and with the {count} that help most ({spent}) it is {after}. "
            "Allow more runs (--max-runs), plan a wider range of sizes, or lower the noise."
        )
    caution = f" The fit will be refused all the same: {found.caution}." if found.caution else ""
    return f"{goal} is reached with {count} more ({spent}): {before}, with these it is {after}.{caution}"


def _goal(goal: Goal) -> str:
    if goal.detect:
        return f"a detectable difference of {goal.exponent} of {goal.size:g}"
    of = "" if goal.group == ALL else f" of {goal.group}"
    return f"a standard error of {goal.exponent}{of} of {goal.size:g}"


def addition_rows(picks: Sequence[Candidate]) -> list[list[str]]:
    """Runs to add, as rows under `ADDITION_HEADER`."""
    counted = Counter(
        (one.group, one.kind, quantity(one.params), quantity(one.tokens), quantity(one.train_flops))
        for one in picks
    )
    return [[*cells, str(count)] for cells, count in counted.items()]
