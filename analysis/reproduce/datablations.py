"""Muennighoff et al., arXiv 2305.16264: how much the loss of one configuration differs between seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from analysis.reproduce.rows import Row, compare, read

STUDY = "datablations"
TOLERANCE = {"groups of seeds": 0.0, "median sd of log loss": 5e-5, "median sd of loss": 5e-4}


def reproduce(folder: Path) -> list[Row]:
    """The number of configurations with several seeds, and the median of their standard deviations."""
    runs = read(folder, "datablations_runs.csv").dropna(subset="seed")
    # The name without its seed, since some configurations of equal size and tokens were trained differently.
    runs = runs.assign(config=runs["name"].str.replace(r"seed\d+$", "", regex=True))
    runs["log_loss"] = np.log(runs["val_loss"])
    groups = runs.groupby("config")[["val_loss", "log_loss"]].agg(["size", "std"])
    groups = groups[groups[("val_loss", "size")] > 1]
    ours = {
        "groups of seeds": float(len(groups)),
        "median sd of log loss": float(groups[("log_loss", "std")].median()),
        "median sd of loss": float(groups[("val_loss", "std")].median()),
    }
    targets = read(folder, "datablations_spread.csv")
    return [
        compare(STUDY, name, float(value), ours[name], TOLERANCE[name])
        for name, value in zip(targets["quantity"], targets["value"], strict=True)
    ]
