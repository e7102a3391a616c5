"""Sweeps over more than structure, size and seed: what their curves are called, and how they are drawn."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_analysis_table import csv_file, drawn, make_sweep, result

from analysis.analyse import analyse
from analysis.errors import AnalysisError
from analysis.figures.scaling import scaling_figure
from analysis.figures.style import looks, save
from analysis.runs.labels import base_and_variant, family_and_budget, structure_order
from analysis.runs.reading import read_csv
from analysis.runs.table import runs_table, structures_of, to_csv
from analysis.runs.variants import isoflop_sets, variants
from trainer.config import RunConfig
from trainer.presets import resolve, run_labels
from trainer.rundir import read_result, write_result

pytestmark = pytest.mark.usefixtures("few_figures")

SIZES = ("cpu-2xs", "cpu-xs", "cpu-s")


def grid_sweep(results: Path, axes: dict[str, list[Any]], base: dict[str, Any] | None = None) -> None:
    """Fill a sweep `g` with invented results and the true configurations of every point of a grid."""
    runs: dict[str, dict[str, object] | None] = {}
    configs = []
    for i, values in enumerate(itertools.product(*axes.values())):
        partial: dict[str, Any] = dict(base or {})
        for key, value in zip(axes, values, strict=True):
            table, _, field = key.rpartition(".")
            partial = {**partial, table: {**partial.get(table, {}), field: value}} if table else (
                partial | {key: value}
            )  # fmt: skip
        config = resolve(partial, "test")
        flops = 6.0 * config.model.d_model**3 * config.tokens
        runs[f"r{i:03}"] = result(
            f"r{i:03}", structure=partial.get("structure", "dense"), size=partial["preset"], seed=config.seed,
            tokens=config.tokens, train_flops=flops, val_loss=3 * (flops / 1e12) ** -0.05 * (1 + 0.001 * i),
            peak_lr=config.optim.peak_lr,
        )  # fmt: skip
        configs.append(config.canonical_json())
    make_sweep(results, "g", runs)
    for run_id, text in zip(runs, configs, strict=True):
        (results / "runs" / run_id / "config.json").write_text(text)


def curves(results: Path) -> list[str]:
    return structures_of(runs_table(results, "g").table)


@pytest.mark.slow
def test_learning_rates_are_curves_of_their_own(tmp_path: Path) -> None:
    axes = {
        "preset": list(SIZES), "structure": ["dense", "lowrank-63"], "optim.peak_lr": [0.016, 0.008],
        "seed": [1, 2],
    }  # fmt: skip
    grid_sweep(tmp_path, axes)
    wanted = [f"{s}, peak_lr={lr}" for s in ("dense", "lowrank-63") for lr in ("0.008", "0.016")]
    assert curves(tmp_path) == wanted
    runs = runs_table(tmp_path, "g")
    assert [int((runs.table["structure"] == label).sum()) for label in wanted] == [6] * 4
    assert all(f"peak_lr={lr:g}" in s for s, lr in zip(
        runs.table["structure"], map(float, runs.table["peak_lr"]), strict=True,
    ))  # fmt: skip
    analysis = analyse(runs, "g")
    assert "3 sizes x 2 seeds" in analysis.comparison.verdict
    first = {path.name: path.read_bytes() for path in drawn("g", tmp_path, tmp_path, None, True)}
    (tmp_path / "sweeps" / "g.json").unlink()
    again = {path.name: path.read_bytes() for path in drawn("g", tmp_path, tmp_path / "csv", None, True)}
    assert first == again and b'"dense, peak_lr=0.008"' in first["g_runs.csv"]


def test_activations_are_not_pooled_and_what_follows_from_them_is_not_named(tmp_path: Path) -> None:
    grid_sweep(tmp_path, {"preset": list(SIZES), "model.activation": ["gelu", "swiglu"]})
    assert curves(tmp_path) == ["dense, activation=gelu", "dense, activation=swiglu"]


@pytest.mark.parametrize(
    ("axes", "labels"),
    [
        ({"preset": list(SIZES), "structure": ["dense"], "seed": [1, 2]}, ["dense"]),
        ({"preset": ["cpu-s"], "tokens": [200_000, 400_000, 800_000]}, ["dense"]),
        (
            {"preset": list(SIZES), "tokens": [200_000, 400_000], "optim.weight_decay": [0.0, 0.1]},
            ["dense, weight_decay=0", "dense, weight_decay=0.1"],
        ),
        (
            {"preset": list(SIZES), "eval.tokens": [65536, 131072], "model.bias": [True, False]},
            [f"dense, eval.tokens={n}, bias={b}" for n in (65536, 131072) for b in ("false", "true")],
        ),
        (
            {"preset": list(SIZES), "data.corpus": ["pysource", "synthetic"]},
            ["dense, corpus=pysource", "dense, corpus=synthetic"],
        ),
        ({"preset": ["cpu-s"], "model.n_heads": [2, 4]}, ["dense, n_heads=2", "dense, n_heads=4"]),
        ({"preset": ["cpu-s"], "model.d_ff": [96, 192]}, ["dense, d_ff=96", "dense, d_ff=192"]),
    ],
)  # fmt: skip
def test_curves_of_common_grids(tmp_path: Path, axes: dict[str, list[Any]], labels: list[str]) -> None:
    grid_sweep(tmp_path, axes)
    assert sorted(curves(tmp_path)) == sorted(labels)


def config(**optim: Any) -> dict[str, Any]:
    return {"optim": optim, "seed": 1, "tokens": 5}


def test_a_ladder_of_learning_rates_does_not_tear_other_curves_apart() -> None:
    runs = [("dense", "s", "1"), ("dense", "s", "1"), ("lowrank-63", "s", "1"), ("lowrank-63", "m", "1")]
    configs = [config(peak_lr=lr) for lr in (0.1, 0.2, 0.1, 0.05)]
    assert variants(runs, configs) == ["peak_lr=0.1", "peak_lr=0.2", "", ""]


def test_a_difference_hidden_behind_the_seed_is_named_and_a_seed_of_the_data_is_not() -> None:
    runs = [("dense", "s", "1"), ("dense", "s", "2")]
    assert variants(runs, [config(clip=1.0), config(clip=0.5)]) == ["clip=1", "clip=0.5"]
    seeds = [{"data": {"corpus": {"seed": n}}, "seed": n} for n in (1, 2)]
    assert variants(runs, seeds) == ["", ""]
    assert variants(runs, [{}, config(clip=1.0)]) == ["", ""]


def test_values_are_shortened_only_where_they_stay_apart() -> None:
    runs = [("dense", "s", "1")] * 2

    def paths(*texts: str) -> list[str]:
        return variants(runs, [{"data": {"path": text}} for text in texts])

    assert paths("/a/one.txt", "/a/two.txt") == ["path=one.txt", "path=two.txt"]
    assert paths("/a/one.txt", "/b/one.txt") == ["path=/a/one.txt", "path=/b/one.txt"]
    long = paths("x" * 80 + "1", "x" * 80 + "2")
    assert len(set(long)) == 2 and max(map(len, long)) < 40


def test_a_corrupted_configuration_is_no_data_point(tmp_path: Path) -> None:
    grid_sweep(tmp_path, {"preset": list(SIZES)})
    (tmp_path / "runs" / "r001" / "config.json").write_text("{")
    assert runs_table(tmp_path, "g").coverage() == "2 of 3 runs; corrupted: r001"


def test_only_equal_run_ids_are_repeats(tmp_path: Path) -> None:
    header = "run_id,structure,seed,train_flops,val_loss"
    two = read_csv(csv_file(tmp_path, header, "a,dense,0,1e12,3.1", "b,dense,0,1e12,3.2"))
    assert len(two.table) == 2 and read_csv(csv_file(tmp_path, to_csv(two).rstrip())).table.equals(two.table)
    with pytest.raises(AnalysisError, match=r"row 3 repeats row 2 \(same run id\)"):
        read_csv(csv_file(tmp_path, header, "a,dense,0,1e12,3.1", "a,dense,1,2e12,3.2"))
    with pytest.raises(AnalysisError, match=r"row 3 repeats row 2 \(same structure"):
        read_csv(csv_file(tmp_path, header, ",dense,0,1e12,3.1", ",dense,0,1e12,3.2"))


def test_labels_split_and_sort_by_value() -> None:
    assert base_and_variant("lowrank-63, peak_lr=0.008, bias=true") == (
        "lowrank-63",
        "peak_lr=0.008, bias=true",
    )
    assert base_and_variant("MoE, 8 experts") == ("MoE, 8 experts", "")
    assert family_and_budget("LowRank-63, x=5") == ("lowrank", 63)
    ordered = [
        "dense",
        "dense, lr=1e-05",
        "dense, lr=0.002",
        "dense, lr=0.01",
        "dense, lr=none",
        "lowrank-63",
    ]
    assert sorted(reversed(ordered), key=structure_order) == ordered


def test_pruned_looped_and_recurrent_networks_are_structures_of_their_own() -> None:
    ordered = [
        "dense",
        "dense, peak_lr=0.01",
        "dense, pruned 50%",
        "dense, pruned 75%",
        "dense, pruned 75%, schedule=cubic",
        "dense, looped 2",
        "dense, looped 2, pruned 50%",
        "dense, looped 10",
        "lowrank-63",
        "lowrank-63, pruned 7.5%",
        "lowrank-32",
        "recurrent",
        "recurrent, lowrank-63",
        "recurrent, lowrank-32",
    ]
    assert sorted(reversed(ordered), key=structure_order) == ordered
    assert base_and_variant("dense, pruned 75%, schedule=cubic") == ("dense, pruned 75%", "schedule=cubic")
    # What is held against dense runs must not be taken for one.
    assert {family_and_budget(label)[0] for label in ordered[2:8]}.isdisjoint({"dense"})
    chosen = looks(ordered)
    bases = [label for label in ordered if "=" not in label]
    assert len({(chosen[x].colour, chosen[x].marker, chosen[x].filled) for x in bases}) == len(bases)
    assert (
        chosen["dense"] == looks(["dense"])["dense"]
        and chosen["lowrank-63"] == looks(["lowrank-63"])["lowrank-63"]
    )


def test_the_label_says_what_prunes_and_loops(tmp_path: Path) -> None:
    """Sparsities and passes are in the structure; only what it does not say is named beside it."""
    axes = {"preset": list(SIZES), "prune.sparsity": [0, 0.5, 0.75], "prune.schedule": ["linear", "cubic"]}
    labelled_sweep(tmp_path / "a", axes)
    pruned = [f"dense, pruned {s}%, prune.schedule={x}" for s in (50, 75) for x in ("cubic", "linear")]
    assert curves(tmp_path / "a") == ["dense", *pruned]
    labelled_sweep(tmp_path / "b", {"preset": list(SIZES), "model": [{}, {"loop": {"passes": 2}}]})
    assert curves(tmp_path / "b") == ["dense", "dense, looped 2"]


def labelled_sweep(results: Path, axes: dict[str, list[Any]]) -> None:
    """As grid_sweep, equal runs merged, with the labels that the trainer gives."""
    grid_sweep(results, axes)
    seen: dict[str, str] = {}
    for folder in sorted((results / "runs").iterdir()):
        config = RunConfig.model_validate_json((folder / "config.json").read_text())
        record = read_result(folder)
        assert record is not None
        if config.canonical_json() in seen:
            shutil.rmtree(folder)
            continue
        seen[config.canonical_json()] = folder.name
        (folder / "result.json").unlink()
        write_result(folder, {**{k: v for k, v in record.items() if k != "sha256"}, **run_labels(config)})
    path = results / "sweeps" / "g.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "run_ids": list(seen.values())}))


def test_variants_keep_hue_and_marker_and_can_be_told_apart(tmp_path: Path) -> None:
    labels = [f"{s}, lr={x}" for s in ("dense", "lowrank-32") for x in (1, 2, 3, 4)]
    chosen = looks(labels)
    assert len({(look.colour, look.line, look.fill) for look in chosen.values()}) == 8
    assert {chosen[label].marker for label in labels[:4]} == {looks(["dense"])["dense"].marker}
    assert chosen["lowrank-32, lr=1"] == looks(["lowrank-32"])["lowrank-32"]
    axes = {
        "preset": list(SIZES),
        "structure": ["dense", "lowrank-32"],
        "optim.peak_lr": [1e-3, 2e-3, 4e-3, 8e-3],
    }
    grid_sweep(tmp_path, axes)
    figure = scaling_figure(analyse(runs_table(tmp_path, "g"), "g"))
    save(figure, tmp_path / "g")
    legend = figure.axes[0].get_legend()
    assert legend is not None and len(legend.get_texts()) >= 8
    low, high = legend.get_window_extent().intervalx
    assert figure.bbox.x0 <= low and high <= figure.bbox.x1
    assert legend.get_window_extent().y1 < figure.axes[0].get_window_extent().y0


def test_what_goes_with_the_budget_of_isoflop_sets_tells_no_curves_apart() -> None:
    runs, flops, configs = [], [], []
    for budget, batch in ((1e12, 256), (4e12, 512)):
        for structure in ("dense", "lowrank-32"):
            for i, size in enumerate(("a", "b", "c")):
                runs.append((structure, size, "1"))
                flops.append(budget * (1 + 0.004 * i))
                configs.append({"optim": {"batch_tokens": batch, "peak_lr": 0.01 / (i + 1)}})
    sets = isoflop_sets([run[:2] for run in runs], flops)
    assert sets is not None and len(set(sets)) == 2
    assert variants(runs, configs)[0] == "batch_tokens=256"
    assert set(variants(runs, configs, sets)) == {""}
    configs[0] = {"optim": {"batch_tokens": 128, "peak_lr": 0.01}}
    assert variants(runs, configs, sets)[0] == "batch_tokens=128"
    # A ladder: every size has its own budget.
    assert isoflop_sets([("dense", size) for size in "abc"], [1.0, 2.0, 3.0]) is None
    assert isoflop_sets([("dense", size) for size in "abcd"], [1.0, 1.01, 1.0, 9.0]) is None
    assert isoflop_sets([], []) is None
