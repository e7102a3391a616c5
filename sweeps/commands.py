"""What the smaller commands do: list, status, show, logs, retry, cancel, sync."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from sweeps.attach import is_attached
from sweeps.errors import SweepError
from sweeps.grid import expand
from sweeps.identity import UNKNOWN
from sweeps.layout import layout_or_guess
from sweeps.lease import Lease
from sweeps.ledger import LOG, Ledger, RunState
from sweeps.mirrored import default_uri, is_mirrored
from sweeps.overview import look
from sweeps.queued import as_json as jobs_json
from sweeps.queued import lines as job_lines
from sweeps.queued import look_up
from sweeps.report import last_lines, state_counts, status_rows, status_table
from sweeps.session import ask_to_stop, read_record, recorded_sweeps, stop_mark, write_record
from sweeps.slurm import cancel_pending
from sweeps.sweepfile import find_sweep, load_sweep, read_sweep, sweep_files
from sweeps.text import plural, table
from trainer.errors import TrainerError
from trainer.messages import nearest
from trainer.rundir import CONFIG, ERROR, METRICS, read_json, read_status

BYTES_A_LINE = 400
QUEUE_SECONDS = 10.0
FOLLOW_SECONDS = 0.5


def list_sweeps(results: Path, as_json: bool) -> None:
    """Print the sweeps that come with the program, those that cannot be read as well."""
    rows: list[dict[str, Any]] = []
    for path in sweep_files():
        try:
            sweep = read_sweep(path)
            record = read_record(results, sweep.name)
            rows.append(
                {
                    "sweep": sweep.name,
                    "runs": len(expand(sweep)),
                    "description": sweep.description,
                    "started": record is not None,
                }
            )
        except (SweepError, TrainerError) as error:
            broken = {"sweep": path.stem, "runs": None, "description": f"broken: {error}", "started": False}
            rows.append(broken)
    if as_json:
        print(json.dumps(rows))
        return
    cells = [
        (
            row["sweep"],
            "-" if row["runs"] is None else str(row["runs"]),
            "yes" if row["started"] else "",
            row["description"],
        )
        for row in rows
    ]
    print(table(("sweep", "runs", "started", "description"), cells, frozenset({"runs"})))


def status_of(sweep: str | None, results: Path, as_json: bool) -> tuple[list[str], bool]:
    """Print the status; returns a line for each corrupt run, and whether all runs are done."""
    if sweep is None:
        return _all_sweeps(results, as_json)
    overview = look(load_sweep(sweep), results)
    rows = status_rows(overview, overview.plan(layout_or_guess(overview.sweep.execution)))
    counts = state_counts([overview.states.get(run_id, RunState()) for run_id in overview.ids])
    queued = look_up(results, overview.sweep.name)
    if as_json:
        facts = {"sweep": overview.sweep.name, "counts": counts, "runs": rows, "slurm": jobs_json(queued)}
        print(json.dumps(facts))
    else:
        print(status_table(rows))
        print("\n".join([f"{plural(len(rows), 'run')}: {_said(counts)}", *job_lines(queued)]))
    for line in overview.problems if not as_json else ():
        print(f"warning: {line}", file=sys.stderr)
    return overview.corrupt, counts.get("done", 0) == len(rows)


def _all_sweeps(results: Path, as_json: bool) -> tuple[list[str], bool]:
    ledger = Ledger(results)
    rows: list[dict[str, Any]] = []
    corrupt, done = [], True
    for name in recorded_sweeps(results):
        record = read_record(results, name) or {"run_ids": []}
        states = ledger.scan(record["run_ids"])
        counts = state_counts(states)
        corrupt += [state.message for state in states.values() if state.state == "corrupt" and state.message]
        done = done and counts.get("done", 0) == len(states)
        rows.append({"sweep": name, "runs": len(states), "counts": counts})
    if as_json:
        print(json.dumps(rows))
    elif not rows:
        print(f"nothing was run in {results} yet; see `python -m sweeps list`")
    else:
        cells = [(row["sweep"], str(row["runs"]), _said(row["counts"])) for row in rows]
        print(table(("sweep", "runs", "states"), cells, frozenset({"runs"})))
    return list(dict.fromkeys(corrupt)), done


def _said(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {state}" for state, n in counts.items()) or "none"


def show_run(target: str, results: Path, as_json: bool) -> None:
    """Print everything about one run; SweepError where its result is corrupt, after the rest is printed."""
    ledger = Ledger(results)
    run_id = ledger.find(target)
    folder = ledger.run_dir(run_id)
    state = ledger.state(run_id)
    facts: dict[str, Any] = {
        "id": run_id,
        "folder": str(folder),
        "state": state.state,
        "attempts": state.attempt,
        "failures": state.failures,
        "checkpoint_step": state.checkpoint,
        "owner": state.owner,
        "message": state.message,
        "status": read_status(folder),
        "config": read_json(folder / CONFIG),
        "result": state.result,
    }
    if as_json:
        print(json.dumps(facts))
    else:
        for key, value in facts.items():
            shown = json.dumps(value, indent=1) if isinstance(value, dict) else value
            print(f"{key:16} {'-' if shown is None else shown}")
    if state.state == "corrupt":
        raise SweepError(str(state.message))


def logs_of(target: str, results: Path, follow: bool, lines: int) -> None:
    """Print the end of the logs of a run or of each run of a sweep, and with `follow` what comes."""
    ledger = Ledger(results)
    ids = _runs_of(target, ledger)
    begun = [run_id for run_id in ids if ledger.run_dir(run_id).is_dir()]
    # One that was queued begins when Slurm has room, and can be followed until then.
    if not begun and not (follow and read_record(results, Path(target).stem) is not None):
        raise SweepError(f"no run of '{target}' has been started in {results}; there is nothing to show")
    files = {path: run_id for run_id in begun for path in _log_files(ledger, run_id)}
    for path, run_id in files.items():
        print(f"==> {run_id} {path.name}")
        print("\n".join(last_lines(path, lines * BYTES_A_LINE).splitlines()[-lines:]))
    if follow:
        _follow(ledger, ids, files, Path(target).stem)


def _log_files(ledger: Ledger, run_id: str) -> list[Path]:
    folder = ledger.run_dir(run_id)
    names = [METRICS, LOG, *([ERROR] if ledger.state(run_id).state == "failed" else [])]
    return [folder / name for name in names if (folder / name).is_file()]


def _follow(ledger: Ledger, ids: list[str], files: dict[Path, str], sweep: str) -> None:
    """Print what is added to the logs until every run has ended, or all were told to stop and have."""
    positions = {path: path.stat().st_size for path in files}
    look_at = time.monotonic() + QUEUE_SECONDS
    asked = stop_mark(ledger.results, sweep)
    of_study = "study" in (read_record(ledger.results, sweep) or {})
    over = {"done", "diverged", "failed", "corrupt", *(("pruned",) if of_study else ())}
    try:
        while True:
            # Asked before the files are read: what a run wrote last is shown.
            states = {state.state for state in ledger.scan(ids).values()}
            stopped = stop_mark(ledger.results, sweep) != asked and "running" not in states
            for run_id in ids:
                for path in (ledger.run_dir(run_id) / name for name in (METRICS, LOG)):
                    if not path.is_file():
                        continue
                    with open(path, "rb") as file:
                        # A resumed run cuts its metrics back to the checkpoint.
                        file.seek(min(positions.get(path, 0), path.stat().st_size))
                        text = file.read().decode(errors="replace")
                        positions[path] = file.tell()
                    for line in text.splitlines():
                        print(f"{run_id} {line}" if len(ids) > 1 else line, flush=True)
            if stopped or states <= over:
                return
            if "running" not in states and time.monotonic() > look_at:
                look_at = time.monotonic() + QUEUE_SECONDS
                if told := _queue_is_empty(ledger.results, sweep):
                    print("\n".join(told))
                    return
            time.sleep(FOLLOW_SECONDS)
    except KeyboardInterrupt:
        return


def _queue_is_empty(results: Path, sweep: str) -> list[str]:
    """What there is to say of a sweep that was queued and of which no job is left; else nothing."""
    from sweeps.queued import lines, look_up

    queued = look_up(results, sweep)
    return lines(queued) if queued.jobs and not queued.live and queued.problem is None else []


def retry(target: str, results: Path) -> None:
    """Reset the failed, diverged and corrupt runs of a sweep, or one run."""
    ledger = Ledger(results)
    reset, busy = 0, []
    for run_id in _runs_of(target, ledger):
        state = ledger.state(run_id)
        if state.state == "running":
            busy.append(run_id)
        if state.state not in ("failed", "diverged", "corrupt"):
            continue
        lease = Lease(ledger.run_dir(run_id))
        if not lease.claim():
            busy.append(run_id)
            continue
        try:
            line = ledger.reset(run_id)
        finally:
            lease.release()
        if line is not None:
            print(line)
            reset += 1
    if busy:
        print(f"{plural(len(busy), 'run')} under way left alone")
    print(f"{plural(reset, 'run')} will be tried again by 'run' or 'search' of a sweep that has them")


def cancel(sweep: str, results: Path) -> None:
    """Ask the workers of a sweep to stop."""
    path = find_sweep(sweep)
    ledger = Ledger(results)
    record = read_record(results, path.stem)
    running = [s for s in ledger.scan(record["run_ids"]).values() if s.state == "running"] if record else []
    if not running and not any(job.live for job in look_up(results, path.stem).jobs):
        print(f"no run of {path.stem} is under way")
        # A launcher may be preparing its corpus; it heeds the request as well.
    ask_to_stop(results, path.stem)
    if running:
        owners = sorted({str(state.owner) for state in running})
        shown = f"{', '.join(owners[:4])}{', ...' if len(owners) > 4 else ''}"
        print(f"asked {plural(len(running), 'run')} ({shown}) to checkpoint and stop; they stay resumable")
    _drop_jobs(results, path.stem)


def _drop_jobs(results: Path, sweep: str) -> None:
    """Take the jobs that wait out of Slurm's queue; those that run have been asked, and end by themselves."""
    queued = look_up(results, sweep)
    if queued.problem is not None:
        raise SweepError(f"waiting jobs could not be dropped: {queued.problem}; repeat this command")
    waiting = [job.job_id for job in queued.live if job.job_id is not None and job.state != "RUNNING"]
    waiting += [job.id for job in queued.others if job.state != "RUNNING"]
    if waiting:
        cancel_pending(waiting)
        print(f"dropped {plural(len(waiting), 'waiting job')} from the queue")


