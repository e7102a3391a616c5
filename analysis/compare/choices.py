"""Whether the answer hangs on a choice: the tests without the smallest size, by other FLOPs, over time."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analysis.analyse import compared, known_floor, over_seconds
from analysis.compare.slopes import SlopeTest
from analysis.compare.verdict import Comparison, compare_slopes
from analysis.design.promised import same_run
from analysis.digits import p_cell, with_error
from analysis.report import plain
from analysis.runs.labels import family_and_budget
from analysis.runs.table import Runs, structures_of, use_flops
from analysis.tables import Table, latex_file

CONVENTIONS = {
    "causal": "FLOPs of causal attention",
    "6N": "FLOPs as 6 N D",
    "6N_non_embedding": "6 N D without embeddings",
}
VIEWS = {"none": "no E", "given": "E given", "shared": "one E", "separate": "E each"}
NOTE = (
    "p of equal slopes by F tests of nested least-squares fits of log loss, under each view of the "
    "irreducible loss, and slopes without it; in brackets that of a wild bootstrap, which lets noise be "
    "unequal, where it decides otherwise. The first line is the analysis; the others say what hangs on a "
    "choice, and are not further chances to reject."
)


@dataclass(frozen=True)
class Choice:
    """One way to look at the runs: its name, how many runs there are then, and the tests."""

    name: str
    runs: int
    comparison: Comparison

    def test(self, view: str) -> SlopeTest | None:
        """The test under a view of the irreducible loss, where the runs allow it."""
        done = (test for test in self.comparison.tests if isinstance(test, SlopeTest))
        return next((test for test in done if test.hypothesis == view), None)


def choices(runs: Runs, planned: pd.DataFrame | None = None) -> list[Choice]:
    """The tests of a table under every choice that it allows, all runs first.

    Args:
        runs: the table, with training FLOPs.
        planned: a row a run that was planned before any had finished; None where that is not known.
    """
    found = [_choice("all runs", runs)]
    table = runs.table
    if planned is not None:
        wanted = {same_run(row) for row in planned.to_dict("records")}
        first = table[[same_run(row) in wanted for row in table.to_dict("records")]]
        if 0 < len(first) < len(table):
            found.append(_choice("the runs first planned", replace(runs, table=first)))
    families: dict[str, set[str]] = defaultdict(set)
    for structure in structures_of(table):
        families[family_and_budget(structure)[0]].add(structure)
    for family, members in families.items():
        # One structure of a family is compared in the table of slopes already.
        if family != "dense" and len(members) > 1 and {"dense"} | members < set(structures_of(table)):
            chosen = table["structure"].isin(["dense", *members])
            found.append(_choice(f"dense and {family} only", replace(runs, table=table[chosen])))
    if "size" in table and table["size"].nunique() > 3:
        smallest = table.groupby("size")["train_flops"].min().idxmin()
        found.append(_choice(f"without {smallest}", replace(runs, table=table[table["size"] != smallest])))
    for convention, words in CONVENTIONS.items():
        column = f"flops_{convention}"
        if column in table and not bool(table[column].isna().any()):
            found.append(_choice(words, use_flops(runs, convention)))
    timed = over_seconds(runs)
    if timed is not None:
        found.append(_choice("wall seconds", timed))
    return found


def _choice(name: str, runs: Runs) -> Choice:
    curves, _, _ = compared(runs)
    return Choice(name, len(runs.table), compare_slopes(curves, irreducible=known_floor(runs.table, None)))


def choices_table(found: Sequence[Choice], name: str, structures: Sequence[str]) -> Table:
    """One row a choice: p under each view, and the slopes without an irreducible loss."""
    views = [view for view in VIEWS if any(choice.test(view) for choice in found)]
    header = ("choice", "runs", *(f"p, {VIEWS[view]}" for view in views), *structures)
    rows = []
    for choice in found:
        tests = [choice.test(view) for view in views]
        plain_test = choice.test("none")
        slopes = [
            with_error(plain_test.exponents[s], plain_test.standard_errors[s])
            if plain_test is not None and s in plain_test.exponents
            else "-"
            for s in structures
        ]
        p = ["-" if test is None else _p(test) for test in tests]
        rows.append([choice.name, str(choice.runs), *p, *slopes])
    return Table(header, rows, f"{name}: equality of slopes under other choices.", (NOTE,))


def _p(test: SlopeTest) -> str:
    """P of F, and of the wild bootstrap where it decides otherwise."""
    words = p_cell(test.p_value)
    return f"{words} ({p_cell(test.test.wild_p)})" if test.doubt else words


def choices_texts(found: Sequence[Choice], runs: Runs, name: str) -> dict[str, str]:
    """NAME_choices as Markdown, LaTeX and JSON, by file name."""
    table = choices_table(found, name, structures_of(runs.table))
    stem = f"{name}_choices"
    parts = [f"# {name}: what hangs on a choice", f"Data: {runs.coverage()}.", table.markdown()]
    body: dict[str, Any] = {
        "name": name,
        "choices": [{"name": c.name, "runs": c.runs, **c.comparison.to_dict()} for c in found],
    }
    return {
        f"{stem}.md": "\n\n".join(parts) + "\n",
        f"{stem}.tex": latex_file([(f"tab:{name}-choices", table)]),
        f"{stem}.json": json.dumps(plain(body), indent=1, allow_nan=False) + "\n",
    }
