"""Images from folders and .npz files: checked, made grey, handed on as ids, the class behind the pixels."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.corpora.files import Shard, content_hashes, digest_of, reading
from trainer.corpora.taskspec import ImagesSpec
from trainer.errors import CorpusError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SUFFIXES = (".png", ".jpg", ".jpeg")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


def content_fingerprint(spec: ImagesSpec) -> str:
    """SHA-256 over the fields, and over the files' contents where images are read; wherever they lie."""
    if spec.drawn:
        return digest_of("shapes", 1, spec.model_dump(mode="json"))
    sides = [_side_hashes(spec, written) for written in (spec.source, spec.heldout) if written is not None]
    return digest_of("images", 1, spec.classes, spec.side, spec.levels, sides)


def _side_hashes(spec: ImagesSpec, written: str) -> list[Any]:
    root = Path(written).expanduser()
    if not _is_folder(root):
        return content_hashes([root])
    folders = class_folders(spec, root)
    files = [(path.relative_to(root).as_posix(), path) for folder in folders for path in _files(folder)]
    hashes = content_hashes([path for _, path in files])
    return [[name, digest] for (name, _), digest in zip(files, hashes, strict=True)]


def shards(spec: ImagesSpec) -> list[Shard]:
    """One shard a class of a folder, one an .npz; documents are side * side grey ids, then the class's id."""
    given = spec.heldout is not None
    out = _shards(spec, spec.source, False if given else None)
    if spec.heldout is None:
        return out
    heldout = _shards(spec, spec.heldout, True)
    names = [[shard.name for shard in side] for side in (out, heldout)]
    if len(names[0]) == len(names[1]) > 1 and names[0] != names[1]:
        raise CorpusError(
            f"{spec.heldout}: its sub-folders {', '.join(names[1])} are not those of {spec.source}; "
            f"name them alike"
        )
    return out + heldout


def _shards(spec: ImagesSpec, written: str, heldout: bool | None) -> list[Shard]:
    root = Path(written).expanduser()
    image_bytes = 2 * spec.side**2
    if not _is_folder(root):
        with reading(root):
            size = root.stat().st_size
        return [Shard(str(root), size, "", _Archive(spec, root), heldout, answers=1)]
    return [
        Shard(
            folder.name,
            image_bytes * len(_files(folder)),
            "",
            _Folder(spec, _files(folder), spec.levels + label),
            heldout,
            answers=1,
        )
        for label, folder in enumerate(class_folders(spec, root))
    ]


def _is_folder(root: Path) -> bool:
    with reading(root):
        root.stat()
    if not root.is_dir() and root.suffix != ".npz":
        raise CorpusError(f"{root}: neither a folder nor an .npz; correct data.corpus.source or heldout")
    return root.is_dir()


def class_folders(spec: ImagesSpec, root: Path) -> list[Path]:
    """The sub-folders of `root`, one a class, by name; CorpusError where they are not `classes`."""
    with reading(root):
        found = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(found) != spec.classes:
        raise CorpusError(
            f"{root}: has {len(found)} sub-folders, one a class, but data.corpus.classes = {spec.classes}; "
            f"correct one of them"
        )
    for folder in found:
        if not _files(folder):
            raise CorpusError(f"{folder}: holds no {' '.join(SUFFIXES)} files; add images or remove it")
    return found


def _files(folder: Path) -> list[Path]:
    with reading(folder):
        found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        return sorted(path for path in found if not path.name.startswith("."))


@dataclass(frozen=True)
class _Folder:
    """The images of one class, from any on."""

    spec: ImagesSpec
    files: list[Path]
    answer: int

    def __call__(self, skip: int) -> Iterator[NDArray[np.generic]]:
        for path in self.files[skip:]:
            yield _document(self.spec, grey_file(path, self.spec.side), self.answer)


@dataclass(frozen=True)
class _Archive:
    """The images of an .npz, which has to be unpacked into memory, from any on."""

    spec: ImagesSpec
    path: Path

    def __call__(self, skip: int) -> Iterator[NDArray[np.generic]]:
        images, labels = arrays(self.spec, self.path)
        for image, label in zip(images[skip:], labels[skip:].tolist(), strict=True):
            yield _document(self.spec, grey(image), self.spec.levels + label)


def _document(spec: ImagesSpec, image: NDArray[np.uint8], answer: int) -> NDArray[np.generic]:
    import numpy as np

    return np.append(to_levels(image, spec.levels).ravel(), answer).astype(np.uint16)


def to_levels(image: NDArray[np.uint8], levels: int) -> NDArray[np.int64]:
    """Greys 0 to 255 as ids 0 to levels - 1, equally wide."""
    import numpy as np

    return image.astype(np.int64) * levels // 256


def grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Brightness of (h, w) or (h, w, channels), an alpha channel left out: the luma of ITU-R BT.601."""
    import numpy as np

    if image.ndim == 2:
        return image
    if image.shape[2] < 3:
        return image[:, :, 0]
    red, green, blue = (image[:, :, channel].astype(np.int64) for channel in range(3))
    return ((299 * red + 587 * green + 114 * blue + 500) // 1000).astype(np.uint8)


def grey_file(path: Path, side: int) -> NDArray[np.uint8]:
    """The greys of an image file, (side, side); CorpusError where it is no image or of another size."""
    import numpy as np
    from PIL import Image

    with reading(path):
        try:
            with Image.open(path) as image:
                if image.size != (side, side):
                    width, height = image.size
                    raise CorpusError(
                        f"{path}: has {width} x {height} pixels, but data.corpus.side = {side}; "
                        f"resize the images or set side"
                    )
                if image.mode in _SIXTEEN_BITS:
                    return (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
                return grey(np.asarray(image if image.mode == "L" else image.convert("RGB")))
        except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
            # Pillow's decoders complain of damaged files in these ways as well.
            raise CorpusError(f"{path}: not an image that can be read ({error}); fetch it again") from None


def arrays(spec: ImagesSpec, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 (n, side, side[, channels]) and labels (n,) of an .npz; CorpusError where they are not."""
    import numpy as np

    try:
        with reading(path), np.load(path, allow_pickle=False) as content:
            there = list(content.files)
            if not {"images", "labels"} <= set(there):
                raise CorpusError(
                    f"{path}: holds {', '.join(there) or 'nothing'}; call its arrays images and labels"
                )
            images, labels = content["images"], content["labels"]
    except (ValueError, zipfile.BadZipFile) as error:
        raise CorpusError(f"{path}: not an .npz of plain arrays ({error}); save it again") from None
    wanted = (spec.side, spec.side)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[1:3] != wanted:
        raise CorpusError(
            f"{path}: images is {images.dtype} {images.shape}, not uint8 (n, {spec.side}, {spec.side}[, "
            f"channels]); set data.corpus.side or save it so"
        )
    labels = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise CorpusError(
            f"{path}: labels is {labels.dtype} {labels.shape}, not one whole number for each of "
            f"{len(images)} images; save it so"
        )
    if labels.size and not (0 <= int(labels.min()) and int(labels.max()) < spec.classes):
        raise CorpusError(
            f"{path}: has labels from {labels.min()} to {labels.max()}, not below data.corpus.classes = "
            f"{spec.classes}; correct one of them"
        )
    return images, labels.astype(np.int64)
