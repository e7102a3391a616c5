"""What the task corpora are made of, as tables of a configuration.  Loads no numpy, no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SHAPES = ("disc", "ring", "square", "frame", "triangle", "cross", "saltire", "bar")
"""Classes of the generated images."""


LENGTHS_END = 2**24
"""Sequences of the copy tasks are shorter."""


class Spec(BaseModel):
    """A table of the data part of a configuration: immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Memory(Spec):
    n_tokens: int = Field(default=16, ge=1, le=2**16)
    """Tokens to remember; as many positions at the end ask for them."""
    alphabet: int = Field(default=16, ge=2, le=2**16)
    """Different tokens to remember; the vocabulary has two more, noise and the marker."""
    seed: int = Field(default=0, ge=0)
    """Of the task itself; the run's seed only chooses which of its sequences are read."""

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        return self.alphabet + 2

    def length_problem(self, seq_len: int) -> str:
        """Why there are no sequences of a length, and which there are; empty where there are."""
        if 2 * self.n_tokens <= seq_len < LENGTHS_END:
            return ""
        return (
            f"no room for {self.n_tokens} tokens and as many answers; take {2 * self.n_tokens} plus the "
            f"noise tokens (at most {LENGTHS_END - 1}) or lower data.corpus.n_tokens"
        )


class CopySpec(_Memory):
    """Say again, at the end of a sequence, the tokens that it began with (arXiv 1511.06464, 2402.14746)."""

    kind: Literal["copy"] = "copy"
    """Name of the source."""


class SelectiveCopySpec(_Memory):
    """Say again, in order, tokens that lay scattered among noise (arXiv 2312.00752, 2402.14746)."""

    kind: Literal["selective-copy"] = "selective-copy"
    """Name of the source."""


class ImagesSpec(Spec):
    """Grey images read pixel by pixel, to be classified behind the last one (arXiv 2011.04006)."""

    kind: Literal["images"] = "images"
    """Name of the source."""
    source: str = Field(default="shapes", min_length=1)
    """shapes: drawn ones, unlimited; else a folder with one sub-folder a class, or an .npz of images and
    labels."""
    heldout: str | None = None
    """Folder or .npz of the held-out images; without it images of `source` are held out by their hash."""
    classes: int = Field(default=len(SHAPES), ge=2, le=2**15)
    """Different labels; of a folder, its sub-folders."""
    side: int = Field(default=32, ge=8, le=1024)
    """Height and width in pixels; a sequence has side * side tokens."""
    levels: int = Field(default=256, ge=2, le=256)
    """Different greys."""
    seed: int = Field(default=0, ge=0)
    """Of the drawn images; the run's seed only chooses which of them are read."""

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if not self.drawn:
            if "classes" not in self.model_fields_set:
                raise ValueError("images of a folder or file need classes, the number of different labels")
            if self.seed:
                raise ValueError('seed means something for source = "shapes" only; leave it out')
        elif self.heldout is not None:
            raise ValueError("drawn images need no heldout; leave it out, or give source a folder")
        elif self.side < 16:
            raise ValueError(f"side = {self.side} is too small for drawn images; take 16 or more")
        elif self.classes > len(SHAPES):
            raise ValueError(f"classes = {self.classes}, but only {len(SHAPES)} shapes can be drawn")
        return self

    @property
    def drawn(self) -> bool:
        """Whether the images are generated rather than read."""
        return self.source == "shapes"

    def length_problem(self, seq_len: int) -> str:
        """Why there are no sequences of a length, and which there are; empty where there are."""
        pixels = self.side**2
        return "" if seq_len == pixels else f"each image has {pixels} pixels; take {pixels}"

    @property
    def vocab_size(self) -> int:
        """Ids are below this: greys, then classes."""
        return self.levels + self.classes


TaskSpec = CopySpec | SelectiveCopySpec | ImagesSpec
