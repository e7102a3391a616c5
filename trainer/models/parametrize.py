"""How each weight starts and how fast it learns: as the papers do, or structure-aware and width-transferable.

`paper`: one learning rate, the initialisation of each family (spectral for lowrank, orthonormal blocks).
`mup`: each factor by its own fan-in and fan-out (Qiu et al. 2406.06248 sec. 3.2, on Yang et al. 2203.03466):

- initialisation: normal with standard deviation sqrt(1 / fan_in) min(1, sqrt(fan_out / fan_in));
- Adam's learning rate: peak_lr times base_d_model / d_model for a dense map, and for a factor of a map from
  d_in that times d_in / (fan_in depth), where depth counts the factors of the product;
- the tied head's logits are multiplied by base_d_model / d_model, attention scores by
  sqrt(base_head_dim) / head_dim instead of 1 / sqrt(head_dim) (see ModelConfig);
- embeddings, biases and gains keep peak_lr, and embeddings init_std: their fan-in does not grow.

Unlike the reference code, the last factor of a residual branch does not start at zero, and the fused
query-key-value map counts as one map of d_model inputs.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from trainer.models.guide import Guide
from trainer.models.transformer import StructuredLinear, Transformer


@torch.no_grad()
def initialise(network: Transformer, seed: int) -> None:
    """Draw every weight from a generator keyed by (seed, its name).

    A weight's draw depends on nothing else, so that networks which differ in their FFN share the rest.
    """
    std = network.model.init_std
    network.embedding.weight.normal_(std=std, generator=_generator(seed, "embedding"))
    if network.positions is not None:
        network.positions.normal_(std=std, generator=_generator(seed, "positions"))
    for name, module in network.named_modules():
        if isinstance(module, StructuredLinear):
            generator = _generator(seed, name)
            module.reset(std, generator)
            if network.model.parametrization == "mup":
                _redraw(module, generator)


def learning_rate_scales(network: nn.Module) -> dict[str, float]:
    """What multiplies the learning rate of each parameter, by name; parameters that are not named keep it."""
    if not isinstance(network, Transformer) or network.model.parametrization == "paper":
        return {}
    model, scales = network.model, {}
    dense = model.logit_scale
    for name, module in network.named_modules():
        if isinstance(module, Guide):
            scales[f"{name}.weight"] = dense
        elif isinstance(module, StructuredLinear):
            for factor, fan in module.structure.fans(module.d_in, module.d_out).items():
                scales[f"{name}.factors.{factor}"] = dense * module.d_in / (fan.fan_in * fan.depth)
    return scales


def _redraw(module: StructuredLinear, generator: torch.Generator) -> None:
    """Draw the factors by their fans; buffers stay as the family drew them."""
    for name, fan in module.structure.fans(module.d_in, module.d_out).items():
        factor = module.factors[name]
        factor.copy_(torch.randn(factor.shape, generator=generator) * fan.spectral_std)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"init\n{seed}\n{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
