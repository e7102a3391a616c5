"""Images from folders and .npz files: the same ids either way, sides by content, one line a mistake."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from trainer.batches import Batches
from trainer.corpora import Corpus, DataConfig, capacity, fingerprint, open_corpus, parse_data, prepare
from trainer.corpora.corpus import IGNORE
from trainer.errors import CorpusError

SIDE, CLASSES = 8, ("cats", "dogs", "eels")
Images = NDArray[np.uint8]


def pictures(n: int = 60, seed: int = 0, channels: int | None = None) -> tuple[Images, NDArray[np.int64]]:
    """Images whose first pixel tells the class, so that a mix-up shows."""
    rng = np.random.default_rng(seed)
    shape = (n, SIDE, SIDE) if channels is None else (n, SIDE, SIDE, channels)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    labels = np.arange(n) % len(CLASSES)
    images[:, 0, 0] = (labels * 10)[:, None] if channels else labels * 10
    return images, labels


def write_folder(root: Path, images: Images, labels: NDArray[np.int64]) -> Path:
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / CLASSES[label] / "deeper"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:03}.png")
    return root


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def data(source: Path, **fields: Any) -> DataConfig:
    corpus = {"kind": "images", "source": str(source), "side": SIDE, "classes": 3, **fields}
    return DataConfig(corpus=corpus, heldout_fraction=0.25)


def both_sides(corpus: Corpus) -> list[set[bytes]]:
    """(pixels, class) of each training and held-out image."""
    n_train, n_heldout = corpus.n_train_sequences(64), corpus.n_heldout_sequences(64)
    assert n_train is not None and n_heldout is not None
    sides = [corpus.train_examples(np.arange(n_train), 64), corpus.heldout_examples(0, n_heldout, 64)]
    for _, targets in sides:
        assert (targets[:, :-1] == IGNORE).all()
    return [{a.tobytes() + b[-1:].tobytes() for a, b in zip(*side, strict=True)} for side in sides]


def one_line(action: Callable[[], object], message: str) -> None:
    with pytest.raises(CorpusError, match=message) as caught:
        action()
    assert "\n" not in str(caught.value)


def test_a_folder_and_an_npz_of_the_same_images_are_the_same_examples(tmp_path: Path) -> None:
    images, labels = pictures()
    folder = prepare(data(write_folder(tmp_path / "a", images, labels)), tmp_path / "r", progress=False)
    archive = prepare(
        data(write_npz(tmp_path / "a.npz", images=images, labels=labels[:, None])), tmp_path / "r", False
    )
    sides = both_sides(folder)
    assert sides == both_sides(archive) and not sides[0] & sides[1]
    wanted = {
        image.astype(np.int64).tobytes() + np.int64(256 + label).tobytes()
        for image, label in zip(images, labels, strict=True)
    }
    assert sides[0] | sides[1] == wanted and 5 <= len(sides[1]) <= 28
    assert folder.vocab_size == 259 and folder.scored == 1 and folder.entropy_rate is None
    assert folder.n_train_tokens == capacity(data(tmp_path / "a"), tmp_path / "r") == 64 * len(sides[0])
    folder.verify()
    # The held-out order mixes what lies class by class in the file.
    asked = folder.heldout_examples(0, len(sides[1]), 64)[1][:, -1]
    assert (np.diff(asked) < 0).any()


def test_the_side_of_an_image_does_not_follow_from_its_class(tmp_path: Path) -> None:
    images, labels = pictures()
    images[:, 0, 0] = 0
    turned = (labels + 1) % 3
    sides = []
    for name, given in (("a", labels), ("b", turned)):
        source = write_npz(tmp_path / f"{name}.npz", images=images, labels=given)
        corpus = prepare(data(source), tmp_path / "r", progress=False)
        sides.append([{one[: 64 * 8] for one in side} for side in both_sides(corpus)])
    assert sides[0] == sides[1]


def test_colour_becomes_brightness_alike_from_both(tmp_path: Path) -> None:
    images, labels = pictures(channels=3)
    images[0, 1, 1:4] = np.diag([255, 255, 255])
    folder = prepare(data(write_folder(tmp_path / "a", images, labels)), tmp_path / "r", progress=False)
    archive = prepare(data(write_npz(tmp_path / "a.npz", images=images, labels=labels)), tmp_path, False)
    assert both_sides(folder) == both_sides(archive)
    everything = b"".join(set.union(*both_sides(folder)))
    assert np.array([76, 150, 29]).tobytes() in everything  # 0.299, 0.587 and 0.114 of 255, rounded.


def test_a_held_out_folder_is_taken_as_given(tmp_path: Path) -> None:
    first, second = pictures(12), pictures(9, seed=1)
    source, heldout = write_folder(tmp_path / "a", *first), write_folder(tmp_path / "b", *second)
    given = data(source, heldout=str(heldout))
    corpus = prepare(given, tmp_path / "r", progress=False)
    assert [len(side) for side in both_sides(corpus)] == [12, 9]
    assert corpus.heldout_examples(0, 9, 64)[0].astype(np.uint8).tobytes() != second[0].tobytes()
    assert fingerprint(given) == fingerprint(given.model_copy(update={"heldout_fraction": 0.5}))
    one_line(lambda: corpus.check_heldout(10, 64), "10 held-out sequences .* 9 are there")
    (heldout / "dogs").rename(heldout / "wolves")
    one_line(lambda: prepare(given, tmp_path / "r", progress=False), "cats, eels, wolves are not those")


def test_content_and_fields_make_the_fingerprint_and_places_do_not(tmp_path: Path) -> None:
    images, labels = pictures()
    first = write_folder(tmp_path / "a", images, labels)
    mark, identity = fingerprint(data(first)), data(first).identity()
    moved = first.rename(tmp_path / "b")
    assert fingerprint(data(moved)) == mark and data(moved).identity() == identity
    assert fingerprint(data(moved, levels=16)) != mark
    (moved / "cats" / "deeper" / "000.png").rename(moved / "dogs" / "000.png")
    assert fingerprint(data(moved)) != mark
    assert parse_data(shlex.split(data(moved).command(tmp_path))[4]) == data(moved)
    assert data(moved).label == "images (b, 3 classes, 8 x 8, 256 greys)"


def test_an_interrupted_preparation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.corpora import images as module
    from trainer.corpora import preparation

    source = write_folder(tmp_path / "a", *pictures())
    whole = prepare(data(source), tmp_path / "one", progress=False)
    monkeypatch.setattr(preparation, "_BATCH_BYTES", 256)
    monkeypatch.setattr(preparation, "_COMMIT_BYTES", 512)
    read, calls = module.grey_file, []

    def dies(path: Path, side: int) -> Images:
        calls.append(path)
        if len(calls) == 35:
            raise KeyboardInterrupt
        return read(path, side)

    monkeypatch.setattr(module, "grey_file", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare(data(source), tmp_path / "two", progress=False)
    again = prepare(data(source), tmp_path / "two", progress=False)
    assert len(calls) < 35 + 40 and both_sides(again) == both_sides(whole)


def test_epochs_walk_over_all_images(tmp_path: Path) -> None:
    corpus = prepare(
        data(write_npz(tmp_path / "a.npz", images=pictures()[0], labels=pictures()[1])), tmp_path, False
    )
    n = corpus.n_train_sequences(64)
    assert n is not None
    batches = Batches(corpus, 1, 64, n, max_epochs=2)
    batches.check(2)
    one, two = (batches.batch(step)[0] for step in (0, 1))
    assert {a.tobytes() for a in one} == {a.tobytes() for a in two} and not np.array_equal(one, two)
    one_line(lambda: batches.check(3), "data.max_epochs = 3")
    one_line(lambda: corpus.check_length(63), "each image has 64 pixels; take 64")
    one_line(lambda: corpus.train_examples(np.arange(1), 32), "each image has 64 pixels; take 64")


def broken_folders(root: Path) -> list[tuple[Path, str]]:
    images, labels = pictures(9)
    few = write_folder(root / "few", images[labels < 2], labels[labels < 2])
    hollow = write_folder(root / "hollow", images, labels)
    for path in (hollow / "eels").rglob("*.png"):
        path.unlink()
    large = write_folder(root / "large", images, labels)
    Image.new("L", (9, 8)).save(large / "dogs" / "zebra.PNG")
    text = write_folder(root / "text", images, labels)
    (text / "dogs" / "note.jpg").write_text("no picture")
    short = write_folder(root / "short", images, labels)
    picture = next((short / "cats").rglob("*.png"))
    picture.write_bytes(picture.read_bytes()[:-60])
    (root / "words.txt").write_text("words")
    return [
        (few, "has 2 sub-folders.*classes = 3"),
        (hollow, "eels: holds no .png"),
        (large, "zebra.PNG: has 9 x 8 pixels.*side = 8"),
        (text, "note.jpg: cannot be read"),
        (short, r"\.png: "),
        (root / "words.txt", "neither a folder nor an .npz"),
        (root / "nothing", "no such file or folder"),
    ]


def broken_archives(root: Path) -> list[tuple[Path, str]]:
    images, labels = pictures(9)
    cut = write_npz(root / "cut.npz", images=images, labels=labels)
    cut.write_bytes(cut.read_bytes()[:300])
    (root / "empty.npz").write_bytes(b"")
    objects = write_npz(root / "objects.npz", images=images, labels=np.array([{}] * 9))
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "names": ({"x_train": images, "y_train": labels}, "holds x_train, y_train; call its arrays"),
        "floats": ({"images": images / 255, "labels": labels}, "images is float64"),
        "size": ({"images": images[:, 1:], "labels": labels}, r"\(9, 7, 8\), not uint8"),
        "short": ({"images": images, "labels": labels[1:]}, r"labels is int64 \(8,\)"),
        "words": ({"images": images, "labels": labels.astype(str)}, "not one whole number"),
        "high": ({"images": images, "labels": labels + 1}, "labels from 1 to 3.*classes = 3"),
        "low": ({"images": images, "labels": labels - 1}, "labels from -1"),
    }
    made = [(write_npz(root / f"{name}.npz", **a), message) for name, (a, message) in cases.items()]
    return [*made, (cut, "cut.npz: "), (root / "empty.npz", "empty.npz: "), (objects, "plain arrays")]


@pytest.mark.parametrize("make", [broken_folders, broken_archives])
def test_wrong_files_are_told_in_one_line(make: Any, tmp_path: Path) -> None:
    for source, message in make(tmp_path):
        one_line(lambda source=source: prepare(data(source), tmp_path / "r", progress=False), message)


def test_what_is_not_prepared_says_how_to_prepare_it(tmp_path: Path) -> None:
    given = data(write_folder(tmp_path / "a", *pictures(9)))
    one_line(lambda: open_corpus(given, tmp_path), "run: python -m trainer data .*images")
    one_line(lambda: capacity(given, tmp_path), "run: python -m trainer data")


def test_palettes_sixteen_bits_and_transparency_are_read(tmp_path: Path) -> None:
    from trainer.corpora.images import grey_file

    image = pictures(1)[0][0]
    made = {
        "L": Image.fromarray(image),
        "P": Image.fromarray(image).convert("P"),
        "LA": Image.merge("LA", (Image.fromarray(image), Image.new("L", (SIDE, SIDE), 9))),
        "RGBA": Image.merge("RGBA", [Image.fromarray(image)] * 3 + [Image.new("L", (SIDE, SIDE), 9)]),
        "I;16": Image.fromarray(image.astype(np.uint16) * 256 + 255),
    }
    for name, picture in made.items():
        path = tmp_path / f"{name.replace(';', '')}.png"
        picture.save(path)
        assert np.array_equal(grey_file(path, SIDE), image), name
