"""The studies by name, and the run through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.errors import AnalysisError
from analysis.reproduce import datablations, fig1, gadre, gemstones, gemstones_lines, kyo, nanochat, porian
from analysis.reproduce.rows import Row

STUDIES: dict[str, Callable[[Path], list[Row]]] = {
    "porian": porian.reproduce,
    "gemstones": gemstones.reproduce,
    "gemstones-lines": gemstones_lines.reproduce,
    "gadre": gadre.reproduce,
    "nanochat": nanochat.reproduce,
    "kyo": kyo.reproduce,
    "datablations": datablations.reproduce,
    "fig1": fig1.reproduce,
}
"""Name -> the function that fits the study again, from the folder of published facts."""
SOURCES = {
    "porian": "Porian et al., arXiv 2406.19146: optimal sizes and tokens, and the loss, over compute.",
    "gemstones": "McLeish et al., arXiv 2502.06857: every fit of the loss to parameters N, tokens D, width W "
    "and depth Z, by the sum of Huber losses of log residuals.",
    "gemstones-lines": "McLeish et al., arXiv 2502.06857: slopes of lines on the envelope of the curves.",
    "gadre": "Gadre et al., arXiv 2403.08540: losses of large runs foretold from five small ones.",
    "nanochat": "Karpathy, nanochat: exponents of IsoFLOP optima in C under three ways to count parameters.",
    "kyo": "Takano, chinchilla: L = E + A N^-alpha + B D^-beta on the points of Hoffmann et al., by an "
    "absolute error that counts ten times where the loss is foretold too high.",
    "datablations": "Muennighoff et al., arXiv 2305.16264: spread between seeds of one configuration. "
    "Not printed there: `published` is what was computed from the runs before.",
    "fig1": "Wei et al., arXiv 2406.16450: are the slopes of dense and low-rank networks equal? "
    "Not printed there: `published` is what was computed from the points before.",
}
"""Name -> what was published, in a sentence."""


def chosen(names: Sequence[str]) -> list[str]:
    """The studies that the names stand for, in the order of STUDIES; all without names.

    Raises:
        AnalysisError: there is no such study.
    """
    for name in names:
        if name not in STUDIES:
            raise AnalysisError(f"there is no study '{name}'; there are: {', '.join(STUDIES)}")
    return [name for name in STUDIES if not names or name in names]


def published_folder(results: Path) -> Path:
    """The tracked folder of published facts, in `results` or else in this source tree."""
    own = results / "published"
    return own if own.is_dir() else Path(__file__).parents[2] / "results" / "published"
