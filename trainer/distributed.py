"""One run over several processes (DDP): gloo on CPU, NCCL on GPUs, by the usual environment variables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

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

    def agree(self, number: int, device: torch.device) -> bool:
        """Whether the number is the same on every process; every process must ask."""
        if self.size == 1:
            return True
        bounds = torch.tensor([number, -number], dtype=torch.int64, device=device)
        dist.all_reduce(bounds, op=dist.ReduceOp.MAX)
        return bounds.tolist() == [number, -number]

    def barrier(self) -> None:
        """Wait for every process."""
        if self.size > 1:
            dist.barrier()


SILENCE = timedelta(hours=1)
"""How long processes wait for each other: longer than opening a corpus or writing a checkpoint takes."""

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


def lost_another(error: BaseException) -> bool:
    """Whether a collective call failed because another process is gone or silent, not for a fault here.

    NCCL and the store raise DistError; gloo raises a RuntimeError that names its own source file.
    """
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo/transport" in str(error)
    )


class Gang:
    """Processes that stay together over many runs.  Use as a context manager.

    After an error they are not parted in order, for which NCCL would wait for those that are gone: whoever
    fails has to end its process, which is what tells the others.

    Args:
        device: trainer.execution.Execution.device; with "auto" a GPU is used where there is one.
    """

    def __init__(self, device: str) -> None:
        world = world_from_environment()
        self.rank, self.size, self.broken = world.rank, world.size, False
        cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
        self._backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"

    def __enter__(self) -> Self:
        if self.size > 1:
            dist.init_process_group(self._backend, timeout=SILENCE)
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        if self.size > 1 and kind is None and not self.broken:
            dist.destroy_process_group()

    def tell(self, word: str | None) -> None:
        """Say a word to the other processes, which `hear` it."""
        if self.size > 1:
            dist.broadcast_object_list([word], src=0, device=torch.device("cpu"))

    def hear(self) -> str | None:
        """The word that the first process tells."""
        words: list[str | None] = [None]
        dist.broadcast_object_list(words, src=0, device=torch.device("cpu"))
        return words[0]


@contextmanager
def process_group(world: World, device: torch.device) -> Iterator[None]:
    """Join the processes of the run for the duration of the block."""
    if world.size == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", rank=world.rank, world_size=world.size
    )
    try:
        yield
    finally:
        dist.destroy_process_group()
