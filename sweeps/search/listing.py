"""The studies that come with the program, as a table."""

from __future__ import annotations

from sweeps.errors import SweepError
from sweeps.search.studyfile import KINDS, read_study, study_files
from sweeps.text import table
from trainer.errors import TrainerError


def studies_table() -> str:
    """Name, kind, what is held fixed and description of each; a broken file says why."""
    rows = []
    for path in study_files():
        try:
            study = read_study(path)
            rows.append((study.name, study.kind, KINDS[study.kind].fixed, study.description))
        except (SweepError, TrainerError) as error:
            rows.append((path.stem, "-", "-", f"broken: {error}"))
    return table(("study", "kind", "held fixed", "description"), rows)
