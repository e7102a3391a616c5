"""`status --watch`: what trains now on a ledger, whoever started it, until nothing is left to do.

It only reads run folders, so that it shows other processes, Slurm jobs and other hosts alike.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.display import pace_of, seconds_left
from sweeps.errors import SweepError
from sweeps.ledger import Ledger
from sweeps.observe import MISREAD, STALE, Observer, Seen
from sweeps.plan import wall_seconds
from sweeps.price import STARTUP_SECONDS
from sweeps.roster import Card, Roster, asked_roster, card_in, record_time, recorded_roster
from sweeps.session import recorded_sweeps
from sweeps.text import plural
from trainer.commandline import duration
from trainer.errors import TrainerError
from trainer.hints import hint

OPEN = frozenset({"new", "preempted", STALE})
"""States of runs that the next worker takes, whatever it works for (see Watch._open)."""
TROUBLE = ("failed", "corrupt", "diverged", STALE, "running")
"""States that need a person, in the order of their urgency; of a running one, that something is odd."""
ORDER = ("done", "running", "failed", "diverged", "corrupt", STALE, "new", "preempted", "pruned")
"""How counts are told: what a narrow terminal cuts off is the least of it."""
RETRY_SECONDS = 5.0
"""So long after a failure a launcher may still be about to try the run again."""
RECENT_LOOKS = 30
"""Looks within which the number of runs at a time is what it was most."""


@dataclass(frozen=True)
class Under:
    """A run that trains."""

    id: str
    """Run id."""
    name: str
    """What people call it."""
    facts: dict[str, Any]
    """See sweeps.display.progress_texts; without `step` it has only begun."""
    left: float | None
    """Seconds left; None where nothing tells."""
    owner: str | None
    """host:pid of its worker."""


@dataclass(frozen=True)
class Trouble:
    """A run that needs a person."""

    id: str
    """Run id."""
    name: str
    """What people call it."""
    state: str
    """One of TROUBLE."""
    message: str
    """Why, in one line."""
    command: str
    """Shows more."""


@dataclass(frozen=True)
class Part:
    """How far one sweep is."""

    name: str
    """The sweep."""
    argument: str
    """How commands take it."""
    counts: dict[str, int]
    """Runs of each state."""
    flops: int
    """Training FLOPs of all its runs; 0 where not all are known."""
    share: float
    """Finished part, of the FLOPs where they are known, else of the runs; what failed is not finished."""


@dataclass(frozen=True)
class View:
    """Everything at one moment."""

    time: float
    """When (epoch)."""
    sweeps: list[Part]
    """Those that were asked for, or of which something is left to do."""
    others: int
    """How many sweeps more have nothing left to do."""
    others_counts: dict[str, int]
    """Their runs of each state."""
    trouble: list[Trouble]
    """Most urgent first."""
    running: list[Under]
    """Those that end first, first."""
    waiting: list[str]
    """Names of the runs that nobody trains yet, the longest first."""
    slots: int
    """Runs at a time: as many as trained lately, else as this machine takes."""
    left: float | None
    """Seconds until all is trained; None where a run's price is not known."""
    over: bool
    """Whether nothing is left to do."""
    done: bool
    """Whether every run is done."""
    said: str
    """The state of affairs in a few words."""


