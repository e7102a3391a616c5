"""`run`: price, prepare the corpora, train what is missing, mirror, and say how it ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sweeps.background import BackgroundMirror, mirror_of
from sweeps.errors import SweepError
from sweeps.layout import Layout
from sweeps.ledger import MAX_ATTEMPTS, Ledger
from sweeps.local import WORKER, LocalQueue
from sweeps.overview import Overview
from sweeps.plan import OPEN_ACTIONS, Plan, PlannedRun
from sweeps.session import Session, new_session, write_record
from sweeps.slot import PACKAGE_ROOT
from sweeps.sweepfile import CONFIGS
from sweeps.text import plural
from sweeps.tracked import BackgroundExport
from trainer.commandline import duration
from trainer.config import RunConfig

EXIT_DONE, EXIT_UNFINISHED, EXIT_INTERRUPTED = 0, 1, 130


@dataclass(frozen=True)
class Ending:
    """How a launch ended."""

    code: int
    """Exit code: 0 all done, 1 some failed, diverged or unfinished, 130 interrupted."""
    line: str
    """Said at the end."""
    interrupted: bool = False
    """Whether somebody pressed Ctrl-C, if only at what comes after the runs."""


def launch(
    overview: Overview,
    plan: Plan,
    layout: Layout,
    mirror: bool = True,
    worker: Sequence[str] = WORKER,
    export: bool | None = False,
    root: Path = PACKAGE_ROOT,
) -> Ending:
    """Train the runs of a plan that are not finished, on this machine.

    Args:
        overview: the sweep and its ledger.
        plan: what is to be done, of the whole sweep or of some of its runs.
        layout: the slots.
        mirror: whether MLflow is told.
        worker: how to start a worker.
        export: whether the tracked table is kept up to date; None: of the sweeps that come with the program.
        root: folder of the program that workers, mirror and export run.

    Raises SweepError or TrainerError where the user has to mend something first.
    """
    sweep, results = overview.sweep, overview.ledger.results
    if overview.problems:
        raise SweepError(overview.problems[0])
    began = time.monotonic()
    write_record(results, sweep.name, sweep.description, sweep.path, overview.ids)
    background = BackgroundMirror(mirror_of(sweep), results, _say, root=root) if mirror else None
    tracked = _export_of(overview, root) if export or (export is None and _is_named(overview)) else None
    todo = sorted(
        (run for run in plan.runs if run.action in (*OPEN_ACTIONS, "running")), key=lambda run: -run.seconds
    )
    outcome, aborted = "finished", None
    if background is not None and (todo or not background.up_to_date(overview.ids)):
        background.start()
    try:
        if todo:
            config_of = dict(zip(overview.ids, overview.configs, strict=True))
            pairs = [(run.id, config_of[run.id]) for run in todo]
            prepare_corpora([config for _, config in pairs], results)
            execution = layout.execution.model_dump(mode="json")
            session = new_session(sweep.name, results, execution, pairs, MAX_ATTEMPTS)
            outcome, aborted = _train(
                session, todo, len(plan.runs) - len(todo), layout, worker, root, background, tracked
            )
    except KeyboardInterrupt:
        outcome = "interrupted"
    finally:
        if tracked is not None:
            states = overview.ledger.scan(overview.ids)
            tracked.finish([run_id for run_id, state in states.items() if state.state == "done"])
        if background is not None:
            background.finish(interrupted=outcome == "interrupted" or sys.exc_info()[0] is not None)
    ending = _ending(overview, plan, outcome, time.monotonic() - began)
    if aborted is not None and ending.code:
        raise SweepError(aborted)
    stopped = any(helper is not None and helper.interrupted for helper in (background, tracked))
    return replace(ending, interrupted=stopped or outcome == "interrupted")


def _is_named(overview: Overview) -> bool:
    return overview.sweep.path.resolve().parent == CONFIGS


def _export_of(overview: Overview, root: Path) -> BackgroundExport:
    own = None if _is_named(overview) else overview.ids
    return BackgroundExport(overview.sweep.name, overview.ledger.results, _say, own, root=root)


def _train(
    session: Session,
    todo: Sequence[PlannedRun],
    others: int,
    layout: Layout,
    worker: Sequence[str],
    root: Path,
    background: BackgroundMirror | None,
    tracked: BackgroundExport | None,
) -> tuple[str, str | None]:
    from sweeps.display import TerminalView

    with TerminalView(todo, others, layout.slots, Ledger(Path(session.results))) as view:
        helpers = [helper for helper in (background, tracked) if helper is not None]
        for helper in helpers:
            helper.say = view.say
        queue = LocalQueue(session, layout, _Heard(view, background, tracked), worker, root=root)
        try:
            outcome = queue.run()
        finally:
            for helper in helpers:
                helper.say = _say
    return "interrupted" if outcome in ("interrupted", "cancelled") else "finished", queue.aborted


class _Heard:
    """The view, with the mirror and the export listened to at every tick."""

    def __init__(
        self, view: Any, background: BackgroundMirror | None, tracked: BackgroundExport | None
    ) -> None:
        self.waiting, self.say = view.waiting, view.say
        self._view, self._background, self._tracked = view, background, tracked

    def event(self, run_id: str, event: dict[str, Any]) -> None:
        self._view.event(run_id, event)
        if self._tracked is not None and event["event"] == "end" and event["state"] == "done":
            self._tracked.ended()

    def tick(self) -> None:
        self._view.tick()
        for helper in (self._background, self._tracked):
            if helper is not None:
                helper.poll()


def prepare_corpora(configs: Sequence[RunConfig], results: Path) -> None:
    """Make every corpus ready once, and refuse runs that it is too small for before any is started."""
    from trainer.batches import check_corpus
    from trainer.corpora import Corpus, DataConfig, prepare

    corpora: dict[DataConfig, Corpus] = {}
    checked = set()
    for config in configs:
        if config.data not in corpora:
            corpora[config.data] = prepare(config.data, results)
        corpus, model = corpora[config.data], config.model
        shape = (id(corpus), model.seq_len, model.vocab_size, config.tokens, config.eval.tokens)
        if shape in checked:
            continue
        checked.add(shape)
        check_corpus(config, corpus)


def _ending(overview: Overview, plan: Plan, outcome: str, seconds: float) -> Ending:
    counts: dict[str, int] = {}
    states = overview.ledger.scan(run.id for run in plan.runs)
    for state in states.values():
        counts[state.state] = counts.get(state.state, 0) + 1
    said = ", ".join(f"{n} {state}" for state, n in sorted(counts.items(), key=lambda item: -item[1]))
    left_out = len(overview.ids) - len(plan.runs)
    more = f" ({left_out:,} more of the sweep left out)" if left_out else ""
    line = f"{plural(len(states), 'run')}{more}: {said}; {duration(seconds)}"
    if outcome == "interrupted":
        return Ending(EXIT_INTERRUPTED, f"interrupted: {line}; the same command goes on")
    if corrupt := [state.message for state in states.values() if state.state == "corrupt"]:
        raise SweepError(f"{line}; {corrupt[0]}")
    return Ending(EXIT_DONE if counts.get("done") == len(states) else EXIT_UNFINISHED, line)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
