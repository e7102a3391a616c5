"""Documents that quote tables: what is quoted follows the tables, the prose stays."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from analysis.__main__ import main
from analysis.document import refreshed
from analysis.errors import AnalysisError

TABLE = (
    "# a: title\n\n**Verdict.** Not\nrejected.\n\n| x |\n|---|\n| 1 |\n\nData: 3 runs.\n\n"
    "| y |\n|---|\n| 2 |\n"
)
PROSE = (
    "# Study\n\nWords.\n\n<!-- tables/a.md: table 2 -->\n| old |\n<!-- end -->\n\nMore *words*.\n"
    "<!-- tables/a.md: **Verdict.** -->\n<!-- end -->\nlast\n"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "a.md").write_text(TABLE)
    return tmp_path


def test_quoted_parts_follow_the_tables_and_prose_is_kept(root: Path) -> None:
    new = refreshed(PROSE, root, "S.md")
    assert new == (
        "# Study\n\nWords.\n\n<!-- tables/a.md: table 2 -->\n\n| y |\n|---|\n| 2 |\n\n<!-- end -->\n\n"
        "More *words*.\n"
        "<!-- tables/a.md: **Verdict.** -->\n\n**Verdict.** Not\nrejected.\n\n<!-- end -->\nlast\n"
    )
    assert refreshed(new, root, "S.md") == new


def test_a_table_is_found_under_its_heading(root: Path) -> None:
    (root / "tables" / "a.md").write_text(f"{TABLE}\n## Runs of a\n\n| z |\n|---|\n| 3 |\n")
    mark = "<!-- tables/a.md: Runs, table 1 -->"
    assert "| 3 |" in refreshed(f"{mark}\n<!-- end -->\n", root, "S.md")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x\n<!-- tables/a.md: table 3 -->\n<!-- end -->\n", "S.md, line 2: .* has 2 tables, no table 3"),
        ("<!-- tables/a.md: table 1 -->\n", "S.md: <!-- .* of line 1 has no <!-- end -->"),
        (
            "<!-- tables/a.md: table 1 -->\n<!-- tables/a.md: table 2 -->\n<!-- end -->\n",
            "line 2: <!-- .*table 1 --> of line 1 has no",
        ),
        ("<!-- tables/a.md: Runs, table 1 -->\n<!-- end -->\n", "has 0 tables under 'Runs', no table 1"),
        ("<!-- tables/a.md -->\n<!-- end -->\n", "line 1: <!-- tables/a.md --> is no mark; write it as"),
        ("<!-- tables/a.csv: table 1 -->\n<!-- end -->\n", "line 1: .*a.csv: table 1 --> is no mark"),
        ("<!-- end -->\n", "line 1: <!-- end --> ends nothing"),
        ("<!-- tables/b.md: table 1 -->\n<!-- end -->\n", "line 1: .*b.md: No such file"),
        ("<!-- tables/a.md: Nothing -->\n<!-- end -->\n", "no paragraph begins with 'Nothing'"),
        ("<!-- tables/a.md: | -->\n<!-- end -->\n", "2 paragraphs begin with '|'"),
    ],
)
def test_mistakes_are_named_by_line(root: Path, text: str, said: str) -> None:
    with pytest.raises(AnalysisError, match=said.replace("|", r"\|")) as caught:
        refreshed(text, root, "S.md")
    assert "\n" not in str(caught.value)


def test_the_command_writes_checks_and_keeps_a_document_with_a_mistake(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = root / "S.md"
    file.write_text(PROSE)

    def command(*words: str) -> object:
        monkeypatch.setattr(sys, "argv", ["analysis", "document", str(file), "--results", str(root), *words])
        try:
            main()
        except SystemExit as left:
            return left.code
        return None

    assert command("--check") == 1 and file.read_text() == PROSE
    assert "what it quotes from tables/a.md has changed" in capsys.readouterr().out
    assert command() in (None, 0) and "| y |" in file.read_text()
    assert command("--check") in (None, 0)
    file.write_text(PROSE.replace("table 2", "table 9"))
    assert command() == 2 and "table 9" in file.read_text()
    assert "no table 9" in capsys.readouterr().err
