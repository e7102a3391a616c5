"""Mistakes that a user of the sweeps can make and mend, each told in one line."""

from __future__ import annotations


class SweepError(Exception):
    """A user mistake: what is wrong, where, and how to mend it, in one line."""


class NoGpuError(SweepError):
    """A GPU is asked for, and this machine has none that works."""


class MirrorError(SweepError):
    """The tracking server cannot be reached or refuses; the runs themselves are untouched."""
