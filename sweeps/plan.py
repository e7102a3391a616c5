"""The planner: from configurations, ledger states and speeds to what is to be done and what it costs.

A pure function: nothing is read, nothing is started.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sweeps.errors import SweepError
from sweeps.identity import UNKNOWN
from sweeps.ledger import MAX_ATTEMPTS, RunState
from sweeps.parity import Meant, parity
from sweeps.price import Prices
from sweeps.text import flops, plural
from sweeps.varied import varied
from trainer.commandline import duration
from trainer.config import RunConfig
from trainer.flops import guide_params, model_counts, spent_flops, train_flops
from trainer.models.config import ModelConfig
from trainer.presets import run_labels

OPEN_ACTIONS = ("new", "resume", "retry")
"""What `run` will train."""
BYTES_PER_PARAM = 4 * 3 * 2
"""fp32 weights and two moments, in two checkpoints."""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One line of the plan."""

    id: str
    """Run id, "-" where the corpus cannot be had."""
    size: str
    """Size label."""
    structure: str
    """Structure label."""
    guide: str
    """Self-guided training: fixed_steps, fixed_flops, with "static" where it is; empty without."""
    seed: int
    """Seed of the run."""
    params: int
    """All parameters."""
    tokens: int
    """Training tokens, repeated ones counted again."""
    steps: int
    """Optimizer steps."""
    flops: int
    """Training FLOPs of the whole run, `paper` convention."""
    batch_tokens: int
    """Tokens of one step."""
    peak_lr: float
    """Peak learning rate."""
    action: str
    """new, resume, retry: will be trained; done, diverged, running, failed, corrupt: will not."""
    state: str
    """State in the ledger."""
    step: int
    """Steps that need not be repeated."""
    new_flops: int
    """FLOPs still to be spent."""
    seconds: float
    """Predicted seconds still to go; 0 where nothing is left."""
    measured: bool
    """Whether the prediction rests on runs of this machine."""
    bytes: int
    """Bytes of its checkpoints on disk."""
    varied: dict[str, str] = field(default_factory=dict)
    """Settings in which runs of its size, structure and guidance differ, short name -> short value."""


@dataclass(frozen=True)
class Totals:
    """The plan in one line."""

    runs: int
    """Runs in the sweep."""
    actions: dict[str, int]
    """How many runs of each action."""
    flops: int
    """FLOPs of all runs."""
    new_flops: int
    """FLOPs still to be spent."""
    seconds: float
    """Predicted wall time with `slots` runs at a time."""
    run_seconds: float
    """Predicted seconds summed over the runs."""
    longest_seconds: float
    """Predicted seconds of the longest run still to be trained."""
    measured: bool
    """Whether all predictions rest on runs of this machine."""
    bytes: int
    """Checkpoint bytes of the runs still to be trained."""
    slots: int
    """Runs at a time."""


@dataclass(frozen=True)
class Plan:
    """What a sweep will do and cost."""

    runs: list[PlannedRun]
    """In grid order."""
    totals: Totals
    """Over all runs."""
    warnings: list[str]
    """Tuning differences between structures, and what cannot be had."""
    notes: list[str] = field(default_factory=list)
    """Tuning differences that the sweep file asks for."""

    @property
    def open(self) -> list[PlannedRun]:
        """Runs that will be trained."""
        return [run for run in self.runs if run.action in OPEN_ACTIONS]

    def only(self, places: Sequence[int]) -> Plan:
        """The plan of some of the runs, by their places in it; its warnings are those of all."""
        runs = [self.runs[place] for place in places]
        return replace(self, runs=runs, totals=_totals(runs, self.totals.slots))

    def as_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        return {
            "runs": [asdict(run) for run in self.runs],
            "totals": asdict(self.totals),
            "warnings": self.warnings,
            "notes": self.notes,
        }


def make_plan(
    configs: Sequence[RunConfig],
    ids: Sequence[str],
    states: Mapping[str, RunState],
    prices: Prices,
    slots: int,
    max_attempts: int = MAX_ATTEMPTS,
    warnings: Iterable[str] = (),
    meant: Meant | None = None,
    chosen: Sequence[str] = (),
) -> Plan:
    """Plan a sweep.

    Args:
        configs: the runs, in grid order.
        ids: their run ids (UNKNOWN where the corpus cannot be had).
        states: ledger states by run id; runs not in it are new.
        prices: predicted speeds.
        slots: runs at a time.
        max_attempts: failed attempts after which a run is left alone.
        warnings: lines known before planning, put first.
        meant: tuning differences that the sweep file asks for.
        chosen: dotted keys that the grid chooses.
    """
    facts: dict[int, _ModelFacts] = {}
    runs = []
    for config, run_id in zip(configs, ids, strict=True):
        model = facts.get(id(config.model))
        if model is None:
            model = facts[id(config.model)] = _ModelFacts(config)
        state = states.get(run_id) if run_id != UNKNOWN else None
        runs.append(_planned(config, run_id, state or RunState(), model, prices, max_attempts))
    names = [(run.size, run.structure, run.guide, str(run.seed)) for run in runs]
    apart = varied(configs, names, chosen)
    if any(apart):
        runs = [replace(run, varied=settings) for run, settings in zip(runs, apart, strict=True)]
    unequal, notes = parity(configs, [(size, structure) for size, structure, *_ in names], meant)
    said = [*warnings, *unequal]
    if any(config.curriculum for config in configs):
        said.append("a curriculum is priced with every step at full length, the most that it can cost")
    return Plan(runs, _totals(runs, slots), said, notes)


