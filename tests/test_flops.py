"""Counts against the published tables, torch's own counter and the parameters of real networks."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from trainer.distributed import World
from trainer.execution import Execution
from trainer.flops import describe, flops_per_token, model_counts, spent_flops
from trainer.models.transformer import Transformer
from trainer.presets import resolve
from trainer.step import TrainStep

PUBLISHED = Path(__file__).parent.parent / "results" / "published"


def rows(name: str) -> list[dict[str, str]]:
    with open(PUBLISHED / name, newline="") as file:
        return list(csv.DictReader(file))


def structure_name(row: dict[str, str], budget: str) -> str:
    family = row["structure"].lower()
    return family if family == "dense" else f"{family}-{row[budget].rstrip('%')}"


TABLE = rows("structuredffn_table9_v1_table6_v2.csv")
COMPUTED = [row for row in rows("structuredffn_computed_flops.csv") if row["variant"] == "basic"]


def test_all_published_rows_are_there() -> None:
    assert len(TABLE) == 28
    assert len(COMPUTED) == 28


@pytest.mark.parametrize("row", TABLE, ids=lambda r: f"{r['size']}-{structure_name(r, 'ffn_budget')}")
def test_published_table_row(row: dict[str, str]) -> None:
    config = resolve(
        {"preset": f"paper-{row['size']}", "structure": structure_name(row, "ffn_budget")}, "test"
    )
    counts = describe(config)
    assert f"{counts['params_total'] / 1e6:.2f}" == f"{float(row['params_total_M']):.2f}"
    assert f"{counts['params_ffn'] / 1e6:.2f}" == f"{float(row['ffn_params_M']):.2f}"
    assert f"{counts['params_non_embedding'] / 1e6:.2f}" == f"{float(row['nonemb_matmul_params_M']):.2f}"
    assert f"{counts['tokens'] / 1e9:.4f}" == f"{float(row['tokens_B']):.4f}"
    assert f"{counts['train_flops']:.5e}" == f"{float(row['training_flops']):.5e}"
    assert config.optim.peak_lr == float(row["peak_lr"])
    structure = config.model.structure.model_dump()
    assert structure.get("rank") == (int(row["rank"]) if row["rank"] else None)
    assert structure.get("n_blocks") == (int(row["nblocks"]) if row["nblocks"] else None)


@pytest.mark.parametrize("row", COMPUTED, ids=lambda r: f"{r['size']}-{structure_name(r, 'budget')}")
def test_computed_row_to_the_last_digit(row: dict[str, str]) -> None:
    config = resolve({"preset": f"paper-{row['size']}", "structure": structure_name(row, "budget")}, "test")
    counts = describe(config)
    assert counts["params_total"] == int(row["params_total_incl_bias_norm"])
    assert counts["params_non_embedding"] == int(row["params_nonemb_matmul"])
    assert counts["params_ffn"] == int(row["ffn_params"])
    assert counts["params_embedding"] == int(row["emb_params"])
    assert counts["tokens"] == int(row["tokens_seen"])
    assert counts["steps"] == int(row["steps"])
    assert counts["forward_flops_per_token"] == int(float(row["fwd_flops_per_token"]))
    assert counts["train_flops"] == int(row["training_flops"])


def test_grouped_query_row() -> None:
    (row,) = (
        r
        for r in rows("structuredffn_computed_flops.csv")
        if r["variant"] == "wide_structured" and r["size"] == "m"
    )
    model = {
        "attn_dim": 512,
        "n_heads": 8,
        "n_kv_heads": 4,
        "d_ff": 4864,
        "structure": {"kind": "lowrank", "rank": 512},
    }
    config = resolve({"preset": "paper-m", "model": model, "tokens": int(row["tokens_arg"])}, "test")
    assert describe(config)["params_total"] == int(row["params_total_incl_bias_norm"])
    assert describe(config)["train_flops"] == int(row["training_flops"])


SHAPES: list[dict[str, Any]] = [
    {},
    {"n_kv_heads": 2},
    {"attn_dim": 32},
    {"activation": "swiglu", "norm": "rmsnorm", "bias": False},
    {"qk_norm": True, "dense_first_ffn": False},
    {"d_ff": 96},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "structure", ["dense", "lowrank-63", "blockdense-32", "blockshuffle-32", "sltrain-32"]
)
def test_counts_equal_those_of_the_network(shape: dict[str, Any], structure: str) -> None:
    base = {"d_model": 64, "n_layers": 3, "n_heads": 4, "seq_len": 32, "vocab_size": 97}
    config = resolve(
        {
            "model": {**base, **shape},
            "structure": structure,
            "tokens": 64,
            "optim": {"peak_lr": 1e-3, "batch_tokens": 64},
        },
        "test",
    )
    network = Transformer(config.model, kernel="matmul")
    counts = model_counts(config.model)
    assert sum(p.numel() for p in network.parameters()) == counts.params_total
    tokens = torch.zeros((2, 32), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        loss = network(tokens, tokens).mean()
    assert counter.get_total_flops() == 64 * counts.forward + counts.forward_pass
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    assert counter.get_total_flops() == 2 * (64 * counts.forward + counts.forward_pass)
    assert flops_per_token(config.model) == 3 * counts.forward
    assert (counts.forward_pass > 0) == (structure == "sltrain-32")


@pytest.mark.parametrize("guide", [{}, {"mode": "fixed_steps", "stochastic": False}], ids=str)
@pytest.mark.parametrize("structure", ["lowrank-32", "monarch-32", "sltrain-32"])
def test_a_training_step_spends_what_is_counted(structure: str, guide: dict[str, Any]) -> None:
    config = resolve(
        {
            "model": {"d_model": 32, "n_layers": 2, "n_heads": 2, "seq_len": 16, "vocab_size": 64},
            "structure": structure,
            "guide": guide,
            "tokens": 640,
            "optim": {"peak_lr": 1e-3, "batch_tokens": 64},
        },
        "test",
    )
    step = TrainStep(config, Execution(device="cpu", attention="matmul"), torch.device("cpu"), World())
    tokens = torch.zeros((4, 16), dtype=torch.long).numpy()
    with FlopCounterMode(display=False) as counter:
        step(0, tokens, tokens)
    assert counter.get_total_flops() == spent_flops(config, 1)


def test_conventions_are_ordered_as_their_definitions_say() -> None:
    model = resolve({"preset": "cpu-m"}, "test").model
    counts = model_counts(model)
    assert (
        flops_per_token(model, "paper") - flops_per_token(model, "causal")
        == 3 * counts.sequence_attention // counts.seq_len // 2
    )
    assert flops_per_token(model, "6N") == 6 * counts.params_total
    assert flops_per_token(model, "6N_non_embedding") == 6 * counts.params_non_embedding
    with pytest.raises(ValueError, match="unknown FLOPs convention"):
        flops_per_token(model, "8N")
