"""The Markdown, LaTeX and JSON of a comparison of structures: models, tests, multipliers, gaps, verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.compare.multipliers import Multiplier, Multipliers, multipliers
from analysis.compare.nested import JointFit, NestedTest, nested_test
from analysis.compare.slopes import Groups, NoTest, SlopeTest, joint, usable
from analysis.compare.surfaces import SurfaceComparison, Surfaces, compare_surfaces
from analysis.compare.verdict import Comparison, compare_slopes
from analysis.digits import estimate, number, p_cell, quantity, with_error
from analysis.engine.sums import SumLaw
from analysis.errors import AnalysisError
from analysis.isoflop.budgets import mixed_ratios
from analysis.laws import CHINCHILLA, IRREDUCIBLE, POWER
from analysis.report import plain
from analysis.runs.table import Runs
from analysis.tables import Table, latex_file

LADDER: tuple[tuple[str, SumLaw, tuple[str, ...]], ...] = (
    ("one line for all, no E", POWER, ()),
    ("parallel lines, no E", POWER, ("k",)),
    ("own slopes, no E", POWER, ("k", "alpha")),
    ("one curve for all", IRREDUCIBLE, ()),
    ("shared E and exponent", IRREDUCIBLE, ("k",)),
    ("own exponents, shared E", IRREDUCIBLE, ("k", "alpha")),
    ("own E, shared exponent", IRREDUCIBLE, ("E", "k")),
    ("all separate", IRREDUCIBLE, ("E", "k", "alpha")),
)
"""Joint fits from the one with fewest parameters on: name, law, what each structure has of its own."""
STEPS = {(0, 1): "", (1, 2): "none", (3, 4): "", (4, 5): "shared", (6, 7): "separate", (5, 7): ""}
"""Which are tested against which, (smaller, larger), and the slope test that this is, if it is one."""
PARTS = 1 + len(STEPS)
"""Of the work, for its progress."""
MODEL_HEADER = ("model", "parameters", "sum of squares", "AICc", "note")
STEP_HEADER = (
    "smaller model", "larger model", "F", "p (F)", "p (likelihood ratio)", "p (permutation)",
    "p (unequal noise)",
)  # fmt: skip
SLOPE_HEADER = ("irreducible loss", "structure", "exponent", "E")
TESTED = (
    "Least squares on log loss. F is exact where there is no E; the likelihood-ratio p is too small with few "
    "runs; permutations exchange the residuals of the smaller model. Unequal noise: a wild bootstrap, which "
    "lets the noise of every run be of its own size, as the other tests do not."
)
RATIO_HEADER = ("structure", "against", "loss (nats/token)", "multiplier", "95 % interval")
EFFECTIVE_HEADER = ("structure", "against", "of", "multiplier", "95 % interval")
UNITS = {"train_flops": "FLOPs", "tokens": "tokens", "seconds": "wall seconds"}
RESOURCES = {"train_flops": "compute", "tokens": "token", "seconds": "time"}
"""What a multiplier is of, by the column that it is over."""
GAP_HEADER = ("structure", "against", "at", "loss difference", "95 % interval")


@dataclass(frozen=True)
class Report:
    """All that `compare` says of a table."""

    name: str
    runs: Runs
    comparison: Comparison
    models: tuple[tuple[str, JointFit | None], ...]
    steps: tuple[tuple[str, str, NestedTest | None], ...]
    savings: tuple[Multipliers, ...]
    baseline: str
    surfaces: SurfaceComparison | None


def compare_report(
    runs: Runs,
    name: str,
    groups: Groups,
    surfaces: Surfaces | None,
    seconds: Groups | None,
    design: str,
    baseline: str | None,
    irreducible: float | None,
    permutations: int,
    watch: Callable[[int], None] = lambda done: None,
) -> Report:
    """Compare structures by nested fits, multipliers and gaps.

    Args:
        runs: the table.
        name: what the report calls it.
        groups: structure -> (training FLOPs, losses).
        surfaces: structure -> (params, tokens, losses), or None where the table has them not for every run.
        seconds: structure -> (wall seconds of training, losses), or None likewise.
        design: in words, such as `4 sizes x 1 seed`.
        baseline: structure to hold the others against; the first without.
        irreducible: a known E in nats per token, or None.
        permutations: samples of the permutation tests.
        watch: told how many of `PARTS` are done.

    Raises:
        AnalysisError: fewer than two structures with enough runs, or a baseline that is none of them.
    """
    enough = usable(groups)
    if len(enough) < 2:
        short = [f"{structure} {len(loss)} runs" for structure, (_, loss) in groups.items()]
        raise AnalysisError(
            f"{name}: {len(enough)} structure with 3 different budgets ({', '.join(short[:6])}): nothing to "
            "compare; give a table of two structures or more, or --group COLUMN"
        )
    reference = baseline if baseline is not None else next(iter(enough))
    if reference not in enough:
        raise AnalysisError(f"--baseline {reference}: use one of {', '.join(enough)}")
    comparison = compare_slopes(groups, design, irreducible, permutations)
    done = {test.hypothesis: test.test for test in comparison.tests if isinstance(test, SlopeTest)}
    models = tuple((title, _model(law, enough, free)) for title, law, free in LADDER)
    watch(1)
    steps = []
    for (i, j), name_of_test in STEPS.items():
        (small, null), (large, full) = models[i], models[j]
        steps.append((small, large, done.get(name_of_test) or _step(null, full, permutations)))
        watch(1 + len(steps))
    savings = [multipliers(enough, law, "train_flops", reference) for law in (POWER, IRREDUCIBLE)]
    if seconds is not None:
        timed = {structure: seconds[structure] for structure in enough}
        savings += [multipliers(timed, law, "seconds", reference) for law in (POWER, IRREDUCIBLE)]
    planes = None
    if surfaces is not None:
        known = {structure: surfaces[structure] for structure in enough}
        lines = {structure: (d, loss) for structure, (_, d, loss) in known.items()}
        savings += [multipliers(lines, law, "tokens", reference) for law in (POWER, IRREDUCIBLE)]
        planes = compare_surfaces(CHINCHILLA, known, reference, permutations)
    return Report(name, runs, comparison, models, tuple(steps), tuple(savings), reference, planes)


def _model(law: SumLaw, groups: Groups, free: tuple[str, ...]) -> JointFit | None:
    n = sum(len(loss) for _, loss in groups.values())
    parameters = sum(len(groups) if name in free else 1 for name in law.parameters)
    return joint(law, groups, free) if n >= parameters else None


def _step(small: JointFit | None, large: JointFit | None, permutations: int) -> NestedTest | None:
    return None if small is None or large is None else nested_test(small, large, permutations)


def model_rows(models: Sequence[tuple[str, JointFit | None]]) -> list[list[str]]:
    """One row a joint fit; the lowest AICc is marked."""
    scores = [fit.aicc for _, fit in models if fit is not None and fit.aicc is not None]
    rows = []
    for title, fit in models:
        if fit is None:
            rows.append([title, "-", "-", "-", "more parameters than runs"])
            continue
        best = fit.aicc is not None and fit.aicc == min(scores)
        notes = ["lowest AICc"] if best else []
        if fit.at_bound:
            notes.append(f"{', '.join(fit.optimum.vanished)} at the bound 0")
        score = "-" if fit.aicc is None else f"{fit.aicc:.1f}"
        rows.append([title, str(fit.parameters), f"{fit.squares:.4g}", score, "; ".join(notes)])
    return rows


def step_rows(steps: Sequence[tuple[str, str, NestedTest | None]]) -> list[list[str]]:
    """One row a test between two of them."""
    rows = []
    for small, large, test in steps:
        if test is None:
            rows.append([small, large, *["-"] * 5])
            continue
        sampled = [p_cell(p) for p in (test.permutation_p, test.wild_p)]
        statistic = f"F({test.constraints}, {test.dof}) = {test.statistic:.2f}"
        rows.append([small, large, statistic, p_cell(test.f_p), p_cell(test.likelihood_ratio_p), *sampled])
    return rows


def slope_rows(tests: Sequence[SlopeTest | NoTest]) -> list[list[str]]:
    """The exponents under each view of the irreducible loss."""
    rows = []
    for test in tests:
        if isinstance(test, NoTest):
            rows.append([test.hypothesis, f"no test: {test.reason}", "-", "-"])
            continue
        for i, structure in enumerate(test.exponents):
            error = test.irreducible_se.get(structure, test.irreducible_se.get(""))
            rows.append(
                [
                    test.hypothesis if i == 0 else "",
                    structure,
                    test.words(structure),
                    with_error(test.floor(structure), error, 3),
                ]
            )
    return rows


def ratio_rows(found: Multipliers) -> list[list[str]]:
    """Multipliers over the losses that both reach."""
    return [[m.structure, m.baseline, f"{m.at:.4g}", *_value(m)] for m in found.ratios]


def gap_rows(found: Multipliers) -> list[list[str]]:
    """Loss differences where both have spent the same."""
    return [[m.structure, m.baseline, quantity(m.at), *_value(m)] for m in found.gaps]


def _value(found: Multiplier) -> list[str]:
    width = found.high - found.low
    if not np.isfinite(width) or width <= 0:
        return [number(found.value), "unbounded"]
    return list(estimate(found.value, found.low, found.high))


def slope_table(report: Report) -> Table:
    """The exponents of each structure."""
    caption = f"{report.name}: exponents of loss in training FLOPs under each view of the irreducible loss."
    return Table(SLOPE_HEADER, slope_rows(report.comparison.tests), caption)


def model_table(report: Report) -> Table:
    """The joint fits in FLOPs."""
    caption = f"{report.name}: joint fits of all structures in training FLOPs."
    return Table(MODEL_HEADER, model_rows(report.models), caption)


def step_table(report: Report) -> Table:
    """The tests between nested joint fits."""
    return Table(STEP_HEADER, step_rows(report.steps), f"{report.name}: nested fits compared.", (TESTED,))


def savings_tables(report: Report, found: Multipliers) -> list[Table]:
    """Multipliers and gaps in one variable under one law, those that there are."""
    unit = UNITS[found.variable]
    tables = []
    if found.ratios:
        note = (
            f"How many times the {unit} of the structure {report.baseline} needs for the same loss; "
            "above 1 the structure saves. Inside the losses that both reach."
        )
        caption = f"{report.name}: {_multiplied(found)}."
        tables.append(Table(RATIO_HEADER, ratio_rows(found), caption, (note,)))
    if found.gaps:
        note = f"Loss of the structure less that of {report.baseline} at equal {unit}, nats per token."
        caption = f"{report.name}: gaps of loss at equal {unit} under {found.law}."
        tables.append(Table(GAP_HEADER, gap_rows(found), caption, (note,)))
    return tables


def _multiplied(found: Multipliers) -> str:
    return f"{RESOURCES[found.variable]} multipliers under {found.law}"


def _note(found: Multipliers) -> str:
    return f"{found.note[0].upper()}{found.note[1:]}." if found.note else ""


def surface_tables(report: Report, found: SurfaceComparison) -> list[Table]:
    """Joint fits in N and D, the tests between them, and multipliers of parameters and tokens."""
    if not found.models:
        return []
    rows = [
        [multiplier.structure, multiplier.baseline, what, *_value(multiplier)]
        for what, several in found.effective.items()
        for multiplier in several
    ]
    law = CHINCHILLA.formula
    tables = [
        Table(MODEL_HEADER, model_rows(found.models), f"{report.name}: joint fits of {law}."),
        Table(STEP_HEADER, step_rows(found.steps), f"{report.name}: nested fits of {law} compared."),
    ]
    if rows:
        note = (
            "Under shared E and exponents: how many times the parameters, and the tokens, of the structure "
            f"{report.baseline} needs for the same term of the loss."
        )
        caption = f"{report.name}: effective parameters and tokens under {law}."
        tables.append(Table(EFFECTIVE_HEADER, rows, caption, (note,)))
    return tables


def latex(report: Report) -> str:
    r"""All tables of the report as one file to \input; verdicts and refusals stand in their notes."""
    data = f"Data: {report.runs.coverage()}.{_ratios(report.runs)}"
    first = replace(slope_table(report), notes=(report.comparison.verdict, data))
    refused = tuple(f"No {_multiplied(one)}: {one.note}." for one in report.savings if one.note)
    models = model_table(report)
    tables = [("slopes", first), ("models", replace(models, notes=refused)), ("steps", step_table(report))]
    for i, found in enumerate(report.savings, 1):
        tables += [(f"multipliers-{i}-{j}", t) for j, t in enumerate(savings_tables(report, found), 1)]
    if report.surfaces is not None:
        for i, table in enumerate(surface_tables(report, report.surfaces), 1):
            notes = (report.surfaces.verdict, *table.notes) if i == 1 else table.notes
            tables.append((f"surfaces-{i}", replace(table, notes=notes)))
    return latex_file((f"tab:{report.name}-{label}", table) for label, table in tables)


def markdown(report: Report) -> str:
    """The whole report."""
    parts = [
        f"# {report.name}: do the structures scale differently?",
        f"**Verdict.** {report.comparison.verdict}",
        f"Data: {report.runs.coverage()}.{_ratios(report.runs)}",
        "## Exponents",
        slope_table(report).markdown(),
        "## Nested fits",
        model_table(report).markdown(),
        step_table(report).markdown(),
    ]
    for found in report.savings:
        title = _multiplied(found)
        parts.append(f"## {title[0].upper()}{title[1:]}")
        parts += [table.markdown() for table in savings_tables(report, found)]
        if found.note:
            parts.append(_note(found))
    if report.surfaces is not None:
        parts += [f"## Nested fits of {CHINCHILLA.formula}", report.surfaces.verdict]
        parts += [table.markdown() for table in surface_tables(report, report.surfaces)]
    return "\n\n".join(parts) + "\n"


def _ratios(runs: Runs) -> str:
    """A sentence where structures have runs of several ratios, which tests in FLOPs take for noise."""
    for structure, rows in runs.table.groupby("structure", sort=False):
        if rows[["params", "tokens"]].isna().any(axis=None):
            continue
        mixed = mixed_ratios(rows["params"].to_numpy(np.float64), rows["tokens"].to_numpy(np.float64))
        if mixed is not None:
            return f" {mixed.code} {structure}: {mixed.sentence}; the fits in N and D below do not."
    return ""


def to_json(report: Report) -> str:
    """The whole report as JSON, float64 at full precision."""
    body = {
        "name": report.name,
        "baseline": report.baseline,
        **report.comparison.to_dict(),
        "models": {title: None if fit is None else fit.to_dict() for title, fit in report.models},
        "steps": [
            {"smaller": small, "larger": large, "test": None if test is None else test.to_dict()}
            for small, large, test in report.steps
        ],
        "multipliers": [found.to_dict() for found in report.savings],
        "surfaces": None if report.surfaces is None else report.surfaces.to_dict(),
    }
    return json.dumps(plain(body), indent=1, allow_nan=False) + "\n"
