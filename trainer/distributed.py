"""One run over several processes (DDP): gloo on CPU, NCCL on GPUs, by the usual environment variables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from trainer.errors import ConfigError


@dataclass(frozen=True)
class World:
    """This process among those that train one run."""

    rank: int = 0
    """0 writes the run folder."""
    size: int = 1
    """Number of processes."""
    local_rank: int = 0
    """Index of the device on this machine."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def any(self, flags: tuple[bool, ...], device: torch.device) -> tuple[bool, ...]:
        """For each flag, whether any process raised it; every process must ask."""
        if self.size == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.float32, device=device)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return tuple(bool(value) for value in raised.tolist())

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Add up over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Average over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def barrier(self) -> None:
        """Wait for every process."""
        if self.size > 1:
            dist.barrier()


ALONE = World()
"""A run that one process trains."""


def world_from_environment() -> World:
    """Read RANK, WORLD_SIZE and LOCAL_RANK, as torchrun sets them; alone where they are absent."""
    if "WORLD_SIZE" not in os.environ:
        return ALONE
    try:
        world = World(
            rank=int(os.environ["RANK"]),
            size=int(os.environ["WORLD_SIZE"]),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        )
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"WORLD_SIZE is set, but RANK or LOCAL_RANK is missing or no number ({error}); "
            "start with torchrun, or unset WORLD_SIZE"
        ) from None
    return world


@contextmanager
def process_group(world: World, device: torch.device) -> Iterator[None]:
    """Join the processes of the run for the duration of the block."""
    if world.size == 1:
        yield
        return
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", rank=world.rank, world_size=world.size
    )
    try:
        yield
    finally:
        dist.destroy_process_group()
