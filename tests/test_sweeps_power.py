"""`sweeps plan --power`: the planned grid goes to the analysis, whose words and exit code come back."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Cli

from sweeps.__main__ import main
from sweeps.layout import layout_or_guess
from sweeps.overview import look
from sweeps.power import write_grid
from sweeps.sweepfile import find_sweep, read_sweep, sweep_files

LADDER = """
[base]
model = { n_heads = 2, seq_len = 32 }
optim = { peak_lr = 5e-3, batch_tokens = 256 }
[base.data]
corpus = { kind = "synthetic", vocab_size = 32, order = 1 }
[axes]
structure = ["dense", "lowrank-63"]
[[zip]]
model.d_model = [16, 24, 32, 48]
model.n_layers = [2, 2, 3, 4]
[budget]
tokens_per_param = 20
of = "dense"
"""


def test_what_the_sweep_can_tell_follows_the_plan(cli: Cli, write_sweep: Callable[..., Path]) -> None:
    file = str(write_sweep(LADDER, "ladder"))
    plain = cli("plan", file).stdout
    done = cli("plan", file, "--power", "--noise", "0.004", "--detect", "0.01")
    assert done.stdout.startswith(plain)
    told = done.stdout[len(plain) :]
    assert told.startswith("\n# ladder: what the planned runs can tell\n\n8 runs (4 sizes x 1 seed) of dense")
    assert "sd of log loss 0.004. Source: as given." in told and "## Cheapest additions" in told


def test_a_promise_is_kept_once(cli: Cli, write_sweep: Callable[..., Path]) -> None:
    file = str(write_sweep(LADDER, "ladder"))
    words = ("plan", file, "--power", "--noise", "0.004", "--save")
    cli(*words)
    path = cli.results / "tables" / "ladder_planned.csv"
    with open(path, encoding="utf-8", newline="") as kept:
        rows = list(csv.DictReader(kept))
    assert len(rows) == 8 and {row["noise"] for row in rows} == {"0.004"} and "config" not in rows[0]
    assert {row["structure"] for row in rows} == {"dense", "lowrank-63"} and rows[0]["planned"]
    assert set(json.loads(rows[0]["assumed"])) == {"power", "irreducible"}
    before = path.read_bytes()
    assert "a promise stands there already; --force replaces it" in cli.mistake(*words)
    assert path.read_bytes() == before
    cli("plan", file, "--power", "--save", "--force", "--law", "irreducible", "--assume", "E=2.5,alpha=0.25")
    with open(path, encoding="utf-8", newline="") as kept:
        row = next(csv.DictReader(kept))
    assert row["noise"] == "0.0014"
    values = json.loads(row["assumed"])
    assert list(values) == ["irreducible"]
    assert (values["irreducible"]["E"], values["irreducible"]["alpha"]) == (2.5, 0.25)


def test_mistakes_are_one_line_with_code_2(
    results: Path, write_sweep: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = str(write_sweep(LADDER, "ladder"))
    for words, message in (
        (["--noise", "0.01"], "--noise=0.01: needs --power"),
        (["--detect", "0.01"], "--detect=0.01: needs --power"),
        (["--power", "--noise-from", "nothing.csv"], "nothing.csv: no such file"),
        (["--power", "--json"], "leave --json out"),
        (["--power", "--noise", "-1"], "--noise -1: must be above zero"),
        (["--power", "--detect", "0"], "--detect 0.0: must be above zero"),
        (["--save"], "--save: needs --power"),
        (["--power", "--force"], "--force: needs --save"),
        (["--power", "--assume", "E=2"], "--assume: say whose parameters these are"),
        (["--power", "--law", "powr"], "did you mean 'power'?"),
    ):
        # In this process, which spares ten starts; what the analysis says comes from a process of its own.
        monkeypatch.setattr(sys, "argv", ["sweeps", "plan", file, *words, "--results", str(results)])
        with pytest.raises(SystemExit) as caught:
            main()
        (line,) = (one for one in capfd.readouterr().err.splitlines() if one.startswith("error:"))
        assert caught.value.code == 2 and message in line


def test_the_grid_has_a_row_a_run_under_the_names_of_a_result(results: Path, tmp_path: Path) -> None:
    overview = look(read_sweep(find_sweep("selfguided")), results)
    write_grid(overview, tmp_path / "grid.csv")
    with open(tmp_path / "grid.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["config"] for row in rows] == [config.canonical_json() for config in overview.configs]
    assert len({row["run_id"] for row in rows}) == len(rows)
    plan = overview.plan(layout_or_guess(overview.sweep.execution))
    for column in ("params", "tokens", "seed", "structure", "size"):
        assert [row[column] for row in rows] == [str(getattr(run, column)) for run in plan.runs]
    assert [int(row["train_flops"]) for row in rows] == [run.flops for run in plan.runs]


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.stem for path in sweep_files()])
def test_every_sweep_can_be_asked(cli: Cli, name: str) -> None:
    done = cli("plan", name, "--power")
    assert f"\n# {name}: what the planned runs can tell\n" in done.stdout
