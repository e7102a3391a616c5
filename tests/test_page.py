"""The report as HTML: what is in it, what cannot get out of it, and how its colours stand out."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from sample_page import HOSTILE, bare_page, hostile_page, point_texts, points_figure, real_page

from analysis.figures.style import house_style, hover
from analysis.page.content import Cell, PageFigure, PageTable
from analysis.page.render import (
    GRAPHIC_CONTRAST,
    contrast,
    dark_counterpart,
    numeric_columns,
    render,
    variables,
)
from analysis.page.svg import InlineSvg, inline_svg

PAGES = {"real": real_page, "hostile": hostile_page, "bare": bare_page}
ROOM = Path(__file__).parent.parent / "analysis" / "page"
SVG = "http://www.w3.org/2000/svg"
VOID = {"meta", "link", "input", "br"}
PROSE = ("ink", "muted", "link", "good", "bad", "unsure")


class Reader(HTMLParser):
    """Reads a page as a browser does not: every element must be closed, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(name)) is not None]


@pytest.fixture(scope="module")
def htmls() -> dict[str, str]:
    return {name: render(page()) for name, page in PAGES.items()}


@pytest.fixture(scope="module")
def drawn() -> InlineSvg:
    """Two panels, 12 points each with one NaN, runs a, b, c, d ... of which the first two have rows."""
    figure = PageFigure("two_panels", "Loss & share", points_figure(tuple("abcdefghijkl")))
    return inline_svg(figure, {"run-a", "run-b"})


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_well_formed_and_asks_for_nothing(htmls: dict[str, str], name: str) -> None:
    read = Reader(htmls[name])
    assert read.open == []
    ids = read.values("id")
    assert len(ids) == len(set(ids))
    assert read.values("src") == []
    for link in read.values("href"):
        assert link.startswith(("#", "data:,", "../")), link
        assert not link.startswith("#") or link[1:] in ids
    assert not re.search(r"@import|url\((?!#)|https?:", htmls[name].replace(SVG, ""))


@pytest.mark.parametrize("name", PAGES)
def test_only_the_pages_own_scripts_may_run(htmls: dict[str, str], name: str) -> None:
    read = Reader(htmls[name])
    scripts = re.findall(r"<script>(.*?)</script>", htmls[name], re.DOTALL)
    assert len(scripts) == 4 == sum(tag == "script" for tag, _ in read.tags)
    digests = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts}
    policy = next(attributes["content"] for _, attributes in read.tags if "http-equiv" in attributes)
    assert policy is not None
    assert set(re.findall(r"'sha256-(.+?)'", policy)) == digests
    assert "default-src 'none'" in policy
    assert not any(key.startswith("on") for _, attributes in read.tags for key in attributes)


def test_a_page_depends_on_nothing_but_what_it_says(htmls: dict[str, str]) -> None:
    assert render(real_page()) == htmls["real"]
    page = real_page()
    assert render(page) == render(page)


def test_the_verdict_comes_first_and_runs_come_after_figures(htmls: dict[str, str]) -> None:
    page = real_page()
    main = htmls["real"].split("<main")[1]
    wanted = [
        page.headline,
        *page.verdict[:3],
        *page.settle.words,
        'id="coverage"',
        *(f.shows for f in page.figures),
    ]
    places = [main.index(words) for words in wanted]
    ids = ["figures", "runs", "tables", "diagnostics", "methods", "cost", "provenance"]
    assert places == sorted(places)
    assert [found for found in re.findall(r'<section id="([a-z]+)"', main) if found in ids] == ids


@pytest.mark.parametrize("name", PAGES)
def test_every_text_is_there(htmls: dict[str, str], name: str) -> None:
    page = PAGES[name]()
    read = Reader(htmls[name])
    text = re.sub(r"\s+", " ", " ".join(itertools.chain(*read.texts.values())))
    tables = [page.runs, page.cost, *page.tables, *filter(None, [page.hypotheses, page.settle.options])]
    cells = [cell.text for table in tables for row in table.rows for cell in row]
    findings = [words for f in page.findings for words in (f.code, f.name, f.text, f.remedy, *f.groups)]
    facts = [*page.card, *page.card.values(), *page.provenance, *page.provenance.values()]
    for words in (page.headline, *page.verdict, page.coverage, *page.losses, *cells, *findings, *facts):
        assert words in text
    assert text.count("not recorded") == sum(not value for value in page.card.values())


