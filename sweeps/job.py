"""What a Slurm job does: work its share of a submission off, then decide whether it has to be requeued.

    python -m sweeps.job work  SUBMISSION ARRAY              each process of a job step
    python -m sweeps.job after SUBMISSION ARRAY CODE SHOWN   the batch script, once the step has ended
    python -m sweeps.job then  SUBMISSION STEPS              once all arrays have ended

Which runs are left is read from the ledger at every start, so it makes no difference whether a job starts for
the first time, after a preemption, after its time limit, or because its node died.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sweeps import slurm
from sweeps.errors import NoGpuError, SweepError
from sweeps.jobview import JobView, say
from sweeps.layout import plan_layout
from sweeps.lease import STALE_SECONDS
from sweeps.ledger import MAX_ATTEMPTS, Ledger
from sweeps.local import LocalQueue
from sweeps.packing import shares
from sweeps.session import FAIR_SECONDS, Session, read_session
from sweeps.session import read_record as read_sweep_record
from sweeps.submission import (
    EXIT_REQUEUE,
    LOGS,
    SESSION,
    Diary,
    Submission,
    read_diary,
    read_record,
    read_submission,
    write_diary,
)
from sweeps.sweepfile import SweepExecution
from trainer.errors import DeviceError, TrainerError

EXIT_DONE, EXIT_GAVE_UP, EXIT_USER = 0, 1, 2
NOTICE = "SIGUSR2"
"""What Slurm sends before the time limit, and before a preemption where the site asks for that."""
REQUEUED_BY_SLURM = ("PENDING", "REQUEUED", "CONFIGURING", "REQUEUE_HOLD", "REQUEUE_FED")


@dataclass(frozen=True)
class Share:
    """One job of a submission."""

    submission: Submission
    array: int
    index: int

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Runs that it may train, in this order."""
        return self.submission.arrays[self.array].jobs[self.index]

    @property
    def name(self) -> str:
        """Its place in the submission."""
        return f"{self.array}-{self.index}"

    @property
    def diary(self) -> Path:
        """Where it keeps its diary."""
        return self.submission.diary(self.array, self.index)

    @property
    def ledger(self) -> Ledger:
        """The run folders."""
        return Ledger(self.submission.results)

    def open_runs(self) -> list[str]:
        """Runs that still have to be trained, by this job or by others that are at it."""
        states = self.ledger.scan(self.run_ids)
        resumable = read_session(self.submission.path / SESSION).resumable
        return [
            run_id
            for run_id, state in states.items()
            if state.state in (*resumable, "running")
            or (state.state == "failed" and state.failures < MAX_ATTEMPTS)
        ]

    def progress(self) -> int:
        """Steps that are safe, over all its runs, and failed attempts: each brings their end nearer."""
        states = self.ledger.scan(self.run_ids).values()
        return sum(
            state.failures + (state.step if state.result is not None else state.checkpoint or 0)
            for state in states
        )


def begin(share: Share) -> Diary:
    """Note a start, and whether anything was gained since the last one."""
    before, progress = read_diary(share.diary), share.progress()
    idle = before.idle + 1 if before.starts and progress <= before.progress else 0
    diary = Diary(
        starts=before.starts + 1,
        idle=idle,
        progress=progress,
        restart=_restarts(),
        job=slurm.this_job(os.environ),
        host=socket.gethostname(),
        started=time.time(),
    )
    write_diary(share.diary, diary)
    return diary


def _restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def out_of_budget(share: Share, start: int, idle: int) -> str | None:
    """Why a job may not have its start number `start`, after `idle` in a row that gained nothing; or None."""
    settings = share.submission.settings
    if start - 1 > settings.restarts:
        return f"requeued {start - 2} times (slurm.restarts = {settings.restarts})"
    if idle >= settings.idle_restarts:
        return f"no step gained in {idle} starts (slurm.idle_restarts = {settings.idle_restarts})"
    return None


