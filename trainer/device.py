"""The device: which one, its threads, numeric type, attention kernel and peak arithmetic rate."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from trainer.config import RunConfig
from trainer.errors import ConfigError, DeviceError
from trainer.execution import Execution, processor_name
from trainer.memory import ask_for_huge_pages, keep_freed_memory

PEAK_BF16_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A6000": 155e12,
    "RTX 4090": 165e12,
}
"""Datasheet dense bf16 rates by a part of the device's name; the first match counts."""


def select_device(execution: Execution, local_rank: int = 0) -> torch.device:
    """The device of this process; DeviceError where a GPU is asked for and there is none."""
    name = execution.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(f"execution.device = '{name}', but no CUDA device is visible; use 'cpu' or 'auto'")
    device = torch.device("cuda", local_rank) if name == "cuda" else torch.device(name)
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise DeviceError(f"{device} is asked for, but {torch.cuda.device_count()} CUDA devices are visible")
    return device


def gpu_count() -> int:
    """GPUs that this process sees."""
    return torch.cuda.device_count()


def prepare_device(execution: Execution, device: torch.device) -> None:
    """Set the threads of this process and how it keeps memory; deterministic kernels on a GPU."""
    if execution.threads is not None:
        torch.set_num_threads(execution.threads)
    if device.type == "cpu":
        ask_for_huge_pages()
        keep_freed_memory()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # Bit-identical resume needs all three: cuBLAS differs without its workspace setting, and attention
        # takes a deterministic backward only where others are forbidden, not merely warned of.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def autocast(config: RunConfig, device: torch.device) -> AbstractContextManager[object]:
    """bf16 autocast where the run's precision is bf16."""
    if config.precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def attention_kernel(config: RunConfig, execution: Execution, device: torch.device) -> str:
    """SDPA, except short bf16 on a CPU with bf16 instructions, where its backward loses to plain products.

    Below 512 positions matmul wins there by about a fifth of the step; on a CPU that has to emulate bf16
    the products are what is slow, and SDPA wins at every length.
    """
    if execution.attention != "auto":
        return execution.attention
    short_bf16 = config.precision == "bf16" and config.model.seq_len < 512
    return "matmul" if device.type == "cpu" and short_bf16 and cpu_has_bf16() else "sdpa"


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bf16 in hardware."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def micro_batch(config: RunConfig, execution: Execution, device: torch.device, world_size: int) -> int:
    """Sequences in one forward pass of one process: the largest divisor of its share within bounds.

    Raises ConfigError where the global batch does not divide evenly over the processes.
    """
    if config.batch_sequences % world_size:
        raise ConfigError(
            f"a global batch of {config.batch_sequences} sequences does not divide over "
            f"{world_size} processes; use a number of processes that divides it"
        )
    share = config.batch_sequences // world_size
    wanted = execution.micro_batch or (share if device.type == "cpu" else 32_768 // config.model.seq_len)
    wanted = max(1, min(share, wanted))
    return next(size for size in range(wanted, 0, -1) if share % size == 0)


def device_name(device: torch.device) -> str:
    """What the device is called in tables: the GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name()


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Datasheet FLOP/s where they are known (GPUs, bf16), for model FLOPs utilisation."""
    if device.type != "cuda" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for part, rate in PEAK_BF16_FLOPS.items() if part in name), None)
