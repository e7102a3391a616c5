"""Documents that quote tracked tables: the quoted parts are written anew from the tables, the prose is kept.

<!-- tables/lowrank.md: table 1 -->            the first table of that file
<!-- tables/lowrank.md: Runs, table 1 -->      the first table under the heading that begins so
<!-- tables/lowrank.md: **Verdict.** -->       the paragraph that begins so
...                                            what was quoted before, replaced
<!-- end -->
"""

from __future__ import annotations

import re
from pathlib import Path

from analysis.errors import AnalysisError

END = "<!-- end -->"
_BEGIN = re.compile(r"<!-- (?P<file>[\w./=-]+\.md): (?P<part>.+) -->")
_NEARLY = re.compile(r"<!-- [\w./=-]+\.(md|csv|tex|json)\b")
_TABLE = re.compile(r"(?:(?P<heading>.+), )?table (?P<number>[1-9]\d*)")


def refreshed(text: str, root: Path, source: str) -> str:
    """The document with every quoted part as the tables have it now.

    Args:
        text: of the document.
        root: results folder, which the quoted files are named from.
        source: what error messages call the document.

    Raises:
        AnalysisError: a mark without its end, a file or a part that is not there; the line is named.
    """
    out: list[str] = []
    begun: tuple[int, str] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        mark = _BEGIN.fullmatch(line.strip())
        if mark is not None:
            if begun is not None:
                raise AnalysisError(f"{source}, line {number}: {_unended(begun)}")
            place = f"{source}, line {number}"
            out += [line, "", _part(root / mark["file"], mark["part"], place), "", END]
            begun = number, line.strip()
        elif _NEARLY.match(line.strip()):
            raise AnalysisError(
                f"{source}, line {number}: {line.strip()} is no mark; write it as "
                "'<!-- tables/NAME.md: table 1 -->'"
            )
        elif line.strip() == END:
            if begun is None:
                raise AnalysisError(f"{source}, line {number}: {END} ends nothing; delete it")
            begun = None
        elif begun is None:
            out.append(line)
    if begun is not None:
        raise AnalysisError(f"{source}: {_unended(begun)}")
    return "\n".join(out) + "\n"


def quoted(text: str) -> list[str]:
    """The files that a document quotes, each once, as it names them."""
    marks = (_BEGIN.fullmatch(line.strip()) for line in text.splitlines())
    return list(dict.fromkeys(mark["file"] for mark in marks if mark is not None))


def _unended(begun: tuple[int, str]) -> str:
    return f"{begun[1]} of line {begun[0]} has no {END}; add one behind what is quoted"


def _part(path: Path, part: str, place: str) -> str:
    """The part of a Markdown file that a mark asks for."""
    try:
        blocks = path.read_text(encoding="utf-8").strip().split("\n\n")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "no text"
        raise AnalysisError(f"{place}: {path}: {said}; mend the name or draw the table") from None
    wanted = _TABLE.fullmatch(part)
    if wanted is not None:
        tables = _tables(blocks, wanted["heading"])
        if int(wanted["number"]) > len(tables):
            where = f" under '{wanted['heading']}'" if wanted["heading"] else ""
            raise AnalysisError(
                f"{place}: {path} has {len(tables)} table{'s' * (len(tables) != 1)}{where}, no table "
                f"{wanted['number']}"
            )
        return tables[int(wanted["number"]) - 1]
    found = [block for block in blocks if block.startswith(part)]
    if len(found) != 1:
        count = "no paragraph begins" if not found else f"{len(found)} paragraphs begin"
        raise AnalysisError(f"{place}: in {path} {count} with '{part}'; quote more of it, or 'table N'")
    return found[0]


def _tables(blocks: list[str], heading: str | None) -> list[str]:
    """The tables of a file, or those under the headings that begin with certain words."""
    found, inside = [], heading is None
    for block in blocks:
        if block.startswith("#") and heading is not None:
            inside = block.lstrip("# ").startswith(heading)
        elif block.startswith("|") and inside:
            found.append(block)
    return found