def decide(diary: Diary, state: str | None, left: int, budget: str | None) -> tuple[str, str]:
    """What becomes of a job whose step has ended: ("end" | "requeue" | "wait" | "give up", why).

    Args:
        diary: its diary.
        state: Slurm's state of it.
        left: runs that are open.
        budget: why it may not be started again, or None.
    """
    if not left:
        return "end", "all its runs are over"
    if diary.outcome == "finished":
        return "end", f"{left} of its runs failed, and only their user can mend that"
    if diary.outcome == "cancelled":
        return "end", "cancelled; its runs are resumable"
    if diary.outcome == "aborted":
        return "give up", diary.message or "aborted"
    if diary.outcome == "elsewhere":
        return "end", f"{left} of its runs are trained by other jobs"
    if state in ("CANCELLED", "COMPLETING") and diary.message != NOTICE:
        # A notice comes while the job runs.  Without one Slurm is ending it: because somebody cancelled it,
        # or to requeue it, which Slurm does by itself.
        return "end", "ended by Slurm (scancel?); its runs are resumable"
    if state in REQUEUED_BY_SLURM:
        return "wait", "requeued by Slurm"
    if budget is not None:
        return "give up", budget
    why = {
        "late": "its time is up", "interrupted": "told to stop", "broken": diary.message or "broken",
        None: "died without a word",
    }  # fmt: skip
    return "requeue", why.get(diary.outcome, str(diary.outcome))


def work(share: Share) -> int:
    """Train what is left of a job's share."""
    submission = share.submission
    main_process = int(os.environ.get("SLURM_PROCID", "0")) == 0
    diary = begin(share) if main_process else Diary()
    who = f"job {diary.job} on {diary.host}, start {diary.starts}" if main_process else "another process"
    print(f"{who}: {submission.name}", flush=True)
    if main_process and (why := out_of_budget(share, diary.starts, diary.idle)) is not None:
        _end(share, diary, "aborted", why)
        return EXIT_GAVE_UP
    session = share_session(share, diary)
    view, together = JobView(), submission.settings.processes > 1
    if together and main_process and diary.idle:
        blame(share, diary)
    if main_process:
        view.start_mirror(submission)
    try:
        if together:
            from sweeps.gang import train_together

            execution = SweepExecution.model_validate(submission.execution)
            outcome, message = train_together(session, execution, submission.settings, view)
        else:
            outcome, message = _train(submission, session, view)
    except (NoGpuError, DeviceError) as error:
        # A sick node: another one may do.
        outcome, message = "broken", str(error)
    except (SweepError, TrainerError) as error:
        outcome, message = "aborted", str(error)
    if main_process:
        # First what decides about a requeue: the mirror may take as long as its bound, and a kill may come.
        _end(share, diary, outcome, message)
        over = outcome in ("finished", "elsewhere")
        view.close(not over, _left(session) + submission.settings.notice / 2)
    code = EXIT_GAVE_UP if outcome in ("aborted", "broken") else EXIT_DONE
    if code and together:
        from sweeps.gang import end_process

        end_process()
    return code


def blame(share: Share, diary: Diary) -> None:
    """Count a failure of the run in which the last start died and nothing was gained.

    Processes that train together are killed together, and nobody of them is left to say so: without this
    a run that always kills them would keep those behind it in the list waiting for ever.
    """
    line = f"its processes were killed (start {diary.starts - 1} of the job) and no step was gained"
    session = read_session(share.submission.path / SESSION).session
    for run_id in share.run_ids:
        status, holder = share.ledger.died_in(run_id)
        if status == "running" and holder is not None and holder.startswith(f"{session}.{share.name}."):
            share.ledger.count_failure(run_id, line, session)
            say(f"{run_id}: {line}")


def _left(session: Session) -> float:
    """Seconds until the notice."""
    return (session.deadline or time.time()) - time.time()


def share_session(share: Share, diary: Diary) -> Session:
    """The launch that one start of a job is: its runs, its deadline, a name of its own."""
    whole = read_session(share.submission.path / SESSION)
    mine = set(share.run_ids)
    end = slurm.end_time(diary.job) if diary.job is not None else None
    end = end or time.time() + share.submission.arrays[share.array].minutes * 60
    deadline = end - share.submission.settings.notice
    return replace(
        whole,
        # Its own name: what a dead start left behind is taken over, not waited for.
        session=f"{whole.session}.{share.name}.{diary.starts}",
        runs=[pair for pair in whole.runs if pair[0] in mine],
        deadline=deadline,
        # However short jobs are, a fresh one begins something.
        fair_seconds=min(FAIR_SECONDS, (deadline - time.time()) / 2),
    )


