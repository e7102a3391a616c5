"""What readers do with a report: read it, sort, filter, point, zoom, print; with mouse, keys and fingers."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sample_page import LONG, hostile_page, point_texts, real_page, runs_of

from browser.conftest import PHONE, WIDE, Open

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

NAMES = ("real", "hostile", "bare")
PHONE_SETTINGS = {"viewport": PHONE, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
PAPER = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}


def column(page: Page, label: str, table: str = "runs-table") -> list[str]:
    """The texts of a column of a table, as they stand."""
    headers = [text.strip() for text in page.locator(f"#{table} thead th").all_inner_texts()]
    found = page.locator(f"#{table} tbody tr > :nth-child({headers.index(label) + 1})")
    return [text.strip() for text in found.all_inner_texts()]


def header(page: Page, label: str) -> Locator:
    return page.locator("#runs-table").get_by_role("button", name=label, exact=True)


def view_box(svg: Locator) -> list[float]:
    return [float(part) for part in (svg.get_attribute("viewBox") or "").split()]


FRAMES = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def centre(mark: Locator) -> tuple[float, float]:
    """The middle of an element on the screen."""
    mark.scroll_into_view_if_needed()
    # The page hears of the scrolling one frame later, and then takes away what it says.
    mark.page.evaluate(f"() => {FRAMES}")
    box = mark.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def panels(page: Page) -> Locator:
    """The figure of two panels, all of whose points have texts."""
    return page.locator("figure", has=page.locator(".point")).last


def wait_until(page: Page, expression: str, arg: object = None) -> None:
    """Wait for a condition; Playwright's own wait evaluates texts, which the page's policy forbids."""
    for _ in range(100):
        if page.evaluate(expression, arg):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"still not so after 5 seconds: {expression}")


def run_ids() -> list[str]:
    return runs_of("lowrank")[1]


@pytest.mark.parametrize(
    "viewport", [WIDE, PHONE, {"width": 320, "height": 640}, {"width": 1900, "height": 1000}]
)
@pytest.mark.parametrize("name", NAMES)
def test_no_width_makes_the_page_scroll_sideways(
    open_report: Open, name: str, viewport: dict[str, int]
) -> None:
    page = open_report(name, viewport=viewport)
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_unique_references_lead_somewhere_and_headings_are_in_order(
    open_report: Open, name: str
) -> None:
    page = open_report(name)
    ids = page.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
    assert len(ids) == len(set(ids))
    wanted = page.evaluate(
        """() => [...document.querySelectorAll('*')].flatMap(one => [
            ...['aria-labelledby', 'aria-describedby', 'aria-controls'].map(key => one.getAttribute(key)),
            one.getAttribute('href')?.match(/^#(.+)/)?.[1],
            ...[...(one.getAttribute('style') ?? '').matchAll(/url\\(#(.+?)\\)/g)].map(found => found[1]),
            one.getAttribute('clip-path')?.match(/url\\(#(.+?)\\)/)?.[1],
        ]).filter(Boolean)"""
    )
    assert set(wanted) <= set(ids)
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map(one => Number(one.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_columns_are_sorted_by_number_both_ways_and_said(open_report: Open) -> None:
    page = open_report()
    flops = [float(text) for text in column(page, "FLOPs")]
    assert flops != sorted(flops)
    header(page, "FLOPs").click()
    assert [float(text) for text in column(page, "FLOPs")] == sorted(flops)
    head = page.locator("#runs-table").get_by_role("columnheader", name="FLOPs")
    assert head.get_attribute("aria-sort") == "ascending"
    assert page.get_by_role("status").inner_text() == "Sorted by FLOPs, ascending."
    header(page, "FLOPs").click()
    assert [float(text) for text in column(page, "FLOPs")] == sorted(flops, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    header(page, "seed").click()
    assert head.get_attribute("aria-sort") == "none"


def test_sorting_keeps_the_order_of_equals(open_report: Open) -> None:
    page = open_report()
    header(page, "loss (nats/token)").click()
    losses = column(page, "loss (nats/token)")
    header(page, "structure").click()
    sizes = column(page, "size")
    assert column(page, "structure") == ["dense"] * 4 + ["lowrank-32"] * 4 + ["lowrank-63"] * 4
    assert sizes[:4] == ["cpu-m", "cpu-s", "cpu-xs", "cpu-2xs"]
    header(page, "seed").click()
    assert sorted(column(page, "loss (nats/token)")) == sorted(losses)


def test_headers_are_pressed_by_keys(open_report: Open) -> None:
    page = open_report()
    before = column(page, "run")
    header(page, "run").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert column(page, "run") == sorted(before)
    page.keyboard.press("Space")
    assert column(page, "run") == sorted(before, reverse=True)


def test_rows_without_a_number_come_last_both_ways(open_report: Open) -> None:
    page = open_report("hostile")
    for ordered in (["3.000", "3.714", "3.857", "4.000"], ["4.000", "3.857", "3.714", "3.000"]):
        header(page, "loss").click()
        assert column(page, "loss") == [*ordered, "-", "-", "-", "-"]


def test_the_filter_finds_rows_by_any_words(open_report: Open) -> None:
    page = open_report()
    box = page.get_by_role("searchbox", name="Filter runs")
    box.fill("CPU-M lowrank")
    shown = page.locator("#runs-table tbody tr:visible")
    assert shown.count() == 2
    assert page.locator("#filtered").inner_text() == "2 of 12 rows shown"
    box.fill("nothing of the kind")
    assert shown.count() == 0
    box.fill("")
    assert shown.count() == 12


def test_every_point_says_its_own_value_under_the_pointer(open_report: Open) -> None:
    page = open_report()
    texts = [text for text in point_texts(real_page().figures[1].figure) if "nan" not in text]
    marks = panels(page).locator(".point use")
    assert marks.count() == len(texts) == 22
    seen = []
    for i in range(marks.count()):
        page.mouse.move(*centre(marks.nth(i)))
        seen.append(page.locator(".tip").evaluate("tip => tip.hidden ? null : tip.firstChild.textContent"))
    # All curves begin in one point of the second panel: what lies on top speaks for it.
    differing = [i for i, (text, said) in enumerate(zip(texts, seen, strict=True)) if text != said]
    assert all("size 0" in texts[i] and "size 0" in (seen[i] or "") for i in differing)
    page.mouse.move(5, 5)
    assert page.locator(".tip").is_hidden()


def test_keys_lead_through_the_points(open_report: Open) -> None:
    page = open_report()
    points = panels(page).locator(".point")
    assert points.evaluate_all("all => all.filter(one => one.tabIndex === 0).length") == 1
    panels(page).get_by_role("button", name="Enlarge").focus()
    page.keyboard.press("Tab")
    tip = page.locator(".tip")
    texts = [text for text in point_texts(real_page().figures[1].figure) if "nan" not in text]
    assert texts[0] in tip.inner_text()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert texts[2] in tip.inner_text()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == texts[2]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert texts[-1] in tip.inner_text()
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == f"#run-{run_ids()[0]}"


def test_a_click_on_a_point_leads_to_its_row(open_report: Open) -> None:
    page = open_report()
    page.get_by_role("searchbox", name="Filter runs").fill("lowrank-32")
    page.mouse.click(*centre(panels(page).locator(".point use").nth(3)))
    row = page.locator(f"#run-{run_ids()[3]}")
    row.wait_for(state="visible")
    assert row.evaluate("one => one === document.activeElement && one.matches(':target')")
    wait_until(
        page,
        "one => { const box = one.getBoundingClientRect(); return box.top > 0 && box.bottom < innerHeight }",
        arg=row.element_handle(),
    )
    assert row.locator("th").evaluate("one => getComputedStyle(one).backgroundColor") == "rgb(255, 243, 191)"


def test_a_finger_shows_a_point_first_and_follows_it_then(open_report: Open) -> None:
    page = open_report(**PHONE_SETTINGS)
    mark = panels(page).locator(".point use").nth(2)
    page.touchscreen.tap(*centre(mark))
    assert "size 2" in page.locator(".tip").inner_text()
    assert page.evaluate("location.hash") == ""
    page.touchscreen.tap(*centre(mark))
    wait_until(page, f"location.hash === '#run-{run_ids()[2]}'")


def test_figures_are_zoomed_and_moved_but_never_take_the_pages_wheel(open_report: Open) -> None:
    page = open_report()
    figure = panels(page)
    svg = figure.locator("svg")
    whole = view_box(svg)
    middle = centre(svg)
    page.mouse.move(*middle)
    scrolled = page.evaluate("scrollY")
    page.mouse.wheel(0, 200)
    wait_until(page, f"scrollY > {scrolled} + 100")
    assert view_box(svg) == whole
    figure.get_by_role("button", name="Zoom in").click()
    figure.get_by_role("button", name="Zoom in").click()
    zoomed = view_box(svg)
    assert zoomed[2] == pytest.approx(whole[2] / 1.96) and zoomed[0] > whole[0]
    x, y = centre(svg)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 40, y + 20, steps=4)
    page.mouse.up()
    panned = view_box(svg)
    width = svg.bounding_box()["width"]  # type: ignore[index]
    assert panned[0] == pytest.approx(zoomed[0] - 40 / width * zoomed[2], rel=1e-3)
    assert page.evaluate("location.hash") == ""
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    wait_until(
        page, "([svg, width]) => svg.viewBox.baseVal.width < width", arg=[svg.element_handle(), panned[2] - 1]
    )
    figure.get_by_role("button", name="Reset").click()
    assert view_box(svg) == whole
    figure.get_by_role("button", name="Zoom in").focus()
    page.keyboard.press("+")
    assert view_box(svg)[2] < whole[2]
    page.keyboard.press("0")
    assert view_box(svg) == whole


def test_two_fingers_zoom_a_figure(open_report: Open) -> None:
    page = open_report(**PHONE_SETTINGS)
    svg = panels(page).locator("svg")
    whole = view_box(svg)
    svg.scroll_into_view_if_needed()
    session = page.context.new_cdp_session(page)
    x, y = 180.0, centre(svg)[1]

    def fingers(kind: str, apart: float) -> None:
        points = [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}] if apart else []
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    fingers("touchStart", 20)
    for apart in (30, 45, 60):
        fingers("touchMove", apart)
    fingers("touchEnd", 0)
    wait_until(
        page, "([svg, width]) => svg.viewBox.baseVal.width < width / 2", arg=[svg.element_handle(), whole[2]]
    )
    assert page.evaluate("visualViewport.scale") == 1


@pytest.mark.parametrize("settings", [{}, PHONE_SETTINGS], ids=["wide", "phone"])
def test_a_figure_is_enlarged_and_put_back(open_report: Open, settings: dict[str, object]) -> None:
    page = open_report(**settings)
    figure = panels(page)
    small = figure.locator("svg").bounding_box()
    figure.get_by_role("button", name="Enlarge").click()
    dialog = page.get_by_role("dialog", name="Two panels, enlarged")
    large = dialog.locator("svg").bounding_box()
    assert small is not None and large is not None and large["width"] > 1.2 * small["width"]
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert figure.locator("svg").count() == 1
    assert page.evaluate("document.activeElement.textContent") == "Enlarge"
    figure.get_by_role("button", name="Enlarge").click()
    page.keyboard.press("Tab")
    dialog.locator(".point").first.focus()
    assert "size 0" in page.locator("dialog .tip").inner_text()
    page.keyboard.press("Enter")
    dialog.wait_for(state="detached")
    wait_until(page, "document.activeElement.id.startsWith('run-')")


def background(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_the_theme_follows_the_system_until_the_reader_chooses(open_report: Open) -> None:
    page = open_report(color_scheme="dark")
    assert background(page) == PAPER["dark"]
    ink = "getComputedStyle(document.querySelector('figure svg text')).fill"
    assert page.evaluate(ink) == "rgb(228, 231, 234)"
    button = page.locator("#theme")
    assert button.inner_text() == "Theme: system"
    button.click()
    assert button.inner_text() == "Theme: light" and background(page) == PAPER["light"]
    button.click()
    page.emulate_media(color_scheme="light")
    assert button.inner_text() == "Theme: dark" and background(page) == PAPER["dark"]
    page.reload()
    assert background(page) == PAPER["dark"]
    page.emulate_media(media="print")
    assert background(page) == PAPER["light"]


@pytest.mark.parametrize("name", NAMES)
def test_without_scripts_everything_is_there(open_report: Open, name: str) -> None:
    page = open_report(name, java_script_enabled=False)
    assert page.locator("main section").count() == page.locator("main section:visible").count()
    assert (
        page.locator("#runs-table tbody tr:visible").count() == page.locator("#runs-table tbody tr").count()
    )
    assert page.locator("nav a:visible").count() == page.locator("nav a").count()
    assert page.locator("button:visible").count() == 0
    if name == "real":
        point = panels(page).locator("a.point").nth(1)
        assert "dense, size 1: loss" in (point.locator("title").text_content() or "")
        point.dispatch_event("click")
        assert page.url.endswith(f"#run-{run_ids()[1]}")


def test_what_is_printed_holds_every_run_and_no_controls(open_report: Open, tmp_path: Path) -> None:
    page = open_report(color_scheme="dark")
    page.get_by_role("searchbox", name="Filter runs").fill("lowrank-32")
    path = tmp_path / "report.pdf"
    path.write_bytes(page.pdf(prefer_css_page_size=True))
    page.emulate_media(media="print")
    assert page.locator("#runs-table tbody tr:visible").count() == 12
    assert page.locator("button:visible:not(th button), input:visible, nav:visible").count() == 0
    assert background(page) == PAPER["light"]
    # As wide as what is between the margins of an A4 page.
    page.set_viewport_size({"width": 695, "height": 900})
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    if program := shutil.which("pdftotext"):
        words = subprocess.run(
            [program, "-layout", path, "-"], capture_output=True, text=True, check=True
        ).stdout
        assert all(run in words for run in run_ids())


def test_what_readers_of_the_screen_are_told(open_report: Open) -> None:
    page = open_report("hostile")
    told = page.locator("body").aria_snapshot()
    for line in (
        r'- link "Skip to the report"',
        r'- navigation "Contents"',
        r"- main:",
        r'- heading "It hangs on the hypothesis .+" \[level=1\]',
        r'- heading "What would settle it" \[level=2\]',
        r'- note "Runs that are no data points"',
        r'- group "plain"',
        r'(img|link) "dense, size 0: loss 4\.200 at 1\.00e\+11 FLOPs"',
        r"- rowheader \"000000000001\"",
        r'- cell "diverged at step 12"',
        r'- columnheader "loss"',
        r'- button "loss"',
        r'- searchbox "Filter runs"',
    ):
        assert re.search(line, told), line
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_hostile_texts_are_shown_as_they_are(open_report: Open) -> None:
    page = open_report("hostile")
    shown = hostile_page()
    assert page.locator("h1").inner_text() == shown.headline
    assert page.locator(".description").inner_text() == LONG
    assert page.locator("a[href^='javascript']").count() == 0
    assert (
        page.get_by_role("link", name="000000000002", exact=True).first.get_attribute("href")
        == "../runs/000000000002"
    )
