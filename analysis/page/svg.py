"""Figures as SVG inside a page: no clashing ids, colours that follow its theme, points that speak."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures.style import WITHOUT_DATES, Hover, house_style, hovers, settle
from analysis.page.content import PageFigure

# Verdana has nearly the widths of DejaVu Sans, by which matplotlib laid the text out.
FONTS = "'DejaVu Sans', Verdana, sans-serif"
THEMED = {"#000000": "ink", "#ffffff": "paper", "#e4e4e4": "grid", "#555555": "muted"}
COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")
# Thousandths of a point cannot be seen at any zoom of the page, and make two thirds of a file.
LONG_NUMBER = re.compile(r"-?\d+\.\d{4,}")
COORDINATES = (
    "d",
    "x",
    "y",
    "width",
    "height",
    "transform",
    "points",
    "x1",
    "x2",
    "y1",
    "y2",
    "r",
    "cx",
    "cy",
)
REFERENCE = re.compile(r"url\(#([^)]+)\)")
XLINK = "{http://www.w3.org/1999/xlink}href"
RUN = "run-"
# Fewer hues are names of curves, not values on a bar.
COLOUR_BAR = 8
# In points; far below the size of any marker.
SAME_PLACE = 0.1


@dataclass(frozen=True)
class InlineSvg:
    """A figure as markup for a page.

    markup: the `<svg>` element; markup of HTML, with all text escaped.
    width: of the drawing in points; text in it is 6.5 to 8 of these high.
    points: how many have a hover text; a point that is NaN or beyond the axes is not drawn and has none.
    lost: lines whose texts could not be given to their points, a sentence each; empty as it should be.
    """

    markup: str
    width: float
    points: int
    lost: tuple[str, ...]


def inline_svg(figure: PageFigure, anchors: Collection[str] = (), prefix: str = "") -> InlineSvg:
    """Draw a figure as SVG for a page that holds several.

    Black, white and the greys of the house style become the page's `--ink`, `--paper`, `--grid` and
    `--muted`; another colour `#0072b2` becomes `var(--c-0072b2, #0072b2)`, or `--t-` where it is a ground
    without an edge, so that a theme may change it.  A figure with a colour bar keeps its colours and white
    paper in every theme, since the bar is a raster: it has class `as-drawn`.
    A point with a text becomes an element of class `point`, a link where its run has a row.

    Args:
        figure: its texts come from `analysis.figures.style.hover`.
        anchors: names of rows in the page, such as `run-3a23b02d4bc6`.
        prefix: of all ids; the figure's name where empty.
    """
    prefix = prefix or slug(figure.name)
    spoken = hovers(figure.figure)
    with _named([line for line, _ in spoken], prefix):
        root = _drawn(figure.figure)
    by_id = {node.get("id"): node for node in root.iter()}
    lost = []
    for i, (line, texts) in enumerate(spoken):
        problem = _speak(by_id.get(_gid(prefix, i)), line, texts, anchors)
        if problem:
            lost.append(f"{figure.name}, line {i + 1}: {problem}")
    points = sum(node.get("class") == "point" for node in root.iter())
    _own_ids(root, prefix)
    as_drawn = _has_colour_bar(root)
    for node in root.iter():
        _tidy(node, as_drawn)
    _head(root, figure, prefix, points > 0)
    if as_drawn:
        root.set("class", "as-drawn")
    width = float(str(root.get("viewBox")).split()[2])
    return InlineSvg(ElementTree.tostring(root, encoding="unicode"), width, points, tuple(lost))


def slug(name: str) -> str:
    """A name as it may stand in an id: letters, digits and single dashes, beginning with a letter."""
    return "f-" + (re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "figure")


@contextmanager
def _named(lines: Sequence[Line2D], prefix: str) -> Iterator[None]:
    """Give lines ids that can be found in the SVG, for as long as it is drawn."""
    before = [line.get_gid() for line in lines]
    for i, line in enumerate(lines):
        line.set_gid(_gid(prefix, i))
    try:
        yield
    finally:
        for line, gid in zip(lines, before, strict=True):
            line.set_gid(gid)


def _gid(prefix: str, i: int) -> str:
    return f"{prefix}--hover-{i}"


def _drawn(figure: Figure) -> Element:
    """The SVG as a tree without namespaces, as HTML has it."""
    settle(figure)
    buffer = io.BytesIO()
    # Real text can be selected, searched and read aloud, and is smaller than its outlines.
    with house_style(), matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata=WITHOUT_DATES["svg"])
    root = ElementTree.fromstring(buffer.getvalue())
    for node in root.iter():
        node.tag = node.tag.split("}")[-1]
        # Its own rule for line joins would hold for the whole page; the page's style sheet has it.
        for child in [child for child in node if child.tag.split("}")[-1] in ("metadata", "style")]:
            node.remove(child)
    return root


def _speak(node: Element | None, line: Line2D, hover: Hover, anchors: Collection[str]) -> str | None:
    """Give the markers of one line their texts; returns why it could not."""
    # Markers of two colours are drawn one half after the other: the last group lies on top.
    groups = [] if node is None else [group for group in node.iter("g") if group.find("use") is not None]
    if not groups:
        return "no marker of it is drawn"
    marks = groups[-1].findall("use")
    places = _places(line)
    found = _matched(places, marks)
    if found is None:
        return f"{len(marks)} markers are drawn, not where its {len(places)} points are"
    for i, mark in found.items():
        run = hover.runs[i] if hover.runs else ""
        point = Element("a", {"href": f"#{RUN}{run}"}) if f"{RUN}{run}" in anchors else Element("g")
        point.attrib |= {"class": "point", "role": "link" if point.tag == "a" else "img"}
        ElementTree.SubElement(point, "title").text = hover.texts[i]
        groups[-1][list(groups[-1]).index(mark)] = point
        point.append(mark)
    return None


def _places(line: Line2D) -> dict[int, tuple[float, float]]:
    """Where the points of a line are in the SVG, from its upper left; only those that can be seen."""
    root = line.get_figure(root=True)
    assert root is not None
    with np.errstate(all="ignore"):
        pixels = np.asarray(line.get_transform().transform(line.get_xydata()), np.float64)
    box = line.get_clip_box() if line.get_clip_on() else None
    seen = (box or root.bbox).padded(1.0)
    scale, height = 72 / root.dpi, root.bbox.height
    return {
        i: (float(x) * scale, float(height - y) * scale)
        for i, (x, y) in enumerate(pixels)
        if np.isfinite(x) and np.isfinite(y) and seen.contains(x, y) and root.bbox.contains(x, y)
    }


def _matched(places: dict[int, tuple[float, float]], marks: Sequence[Element]) -> dict[int, Element] | None:
    """Which marker is which point, by its place, those in one place by their order; None if any has none."""
    free = [(float(str(mark.get("x"))), float(str(mark.get("y"))), mark) for mark in marks]
    found = {}
    for i, (x, y) in places.items():
        nearest = min(free, key=lambda one: math.hypot(one[0] - x, one[1] - y), default=None)
        if nearest is None or math.hypot(nearest[0] - x, nearest[1] - y) > SAME_PLACE:
            return None
        found[i] = nearest[2]
        free.remove(nearest)
    return found


def _own_ids(root: Element, prefix: str) -> None:
    """Give what is referred to an id that no other figure has, and which says nothing of how it was drawn."""
    names: dict[str, str] = {}
    for node in root.iter():
        reference = node.attrib.pop(XLINK, "")
        if reference:
            node.set("href", reference)
        for key, value in node.attrib.items():
            is_mark = key == "href" and node.tag == "use"
            found = [value[1:]] if is_mark else REFERENCE.findall(value)
            for name in found:
                own = names.setdefault(name, f"{prefix}--{len(names) + 1}")
                value = value.replace(f"#{name}", f"#{own}")
            node.set(key, value)
    for node in root.iter():
        name = node.attrib.pop("id", None)
        if name in names:
            node.set("id", names[name])


def _tidy(node: Element, as_drawn: bool) -> None:
    """Make colours the page's, numbers short; text in the order of reading."""
    for key, value in node.attrib.items():
        if key in COORDINATES:
            node.set(key, " ".join(LONG_NUMBER.sub(lambda found: f"{float(found[0]):.3f}", value).split()))
        elif key == "style":
            node.set(key, _themed(value, node.tag in ("text", "tspan"), as_drawn))
    # White space between elements is for readers of the file; within text it would be drawn.
    node.tail = None
    if node.tag not in ("text", "tspan", "title", "desc"):
        node.text = None
    if node.tag == "text" and len(node):
        node.text = None
        # A formula's letters come font by font: read aloud or copied, they should come from left to right.
        node[:] = sorted(node, key=lambda part: float(str(part.get("x", "0")).split()[0]))