def _train(submission: Submission, session: Session, view: JobView) -> tuple[str, str | None]:
    execution = SweepExecution.model_validate(submission.execution)
    layout = plan_layout(execution, submission.settings.cpus)
    session = replace(session, execution=layout.execution.model_dump(mode="json"))
    print(f"{layout.said()}; until {time.strftime('%H:%M:%S', time.localtime(session.deadline))}", flush=True)
    queue = LocalQueue(
        session,
        layout,
        view,
        logs=submission.path / LOGS / session.session,
        # A lease that nobody renews is stale by then, so what is still held is held by the living.
        patience=STALE_SECONDS + 15,
        # The rest of the notice is for the batch script to have the job requeued.
        grace=0.8 * submission.settings.notice,
    )
    outcome = queue.run()
    if queue.aborted is not None:
        return "broken" if queue.no_device else "aborted", queue.aborted
    return outcome, queue.signal


def _end(share: Share, diary: Diary, outcome: str, message: str | None) -> None:
    say(f"{outcome}{f': {message}' if message else ''}")
    write_diary(share.diary, replace(diary, outcome=outcome, message=message))


def after(share: Share, code: int, shown: str) -> int:
    """Decide about a requeue once the job step has ended; the exit code of the job, or EXIT_REQUEUE.

    Args:
        share: the job.
        code: exit code of its step.
        shown: what `scontrol show job --oneliner` says of it.
    """
    diary, state = read_diary(share.diary), slurm.state_in(shown)
    if diary.restart != _restarts():
        # The step died before it could begin.
        diary = begin(share)
    idle = diary.idle + 1 if share.progress() <= diary.progress else 0
    budget = out_of_budget(share, diary.starts + 1, idle)
    what, why = decide(diary, state, len(share.open_runs()), budget)
    say(f"{what}: {why} (step's exit code {code}, Slurm says {state})")
    write_diary(share.diary, replace(diary, outcome=diary.outcome or "died", message=f"{what}: {why}"))
    if what in ("end", "give up"):
        hand_on(share.submission)
    return {"requeue": EXIT_REQUEUE, "give up": EXIT_GAVE_UP}.get(what, EXIT_DONE)


def hand_on(submission: Submission) -> None:
    """Give what an array no longer needs of the jobs at once to those that have jobs left."""
    diaries = [
        [read_diary(submission.diary(place, index)) for index in range(len(array.jobs))]
        for place, array in enumerate(submission.arrays)
    ]
    left = [
        sum(not (diary.message or "").startswith(("end", "give up")) for diary in array) for array in diaries
    ]
    if len(left) == 1:
        return
    at_once = shares(left, submission.settings.jobs)
    # An array that is not queued yet keeps what it is submitted with.
    for number, array, n in zip(read_record(submission).job_ids, submission.arrays, at_once, strict=False):
        if n > array.at_once:
            try:
                slurm.throttle(number, n)
            except SweepError as error:
                say(f"array {number} keeps its {array.at_once} jobs at once: {error}")


def then(submission: Submission, steps: Sequence[str]) -> int:
    """What follows the arrays: fit, draw, report, fill the mirror.  A step that fails stops no other."""
    worst = EXIT_DONE
    results = ["--results", str(submission.results)]
    commands = {
        "sync": ["sweeps", "sync", submission.argument, *results],
        "fit": ["analysis", "fit", submission.sweep, *results],
        "figures": ["analysis", "figures", submission.sweep, *results],
        "report": ["analysis", "report", submission.sweep, *results],
    }
    record = read_sweep_record(submission.results, submission.sweep)
    states = Ledger(submission.results).scan(record["run_ids"] if record else submission.run_ids).values()
    missing = sum(state.state != "done" for state in states)
    say(f"{len(states) - missing} of {len(states)} runs of the sweep are done, {missing} missing")
    for step in steps:
        say(step)
        code = subprocess.run([sys.executable, "-m", *commands[step]], check=False).returncode
        worst = max(worst, code)
    return worst


def main(argv: list[str] | None = None) -> int:
    """Do one of the three; a user's mistake is one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.job")
    parser.add_argument("what", choices=("work", "after", "then"))
    parser.add_argument("submission", type=Path)
    parser.add_argument("rest", nargs="*")
    options = parser.parse_args(argv)
    try:
        submission = read_submission(options.submission)
        if options.what == "then":
            return then(submission, options.rest)
        index = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
        share = Share(submission, int(options.rest[0]), index)
        return work(share) if options.what == "work" else after(share, int(options.rest[1]), options.rest[2])
    except (SweepError, TrainerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER


if __name__ == "__main__":
    sys.exit(main())
