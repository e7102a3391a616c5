"""How and where a run is executed: device, threads, micro-batch.  None of it is part of a run's identity."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Execution(BaseModel):
    """Settings that change a run's speed, and its result only by rounding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto (a GPU where there is one), cpu, cuda or cuda:N."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads of one run; default all cores over the number of slots."""
    micro_batch: int | None = Field(default=None, gt=0)
    """Sequences of full length in one forward pass, more where a curriculum has shorter ones; default the
    whole batch on CPU, about 32k tokens on a GPU."""
    compile: bool = False
    """torch.compile the network (minutes of warm-up the first time)."""
    attention: Literal["auto", "sdpa", "matmul"] = "auto"
    """Attention kernel: auto chooses by device, dtype and length."""
    log_points: int = Field(default=200, gt=0)
    """Lines of metrics.jsonl a run writes."""
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    """Least time between checkpoints; what a run killed without notice can lose."""
    heartbeat_seconds: float = Field(default=2.0, gt=0)
    """Time between updates of status.json."""


@lru_cache(maxsize=1)
def processor_name() -> str:
    """What this machine's processor is called, in results and in prices."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(line for line in file if line.startswith("model name"))
        return model.split(":", 1)[1].strip()
    except (OSError, StopIteration):
        return "cpu"
