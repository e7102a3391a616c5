"""The analysis command line, where only numpy, scipy, pandas and matplotlib are installed."""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import progress, terminal
from analysis.__main__ import COMMANDS, main, parsers
from analysis.commandline import Parser, parse, run
from analysis.progress import Progress
from analysis.terminal import aligned, coloured

ROOT = Path(__file__).parent.parent
DIGITISED = "results/published/fig1_scaling_lowrank_digitised.csv"
MAPS = [
    "--map", "flops_from_repo_formula=train_flops", "--map", "loss_digitised=val_loss", "--map",
    "curve=structure",
]  # fmt: skip
BARE = """
import runpy, sys

BLOCKED = {"typer", "rich", "click", "pydantic", "torch", "tokenizers", "mlflow", "optuna", "submitit"}

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
runpy.run_module("analysis", run_name="__main__", alter_sys=True)
"""


def bare(*words: str) -> subprocess.CompletedProcess[str]:
    """`python -m analysis words` without the libraries of the trainer and of sweeps."""
    return subprocess.run(
        [sys.executable, "-c", BARE, *words], capture_output=True, text=True, timeout=120, cwd=ROOT
    )


def test_fit_and_figures_need_the_numeric_libraries_only(tmp_path: Path) -> None:
    target = tmp_path / "fit.json"
    fitted = bare("fit", DIGITISED, *MAPS, "--json", str(target))
    assert (fitted.returncode, fitted.stderr) == (0, "")
    assert "| structure |" in fitted.stdout and "**Verdict.**" in fitted.stdout
    assert set(json.loads(target.read_text())["fits"]) >= {"dense"}
    drawn = bare("figures", DIGITISED, *MAPS, "--out", str(tmp_path))
    # A slow machine says how far it is.
    said = [line for line in drawn.stderr.splitlines() if not line.startswith("drawing: ")]
    assert (drawn.returncode, said) == (0, [])
    paths = [Path(line) for line in drawn.stdout.splitlines()]
    assert {path.suffix for path in paths} == {".svg", ".pdf", ".png", ".md", ".tex", ".json", ".csv"}
    assert all(path.is_file() and tmp_path in path.parents for path in paths)


def test_help_needs_no_numeric_library() -> None:
    whole = bare("--help")
    assert whole.returncode == 0 and whole.stdout == bare().stdout
    assert all(f"\n    {name}" in whole.stdout for name in parsers()[1])
    one = bare("gaps", "-h")
    assert one.returncode == 0 and "SCALING_RESULTS" in one.stdout and "--json [PATH]" in one.stdout
    code = (
        "import sys, analysis.__main__ as m; m.parsers();"
        "sys.exit(repr({'scipy', 'pandas', 'matplotlib', 'numpy'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stderr.strip() == "''"


def test_mistakes_are_one_line_without_those_libraries() -> None:
    for words, message in (
        (["fit", "none.csv"], "error: none.csv: no such file"),
        (["fitt", DIGITISED], "did you mean 'fit'? (see 'python -m analysis --help')"),
    ):
        done = bare(*words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert message in done.stderr and done.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing-like-it"], "there is no command 'nothing-like-it' (see 'python -m analysis --help')"),
        (["--hepl"], "there is no option '--hepl'; did you mean '--help'?"),
        (["fit", "x", "--jsno"], "did you mean '--json'? (see 'python -m analysis fit --help')"),
        (["fit", "--irreducable=2"], "did you mean '--irreducible'?"),
        (["fit", "x", "-x"], "there is no option '-x' (see"),
        (["fit"], "arguments are required: TABLE"),
        (["fit", "a", "b"], "'b' is one word too many"),
        (["fit", "x", "--irreducible", "much"], "--irreducible: invalid float value: 'much'"),
        (["fit", "x", "--map"], "--map: expected one argument"),
        (["gaps", "--json", "one", "two"], "'one' is not; put --json last to print instead"),
        (["fit", "x", "--res", "y"], "there is no option '--res'; did you mean '--results'?"),
    ],
)
def test_wrong_words_are_one_line_and_exit_code_two(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["analysis", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("error: ") and message in err and "--help')" in err


def test_options_may_stand_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALING_RESULTS", "elsewhere")
    read = parse(*parsers(), ["gaps", "one", "--out", "x", "two", "--json"])
    assert (read.tables, read.out, read.json) == (["one", "two"], Path("x"), "-")
    assert read.results == Path("elsewhere")
    read = parse(*parsers(), ["figures", "--no-published", "one", "--force", "--results", "here"])
    assert (read.table, read.published, read.force, read.results) == ("one", False, True, Path("here"))
    assert parse(*parsers(), ["fit", "--irreducible", "-1", "--", "-x.csv"]).table == "-x.csv"


def test_every_command_says_what_it_does() -> None:
    parser, commands = parsers()
    assert len(commands) == len(COMMANDS)
    for name, command in commands.items():
        assert command.prog == f"python -m analysis {name}" and callable(command.get_default("run"))
        assert command.description and command.options()[:2] == ["-h", "--help"]
        assert command.format_help() and all(a.help for a in command._actions)
    assert parser.format_help()


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, ""),
        (FileNotFoundError(2, "No such file", "x.csv"), 2, "error: x.csv: No such file\n"),
        (ValueError("two\nlines"), 2, "error: two lines\n"),
    ],
)  # fmt: skip
def test_how_it_ends(error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(_: argparse.Namespace) -> None:
        raise error

    parser = Parser(prog="x")
    commands = parser.add_subparsers()
    commands.add_parser("fail").set_defaults(run=fails)
    with pytest.raises(SystemExit) as caught:
        run(parser, commands.choices, ["fail"], (ValueError,))
    assert caught.value.code == code and capsys.readouterr().err == said


def test_a_reader_that_leaves_early_is_no_error() -> None:
    words = [sys.executable, "-m", "analysis", "fit", DIGITISED, *MAPS]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_colour_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert coloured("x", terminal.RED, Terminal()) == "\x1b[31mx\x1b[0m"
    assert coloured("x", terminal.RED, io.StringIO()) == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured("x", terminal.RED, Terminal()) == "x"


def test_columns_are_aligned_and_fit_the_terminal() -> None:
    header = ("structure", "loss (nats/token)")
    rows = [["dense", "3.25"], ["lowrank-63, peak_lr=0.01", "10.5"]]
    assert aligned(header, rows, 80).splitlines() == [
        "structure                 loss (nats/token)",
        "------------------------  -----------------",
        "dense                                  3.25",
        "lowrank-63, peak_lr=0.01               10.5",
    ]
    narrow = aligned(header, rows, 24).splitlines()
    assert narrow == [
        "structure           loss",
        "                  (nats/",
        "                  token)",
        "------------  ----------",
        "dense               3.25",
        "lowrank-63,         10.5",
        "peak_lr=0.01",
    ]
    assert {"3.25", "10.5"} <= set(aligned(header, rows, 1).split())


def test_progress_rewrites_a_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 1.1, 2.0])
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Progress("reading", 4) as watched:
        for done in (1, 2, 3):
            watched.update(done)
    first, second, cleared, end = stream.getvalue().split("\r")[1:]
    assert first == "reading: 1 of 4 (25%), 0:00:03 left"
    assert second.rstrip() == "reading: 3 of 4 (75%), 0:00:01 left"
    assert not cleared.strip() and end == ""


def test_progress_in_a_log_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 5.0, 11.0, 12.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Progress("reading", 4) as watched:
        for done in (1, 2, 4):
            watched.update(done)
    assert capsys.readouterr().err == "reading: 2 of 4 (50%), 0:00:11 left\n"
