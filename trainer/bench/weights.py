"""Weights for maps that are only timed: numbers of the usual size, without the work of a run's draw."""

from __future__ import annotations

import torch

from trainer.models.transformer import StructuredLinear


def fill(layer: StructuredLinear, generator: torch.Generator) -> None:
    """Draw the weights of a map on the host, a support as a run draws it; the bias stays.

    Speed needs none of the decompositions of a run's initialisation, but it depends on where the entries of
    a sparse part lie.
    """
    std = layer.d_in**-0.5
    if layer.structure.buffer_shapes(layer.d_in, layer.d_out):
        layer.reset(std, generator)
        return
    for factor in layer.factors.values():
        factor.data.normal_(std=std, generator=generator)
