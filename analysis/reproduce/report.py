"""The rows as a report: tables in Markdown and LaTeX, JSON, a summary with the reason of every difference."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from analysis.report import plain
from analysis.reproduce.rows import DIFFERS, LOWER, NEVER_LEFT, REPRODUCED, VERDICTS, Row
from analysis.reproduce.studies import SOURCES
from analysis.tables import Table, latex_file

HEADER = ("quantity", "published", "ours", "difference", "verdict", "note")
MEANING = {
    REPRODUCED: "equal within the digits that were printed, or within what an optimiser leaves open",
    LOWER: "ours is below the published minimum of the same objective on the same points, hence theirs had "
    "not converged",
    NEVER_LEFT: "the published parameters are a point from which the authors' optimiser started",
    DIFFERS: "not reproduced; the note says why",
}


def markdown(found: Mapping[str, Sequence[Row]]) -> str:
    """The whole report: study -> rows."""
    lines = ["# Published studies, fitted again", ""]
    lines += [f"- {verdict}: {MEANING[verdict]}" for verdict in VERDICTS]
    lines += ["", *summary(found)]
    for study, rows in found.items():
        lines += ["", f"## {study}", "", SOURCES[study], "", study_table(study, rows).markdown(padded=False)]
    return "\n".join(lines) + "\n"


def study_table(study: str, rows: Sequence[Row]) -> Table:
    """One study, a row each number."""
    return Table(HEADER, [cells(row) for row in rows], SOURCES[study])


def latex(found: Mapping[str, Sequence[Row]]) -> str:
    r"""The tables of all studies as one file to \input, with what each verdict means beneath."""
    tables = []
    for study, rows in found.items():
        counts, *rest = summary({study: rows})
        verdicts = [verdict for verdict in VERDICTS if any(row.verdict == verdict for row in rows)]
        meanings = "; ".join(f"{verdict}: {MEANING[verdict]}" for verdict in verdicts)
        notes = (" ".join([counts, *(line.removeprefix("- ") for line in rest if line)]), f"{meanings}.")
        tables.append((f"tab:reproduce-{study}", replace(study_table(study, rows), notes=notes)))
    return latex_file(tables)


def cells(row: Row) -> tuple[str, ...]:
    """A row as texts under HEADER; numbers have one digit more than their tolerance."""
    places = max(0, math.ceil(-math.log10(row.tolerance)) + 1) if row.tolerance else 0
    difference = row.ours - row.published
    # Rounding errors differ between machines, and this table must not.
    shown = "0" if abs(difference) < 0.5 * 10.0**-places else f"{difference:+.1e}"
    printed = f"{row.published:.{places}f}"
    published = printed.rstrip("0").rstrip(".") if "." in printed else printed
    return (row.quantity, published, f"{row.ours:.{places}f}", shown, row.verdict, row.note)


def summary(found: Mapping[str, Sequence[Row]]) -> list[str]:
    """How many rows have each verdict, and why those differ that do."""
    rows = [row for study in found.values() for row in study]
    count = Counter(row.verdict for row in rows)
    counts = ", ".join(f"{count[verdict]} {verdict}" for verdict in VERDICTS if count[verdict])
    lines = [f"{len(rows)} numbers: {counts}."]
    reasons = Counter(
        (row.study, row.note.split("; ")[-1]) for row in rows if row.verdict == DIFFERS and row.holds
    )
    if reasons:
        lines += ["", "They differ where that was to be expected:", ""]
        lines += [f"- {study}, {n}: {reason}" for (study, reason), n in reasons.items()]
    if failed := [row for row in rows if not row.holds]:
        lines += ["", "**They differ, and should not:**", ""]
        lines += [f"- {row.study}, {row.quantity}: {row.published!r}, ours {row.ours!r}" for row in failed]
    return lines


def to_json(found: Mapping[str, Sequence[Row]]) -> str:
    """All rows at full precision."""
    rows = [asdict(row) | {"holds": row.holds} for study in found.values() for row in study]
    return json.dumps(plain({"rows": rows}), indent=1) + "\n"
