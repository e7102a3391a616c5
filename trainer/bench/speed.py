"""Speed of a few whole networks, in turn: `python -m trainer.bench.speed`, JSON on standard input and output.

in    {"objective": "decode_ms" | "ffn_ms", "batch": rows or tokens, "repeats": rounds, "device": "cpu",
"threads": null, "configs": [canonical RunConfigs]}
out   {"rounds": [[milliseconds of each round] for each network], "device": name}
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence

import torch

from trainer.bench.decode import STEPS, decode_seconds
from trainer.bench.timing import interleaved
from trainer.config import RunConfig
from trainer.device import device_name, prepare_device, select_device
from trainer.execution import Execution
from trainer.flops import ffn_structures
from trainer.generate import DTYPES
from trainer.models.config import ModelConfig
from trainer.models.structures import Structure
from trainer.models.transformer import FeedForward

FEWEST_SECONDS = 0.5
"""Short calls are noisy: rounds go on until they took so long together."""


def rounds_ms(
    objective: str, configs: Sequence[RunConfig], batch: int, repeats: int, device: torch.device
) -> list[list[float]]:
    """Milliseconds of each network in each round.

    Args:
        objective: `decode_ms`, a token of generation with weights as they were trained (factors not
            merged), at positions spread over seq_len; or `ffn_ms`, the forward pass of all FFNs.
        configs: the networks, measured in turn.
        batch: rows that are generated at once, or tokens that the FFNs are given.
        repeats: rounds, at least.
        device: where.
    """
    if objective == "decode_ms":
        length = min(config.model.seq_len for config in configs)
        seconds = decode_seconds(configs, batch, max(length, 2 * STEPS + 2), repeats, device)
        return [[1e3 * one for one in rounds] for rounds in seconds]
    calls: dict[str, Callable[[], object]] = {}
    for number, config in enumerate(configs):
        calls[str(number)] = _ffns(config, batch, device)
    timings = interleaved(calls, device, repeats, FEWEST_SECONDS, warmup=2)
    return [[1e3 * one for one in timings[str(number)].seconds] for number in range(len(configs))]


def _ffns(config: RunConfig, tokens: int, device: torch.device) -> Callable[[], object]:
    """A call that runs all FFNs of a network once."""
    dtype = DTYPES[config.precision]
    generator = torch.Generator().manual_seed(0)
    parts = [_ffn(config.model, one).to(device, dtype) for one in ffn_structures(config.model)]
    x = torch.randn(1, tokens, config.model.d_model, generator=generator).to(device, dtype)

    def call() -> None:
        with torch.inference_mode():
            for part in parts:
                part(x)

    return call


def _ffn(model: ModelConfig, structure: Structure) -> FeedForward:
    made = FeedForward(model, structure)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return made


def main() -> int:
    """Measure what standard input asks for."""
    asked = json.load(sys.stdin)
    execution = Execution(device=asked["device"], threads=asked["threads"])
    device = select_device(execution)
    prepare_device(execution, device)
    configs = [RunConfig.model_validate_json(one) for one in asked["configs"]]
    found = rounds_ms(asked["objective"], configs, asked["batch"], asked["repeats"], device)
    assert all(statistics.median(rounds) > 0 for rounds in found)
    print(json.dumps({"rounds": found, "device": device_name(device)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
