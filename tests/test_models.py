"""The transformer: causality, RoPE, grouped queries, and both attention kernels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from trainer.models.parametrize import initialise
from trainer.models.transformer import Transformer, matmul_attention, rope_table, rotate
from trainer.presets import resolve

BASE: dict[str, Any] = {"d_model": 32, "n_layers": 2, "n_heads": 4, "seq_len": 12, "vocab_size": 20}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"n_kv_heads": 2, "attn_dim": 16},
    {"n_kv_heads": 1, "qk_norm": True},
    {"activation": "swiglu", "norm": "rmsnorm", "bias": False},
]


def network(variant: dict[str, Any], kernel: str = "sdpa", structure: str = "blockdense-63") -> Transformer:
    config = resolve(
        {
            "model": {**BASE, **variant},
            "structure": structure,
            "tokens": 12,
            "optim": {"peak_lr": 1e-3, "batch_tokens": 12},
        },
        "t",
    )
    net = Transformer(config.model, kernel)
    initialise(net, 1)
    # The papers' small initialisation would hide a leak behind near-zero activations.
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3)
    return net.double()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("kernel", ["sdpa", "matmul"])
def test_a_changed_later_token_changes_no_earlier_output(variant: dict[str, Any], kernel: str) -> None:
    net = network(variant, kernel)
    tokens = torch.randint(20, (2, 12))
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 20
    before, after = net.logits(tokens), net.logits(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7], rtol=0, atol=0)
    assert (before[:, 7:] - after[:, 7:]).abs().amin(dim=(0, 2)).gt(0).any()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_two_kernels_agree(variant: dict[str, Any]) -> None:
    tokens = torch.randint(20, (2, 12))
    logits = [network(variant, kernel).logits(tokens) for kernel in ("sdpa", "matmul")]
    torch.testing.assert_close(*logits, rtol=1e-6, atol=1e-7)


def test_grouped_queries_equal_repeated_heads() -> None:
    q, k, v = torch.randn(1, 4, 5, 6), torch.randn(1, 2, 5, 6), torch.randn(1, 2, 5, 6)
    mask = torch.full((5, 5), -torch.inf).triu(1)
    grouped = matmul_attention(q, k, v, mask, 1 / math.sqrt(q.shape[-1]))
    for head in range(4):
        alone = matmul_attention(
            q[:, [head]], k[:, [head // 2]], v[:, [head // 2]], mask, 1 / math.sqrt(q.shape[-1])
        )
        torch.testing.assert_close(grouped[:, [head]], alone)


def test_rope_depends_on_distance_only() -> None:
    table = rope_table(40, 8, 10000.0)
    q, k = torch.randn(8), torch.randn(8)

    def score(i: int, j: int) -> float:
        turned = [rotate(x.expand(1, 40, 1, 8), table)[0, p, 0] for x, p in ((q, i), (k, j))]
        return float(turned[0] @ turned[1])

    assert score(5, 2) == pytest.approx(score(33, 30), abs=1e-4)
    assert score(5, 2) != pytest.approx(score(5, 4), abs=1e-3)
    torch.testing.assert_close(rotate(q.expand(1, 40, 1, 8), table)[0, 0, 0], q)


def test_rope_in_double_precision_matches_rotation_matrices() -> None:
    table = rope_table(7, 4, 100.0)
    x = torch.randn(1, 7, 1, 4)
    for position in range(7):
        for pair in range(2):
            angle = torch.tensor(position * 100.0 ** (-2 * pair / 4))
            c, s = angle.cos(), angle.sin()
            want = (
                torch.stack((torch.stack((c, -s)), torch.stack((s, c))))
                @ x[0, position, 0, 2 * pair : 2 * pair + 2]
            )
            torch.testing.assert_close(
                rotate(x, table)[0, position, 0, 2 * pair : 2 * pair + 2], want, rtol=1e-5, atol=1e-5
            )


def test_initial_loss_is_that_of_a_uniform_guess() -> None:
    config = resolve({"preset": "cpu-s"}, "t")
    net = Transformer(config.model)
    initialise(net, 1)
    tokens = torch.randint(512, (4, 129), generator=torch.Generator().manual_seed(0))
    loss = net(tokens[:, :-1], tokens[:, 1:]).mean()
    assert loss.item() == pytest.approx(6.238, abs=0.05)


def test_the_first_ffn_stays_dense_where_asked() -> None:
    for first in (True, False):
        kinds = [block.ffn.up.structure.kind for block in network({"dense_first_ffn": first}).blocks]  # type: ignore[union-attr]
        assert kinds == (["dense", "blockdense"] if first else ["blockdense", "blockdense"])
