"""Generation with a cache: each new token passes through the network once.

The rows of a batch may be of different lengths: each begins at slot 0 of its own part of the cache, so that
its positions, and what it attends to, are what they would be alone.

Shapes: B = rows, T = new tokens of each row, S = slots of the cache, V = vocabulary, H = query heads,
G = key/value heads, E = width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.errors import ConfigError
from trainer.models.config import ModelConfig
from trainer.models.recurrent import RecurrentTransformer
from trainer.models.streaming import RecurrentState
from trainer.models.transformer import Transformer


class KVCache:
    """Keys and values of the tokens so far, for every pass through a layer; memory for `length` tokens a row.

    Attributes:
        keys, values: (passes through layers, B, G, S, E); only the G heads that grouped queries share.
        lengths: tokens of each row so far.
    """

    def __init__(
        self,
        model: ModelConfig,
        batch: int,
        length: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        length = model.seq_len if length is None else length
        if not 0 < length <= model.seq_len:
            raise ConfigError(
                f"{length} tokens a row: the network was built for seq_len = {model.seq_len}; ask for no more"
            )
        self.seq_len, self.slots, self.scale = model.seq_len, length, model.attention_scale
        shape = (len(model.layer_order), batch, model.n_kv_heads, length, model.head_dim)
        # Zeros: slots behind a short row are multiplied, by a probability of zero, before they are filled.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = [0] * batch
        self.rows = torch.arange(batch, device=device)[:, None]
        self._begin_pass(1)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def go_to(self, position: int) -> None:
        """Pretend that every row has `position` tokens, whatever lies in the cache; for measuring speed."""
        self.lengths = [position] * len(self.lengths)

    def _begin_pass(self, new: int) -> None:
        """Fix where `new` more tokens a row go, and what they may attend to."""
        first, last = min(self.lengths), max(self.lengths)
        if last + new > self.slots:
            raise ConfigError(
                f"{last + new} tokens do not fit the {self.slots} of the cache (seq_len = {self.seq_len}); "
                f"ask for fewer"
            )
        self.new, self.start, self.stop = new, first, last + new
        self.uniform = first == last
        device = self.keys.device
        steps = torch.arange(new, device=device)
        if self.uniform:
            self.positions = (steps + first).expand(len(self.lengths), new)
        else:
            self.positions = torch.tensor(self.lengths, device=device)[:, None] + steps
        self.causal = self.uniform and first == 0
        self.mask: Tensor | None = None
        if not (self.uniform and (first == 0 or new == 1)):
            slots = torch.arange(self.stop, device=device)
            self.mask = (slots <= self.positions[:, :, None])[:, None]  # (B, 1, T, S)

    def end_pass(self, counts: Sequence[int]) -> None:
        """Count the tokens of each row that were put in; what a row has beyond them is overwritten later."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put k and v (B, T, G, E) in; returns all that is there, (B, G, stop, E) each."""
        keys, values = self.keys[layer], self.values[layer]
        if self.uniform:
            keys[:, :, self.start : self.stop] = k.transpose(1, 2)
            values[:, :, self.start : self.stop] = v.transpose(1, 2)
        else:
            # The index arrays stand apart, so their axes come first: (B, T, G, E).
            keys[self.rows, :, self.positions] = k
            values[self.rows, :, self.positions] = v
        return keys[:, :, : self.stop], values[:, :, : self.stop]


class _Layer:
    """One layer of the cache, as its attention sees it: the tokens of all rows lie one after another."""

    def __init__(self, cache: KVCache, layer: int) -> None:
        self.cache, self.layer = cache, layer

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Q (1, H, B T, E) attends to what is there and to k, v (1, G, B T, E); returns (1, H, B T, E)."""
        cache = self.cache
        batch, new = len(cache.lengths), cache.new
        heads, groups, width = q.shape[1], k.shape[1], q.shape[3]
        k, v = (part[0].transpose(0, 1).view(batch, new, groups, width) for part in (k, v))
        keys, values = cache.write(self.layer, k, v)
        q = q[0].transpose(0, 1).view(batch, new, heads, width)
        if new == 1:
            # The query heads of a group are queries of one head: nothing has to be repeated for them.
            grouped = q.view(batch, groups, heads // groups, width)
            mixed = F.scaled_dot_product_attention(
                grouped, keys, values, attn_mask=cache.mask, scale=cache.scale
            )
            return mixed.reshape(1, batch, heads, width).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            keys,
            values,
            attn_mask=cache.mask,
            is_causal=cache.causal,
            scale=cache.scale,
            enable_gqa=heads != groups,
        )
        return mixed.transpose(1, 2).reshape(1, batch * new, heads, width).transpose(1, 2)


Cache = KVCache | RecurrentState
"""What a network keeps of the tokens so far, by its kind."""


def make_cache(
    network: Transformer,
    batch: int,
    length: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Cache:
    """An empty cache for `batch` rows of up to `length` tokens; ConfigError where the network has no such."""
    if isinstance(network, RecurrentTransformer):
        return RecurrentState(network, batch, dtype, device)
    return KVCache(network.model, batch, length, dtype, device)


@torch.inference_mode()
def advance(
    network: Transformer,
    cache: Cache,
    tokens: Tensor,
    counts: Sequence[int] | None = None,
    every: bool = False,
) -> Tensor:
    """Append tokens (B, T) to the rows of the cache; returns the logits after the last of each row, (B, V).

    Args:
        network: in evaluation mode, of the cache's dtype and device.
        cache: of the same number of rows.
        tokens: ids; the rows of a batch with prompts of different lengths are padded on the right.
        counts: how many of the T are each row's own, at least 1; default all.
        every: return the logits after every token instead, (B, T, V).

    Raises:
        ConfigError: the cache has no room for T more tokens a row.
    """
    batch, new = tokens.shape
    counts = [new] * batch if counts is None else counts
    if isinstance(cache, RecurrentState):
        return cache.advance(tokens, counts, every)
    cache._begin_pass(new)
    x = network.embed(tokens, cache.positions[:, :1]).view(1, batch * new, -1)
    rope = None if network.rope is None else network.rope[cache.positions.reshape(-1)]
    for number, block in enumerate(network.passes()):
        x = block(x, rope, network.mask, _Layer(cache, number))
    x = x.view(batch, new, -1)
    if not every and new > 1:
        last = torch.tensor(counts, device=tokens.device) - 1
        x = x[cache.rows[:, 0], last][:, None]
    cache.end_pass(counts)
    logits = network.head(x)
    return logits if every else logits[:, 0]


def cast_weights(network: Transformer, dtype: torch.dtype) -> Transformer:
    """Turn the weights into `dtype` in place, not the rotations, which need fp32; returns the network."""
    rope = network.rope
    network.to(dtype)
    if rope is not None:
        network.rope = rope.to(network.embedding.weight.device)
    return network
