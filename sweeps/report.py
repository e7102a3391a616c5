"""Plans and states as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeps.ledger import STATES, RunState
from sweeps.overview import Overview
from sweeps.plan import Plan, PlannedRun, Totals
from sweeps.text import count, flops, number, plural, size, table
from sweeps.varied import SHOWN, said
from trainer.commandline import duration
from trainer.curriculum import shortfall

_PLAN_HEADS = (
    "id", "size", "structure", "seed", "params", "tokens", "steps", "FLOPs", "batch", "peak LR", "time",
    "state",
)  # fmt: skip
_STATUS_HEADS = ("id", "size", "structure", "seed", "state", "step", "loss", "attempts", "note")
_RIGHT = frozenset(
    {"seed", "params", "tokens", "steps", "FLOPs", "batch", "peak LR", "time", "step", "loss", "attempts"}
)
_NOTE_WIDTH = 48


def plan_table(plan: Plan) -> str:
    """One line for each run, within 120 columns; guidance has a column where there is any.

    So has every setting by which alone runs differ, which may take more columns.
    """
    rows = [_plan_row(run) for run in plan.runs]
    heads, rows = _with_guide(_PLAN_HEADS, rows, [run.guide for run in plan.runs])
    return table(*_with_varied(heads, rows, [run.varied for run in plan.runs]), _RIGHT)


def _with_varied(
    heads: Sequence[str], rows: Sequence[tuple[str, ...]], varied: Sequence[Mapping[str, str]]
) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    own = [key.rpartition(".")[2] for key in SHOWN]
    keys = [key for key in dict.fromkeys(key for one in varied for key in one) if key not in own]
    at = heads.index("seed")
    wider = [
        (*row[:at], *(one.get(key, "-") for key in keys), *row[at:])
        for row, one in zip(rows, varied, strict=True)
    ]
    return (*heads[:at], *keys, *heads[at:]), wider


def _with_guide(
    heads: Sequence[str], rows: Sequence[tuple[str, ...]], guides: Sequence[str]
) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    if not any(guides):
        return heads, list(rows)
    at = heads.index("structure") + 1
    wider = [(*row[:at], guide or "-", *row[at:]) for row, guide in zip(rows, guides, strict=True)]
    return (*heads[:at], "guide", *heads[at:]), wider


def _plan_row(run: PlannedRun) -> tuple[str, ...]:
    time = "-" if not run.seconds else f"{'' if run.measured else '~'}{duration(run.seconds)}"
    return (
        run.id, run.size, run.structure, str(run.seed), count(run.params), count(run.tokens), str(run.steps),
        flops(run.flops), str(run.batch_tokens), number(run.peak_lr), time, _doing(run),
    )  # fmt: skip


def _doing(run: PlannedRun) -> str:
    if run.action == "resume":
        return f"resume {100 * run.step // max(1, run.steps)}%"
    return run.action


def totals_text(totals: Totals, layout: str) -> str:
    """What the sweep will cost, in a few lines."""
    actions = ", ".join(f"{n} {action}" for action, n in totals.actions.items())
    lines = [f"{plural(totals.runs, 'run')} ({actions}); {flops(totals.flops)} FLOPs in all"]
    if totals.new_flops:
        basis = "measured speeds" if totals.measured else "~ rests on guessed speeds"
        lines.append(
            f"to do: {flops(totals.new_flops)} FLOPs, about {duration(totals.seconds)} ({basis}; the longest "
            f"run {duration(totals.longest_seconds)}), checkpoints {size(totals.bytes)}"
        )
        lines.append(f"{layout}")
    return "\n".join(lines)


def state_counts(states: Mapping[str, RunState] | list[RunState]) -> dict[str, int]:
    """How many runs are in each state, in a fixed order."""
    values = states.values() if isinstance(states, Mapping) else states
    found = Counter(state.state for state in values)
    return {name: found[name] for name in STATES if found[name]}


def status_rows(overview: Overview, plan: Plan) -> list[dict[str, Any]]:
    """State of each run, in grid order, as plain values."""
    rows = []
    for run in plan.runs:
        state = overview.states.get(run.id, RunState())
        result, status = state.result or {}, state.status or {}
        rows.append(
            {
                "id": run.id,
                "size": run.size,
                "structure": run.structure,
                "guide": run.guide,
                "seed": run.seed,
                "varied": run.varied,
                "state": state.state,
                "step": max(state.step, state.checkpoint or 0),
                "total_steps": run.steps,
                "attempts": state.attempt,
                "train_loss": result.get("train_loss", status.get("train_loss")),
                "val_loss": result.get("val_loss"),
                "val_loss_se": result.get("val_loss_se"),
                "tokens_per_second": result.get("tokens_per_second", status.get("tokens_per_second")),
                "eta_seconds": status.get("eta_seconds") if state.state == "running" else None,
                "owner": state.owner,
                "message": state.message or shortfall(result),
            }
        )
    return rows


def status_table(rows: list[dict[str, Any]]) -> str:
    """One line for each run, within 120 columns, or more where labels alone do not tell runs apart."""
    heads, lines = _with_guide(_STATUS_HEADS, [_status_row(row) for row in rows], [r["guide"] for r in rows])
    varied = [{"varied": said(row["varied"])} if row["varied"] else {} for row in rows]
    return table(*_with_varied(heads, lines, varied), _RIGHT)


def _status_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    loss = row["val_loss"] if row["val_loss"] is not None else row["train_loss"]
    shown = "-" if loss is None else f"{loss:.4f}{'' if row['val_loss'] is not None else ' (train)'}"
    note = ""
    if row["state"] == "running":
        eta = row["eta_seconds"]
        note = f"{row['owner']}" + (f", {duration(eta)} left" if eta else "")
    elif row["message"]:
        note = row["message"]
    if len(note) > _NOTE_WIDTH:
        note = note[: _NOTE_WIDTH - 3] + "..."
    return (
        row["id"], row["size"], row["structure"], str(row["seed"]), row["state"],
        f"{row['step']}/{row['total_steps']}", shown, str(row["attempts"]), note,
    )  # fmt: skip


def last_lines(path: Path, n_bytes: int) -> str:
    """The end of a text file, from a line's beginning."""
    with open(path, "rb") as file:
        file.seek(0, 2)
        start = max(0, file.tell() - n_bytes)
        file.seek(start)
        text = file.read().decode(errors="replace")
    return text.partition("\n")[2] if start else text
