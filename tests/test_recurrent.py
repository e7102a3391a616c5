"""The recurrent transformer: against a naive token-by-token reference, its counts, causality, its decoder."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from analysis.figures.recurrent import block_counted
from trainer.flops import describe, flops_per_step, model_counts, recurrent_pairs
from trainer.models.build import build_network
from trainer.models.config import ModelConfig, longest
from trainer.models.decode import advance, cast_weights, make_cache
from trainer.models.parametrize import initialise
from trainer.models.premerge import PremergeMode, prepare_for_decoding
from trainer.models.recurrent import RecurrentTransformer
from trainer.models.transformer import Block
from trainer.presets import resolve

SHAPE: dict[str, Any] = {"d_model": 24, "n_heads": 4, "vocab_size": 31, "seq_len": 40, "kind": "recurrent"}
VARIANTS: list[dict[str, Any]] = [
    {"n_layers": 1, "recurrence": {"block": 8}},
    {"n_layers": 2, "recurrence": {"block": 7, "mix": "learned"}, "n_kv_heads": 2},
    {"n_layers": 1, "recurrence": {"block": 1, "mix": "accumulate"}, "bias": False, "activation": "relu"},
    {"n_layers": 3, "recurrence": {"block": 16, "mix": "accumulate"}, "positions": "learned"},
    {"n_layers": 2, "recurrence": {"block": 64, "mix": "learned"}, "qk_norm": True},
    {"n_layers": 2, "recurrence": {"block": 5, "mix": "learned"}, "structure": "lowrank-63", "d_ff": 48},
    {"n_layers": 1, "recurrence": {"block": 8}, "activation": "swiglu", "norm": "rmsnorm", "bias": False},
    {"n_layers": 2, "recurrence": {"block": 6}, "structure": "sltrain-32"},
]


def network_of(shape: dict[str, Any], dtype: torch.dtype = torch.float64) -> RecurrentTransformer:
    net = build_network(ModelConfig.model_validate({**SHAPE, **shape}), "matmul")
    assert isinstance(net, RecurrentTransformer)
    initialise(net, seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            # Away from zero biases, unit gains and alpha = 1/2, which would hide mistakes.
            if parameter.ndim < 2:
                parameter.add_(0.3 * torch.rand(parameter.shape, generator=generator))
            elif "embedding" not in name:
                parameter.mul_(4)
    return net.to(dtype).eval()


def tokens_of(rows: int, length: int) -> Tensor:
    return torch.randint(SHAPE["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(1))


def norm(module: torch.nn.Module, x: Tensor) -> Tensor:
    weight = cast(Tensor, module.weight)
    if isinstance(module, torch.nn.RMSNorm):
        return x / (x.pow(2).mean() + 1e-5).sqrt() * weight
    centred = x - x.mean()
    scaled = centred / (centred.pow(2).mean() + 1e-5).sqrt() * weight
    return scaled if module.bias is None else scaled + cast(Tensor, module.bias)


def naive_layer(block: Block, window: list[Tensor], model: ModelConfig) -> list[Tensor]:
    """One causal layer on a list of vectors, token by token and head by head."""

    def dense(layer: Any, x: Tensor) -> Tensor:
        out = layer.merged_weight() @ x
        return out if layer.bias is None else out + layer.bias

    width, groups = model.head_dim, model.n_heads // model.n_kv_heads
    keys: list[Tensor] = []
    values: list[Tensor] = []
    outs: list[Tensor] = []
    for x in window:
        qkv = dense(block.attention.qkv, norm(block.norm_attention, x)).view(-1, width)
        q, k, v = qkv.split((model.n_heads, model.n_kv_heads, model.n_kv_heads))
        if block.attention.q_gain is not None and block.attention.k_gain is not None:
            q = torch.stack([F.rms_norm(h, (width,), block.attention.q_gain, 1e-5) for h in q])
            k = torch.stack([F.rms_norm(h, (width,), block.attention.k_gain, 1e-5) for h in k])
        keys.append(k)
        values.append(v)
        heads = []
        for head in range(model.n_heads):
            scores = torch.stack([q[head] @ k[head // groups] for k in keys]) / width**0.5
            share = torch.softmax(scores, dim=0)
            heads.append(sum(p * v[head // groups] for p, v in zip(share, values, strict=True)))
        x = x + dense(block.attention.out, torch.cat(cast(list[Tensor], heads)))
        inner = norm(block.norm_ffn, x)
        up = dense(block.ffn.up, inner)
        act = {"gelu": F.gelu, "relu": F.relu, "swiglu": F.silu}[model.activation]
        hidden = act(up) if block.ffn.gate is None else act(dense(block.ffn.gate, inner)) * up
        outs.append(x + dense(block.ffn.down, hidden))
    return outs


def naive_logits(net: RecurrentTransformer, tokens: Tensor) -> Tensor:
    """The paper's recurrence written out with lists of vectors, (T, V)."""
    model, size = net.model, net.recurrence.block
    xs = [net.embedding.weight[token] for token in tokens]
    if net.positions is not None:
        xs = [x + p for x, p in zip(xs, net.positions, strict=False)]
    for number, layer in enumerate(net.blocks):
        block, alpha = cast(Block, layer), float(net.alpha(number))
        blocks = [xs[i : i + size] for i in range(0, len(xs), size)]
        outputs: list[Tensor] = []
        state, before = naive_layer(block, blocks[0], model), blocks[0]
        for nxt in blocks[1:]:
            window = [alpha * o + h for o, h in zip(before, state, strict=True)]
            window += [alpha * o + x for o, x in zip(before, nxt, strict=False)]
            out = naive_layer(block, window, model)
            before, state = out[: len(state)], out[len(state) :]
            outputs += before
        last = [alpha * o + h for o, h in zip(before, state, strict=False)]
        xs = outputs + naive_layer(block, last, model)
    return torch.stack([net.embedding.weight @ norm(net.norm_head, x) for x in xs])


