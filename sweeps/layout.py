"""How the runs of a sweep share this machine: slots, threads, devices."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from sweeps import machine
from sweeps.errors import NoGpuError, SweepError
from sweeps.price import Setting
from sweeps.sweepfile import SweepExecution
from sweeps.text import plural
from trainer.execution import Execution, processor_name
from trainer.messages import validation_line


@dataclass(frozen=True)
class Layout:
    """Slots of this machine, each of which trains one run at a time."""

    environments: tuple[dict[str, str], ...]
    """Environment variables of each slot's worker."""
    execution: Execution
    """Settings of every run."""
    setting: Setting
    """Where runs are executed, for pricing."""

    @property
    def slots(self) -> int:
        """Runs at a time."""
        return len(self.environments)

    def said(self) -> str:
        """The layout in a few words."""
        return (
            f"{self.slots} at a time on {self.setting.device}, {plural(self.setting.threads, 'thread')} each"
        )


def with_options(
    execution: SweepExecution, slots: int | None, threads: int | None, device: str | None, source: str
) -> SweepExecution:
    """The sweep's settings with those of the command line; SweepError where they contradict each other."""
    given = {"slots": slots, "threads": threads, "device": device}
    options = {key: value for key, value in given.items() if value is not None}
    if device == "cpu" and execution.devices is not None:
        raise SweepError(
            f"--device cpu contradicts execution.devices = {list(execution.devices)} in {source}; drop one"
        )
    try:
        return SweepExecution.model_validate({**execution.model_dump(), **options})
    except ValidationError as error:
        raise SweepError(validation_line(error, SweepExecution, "command line")) from None


def plan_layout(execution: SweepExecution, cores: int | None = None) -> Layout:
    """Share this machine: on GPUs devices x per_device slots, on a CPU one slot per core.

    Slots split the cores (`cores` of them; default all that this process may use) evenly; the number of
    threads does not depend on how many runs are left, since it can change the last digits of a result.
    """
    given, cores = cores is not None, cores or machine.cores()
    gpus = machine.gpus() if execution.device != "cpu" else ()
    if execution.device.startswith("cuda") and not gpus:
        raise NoGpuError(
            f"execution.device = '{execution.device}', but this machine has no GPU that torch can use; "
            f"use --device cpu"
        )
    if gpus:
        return _on_gpus(execution, gpus, cores)
    if execution.devices is not None:
        raise SweepError(
            f"execution.devices = {list(execution.devices)}, but this machine has no GPU; drop it"
        )
    threads, slots = execution.threads, execution.slots
    if slots is None:
        slots = max(1, cores // threads) if threads is not None else cores
    threads = threads or max(1, cores // slots)
    environment = _threads(threads)
    # Jobs of a cluster (where the cores are given) may have run beside each other on several machines.
    room = None if given else max(cores, slots * threads)
    setting = Setting(processor_name(), threads, room=room)
    return Layout((environment,) * slots, execution.of_one_run(threads, "cpu"), setting)


def layout_or_guess(execution: SweepExecution) -> Layout:
    """The layout on this machine; a GPU sweep on a machine without one gets a single GPU elsewhere."""
    wants_gpu = execution.device.startswith("cuda") or execution.devices is not None
    if not wants_gpu or machine.gpus():
        return plan_layout(execution)
    setting = Setting("a GPU (none is here)", 1, gpu=True, per_device=execution.per_device)
    return Layout(({},) * execution.per_device, execution.of_one_run(1, "cuda"), setting)


def _on_gpus(execution: SweepExecution, gpus: tuple[machine.Gpu, ...], cores: int) -> Layout:
    wanted = execution.devices
    if execution.device.startswith("cuda:"):
        wanted = (int(execution.device[5:]),)
    chosen = []
    for index in wanted if wanted is not None else range(len(gpus)):
        if index >= len(gpus):
            raise SweepError(f"execution.devices: there is no GPU {index}; visible are 0 to {len(gpus) - 1}")
        chosen.append(gpus[index])
    slots = execution.slots or len(chosen) * execution.per_device
    threads = execution.threads or max(1, cores // slots)
    environments = tuple(
        {**_threads(threads), "CUDA_VISIBLE_DEVICES": chosen[slot % len(chosen)].index}
        for slot in range(slots)
    )
    setting = Setting(chosen[0].name, threads, gpu=True, per_device=-(-slots // len(chosen)))
    return Layout(environments, execution.of_one_run(threads, "cuda"), setting)


def _threads(threads: int) -> dict[str, str]:
    # Idle OpenMP threads spin by default, and take the cores from the other slots.
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
