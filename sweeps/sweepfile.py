"""The sweep file: what one TOML file says, and how a file is found by name.

description = "..."
[base]                      partial RunConfig that every run starts from (preset, structure, tables)
[axes]                      dotted key = list of values; the grid is their product
[[zip]]                     keys whose lists advance together; one more axis of the product
[[exclude]]                 grid points that match every given value are dropped
[[override]]                when = {key = value}   set = {key = value}
[rates]                     peak learning rates by structure and width, see sweeps.rates
[budget]                    tokens | tokens_per_param (of, count) | train_flops; equal = tokens | flops
[execution]                 device, threads, slots ...; not part of a run's identity
[mlflow]                    uri, experiment
[slurm]                     what jobs ask for, see sweeps.clusterfile; cluster = "NAME" takes a file of it
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from sweeps.clusterfile import validated
from sweeps.errors import SweepError
from sweeps.rates import Rates
from trainer.execution import Execution
from trainer.messages import nearest, validation_line
from trainer.presets import Partial, load_toml

CONFIGS = Path(__file__).parent / "configs"
S = TypeVar("S", bound="Sweep")


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SweepExecution(Execution):
    """How the runs of a sweep share a machine."""

    slots: int | None = Field(default=None, gt=0)
    """Runs at a time; default one per core on a CPU, devices x per_device on GPUs."""
    devices: tuple[int, ...] | None = None
    """Indices of the GPUs to use, among those visible; default all."""
    per_device: int = Field(default=1, gt=0)
    """Runs at a time on one GPU."""

    def of_one_run(self, threads: int, device: str) -> Execution:
        """The settings of a single run once its share of the machine is known."""
        shared = self.model_dump(include=set(Execution.model_fields))
        return Execution.model_validate({**shared, "threads": threads, "device": device})


class MlflowSettings(_Table):
    """Where the MLflow mirror of a sweep goes."""

    uri: str | None = None
    """Tracking URI; default MLFLOW_TRACKING_URI, else the SQLite file mlflow.db in the results folder."""
    experiment: str | None = None
    """Experiment name; default the sweep's name."""


class Override(_Table):
    """A change to the grid points that match."""

    when: Partial = Field(min_length=1)
    """Dotted key = value (or list of values, any of which matches)."""
    set: Partial = Field(min_length=1)
    """Dotted key = new value."""


class Sweep(_Table):
    """One sweep file."""

    description: str = ""
    """One line for `list`."""
    base: Partial = {}
    """Partial RunConfig of every run."""
    axes: Partial = {}
    """Dotted key = list of values."""
    zip: tuple[Partial, ...] = ()
    """Tables of equally long lists that advance together."""
    exclude: tuple[Partial, ...] = ()
    """Tables of dotted key = value (or list of values)."""
    override: tuple[Override, ...] = ()
    """Changes to matching points, applied in order."""
    rates: Rates | None = None
    """Peak learning rates by structure and width; default those of presets, base and axes."""
    budget: Partial | None = None
    """See trainer.presets.Budget; default the preset's tokens, else 20 per dense parameter."""
    execution: SweepExecution = SweepExecution()
    """How runs are executed."""
    mlflow: MlflowSettings = MlflowSettings()
    """Mirror settings."""
    cluster: str | None = None
    """File of sweeps/clusters, or a path, with Slurm settings."""
    slurm: Partial | None = None
    """Slurm settings, over those of the cluster; see sweeps.clusterfile.SlurmSettings."""

    _name: str = PrivateAttr(default="sweep")
    _path: Path = PrivateAttr(default=Path("sweep.toml"))

    @property
    def name(self) -> str:
        """The file's name without .toml: names the record, the experiment and the log files."""
        return self._name

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def searched(self) -> tuple[str, ...]:
        """Keys of which something else than the grid chooses the values; none in a sweep."""
        return ()

    @property
    def argument(self) -> str:
        """How commands take this sweep: its name where it came with the program, else its path."""
        return self._name if self._path.parent == CONFIGS else str(self._path)

    @property
    def source(self) -> str:
        """What error messages call the file."""
        return self._path.name


def load_sweep(written: str) -> Sweep:
    """Find a sweep by its name in sweeps/configs or by its path, and read it."""
    return read_sweep(find_sweep(written))


def find_sweep(written: str) -> Path:
    """The file of a sweep; SweepError with the nearest name where there is none."""
    if written.endswith(".toml") or "/" in written:
        path = Path(written)
        if not path.is_file():
            raise SweepError(f"{path}: no such sweep file")
        if not re.fullmatch(r"[\w.-]+", path.stem):
            raise SweepError(
                f"{path}: a sweep is named by its file; use letters, digits, '.', '_' and '-' only"
            )
        return path
    path = CONFIGS / f"{written}.toml"
    if not path.is_file() and (study := CONFIGS / "search" / f"{written}.toml").is_file():
        return study
    if not path.is_file():
        names = [path.stem for path in sweep_files()]
        raise SweepError(
            f"unknown sweep '{written}'{nearest(written, names)} (or give the path of a .toml file)"
        )
    return path


def sweep_files() -> list[Path]:
    """The sweeps that come with the program, by name."""
    return sorted(CONFIGS.glob("*.toml"))


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file, or one of a study; one line says what in it cannot be understood."""
    content = load_toml(path)
    if "space" in content:
        from sweeps.search.studyfile import read_study

        return read_study(path)
    return parse_sweep(content, path)


def parse_sweep(content: Mapping[str, Any], path: Path) -> Sweep:
    """Build a Sweep from the content of the file at `path`."""
    return parse_as(Sweep, content, path)


def parse_as(kind: type[S], content: Mapping[str, Any], path: Path) -> S:
    """Build a Sweep, or what extends one, from the content of the file at `path`."""
    try:
        sweep = kind.model_validate(dict(content))
    except ValidationError as error:
        raise SweepError(validation_line(error, kind, path.name)) from None
    if sweep.slurm is not None:
        validated(sweep.slurm, f"{path.name}: slurm")
    sweep._name, sweep._path = path.stem, path
    return sweep