def sync(sweep: str, results: Path, uri: str | None, if_run: bool = False, named: bool = False) -> None:
    """Mirror a sweep into MLflow now.

    Args:
        sweep: name or file.
        results: results folder.
        uri: tracking URI; None for the sweep's, or the default.
        if_run: leave one that was never run in this folder alone, and what is known to be mirrored.
        named: begin the line that is printed with the sweep's name.
    """
    if if_run and read_record(results, Path(sweep).stem) is None:
        print(f"{sweep}: never run in {results}; nothing to mirror")
        return
    file = load_sweep(sweep)
    record = read_record(results, file.name)
    if record is None:
        overview = look(file, results)
        if not overview.ids:
            raise SweepError(f"{file.name} has not been searched in {results}; nothing to mirror")
        if overview.problems:
            raise SweepError(overview.problems[0])
        write_record(results, file.name, file.description, file.path, overview.ids)
    where, experiment = uri or file.mlflow.uri or default_uri(results), file.mlflow.experiment or file.name
    prefix = f"{file.name}: " if named else ""
    if if_run and record is not None:
        known = is_mirrored(Ledger(results), record["run_ids"], file.name, experiment, where)
        if known and is_attached(results, file.name, experiment, where):
            print(f"{prefix}mirrored already")
            return
    from sweeps.mirror import sync as mirror

    counts = mirror(results, file.name, experiment, where, wait=60.0, warn=_warn)
    if counts["busy"]:
        raise SweepError(f"MLflow at {where}: another process has been writing for a minute; try again later")
    said = f"{counts['created']} created, {counts['updated']} updated, {counts['unchanged']} unchanged"
    if "report" in counts:
        said += f"; report {'uploaded' if counts['report'] else 'unchanged'}"
    print(f"{prefix}{said}")


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)


def _runs_of(target: str, ledger: Ledger) -> list[str]:
    """The run ids that a sweep or (the beginning of) a run id means."""
    try:
        path = find_sweep(target)
    except SweepError as unknown:
        hexadecimal = all(letter in "0123456789abcdef" for letter in target)
        record = read_record(ledger.results, target) if "/" not in target else None
        if record is not None:
            return list(record["run_ids"])
        if not hexadecimal:
            hint = nearest(target, recorded_sweeps(ledger.results))
            raise (
                SweepError(f"no sweep or run '{target}'{hint}") if "did you" in hint else unknown
            ) from None
        return [ledger.find(target)]
    ids = look(load_sweep(str(path)), ledger.results).ids
    return [run_id for run_id in ids if run_id != UNKNOWN]
