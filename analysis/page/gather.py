"""From tracked tables to the content of a report: verdict, figures, diagnostics, card, provenance."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from analysis.analyse import Analysis
from analysis.arms import dynamics_tables, gaps_report
from analysis.arms.dynamics import conclusions
from analysis.card import UNKNOWN, methods_card
from analysis.diagnose import default_law, diagnose
from analysis.errors import AnalysisError
from analysis.findings import CATALOGUE
from analysis.fit import Refusal
from analysis.lawfits import LawFits
from analysis.lawfits import fit_table as fitted
from analysis.page.answer import answer, hypotheses
from analysis.page.content import Page, PageFigure, PageFinding, PageTable
from analysis.page.parts import Record, as_page_table, cost_table, losses, run_table
from analysis.page.settle import settle
from analysis.products.catalogue import catalogue, of_table
from analysis.products.draw import unexpected
from analysis.products.manifest import PACKAGES, key, sha256
from analysis.products.product import Product
from analysis.products.sweeps import CURVES, TRACES, gaps_worth_drawing
from analysis.products.tracked import Tracked
from analysis.report import fit_table
from analysis.runs.labels import FAMILIES
from trainer.provenance import code_version

Watch = Callable[[int], None]


def page_products(tracked: Tracked, name: str) -> list[Product]:
    """The figures and tables that a runs table feeds, in the order of a report."""
    return of_table(catalogue(tracked), tracked, name)


def gather(
    tracked: Tracked, name: str, record: Record, report: Path, watch: Watch = lambda done: None
) -> tuple[Page, list[str]]:
    """Gather what a report of one runs table holds.

    Args:
        tracked: the tables.
        name: of the runs table.
        record: what is known of the sweep beside its table.
        report: the file it is for, from which links to run folders are relative.
        watch: told the number of products drawn so far.

    Returns the page, and a line for each figure that could not be drawn.

    Raises:
        AnalysisError: no finished run.
    """
    analysis = tracked.analysis(name)
    runs, comparison = analysis.runs, analysis.comparison
    short = answer(comparison, _baseline(analysis))
    products = page_products(tracked, name)
    figures, problems = _figures(products, watch)
    tables, said = _tables(tracked, analysis)
    findings = _findings(analysis)
    page = Page(
        name=name,
        description=record.description,
        answer=short.kind,
        headline=short.headline,
        # Of runs that allow no test, the first sentence says so; the next would list every one of them.
        verdict=(*_sentences(comparison.verdict)[: 1 if short.kind == "none" else None], *said),
        hypotheses=hypotheses(comparison),
        coverage=runs.coverage(shown=0).split(";")[0],
        losses=losses(runs, problems),
        settle=settle(short.kind, comparison, runs),
        cost=cost_table(runs),
        figures=figures,
        runs=run_table(runs, record, report),
        tables=tables,
        findings=findings,
        looked_for=_looked_for(findings),
        card=_card(analysis),
        provenance=_provenance(tracked, products, name, record.command),
    )
    return page, problems


def _baseline(analysis: Analysis) -> str:
    """The structure that others are held against: dense where it is there."""
    return next((name for name in analysis.structures if name == FAMILIES[0]), analysis.structures[0])


def _figures(products: Sequence[Product], watch: Watch) -> tuple[tuple[PageFigure, ...], list[str]]:
    figures, problems = [], []
    for i, product in enumerate(products):
        try:
            figure = product.make().figure
        except AnalysisError as error:
            # The page still comes out, and says which figure is missing and why.
            problems.append(f"{product.name}: {error}")
            figure = None
        except Exception as error:
            problems.append(f"{product.name}: {unexpected(error)}")
            figure = None
        if figure is not None:
            figures.append(PageFigure(product.name, product.shows, figure))
        watch(i + 1)
    return tuple(figures), problems


def _sentences(verdict: str) -> list[str]:
    """The verdict, a sentence each; numbers and abbreviations in it hold no `. ` before a capital letter."""
    parts = verdict.replace(". ", ".\n").split("\n")
    return [part for part in parts if part]


def _tables(tracked: Tracked, analysis: Analysis) -> tuple[tuple[PageTable, ...], list[str]]:
    """Further tables, and what they add to the verdict in words."""
    name = analysis.name
    tables = [as_page_table("Exponents of each structure", fit_table(analysis))]
    said = []
    gaps = gaps_worth_drawing(analysis.runs, name)
    if gaps is not None:
        gap = gaps_report.gap_table(gaps)
        tables.append(as_page_table("Gaps to the dense runs of the same size", gap, sortable=True))
        if gaps.contrasts:
            tables.append(
                as_page_table("Within a structure", gaps_report.contrast_table(gaps), sortable=True)
            )
    traces, curves = tracked.table(f"{name}{TRACES}"), tracked.table(f"{name}{CURVES}")
    if traces is not None and curves is not None:
        moves = dynamics_tables.read_dynamics(traces, curves, name, analysis.runs.coverage())
        tables.append(as_page_table("Loss spikes by learning rate", dynamics_tables.arm_table(moves)))
        said += conclusions(moves) if any(len(moves.arms(s)) > 1 for s in moves.structures) else []
    return tuple(tables), said


def _findings(analysis: Analysis) -> tuple[PageFinding, ...]:
    """The diagnostics, each once with the structures that it is about."""
    groups: dict[tuple[str, str], list[str]] = {}
    law = default_law(analysis.runs)
    for one in diagnose(analysis.runs, analysis.name, law):
        for finding in one.findings:
            groups.setdefault((finding.code, finding.sentence), []).append(one.group)
        if one.refused:
            groups.setdefault(("", f"{law.formula} is not fitted: {one.refused}"), []).append(one.group)
    found = []
    for (code, sentence), names in sorted(groups.items()):
        title, remedy = CATALOGUE.get(code, ("no fit", "a law with fewer parameters, or more runs"))
        found.append(PageFinding(code, title, sentence, remedy, tuple(names)))
    return tuple(found)


def _card(analysis: Analysis) -> Mapping[str, str]:
    """The methods card, `section: entry` -> text; empty where the table does not record it."""
    law = default_law(analysis.runs)
    try:
        fits = fitted(analysis.runs, analysis.name, law, grouped=True)
    except AnalysisError as error:
        # No structure has runs enough for a fit; what is known of the runs is told all the same.
        refusal = Refusal(law.name, "all structures", len(analysis.runs.table), str(error))
        fits = LawFits(analysis.name, law, analysis.runs, (refusal,), (None,), True)
    return {
        f"{section}: {entry}": "" if text == UNKNOWN else text
        for section, entries in methods_card(fits).items()
        for entry, text in entries.items()
    }


def _looked_for(findings: Sequence[PageFinding]) -> str:
    seen = {finding.code for finding in findings}
    rest = [f"{code} ({title})" for code, (title, _) in CATALOGUE.items() if code not in seen]
    return (
        f"Looked for as far as the table records what it takes, and not found: {', '.join(rest)}. What a "
        "table does not record cannot be found: see what the methods card leaves open."
    )


def _provenance(tracked: Tracked, products: Sequence[Product], name: str, command: str) -> Mapping[str, str]:
    code = code_version()
    changed = f", with uncommitted changes ({code['git_diff']})" if code["git_diff"] else ""
    inputs = {path for product in products for path in product.inputs} | {tracked.path(name)}
    named = sorted((key(path, tracked.root), sha256(path)) for path in inputs)
    return {
        "command": command or f"python -m analysis report {name}",
        "program": f"git {code['git_sha']}{changed}"
        if code["git_sha"]
        else f"source {code['source_sha256']}",
        "versions": ", ".join(
            [f"python {platform.python_version()}", *(f"{p} {metadata.version(p)}" for p in PACKAGES)]
        ),
        **{f"table {file}": f"SHA-256 {digest}" for file, digest in named},
    }
