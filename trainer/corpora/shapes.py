"""Drawn images to classify: one shape of random place, size and brightness, in noise.

Whole numbers only, so that the same image comes out on every machine: lengths are eighths of a pixel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.corpora.taskspec import SHAPES, ImagesSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TRAIN, HELDOUT = 0, 1
NOISE = 16
"""Largest change of a pixel's grey (0 to 255) by noise."""

LEAST_CONTRAST = 64
"""Least difference of grey between shape and ground, before the noise."""

_PARAMETERS = 8
_UNIT = 8


def draw(
    spec: ImagesSpec, split: int, indices: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Greys uint8 (n, side, side) and classes int64 (n,) of images of TRAIN or HELDOUT.

    Each is a pure function of (spec, split, its index).
    """
    import numpy as np

    from trainer.rng import raw_words

    n, side = len(indices), spec.side
    n_noise = -(-side * side // 8)
    words = np.empty((n, _PARAMETERS + n_noise), dtype="<u8")
    for row, index in enumerate(indices.tolist()):
        words[row] = raw_words(spec.seed, "shapes", split, index, n=_PARAMETERS + n_noise)

    def number(column: int, below: NDArray[np.int64] | int) -> NDArray[np.int64]:
        return ((words[:, column] >> np.uint64(1)).astype(np.int64)) % below

    classes = number(0, spec.classes)
    radius = side * 3 // 2 + number(1, side * 3 // 2 + 1)  # 3/16 to 3/8 of the side.
    room = side * _UNIT - 2 * radius + 1
    x, y = radius + number(2, room), radius + number(3, room)
    contrast = LEAST_CONTRAST + number(4, 256 - 2 * LEAST_CONTRAST)
    darker = number(5, 256 - contrast)
    bright_shape = number(6, 2) == 1
    inside = _inside(side, classes, radius, x, y)
    grey = darker[:, None, None] + contrast[:, None, None] * (inside == bright_shape[:, None, None])
    noise = np.ascontiguousarray(words[:, _PARAMETERS:]).view(np.uint8)[:, : side * side]
    grey += noise.astype(np.int64).reshape(n, side, side) % (2 * NOISE + 1) - NOISE
    return np.clip(grey, 0, 255).astype(np.uint8), classes


def _inside(
    side: int,
    classes: NDArray[np.int64],
    radius: NDArray[np.int64],
    x: NDArray[np.int64],
    y: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Which pixels belong to the shape, (n, side, side)."""
    import numpy as np

    out = np.zeros((len(classes), side, side), dtype=np.bool_)
    places = np.arange(side, dtype=np.int64) * _UNIT + _UNIT // 2
    for number in np.unique(classes).tolist():
        rows = np.flatnonzero(classes == number)
        r = radius[rows, None, None]
        dx = np.abs(places[None, None, :] - x[rows, None, None])
        down = places[None, :, None] - y[rows, None, None]
        out[rows] = _shape(SHAPES[number], dx, down, r)
    return out


def _shape(
    name: str, dx: NDArray[np.int64], down: NDArray[np.int64], r: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which places belong to a shape of radius r at the origin; dx is a distance, `down` has a sign."""
    import numpy as np

    dy = np.abs(down)
    far, near, square = np.maximum(dx, dy), np.minimum(dx, dy), dx * dx + dy * dy
    inside: NDArray[np.bool_]
    match name:
        case "disc":
            inside = square <= r * r
        case "ring":
            inside = (square <= r * r) & (25 * square >= 9 * r * r)
        case "square":
            inside = 5 * far <= 4 * r
        case "frame":
            inside = (5 * far <= 4 * r) & (2 * far >= r)
        case "triangle":
            inside = (2 * dx <= down + r) & (4 * down <= 3 * r)
        case "cross":
            inside = (4 * near <= r) & (far <= r)
        case "saltire":
            inside = (3 * (far - near) <= r) & (5 * far <= 4 * r)
        case _:
            inside = (3 * dx <= r) & (dy <= r)
    return inside
