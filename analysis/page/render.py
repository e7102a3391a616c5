"""From a report's parts to its HTML: one file that asks the network for nothing."""

from __future__ import annotations

import base64
import colorsys
import hashlib
import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

# The field's usual templating library, which mlflow and torch bring along; it escapes what it fills in.
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from analysis.page.content import Cell, Page, PageTable
from analysis.page.svg import inline_svg, slug

HERE = Path(__file__).parent
TEMPLATE = "report.html.jinja"
# The first chooses the theme before anything is drawn; the others need the page to be there.
HEAD_SCRIPT, SCRIPTS = "theme.js", ("tables.js", "points.js", "zoom.js")
ANSWERS = {"yes": "▲", "no": "▼", "mixed": "◆", "open": "○", "none": "–"}
STATES = {"done": "●", "failed": "✕", "diverged": "▲", "missing": "○", "corrupted": "◆"}
NUMERIC = re.compile(r"[-−+±~<≤≥ \d.,eEx×%()\[\]–]*")
HUE = re.compile(r"var\(--([ct]-[0-9a-f]{6})")
# Graphics are to stand out from their ground at 3 to 1 (WCAG 2.2, 1.4.11); a little more for thin lines.
GRAPHIC_CONTRAST = 3.5
# A colour this close to white and to grey is a shaded ground, not a line.
TINT_CONTRAST, TINT_CHROMA = 1.6, 0.2


@dataclass(frozen=True)
class _Drawing:
    """A figure in the page: anchor, heading, caption, markup, and its width in points."""

    anchor: str
    heading: str
    shows: str
    svg: Markup
    width: float


@dataclass(frozen=True)
class _Card:
    """One hypothesis: what it is called, its numbers as label and cell, and the sentence of its test."""

    title: str
    numbers: tuple[tuple[str, Cell], ...]
    sentence: str


def render(page: Page) -> str:
    """Write a report as one HTML file with its styles, scripts and figures within; same page, same bytes.

    Nothing of the page's texts is markup. Links that lead out of the report's folder are shown as text.
    """
    anchors = {cell.anchor for row in page.runs.rows for cell in row if cell.anchor}
    drawings = _drawings(page, anchors)
    cards, rest = _cards(page)
    dark = (HERE / "dark.css").read_text()
    head, *scripts = [(HERE / name).read_text() for name in (HEAD_SCRIPT, *SCRIPTS)]
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(href=_href, sort_key=_sort_key)
    html = environment.get_template(TEMPLATE).render(
        page=page,
        cards=cards,
        rest=rest,
        drawings=drawings,
        mark=ANSWERS.get(page.answer, ANSWERS["none"]),
        states=STATES,
        numeric=numeric_columns,
        first_of=_first_of(),
        style=Markup((HERE / "style.css").read_text()),
        dark=Markup(dark + dark_hues([str(drawing.svg) for drawing in drawings], dark)),
        head_script=Markup(head),
        scripts=[Markup(script) for script in scripts],
        hashes=" ".join(f"'sha256-{_digest(script)}'" for script in (head, *scripts)),
    )
    return html.lstrip()


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _drawings(page: Page, anchors: Collection[str]) -> list[_Drawing]:
    drawings: list[_Drawing] = []
    for figure in page.figures:
        taken = [drawing.anchor for drawing in drawings]
        name = slug(figure.name)
        anchor = name if name not in taken else f"{name}-{len(drawings) + 1}"
        heading = figure.name.removeprefix(f"{page.name}_").replace("_", " ")
        svg = inline_svg(figure, anchors, anchor)
        drawings.append(
            _Drawing(anchor, heading[:1].upper() + heading[1:], figure.shows, Markup(svg.markup), svg.width)
        )
    return drawings


def _cards(page: Page) -> tuple[list[_Card], list[str]]:
    """A card for each hypothesis, and the sentences of the verdict that belong to none."""
    rows = page.hypotheses.rows if page.hypotheses else ()
    if page.hypotheses is None or len(page.verdict) < len(rows):
        return [], list(page.verdict)
    labels = page.hypotheses.header[1:]
    cards = [
        _Card(row[0].text, tuple(zip(labels, row[1:], strict=True)), sentence)
        for row, sentence in zip(rows, page.verdict, strict=False)
    ]
    return cards, list(page.verdict[len(rows) :])