@pytest.mark.parametrize("shape", VARIANTS, ids=str)
@pytest.mark.parametrize("length", [1, 21, 40])
def test_equals_the_naive_recurrence_token_by_token(shape: dict[str, Any], length: int) -> None:
    net, tokens = network_of(shape), tokens_of(1, length)
    with torch.no_grad():
        torch.testing.assert_close(net.logits(tokens)[0], naive_logits(net, tokens[0]), rtol=1e-9, atol=1e-10)


def test_gradients_pass_through_all_steps() -> None:
    net = network_of({"n_layers": 1, "recurrence": {"block": 4, "mix": "learned"}})
    tokens = tokens_of(1, 40)
    x = net.embedding(tokens).detach().requires_grad_()
    net.head(net.stream(x))[0, -1].sum().backward()
    assert x.grad is not None
    reached = x.grad[0].abs().sum(dim=1)
    assert bool((reached > 0).all())
    (alpha,) = net.alphas
    step = 1e-6
    losses = []
    with torch.no_grad():
        for move in (step, -2 * step):
            alpha.add_(move)
            losses.append(float(net.head(net.stream(x))[0, -1].sum()))
    assert alpha.grad is not None
    assert float(alpha.grad) == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("shape", VARIANTS, ids=str)
def test_a_changed_later_token_changes_no_earlier_output(shape: dict[str, Any]) -> None:
    net, tokens = network_of(shape), tokens_of(1, 40)
    with torch.no_grad():
        before = net.logits(tokens)
        for place in (0, 6, 7, 8, 15, 16, 33, 39):
            changed = tokens.clone()
            changed[0, place] = (changed[0, place] + 1) % SHAPE["vocab_size"]
            after = net.logits(changed)
            assert torch.equal(after[:, :place], before[:, :place]) or torch.allclose(
                after[:, :place], before[:, :place], rtol=0, atol=1e-13
            )
            assert not torch.allclose(after[:, place], before[:, place])
            assert not torch.allclose(after[:, -1], before[:, -1], rtol=0, atol=1e-15)


