"""From a ModelConfig to the network of its kind."""

from __future__ import annotations

from trainer.models.config import ModelConfig
from trainer.models.recurrent import RecurrentTransformer
from trainer.models.transformer import Transformer


def build_network(model: ModelConfig, kernel: str = "sdpa") -> Transformer:
    """The network, its weights not yet drawn.  `kernel` is the attention kernel, "sdpa" or "matmul"."""
    return RecurrentTransformer(model, kernel) if model.kind == "recurrent" else Transformer(model, kernel)