class _ModelFacts:
    """What is the same for all runs of one model."""

    def __init__(self, config: RunConfig) -> None:
        model: ModelConfig = config.model
        labels = run_labels(config)
        self.size, self.structure = labels["size"], labels["structure"]
        self.params = model_counts(model).params_total


def _action(state: RunState, max_attempts: int) -> str:
    if state.state == "failed":
        return "retry" if state.failures < max_attempts else "failed"
    if state.state in ("preempted", "pruned"):
        return "resume" if state.checkpoint is not None else "retry"
    return state.state


def _planned(
    config: RunConfig, run_id: str, state: RunState, model: _ModelFacts, prices: Prices, max_attempts: int
) -> PlannedRun:
    action = _action(state, max_attempts)
    steps = config.steps
    step = steps if action in ("done", "diverged") else min(state.checkpoint or 0, steps)
    if action == "running":
        step = min(state.step, steps)
    total = train_flops(config)
    left = total - spent_flops(config, step)
    unfinished = action in (*OPEN_ACTIONS, "running")
    price = prices.price(config, step) if unfinished else None
    return PlannedRun(
        id=run_id,
        size=model.size,
        structure=model.structure,
        guide=config.guide.label,
        seed=config.seed,
        params=model.params,
        tokens=config.steps * config.optim.batch_tokens,
        steps=steps,
        flops=total,
        batch_tokens=config.optim.batch_tokens,
        peak_lr=config.optim.peak_lr,
        action=action,
        state=state.state,
        step=step,
        new_flops=left if unfinished else 0,
        seconds=round(price.seconds, 1) if price else 0.0,
        measured=price.measured if price else True,
        bytes=BYTES_PER_PARAM * (model.params + (guide_params(config.model) if config.guided_steps else 0)),
    )


def _totals(runs: Sequence[PlannedRun], slots: int) -> Totals:
    todo = [run for run in runs if run.action in OPEN_ACTIONS]
    ahead = [run for run in runs if run.action in (*OPEN_ACTIONS, "running")]
    return Totals(
        runs=len(runs),
        actions=dict(Counter(run.action for run in runs)),
        flops=sum(run.flops for run in runs),
        new_flops=sum(run.new_flops for run in todo),
        seconds=round(wall_seconds([run.seconds for run in ahead], slots), 1),
        run_seconds=round(sum(run.seconds for run in todo), 1),
        longest_seconds=max((run.seconds for run in todo), default=0.0),
        measured=all(run.measured for run in ahead),
        bytes=sum(run.bytes for run in todo),
        slots=slots,
    )


def sum_of(plans: Sequence[Plan]) -> Totals:
    """Totals of plans that follow one another; a run in several of them counts with the first."""
    seen: set[str] = set()
    parts = []
    for plan in plans:
        fresh = [run for run in plan.runs if run.id not in seen]
        seen |= {run.id for run in fresh} - {UNKNOWN}
        parts.append(_totals(fresh, plan.totals.slots))
    return Totals(
        runs=sum(part.runs for part in parts),
        actions=dict(sum((Counter(part.actions) for part in parts), Counter())),
        flops=sum(part.flops for part in parts),
        new_flops=sum(part.new_flops for part in parts),
        seconds=round(sum(part.seconds for part in parts), 1),
        run_seconds=round(sum(part.run_seconds for part in parts), 1),
        longest_seconds=max((part.longest_seconds for part in parts), default=0.0),
        measured=all(part.measured for part in parts),
        bytes=sum(part.bytes for part in parts),
        slots=max((part.slots for part in parts), default=1),
    )


def wall_seconds(seconds: Iterable[float], slots: int) -> float:
    """Wall time of runs on `slots` at a time, the longest first."""
    free = [0.0] * max(1, slots)
    for one in sorted(seconds, reverse=True):
        heapq.heapreplace(free, free[0] + one)
    return max(free)


def refuse_past_caps(
    totals: Totals, max_flops: float | None, max_hours: float | None, what: str = "the sweep"
) -> None:
    """SweepError where `what` costs more than a cap allows, saying by how much."""
    if max_flops is not None and totals.new_flops > max_flops:
        raise SweepError(
            f"{what} needs {flops(totals.new_flops)} FLOPs, {flops(totals.new_flops - max_flops)} more "
            f"than --max-flops {max_flops:g}; raise it, or choose runs with --where"
        )
    if max_hours is not None and totals.seconds > max_hours * 3600:
        basis = "measured" if totals.measured else "guessed"
        over = duration(totals.seconds - max_hours * 3600)
        raise SweepError(
            f"{what} takes {duration(totals.seconds)} ({basis} speed, {plural(totals.slots, 'run')} at a "
            f"time), {over} more than --max-hours {max_hours:g}; raise it, or choose runs with --where"
        )