class Watch:
    """Looks at sweeps again and again.

    Args:
        results: results folder.
        asked: names or files of sweeps; none: all that were ever recorded there, also while watching.
    """

    def __init__(self, results: Path, asked: Sequence[str]) -> None:
        self.results, self.asked, self.ledger = results, bool(asked), Ledger(results)
        self.observer = Observer(self.ledger)
        self.rosters: dict[str, Roster] = {}
        for written in asked:
            roster = asked_roster(results, written)
            if not roster.ids:
                roster.expand()
            self.rosters[roster.name] = roster
        self._before: dict[str, Seen] = {}
        self._strays: dict[str, Card | None] = {}
        self._paces: list[float] = []
        self._at_once: list[int] = []
        self._trained: set[str] = set()
        self._quiet_since: float | None = None
        self._resumed: set[str] = set()

    def look(self) -> View:
        """How everything stands now."""
        self._refresh()
        ids = dict.fromkeys(run_id for roster in self.rosters.values() for run_id in roster.ids)
        strays = () if self.asked else [run_id for run_id in self.ledger.ids() if run_id not in ids]
        seen = self.observer.look([*ids, *strays])
        now = {run_id: seen[run_id] for run_id in ids}
        # Of no sweep: what another version of its file began, or another program.
        now |= {run_id: seen[run_id] for run_id in strays if seen[run_id].state == "running"}
        live = [roster for roster in self.rosters.values() if self._shown(roster, now)]
        for roster in live:
            self._inform(roster, now)
        self._remember(now)
        return self._view(now, live)

    def _refresh(self) -> None:
        """Read the records that are new or were written again, as every launch does."""
        for name in [*self.rosters] if self.asked else recorded_sweeps(self.results):
            known = self.rosters.get(name)
            if known is not None and known.mark == record_time(self.results, name):
                continue
            if (roster := recorded_roster(self.results, name)) is not None:
                self.rosters[name] = roster
        self._resumed = {r for one in self.rosters.values() if not one.study for r in one.ids}

    def _shown(self, roster: Roster, now: Mapping[str, Seen]) -> bool:
        if self.asked or roster.name in self._trained:
            return True
        return any(now[run_id].state == "running" or self._open(run_id, now) for run_id in roster.ids)

    def _open(self, run_id: str, now: Mapping[str, Seen]) -> bool:
        """Whether the next worker takes a run.  A pruned one is over in its study, and nowhere else."""
        state = now[run_id].state
        return state in OPEN or (state == "pruned" and run_id in self._resumed)

    def _inform(self, roster: Roster, now: Mapping[str, Seen]) -> None:
        """Have the names of a sweep's runs, and where some are ahead their prices."""
        try:
            roster.expand()
            if any(now[run_id].state == "running" or self._open(run_id, now) for run_id in roster.ids):
                roster.price({run_id: now[run_id].result for run_id in roster.ids}, self.ledger)
        except (SweepError, TrainerError, *MISREAD):
            # Its file is gone or has changed; its record tells the runs, and their folders the rest.
            return

    def _card(self, run_id: str) -> Card | None:
        for roster in self.rosters.values():
            if (card := roster.cards.get(run_id)) is not None:
                return card
        if self._strays.get(run_id) is None:
            self._strays[run_id] = card_in(self.ledger.run_dir(run_id))
        return self._strays[run_id]

    def _name(self, run_id: str) -> str:
        card = self._card(run_id)
        return card.name if card is not None else run_id

    def _seconds(self, run_id: str) -> float | None:
        return next((s for r in self.rosters.values() if (s := r.seconds(run_id)) is not None), None)

    def _remember(self, now: Mapping[str, Seen]) -> None:
        """Learn from what changed since the look before."""
        for run_id, one in now.items():
            before = self._before.get(run_id)
            if one.result is None or before is None or before.state != "running":
                continue
            predicted, took = self._seconds(run_id), one.result.get("seconds")
            if predicted and isinstance(took, int | float) and one.state == "done":
                self._paces.append((took + STARTUP_SECONDS) / predicted)
        running = {run_id for run_id, one in now.items() if one.state == "running"}
        self._at_once = [*self._at_once[1 - RECENT_LOOKS :], len(running)]
        self._trained |= {r.name for r in self.rosters.values() if not running.isdisjoint(r.ids)}
        self._quiet_since = None if running else self._quiet_since or time.monotonic()
        self._before = dict(now)

    def _view(self, now: Mapping[str, Seen], live: Sequence[Roster]) -> View:
        states = {run_id: one.state for run_id, one in now.items()}
        running = [run_id for run_id, state in states.items() if state == "running"]
        share = {run_id: self._left_share(run_id, now[run_id]) for r in live for run_id in r.ids}
        share |= {run_id: self._left_share(run_id, now[run_id]) for run_id in running}
        pace = self._pace(now, running, share)
        left = {run_id: self._left(run_id, now[run_id], share[run_id], pace) for run_id in running}
        waits = dict.fromkeys(run_id for r in live for run_id in r.ids if self._open(run_id, now))
        wait = {run_id: self._left(run_id, now[run_id], share[run_id], pace) for run_id in waits}
        slots = max(self._at_once) or sum(roster.slots for roster in live[:1]) or 1
        every = [*left.values(), *wait.values()]
        known = [seconds for seconds in every if seconds is not None]
        seconds = wall_seconds(known, slots) if len(known) == len(every) else None
        others = [roster for roster in self.rosters.values() if roster not in live]
        mine = [r for r in self.rosters.values() if not self._trained or r.name in self._trained]
        over = not running and self._nothing_left({run_id for r in mine for run_id in r.ids}, now)
        return View(
            time=time.time(),
            sweeps=[self._part(roster, now, share) for roster in live],
            others=len(others),
            others_counts=_counts(now[run_id] for roster in others for run_id in roster.ids),
            trouble=self._trouble({run_id: now[run_id] for run_id in [*share, *running]}),
            running=[
                Under(run_id, self._name(run_id), now[run_id].facts, left[run_id], now[run_id].owner)
                for run_id in sorted(running, key=lambda run_id: (left[run_id] or 0.0, run_id))
            ],
            waiting=[
                self._name(run_id) for run_id in sorted(wait, key=lambda run_id: -(wait[run_id] or 0.0))
            ],
            slots=slots,
            left=seconds,
            over=over,
            done=all(state == "done" for state in states.values()),
            said=f"nothing is left to do: {counted(_counts(now[run_id] for r in mine for run_id in r.ids))}"
            if over
            else self._said(now, live, seconds, slots),
        )

    def _left_share(self, run_id: str, one: Seen) -> float:
        """Unfinished part of a run, of its FLOPs."""
        if one.state in ("done", "diverged") or (one.state == "pruned" and run_id not in self._resumed):
            return 0.0
        card = self._card(run_id) if one.step else None
        return 1.0 - card.spent(one.step) / card.flops if card is not None and card.flops else 1.0

    def _pace(self, now: Mapping[str, Seen], running: Iterable[str], share: Mapping[str, float]) -> float:
        early = ((0.0, now[r].facts.get("eta"), (self._seconds(r) or 0.0) * share[r]) for r in running)
        return pace_of(self._paces, [one for one in early if one[1] and one[2] > STARTUP_SECONDS])

    def _left(self, run_id: str, one: Seen, share: float, pace: float) -> float | None:
        predicted = self._seconds(run_id)
        if predicted is None and one.facts.get("eta") is None and one.facts.get("phase") != "evaluate":
            return None
        return seconds_left(one.facts, (predicted or 0.0) * share, 0.0, pace)

    def _part(self, roster: Roster, now: Mapping[str, Seen], share: Mapping[str, float]) -> Part:
        counts = _counts(now[run_id] for run_id in roster.ids)
        flops = {
            run_id: card.flops for run_id in roster.ids if (card := roster.cards.get(run_id)) is not None
        }
        whole = sum(flops.values()) if len(flops) == len(roster.ids) else 0
        finished = sum(flops[run_id] * (1.0 - share[run_id]) for run_id in roster.ids) if whole else 0.0
        over = counts.get("done", 0) + counts.get("diverged", 0)
        over += counts.get("pruned", 0) if roster.study else 0
        part = finished / whole if whole else over / max(1, len(roster.ids))
        return Part(roster.name, roster.argument, counts, whole, part)

    def _trouble(self, now: Mapping[str, Seen]) -> list[Trouble]:
        found = [
            (TROUBLE.index(one.state), run_id)
            for run_id, one in now.items()
            if one.message is not None and one.state in TROUBLE
        ]
        found.sort()
        return [self._in_trouble(run_id, now[run_id]) for _, run_id in found]

    def _in_trouble(self, run_id: str, one: Seen) -> Trouble:
        message = " ".join(str(one.message).split())
        verb = "logs" if one.state in ("failed", STALE) else "show"
        command = hint([verb, run_id], self.results)
        return Trouble(run_id, self._name(run_id), one.state, message, command)

    def _nothing_left(self, mine: Iterable[str], now: Mapping[str, Seen]) -> bool:
        """Whether all is over: of the sweeps that trained while we looked, where any did."""
        if not self.rosters or any(self._open(run_id, now) for run_id in mine):
            return False
        quiet = time.monotonic() - (self._quiet_since or time.monotonic())
        return quiet >= RETRY_SECONDS or not (self._trained and any(now[run_id].retries for run_id in mine))

    def _said(self, now: Mapping[str, Seen], live: Sequence[Roster], left: float | None, slots: int) -> str:
        time_left = f"about {duration(left)} left" if left is not None else "time left not known"
        if any(one.state == "running" for one in now.values()):
            return f"{time_left} at {plural(slots, 'slot')}"
        if not self._trained:
            return "nothing runs yet; waiting"
        waiting = [roster for roster in live if any(self._open(run_id, now) for run_id in roster.ids)]
        goes_on = f"; '{hint(waiting[0].command, self.results)}' goes on" if waiting else ""
        return f"nothing runs now{goes_on}"


def _counts(runs: Iterable[Seen]) -> dict[str, int]:
    found = Counter(one.state for one in runs)
    return {state: found[state] for state in ORDER if found[state]}


def counted(counts: Mapping[str, int]) -> str:
    """How many runs are in each state, in words: 8 done, 2 running, 2 waiting."""
    words = {"new": "waiting", "preempted": "to resume"}
    return ", ".join(f"{counts[s]} {words.get(s, s)}" for s in ORDER if counts.get(s)) or "no runs"
