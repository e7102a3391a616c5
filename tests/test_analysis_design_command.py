"""The command `design`: its report, and mistakes that are one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from analysis.__main__ import main


def table(folder: Path) -> Path:
    lines = ["structure,params,tokens,train_flops"]
    for name, share in (("dense", 1.0), ("lowrank-32", 0.8)):
        for size in share * np.geomspace(1e6, 1e9, 4):
            lines.append(f"{name},{size:.0f},{20 * size:.0f},{120 * size**2:.0f}")
    path = folder / "plan.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["analysis", "design", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path)
    target = tmp_path / "design.json"
    assert run(monkeypatch, str(path), "--detect", "0.0012", "--json", str(target)) == 0
    out = capsys.readouterr().out
    assert out.startswith("# plan: what the planned runs can tell\n\n8 runs (4 training budgets x 1 seed)")
    assert "params and tokens vary together (r^2 = 1.0000)" in out and "Source: as given" not in out
    assert "power: a detectable difference of alpha of 0.0012 is reached by the planned runs" in out
    assert "irreducible: a detectable difference of alpha of 0.0012 is reached with" in out
    assert "published/datablations_spread.csv" in out and "## irreducible: L = E + k C^-alpha" in out
    body = json.loads(target.read_text())
    assert body["additions"]["irreducible"]["reached"] and body["laws"][0]["law"] == "power"
    assert (
        run(monkeypatch, str(path), "--law", "irreducible", "--target", "alpha=1e-9", "--max-runs", "2") == 0
    )
    assert "cannot be reached with at most 2 more runs" in capsys.readouterr().out
    assert (
        run(monkeypatch, str(path), "--law", "power", "--assume", "alpha=.05", "--noise", ".004", "--json")
        == 0
    )
    body = json.loads(capsys.readouterr().out)
    assert body["laws"][0]["assumed"]["alpha"] == 0.05 and body["laws"][0]["noise"] == 0.004


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--noise", "-1"], "--noise -1: must be above zero"),
        (["--noise", "nan"], "--noise nan: must be above zero"),
        (["--noise-from", "plan.csv"], "no column val_loss"),
        (["--law", "chinchila"], "did you mean 'chinchilla'?"),
        (["--law", "broken"], "no law to plan for"),
        (["--assume", "alpha=.3"], "add for example --law chinchilla"),
        (["--law", "power", "--assume", "alfa=.3"], "did you mean 'alpha'? power has k, alpha"),
        (["--law", "power", "--assume", "alpha"], "is not NAME=VALUE"),
        (["--law", "power", "--assume", "alpha=-1"], "must be above zero"),
        (["--law", "power", "--assume", "alpha[dence]=.1"], "no such structure; there are dense, lowrank-32"),
        (["--target", "gamma=.1"], "these laws have alpha, beta, eta"),
        (["--target", "alpha"], "is not NAME=SE"),
        (["--target", "alpha=0"], "must be above zero"),
        (["--target", "alpha=much"], "'much' is not a number"),
        (["--target", "alpha[x]=.1"], "no such structure"),
        (["--detect", "alpha[dense]=.1"], "is of two structures"),
        (["--target", "alpha=.1", "--detect", ".1"], "not allowed with"),
        (["--max-runs", "0"], "must lie from 1 to 1000"),
        (["--filter", "params > 1e99"], "none of 8 runs meets it"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = table(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, path.name, *words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("error: ") and message in err


def test_tables_without_runs_or_columns_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    for text, message in (
        ("params,tokens\n", "no rows"),
        ("structure,seed\ndense,1\n", "neither train_flops nor params and tokens"),
        ("structure,params,tokens\ndense,1e6,\n", "tokens is empty"),
    ):
        path.write_text(text)
        assert run(monkeypatch, str(path)) == 2
        assert message in capsys.readouterr().err
    path.write_text("structure,train_flops\n" + "".join(f"dense,1e{n}\n" for n in range(12, 18)))
    assert run(monkeypatch, str(path), "--law", "tied") == 2
    assert "needs the column 'params'" in capsys.readouterr().err
    assert run(monkeypatch, str(path), "--law", "irreducible") == 0
    assert "chinchilla" not in capsys.readouterr().out
