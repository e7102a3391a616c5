"""Slurm's own commands: what a site allows, what is queued, what has ended; requeue and cancel.

Slurm is asked and never believed: whether a run is finished is read from its folder.  Accounting (sacct) is
used where a site has it; nothing needs it.
"""

from __future__ import annotations

import getpass
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sweeps.errors import SweepError

TIMEOUT_SECONDS = 30.0
ACCOUNTING_SECONDS = 10.0
UNLIMITED = ("UNLIMITED", "NONE", "INFINITE", "")
LIVE = frozenset(
    "PENDING CONFIGURING RUNNING COMPLETING SUSPENDED STOPPED REQUEUED REQUEUE_FED REQUEUE_HOLD "
    "SPECIAL_EXIT RESIZING SIGNALING STAGE_OUT RESV_DEL_HOLD".split()
)
"""States of a job that runs or will run (again)."""


@dataclass(frozen=True)
class Limits:
    """What a site allows."""

    max_array_size: int
    """Array indices end below this (MaxArraySize); 0: no arrays."""
    max_jobs: int
    """Jobs that the controller keeps (MaxJobCount)."""
    max_submit: int | None
    """Jobs that this user may have queued (MaxSubmitJobs of the association or its QOS), where known."""
    max_minutes: int | None
    """Longest job of the partition; None: no limit."""
    accounting: bool
    """Whether there is a history to ask (sacct)."""


@dataclass(frozen=True)
class Job:
    """One job, or one task of an array, as Slurm sees it."""

    id: str
    """123, or 123_4 for a task of an array."""
    name: str
    """Job name."""
    state: str
    """Slurm's state, in full letters."""
    reason: str = ""
    """Why it waits, or where it runs."""

    @property
    def live(self) -> bool:
        """Whether it runs or will run."""
        return self.state in LIVE


def has_slurm() -> bool:
    """Whether this machine can talk to a Slurm."""
    return shutil.which("sbatch") is not None


def command(args: Sequence[str], timeout: float = TIMEOUT_SECONDS) -> str:
    """Run one of Slurm's commands; SweepError, in one line, where it fails or does not answer."""
    try:
        done = subprocess.run(args, capture_output=True, text=True, timeout=timeout, check=False)
    except FileNotFoundError:
        raise SweepError(
            f"there is no Slurm here ({args[0]} is not on the PATH); log in to a cluster, "
            f"or use --executor local"
        ) from None
    except subprocess.TimeoutExpired:
        raise SweepError(f"{args[0]} did not answer within {timeout:.0f} s; is the controller up?") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        # The last line may only say where there is help.
        lines = [line for line in lines if not re.search(r"Try .*--help", line)] or lines
        said = lines[-1] if lines else f"exit code {done.returncode}"
        raise SweepError(f"{args[0]}: {said.removeprefix(f'{args[0]}: ').removeprefix('error: ')}")
    return done.stdout


def read_limits(partition: str | None, account: str | None = None, qos: str | None = None) -> Limits:
    """Ask the controller; SweepError where the partition is unknown or down."""
    config = _pairs(command(["scontrol", "show", "config"]))
    accounting = not config.get("AccountingStorageType", "").endswith("/none")
    minutes = _partition_minutes(partition)
    return Limits(
        max_array_size=int(config.get("MaxArraySize") or 1001),
        max_jobs=int(config.get("MaxJobCount") or 10_000),
        max_submit=_max_submit(config.get("ClusterName", ""), account, qos) if accounting else None,
        max_minutes=minutes,
        accounting=accounting,
    )


def _pairs(text: str) -> dict[str, str]:
    """The lines `Key = value` of `scontrol show config`."""
    found = (re.match(r"(\w+)\s*=\s*(.*?)\s*$", line) for line in text.splitlines())
    return {match[1]: match[2] for match in found if match}


def _partition_minutes(name: str | None) -> int | None:
    partitions = {}
    for line in command(["scontrol", "show", "partition", "--oneliner"]).splitlines():
        fields = dict(part.split("=", 1) for part in line.split() if "=" in part)
        partitions[fields.get("PartitionName", "")] = fields
    chosen = name or next((key for key, fields in partitions.items() if fields.get("Default") == "YES"), None)
    if chosen is None:
        raise SweepError(
            f"the cluster has no default partition; set slurm.partition to one of {', '.join(partitions)}"
        )
    minutes: list[int | None] = []
    for one in chosen.split(","):
        if one not in partitions:
            raise SweepError(f"slurm.partition = '{one}': there are {', '.join(sorted(partitions))}")
        if partitions[one].get("State") not in ("UP", None):
            raise SweepError(f"partition '{one}' is {partitions[one]['State']}: it takes no jobs")
        limit = partitions[one].get("MaxTime", "")
        minutes.append(None if limit in UNLIMITED else _minutes(limit))
    known = [limit for limit in minutes if limit is not None]
    return min(known) if known else None


def _minutes(written: str) -> int:
    days, _, clock = written.rpartition("-")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return (int(days or 0) * 24 + hours) * 60 + minutes + (seconds > 0)