@pytest.mark.parametrize("shape", VARIANTS, ids=str)
@pytest.mark.parametrize("length", [1, 13, 40])
def test_parameters_and_flops_are_those_of_the_network(shape: dict[str, Any], length: int) -> None:
    net = network_of({**shape, "seq_len": length}, torch.float32)
    counts = model_counts(net.model)
    assert sum(p.numel() for p in net.parameters()) == counts.params_total
    tokens = tokens_of(2, length)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.logits(tokens)
    sequences = 2 * (length * counts.forward_matmul + counts.sequence_attention)
    assert counter.get_total_flops() == sequences + counts.forward_pass
    assert flops_per_step(net.model, 2 * length) == 3 * counter.get_total_flops()


def test_every_weight_is_passed_twice_a_token() -> None:
    """The paper's formula leaves out the factor 12 of a layer's weights; the count here has it."""
    d, length, block = 24, 40, 8
    model = ModelConfig.model_validate(
        {**SHAPE, "n_layers": 1, "recurrence": {"block": block}, "bias": False, "seq_len": length}
    )
    counts = model_counts(model)
    head = 2 * model.vocab_size * d
    assert counts.forward_matmul - head == 2 * 2 * 12 * d * d
    blocks = length // block
    assert recurrent_pairs(length, block) == (blocks - 1) * (2 * block) ** 2 + 2 * block**2
    assert counts.sequence_attention == 4 * d * recurrent_pairs(length, block)


@pytest.mark.parametrize(
    ("d_model", "block", "mix"), [(32, 32, "forget"), (96, 32, "accumulate"), (24, 8, "forget")]
)
def test_both_counts_are_told(d_model: int, block: int, mix: str) -> None:
    """Ours is that of the figure of published networks; the paper's gives the numbers that it prints."""
    length = {32: 1024, 96: 4128, 24: 40}[d_model]
    config = resolve(
        {
            "model": {
                "kind": "recurrent", "d_model": d_model, "n_layers": 1, "n_heads": 4, "seq_len": length,
                "vocab_size": 17, "recurrence": {"block": block, "mix": mix},
            },
            "optim": {"peak_lr": 1e-3, "batch_tokens": length},
            "tokens": length,
        },
        "test",
    )  # fmt: skip
    told = describe(config)
    head = 2 * 17 * d_model * length
    assert told["sequence_flops"] - head == float(block_counted(np.array([length]), d_model, block)[0])
    printed = {(32, "forget"): 6.29e6, (96, "accumulate"): 1.27e8}
    if (d_model, mix) in printed:
        assert told["sequence_flops_as_published"] == pytest.approx(printed[d_model, mix], rel=4e-3)


def test_flops_with_a_drawn_block_are_the_mean_over_its_range() -> None:
    base = {**SHAPE, "n_layers": 2}
    of = {
        k: model_counts(ModelConfig.model_validate({**base, "recurrence": {"block": k}})).sequence_attention
        for k in (4, 5, 6)
    }
    drawn = ModelConfig.model_validate({**base, "recurrence": {"block": 32, "block_range": [4, 6]}})
    assert model_counts(drawn).sequence_attention == round(sum(of.values()) / 3)


def test_a_drawn_block_depends_on_seed_and_step_alone_and_rests_in_evaluation() -> None:
    net = network_of({"n_layers": 1, "recurrence": {"block": 8, "block_range": [3, 12]}})
    seen = set()
    for step in range(200):
        net.draw_block(seed=1, step=step)
        seen.add(net.drawn)
    assert seen == set(range(3, 13))
    net.draw_block(1, 7)
    again, tokens = net.drawn, tokens_of(1, 40)
    net.draw_block(1, 8)
    net.draw_block(1, 7)
    assert net.drawn == again
    fixed = network_of({"n_layers": 1, "recurrence": {"block": 8}})
    trained = network_of({"n_layers": 1, "recurrence": {"block": net.drawn}})
    with torch.no_grad():
        assert torch.equal(net.logits(tokens), fixed.logits(tokens))
        assert torch.equal(net.train().logits(tokens), trained.logits(tokens))


def test_evaluation_has_its_own_block_whatever_range_is_drawn_from() -> None:
    net = network_of({"n_layers": 1, "recurrence": {"block": 16, "block_range": [3, 6]}})
    plain = network_of({"n_layers": 1, "recurrence": {"block": 16}})
    with torch.no_grad():
        assert torch.equal(net.logits(tokens_of(1, 40)), plain.logits(tokens_of(1, 40)))


