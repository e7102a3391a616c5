"""The open registry: sltrain, monarch, and a family that is written in this file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.test_loop import EVERY_STEP, losses, run, stop_at
from trainer.checkpoint import list_checkpoints
from trainer.flops import describe, model_counts
from trainer.models.structures import Shape, Structure, register, structure_from, structure_label
from trainer.models.structures.blockshuffle import BlockShuffle
from trainer.models.structures.monarch import Monarch
from trainer.models.structures.sltrain import SLTrain
from trainer.models.transformer import Transformer
from trainer.presets import resolve
from trainer.rundir import read_result

Layer = tuple[Structure, int, int]


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    blocks_in, blocks_out = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    d_in, d_out = blocks_in * draw(st.integers(1, 5)), blocks_out * draw(st.integers(1, 5))
    rank = draw(st.integers(1, 3))
    monarch = Monarch(blocks_in=blocks_in, blocks_out=blocks_out, rank=rank)
    sltrain = SLTrain(
        rank=draw(st.integers(1, min(d_in, d_out))),
        density=draw(st.sampled_from([0.03, 0.3, 1.0])),
        scale=draw(st.sampled_from([0.25, 2.0])),
    )
    return draw(st.sampled_from([monarch, sltrain])), d_in, d_out


def drawn(structure: Structure, d_in: int, d_out: int) -> dict[str, Tensor]:
    """Random trained factors, and the buffers as the family draws them."""
    generator = Generator().manual_seed(0)
    weights = structure.init(d_in, d_out, 0.02, generator)
    assert (
        weights.keys()
        == {**structure.factor_shapes(d_in, d_out), **structure.buffer_shapes(d_in, d_out)}.keys()
    )
    for name, shape in structure.factor_shapes(d_in, d_out).items():
        assert tuple(weights[name].shape) == shape
        weights[name] = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    for name, shape in structure.buffer_shapes(d_in, d_out).items():
        assert tuple(weights[name].shape) == shape
        assert weights[name].dtype == torch.int64
    return weights


@settings(max_examples=60, deadline=None)
@given(layers(), st.sampled_from([(5,), (2, 3)]))
def test_forward_and_gradients_equal_the_merged_dense_product(layer: Layer, leading: tuple[int, ...]) -> None:
    structure, d_in, d_out = layer
    weights = drawn(structure, d_in, d_out)
    x = torch.randn(*leading, d_in, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(d_out, dtype=torch.float64)
    probe = torch.randn(*leading, d_out, dtype=torch.float64)
    inputs = [x, *(w for w in weights.values() if w.requires_grad)]
    got = structure.forward(x, weights, bias)
    want = x @ structure.merged_weight(weights).T + bias
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    for a, b in zip(
        torch.autograd.grad((got * probe).sum(), inputs),
        torch.autograd.grad((want * probe).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert sum(w.numel() for w in inputs[1:]) == structure.matmul_params(d_in, d_out)


def test_monarch_matches_loops_over_blocks() -> None:
    q_blocks, p_blocks, rank, n, m = 3, 2, 2, 4, 5
    structure = Monarch(blocks_in=q_blocks, blocks_out=p_blocks, rank=rank)
    weights = drawn(structure, q_blocks * n, p_blocks * m)
    x = torch.randn(7, q_blocks * n, dtype=torch.float64)
    out = torch.zeros(7, p_blocks * m, dtype=torch.float64)
    for p in range(p_blocks):
        for q in range(q_blocks):
            for r in range(rank):
                given_ = x[:, q * n : (q + 1) * n] @ weights["v"][q, p * rank + r]
                out[:, p * m : (p + 1) * m] += given_[:, None] * weights["u"][p, :, q * rank + r]
    torch.testing.assert_close(structure.forward(x, weights, None), out)


def test_monarch_with_equal_blocks_is_blockshuffle_up_to_order() -> None:
    """Same weights give the same numbers, the outputs in another order."""
    n_blocks, n = 3, 6
    shuffle, monarch = BlockShuffle(n_blocks=n_blocks), Monarch(blocks_in=3, blocks_out=3, rank=n // 3)
    weights = drawn(shuffle, n_blocks * n, n_blocks * n)
    x = torch.randn(4, n_blocks * n, dtype=torch.float64)
    theirs = shuffle.forward(x, weights, None).view(4, n_blocks, n).transpose(1, 2).reshape(4, n_blocks, n)
    flat = torch.arange(n_blocks * n).view(n_blocks, n).T.flatten().view(n_blocks, n)
    # Columns of U in the order in which the shuffled vector lies: place j of block p holds (row, block) of V.
    v = torch.zeros(3, 6, n, dtype=torch.float64)
    u = torch.zeros(3, n, 6, dtype=torch.float64)
    slots: dict[tuple[int, int], int] = {}
    for p in range(3):
        for j in range(n):
            block, row = divmod(int(flat[p, j]), n)
            r = slots.get((p, block), 0)
            slots[p, block] = r + 1
            v[block, p * 2 + r] = weights["v"][block, row]
            u[p, :, block * 2 + r] = weights["u"][p, :, j]
    assert set(slots.values()) == {2}
    torch.testing.assert_close(monarch.forward(x, {"v": v, "u": u}, None).view(4, 3, n), theirs)


def test_monarch_does_the_flops_that_are_counted() -> None:
    structure = structure_from("monarch-32", 48)
    x = torch.randn(10, 48, dtype=torch.float64)
    weights = drawn(structure, 48, 192)
    with FlopCounterMode(display=False) as counter:
        structure.forward(x, weights, None)
    assert counter.get_total_flops() == 10 * structure.flops_per_token(48, 192)


@pytest.mark.parametrize("width", [24, 48, 60, 96, 120, 192, 512, 704, 1024, 2048])
@pytest.mark.parametrize("name", ["monarch-63", "monarch-32", "sltrain-63", "sltrain-32"])
def test_budgets_are_met_and_named_back(name: str, width: int) -> None:
    structure = structure_from(name, width)
    assert structure_label(structure, width) == name
    kept = structure.matmul_params(width, 4 * width) + structure.matmul_params(4 * width, width)
    assert kept / (8 * width**2) == pytest.approx({"63": 0.625, "32": 0.3125}[name[-2:]], rel=0.1)
    if isinstance(structure, Monarch):
        assert structure.blocks_in != structure.blocks_out


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"kind": "monarch", "blocks_in": 5, "blocks_out": 2, "rank": 1}, "blocks_in = 5 does not divide"),
        ({"kind": "monarch", "blocks_in": 2, "blocks_out": 7, "rank": 1}, "blocks_out = 7 does not divide"),
        ({"kind": "sltrain", "rank": 99}, "rank = 99 is larger"),
    ],
)
def test_shapes_that_cannot_be_are_refused(table: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        structure_from(table, 16).factor_shapes(16, 64)


def test_a_support_survives_the_checkpoint_and_resume_is_bit_identical(tmp_path: Path) -> None:
    change = {"structure": "sltrain-50"}
    assert run(tmp_path / "whole", **change) == "done"
    assert run(tmp_path / "parts", should_stop=stop_at(11), **change) == "preempted"
    assert run(tmp_path / "parts", **change) == "done"
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    results = [read_result(tmp_path / name) for name in ("parts", "whole")]
    assert results[0] is not None
    assert results[1] is not None
    assert results[0]["val_loss"] == results[1]["val_loss"]
    assert list_checkpoints(tmp_path / "parts")


@pytest.fixture
def own_family() -> Iterator[str]:
    """A family that no file of the program knows: a diagonal repeated or cut to the output's width."""

    @register
    class Diagonal(Structure):
        kind: Literal["diagonal"] = "diagonal"

        @classmethod
        def from_budget(cls, fraction: float, d_model: int) -> Self:
            return cls()

        def factor_shapes(self, d_in: int, d_out: int) -> dict[str, Shape]:
            return {"diagonal": (max(d_in, d_out), 1)}

        def init(self, d_in: int, d_out: int, std: float, generator: Generator) -> dict[str, Tensor]:
            return {"diagonal": torch.randn(max(d_in, d_out), 1, generator=generator)}

        def forward(self, x: Tensor, factors: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
            out = (
                x @ self.merged_weight(factors).T
                if bias is None
                else x @ self.merged_weight(factors).T + bias
            )
            return out

        def merged_weight(self, factors: Mapping[str, Tensor]) -> Tensor:
            return factors["diagonal"] * torch.eye(16).repeat(4, 1)[: len(factors["diagonal"])]

    yield "diagonal"
    del Structure.registry["diagonal"]


def test_a_new_family_needs_no_edit_elsewhere(own_family: str, tmp_path: Path) -> None:
    """Its name is understood, its weights are counted, it is built: all from the class."""
    partial = {
        "model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "vocab_size": 32, "seq_len": 16},
        "structure": {"kind": own_family},
        "optim": {"peak_lr": 1e-2, "batch_tokens": 64},
        "tokens": 640,
    }
    config = resolve(partial, "test")
    assert structure_label(config.model.structure, 16).startswith("diagonal")
    assert model_counts(config.model).params_ffn == 2 * 16 * 64 + 2 * 64
    network = Transformer(config.model)
    assert sum(p.numel() for p in network.parameters()) == describe(config)["params_total"]


def test_new_families_train(tmp_path: Path) -> None:
    for name in ("monarch-50", "sltrain-50"):
        folder = tmp_path / name
        assert run(folder, EVERY_STEP, structure=name) == "done"
        lines = losses(folder)
        assert lines[-1][1] < lines[0][1]
