"""A planted study of shapes: trials whose best widths, rates and trade-offs are known."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from analysis.searches.trials import Study, read_study

COLUMNS = (
    "study", "kind", "cell", "structure", "size", "budget_flops", "trial", "state", "repeat", "from_ledger",
    "run_id", "sampler", "search.d_model", "search.n_layers", "search.d_ff", "search.rank", "search.peak_lr",
    "search.batch_tokens", "d_model", "n_layers", "d_ff", "n_heads", "rank", "n_blocks", "params", "tokens",
    "tokens_per_param", "batch_tokens", "peak_lr", "seed", "train_flops", "val_loss", "val_loss_se",
    "progress", "second_name", "second", "seconds", "finished",
)  # fmt: skip
Row = dict[str, object]


def write(
    root: Path, rows: Iterable[Mapping[str, object]], name: str = "w", columns: Sequence[str] = COLUMNS
) -> Path:
    """Write rows as results/searches/NAME/trials.csv; returns the file."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = root / "searches" / name / "trials.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(out.getvalue())
    return path


def importance(root: Path, shares: Mapping[str, Mapping[str, float]], name: str = "w") -> Path:
    """Write importances by cell and dimension."""
    lines = ["study,cell,dimension,importance,method,trials"]
    lines += [
        f'{name},{cell},{dimension},{share},ped-anova,20'
        for cell, one in shares.items()
        for dimension, share in one.items()
    ]  # fmt: skip
    path = root / "searches" / name / "importance.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def study(root: Path, rows: Iterable[Mapping[str, object]], name: str = "w") -> Study:
    """Write rows and read them back."""
    return read_study(write(root, rows, name), root / "searches" / name / "importance.csv")


def width_rows(
    budgets: Sequence[float] = (2e12, 8e12),
    noise: float = 0.002,
    growth: Mapping[str, float] | None = None,
    trials: int = 20,
    name: str = "w",
    bend: float = 0.07,
) -> list[Row]:
    """Valleys about 48 C^a in width, other depths worse; one pruned, diverged, repeated a cell."""
    rng = np.random.default_rng(4)
    rows: list[Row] = []
    for structure, a in (growth or {"dense": 0.25, "lowrank-32": 0.35}).items():
        for budget in budgets:
            best = math.log(56) + a * math.log(budget / 4e12)
            cell = f"structure={structure} budget.train_flops={budget:g}"
            mine: list[Row] = []
            for i in range(trials):
                if i == 7 and trials > 8:
                    mine.append({**mine[2], "trial": i, "repeat": 1, "from_ledger": 1})
                    continue
                width = int((24, 32, 40, 48, 64, 80, 96, 128)[(5 * i) % 8])
                layers = int((3, 4)[(i // 8) % 2]) if i < 16 else 2
                loss = (
                    3.0
                    * (budget / 4e12) ** -0.05
                    * math.exp(
                        bend * (math.log(width) - best) ** 2 + 0.012 * abs(layers - 4) + noise * rng.normal()
                    )
                )
                state = {17: "pruned", 18: "diverged"}.get(i, "done")
                params = 12 * layers * width**2
                mine.append({
                    "study": name, "kind": "width", "cell": cell, "structure": structure,
                    "budget_flops": budget, "trial": i, "state": state, "repeat": 0,
                    "from_ledger": int(i == 3), "run_id": f"{structure[:2]}{budget:.0e}{i:02}",
                    "sampler": "tpe", "search.d_model": width, "search.n_layers": layers, "d_model": width,
                    "n_layers": layers, "params": params, "tokens": budget / 6 / params, "seed": 1,
                    "train_flops": budget * (1 + 0.002 * rng.normal()),
                    "val_loss": loss if state == "done" else "",
                    "val_loss_se": 0.012 if state == "done" else "",
                    "progress": 0.25 if state == "pruned" else 1, "seconds": 10,
                })  # fmt: skip
            rows += mine
    return rows


def rate_rows(best: Mapping[str, float] | None = None, trials: int = 9, name: str = "w") -> list[Row]:
    """Rates about a planted best one for each structure at two sizes; the highest rate diverged."""
    rng = np.random.default_rng(5)
    rows: list[Row] = []
    for structure, middle in (best or {"dense": 0.012, "lowrank-32": 0.02}).items():
        for size in ("cpu-xs", "cpu-s"):
            for i in range(trials):
                rate = float(np.geomspace(0.002, 0.12, trials)[(4 * i) % trials])
                state = "diverged" if rate > 0.1 else "done"
                loss = (3.2 if size == "cpu-xs" else 2.9) + 0.05 * math.log(rate / middle) ** 2
                rows.append({
                    "study": name, "kind": "lr", "cell": f"structure={structure} size={size}",
                    "structure": structure, "size": size, "trial": i, "state": state, "repeat": 0,
                    "from_ledger": 0, "run_id": f"{structure[:2]}{size}{i:02}", "sampler": "tpe",
                    "search.peak_lr": rate, "peak_lr": rate, "params": 5e4 if size == "cpu-xs" else 1e5,
                    "tokens": 2e6, "seed": 1,
                    "train_flops": 1.2e12, "val_loss": loss + 0.001 * rng.normal() if state == "done" else "",
                    "val_loss_se": 0.012 if state == "done" else "", "progress": 1,
                })  # fmt: skip
    return rows


def pareto_rows(name: str = "w") -> list[Row]:
    """The width rows with a decode latency that grows with width and depth; low-rank is faster."""
    rows = width_rows(name=name)
    for row in rows:
        fast = 0.6 if row["structure"] == "lowrank-32" else 1.0
        row |= {"kind": "pareto", "second_name": "decode_ms"}
        if row["state"] == "done":
            row["second"] = fast * (0.05 + float(str(row["params"])) * 1e-6)
    return rows
