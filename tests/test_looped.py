"""Looped transformers: counts, equality with tied layers, the cache, runs, and what cannot be."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sweeps.grid import expand
from sweeps.parity import differences
from sweeps.sweepfile import load_sweep
from tests.test_guidance import same_run
from tests.test_loop import TINY, run, stop_at
from trainer.config import RunConfig
from trainer.errors import ConfigError
from trainer.flops import describe, loop_params, model_counts, spent_flops
from trainer.models.build import build_network
from trainer.models.decode import advance, make_cache
from trainer.models.parametrize import initialise
from trainer.models.transformer import Transformer
from trainer.presets import merge, resolve, run_labels
from trainer.rundir import read_result

BASE: dict[str, Any] = {"d_model": 32, "n_layers": 4, "n_heads": 4, "seq_len": 12, "vocab_size": 20}
LOOPS: list[dict[str, int]] = [
    {"passes": 2},
    {"passes": 4},
    {"passes": 2, "prelude": 1, "coda": 1},
    {"passes": 3, "prelude": 3},
    {"passes": 3, "coda": 3},
]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"n_kv_heads": 2, "attn_dim": 16, "activation": "swiglu", "norm": "rmsnorm", "bias": False},
    {"qk_norm": True, "positions": "learned"},
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The products here are too small for two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config_of(loop: Any, structure: str = "lowrank-63", **variant: Any) -> RunConfig:
    model = {**BASE, **variant, **({} if loop is None else {"loop": loop})}
    optim = {"peak_lr": 1e-3, "batch_tokens": 24}
    return resolve({"model": model, "structure": structure, "tokens": 240, "optim": optim}, "t")


def network(loop: dict[str, int] | None, structure: str = "lowrank-63", **variant: Any) -> Transformer:
    """A network whose biases and gains are drawn as well, so that every parameter matters."""
    made = build_network(config_of(loop, structure, **variant).model)
    initialise(made, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return made.double()


def ids(batch: int = 2, length: int = 12, seed: int = 2) -> Tensor:
    return torch.randint(20, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("structure", ["dense", "blockdense-63", "sltrain-63"])
def test_counts_equal_those_of_the_network(structure: str, loop: dict[str, int]) -> None:
    config, once = config_of(loop, structure), config_of(None, structure)
    made, counts = build_network(config.model, "matmul"), model_counts(config.model)
    assert sum(p.numel() for p in made.parameters()) == counts.params_total
    tokens = ids()
    with FlopCounterMode(display=False) as counter:
        losses = made(tokens, tokens)
    # Where attention of a sequence does not divide by its length, whole sequences are counted.
    forward = 24 * counts.forward_matmul + 2 * counts.sequence_attention + counts.forward_pass
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        losses.mean().backward()
    assert counter.get_total_flops() == 2 * forward
    assert spent_flops(config, 1) == 3 * forward
    # Passes cost, and add no parameter.
    assert {k: v for k, v in describe(config).items() if k.startswith("params_")} == {
        **{k: v for k, v in describe(once).items() if k.startswith("params_")},
        **dict(zip(("params_once", "params_looped"), loop_params(config.model), strict=True)),
    }
    assert model_counts(once.model).forward < counts.forward


@pytest.mark.parametrize("structure", ["dense", "lowrank-63"])
def test_more_passes_cost_their_layers_only(structure: str) -> None:
    """The head, prelude and coda are paid once: what a pass adds is the same from pass to pass."""
    work = [
        spent_flops(config_of({"passes": n, "prelude": 1}, structure, dense_first_ffn=False), 1)
        for n in (2, 3, 4)
    ]
    assert work[2] - work[1] == work[1] - work[0] > 0
    plain = config_of(None, structure, dense_first_ffn=False)
    counts = model_counts(plain.model)
    layers = 24 * (counts.forward_matmul - 2 * counts.params_embedding) + 2 * counts.sequence_attention
    assert work[1] - work[0] == 3 * layers * 3 // 4


@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_the_laws_two_sizes(loop: dict[str, int]) -> None:
    """N_once and N_rec, counted over the network's own blocks."""
    config = config_of(loop, "blockshuffle-63")
    made = build_network(config.model)
    first, last = loop.get("prelude", 0), config.model.n_layers - loop.get("coda", 0)
    # All of a block but biases, gains and norms: those have one axis.
    sizes = [sum(p.numel() for p in block.parameters() if p.ndim > 1) for block in made.blocks]
    assert loop_params(config.model) == (sum(sizes[:first]) + sum(sizes[last:]), sum(sizes[first:last]))
    assert sum(loop_params(config.model)) == model_counts(config.model).params_non_embedding


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("loop", LOOPS[::2], ids=str)
def test_a_looped_network_is_a_deeper_one_with_tied_layers(
    loop: dict[str, int], variant: dict[str, Any]
) -> None:
    """Outputs are those of copies in a row; a looped layer's gradient is the sum over its copies."""
    looped = network(loop, **variant)
    first, last = loop.get("prelude", 0), BASE["n_layers"] - loop.get("coda", 0)
    order = [*range(first), *list(range(first, last)) * loop["passes"], *range(last, BASE["n_layers"])]
    assert looped.model.layer_order == tuple(order)
    deep = build_network(config_of(None, **{**variant, "n_layers": len(order)}).model).double()
    # Blocks are copied whole: the first of several copies of block 0 keeps its dense FFN.
    deep.blocks = torch.nn.ModuleList(copy.deepcopy(looped.blocks[layer]) for layer in order)
    deep.load_state_dict({**deep.state_dict(), **outside(looped)})
    tokens, targets = ids(), ids(seed=3)
    torch.testing.assert_close(looped.logits(tokens), deep.logits(tokens), rtol=1e-12, atol=1e-12)
    for made in (looped, deep):
        made(tokens, targets).mean().backward()
    summed: dict[str, Tensor] = {}
    for name, parameter in deep.named_parameters():
        parts = name.split(".")
        if parts[0] == "blocks":
            parts[1] = str(order[int(parts[1])])
        assert parameter.grad is not None
        there = ".".join(parts)
        summed[there] = summed.get(there, torch.zeros_like(parameter)) + parameter.grad
    for name, parameter in looped.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, summed[name], rtol=1e-9, atol=1e-12)


