"""A table of a report, built once and written twice: as Markdown and, with booktabs, as LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product

from analysis.latex import DASH, INTERVAL, Cell, code, column, heading, prose

TEXT_WIDTH, TEXT_HEIGHT = 469.0, 648.0
"""Points: 6.5 and 9 inches, an article's page with margins of an inch."""
SIZES = {"small": 0.925, "footnotesize": 0.85, "scriptsize": 0.8}
"""Sizes of type, and the width of Computer Modern at them as a share of that at 10 pt."""
SEPARATION = {"small": 5.0, "footnotesize": 4.0, "scriptsize": 3.0}
"""Half of the space between columns, points."""
CODES = ("run",)
"""Columns of names that programs read."""
MOST_LINES = 2.5
"""Lines that a row may take on average before type is smaller or the page turned; words may take more."""
LONGEST = {False: 40, True: 26}
"""Lines of a table that still floats, upright and on its side; longer ones are broken over pages."""
WEIGHTS, MOST_WEIGHED = (1.0, 1.6, 2.6), 4
"""Shares of the room that are tried for columns of words, of which there may be so many."""
STACKED = 45.0
"""Points that a heading may always have; wider ones than that and their cells stand on several lines."""
POWER = 31.0
"""Points of a factor that is a power of ten."""
WIDTHS = {
    **dict.fromkeys("iljI.,:;!'|[]`", 2.8), **dict.fromkeys("ftrs()- ", 3.7), **dict.fromkeys("mwMW%@", 8.1),
    **dict.fromkeys("+=<>±×−→", 7.8), **dict.fromkeys("ABCDEFGHKNOPQRSTUVXYZ&", 7.1),
    **dict.fromkeys("acego", 4.8),
}  # fmt: skip
PACKAGES = (
    ("booktabs", r"\toprule"), ("array", r"\arraybackslash"), ("longtable", r"\begin{longtable}"),
    ("pdflscape", r"\begin{landscape}"),
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table of texts, each as Markdown has it.

    header: name of each column.
    rows: as many cells each as the header; `-` where there is no number, ` [1]` at the end for a note.
    caption: what it shows, for LaTeX; in Markdown the heading above says so.
    notes: sentences beneath, those that begin with `[1]` explain a mark.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    notes: Sequence[str] = ()

    def markdown(self, padded: bool = True) -> str:
        """The table and its notes; columns padded to one width, or short with numbers at the right."""
        cells = [[cell.replace("|", "\\|") for cell in row] for row in [self.header, *self.rows]]
        if padded:
            widths = [max(len(row[i]) for row in cells) for i in range(len(self.header))]
            lines = [
                "| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |"
                for row in cells
            ]
            lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
        else:
            rule = ["--:" if self.numeric(i) else "---" for i in range(len(self.header))]
            lines = [f"| {' | '.join(row)} |" for row in (cells[0], rule, *cells[1:])]
        return "\n\n".join(["\n".join(lines), *_listed(self.notes)])

    def numeric(self, i: int) -> bool:
        """Whether column `i` is of numbers: at least half of the cells that are not empty."""
        if self.coded(i):
            return False
        cells = [cell for cell in self.cells[i] if not cell.empty]
        return 2 * sum(cell.numeric for cell in cells) >= len(cells)

    def coded(self, i: int) -> bool:
        """Whether column `i` is of names that programs read."""
        return self.header[i] in CODES and not any(" " in cell.text for cell in self.cells[i])

    def latex(self, label: str) -> str:
        """A table environment, or where it is long a longtable, with caption, label and notes beneath.

        Set at the largest size of type at which it is no wider than the text; columns of words are broken
        where it does not fit otherwise, and only then the page is turned.
        """
        full = [i for i, cells in enumerate(self.cells) if any(cell.text for cell in cells) or not cells]
        if len(full) < len(self.header):
            # A column of notes of which there are none.
            rows = [[row[i] for i in full] for row in self.rows]
            return replace(self, header=[self.header[i] for i in full], rows=rows).latex(label)
        layout = _layout(self)
        longest = LONGEST[layout.landscape]
        body = (_long if layout.lines > longest else _floating)(self, layout, _slug(label))
        if layout.landscape:
            body = f"\\begin{{landscape}}\n{body}\n\\end{{landscape}}"
        return body

    @cached_property
    def cells(self) -> list[list[Cell]]:
        """The cells, column by column."""
        return [[Cell.of(row[i]) for row in self.rows] for i in range(len(self.header))]

    def columns(self) -> list[list[str]]:
        """The cells in LaTeX, column by column."""
        out = []
        for i, cells in enumerate(self.cells):
            if self.coded(i):
                out.append(["--" if cell.text == DASH else code(cell.text) for cell in cells])
            else:
                out.append(column(cells) if self.numeric(i) else [cell.latex() for cell in cells])
        return out


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its columns padded to one width."""
    return Table(header, rows).markdown()


def latex_file(tables: Iterable[tuple[str, Table]]) -> str:
    r"""A file to \input: the tables, each with its label, and above them the packages that they need."""
    texts = [table.latex(label) for label, table in tables]
    needed = [f"\\usepackage{{{name}}}" for name, sign in PACKAGES if any(sign in text for text in texts)]
    inches = TEXT_WIDTH / 72.27
    head = [
        f"% needs {', '.join(needed)}" if needed else "% no table",
        f"% set for a text {inches:.1f} in wide",
    ]
    return "\n".join(head) + "\n\n" + "\n\n".join(texts) + ("\n" if texts else "")


def _listed(notes: Sequence[str]) -> list[str]:
    """Notes as paragraphs; those of marks, one after the other, are one list."""
    parts: list[str] = []
    before = False
    for note in notes:
        marked = re.match(r"\[\d+\] ", note) is not None
        if marked and before:
            parts[-1] += f"\n- {note}"
        else:
            parts.append(f"- {note}" if marked else note)
        before = marked
    return parts


@dataclass(frozen=True)
class _Layout:
    """How a table is set: size of type, turned or not, each column's width (None: its own), lines in all."""

    size: str
    landscape: bool
    widths: tuple[float | None, ...]
    lines: int


def _layout(table: Table) -> _Layout:
    """The first layout in which the table fits; the last of them where none does."""
    count = len(table.header)
    natural = [
        max((_cell_width(table, i, cell) for cell in table.cells[i]), default=0.0) for i in range(count)
    ]
    heads = [max(map(_width, _stacked(name, natural[i]))) for i, name in enumerate(table.header)]
    for turned in (False, True):
        width = 0.98 * (TEXT_HEIGHT if turned else TEXT_WIDTH)
        for broken in (False, True):
            for size, share in SIZES.items():
                room = width - 2 * SEPARATION[size] * (count - 1)
                full = [share * max(n, h) for n, h in zip(natural, heads, strict=True)]
                if sum(full) <= room:
                    return _Layout(size, turned, (None,) * count, len(table.rows))
                widths = _broken(table, full, share, room) if broken and size != "small" else None
                if widths is not None:
                    lines = [_lines(row, widths, share) for row in table.rows]
                    wordy = sum(full[i] for i in range(count) if i not in _words(table)) < room / 4
                    last = turned and size == "scriptsize"
                    if last or wordy or sum(lines) <= MOST_LINES * len(lines):
                        return _Layout(size, turned, tuple(widths), sum(lines))
    return _Layout("scriptsize", True, (None,) * count, len(table.rows))


def _broken(table: Table, full: Sequence[float], share: float, room: float) -> list[float | None] | None:
    """Widths of columns of words that take the fewest lines in the room; None where a word does not fit."""
    words = _words(table)
    least = {i: min(full[i], share * _longest(table, i)) for i in words}
    left = room - sum(width for i, width in enumerate(full) if i not in words)
    if not words or sum(least.values()) > left:
        return None
    best: tuple[int, list[float | None]] | None = None
    for weights in product(WEIGHTS if len(words) <= MOST_WEIGHED else (1.0,), repeat=len(words)):
        given = _shared(left, {i: (least[i], full[i], w) for i, w in zip(words, weights, strict=True)})
        widths = [math.floor(given[i]) if given.get(i, w) < w else None for i, w in enumerate(full)]
        lines = sum(_lines(row, widths, share) for row in table.rows)
        if best is None or lines < best[0]:
            best = lines, list(widths)
    return best[1] if best is not None else None


def _words(table: Table) -> list[int]:
    """The columns whose cells may stand on several lines."""
    return [i for i in range(len(table.header)) if not table.numeric(i) and not table.coded(i)]


def _shared(room: float, columns: Mapping[int, tuple[float, float, float]]) -> dict[int, float]:
    """Shares of a width: column -> (least, most, weight), of which the least ones fit together."""
    given: dict[int, float] = {}
    open_ones = dict(columns)
    while open_ones:
        unit = room / sum(weight for _, _, weight in open_ones.values())
        ask = {i: max(least, min(most, unit * weight)) for i, (least, most, weight) in open_ones.items()}
        over = sum(ask.values()) - room
        # Settled is what has its least where all ask for too much, or its most where for too little.
        settled = [
            i for i, (least, most, weight) in open_ones.items()
            if (over > 0 and unit * weight <= least) or (over <= 0 and unit * weight >= most)
        ]  # fmt: skip
        for i in settled or list(open_ones):
            given[i] = ask[i]
            room -= ask[i]
            del open_ones[i]
    return given


def _longest(table: Table, i: int) -> float:
    """The width of the longest word of a column at 10 pt; breaks are at spaces and slashes."""
    texts = [table.header[i], *(row[i] for row in table.rows)]
    return max(_width(word) for text in texts for word in re.split(r"(?<=/)|\s", text)) + 1.0


def _lines(row: Sequence[str], widths: Sequence[float | None], share: float) -> int:
    """Lines that a row takes."""
    return max(
        1 if wide is None else math.ceil(1.1 * share * _width(text) / wide) or 1
        for text, wide in zip(row, widths, strict=True)
    )


def _cell_width(table: Table, i: int, cell: Cell) -> float:
    if table.coded(i):
        return 5.3 * len(cell.text)
    return _width(cell.text) + 2.7 * len(cell.marks) + (4.0 if cell.bold else 0.0)


@cache
def _width(text: str) -> float:
    """About how wide a text is at 10 pt, points."""
    plain, powers = re.subn(r"(?<=\d)e[+-]?\d+", "", text)
    # The ends of an interval share their power of ten.
    powers -= len(re.findall(rf"{INTERVAL}", text)) if powers > 1 else 0
    return POWER * powers + sum(WIDTHS.get(c, 5.3 if c.isalpha() else 5.0) for c in plain)


def _stacked(name: str, room: float) -> list[str]:
    """A heading on up to three lines, as few as make it no wider than the cells beneath."""
    parts = re.split(r" (?!%)", name)
    best = [name]
    for count in range(2, min(3, len(parts)) + 1):
        if max(map(_width, best)) <= max(room, STACKED):
            break
        best = min(_splits(parts, count), key=lambda lines: max(map(_width, lines)))
    return best


def _splits(words: Sequence[str], count: int) -> list[list[str]]:
    """Every way to set words, in order, on so many lines."""
    if count == 1:
        return [[" ".join(words)]]
    return [
        [" ".join(words[:i]), *rest]
        for i in range(1, len(words) - count + 2)
        for rest in _splits(words[i:], count - 1)
    ]


def _slug(label: str) -> str:
    """A label of the characters that LaTeX takes in one."""
    return re.sub(r"[^A-Za-z0-9:.-]+", "-", label).strip("-")


def _parts(table: Table, layout: _Layout) -> tuple[str, str, list[str]]:
    """Column types, heading and rows."""
    kinds, heads = [], []
    for i, name in enumerate(table.header):
        wide = layout.widths[i]
        side = "r" if table.numeric(i) else "l"
        kinds.append(side if wide is None else rf">{{\raggedright\arraybackslash}}p{{{wide:.0f}pt}}")
        natural = max((_cell_width(table, i, cell) for cell in table.cells[i]), default=0.0)
        stack = [heading(line) for line in _stacked(name, natural if wide is None else wide)]
        one = rf"\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}" + r"\\".join(stack) + r"\end{tabular}"
        heads.append(one if len(stack) > 1 else stack[0])
    rows = [" & ".join(row) + r" \\" for row in zip(*table.columns(), strict=True)]
    # A row that begins with a bracket would be read as the space after the row above it.
    rows = [f"{{}}{row}" if row.startswith(("[", "*")) else row for row in rows]
    first, broken = [row[0] for row in table.rows], any(wide is not None for wide in layout.widths)
    for i in range(1, len(rows)):
        # Rows that share a label stand together, and so do the lines of one row.
        if "" in first and first[i]:
            rows[i] = f"\\addlinespace\n{rows[i]}"
        elif broken:
            rows[i] = f"\\addlinespace[1.5pt]\n{rows[i]}"
    return "@{}" + "".join(kinds) + "@{}", " & ".join(heads) + r" \\", rows


def _floating(table: Table, layout: _Layout, label: str) -> str:
    kinds, head, rows = _parts(table, layout)
    lines = [
        r"\begin{table}[htbp]", r"\centering", r"\setlength{\belowcaptionskip}{6pt}",
        rf"\caption{{{prose(table.caption)}}}\label{{{label}}}",
        rf"\{layout.size}", rf"\setlength{{\tabcolsep}}{{{SEPARATION[layout.size]:g}pt}}",
        rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule",
        r"\end{tabular}",
    ]  # fmt: skip
    if table.notes:
        lines += [r"\par\smallskip", r"\begin{minipage}{\linewidth}", r"\footnotesize\raggedright"]
        lines += [*_noted(table.notes), r"\end{minipage}"]
    return "\n".join([*lines, r"\end{table}"])


def _long(table: Table, layout: _Layout, label: str) -> str:
    kinds, head, rows = _parts(table, layout)
    count = len(table.header)
    again = rf"\multicolumn{{{count}}}{{@{{}}l@{{}}}}{{Table~\thetable, continued}} \\"
    more = rf"\multicolumn{{{count}}}{{@{{}}r@{{}}}}{{continued on the next page}} \\"
    lines = [
        r"\begingroup", rf"\{layout.size}", rf"\setlength{{\tabcolsep}}{{{SEPARATION[layout.size]:g}pt}}",
        r"\setlength{\LTcapwidth}{\linewidth}", rf"\begin{{longtable}}{{{kinds}}}",
        rf"\caption{{{prose(table.caption)}}}\label{{{label}}} \\", r"\toprule", head, r"\midrule",
        r"\endfirsthead", again, r"\toprule", head, r"\midrule", r"\endhead", r"\midrule", more, r"\endfoot",
        r"\bottomrule", r"\endlastfoot", *rows, r"\end{longtable}",
    ]  # fmt: skip
    if table.notes:
        lines += [r"{\footnotesize\raggedright\noindent", *_noted(table.notes), "}"]
    return "\n".join([*lines, r"\endgroup"])


def _noted(notes: Sequence[str]) -> list[str]:
    """Notes beneath a table, a paragraph each."""
    out = []
    for note in notes:
        marked = re.match(r"(\[\d+\]) (.*)", note, re.DOTALL)
        mark = rf"\textsuperscript{{{marked[1]}}}\," if marked else ""
        out.append(mark + prose(marked[2] if marked else note) + r"\par")
    return out