def test_a_learned_weight_stays_within_0_to_1_and_can_come_back() -> None:
    net = network_of({"n_layers": 1, "recurrence": {"block": 8, "mix": "learned"}})
    (alpha,) = net.alphas
    with torch.no_grad():
        alpha.fill_(-0.2)
    net.hold_alphas()
    assert float(alpha.detach()) == 0
    net.logits(tokens_of(1, 40)).square().mean().backward()
    assert alpha.grad is not None
    assert float(alpha.grad.abs()) > 0


@pytest.mark.parametrize("mode", ["always", "never"])
def test_streaming_with_merged_weights(mode: PremergeMode) -> None:
    net = network_of({"n_layers": 2, "recurrence": {"block": 8}, "structure": "lowrank-63", "d_ff": 48})
    tokens = tokens_of(2, 30)
    with torch.no_grad():
        full = net.logits(tokens)
    ready = prepare_for_decoding(net, mode, lambda shape: None)
    cache = make_cache(ready, 2, dtype=torch.float64)
    torch.testing.assert_close(advance(ready, cache, tokens, every=True), full, rtol=1e-9, atol=1e-10)


def test_streaming_in_bf16_stays_near_the_full_forward() -> None:
    net = network_of({"n_layers": 2, "recurrence": {"block": 8, "mix": "learned"}}, torch.float32)
    tokens = tokens_of(2, 30)
    with torch.no_grad():
        full = net.logits(tokens)
    cast_weights(net, torch.bfloat16)
    cache = make_cache(net, 2, dtype=torch.bfloat16)
    out = advance(net, cache, tokens, every=True).float()
    assert float((out - full).abs().mean()) < 0.05 * float(full.abs().mean())


@pytest.mark.parametrize("shape", VARIANTS, ids=str)
def test_streaming_equals_the_full_forward(shape: dict[str, Any]) -> None:
    net, tokens = network_of(shape), tokens_of(3, 40)
    cache = make_cache(net, 3, dtype=torch.float64)
    with torch.no_grad():
        full = net.logits(tokens)
    parts = [advance(net, cache, part, every=True) for part in tokens.split([1, 2, 17, 1, 19], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), full, rtol=1e-9, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    block=st.integers(1, 9),
    new=st.integers(1, 15),
)
def test_rows_of_different_lengths_are_what_they_would_be_alone(
    lengths: list[int], block: int, new: int
) -> None:
    net = network_of({"n_layers": 2, "recurrence": {"block": block, "mix": "learned"}})
    tokens = tokens_of(len(lengths), max(lengths) + new)
    cache = make_cache(net, len(lengths), dtype=torch.float64)
    logits = [advance(net, cache, tokens[:, : max(lengths)], lengths)]
    rows = torch.arange(len(lengths))
    logits += [advance(net, cache, tokens[rows, torch.tensor(lengths) + i][:, None]) for i in range(new)]
    with torch.no_grad():
        for row, length in enumerate(lengths):
            full = net.logits(tokens[row : row + 1, : length + new])[0]
            mine = torch.stack([step[row] for step in logits])
            torch.testing.assert_close(mine, full[length - 1 : length + new], rtol=1e-9, atol=1e-10)


def test_the_state_does_not_grow_and_length_has_no_end_without_positions() -> None:
    net = network_of({"n_layers": 2, "recurrence": {"block": 8}}, torch.float32)
    assert longest(net.model) is None
    cache = make_cache(net, 2)
    before = cache.nbytes
    advance(net, cache, tokens_of(2, 400))
    assert cache.nbytes == before
    # Keys and values of two states and of one block of inputs, and two blocks of outputs, each of width 24.
    assert before == 4 * 2 * 2 * (2 * 3 * 8 * 24 + 2 * 8 * 24)


def test_learned_positions_end_with_seq_len() -> None:
    net = network_of({"n_layers": 1, "positions": "learned", "recurrence": {"block": 8}})
    assert longest(net.model) == 40
    cache = make_cache(net, 1, dtype=torch.float64)
    with pytest.raises(Exception, match="41 tokens do not fit the network's 40 positions"):
        advance(net, cache, tokens_of(1, 41))