def test_lost_runs_are_said_at_the_top_and_in_their_rows(htmls: dict[str, str]) -> None:
    assert "Some runs are no data points" in htmls["hostile"]
    assert "Not every run is a data point" in htmls["hostile"]
    assert "Some runs are no data points" not in htmls["real"]
    rows = re.findall(r"<tr.*?</tr>", htmls["hostile"], re.DOTALL)
    diverged = next(row for row in rows if "diverged at step 12" in row)
    assert 'class="state state-diverged"><span class="shape" aria-hidden="true">▲</span>' in diverged


def test_a_card_for_each_hypothesis_and_no_sentence_lost(htmls: dict[str, str]) -> None:
    page = real_page()
    assert page.hypotheses is not None and len(page.verdict) > len(page.hypotheses.rows)
    assert htmls["real"].count('class="card"') == len(page.hypotheses.rows)
    assert htmls["bare"].count('class="card"') == 0


def test_cells_say_what_they_are_sorted_by() -> None:
    rows = tuple(
        (Cell(str(i)), Cell("x", sort=sort))
        for i, sort in enumerate([None, float("nan"), float("inf"), 0.1, "b<"])
    )
    page = bare_page()
    html = render(
        type(page)(**{**vars(page), "runs": PageTable("Runs", ("run", "loss"), rows, sortable=True)})
    )
    table = html.split('<table id="runs-table" data-sortable>')[1].split("</table>")[0]
    assert re.findall(r"data-(?:sort|key)=\"([^\"]*)\"", table) == ["Infinity", "0.1", "b&lt;"]


def test_numbers_stand_flush_right_and_names_do_not() -> None:
    rows = ((Cell("12"), Cell("4.1 ± 0.2"), Cell("x", sort=1), Cell("lowrank-32"), Cell("-")),)
    assert numeric_columns(PageTable("", tuple("abcde"), rows)) == [False, True, True, False, False]


def test_ten_figures_stay_below_three_megabytes(htmls: dict[str, str]) -> None:
    assert len(htmls["hostile"].encode()) * 10 / 3 < 3e6


def test_each_point_has_its_text_and_those_with_a_row_a_link(drawn: InlineSvg) -> None:
    assert drawn.lost == ()
    read = Reader(drawn.markup)
    texts = point_texts(points_figure(tuple("abcdefghijkl")))
    titles = read.texts["title"]
    assert titles == ["two panels", *[text for text in texts if "nan" not in text]]
    points = [(tag, attributes) for tag, attributes in read.tags if attributes.get("class") == "point"]
    assert drawn.points == len(points) == len(texts) - 2
    links = [attributes["href"] for tag, attributes in points if tag == "a"]
    assert links == ["#run-a", "#run-b"] * 2
    assert {attributes["role"] for tag, attributes in points if tag == "g"} == {"img"}


def test_a_figure_takes_the_pages_colours_and_keeps_its_hues(drawn: InlineSvg) -> None:
    styles = " ".join(Reader(drawn.markup).values("style"))
    assert not re.search(r"#(000000|ffffff|e4e4e4|555555)", styles)
    assert {"ink", "paper", "grid", "muted"} <= set(re.findall(r"var\(--([a-z]+)\)", styles))
    assert set(re.findall(r"var\(--[ct]-\w+, (#\w+)\)", styles)) == {"#0072b2", "#56b4e9", "#eef4fa"}
    assert "metadata" not in drawn.markup and "<style" not in drawn.markup and "xmlns" not in drawn.markup
    (root, attributes), *_ = Reader(drawn.markup).tags
    assert root == "svg" and set(attributes) <= {
        "viewBox", "role", "style", "aria-labelledby", "aria-describedby", "viewbox",
    }  # fmt: skip


