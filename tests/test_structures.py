"""Each linear family against its dense equivalent, an independent einsum, and its own counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.models.structures import (
    Dense,
    Structure,
    structure_from,
    structure_label,
)
from trainer.models.structures.blockdense import BlockDense
from trainer.models.structures.blockshuffle import BlockShuffle
from trainer.models.structures.lowrank import LowRank


@st.composite
def layers(draw: st.DrawFn) -> tuple[Structure, int, int]:
    n_blocks = draw(st.sampled_from([1, 2, 3, 4]))
    d_in, d_out = (n_blocks * draw(st.integers(2, 6)) for _ in range(2))
    rank = draw(st.integers(1, min(d_in, d_out)))
    block_rank = n_blocks * draw(st.integers(1, max(d_in, d_out) // n_blocks))
    structure = draw(
        st.sampled_from(
            [
                Dense(),
                LowRank(rank=rank),
                BlockDense(rank=block_rank, n_blocks=n_blocks),
                BlockShuffle(n_blocks=n_blocks),
            ]
        )
    )
    return structure, d_in, d_out


def draw_factors(structure: Structure, d_in: int, d_out: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = structure.factor_shapes(d_in, d_out)
    return {
        k: torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_()
        for k, s in shapes.items()
    }


@settings(max_examples=60, deadline=None)
@given(layers(), st.sampled_from([(5,), (2, 3)]))
def test_forward_and_gradients_equal_the_merged_dense_product(
    layer: tuple[Structure, int, int], leading: tuple[int, ...]
) -> None:
    structure, d_in, d_out = layer
    factors = draw_factors(structure, d_in, d_out)
    x = torch.randn(*leading, d_in, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(d_out, dtype=torch.float64)
    probe = torch.randn(*leading, d_out, dtype=torch.float64)
    inputs = [x, *factors.values()]
    got = structure.forward(x, factors, bias)
    want = x @ structure.merged_weight(factors).T + bias
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    for a, b in zip(
        torch.autograd.grad((got * probe).sum(), inputs),
        torch.autograd.grad((want * probe).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_blockshuffle_matches_an_einsum_over_explicit_indices() -> None:
    n_blocks, n_in, n_out = 3, 4, 5
    structure = BlockShuffle(n_blocks=n_blocks)
    factors = draw_factors(structure, n_blocks * n_in, n_blocks * n_out)
    x = torch.randn(7, n_blocks, n_in, dtype=torch.float64)
    hidden = torch.einsum("bki,tbi->tbk", factors["v"], x)
    # Position k * B + b of the shuffled vector is row k of block b; the second factor cuts it into blocks.
    shuffled = torch.einsum("tbk->tkb", hidden).reshape(7, n_blocks, n_in)
    out = torch.einsum("boi,tbi->tbo", factors["u"], shuffled).reshape(7, n_out, n_blocks)
    want = torch.einsum("tob->tbo", out).reshape(7, -1)
    torch.testing.assert_close(structure.forward(x.reshape(7, -1), factors, None), want)


def test_blockdense_matches_an_einsum() -> None:
    structure = BlockDense(rank=6, n_blocks=2)
    factors = draw_factors(structure, 8, 5)
    x = torch.randn(7, 8, dtype=torch.float64)
    hidden = torch.einsum("bri,tbi->tbr", factors["v"], x.view(7, 2, 4)).reshape(7, 6)
    torch.testing.assert_close(
        structure.forward(x, factors, None), torch.einsum("or,tr->to", factors["u"], hidden)
    )


@settings(max_examples=30, deadline=None)
@given(layers())
def test_counts_are_those_of_the_factors(layer: tuple[Structure, int, int]) -> None:
    structure, d_in, d_out = layer
    drawn = structure.init(d_in, d_out, 0.02, torch.Generator().manual_seed(1))
    assert {k: tuple(v.shape) for k, v in drawn.items()} == structure.factor_shapes(d_in, d_out)
    assert sum(v.numel() for v in drawn.values()) == structure.matmul_params(d_in, d_out)


def test_lowrank_starts_as_the_best_approximation_of_a_dense_draw() -> None:
    structure = LowRank(rank=5)
    factors = structure.init(24, 16, 0.02, torch.Generator().manual_seed(3))
    dense = Dense().init(24, 16, 0.02, torch.Generator().manual_seed(3))["weight"]
    singular = torch.linalg.svdvals(dense)
    error = torch.linalg.matrix_norm(dense - structure.merged_weight(factors))
    torch.testing.assert_close(error, singular[5:].square().sum().sqrt(), rtol=1e-4, atol=1e-6)
    for factor in (factors["u"], factors["v"]):
        torch.testing.assert_close(torch.linalg.svdvals(factor), singular[:5].sqrt(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("structure", [BlockDense(rank=8, n_blocks=2), BlockShuffle(n_blocks=2)])
def test_blocks_start_with_unit_singular_values(structure: Structure) -> None:
    for factor in structure.init(16, 12, 0.02, torch.Generator().manual_seed(0)).values():
        torch.testing.assert_close(
            torch.linalg.svdvals(factor), torch.ones_like(torch.linalg.svdvals(factor)), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (LowRank(rank=9), "rank = 9 is larger than the layer"),
        (BlockDense(rank=7, n_blocks=2), "n_blocks = 2 does not divide rank = 7"),
        (BlockShuffle(n_blocks=3), "n_blocks = 3 does not divide d_in = 8"),
    ],
)
def test_impossible_shapes_are_refused(structure: Structure, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        structure.factor_shapes(8, 32)


@pytest.mark.parametrize(
    "name", ["dense", "lowrank-63", "lowrank-32", "blockdense-63", "blockshuffle-32", "lowrank-50"]
)
@pytest.mark.parametrize("d_model", [32, 48, 64, 80, 96, 128, 768, 1024, 1536, 2048])
def test_labels_are_the_names_that_resolve_to_them(name: str, d_model: int) -> None:
    structure = structure_from(name, d_model)
    assert structure_label(structure, d_model) == name
    weights = structure.matmul_params(d_model, 4 * d_model) + structure.matmul_params(4 * d_model, d_model)
    share = {"63": 0.625, "32": 0.3125, "50": 0.5}.get(name[-2:], 1.0)
    assert weights / (8 * d_model**2) == pytest.approx(share, rel=0.07)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("lowrnk-63", "did you mean 'lowrank-63'"),
        ("lowrank", "needs a budget"),
        ("lowrank-0", "needs a budget"),
        ("dense-63", "takes no budget"),
        ({"rank": 3}, "without 'kind'"),
        (7, "name or a table"),
    ],
)
def test_bad_names_are_told_with_the_nearest_good_one(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        structure_from(value, 64)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown key 'n_blocks'"):
        structure_from({"kind": "lowrank", "rank": 4, "n_blocks": 2}, 64)