def _max_submit(cluster: str, account: str | None, qos: str | None) -> int | None:
    """The smallest MaxSubmitJobs of the user's association and its QOS; None where nobody sets or says it."""
    user = getpass.getuser()

    def ask(*query: str) -> list[list[str]]:
        text = command(["sacctmgr", "-nP", "show", *query], ACCOUNTING_SECONDS)
        return [line.split("|") for line in text.splitlines()]

    try:
        accounts = [account] if account else [row[0] for row in ask("user", user, "format=DefaultAccount")]
        where = [f"user={user}", f"cluster={cluster}", f"account={','.join(accounts)}"]
        rows = ask("assoc", *where, "format=MaxSubmitJobs,DefaultQOS")
        names = {qos} if qos else {row[1] or "normal" for row in rows}
        found = [row[0] for row in rows]
        if names:
            found += [row[0] for row in ask("qos", ",".join(sorted(names)), "format=MaxSubmitPU")]
    except SweepError:
        return None
    return min((int(word) for word in found if word.isdigit()), default=None)


def queue(prefix: str) -> list[Job]:
    """This user's jobs whose names begin with `prefix`, array tasks one by one; ended ones while known."""
    text = command(
        ["squeue", "-h", "-r", "--states=all", f"--user={getpass.getuser()}", "-o", "%F|%K|%j|%T|%R"]
    )
    jobs = []
    for line in text.splitlines():
        number, index, name, state, reason = line.split("|", 4)
        if name.startswith(prefix):
            jobs.append(Job(_job_id(number, index), name, state, reason.strip("()")))
    return jobs


def queued_jobs() -> int:
    """How many jobs this user has in the queue, each task of an array for one."""
    return len(command(["squeue", "-h", "-r", f"--user={getpass.getuser()}", "-o", "%A"]).split())


def history(numbers: Iterable[str]) -> dict[str, Job]:
    """What accounting says of jobs, the last attempt of each; empty where there is none or it is slow."""
    wanted = sorted(set(numbers))
    if not wanted or shutil.which("sacct") is None:
        return {}
    query = ["sacct", "-nPXD", "-j", ",".join(wanted), "--format=JobID,JobName,State,Start"]
    try:
        text = command(query, ACCOUNTING_SECONDS)
    except SweepError:
        return {}
    found: dict[str, tuple[str, Job]] = {}
    for line in text.splitlines():
        job_id, name, state, start = line.split("|", 3)
        # A line of an array that has not begun stands for many tasks; squeue names those.
        if "[" in job_id:
            continue
        word = state.split()[0]
        word = "PENDING" if word in ("PREEMPTED", "REQUEUED", "NODE_FAIL") else word
        order = "" if start == "Unknown" else start
        if job_id not in found or order >= found[job_id][0]:
            found[job_id] = (order, Job(job_id, name, word))
    return {job_id: job for job_id, (_, job) in found.items()}


def state_in(shown: str) -> str | None:
    """The state of a job from what `scontrol show job --oneliner` says; None where it says nothing.

    A job that is ended for its time limit counts as TIMEOUT from the first moment.
    """
    if "Reason=TimeLimit" in shown:
        return "TIMEOUT"
    match = re.search(r"JobState=(\w+)", shown)
    return match[1] if match else None


def end_time(job_id: str) -> float | None:
    """When a job's time limit ends it (epoch); None where nobody says."""
    try:
        text = command(["scontrol", "show", "job", "--oneliner", job_id])
    except SweepError:
        return None
    match = re.search(r"EndTime=(\d{4}-\S+)", text)
    return datetime.fromisoformat(match[1]).timestamp() if match else None


def throttle(number: str, at_once: int) -> None:
    """Change how many jobs of an array may run at the same time."""
    command(["scontrol", "update", f"jobid={number}", f"ArrayTaskThrottle={at_once}"])


def release(job_ids: Sequence[str]) -> None:
    """Let jobs that Slurm holds back be scheduled again."""
    for job_id in job_ids:
        command(["scontrol", "release", job_id])


def cancel_pending(job_ids: Sequence[str]) -> None:
    """Drop the jobs of some arrays (or single jobs) that have not begun; one call for each array."""
    for number in sorted({job_id.partition("_")[0] for job_id in job_ids}, key=int):
        try:
            command(["scancel", "--state=PENDING", number])
        except SweepError as error:
            # It began, or ended, in between.
            if "Invalid job id" not in str(error):
                raise


def this_job(environment: Mapping[str, str]) -> str | None:
    """The id of the job that this process belongs to, 123 or 123_4."""
    if "SLURM_JOB_ID" not in environment:
        return None
    number = environment.get("SLURM_ARRAY_JOB_ID")
    if number is None:
        return environment["SLURM_JOB_ID"]
    return f"{number}_{environment['SLURM_ARRAY_TASK_ID']}"


def _job_id(number: str, index: str) -> str:
    return f"{number}_{index}" if index.isdigit() else number
