"""Mistakes that a user of the trainer can make and mend, each told in one line."""

from __future__ import annotations


class TrainerError(Exception):
    """A user mistake: what is wrong, where, and how to mend it, in one line."""


class ConfigError(TrainerError):
    """A run configuration that cannot be built."""


class DeviceError(ConfigError):
    """A device that is asked for and not there."""


class CorpusError(TrainerError):
    """A corpus that is missing, empty, too small or changed."""


class CheckpointError(TrainerError):
    """A checkpoint that cannot be trusted."""


class RunDirError(TrainerError):
    """A run folder that cannot be read or written."""
