"""Reports in a real Chromium for each test of this folder; all of them are marked `browser` and `slow`."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sample_page import bare_page, hostile_page, real_page

from analysis.page.render import render

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request

HERE = Path(__file__).parent
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Chromium refuses to run as root within its sandbox; the pages are the tests' own.
ARGUMENTS = ["--no-sandbox"]
WIDE = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}

Open = Callable[..., "Page"]


def program() -> str | None:
    """The browser of this machine."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


def why_not() -> str | None:
    """Why there can be no browser here, or None."""
    if importlib.util.find_spec("playwright") is None:
        return "the Python package playwright is not installed (make setup)"
    if program() is None:
        return f"none of {', '.join(PROGRAMS)} is on the path (as root: tests/browser/install.sh)"
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("browser")
            item.add_marker("slow")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    # Not in a fixture: skips from this one line are reported as one line, not as one for each test.
    if reason := why_not():
        pytest.skip(f"browser tests skipped: {reason}")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One browser for all tests of the session."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=program(), args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sample reports as files."""
    folder = tmp_path_factory.mktemp("reports")
    for name, page in {"real": real_page(), "hostile": hostile_page(), "bare": bare_page()}.items():
        (folder / f"{name}.html").write_text(render(page), encoding="utf-8")
    return folder


@pytest.fixture
def open_report(browser: Browser, reports: Path) -> Iterator[Open]:
    """Open a sample report offline; afterwards, that it asked for nothing and complained of nothing."""
    contexts, problems = [], []

    def asked(request: Request) -> None:
        # The page itself, and data that it holds, are no requests to anyone.
        if not request.url.startswith(("data:", reports.as_uri())):
            problems.append(f"request: {request.url}")

    def open_one(name: str = "real", **settings: Any) -> Page:
        context = browser.new_context(**{"viewport": WIDE, "reduced_motion": "reduce", **settings})
        context.set_offline(True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("request", asked)
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
        page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
        page.goto((reports / f"{name}.html").as_uri())
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert problems == []