def outside(made: Transformer) -> dict[str, Tensor]:
    """The weights of a network outside its blocks."""
    return {name: value for name, value in made.state_dict().items() if not name.startswith("blocks.")}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_generation_with_a_cache_equals_whole_passes(loop: dict[str, int], variant: dict[str, Any]) -> None:
    """Greedy, rows of different lengths, token by token against whole sequences."""
    made = network(loop, **variant).eval()
    rows = [ids(1, n, n)[0].tolist() for n in (5, 2, 7)]
    cache = make_cache(made, len(rows), 12, torch.float64)
    padded = torch.tensor([row + [0] * (7 - len(row)) for row in rows])
    logits = advance(made, cache, padded, [len(row) for row in rows])
    for _ in range(4):
        want = torch.stack([last_logits(made, row) for row in rows])
        torch.testing.assert_close(logits, want, rtol=1e-10, atol=1e-10)
        new = logits.argmax(-1)
        for row, token in zip(rows, new.tolist(), strict=True):
            row.append(token)
        logits = advance(made, cache, new[:, None])


@torch.inference_mode()
def last_logits(made: Transformer, row: Sequence[int]) -> Tensor:
    return made.logits(torch.tensor([row]))[0, -1]


def test_the_cache_grows_with_passes_not_with_parameters() -> None:
    sizes = [
        make_cache(network(loop), 2, 12, torch.float64).nbytes
        for loop in (None, {"passes": 2}, {"passes": 2, "prelude": 1, "coda": 1})
    ]
    assert sizes == [sizes[0], 2 * sizes[0], sizes[0] * 6 // 4]


def test_a_looped_run_trains_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    change = {"model": {"n_layers": 3, "loop": {"passes": 3, "prelude": 1}}, "structure": "lowrank-50"}
    assert run(tmp_path / "whole", **change) == "done"
    assert run(tmp_path / "run", should_stop=stop_at(11), **change) == "preempted"
    assert run(tmp_path / "run", **change) == "done"
    same_run(tmp_path / "run", tmp_path / "whole")
    result, config = read_result(tmp_path / "run"), resolve(merge(TINY, change), "t")
    assert result is not None
    assert result["structure"] == "lowrank-50, looped 3"
    assert (result["params_once"], result["params_looped"]) == loop_params(config.model)
    assert result["params_looped"] == 2 * result["params_once"] > 0
    assert result["params_avg"] == result["params"]
    assert result["train_flops"] == spent_flops(config, config.steps)


def test_labels_and_ids() -> None:
    plain, looped = config_of(None, "dense"), config_of({"passes": 4}, "dense")
    assert run_labels(looped)["structure"] == "dense, looped 4"
    assert run_labels(plain)["structure"] == "dense"
    assert "loop" not in plain.canonical_json()
    ids_ = {
        config_of(loop, "dense").run_id("c")
        for loop in (None, *LOOPS, {"passes": 2, "prelude": 0, "coda": 0})
    }
    assert len(ids_) == 1 + len(LOOPS)
    assert RunConfig.model_validate_json(looped.canonical_json()) == looped


def test_loops_of_a_sweep_are_structures_that_nothing_else_tells_apart() -> None:
    runs = expand(load_sweep("looped"))
    labels = [run_labels(config) for config in runs]
    assert len({config.tokens for config in runs}) == len({label["size"] for label in labels}) == 3
    assert {label["structure"] for label in labels} == {"dense", "dense, looped 2", "dense, looped 4"}
    assert differences(runs, [(label["size"], label["structure"]) for label in labels]) == []
    other = runs[0].model_copy(update={"optim": runs[0].optim.model_copy(update={"peak_lr": 0.5})})
    assert "peak_lr differs" in differences([other, *runs[1:]], [
        (label["size"], label["structure"]) for label in labels
    ])[0]  # fmt: skip
    # The dense runs are those of other sweeps.
    assert {c.run_id("x") for c in runs} & {c.run_id("x") for c in expand(load_sweep("lowrank"))}


@pytest.mark.parametrize(
    ("loop", "said"),
    [
        ({}, "passes"),
        ({"passes": 1}, "passes"),
        ({"passes": 0}, "passes"),
        ({"passes": -2}, "passes"),
        ({"passes": 2.5}, "passes"),
        ({"passes": "twice"}, "passes"),
        ({"passes": 2, "prelude": -1}, "prelude"),
        ({"passes": 2, "prelude": 2, "coda": 2}, "leave none of the 4 layers"),
        ({"passes": 2, "prelude": 4}, "leave none of the 4 layers"),
        ({"passes": 2, "coda": 9}, "leave none of the 4 layers"),
        ({"passes": 2, "depth": 2}, "depth"),
        (3, "loop"),
    ],
    ids=str,
)
def test_mistakes_are_told(loop: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        config_of(loop)
    assert str(caught.value).startswith("t: ") and "\n" not in str(caught.value)


def test_a_recurrent_network_does_not_loop() -> None:
    with pytest.raises(ConfigError, match="passes twice already") as caught:
        config_of({"passes": 2}, "dense", kind="recurrent")
    assert "\n" not in str(caught.value)
