"""What a Slurm cluster wants to be told: the table [slurm] of a sweep file over sweeps/clusters/NAME.toml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from sweeps.errors import SweepError
from sweeps.text import plural
from trainer.messages import nearest, validation_line
from trainer.presets import Partial, load_toml

CLUSTERS = Path(__file__).parent / "clusters"


def minutes_from(written: Any) -> Any:
    """Minutes from what sbatch takes as --time: 90, "90", "MM:SS", "HH:MM:SS", "D-HH[:MM[:SS]]"."""
    if not isinstance(written, str):
        return written
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", written.strip())
    if match is None:
        raise ValueError('write minutes, "HH:MM:SS" or "D-HH:MM:SS"')
    days, first, second, third = (int(part) if part else None for part in match.groups())
    assert first is not None
    if days is not None:
        seconds = days * 86400 + first * 3600 + (second or 0) * 60 + (third or 0)
    elif third is not None:
        seconds = first * 3600 + (second or 0) * 60 + third
    else:
        seconds = first * 60 + (second or 0)
    return -(-seconds // 60)


Minutes = Annotated[int, BeforeValidator(minutes_from), Field(gt=0)]


Lines = Annotated[tuple[str, ...], BeforeValidator(lambda one: (one,) if isinstance(one, str) else one)]
"""A list; one alone may stand without brackets."""


class SlurmSettings(BaseModel):
    """How a sweep asks Slurm for jobs.  What is not given is left to the cluster's defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    partition: str | None = None
    """Partition (queue)."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Node features, for example "h100"."""
    gpus: int = Field(default=0, ge=0)
    """GPUs of a job on each node (--gpus-per-node)."""
    gres: str | None = None
    """Generic resources as sbatch takes them, for example "gpu:h100:1"; instead of gpus."""
    cpus: int = Field(default=2, gt=0)
    """Cores of each process that Slurm starts (--cpus-per-task)."""
    mem_gb: float | None = Field(default=None, gt=0)
    """Memory of a job on each node; with it, no more runs share a job than are predicted to fit."""
    gpu_mem_gb: float | None = Field(default=None, gt=0)
    """Memory of one GPU; with it, as many runs share a GPU as are predicted to fit (and have a core)."""
    nodes: int = Field(default=1, gt=0)
    """Nodes that train one run together."""
    tasks: int = Field(default=1, gt=0)
    """Processes on each node that train one run together (DDP); one per GPU."""
    time: Minutes = 240
    """Longest time of one job, minutes or "HH:MM:SS"; what is not finished then is requeued."""
    jobs: int = Field(default=8, gt=0)
    """Jobs at once, at most."""
    job_minutes: float = Field(default=30.0, gt=0)
    """Work that is packed into one job; a run that is predicted to take longer has a job of its own."""
    notice: int = Field(default=120, ge=10)
    """Seconds before the time limit at which a job is told to checkpoint (signal USR2)."""
    restarts: int = Field(default=100, ge=0)
    """Times that a job is requeued, at most."""
    idle_restarts: int = Field(default=3, gt=0)
    """Times in a row that a job is requeued although no step was gained."""
    setup: Lines = ()
    """Shell lines before the program starts: modules, environment variables."""
    python: str | None = None
    """Command that starts Python, for example "apptainer exec --nv image.sif python"; default this one."""
    options: Partial = {}
    """More sbatch options by their long names, for example {exclude = "n7"}."""
    srun: Lines = ()
    """More arguments of srun."""
    device: str | None = None
    """Name of the processor or GPU as results record it, to price runs by earlier ones on it."""

    @property
    def processes(self) -> int:
        """Processes that train one run together."""
        return self.nodes * self.tasks

    @property
    def has_gpu(self) -> bool:
        """Whether jobs ask for GPUs."""
        return self.gpu_count > 0

    @property
    def gpu_count(self) -> int:
        """GPUs of a job on each node."""
        entries = [entry.split("(")[0].split(":") for entry in (self.gres or "").split(",")]
        return self.gpus + sum(
            int(parts[-1]) if parts[-1].isdigit() else 1 for parts in entries if parts[0] == "gpu"
        )

    def sbatch(self) -> dict[str, Any]:
        """Resource options in submitit's names."""
        given: dict[str, Any] = {
            "partition": self.partition, "account": self.account, "qos": self.qos,
            "constraint": self.constraint, "gpus_per_node": self.gpus or None, "gres": self.gres,
        }  # fmt: skip
        return {
            **{key: value for key, value in given.items() if value is not None},
            **({"mem": f"{int(self.mem_gb * 1024)}MB"} if self.mem_gb is not None else {}),
            "nodes": self.nodes,
            "ntasks_per_node": self.tasks,
            "cpus_per_task": self.cpus,
        }


def slurm_settings(table: Partial | None, cluster: str | None, source: str) -> SlurmSettings:
    """The settings of a sweep: its own table over those of a cluster.

    Args:
        table: [slurm] of the sweep file.
        cluster: name of a file in sweeps/clusters, or path of a .toml file.
        source: what error messages call the sweep file.

    Raises SweepError naming the file, the key and what would be right.
    """
    base: dict[str, Any] = {}
    if cluster is not None:
        path = _find(cluster)
        base = load_toml(path)
        _checked(base, path.name)
    return _checked({**base, **(table or {})}, f"{source}: slurm")


def validated(table: Partial, source: str) -> SlurmSettings:
    """The settings of one table, without a cluster's; SweepError where a key or a value cannot be."""
    try:
        return SlurmSettings.model_validate(table)
    except ValidationError as error:
        raise SweepError(validation_line(error, SlurmSettings, source)) from None


def _checked(table: dict[str, Any], source: str) -> SlurmSettings:
    settings = validated(table, source)
    if settings.gpus and settings.gres is not None:
        raise SweepError(f"{source}: gpus and gres both ask for GPUs; drop one")
    if settings.processes > 1 and settings.has_gpu and settings.tasks != settings.gpu_count:
        raise SweepError(
            f"{source}: {plural(settings.tasks, 'task')} and {plural(settings.gpu_count, 'GPU')} on each "
            f"node: processes that train one run need a GPU each; set tasks = {settings.gpu_count}, or "
            f"gpus = {settings.tasks}"
        )
    if settings.notice >= settings.time * 60:
        raise SweepError(
            f"{source}: notice = {settings.notice} s is no shorter than time = {settings.time} min"
        )
    for key in settings.options:
        if (remedy := _OURS.get(key.replace("-", "_"))) is not None:
            raise SweepError(f"{source}: options.{key} is the program's own; {remedy}")
    return settings


_OURS = {
    "array": "drop it", "signal": "use notice", "output": "drop it", "error": "drop it",
    "job_name": "drop it",
    "requeue": "drop it", "no_requeue": "jobs have to be requeued when a node dies", "time": "use time",
    "dependency": "drop it", "open_mode": "drop it", "chdir": "drop it",
}  # fmt: skip


def _find(cluster: str) -> Path:
    if cluster.endswith(".toml") or "/" in cluster:
        path = Path(cluster)
        if not path.is_file():
            raise SweepError(f"{path}: no such cluster file")
        return path
    path = CLUSTERS / f"{cluster}.toml"
    if not path.is_file():
        names = sorted(there.stem for there in CLUSTERS.glob("*.toml"))
        raise SweepError(f"unknown cluster '{cluster}'{nearest(cluster, names)} (or give a .toml file)")
    return path
