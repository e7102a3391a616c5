"""The points that arXiv 2406.16450 published, as a table like our own."""

from __future__ import annotations

import csv
from pathlib import Path

from analysis.errors import AnalysisError
from analysis.runs.labels import family_and_budget
from analysis.runs.table import Runs, from_rows

FILE = "structuredffn_table9_v1_table6_v2.csv"
SOURCE = "arXiv 2406.16450; loss printed, or digitised from its figure (perplexity to ±0.03)"


def published_runs(path: Path) -> Runs:
    """Read the published rows that state a loss; structures are named like ours (`lowrank-63`).

    Raises:
        AnalysisError: the file is not what the repository tracks.
    """
    rows, labels = [], []
    with open(path, newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                if row["loss_nats"]:
                    rows.append(_cells(row))
                    labels.append(f"row {number}")
            except (KeyError, TypeError, ValueError) as error:
                raise AnalysisError(
                    f"{path}: row {number} cannot be read ({error}); check the file out again"
                ) from None
    return from_rows(rows, labels, str(path))


def _cells(row: dict[str, str]) -> dict[str, str]:
    structure = row["structure"].lower()
    budget = row["ffn_budget"].rstrip("%")
    return {
        "size": row["size"],
        "structure": structure if budget == "100" else f"{structure}-{budget}",
        "seed": "0",
        "params": repr(float(row["params_total_M"]) * 1e6),
        "tokens": repr(float(row["tokens_B"]) * 1e9),
        "train_flops": row["training_flops"],
        "val_loss": row["loss_nats"],
    }


def shared_structures(published: Runs, structures: list[str]) -> Runs | None:
    """Keep the published rows of structures that are also ours; None where only dense, or none, is shared."""
    ours = {family_and_budget(label) for label in structures}
    shared = [family_and_budget(label) in ours for label in published.table["structure"]]
    table = published.table[shared].reset_index(drop=True)
    return Runs(table) if {family_and_budget(s)[0] for s in table["structure"]} - {"dense"} else None
