"""McLeish et al., arXiv 2502.06857 (Gemstones): lines through the models on the envelope of the curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial import ConvexHull

from analysis.arrays import Array, Places
from analysis.reproduce.gemstones import VOCABULARY
from analysis.reproduce.rows import Row, compare, numbers, read, records, slope

STUDY = "gemstones-lines"
EXACT = 1e-6
CONTEXT, HEAD = 2048, 128
DENSE_CURVES = "_477"
"""Sets whose name ends so hold a loss every 477 steps; tracked here are those at every 2,385."""
MISSING = "theirs used the loss at every 477 steps, which is not at hand (ours: at every 2,385)"


def reproduce(folder: Path) -> list[Row]:
    """Slopes of parameters, tokens and their ratio in FLOPs."""
    points = read(folder, "gemstones_points.csv")
    shape = points["run"].str.extract(r"-(\d+)x(\d+)_").astype(np.float64)
    points = points.assign(width=shape[0], depth=shape[1]).dropna()
    rows = []
    for line in records(folder, "gemstones_approach1.csv"):
        whole = not line["set"].endswith(DENSE_CURVES)
        own = points[points["set"] == line["set"].removesuffix(DENSE_CURVES)]
        width, depth, tokens = (numbers(own, name) for name in ("width", "depth", "tokens"))
        flops = flops_per_token(width, depth) * tokens
        params = numbers(own, "params") if line["embeddings"] == "with" else blocks(width, depth)
        values = {"params": params, "tokens": tokens, "tokens_per_param": tokens / params}
        on = envelope(flops, numbers(own, "val_loss"))
        ours, _ = slope(np.log(flops[on]), np.log(values[line["quantity"]][on]))
        where = "" if line["embeddings"] == "with" else " without embeddings"
        name = f"{line['quantity']}{where} in FLOPs, {line['set']}"
        rows.append(compare(STUDY, name, line["slope"], ours, EXACT, "" if whole else MISSING, whole))
    return rows


def flops_per_token(width: Array, depth: Array) -> Array:
    """The authors' count for training, in closed form.

    Products of the blocks (30 W^2 a layer) and of the head count three times, for forward and two backward
    products; attention scores 3 T W (1 + 1/head) forward and 2.5 times that backward; norms, rotation and
    residuals make up the terms linear in W.
    """
    block = 30 * width**2 + 61.25 * width
    scores = 3 * CONTEXT * width * (1 + 1 / HEAD)
    head = 7 * width + 2 * width * VOCABULARY
    return np.asarray(3 * (depth * block + head) + 3.5 * depth * scores)


def blocks(width: Array, depth: Array) -> Array:
    """Parameters without embeddings and head; every two heads share keys and values, a last one has none."""
    heads = width // HEAD
    keyed = heads + 2 * (heads // 2)
    return np.asarray(depth * (keyed * HEAD * width + 13 * width**2 + 2 * width) + width)


def envelope(flops: Array, loss: Array) -> Places:
    """Places of the points on the lower convex envelope in log-log, by rising FLOPs.

    A point above and to the right of all closes the hull, and is left out; so is each point whose loss is not
    below that of the one before.
    """
    corner = np.log([2 * flops.max(), 2 * loss.max()])
    cloud = np.vstack([corner, np.stack([np.log(flops), np.log(loss)], axis=1)])
    hull = np.asarray(ConvexHull(cloud).vertices)
    places = hull[hull > 0] - 1
    places = places[np.argsort(flops[places])]
    falls = np.append(True, np.diff(loss[places]) < 0)
    return np.asarray(places[falls], np.intp)
