"""How `status --watch` shows what it sees: a screen that fits any terminal, plain blocks, JSON lines."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeps.display import COLOURS, progress_texts
from sweeps.text import count, flops, plural
from sweeps.watch import Part, Trouble, Under, View, Watch, counted
from trainer.commandline import duration

TERMINAL_SECONDS, PLAIN_SECONDS = 2.0, 30.0
"""Default time between two looks, on a terminal and elsewhere."""
PLAIN_ROWS = 20
"""Most lines of one kind in a plain block."""
BAR, LONG_BAR, NAME = 10, 24, 18
"""Widths: bars at least and at most, names at least."""
_GAP = 2
_NEXT = 5
"""Waiting runs that are shown by name."""
_WORDS = {"running": "odd"}
_STYLES = {**COLOURS, "corrupt": "red", "stale": "magenta", "running": "magenta"}


def screen(view: View, width: int, height: int) -> Group:
    """The view in at most `height` lines of `width` columns: trouble, what runs, what waits, the sums."""
    foot = _foot(view, width, height)
    room = max(0, height - len(foot))
    title = time.strftime("%H:%M:%S", time.localtime(view.time)) + "  Ctrl-C leaves; the runs go on"
    lines: list[RenderableType] = []
    if room >= 8:
        lines.append(_line(Text(title, style="dim"), width))
        room -= 1
    each = 1 if all(len(_trouble_line(one, True)) <= width for one in view.trouble) else 2
    wanted = len(view.trouble) * each
    heads = 1 if view.running and room >= 6 else 0
    under = len(view.running) + heads
    top = wanted if wanted + under <= room else min(wanted, max(room // 2, room - under))
    trouble = _trouble_lines(view.trouble, top, each, width)
    lines += trouble
    room -= len(trouble)
    shown = len(view.running) if under <= room else max(0, room - heads - 1)
    if shown:
        lines.append(_running_table(view.running[:shown], width, bool(heads)))
    room -= shown + (heads if shown else 0)
    if shown < len(view.running) and room > 0:
        lines.append(_line(Text(f"and {len(view.running) - shown} more running"), width))
        room -= 1
    lines += [_line(Text(line, style="dim"), width) for line in _waiting_lines(view.waiting, room)]
    return Group(*lines, *foot[-height:])


def _trouble_line(one: Trouble, whole: bool) -> Text:
    text = Text(f"{_WORDS.get(one.state, one.state):8} ", style=_STYLES.get(one.state, ""))
    text.append(f"{one.name}  {one.message}", style="default")
    return text.append(f"  see: {one.command}", style="dim") if whole else text


def _trouble_lines(trouble: Sequence[Trouble], room: int, each: int, width: int) -> list[RenderableType]:
    shown = len(trouble) if len(trouble) * each <= room else max(0, room - 1) // each
    lines: list[RenderableType] = []
    for one in trouble[:shown]:
        lines.append(_line(_trouble_line(one, each == 1), width))
        if each == 2:
            see = f"  see: {one.command}"
            lines.append(_line(Text(see if len(see) <= width else one.command, style="dim"), width))
    if shown < len(trouble) and room > 0:
        rest = Counter(one.state for one in trouble[shown:])
        said = ", ".join(
            f"{n} {'more ' if shown else ''}{_WORDS.get(state, state)}" for state, n in rest.items()
        )
        lines.append(_line(Text(f"and {said}" if shown else said, style="red"), width))
    return lines


def _waiting_lines(names: Sequence[str], room: int) -> list[str]:
    if not names or room <= 0:
        return []
    shown = min(_NEXT, room if len(names) <= min(room, _NEXT) else room - 1)
    lines = [f"waiting  {name}" for name in names[:shown]]
    if (rest := len(names) - shown) > 0:
        lines.append(f"and {rest} more waiting" if shown else f"{rest} waiting")
    return lines


def _running_table(running: Sequence[Under], width: int, heads: bool) -> Table:
    """Columns as many as the width takes, the least important left out first."""
    cells = [_cells(one) for one in running]
    titles = dict(zip(cells[0], ("run", "", "step", "loss", "tok/s", "left", "id", "worker"), strict=True))
    widths = {
        key: max([cell_len(titles[key]) if heads else 0, *(cell_len(row[key]) for row in cells)])
        for key in titles
    }
    widths["bar"] = BAR
    least = min(widths["name"], max(min(NAME, width // 2), width // 3))
    chosen, spare = ["name"], width - least
    for key in ("step", "left", "loss", "bar", "speed", "id", "owner"):
        if not widths[key]:
            continue
        if _GAP + widths[key] <= spare:
            chosen.append(key)
            spare -= _GAP + widths[key]
        elif key != "bar":
            break
    name = least + min(widths["name"] - least, spare)
    bar = min(LONG_BAR, BAR + spare - (name - least))
    table = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
    order = [key for key in titles if key in chosen]
    for key in order:
        right = key in ("step", "loss", "speed", "left")
        fixed = {"name": name, "bar": bar}.get(key, widths[key])
        table.add_column(justify="right" if right else "left", no_wrap=True, overflow="ellipsis", width=fixed)
    if heads:
        table.add_row(*(Text(titles[key], style="dim") for key in order))
    for one, row in zip(running, cells, strict=True):
        done = ProgressBar(total=one.facts.get("total") or 1, completed=one.facts.get("step", 0), width=bar)
        table.add_row(*(done if key == "bar" else Text(row[key]) for key in order))
    return table


def _cells(one: Under) -> dict[str, str]:
    """The texts of one run; its bar is drawn."""
    facts = one.facts
    step = f"{facts['step']}/{facts['total']}" if "step" in facts else "starting"
    loss, speed = facts.get("loss"), facts.get("speed")
    return {
        "name": one.name,
        "bar": "",
        "step": "evaluating" if facts.get("phase") == "evaluate" else step,
        "loss": f"{loss:.4f}" if loss is not None else "",
        "speed": count(speed) if speed else "",
        "left": duration(one.left) if one.left is not None else "",
        "id": one.id,
        "owner": one.owner or "",
    }


def _foot(view: View, width: int, height: int) -> list[RenderableType]:
    """A line for each sweep, or for all together where there are too many, and how long it all takes."""
    parts = view.sweeps if len(view.sweeps) <= max(1, height // 4) else [_together(view.sweeps)]
    label = max((len(part.name) for part in parts), default=0)
    lines = [_part_line(part, label, width) for part in parts]
    if view.others and height >= 8:
        more = f"{plural(view.others, 'more sweep' if parts else 'sweep')} with nothing to do"
        lines.append(_line(Text(f"{more}: {counted(view.others_counts)}", style="dim"), width))
    lines.append(_line(Text(view.said, style="bold"), width))
    return lines


def _together(parts: Sequence[Part]) -> Part:
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.counts)
    whole = sum(part.flops for part in parts) if all(part.flops for part in parts) else 0
    runs = [sum(part.counts.values()) for part in parts]
    weights = [float(part.flops) for part in parts] if whole else [float(n) for n in runs]
    share = sum(part.share * weight for part, weight in zip(parts, weights, strict=True)) / max(
        1.0, sum(weights)
    )
    return Part(plural(len(parts), "sweep"), "", dict(counts), whole, share)


def _part_line(part: Part, label: int, width: int) -> RenderableType:
    name, counts = f"{part.name:{label}}", counted(part.counts)
    # A sweep is not finished before it is: 99.9 % are not 100 %.
    percent = f"{math.floor(100 * part.share)} %"
    of = f" of {flops(part.flops)} FLOPs" if part.flops else " of the runs"
    for share in (percent + of, percent):
        for bar in (LONG_BAR, BAR):
            if len(name) + len(share) + len(counts) + bar + 3 * _GAP <= width:
                row = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
                row.add_row(name, ProgressBar(total=1.0, completed=part.share, width=bar), share, counts)
                return row
    return _line(Text(f"{name}  {percent}  {counts}"), width)


def _line(text: Text, width: int) -> Text:
    text.no_wrap = True
    text.truncate(max(1, width), overflow="ellipsis")
    return text


def block(view: View) -> str:
    """The view as plain lines, for a log: the sums first, then each run."""
    clock = time.strftime("%H:%M:%S", time.localtime(view.time))
    lines = [f"{clock}  {view.said}"]
    for part in view.sweeps:
        of = f"{flops(part.flops)} FLOPs" if part.flops else "the runs"
        lines.append(f"  {part.name}: {counted(part.counts)}; {math.floor(100 * part.share)} % of {of}")
    lines += [f"  {_trouble_line(one, True).plain}" for one in view.trouble[:PLAIN_ROWS]]
    if len(view.trouble) > PLAIN_ROWS:
        lines.append(f"  and {len(view.trouble) - PLAIN_ROWS} more that failed, diverged or are stale")
    for one in view.running[:PLAIN_ROWS]:
        steps, loss, speed, left = progress_texts(one.facts, one.left or 0.0)
        words = (one.name, steps, loss, speed, left if one.left is not None else "", one.id, one.owner or "")
        lines.append("  running  " + "  ".join(filter(None, words)))
    if len(view.running) > PLAIN_ROWS:
        lines.append(f"  and {len(view.running) - PLAIN_ROWS} more running")
    return "\n".join(lines)


def watch(results: Path, sweeps: Sequence[str], interval: float | None, as_json: bool) -> bool:
    """Follow the ledger until nothing is left to do or Ctrl-C; returns whether every run is done.

    Args:
        results: results folder.
        sweeps: names or files; none: all that were recorded.
        interval: seconds between two looks; None for the default.
        as_json: print a JSON object a line, wherever it goes.
    """
    # A terminal that is told to end the program gets its cursor and its screen back as well.
    signal.signal(signal.SIGTERM, _leave)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    console = Console(highlight=False, markup=False)
    live = sys.stdout.isatty() and not console.is_dumb_terminal and not as_json
    try:
        follower = Watch(results, sweeps)
        if live:
            return _on_terminal(follower, console, interval or TERMINAL_SECONDS)
        return _in_lines(follower, interval or PLAIN_SECONDS, _json if as_json else block)
    except KeyboardInterrupt:
        # Nothing has been seen yet.
        return False
    except BrokenPipeError:
        # Whoever read has enough; Python must not find that out once more when it closes the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False


def _leave(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _on_terminal(follower: Watch, console: Console, interval: float) -> bool:
    view, ended = follower.look(), False
    try:
        # The other screen: whatever size the terminal takes, no remains of older tables are left on it.
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(screen(view, *console.size), refresh=True)
                if view.over:
                    ended = True
                    break
                time.sleep(interval)
                view = follower.look()
    except KeyboardInterrupt:
        # The terminal has put ^C there.
        pass
    console.print(screen(view, console.width, max(1, console.height - 2)))
    if not ended:
        console.print("left; the runs go on" if view.running else "left")
    return view.done


def _in_lines(follower: Watch, interval: float, show: Callable[[View], str]) -> bool:
    view, shown = follower.look(), -math.inf
    try:
        while not view.over:
            if time.monotonic() - shown >= interval:
                print(show(view), flush=True)
                shown = time.monotonic()
            # The end is noticed before the next block is due.
            time.sleep(min(interval, TERMINAL_SECONDS))
            view = follower.look()
    except KeyboardInterrupt:
        return view.done
    print(show(view), flush=True)
    return view.done


def _json(view: View) -> str:
    return json.dumps(asdict(view))
