"""What a study leaves for everything downstream: trials.csv, importance.csv and best.json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sweeps.search.searched import Searched, Trial
from sweeps.search.studyfile import Second, Study
from sweeps.search.triallog import folder_of
from trainer.config import RunConfig
from trainer.flops import model_counts, train_flops
from trainer.presets import size_label
from trainer.rundir import io_errors, write_atomic

TRIALS, IMPORTANCE, BEST = "trials.csv", "importance.csv", "best.json"
METHOD = "fANOVA"
_HEAD = (
    "study", "kind", "cell", "structure", "size", "budget_flops", "trial", "state", "repeat", "from_ledger",
    "run_id", "sampler",
)  # fmt: skip
_TAIL = (
    "d_model", "n_layers", "d_ff", "n_heads", "rank", "n_blocks", "params", "tokens", "tokens_per_param",
    "batch_tokens", "peak_lr", "seed", "train_flops", "val_loss", "val_loss_se", "progress", "second_name",
    "second", "seconds", "attempts", "finished", "result_sha256",
)  # fmt: skip


def write_outcome(study: Study, searched: Sequence[Searched], results: Path, importance: bool = True) -> None:
    """Write the tables of a study as it stands.

    Args:
        study: the study.
        searched: its cells.
        results: results folder.
        importance: whether the importance of the dimensions is worked out as well, which takes a while.
    """
    folder = folder_of(results, study.name)
    with io_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    rows = [row for one in searched for row in _rows(one)]
    dimensions = dict.fromkeys(f"search.{d.name}" for one in searched for d in one.cell.dimensions)
    write_atomic(folder / TRIALS, _csv((*_HEAD, *dimensions, *_TAIL), rows))
    best = {
        called(one): {"val_loss": one.best.loss, "run_id": one.best.asked.run}
        for one in searched
        if one.best is not None
    }
    write_atomic(folder / BEST, json.dumps(best, indent=1) + "\n")
    if importance:
        heads = ("study", "cell", "dimension", "importance", "method", "trials")
        write_atomic(folder / IMPORTANCE, _csv(heads, [row for one in searched for row in _importance(one)]))


def _csv(heads: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, heads, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _importance(searched: Searched) -> list[dict[str, Any]]:
    done = sum(trial.loss is not None for trial in searched.by_run.values())
    return [
        {"study": searched.cell.study.name, "cell": called(searched), "dimension": name,
         "importance": f"{share:.6g}", "method": METHOD, "trials": done}
        for name, share in searched.importance().items()
    ]  # fmt: skip


def _rows(searched: Searched) -> list[dict[str, Any]]:
    # Knowledge from elsewhere that was then asked for stands there once, as what was asked for.
    return [
        _row(searched, trial)
        for trial in searched.trials
        if trial.outcome is not None and not (trial.asked.warm and trial.asked.run in searched.proposed)
    ]


def _row(searched: Searched, trial: Trial) -> dict[str, Any]:
    cell, config, asked = searched.cell, trial.config, trial.asked
    assert trial.outcome is not None and trial.state is not None
    result = trial.state.result or {}
    second = cell.study.second or Second() if cell.study.kind == "pareto" else None
    done = trial.outcome.state == "done"
    return {
        "study": cell.study.name,
        "kind": cell.study.kind,
        "cell": called(searched),
        "structure": cell.structure,
        "size": _size(searched, config),
        "budget_flops": "" if cell.budget is None else f"{cell.budget:.12g}",
        "trial": asked.number,
        "state": trial.outcome.state,
        "repeat": int(asked.repeat),
        "from_ledger": int(asked.known or asked.warm),
        "run_id": asked.run,
        "sampler": "" if asked.warm else cell.study.search.sampler,
        **{f"search.{name}": f"{value:.12g}" for name, value in asked.point.items()},
        **_realised(config),
        "val_loss": result.get("val_loss", "") if done else "",
        "val_loss_se": result.get("val_loss_se", "") if done else "",
        "progress": f"{_progress(trial):.4g}",
        "second_name": second.objective if second is not None else "",
        "second": "" if trial.second is None else f"{trial.second:.6g}",
        "seconds": result.get("seconds", ""),
        "attempts": result.get("attempts", ""),
        "finished": result.get("finished", "") or _time(trial),
        "result_sha256": result.get("sha256", ""),
    }


def called(searched: Searched) -> str:
    """What tables call a cell, which has no label where the study has no axes."""
    return searched.cell.label or "all"


def _size(searched: Searched, config: RunConfig) -> str:
    """The size of a cell all of whose runs have it, as in a search of learning rates; else empty."""
    moves = {"d_model", "n_layers", "tokens_per_param"} & {d.name for d in searched.cell.dimensions}
    return "" if moves else size_label(config.model)


def _realised(config: RunConfig) -> dict[str, Any]:
    model = config.model
    params = model_counts(model).params_total
    return {
        "d_model": model.d_model,
        "n_layers": model.n_layers,
        "d_ff": model.d_ff,
        "n_heads": model.n_heads,
        "rank": getattr(model.structure, "rank", ""),
        "n_blocks": getattr(model.structure, "n_blocks", ""),
        "params": params,
        "tokens": config.steps * config.optim.batch_tokens,
        "tokens_per_param": f"{config.tokens / params:.6g}",
        "batch_tokens": config.optim.batch_tokens,
        "peak_lr": f"{config.optim.peak_lr:.12g}",
        "seed": config.seed,
        "train_flops": train_flops(config),
    }


def _progress(trial: Trial) -> float:
    assert trial.state is not None
    if trial.state.result is not None:
        return float(trial.state.result["steps"]) / trial.config.steps
    return min(1.0, (trial.state.checkpoint or 0) / trial.config.steps)


def _time(trial: Trial) -> str:
    updated = (trial.state.status or {}).get("updated") if trial.state is not None else None
    when = float(updated) if updated is not None else trial.asked.time
    return datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds")
