"""Checkpoints: safetensors written to a temporary name, synced, renamed, checksummed; the last two are kept.

    checkpoints/step-000000100.safetensors   weights, optimizer moments, loop accumulators
    checkpoints/step-000000100.json          step, sha256 of the above, counters; written second

A checkpoint without a matching sidecar does not exist.  Loading needs no unpickling.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.curriculum import StageState
from trainer.errors import CheckpointError, RunDirError
from trainer.rundir import CHECKPOINTS, io_errors, sync_folder, write_json

KEEP = 2


@dataclass
class LoopState:
    """What the loop needs beside weights and optimizer to go on as if it had never stopped."""

    step: int = 0
    """Updates done."""
    seconds: float = 0.0
    """Training time so far, over all attempts."""
    logged_step: int = 0
    """Step of the last metrics line."""
    train_loss: float | None = None
    """Mean loss of that line's window, nats per token."""
    stages: StageState = field(default_factory=StageState)
    """Where the run is in its curriculum."""

    @classmethod
    def read(cls, sidecar: dict[str, Any]) -> LoopState:
        """From a checkpoint's sidecar; those of earlier versions know no stages."""
        plain = {key: sidecar[key] for key in ("step", "seconds", "logged_step", "train_loss")}
        return cls(**plain, stages=StageState(**sidecar.get("stages", {})))


def save_checkpoint(
    run_dir: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    accumulators: dict[str, Tensor],
    state: LoopState,
) -> None:
    """Write a checkpoint, then drop all but the last two.  RunDirError on a full or read-only disk."""
    folder = run_dir / CHECKPOINTS
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    tensors = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    for parameter, moments in optimizer.state.items():
        for key, value in moments.items():
            tensors[f"optim.{key}.{names[id(parameter)]}"] = value
    tensors |= {f"loop.{name}": value for name, value in accumulators.items()}
    path = folder / f"step-{state.step:09d}.safetensors"
    temp = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with io_errors(path):
        folder.mkdir(exist_ok=True)
        try:
            save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, temp)
            digest = _sync_and_hash(temp)
            os.replace(temp, path)
            sync_folder(folder)
        except SafetensorError as error:
            # The writer reports a full disk in its own exception type.
            raise RunDirError(f"{path}: cannot be written ({error}); free some space and run again") from None
        finally:
            temp.unlink(missing_ok=True)
    write_json(path.with_suffix(".json"), {**asdict(state), "sha256": digest})
    for old in list_checkpoints(run_dir)[KEEP:]:
        old.with_suffix(".json").unlink(missing_ok=True)
        old.unlink(missing_ok=True)


def remove_leftovers(run_dir: Path) -> None:
    """Delete what a kill in the middle of a save left behind; only the owner of the run may call it."""
    for path in (run_dir / CHECKPOINTS).glob(".step-*.tmp"):
        path.unlink(missing_ok=True)
    for path in (run_dir / CHECKPOINTS).glob("step-*.safetensors"):
        if not path.with_suffix(".json").exists():
            path.unlink(missing_ok=True)


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoint files that have a sidecar, newest first."""
    files = sorted((run_dir / CHECKPOINTS).glob("step-*.safetensors"), reverse=True)
    return [file for file in files if file.with_suffix(".json").exists()]


def load_checkpoint(
    run_dir: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    accumulators: dict[str, Tensor],
    prepare: Callable[[int], None] = lambda step: None,
) -> tuple[LoopState | None, list[str]]:
    """Load the newest good checkpoint in place, once `prepare` has been told its step.

    Returns its loop state, or None where there is none to load, and a line for each damaged checkpoint
    that was passed over.  Raises CheckpointError where checkpoints exist and none is good.
    """
    rejected = []
    candidates = list_checkpoints(run_dir)
    for path in candidates:
        problem, sidecar = _verify(path)
        if sidecar is None:
            rejected.append(f"{path}: {problem}")
            continue
        state = LoopState.read(sidecar)
        prepare(state.step)
        _restore(load_file(path), network, optimizer, accumulators)
        return state, [f"{line}; falling back to the one before" for line in rejected]
    if candidates:
        raise CheckpointError(
            f"{run_dir / CHECKPOINTS}: all {len(candidates)} checkpoints are damaged ({rejected[0]}); "
            f"move the folder away to train this run from the start"
        )
    return None, rejected


def load_weights(run_dir: Path, network: nn.Module) -> int:
    """Load only the weights of the newest good checkpoint, without guides; returns its step."""
    for path in list_checkpoints(run_dir):
        if (sidecar := _verify(path)[1]) is not None:
            tensors = load_file(path)
            network.load_state_dict(
                {
                    key.removeprefix("model."): tensor
                    for key, tensor in tensors.items()
                    if key.startswith("model.") and not key.endswith(".guide.weight")
                }
            )
            return int(sidecar["step"])
    raise CheckpointError(f"{run_dir / CHECKPOINTS}: no good checkpoint; train the run first")


def _sync_and_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
        os.fsync(file.fileno())
    return digest.hexdigest()


def _verify(path: Path) -> tuple[str, dict[str, Any] | None]:
    try:
        sidecar = json.loads(path.with_suffix(".json").read_text())
        expected = sidecar["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return "its sidecar is unreadable", None
    if _sync_and_hash(path) != expected:
        return "truncated or changed (checksum does not match)", None
    return "", sidecar


@torch.no_grad()
def _restore(
    tensors: dict[str, Tensor],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    accumulators: dict[str, Tensor],
) -> None:
    for name, tensor in network.state_dict().items():
        tensor.copy_(tensors[f"model.{name}"])
    for name, parameter in network.named_parameters():
        suffix = f".{name}"
        moments = {
            key.removeprefix("optim.").removesuffix(suffix): value
            for key, value in tensors.items()
            if key.startswith("optim.") and key.removeprefix("optim.").split(".", 1)[1] == name
        }
        # The fused optimizer keeps its moments beside the weights, the step count in fp32.
        optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in moments.items()}
    for name, value in accumulators.items():
        value.copy_(tensors[f"loop.{name}"])
