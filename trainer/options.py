"""Options that several commands of the trainer share, and what they are read into."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from trainer.errors import ConfigError
from trainer.execution import Execution
from trainer.messages import validation_line
from trainer.presets import PRESETS, Partial, load_toml, merge

PresetOption = Annotated[str | None, typer.Option("--preset", help=f"Named size: {', '.join(PRESETS)}.")]
StructureOption = Annotated[
    str | None, typer.Option("--structure", help="dense, lowrank-50, blockdense-63, blockshuffle-32 ...")
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file with RunConfig keys.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override one key, as optim.peak_lr=1e-3; repeatable.")
]
ResultsOption = Annotated[
    Path, typer.Option("--results", envvar="SCALING_RESULTS", help="Folder of runs, corpora and tables.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]


def partial_config(
    config: Path | None, preset: str | None, structure: str | None, sets: list[str] | None
) -> Partial:
    """The partial configuration that a command line gives; ConfigError where it gives nothing."""
    given: Partial = load_toml(config) if config else {}
    for assignment in sets or []:
        key, sign, value = assignment.partition("=")
        if not sign:
            raise ConfigError(f"--set {assignment}: write it as key=value, for example optim.peak_lr=1e-3")
        try:
            parsed: Any = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value
        for part in reversed(key.strip().split(".")):
            parsed = {part: parsed}
        given = merge(given, parsed)
    if preset is not None:
        given["preset"] = preset
    if structure is not None:
        given["structure"] = structure
    if not given:
        raise ConfigError("nothing to run: give --preset, for example --preset cpu-s, or --config FILE")
    return given


def names_in(text: str) -> list[str]:
    """The names in an option that takes several: commas between them, blanks around them do not matter."""
    return [name.strip() for name in text.split(",")]


def execution_from(**given: Any) -> Execution:
    """The execution settings that a command line gives; ConfigError with one line where they cannot be."""
    try:
        return Execution.model_validate(given)
    except ValidationError as error:
        raise ConfigError(validation_line(error, Execution, "command line")) from None
