"""Draws products: each figure as SVG, PDF and PNG, each table as text, several at a time, all on record."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from analysis.errors import AnalysisError
from analysis.figures.style import save
from analysis.output import write_if_changed
from analysis.products.catalogue import catalogue, of_table
from analysis.products.manifest import Drawn, drawings, key, record, sha256
from analysis.products.product import Made, Product
from analysis.products.tracked import Tracked
from analysis.progress import Progress
from analysis.runs.export import export

FEW, MOST_WORKERS = 12, 8
"""Below `FEW` products a second process costs more time than it saves."""


@dataclass(frozen=True)
class Outcome:
    """What drawing came to: the files, the manifest among them, and what could not be drawn, a line each."""

    paths: tuple[Path, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _One:
    """What one product came to."""

    drawn: Drawn | None
    paths: tuple[Path, ...] = ()
    problem: str = ""


def write(name: str, made: Made, root: Path, known: Mapping[str, str] | None = None) -> list[Path]:
    """Write the figure and the texts of a product below the results folder; returns the paths.

    Args:
        name: of the product.
        made: its figure and texts.
        root: results folder.
        known: hashes of its files from the last time, as `save` takes them.
    """
    paths = [] if made.figure is None else save(made.figure, root / "figures" / name, known)
    for file, text in made.texts.items():
        path = root / "tables" / file
        write_if_changed(path, text)
        paths.append(path)
    return paths


def draw_table(
    table: str,
    results: Path,
    out: Path,
    maps: list[str] | None = None,
    published: bool = True,
    force: bool = False,
) -> Outcome:
    """Write one sweep or CSV as a tracked table below `out`, and all that can be drawn of it.

    Args:
        table: name of a sweep, or a CSV, JSONL or parquet file.
        results: results folder, with runs/ and published/.
        out: results folder to write to.
        maps: the --map options.
        published: whether published points are drawn beside.
        force: replace a table even by one with fewer finished runs.
    """
    name, _, exported = export(table, results, out, maps, force)
    place = results if published else None
    tracked = Tracked(out, place, (name,))
    outcome = draw_products(of_table(catalogue(tracked), tracked, name), tracked, place)
    return Outcome((*exported, *outcome.paths), outcome.problems)


def draw_products(
    products: Sequence[Product], tracked: Tracked, published: Path | None, jobs: int | None = None
) -> Outcome:
    """Make products, write their files and record them in the manifest; a broken one leaves the others alone.

    Args:
        products: of `catalogue(tracked)`.
        tracked: the tables.
        published: as given to `tracked`, for other processes.
        jobs: processes; None for one a processor.
    """
    results: list[_One] = []
    order = {product.name: i for i, product in enumerate(products)}
    with Progress("drawing", len(products)) as progress:
        try:
            with closing(_made(products, tracked, published, jobs)) as made:
                for one in made:
                    results.append(one)
                    progress.update(len(results))
        finally:
            # Also after Ctrl-C: the manifest says what the files on disk are made of.
            drawn = [one.drawn for one in results if one.drawn is not None]
            manifest = record(tracked.root, sorted(drawn, key=lambda d: order[d.name]), tracked)
    results.sort(key=lambda one: order[one.drawn.name] if one.drawn is not None else len(order))
    paths = [path for one in results for path in one.paths]
    problems = [one.problem for one in results if one.problem]
    return Outcome((*paths, manifest), (*tracked.problems, *problems))


def _made(
    products: Sequence[Product], tracked: Tracked, published: Path | None, jobs: int | None
) -> Generator[_One]:
    # Read here too, so that a damaged manifest is complained of before anything is drawn.
    known = drawings(tracked.root)
    jobs = min(jobs or _processors(), MOST_WORKERS)
    if jobs < 2 or len(products) < FEW:
        yield from (_make(product, tracked.root, known.get(product.name)) for product in products)
        return
    # Not forked: the numeric libraries may hold threads.
    pool = ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), partial(_start, tracked.root, published)
    )
    with pool:
        waiting = [pool.submit(_make_named, product.name) for product in products]
        try:
            for done in as_completed(waiting):
                yield done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def unexpected(error: Exception) -> str:
    """An error that was not foreseen, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _processors() -> int:
    # A batch job may have fewer than the machine.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_catalogue: dict[str, Product] = {}
_drawings: dict[str, dict[str, str]] = {}
_root = Path()


def _start(root: Path, published: Path | None) -> None:
    """Read the tables in a process of the pool, once for all that it draws."""
    global _root
    _root = root
    # Ctrl-C reaches every process of the terminal: the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _drawings.update(drawings(root))
    _catalogue.update((product.name, product) for product in catalogue(Tracked(root, published)))


def _make_named(name: str) -> _One:
    return _make(_catalogue[name], _root, _drawings.get(name))


def _make(product: Product, root: Path, known: Mapping[str, str] | None) -> _One:
    try:
        inputs = {key(path, root): sha256(path) for path in product.inputs}
        paths = write(product.name, product.make(), root, known)
    except AnalysisError as error:
        return _One(None, problem=f"{product.name}: {error}")
    except OSError as error:
        return _One(None, problem=f"{product.name}: {error.filename or 'disk'}: {error.strerror or error}")
    except Exception as error:
        # Such as what matplotlib says of a name that it takes for mathematics: other figures still come out.
        return _One(None, problem=f"{product.name}: {unexpected(error)}")
    outputs = {key(path, root): sha256(path) for path in paths}
    return _One(Drawn(product.name, product.shows, inputs, outputs), tuple(paths))