def test_formulas_are_read_from_left_to_right(drawn: InlineSvg) -> None:
    letters = re.findall(r"<text>(.*?)</text>", drawn.markup)
    formulas = [re.sub(r"<[^>]*>", "", text) for text in letters]
    assert any(re.sub(r"\s", "", text) == "L=E+AN−α,95%band" for text in formulas)


def test_a_figure_without_points_is_an_image_and_drawing_it_changes_nothing() -> None:
    with house_style():
        figure = Figure(figsize=(3.5, 2))
        (line,) = figure.subplots().plot([1, 2], [3, 4])
    assert 'role="img"' in inline_svg(PageFigure("plain", "", figure)).markup
    hover(line, ["a", "b"])
    line.set_gid("mine")
    first = inline_svg(PageFigure("plain", "", figure))
    assert line.get_gid() == "mine"
    # A line without markers has no points.
    assert first.points == 0 and first.lost == ("plain, line 1: no marker of it is drawn",)
    line.set_marker("o")
    second = inline_svg(PageFigure("plain", "", figure))
    assert second.points == 2 and second.lost == ()
    assert second == inline_svg(PageFigure("plain", "", figure))


def test_points_that_have_no_place_keep_the_others_with_their_texts() -> None:
    with house_style():
        figure = Figure(figsize=(3.5, 2))
        axes = figure.subplots()
        axes.set_yscale("log")
        values = np.array([np.nan, 1.0, np.nan, 1e9, 10.0, 1e-9, 10.0, 0.0])
        (line,) = axes.plot([1, 2, 3, 4, 5, 5, 5, 6], values, "o", linestyle="-")
        axes.set_ylim(0.1, 100)
    hover(line, ["nan", "one", "nan", "far above", "ten", "far below", "ten again", "zero"])
    read = Reader(inline_svg(PageFigure("log", "", figure)).markup)
    assert read.texts["title"] == ["log", "one", "ten", "ten again"]


def test_texts_in_figures_are_no_markup() -> None:
    drawn = inline_svg(PageFigure(HOSTILE, HOSTILE, points_figure((), ("dense", HOSTILE, "c"))))
    assert "<script" not in drawn.markup and "<b>" not in drawn.markup
    assert HOSTILE in " ".join(Reader(drawn.markup).texts["desc"])


@pytest.mark.parametrize("sheet", ["style.css", "dark.css"])
def test_text_stands_out_from_what_it_stands_on(sheet: str) -> None:
    theme = variables((ROOM / "style.css").read_text()) | variables((ROOM / sheet).read_text())
    pairs = [(text, ground) for text in PROSE for ground in ("paper", "ground")]
    pairs += [("ink", "alarm"), ("bad", "alarm"), ("ink", "marked"), ("link", "marked"), ("paper", "ink")]
    low = {pair: contrast(theme[pair[0]], theme[pair[1]]) for pair in pairs}
    assert min(low.values()) >= 4.5, low


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_colours_of_figures_stand_out_on_dark_paper() -> None:
    theme = variables((ROOM / "dark.css").read_text())
    ink, paper = theme["ink"], theme["paper"]
    for colour in ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#003366"):
        assert contrast(dark_counterpart(colour, ink, paper), paper) >= GRAPHIC_CONTRAST
    assert dark_counterpart("#56b4e9", ink, paper) == "#56b4e9"
    assert dark_counterpart("#000000", ink, paper) == ink and dark_counterpart("#ffffff", ink, paper) == paper
    # A pale ground stays one, a pale line stays a line.
    assert contrast(dark_counterpart("#eef4fa", ink, paper, is_ground=True), ink) > 9
    assert dark_counterpart("#ebc9dc", ink, paper) == "#ebc9dc"


def test_a_figure_with_a_colour_bar_keeps_its_colours() -> None:
    with house_style():
        figure = Figure(figsize=(3.5, 2))
        axes = figure.subplots()
        marks = axes.scatter(range(20), range(20), c=range(20))
        figure.colorbar(marks)
    drawn = inline_svg(PageFigure("values", "", figure)).markup
    assert 'class="as-drawn"' in drawn and "#440154" in drawn and "var(--c-" not in drawn