def numeric_columns(table: PageTable) -> list[bool]:
    """Which columns hold numbers, and so stand flush right."""
    columns = [[row[i] for row in table.rows] for i in range(len(table.header))]
    # The first names its row: figures in it are digits of a name.
    return [_is_numeric(column, named=i == 0) for i, column in enumerate(columns)]


def _is_numeric(column: Sequence[Cell], named: bool) -> bool:
    if any(isinstance(cell.sort, int | float) for cell in column):
        return True
    return (
        not named
        and all(NUMERIC.fullmatch(cell.text) for cell in column)
        and any(re.search(r"\d", cell.text) for cell in column)
    )


def _first_of() -> Callable[[str], bool]:
    """Whether a name is one that has not been asked for yet: a page has room for each once."""
    taken = {""}

    def first_of(name: str) -> bool:
        is_new = name not in taken
        taken.add(name)
        return is_new

    return first_of


def _sort_key(cell: Cell) -> str | None:
    """A sort key as a script reads it: None where there is nothing to sort by."""
    if isinstance(cell.sort, str) or cell.sort is None:
        return cell.sort
    if math.isnan(cell.sort):
        return None
    return repr(float(cell.sort)).replace("inf", "Infinity")


def _href(link: str) -> str:
    """A link into the page or to a file beside it; empty for any other, such as `javascript:` ones."""
    parts = urlsplit(link.strip())
    return "" if parts.scheme or parts.netloc else link.strip()


def variables(css: str) -> dict[str, str]:
    """The custom properties of a style sheet that are plain colours: name without dashes -> `#rrggbb`."""
    return dict(re.findall(r"--([a-z-]+):\s*(#[0-9a-fA-F]{6})\b", css))


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`, from 0 (black) to 1 (white); WCAG 2.2."""
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in _rgb(colour)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, from 1 to 21; WCAG 2.2."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def dark_hues(markups: Sequence[str], dark: str) -> str:
    """CSS that gives the colours of figures their counterparts on dark paper, where they need one."""
    theme = variables(dark)
    hues = sorted({hue for markup in markups for hue in HUE.findall(markup)})
    changed = ""
    for hue in hues:
        colour = f"#{hue[2:]}"
        other = dark_counterpart(colour, theme["ink"], theme["paper"], is_ground=hue.startswith("t"))
        changed += f"  --{hue}: {other};\n" if other != colour else ""
    return f"\n:root {{\n{changed}}}\n" if changed else ""


def dark_counterpart(colour: str, ink: str, paper: str, is_ground: bool = False) -> str:
    """What stands on dark paper for a colour chosen on white.

    Greys keep their place between paper and ink, pale grounds stay close to the paper, and other hues are
    lightened until they stand out.
    """
    red, green, blue = _rgb(colour)
    chroma = max(red, green, blue) - min(red, green, blue)
    if chroma < 0.02:
        return _mix(ink, paper, (red + green + blue) / 3)
    if is_ground and chroma < TINT_CHROMA and contrast(colour, "#ffffff") < TINT_CONTRAST:
        hue, light, saturation = colorsys.rgb_to_hls(red, green, blue)
        return _hex(colorsys.hls_to_rgb(hue, 1.06 - light, min(saturation, 0.5)))
    shares = (step / 20 for step in range(20))
    return next(
        mixed
        for share in shares
        if contrast(mixed := _mix(colour, "#ffffff", share), paper) >= GRAPHIC_CONTRAST
    )


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def _hex(parts: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * min(1.0, max(0.0, part))):02x}" for part in parts)


def _mix(colour: str, other: str, share: float) -> str:
    pairs = zip(_rgb(colour), _rgb(other), strict=True)
    return _hex([one + (two - one) * share for one, two in pairs])
