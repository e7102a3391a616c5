"""Linear maps for generation: merged dense weights beside the factors, the cheaper of the two at each call.

Few tokens leave the processor waiting for weights, of which the factors have fewer; one product starts
sooner than two.  Which of these wins depends on the machine, so it is measured (trainer.crossover).
Training knows nothing of this: the maps of a loaded network are replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.models.decode import Cache
from trainer.models.structures import Structure
from trainer.models.transformer import StructuredLinear, Transformer

PremergeMode = Literal["auto", "always", "never"]
Prefers = Callable[[int], bool]
"""Whether the merged weight is the cheaper form for so many tokens."""


class MapShape(NamedTuple):
    """What the speed of a map depends on, beside machine and dtype."""

    structure: Structure
    d_in: int
    d_out: int


class PlainLinear(nn.Module):
    """A dense map with the weight of a dense StructuredLinear, without its detours to the product."""

    def __init__(self, layer: StructuredLinear) -> None:
        super().__init__()
        self.weight = layer.factors["weight"]
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """W x + b, for x (..., d_in)."""
        return F.linear(x, self.weight, self.bias)


class PremergedLinear(nn.Module):
    """A structured map with its merged dense weight (d_out, d_in) beside its factors.

    `prefers_merged` is asked once for each number of tokens.
    """

    merged: Tensor | None

    def __init__(self, layer: StructuredLinear, merged: Tensor | None, prefers_merged: Prefers) -> None:
        super().__init__()
        self.structure, self.d_in, self.d_out = layer.structure, layer.d_in, layer.d_out
        self.source = layer
        self.register_buffer("merged", merged, persistent=False)
        self.choose_by(prefers_merged)
        self._look_up()

    def _look_up(self) -> None:
        # Attributes of a module are found slowly, and small networks wait for nothing else.
        self._weights: Mapping[str, Tensor] = dict(self.source.weights)
        self._plain = (self.merged, self.source.bias)

    def choose_by(self, prefers_merged: Prefers) -> None:
        """Choose the form by another rule from now on."""
        self.prefers_merged = prefers_merged
        self._known: dict[int, bool] = {}

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Moving a module can replace its tensors; what is looked up at each call has to follow.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._look_up()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Apply to x (..., d_in) in the form that is cheaper for so many tokens; returns (..., d_out)."""
        tokens = x.numel() // self.d_in
        use = self._known.get(tokens)
        if use is None:
            use = self._known[tokens] = self.merged is not None and self.prefers_merged(tokens)
        merged, bias = self._plain
        if use and merged is not None:
            return F.linear(x, merged, bias)
        return self.structure.forward(x, self._weights, bias)


def map_shapes(network: Transformer) -> list[MapShape]:
    """The different structured maps of a network, dense ones left out."""
    found = [
        MapShape(module.structure, module.d_in, module.d_out)
        for module in network.modules()
        if isinstance(module, StructuredLinear) and module.structure.kind != "dense"
    ]
    return list(dict.fromkeys(found))


@torch.no_grad()
def prepare_for_decoding(
    network: Transformer, mode: PremergeMode, prefers_merged: Callable[[MapShape], Prefers | None]
) -> Transformer:
    """Replace the linear maps of a network, in place, by those for generation; returns it in evaluation mode.

    Args:
        network: loaded, without guides, already of its dtype and on its device.
        mode: `never` merges nothing, `always` merges and uses the merged weights only, `auto` asks.
        prefers_merged: for `auto`, of a shape: the choice by number of tokens, or None where the factors
            are cheaper for all of them, so that nothing need be merged.
    """
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if not isinstance(layer, StructuredLinear):
                continue
            new: nn.Module
            if layer.structure.kind == "dense":
                new = PlainLinear(layer)
            else:
                shape = MapShape(layer.structure, layer.d_in, layer.d_out)
                prefers = prefers_merged(shape) if mode == "auto" else (lambda tokens: True)
                keep = mode != "never" and prefers is not None
                merged = merged_like(layer) if keep else None
                new = PremergedLinear(layer, merged, prefers or (lambda tokens: False))
            setattr(parent, name, new)
    return network.eval()


def merged_like(layer: StructuredLinear) -> Tensor:
    """The merged weight in the dtype of the factors, computed in fp32 or better."""
    own = next(iter(layer.factors.values()))
    exact = {
        name: value.to(torch.promote_types(value.dtype, torch.float32))
        if value.is_floating_point()
        else value
        for name, value in layer.weights.items()
    }
    return layer.structure.merged_weight(exact).to(own.dtype).contiguous()


class Memory(NamedTuple):
    """Bytes that generation holds, activations left out."""

    weights: int
    """Of the network as it was trained: factors, dense weights, embedding, norms, fixed supports."""
    merged: int
    """Of the merged weights beside the factors."""
    cache: int
    """Of keys and values."""


def decoding_memory(network: nn.Module, cache: Cache | None = None) -> Memory:
    """Bytes of a network that was prepared for generation, and of its cache."""
    weights = {id(p): p.nbytes for p in network.parameters()}
    merged = 0
    for module in network.modules():
        if isinstance(module, PremergedLinear):
            merged += 0 if module.merged is None else module.merged.nbytes
        elif isinstance(module, StructuredLinear):
            weights |= {id(b): b.nbytes for b in module.buffers(recurse=False)}
    return Memory(sum(weights.values()), merged, 0 if cache is None else cache.nbytes)
