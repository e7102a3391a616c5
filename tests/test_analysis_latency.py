"""Tables of measurements: what is read, refused and chosen, and that the figures show it."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis.__main__ import main
from analysis.errors import AnalysisError
from analysis.figures.coordcheck import coordcheck_figure, slope
from analysis.figures.decode import decode_figure
from analysis.figures.latency import tokens_figure, width_figure
from analysis.figures.style import hovers
from analysis.latency import (
    PUBLISHED_DEVICE,
    TOKENS,
    WIDTHS,
    fastest_settings,
    read_coordcheck,
    read_decode,
    read_layers,
    read_published_tokens,
    read_published_widths,
)

pytestmark = pytest.mark.usefixtures("few_figures")

PUBLISHED = Path(__file__).parents[1] / "results" / "published"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def layer_rows(device: str = "GPU", threads: str = "", widths: tuple[int, ...] = (1024, 2048)) -> list[Any]:
    """Two settings of one machine; compiled is twice as fast, and low-rank 1.5 times as fast as dense."""
    rows: list[dict[str, Any]] = []
    for compiled in (False, True):
        for width in widths:
            for tokens in (128, 2048):
                dense = width**2 * tokens * 1e-9 / (1 + compiled)
                for structure, factor in (("dense", 1.0), ("lowrank-32", 1.5)):
                    for direction, passes in (("forward", 1), ("forward+backward", 3)):
                        rows.append(
                            {
                                "width": width, "tokens": tokens, "structure": structure, "precision": "bf16",
                                "compiled": compiled, "direction": direction, "device": device,
                                "threads": threads, "ms": passes * dense / factor, "speedup": factor,
                                "speedup_min": factor * 0.9, "speedup_max": factor * 1.1, "error": "",
                            }
                        )  # fmt: skip
    rows.append({**rows[0], "ms": "", "speedup": "", "width": 9999, "error": "out of memory"})
    return rows


def test_layers_are_read_forward_only_and_failed_rows_left_out(tmp_path: Path) -> None:
    rows = read_layers(write(tmp_path / "ffn.csv", layer_rows("CPU", "2")))
    assert len(rows) == 16 and {row.device for row in rows} == {"CPU, 2 threads"}
    assert {row.setting for row in rows} == {"bf16 eager", "bf16 compiled"}
    assert all((a.low, a.high) == pytest.approx((1.35, 1.65)) for a in rows if a.structure != "dense")
    kept = fastest_settings(rows)
    assert {row.setting for row in kept} == {"bf16 compiled"} and len(kept) == 8


def test_a_setting_that_was_hardly_measured_is_not_chosen(tmp_path: Path) -> None:
    rows = read_layers(write(tmp_path / "ffn.csv", layer_rows(widths=(256, 512, 1024, 2048))))
    few = [row for row in rows if row.setting == "bf16 eager" or (row.width, row.tokens) == (256, 128)]
    assert {row.setting for row in fastest_settings(few)} == {"bf16 eager"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ms": "fast"}, r"row 2 cannot be read"),
        ({"ms": "-1"}, r"row 2 cannot be read \('-1' is not above zero\)"),
        ({"width": "2.5"}, r"row 2 cannot be read"),
    ],
)
def test_spoilt_tables_are_refused_by_row(tmp_path: Path, change: dict[str, str], message: str) -> None:
    rows = layer_rows()
    with pytest.raises(AnalysisError, match=message):
        read_layers(write(tmp_path / "ffn.csv", [{**rows[0], **change}]))
    without = [{key: value for key, value in row.items() if key != "width"} for row in rows]
    with pytest.raises(AnalysisError, match="no column 'width'"):
        read_layers(write(tmp_path / "ffn.csv", without))
    with pytest.raises(AnalysisError, match="holds no measurement"):
        read_layers(write(tmp_path / "ffn.csv", [rows[-1]]))


def test_published_curves_give_the_papers_speedups() -> None:
    widths = read_published_widths(PUBLISHED / WIDTHS)
    tokens = read_published_tokens(PUBLISHED / TOKENS)
    assert len(widths) == 68 and len(tokens) == 96
    by_shape = {(a.structure, a.width): a for a in widths}
    assert by_shape["lowrank-32", 5120].speedup == pytest.approx(48.5 / 18.9)
    # Dense was not drawn at this width, so there is no ratio to show.
    assert math.isnan(by_shape["blockdense-63", 1280].speedup)
    assert {a.structure for a in tokens} == {"dense", "lowrank-32", "blockdense-32", "blockshuffle-32"}


def test_figures_show_ours_beside_the_published(tmp_path: Path) -> None:
    ours = read_layers(write(tmp_path / "ffn.csv", layer_rows() + layer_rows("CPU", "2", (256, 512, 1024))))
    figure = width_figure(ours, read_published_widths(PUBLISHED / WIDTHS))
    assert figure is not None
    titles = [axes.get_title(loc="left") for axes in figure.axes[:3]]
    assert [title.split("\n")[0] for title in titles] == ["GPU", "CPU, 2 threads", PUBLISHED_DEVICE]
    assert "bf16 compiled, 2,048 tokens" in titles[0]
    # The speed-ups share one scale, since only they may be compared between machines.
    assert len({axes.get_ylim() for axes in figure.axes[3:]}) == 1
    drawn = [line for line in figure.axes[3].get_lines() if len(np.asarray(line.get_xdata())) == 2]
    assert any(list(np.asarray(line.get_ydata())) == [1.5, 1.5] for line in drawn)
    by_tokens = tokens_figure(ours, read_published_tokens(PUBLISHED / TOKENS))
    assert by_tokens is not None and len(by_tokens.axes) == 3 * 4
    single = [row for row in ours if row.width == 1024 and row.device == "GPU" and row.tokens == 128]
    assert width_figure(single, []) is None and tokens_figure(single, []) is None


def spoken(figure: Figure | None) -> dict[str, float]:
    """Hover text -> the height of its point."""
    assert figure is not None
    return {
        text: float(y)
        for line, told in hovers(figure)
        for text, y in zip(told.texts, np.asarray(line.get_ydata()), strict=True)
    }


def test_hover_texts_name_shape_machine_and_what_was_measured(tmp_path: Path) -> None:
    ours = read_layers(write(tmp_path / "ffn.csv", layer_rows("CPU", "2")))
    by_width = spoken(width_figure(ours, read_published_widths(PUBLISHED / WIDTHS)))
    place = "lowrank-32, width 2,048, 2,048 tokens, CPU, 2 threads, bf16 compiled"
    assert by_width[f"{place}: speed-up over dense 1.50 (rounds 1.35 to 1.65)"] == 1.5
    assert by_width[f"{place}: forward 2.86 ms"] == pytest.approx(2048**3 * 1e-9 / 3)
    theirs = f"lowrank-32, width 5,120, 30,000 tokens, {PUBLISHED_DEVICE}"
    assert by_width[f"{theirs}: forward 18.9 ms, read off ±0.3 ms"] == 18.9
    ratio = by_width[f"{theirs}: speed-up over dense 2.57, from times read off ±0.3 ms"]
    assert ratio == pytest.approx(48.5 / 18.9)
    by_tokens = spoken(tokens_figure(ours, read_published_tokens(PUBLISHED / TOKENS)))
    assert by_tokens[f"{place}: speed-up over dense 1.50 (rounds 1.35 to 1.65)"] == 1.5
    digitised = [text for text in by_tokens if PUBLISHED_DEVICE in text]
    assert digitised and all(text.endswith("digitised, ±0.03 ms or less") for text in digitised)


def decode_rows() -> list[dict[str, Any]]:
    """Two machines; low-rank, with and without merged weights, and two kinds of dense attention."""
    rows = []
    for device, scale in (("GPU", 1.0), ("CPU", 40.0)):
        for network, factor in (
            ("dense", 1.0),
            ("lowrank-32, premerge=never", 0.8),
            ("lowrank-32, premerge=auto", 0.7),
        ):
            for heads in (1, 4) if network == "dense" else (4,):
                for batch in (1, 4, 16, 64):
                    ms = scale * factor * (1 + batch / 16)
                    rows.append(
                        {
                            "size": "cpu-m", "structure": network, "n_kv_heads": heads, "precision": "fp32",
                            "compiled": False, "length": 1024, "batch": batch, "ms": ms, "device": device,
                            "tokens_per_second": 1e3 * batch / ms, "tokens_per_second_min": 900 * batch / ms,
                            "tokens_per_second_max": 1100 * batch / ms, "threads": "", "error": "",
                        }
                    )  # fmt: skip
    return [*rows, {**rows[0], "structure": "all", "ms": "", "error": "out of memory"}]


def test_decoding_keeps_grouped_queries_apart(tmp_path: Path) -> None:
    rows = read_decode(write(tmp_path / "decode.csv", decode_rows()))
    assert len(rows) == 32 and rows[0].model == "cpu-m, 1,024 tokens"
    assert {a.network for a in rows} == {
        "dense, n_kv_heads=1", "dense, n_kv_heads=4", "lowrank-32, premerge=never",
        "lowrank-32, premerge=auto",
    }  # fmt: skip
    plain = [row for row in decode_rows() if row["n_kv_heads"] == 4]
    assert {a.network for a in read_decode(write(tmp_path / "d.csv", plain))} == {
        "dense", "lowrank-32, premerge=never", "lowrank-32, premerge=auto",
    }  # fmt: skip
    figure = decode_figure(rows)
    assert [len(axes.get_lines()) for axes in figure.axes] == [4] * 4
    steps = np.asarray(figure.axes[0].get_lines()[0].get_ydata())
    assert steps == pytest.approx([1 + batch / 16 for batch in (1, 4, 16, 64)])


def test_hover_texts_of_decoding_name_both_of_its_measurements(tmp_path: Path) -> None:
    texts = spoken(decode_figure(read_decode(write(tmp_path / "decode.csv", decode_rows()))))
    assert len(texts) == 2 * 32
    place = "lowrank-32, premerge=auto, cpu-m, 1,024 tokens, 16 sequences, GPU, fp32 eager"
    # One step takes 1.4 ms, and the fastest and the slowest round 10 % less and more throughput.
    assert texts[f"{place}: 1.40 ms a step (rounds 1.27 to 1.56)"] == pytest.approx(1.4)
    rate = texts[f"{place}: 11,429 new tokens a second (rounds 10,286 to 12,571)"]
    assert rate == pytest.approx(16e3 / 1.4)
    unknown = [{**row, "tokens_per_second_min": "", "tokens_per_second_max": ""} for row in decode_rows()]
    without = spoken(decode_figure(read_decode(write(tmp_path / "d.csv", unknown))))
    assert f"{place}: 1.40 ms a step" in without and not any("rounds" in text for text in without)


def test_models_at_one_batch_size_take_no_column_from_curves(tmp_path: Path) -> None:
    single = [
        {**row, "size": size, "structure": f"{row['structure']}, {size}"}
        for size in ("a", "b", "c")
        for row in decode_rows()
        if row["batch"] == 1 and not row["error"]
    ]
    figure = decode_figure(read_decode(write(tmp_path / "decode.csv", single + decode_rows())))
    titles = [axes.get_title(loc="left").split("\n") for axes in figure.axes[:2]]
    assert len(figure.axes) == 4 and [title[1] for title in titles] == ["cpu-m, 1,024 tokens"] * 2
    assert not any(text.get_text().endswith(", a") for text in figure.legends[0].get_texts())
    alone = decode_figure(read_decode(write(tmp_path / "d.csv", single)))
    assert len(alone.axes) == 2 * 4


def coordinate_rows(growth: float) -> list[dict[str, Any]]:
    return [
        {
            "width": width, "structure": "dense", "parametrization": name, "seed": seed, "step": step,
            "tensor": tensor, "rms": (width / 64) ** (growth * step if name == "paper" else 0.0),
        }
        for width in (64, 128, 256)
        for name in ("mup", "paper")
        for seed in (1, 2)
        for step in (0, 4)
        for tensor in ("ffn", "logits")
    ]  # fmt: skip


def test_coordinate_checks_print_their_slopes(tmp_path: Path) -> None:
    rows = read_coordcheck(write(tmp_path / "coordcheck.csv", coordinate_rows(0.125)))
    figure = coordcheck_figure(rows)
    texts = [axes.texts[0].get_text() for axes in figure.axes]
    assert texts == ["+0.00, +0.50"] * 2 + ["+0.00, +0.00"] * 2
    assert figure.axes[0].get_ylabel().startswith("paper") and figure.axes[2].get_ylabel().startswith("mup")
    assert slope([64, 256], [1.0, 0.25]) == pytest.approx(-1) and math.isnan(slope([64], [1.0]))
    with pytest.raises(AnalysisError, match="row 2 cannot be read"):
        read_coordcheck(write(tmp_path / "bad.csv", [{**coordinate_rows(0)[0], "rms": "nan"}]))


def test_benches_alone_are_drawn_and_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "tables" / "bench" / "ffn.csv", layer_rows())
    write(tmp_path / "tables" / "bench" / "decode.csv", decode_rows())
    write(tmp_path / "tables" / "coordcheck.csv", coordinate_rows(0.1))
    monkeypatch.setattr(sys, "argv", ["analysis", "figures", "--results", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    paths = [Path(line) for line in capsys.readouterr().out.split()]
    # Figures of published numbers alone come out too, in a folder without any of its own.
    mine = {"ffn_latency_width", "ffn_latency_tokens", "decode", "coordcheck"}
    paths = [path for path in paths if path.stem in mine and path.parent.name == "figures"]
    assert len(paths) == 3 * len(mine)
    first = {path.name: path.read_bytes() for path in paths}
    (tmp_path / "tables" / "bench" / "ffn.csv").unlink()
    with pytest.raises(SystemExit):
        main()
    printed = [Path(line) for line in capsys.readouterr().out.split()]
    again = [path for path in printed if path.stem in mine and path.parent.name == "figures"]
    assert len(again) == 6 and all(first[path.name] == path.read_bytes() for path in again)
