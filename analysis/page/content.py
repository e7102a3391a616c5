"""What stands in a report, before it is HTML: every part as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    sort: what the column is sorted by in place of the text: a number, or letters in the order of their codes;
        None after all others.  A column without any is sorted by its texts, the numbers in them as numbers.
    link: where it leads, `#run-3a23b02d4bc6` or a path relative to the file; empty for nowhere.
    anchor: its row's name in the page, so that `#name` leads there; empty for none.
    state: `done`, `failed`, `diverged`, `missing`, `corrupted` where it names the state of a run; else empty.
    """

    text: str
    sort: float | str | None = None
    link: str = ""
    anchor: str = ""
    state: str = ""


@dataclass(frozen=True)
class PageTable:
    """A table; `sortable` where readers may order it by any column; notes stand under it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    sortable: bool = False


@dataclass(frozen=True)
class PageFigure:
    """A figure: its name, what is to be seen in it, and the drawing, whose points carry hover texts."""

    name: str
    shows: str
    figure: Figure


@dataclass(frozen=True)
class Settle:
    """What it would take to settle the question.

    words: sentences, first the shortest answer.
    options: a table of ways to spend more (runs, FLOPs, hours, difference found then); None where none helps.
    """

    words: tuple[str, ...]
    options: PageTable | None = None


@dataclass(frozen=True)
class PageFinding:
    """One diagnostic: code such as SL007, its name, what was found, the remedy, the curves concerned."""

    code: str
    name: str
    text: str
    remedy: str
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """A report.

    name, description: of the sweep.
    answer: `yes` (steeper under every hypothesis that can be tested), `no` (dense is), `mixed` (it hangs on
        the hypothesis), `open` (not shown) or `none` (nothing can be said).
    headline: the answer in one sentence.
    verdict: the sentences of the test, one each hypothesis, with statistics.
    hypotheses: the tests as a table; None without any.
    losses: a sentence on each state of runs that are no data points (failed, missing ...); empty if all are.
    coverage: `12 of 12 runs`.
    settle, cost, figures, runs: as named; cost is of what was spent.
    tables: further tables (fits, gaps, dynamics).
    findings: diagnostics; `looked_for` says what else was looked for and not found, or could not be.
    card: methods card, question -> answer; an empty answer is shown as not recorded.
    provenance: label -> value (git sha, versions, command, inputs with hashes).
    """

    name: str
    description: str
    answer: str
    headline: str
    verdict: tuple[str, ...]
    hypotheses: PageTable | None
    coverage: str
    losses: tuple[str, ...]
    settle: Settle
    cost: PageTable
    figures: tuple[PageFigure, ...]
    runs: PageTable
    tables: tuple[PageTable, ...]
    findings: tuple[PageFinding, ...]
    looked_for: str
    card: Mapping[str, str]
    provenance: Mapping[str, str]
