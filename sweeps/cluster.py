"""submitit: writes and submits the batch scripts of a submission, and joins the processes of one job.

The only module that imports submitit.  A job's payload is not a pickle but a command line (the submission's
folder and two numbers): nothing in it is mutable, and no later change of the code reaches it.
"""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sweeps.errors import SweepError
from sweeps.packing import Array
from sweeps.slurm import command
from sweeps.submission import EXIT_REQUEUE, LOGS, THEN, Submission

if TYPE_CHECKING:
    from submitit.slurm.slurm import SlurmExecutor

THEN_MINUTES = 60


class Batch:
    """One batch script: an array of jobs, or the job that fits and draws after them.

    Raises SweepError where submitit does not take a setting, naming those that it takes.
    """

    def __init__(self, submission: Submission, minutes: int, program: str, **options: Any) -> None:
        self.submission, self.program = submission, program
        settings = submission.settings
        parameters = {
            **settings.sbatch(),
            "job_name": submission.name,
            "time": minutes,
            "signal_delay_s": settings.notice,
            "stderr_to_stdout": True,
            # The user's lines before ours, so that no module of theirs hides the snapshot.
            "setup": [*_TRAP, *settings.setup, *_setup(submission)],
            "srun_args": ["--kill-on-bad-exit=1", *settings.srun],
            "additional_parameters": {
                **settings.options,
                "requeue": True,
                # submitit would take another signal from the environment.
                "signal": f"USR2@{settings.notice}",
                **options.pop("more", {}),
            },
            **options,
        }
        map_count = parameters.pop("map_count", None)
        self._executor = _executor(submission.path / LOGS, settings.python)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._executor._internal_update_parameters(**parameters)
        except (TypeError, ValueError) as error:
            raise SweepError(f"slurm: {' '.join(str(error).split())[:300]}") from None
        if map_count is not None:
            self._executor.parameters["map_count"] = map_count

    @property
    def text(self) -> str:
        """The script, as sbatch gets it."""
        return self._executor._make_submission_file_text(self.program, "")

    def test(self) -> None:
        """Ask Slurm whether it would take the script; SweepError with its words where it would not."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "test.sh"
            path.write_text(self.text)
            command(["sbatch", "--test-only", str(path)])

    def submit(self) -> str:
        """Queue it; returns Slurm's number.  SweepError with Slurm's words where it is refused."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            return str(self._executor._submit_command(self.program).job_id)
        except (FailedJobError, FailedSubmissionError) as error:
            # The first line has the reason's code, the last one its sentence.
            lines = [line.partition("sbatch: error: ")[2] for line in str(error).splitlines()]
            said = "; ".join(dict.fromkeys(filter(None, lines))) or " ".join(str(error).split())[:300]
            raise SweepError(f"Slurm refuses jobs: {said}") from None


def array_batch(submission: Submission, number: int, array: Array) -> Batch:
    """The script of one array of a submission."""
    where = f"{shlex.quote(str(submission.path))} {number}"
    python = _python(submission)
    return Batch(
        submission,
        array.minutes,
        f"{python} -u -m sweeps.job work {where}",
        map_count=len(array.jobs),
        array_parallelism=array.at_once,
        teardown=_teardown(f"{python} -u -m sweeps.job after {where}"),
        srun_args=[
            "--kill-on-bad-exit=1",
            # Since 22.05 srun no longer takes it over from sbatch.
            f"--cpus-per-task={submission.settings.cpus}",
            *submission.settings.srun,
        ],
    )


def then_batch(submission: Submission, steps: str, after: list[str], minutes: int | None = None) -> Batch:
    """The script of the job that does `steps` once some jobs have ended, however they did.

    Args:
        submission: whose sweep is to be fitted.
        steps: what to do.
        after: Slurm's numbers of the jobs that it waits for.
        minutes: longest job that the partition takes; None for no limit.
    """
    python = _python(submission)
    return Batch(
        submission,
        min(THEN_MINUTES, minutes or THEN_MINUTES),
        f"{python} -u -m sweeps.job then {shlex.quote(str(submission.path))} {steps}",
        more={"dependency": f"afterany:{':'.join(after)}"} if after else {},
        job_name=f"{submission.name}{THEN}",
        nodes=1,
        ntasks_per_node=1,
        gpus_per_node=None,
        gres=None,
    )


def join_processes(visible_gpus: int) -> None:
    """Set RANK, WORLD_SIZE, MASTER_ADDR and so on for torch.distributed, from what Slurm says of this job.

    Args:
        visible_gpus: GPUs that this process sees.
    """
    from submitit.helpers import TorchDistributedEnvironment

    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    if visible_gpus == 1:
        # Where Slurm binds a GPU to each process, every process sees just its own.
        os.environ["LOCAL_RANK"] = "0"


def _executor(folder: Path, python: str | None) -> SlurmExecutor:
    from submitit.slurm.slurm import SlurmExecutor

    try:
        return SlurmExecutor(folder, python=python)
    except RuntimeError:
        raise SweepError(
            "there is no Slurm here (srun is not on the PATH); log in to a cluster, or use --executor local"
        ) from None


def _python(submission: Submission) -> str:
    return submission.settings.python or shlex.quote(sys.executable)


# The shell outlives the signals that its job step gets, to have the job requeued.
_TRAP = ("trap : TERM USR2",)


def _teardown(decide: str) -> list[str]:
    """Have a job requeued where the program says so, also after a process that died without a word.

    The shell talks to Slurm, since Python may live in a container that has none of Slurm's programs.  The
    controller may be away for a moment, or be quicker and have requeued the job itself.
    """
    show = 'timeout 30 scontrol show job --oneliner "$SLURM_JOB_ID"'
    return [
        "code=$?",
        f'{decide} "$code" "$({show} 2>/dev/null)"',
        "code=$?",
        f'[ "$code" = {EXIT_REQUEUE} ] || exit "$code"',
        "for pause in 0 2 4 6; do",
        '  sleep "$pause"',
        '  timeout 30 scontrol requeue "$SLURM_JOB_ID" && exit 0',
        f'  case "$({show} 2>/dev/null)" in *JobState=PENDING*) exit 0 ;; esac',
        "done",
        'echo "give up: could not be requeued; start the sweep again"',
        "exit 1",
    ]


def _setup(submission: Submission) -> list[str]:
    return [
        # First this code, then what the user had there, as for workers on this machine.
        f'export PYTHONPATH={shlex.quote(submission.source["path"])}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        # Else `python -m` would prefer whatever lies in the folder that the sweep was submitted from.
        "export PYTHONSAFEPATH=1",
    ]
