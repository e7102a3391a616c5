"""The recurrent transformer: one causal layer applied from block to block, in linear time (arXiv 2402.14746).

A sequence is cut into blocks x_1 ... x_N of K tokens.  A layer T, an ordinary causal transformer block, goes
over windows of two blocks, so that every token passes it twice, as input and as state:

    h_1 = T(x_1)
    (y_i, h_i+1) = T(a o + h_i, a o + x_i+1)     i = 1 ... N - 1,  o = y_i-1, and x_1 for i = 1
    y_N = T(a o + h_N)

a is 0 (forget), 1/2 (accumulate) or learned.  y_i is what the layer puts out for block i; a further layer
takes it as its input.  Gradients pass through all steps.  Shapes: B = sequences, T = positions, K = block,
D = d_model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from trainer.models.config import ModelConfig
from trainer.models.transformer import Block, Transformer
from trainer.rng import integer

ALPHA = {"forget": 0.0, "accumulate": 0.5}


class RecurrentTransformer(Transformer):
    """The recurrent language model; parameters are those of a Transformer, and a mixing weight a layer."""

    def __init__(self, model: ModelConfig, kernel: str = "sdpa") -> None:
        assert model.recurrence is not None
        self.recurrence = model.recurrence
        super().__init__(model, kernel)
        learned = self.recurrence.mix == "learned"
        self.alphas = nn.ParameterList(
            nn.Parameter(torch.tensor(0.5)) for _ in range(model.n_layers if learned else 0)
        )
        self.drawn = self.recurrence.block

    @property
    def window(self) -> int:
        """Most positions that attend to each other: two blocks, in training or in evaluation."""
        return 2 * max(self.recurrence.block, self.recurrence.drawn[-1])

    def draw_block(self, seed: int, step: int) -> None:
        """Fix the tokens of a block for training step `step`, a pure function of (seed, step)."""
        drawn = self.recurrence.drawn
        self.drawn = drawn[integer(seed, "block", step, below=len(drawn))]

    def alpha(self, layer: int) -> Tensor | float:
        """Weight of the previous output in a layer, within 0 to 1."""
        if self.recurrence.mix == "learned":
            return cast(Tensor, self.alphas[layer])
        return ALPHA[self.recurrence.mix]

    @torch.no_grad()
    def hold_alphas(self) -> None:
        """Bring learned weights back within 0 to 1, behind every update.

        Clamped in the forward pass instead, one that left would have no gradient to come back by.
        """
        for alpha in self.alphas:
            alpha.clamp_(0, 1)

    def stream(self, x: Tensor) -> Tensor:
        """The residual stream (B, T, D) behind the last layer, from embeddings x (B, T, D)."""
        block = self.drawn if self.training else self.recurrence.block
        for number, layer in enumerate(self.blocks):
            x = torch.cat(list(self._outputs(cast(Block, layer), x, block, self.alpha(number))), dim=1)
        return x

    def _outputs(self, layer: Block, x: Tensor, block: int, alpha: Tensor | float) -> Iterator[Tensor]:
        """y_1 ... y_N, each (B, K, D), the last as short as the last block."""
        first, *others = torch.split(x, block, dim=1)
        state, before = layer(first, None, self.mask), first
        for part in others:
            # Only the last block can be shorter than those before it.
            window = torch.cat(
                (mixed(alpha, before, state), mixed(alpha, before[:, : part.shape[1]], part)), dim=1
            )
            out = layer(window, None, self.mask)
            before, state = out[:, :block], out[:, block:]
            yield before
        yield layer(mixed(alpha, before[:, : state.shape[1]], state), None, self.mask)


def mixed(alpha: Tensor | float, before: Tensor, x: Tensor) -> Tensor:
    """The sum a o + x, for the previous output o = `before` and x of one shape."""
    if isinstance(alpha, float) and alpha == 0:
        return x
    return alpha * before + x
