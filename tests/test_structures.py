"""Each linear family against its dense equivalent, an independent einsum, and its own counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.models.guide import Guide
from trainer.models.structures import (
    Dense,
    Structure,
    structure_from,
    structure_label,
)
from trainer.models.structures.blockdense import BlockDense
from trainer.models.structures.blockshuffle import BlockShuffle
from trainer.models.structures.lowrank import LowRank
from trainer.models.structures.monarch import Monarch
from trainer.models.structures.sltrain import SLTrain
from trainer.models.transformer import StructuredLinear


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


FAST = [
    (LowRank(rank=5), 8, 24),
    (BlockDense(rank=6, n_blocks=2), 8, 12),
    (BlockShuffle(n_blocks=2), 8, 32),
    (BlockShuffle(n_blocks=2), 32, 8),
    # Three blocks do not divide five rows: the way that moves the output instead.
    (BlockShuffle(n_blocks=3), 12, 15),
]


EVERY = [
    *FAST,
    (Monarch(blocks_in=2, blocks_out=4, rank=3), 8, 12),
    (SLTrain(rank=3, density=0.2), 8, 24),
    (SLTrain(rank=3, density=0.2), 24, 8),
]


@pytest.mark.parametrize(("structure", "d_in", "d_out"), FAST, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_of_layer_pass_gradcheck(
    structure: Structure, d_in: int, d_out: int, with_bias: bool
) -> None:
    factors = draw_factors(structure, d_in, d_out)
    bias = torch.randn(d_out, dtype=torch.float64, requires_grad=True) if with_bias else None
    for tokens in (1, 2, 9):
        x = torch.randn(tokens, d_in, dtype=torch.float64, requires_grad=True)

        def run(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
            return structure.forward(
                x, dict(zip(factors, weights, strict=False)), weights[-1] if with_bias else None
            )

        inputs = [x, *factors.values(), *([] if bias is None else [bias])]
        assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize(("structure", "d_in", "d_out"), FAST, ids=str)
@pytest.mark.parametrize("way", ["transposed", "sliced", "expanded"])
def test_strided_inputs_and_gradients_give_what_contiguous_ones_do(
    structure: Structure, d_in: int, d_out: int, way: str
) -> None:
    factors = draw_factors(structure, d_in, d_out)
    bias = torch.randn(d_out, dtype=torch.float64)
    make = {
        "transposed": lambda d: torch.randn(3, d, 17, dtype=torch.float64).transpose(1, 2),
        "sliced": lambda d: torch.randn(3, 17, 2 * d, dtype=torch.float64)[..., 1::2],
        "expanded": lambda d: torch.randn(1, 1, d, dtype=torch.float64).expand(3, 17, d),
    }[way]
    results = []
    x, grad = make(d_in), make(d_out)
    for given_x, given_grad in ((x, grad), (x.contiguous(), grad.contiguous())):
        leaf = given_x.detach().requires_grad_()
        out = structure.forward(leaf, factors, bias)
        results.append((out, *torch.autograd.grad(out, [leaf, *factors.values()], given_grad)))
    for got, want in zip(*results, strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("structure", "d_in", "d_out"), FAST, ids=str)
def test_frozen_parts_get_no_gradient_and_the_others_keep_theirs(
    structure: Structure, d_in: int, d_out: int
) -> None:
    factors = draw_factors(structure, d_in, d_out)
    x = torch.randn(11, d_in, dtype=torch.float64, requires_grad=True)
    whole = torch.autograd.grad(structure.forward(x, factors, None).square().sum(), [x, *factors.values()])
    for at, name in enumerate(("x", *factors)):
        parts = {k: v if k == name else v.detach() for k, v in factors.items()}
        only = x if name == "x" else factors[name]
        out = structure.forward(x if name == "x" else x.detach(), parts, None)
        (grad,) = torch.autograd.grad(out.square().sum(), [only])
        torch.testing.assert_close(grad, whole[at], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("structure", "d_in", "d_out"), EVERY, ids=str)
def test_autocast_multiplies_in_bf16_and_keeps_fp32_gradients(
    structure: Structure, d_in: int, d_out: int, guided: bool
) -> None:
    layer = StructuredLinear(structure, d_in, d_out, bias=True)
    layer.reset(0.02, torch.Generator().manual_seed(0))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    if guided:
        guide = layer.guide = Guide(torch.randn(d_out, d_in))
        guide.mix = 0.4
    x = torch.randn(2, 16, d_in, requires_grad=True)
    leaves = [x, *layer.parameters()]
    want = layer(x)
    wanted = torch.autograd.grad(want.sum(), leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = layer(x)
    assert got.dtype == torch.bfloat16
    assert not torch.equal(got.float(), want)
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05 * want.abs().max().item())
    for a, b in zip(torch.autograd.grad(got.float().sum(), leaves), wanted, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05 * b.abs().max().item())


@pytest.mark.parametrize(("structure", "d_in", "d_out"), FAST, ids=str)
def test_a_compiled_layer_gives_what_the_eager_one_does(structure: Structure, d_in: int, d_out: int) -> None:
    factors = draw_factors(structure, d_in, d_out)
    bias = torch.randn(d_out, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 9, d_in, dtype=torch.float64, requires_grad=True)
    leaves = [x, *factors.values(), bias]
    compiled = torch.compile(structure.forward, backend="aot_eager", fullgraph=True, dynamic=False)
    for a, b in zip(
        *(
            torch.autograd.grad(run(x, factors, bias).square().sum(), leaves)
            for run in (compiled, structure.forward)
        ),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("structure", "d_in", "d_out"), FAST, ids=str)
def test_a_second_pass_gives_the_same_bits(structure: Structure, d_in: int, d_out: int) -> None:
    factors = {
        k: v.detach().float().requires_grad_() for k, v in draw_factors(structure, d_in, d_out).items()
    }
    x = torch.randn(64, d_in, requires_grad=True)
    first, second = (
        torch.autograd.grad(structure.forward(x, factors, None).square().sum(), [x, *factors.values()])
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


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
