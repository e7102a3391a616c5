"""Generation by a recurrent transformer: a state of a few blocks of vectors a layer, however long the text.

Token j of block b passes each layer twice, as in `trainer.models.recurrent`: as input, in the window that the
state h_b-1 opens, which gives h_b[j]; and as state, in the window that h_b opens, which gives y_b[j].  The
keys and values of that second pass are what the next block's inputs attend to.

Shapes: B = rows, n = rows of a pass, T = new tokens of each row, K = block, D = d_model, V = vocabulary,
H = query heads, G = key/value heads, E = width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.errors import ConfigError
from trainer.models.config import longest
from trainer.models.recurrent import RecurrentTransformer, mixed
from trainer.models.transformer import Block


class RecurrentState:
    """What the network keeps of the tokens so far; rows may be of different lengths.

    Attributes:
        windows: keys and values, (2, layers, B, G, 2K, E): those of h_b-1, then of the inputs of block b.
        states: keys and values of h_b, (2, layers, B, G, K, E), as far as block b has come.
        outputs: (2, layers, B, K, D): y_b-2, overwritten by y_b token by token, and y_b-1.
        lengths: tokens of each row so far, (B,).
    """

    def __init__(
        self,
        network: RecurrentTransformer,
        batch: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        model = network.model
        self.network, self.block = network, network.recurrence.block
        self.scale, self.limit = model.attention_scale, longest(model)
        heads, width = model.n_kv_heads, model.head_dim
        shape = (2, model.n_layers, batch, heads)
        # Zeros: slots that are not filled yet are multiplied by a probability of zero.
        self.windows = torch.zeros((*shape, 2 * self.block, width), dtype=dtype, device=device)
        self.states = torch.zeros((*shape, self.block, width), dtype=dtype, device=device)
        out = (2, model.n_layers, batch, self.block, model.d_model)
        self.outputs = torch.zeros(out, dtype=dtype, device=device)
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept; the number of tokens does not enter."""
        return self.windows.nbytes + self.states.nbytes + self.outputs.nbytes

    def go_to(self, position: int) -> None:
        """Pretend that every row has `position` tokens, whatever was kept; for measuring speed."""
        self.lengths.fill_(position)

    def advance(self, tokens: Tensor, counts: Sequence[int], every: bool) -> Tensor:
        """Append counts[r] of the tokens (B, T) to row r; returns logits as `trainer.models.decode.advance`.

        Raises:
            ConfigError: more tokens than the network has positions for.
        """
        batch, new = tokens.shape
        if self.limit is not None and int(self.lengths.max()) + new > self.limit:
            raise ConfigError(
                f"{int(self.lengths.max()) + new} tokens do not fit the network's {self.limit} positions "
                f"(seq_len); ask for fewer"
            )
        left = torch.tensor(list(counts), device=tokens.device)
        hidden = torch.zeros(
            (batch, new, self.network.model.d_model), dtype=self.windows.dtype, device=tokens.device
        )
        done = 0
        while done < new:
            rows = torch.nonzero(left > done)[:, 0]
            if not len(rows):
                break
            # As far as all of these rows go on, and none of them comes into its next block.
            room = self.block - int((self.lengths[rows] % self.block).max())
            step = min(room, int(left[rows].min()) - done)
            hidden[rows, done : done + step] = self._pass(rows, tokens[rows, done : done + step])
            done += step
        if every:
            return self.network.head(hidden)
        last = hidden[torch.arange(batch, device=tokens.device), left - 1]
        return self.network.head(last[:, None])[:, 0]

    def _pass(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Put tokens (n, T) of one block behind the rows (n,); returns the stream behind the last layer."""
        network, lengths = self.network, self.lengths[rows]
        x = network.embed(tokens, lengths[:, None])
        at = lengths[:, None] % self.block + torch.arange(tokens.shape[1], device=tokens.device)
        first = lengths < self.block
        for number, block in enumerate(network.blocks):
            x = self._layer(cast(Block, block), number, rows, at, first, x)
        self.lengths[rows] = lengths + tokens.shape[1]
        self._turn(rows[self.lengths[rows] % self.block == 0])
        return x

    def _layer(self, block: Block, number: int, rows: Tensor, at: Tensor, first: Tensor, x: Tensor) -> Tensor:
        """One layer's outputs y (n, T, D) for its inputs x (n, T, D) at slots `at` (n, T) of their blocks.

        `first` (n,): whether it is the first block of a row, whose inputs are mixed with nothing, and which
        stands for the output before it.
        """
        network = self.network
        before, last = self.outputs[:, number]
        index = rows[:, None]
        alpha, start = network.alpha(number), first[:, None, None]
        last[index, at] = torch.where(start, x, last[index, at])
        given = torch.where(start, x, mixed(alpha, before[index, at], x))
        window = _Window(self.windows[:, number], index, at, self.block, first, self.scale)
        state = block(given, None, network.mask, window)
        own = _Window(self.states[:, number], index, at, 0, first, self.scale)
        out: Tensor = block(mixed(alpha, last[index, at], state), None, network.mask, own)
        before[index, at] = out
        return out

    def _turn(self, rows: Tensor) -> None:
        """Begin the next block of the rows whose block is full."""
        if len(rows):
            self.windows[:, :, rows, :, : self.block] = self.states[:, :, rows]
            self.outputs[:, :, rows] = self.outputs[:, :, rows].flip(0)


class _Window:
    """The keys and values of one window, as the attention of its layer sees them."""

    def __init__(
        self, kept: Tensor, rows: Tensor, at: Tensor, context: int, first: Tensor, scale: float
    ) -> None:
        self.kept, self.rows, self.slots, self.scale = kept, rows, at + context, scale
        slots = torch.arange(kept.shape[-2], device=at.device)
        seen = slots <= self.slots[:, :, None]
        if context:
            # The first block opens its own window: there is no state before it.
            seen = seen & ((slots >= context) | ~first[:, None, None])
        self.mask = seen[:, None]  # (n, 1, T, slots)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep k and v (n, G, T, E), let q (n, H, T, E) attend to the window so far; returns (n, H, T, E)."""
        keys, values = self.kept
        keys[self.rows, :, self.slots] = k.transpose(1, 2)
        values[self.rows, :, self.slots] = v.transpose(1, 2)
        rows = self.rows[:, 0]
        return F.scaled_dot_product_attention(
            q,
            keys[rows],
            values[rows],
            attn_mask=self.mask,
            scale=self.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
