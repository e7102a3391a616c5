"""The README and docs against the tree: links, make targets and commands that they name exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.__main__ import parsers
from analysis.commandline import parse
from analysis.document import quoted, refreshed

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    sweeps = {path.stem for path in (ROOT / "sweeps" / "configs").glob("*.toml")}
    studies = {path.stem for path in (ROOT / "sweeps" / "configs" / "search").glob("*.toml")}
    for target in re.findall(r"`?make ((?:[a-z]+-)*[a-zA-Z]+)", page.read_text()):
        if target in ("sweep-NAME", "plan-NAME", "search-NAME"):
            continue
        named = re.fullmatch(r"(sweep|plan|search)-(.+)", target)
        known = named is not None and named[2] in (studies if named[1] == "search" else sweeps)
        assert known or re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("package", ["trainer", "sweeps", "analysis"])
def test_commands_exist(package: str) -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    done = subprocess.run(
        [sys.executable, "-m", package, "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    for command in set(re.findall(rf"python -m {package} ([a-z]+)", text)):
        assert re.search(rf"\b{command}\b", done.stdout), command


def analysis_lines() -> list[str]:
    """What the pages write after `python -m analysis`, in code blocks and in text."""
    text = "\n".join(page.read_text() for page in PAGES).replace("\\\n", " ")
    return re.findall(r"python -m analysis ([^`\n]+)", text)


@pytest.mark.parametrize("line", analysis_lines())
def test_documented_analysis_commands_parse(line: str) -> None:
    words = shlex.split(line.partition("#")[0])
    assert callable(parse(*parsers(), words).run)


def test_what_the_study_quotes_is_what_its_tables_have() -> None:
    path = ROOT / "results" / "study" / "STUDY.md"
    text = path.read_text()
    assert len(quoted(text)) >= 8
    assert refreshed(text, ROOT / "results", "STUDY.md") == text
