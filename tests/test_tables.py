"""Tables of reports as Markdown and LaTeX: what is escaped, how numbers stand, that pdflatex takes all."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis import bench_tables, report
from analysis.analyse import Analysis, analyse
from analysis.arms import dynamics_tables, gaps_report
from analysis.arms.gaps import gaps
from analysis.digits import decimals, estimate, number, probability, significant, with_error
from analysis.errors import AnalysisError
from analysis.latex import SPECIAL, Cell, character, code, column, heading, prose
from analysis.reproduce.report import latex as reproduced
from analysis.reproduce.rows import compare
from analysis.runs.reading import read_csv
from analysis.tables import Table, latex_file

TABLES = Path(__file__).parent.parent / "results" / "tables"
HOSTILE = [
    "\\", "{", "}", "$", "&", "#", "%", "_", "~", "^", "<", ">", "|", '"', "a--b", "[x] y",
    "* y", "`a_b`", "**b**",
    "αβΩς", "× – − — ² ⁻¹ … ≤ → ± N* α", "Åéñçßøł", "中 ✓ 🙂 \u0007", "x^y", "C^-alpha", "1e-06",
    "Paule–Mandel τ²",
]  # fmt: skip


def hostile() -> Table:
    rows = [[text, text, f"{i / 7:.3f} ± 0.012"] for i, text in enumerate(HOSTILE)]
    notes = [f"[1] {' '.join(HOSTILE)}", *HOSTILE]
    return Table(["run", "quantity & 50 % of #_1", "loss^2 {nats}"], rows, " ".join(HOSTILE), notes)


def tracked() -> Iterator[tuple[str, str]]:
    """LaTeX of the tracked tables, by name."""
    for path in sorted(TABLES.glob("*_runs.csv")):
        name = path.name.removesuffix("_runs.csv")
        yield name, report.latex(analyse(read_csv(path), name))
    yield "gaps", gaps_report.latex(gaps(read_csv(TABLES / "selfguided_runs.csv"), "selfguided"))
    curves = TABLES / "stability_dynamics.csv", TABLES / "stability_curves.csv"
    yield (
        "dynamics",
        dynamics_tables.latex(dynamics_tables.read_dynamics(*curves, "stability", "36 of 36 runs")),
    )
    for kind in bench_tables.TITLES:
        tables = bench_tables.bench_tables(kind, TABLES / "bench" / f"{kind}.csv")
        yield kind, bench_tables.latex(kind, tables)
    rows = [
        compare("kyo", f"a/long/path_{i} of N", 0.5, 0.5 + i / 9, 0.01, "why: E 1 -> 2") for i in range(60)
    ]
    yield "reproduce", reproduced({"kyo": rows, "fig1": rows[:1]})


def environments(text: str) -> list[str]:
    """Names of the environments, after checking that each is closed in its turn."""
    names, opened = [], []
    for which, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if which == "begin":
            names.append(name)
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    return names


def bare(text: str) -> str:
    """LaTeX without comments and escaped characters."""
    return re.sub(r"(?m)^%.*$", "", re.sub(r"\\[\\{}$&#%_,;]", "", text))


def test_every_special_character_is_escaped() -> None:
    assert prose("a_b & 10 % of #1") == r"a\_b \& 10\,\% of \#1"
    assert prose("x < y ~ z") == r"x $<$ y $\sim$ z" and prose("{\\}") == r"\{\textbackslash{}\}"
    assert (
        prose("± × – − — ²") == r"$\pm$ $\times$ -- $-$ --- $^{2}$" and prose("α, Ω") == r"$\alpha$, $\Omega$"
    )
    assert prose("é ß") == r"\'{e} {\ss}" and prose("中\u0007") == "[U+4E2D] "
    for c in [*SPECIAL, *map(chr, range(0x20, 0x250)), *map(chr, range(0x370, 0x400))]:
        assert character(c).isascii(), c
    for text in HOSTILE:
        for out in (prose(text), heading(text), code(text), Cell.of(text).latex()):
            left = bare(out)
            assert out.isascii() and not set("#%&") & set(left), out
            assert left.count("$") % 2 == 0 and left.count("{") == left.count("}"), out
            assert "_" not in re.sub(r"\$[^$]*\$", "", left), out


def test_formulas_and_names_of_the_field_are_mathematics() -> None:
    assert prose("L = E + A N^-alpha + B D^-beta: a fit") == r"$L = E + A N^{-\alpha} + B D^{-\beta}$: a fit"
    assert prose("N* ~ C^a, alpha 0.5") == r"$N^*$ $\sim$ $C^{a}$, $\alpha$ 0.5"
    assert prose("5e18 runs of -0.5 in lowrank-32, alpha-1, delta method") == (
        r"$5\times10^{18}$ runs of $-$0.5 in lowrank-32, alpha-1, delta method"
    )
    assert heading("alpha with E") == r"$\alpha$ with $E$" and heading("p (Holm)") == "$p$ (Holm)"


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("0.0975 ± 0.0034", r"$0.0975\pm0.0034$"),
        ("1.23e+11", r"$1.23\times10^{11}$"),
        ("1e-06", "$10^{-6}$"),
        ("1.2346e+07 ± 9.0e+04", r"$(1.2346\pm0.0090)\times10^{7}$"),
        ("-0.5", "$-0.5$"),
        ("26,784", "$26{,}784$"),
        ("[-0.05, 0.11]", "$[-0.05, 0.11]$"),
        ("[9.35e+07, 1.124e+08]", r"$[0.935, 1.124]\times10^{8}$"),
        ("12.5 [11.4, 25.8]", r"$12.5\;[11.4, 25.8]$"),
        ("< 0.001", "$<0.001$"),
        ("- [1][2]", r"--\textsuperscript{[1][2]}"),
        ("0.0975 [1]", r"$0.0975$\textsuperscript{[1]}"),
        ("**82.5**", r"\textbf{\boldmath $82.5$}"),
        ("3 (+ 1 diverged)", "3 (+ 1 diverged)"),
        ("E", "$E$"),
        ("", ""),
    ],
)
def test_cells(text: str, latex: str) -> None:
    assert Cell.of(text).latex() == latex


def test_decimal_points_stand_beneath_each_other() -> None:
    cells = [Cell.of(text) for text in ("4.149 ± 0.013", "3.08189 ± 0.00096", "12 ± 10", "7", "- [1]")]
    out = column(cells)
    # Everything right of the value's last integer digit has one width, whatever it is made of.
    texts = [text.partition(r"\phantom{\textsuperscript")[0].replace("$", "") for text in out[:4]]
    signs = [re.sub(r"\\phantom\{((?:[^{}]|\{\})*)\}", r"\1", text) for text in texts]
    tails = [re.sub(r"^\d+|\{\}", "", text) for text in signs]
    assert {re.sub(r"\d", "0", tail) for tail in tails} == {r".00000\pm00.00000"}
    assert out[0].startswith(r"$4.149\phantom{00}\pm") and out[4] == r"--\textsuperscript{[1]}"


def test_structure_of_a_floating_table() -> None:
    table = Table(
        ["structure", "alpha", "95 % interval"],
        [["dense", "0.10 ± 0.02", "[0.08, 0.11]"], ["x_1", "- [1]", "-"]],
        "Slopes & more.", ["Least squares.", "[1] x_1: too few"],
    )  # fmt: skip
    text = table.latex("tab:a b_c%")
    assert environments(text) in (
        ["table", "tabular", "minipage"],
        ["table", "tabular", "tabular", "minipage"],
    )
    assert r"\caption{Slopes \& more.}\label{tab:a-b-c}" in text and r"{@{}lrr@{}}" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert r"\textsuperscript{[1]}\,x\_1: too few\par" in text
    assert r"dense & $0.10\pm0.02$" in text and "$[0.08, 0.11]$" in text
    assert latex_file([("tab:a", table)]).startswith("% needs \\usepackage{booktabs}\n")
    assert table.markdown().endswith("\n\nLeast squares.\n\n- [1] x_1: too few")


def test_long_and_wide_tables() -> None:
    long = Table(["run", "loss"], [[f"{i:012x}", f"{i / 7:.3f}"] for i in range(60)], "Runs.", ["A note."])
    text = latex_file([("tab:runs", long)])
    assert (
        environments(text) == ["longtable"] and r"\endlastfoot" in text and r"\texttt{00000000003b}" in text
    )
    assert "\\usepackage{longtable}" in text.splitlines()[0]
    words = Table(["quantity", "note"], [["x " * 30, "word " * 60]] * 3, "Words.")
    assert "p{" in words.latex("w") and "landscape" not in words.latex("w")
    wide = Table([f"c{i}" for i in range(12)], [["12.3456 ± 0.0012"] * 12] * 3, "Wide.")
    assert environments(wide.latex("w"))[:2] == ["landscape", "table"]


def test_a_column_without_a_word_is_left_out_and_names_are_not_numbers() -> None:
    table = Table(["run", "note"], [["391224615606", ""], ["8edf39140f9b", ""]], "Runs.")
    text = table.latex("x")
    assert r"\texttt{391224615606} \\" in text and "note" not in text and "{@{}l@{}}" in text
    sizes = Table(["run", "runs"], [["smaller size", "3"]], "Runs.").latex("x")
    assert "texttt" not in sizes and "{@{}lr@{}}" in sizes


def test_short_markdown_aligns_numbers_and_escapes_bars() -> None:
    table = Table(["law", "E"], [["a|b", "**0.5**"], ["c", ""]])
    assert table.markdown(padded=False) == "| law | E |\n| --- | --: |\n| a\\|b | **0.5** |\n| c |  |"


def test_digits_of_estimates() -> None:
    assert estimate(482.0, 0.3, 7e5) == ("480", "[0.30, 7.0e+05]")
    assert estimate(1.2e8, 1.0e8, 1.5e8) == ("1.20e+08", "[1.00e+08, 1.50e+08]")
    assert estimate(3.14159, 2.9, 3.4, 0.1) == ("3.14", "[2.90, 3.40]")
    assert [significant(x) for x in (0.02, 1.0, 0.0996, 12.0, 482.0, 123456.0, 0.0)] == [
        "0.020", "1.0", "0.10", "12", "480", "1.2e+05", "0",
    ]  # fmt: skip
    assert probability(0.0497) == "= 0.050" and number(24.3, 31.0) == "24"


def test_each_number_with_an_error_has_the_digits_of_that_error(lowrank: Analysis) -> None:
    seen = 0
    text = report.markdown(lowrank) + gaps_report.markdown(
        gaps(read_csv(TABLES / "selfguided_runs.csv"), "selfguided")
    )
    for value, error in re.findall(r"([\d.]+) ± ([\d.]+)", text):
        assert len(value.partition(".")[2]) == len(error.partition(".")[2]) == decimals(float(error))
        assert with_error(float(value), float(error)) == f"{value} ± {error}"
        seen += 1
    assert seen > 100


@pytest.fixture(scope="module")
def lowrank() -> Analysis:
    return analyse(read_csv(TABLES / "lowrank_runs.csv"), "lowrank")


def test_markdown_and_latex_hold_the_same_numbers(lowrank: Analysis) -> None:
    text = report.latex(lowrank)
    assert environments(text).count("table") == 2 and "Data: 12 of 12 runs." in text
    plain = re.sub(r"\\phantom\{[^{}]*\}", "", text)
    cells = [cell for row in report.run_rows(lowrank.runs.table) for cell in row]
    cells += [cell for row in report.fit_rows(lowrank)[0] for cell in row]
    found = [Cell.of(cell) for cell in cells if Cell.of(cell).numeric]
    assert len(found) > 90 and all(cell.latex().strip("$") in plain for cell in found)


def test_benches_show_medians_ranges_and_what_failed(tmp_path: Path) -> None:
    source = (TABLES / "bench" / "ffn.csv").read_text().splitlines()
    path = tmp_path / "ffn.csv"
    broken = source[1].replace(",dense,", ",x,").split(",")
    broken = [*broken[:2], "monarch-9", *broken[3:6], *[""] * 9, *broken[15:]]
    path.write_text("\n".join([f"{source[0]},error", *(f"{line}," for line in source[1:])]) + "\n")
    with open(path, "a") as file:
        file.write(",".join(broken) + ",out of memory\n")
    (table,) = bench_tables.bench_tables("ffn", path)
    text = bench_tables.markdown("ffn", [table])
    assert "AMD EPYC, 2 threads, fp32 eager" in text and "12.5 [11.4, 25.8]" in text
    assert "Not measured: monarch-9: out of memory." in text
    train = bench_tables.bench_tables("train", TABLES / "bench" / "train.csv")
    assert "| d128-L4 | 4,096        | dense" in bench_tables.markdown("train", train)
    with pytest.raises(AnalysisError, match="no column 'ms'"):
        bench_tables.bench_tables("decode", TABLES / "bench" / "train.csv")


def test_all_tracked_tables_are_balanced_ascii() -> None:
    for name, text in [*tracked(), ("hostile", latex_file([("tab:x", hostile())]))]:
        assert text.isascii(), name
        assert set(environments(text)) <= {"table", "tabular", "minipage", "longtable", "landscape"}
        left = bare(text)
        assert left.count("{") == left.count("}") and left.count("$") % 2 == 0, name
        labels = re.findall(r"\\label\{([^}]*)\}", text)
        assert len(set(labels)) == len(labels) > 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_pdflatex_sets_all_tables_within_the_page(tmp_path: Path) -> None:
    texts = dict(tracked()) | {"hostile": latex_file([("tab:x", hostile())])}
    inputs = []
    for name, text in texts.items():
        (tmp_path / f"{name}.tex").write_text(text)
        inputs.append(rf"\input{{{name}}}\clearpage")
    packages = "".join(rf"\usepackage{{{name}}}" for name in ("booktabs", "array", "longtable", "pdflscape"))
    head = rf"\documentclass{{article}}\usepackage[margin=1in]{{geometry}}{packages}"
    body = "\n".join(inputs)
    (tmp_path / "all.tex").write_text(f"{head}\n\\begin{{document}}\n{body}\n\\end{{document}}\n")
    for _ in range(2):
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
            cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=200,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:]
    over = [float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt", done.stdout)]
    assert max(over, default=0.0) < 1.0, over
