"""Commands that messages tell a user to give, which work as they stand there."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path


def hint(words: Sequence[str], results: Path, program: str = "sweeps") -> str:
    """A command on a results folder, which is named where it is not the one that is taken anyway.

    Args:
        words: what follows the program, a word each, unquoted.
        results: the folder, as this process was given it.
        program: sweeps, analysis or trainer.
    """
    usual = Path(os.environ.get("SCALING_RESULTS") or "results")
    where = (
        "" if results == usual or results == usual.absolute() else f" --results {shlex.quote(str(results))}"
    )
    return f"python -m {program} {shlex.join(words)}{where}"
