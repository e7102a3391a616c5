"""Commands that messages give: they work as they stand there, whichever results folder was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.hints import hint


@pytest.mark.parametrize(
    ("usual", "results", "ending"),
    [
        ("", "results", ""),
        ("", "elsewhere", " --results elsewhere"),
        ("", "my results/a", " --results 'my results/a'"),
        ("/data/r", "/data/r", ""),
        ("/data/r", "results", " --results results"),
    ],
)
def test_a_hint_names_the_results_folder_where_it_is_not_the_usual(
    usual: str, results: str, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALING_RESULTS", usual)
    assert hint(["logs", "0123"], Path(results)) == f"python -m sweeps logs 0123{ending}"
    assert hint(["export", "own"], Path(results), "analysis") == f"python -m analysis export own{ending}"


def test_words_with_spaces_are_quoted() -> None:
    said = hint(["status", "my sweeps/a.toml"], Path("r"))
    assert said == "python -m sweeps status 'my sweeps/a.toml' --results r"


def test_the_usual_folder_is_known_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCALING_RESULTS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert hint(["list"], tmp_path / "results") == "python -m sweeps list"
    assert hint(["list"], tmp_path) == f"python -m sweeps list --results {tmp_path}"
