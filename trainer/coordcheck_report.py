"""`trainer coordcheck`: what was asked for, progress, the table of measurements and what it says."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from trainer.bench.progress import BenchProgress
from trainer.coordcheck import FLAT, TENSORS, Check, Slope, coordinate_check, slopes
from trainer.errors import ConfigError
from trainer.models.structures import Structure
from trainer.options import names_in
from trainer.rundir import io_errors, write_atomic


def check_from(
    structures: str | None, parametrizations: str, widths: str, seeds: int, steps: int, peak_lr: float
) -> Check:
    """The check that a command line asks for; ConfigError, one line, where it cannot be.

    Without `structures` it is of every registered family, at 32 % of the dense weights.
    """
    try:
        sizes = TypeAdapter(tuple[int, ...]).validate_python(widths.split(","))
    except ValidationError:
        raise ConfigError(f"--widths {widths}: write whole numbers with commas, as 64,128,256") from None
    if len(set(sizes)) < 2:
        raise ConfigError(f"--widths {widths}: a slope needs at least two widths")
    kinds = tuple(names_in(parametrizations))
    if unknown := [kind for kind in kinds if kind not in ("paper", "mup")]:
        raise ConfigError(f"--parametrizations: unknown '{unknown[0]}'; there are paper and mup")
    others = (f"{kind}-32" for kind in sorted(Structure.registry) if kind != "dense")
    names = tuple(names_in(structures)) if structures is not None else ("dense", *others)
    return Check(names, kinds, tuple(sorted(sizes)), tuple(range(1, seeds + 1)), steps, peak_lr)


def run_check(check: Check, threads: int | None, results: Path) -> tuple[Path, list[Slope]]:
    """Measure, and write results/tables/coordcheck.csv; returns its path and the slopes."""
    with BenchProgress() as progress:

        def tick(what: str) -> None:
            progress.phase(what)
            progress.call()

        rows = coordinate_check(check, threads, tick)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "rms": f"{row['rms']:.6g}"} for row in rows)
    path = results / "tables" / "coordcheck.csv"
    with io_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, out.getvalue())
    return path, slopes(rows)


def report(found: list[Slope]) -> str:
    """Slopes after the last step, a line for each structure and parametrization, and what they say.

    Below stands what is not flat before the first step, and what the last may have evened out.
    """
    last = max(slope.step for slope in found)
    lines = ["d log RMS / d log width after the last step (standard error)", ""]
    lines.append(f"{'':28}" + "".join(f"{name:>16}" for name in TENSORS))
    starts = []
    for key in dict.fromkeys((slope.structure, slope.parametrization) for slope in found):
        mine = [s for s in found if (s.structure, s.parametrization) == key]
        end = {s.tensor: s for s in mine if s.step == last}
        cells = "".join(f"{end[t].slope:>+8.2f} ({end[t].se:.2f})" + " " for t in TENSORS if t in end)
        bad = [s.tensor for s in end.values() if not s.flat]
        said = "flat" if not bad else f"not flat: {', '.join(bad)}"
        lines.append(f"{key[0]:20} {key[1]:6} {cells} {said}")
        first = [s for s in mine if s.step != last and not s.flat]
        named = (f"{s.tensor} {s.slope:+.2f}{' (by design)' * s.by_design}" for s in first)
        if first:
            starts.append(f"{key[0]:20} {key[1]:6} {', '.join(named)}")
    lines += ["", "not flat before the first step:", *(starts or ["nothing"])]
    lines += ["", f"flat: a size that changes less than width to the power {FLAT:g}"]
    return "\n".join(lines)
