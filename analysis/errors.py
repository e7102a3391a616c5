"""Mistakes that a user of the analysis can make and mend, each told in one line."""

from __future__ import annotations


class AnalysisError(Exception):
    """A user mistake: what is wrong, where, and how to mend it, in one line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))