def _themed(style: str, is_text: bool, as_drawn: bool) -> str:
    """One style with the page's font and colours; of hues only if the page may change them."""
    # A shaded ground has no edge; on dark paper it is to stay in the background.
    kind = "c" if is_text or "stroke: #" in style else "t"

    def variable(found: re.Match[str]) -> str:
        colour = found[0].lower()
        # White text is white because of what it stands on, which stays as it is.
        if is_text and colour == "#ffffff":
            return colour
        if colour in THEMED:
            return f"var(--{THEMED[colour]})"
        return colour if as_drawn else f"var(--{kind}-{colour[1:]}, {colour})"

    return COLOUR.sub(variable, re.sub(r"font-family: [^;]*", f"font-family: {FONTS}", style))


def _has_colour_bar(root: Element) -> bool:
    """Whether colours stand for values: a raster beside marks of many hues."""
    styles = " ".join(node.get("style", "") for node in root.iter())
    hues = {colour.lower() for colour in COLOUR.findall(styles)} - set(THEMED)
    return root.find(".//image") is not None and len(hues) >= COLOUR_BAR


def _head(root: Element, figure: PageFigure, prefix: str, speaks: bool) -> None:
    for name in [name for name in root.attrib if name != "viewBox"]:
        del root.attrib[name]
    # Whoever reads aloud what is within an image finds nothing: with points in it, it is a group.
    root.set("role", "group" if speaks else "img")
    root.set("aria-labelledby", f"{prefix}--title")
    root.set("aria-describedby", f"{prefix}--desc")
    # What matplotlib draws black without saying so inherits this.
    root.set("style", "fill: var(--ink)")
    for i, (tag, text) in enumerate((("title", figure.name.replace("_", " ")), ("desc", figure.shows))):
        child = Element(tag, {"id": f"{prefix}--{tag}"})
        child.text = text
        root.insert(i, child)
