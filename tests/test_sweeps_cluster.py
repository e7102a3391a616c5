from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sweeps import slurm
from sweeps.clusterfile import SlurmSettings, minutes_from, slurm_settings
from sweeps.errors import SweepError
from sweeps.job import NOTICE, decide
from sweeps.packing import Array
from sweeps.source import current_source, keep_source
from sweeps.submission import Diary, Submission, new_submission, read_submission, write_submission
from trainer.provenance import source_sha256


@pytest.mark.parametrize(
    ("written", "minutes"),
    [(90, 90), ("90", 90), ("90:30", 91), ("01:30:00", 90), ("2-00", 2880), ("1-02:30:10", 1591)],
)
def test_times_are_read_as_sbatch_reads_them(written: Any, minutes: int) -> None:
    assert minutes_from(written) == minutes
    assert SlurmSettings(time=written, notice=10).time == minutes


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"partiton": "a"}, "did you mean 'partition'"),
        ({"time": "soon"}, "HH:MM:SS"),
        ({"time": 1, "notice": 60}, "no shorter than"),
        ({"gpus": 1, "gres": "gpu:1"}, "drop one"),
        ({"options": {"array": "0-3"}}, "options.array"),
        ({"options": {"no-requeue": True}}, "jobs have to be requeued"),
        ({"jobs": 0}, "jobs = 0"),
    ],
)
def test_settings_that_cannot_be_are_one_line(table: dict[str, Any], words: str) -> None:
    with pytest.raises(SweepError, match=words) as caught:
        slurm_settings(table, None, "mine.toml")
    assert "\n" not in str(caught.value)
    assert "mine.toml" in str(caught.value)


def test_a_sweep_file_is_read_with_its_slurm_table(tmp_path: Path) -> None:
    """Also where nothing is to be queued: a misspelt key is no surprise on the cluster."""
    from conftest import TINY

    from sweeps.sweepfile import read_sweep

    path = tmp_path / "tiny.toml"
    path.write_text(TINY + '[slurm]\npartitoin = "x"\n')
    with pytest.raises(SweepError, match=r"tiny.toml: slurm.* did you mean 'partition'"):
        read_sweep(path)
    path.write_text(TINY + '[slurm]\nsetup = "module load cuda"\n')
    assert slurm_settings(read_sweep(path).slurm, None, "x").setup == ("module load cuda",)


def test_what_slurm_says_is_told_without_its_hint_at_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "sbatch"
    program.write_text(
        "#!/bin/sh\necho \"sbatch: unrecognized option '--excldue=n1'\" >&2\n"
        "echo 'Try \"sbatch --help\" for more information' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SweepError, match=r"unrecognized option '--excldue=n1'$"):
        slurm.command(["sbatch", "--test-only", "x"])


def test_a_sweeps_table_goes_over_its_clusters(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text('partition = "long"\ncpus = 8\n')
    settings = slurm_settings({"cpus": 2}, str(file), "mine.toml")
    assert (settings.partition, settings.cpus) == ("long", 2)
    assert slurm_settings(None, "example", "mine.toml").gpus == 1
    with pytest.raises(SweepError, match="did you mean 'example'"):
        slurm_settings(None, "exampel", "mine.toml")


@pytest.mark.parametrize(
    ("diary", "state", "left", "budget", "what"),
    [
        (Diary(1, outcome="finished"), "RUNNING", 0, None, "end"),
        # Tried, and not to be tried again before it is mended.
        (Diary(1, outcome="finished"), "RUNNING", 1, None, "end"),
        (Diary(1, outcome="interrupted", message=NOTICE), "RUNNING", 3, None, "requeue"),
        # Checkpointing took all the time between the notice and the limit.
        (Diary(1, outcome="interrupted", message=NOTICE), "COMPLETING", 3, None, "requeue"),
        (Diary(1, outcome="interrupted", message="SIGTERM"), "RUNNING", 3, None, "requeue"),
        (Diary(1, outcome="interrupted", message="SIGTERM"), "COMPLETING", 3, None, "end"),
        (Diary(1, outcome="interrupted", message="SIGTERM"), "CANCELLED", 3, None, "end"),
        (Diary(1, outcome="interrupted", message="SIGTERM"), "PENDING", 3, None, "wait"),
        (Diary(1, outcome="late"), "RUNNING", 3, None, "requeue"),
        (Diary(1, outcome="late"), "RUNNING", 3, "too often", "give up"),
        (Diary(1, outcome="elsewhere"), "RUNNING", 3, None, "end"),
        (Diary(1, outcome="cancelled", message="SIGTERM"), "RUNNING", 3, None, "end"),
        (Diary(1, outcome="aborted", message="disk full"), "RUNNING", 3, None, "give up"),
        (Diary(1, outcome=None), "RUNNING", 3, None, "requeue"),
        (Diary(1, outcome=None), None, 3, None, "requeue"),
    ],
)
def test_what_becomes_of_a_job(
    diary: Diary, state: str | None, left: int, budget: str | None, what: str
) -> None:
    assert decide(diary, state, left, budget)[0] == what


def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **programs: str) -> None:
    """Put programs on the PATH that print a text."""
    for name, text in programs.items():
        (tmp_path / f"{name}.txt").write_text(text)
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\ncat {tmp_path}/{name}.txt\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def test_the_last_attempt_counts_in_accounting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(
        tmp_path, monkeypatch,
        sacct="7_1|a|COMPLETED|2026-11-21T10:05:00\n7_1|a|PREEMPTED|2026-11-21T10:00:00\n"
        "7_2|a|NODE_FAIL|2026-11-21T10:00:00\n7_3|a|CANCELLED by 0|2026-11-21T10:00:00\n"
        "7_4|a|FAILED|2026-11-21T10:00:00\n7_4|a|PENDING|Unknown\n7_[5-9]|a|PENDING|Unknown\n",
    )  # fmt: skip
    states = {job_id: job.state for job_id, job in slurm.history(["7"]).items()}
    assert states == {"7_1": "COMPLETED", "7_2": "PENDING", "7_3": "CANCELLED", "7_4": "FAILED"}


def test_no_accounting_is_no_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sacct"
    path.write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2\nexit 1\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert slurm.history(["7"]) == {}


def test_the_queue_is_read_task_by_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(
        tmp_path, monkeypatch,
        squeue="7|0|small.1|RUNNING|n1\n7|1|small.1|PENDING|(Resources)\n8|N/A|small.1.then|PENDING|(Dependency)\n"
        "9|N/A|other|RUNNING|n2\n",
    )  # fmt: skip
    found = slurm.queue("small.")
    assert [(job.id, job.state, job.reason) for job in found] == [
        ("7_0", "RUNNING", "n1"), ("7_1", "PENDING", "Resources"), ("8", "PENDING", "Dependency"),
    ]  # fmt: skip


def test_a_site_is_asked_for_its_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = (
        "MaxArraySize            = 11\nMaxJobCount             = 500\n"
        "AccountingStorageType   = accounting_storage/none\n"
    )
    partitions = (
        "PartitionName=short Default=YES MaxTime=02:00:00 State=UP\n"
        "PartitionName=long Default=NO MaxTime=UNLIMITED State=UP\n"
        "PartitionName=old Default=NO MaxTime=1-00:00:00 State=DOWN\n"
    )
    path = tmp_path / "scontrol"
    (tmp_path / "c").write_text(config)
    (tmp_path / "p").write_text(partitions)
    path.write_text(f'#!/bin/sh\n[ "$2" = config ] && cat {tmp_path}/c || cat {tmp_path}/p\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert slurm.read_limits(None) == slurm.Limits(11, 500, None, 120, False)
    assert slurm.read_limits("long").max_minutes is None
    assert slurm.read_limits("long,short").max_minutes == 120
    with pytest.raises(SweepError, match="'lng': there are long, old, short"):
        slurm.read_limits("lng")
    with pytest.raises(SweepError, match="is DOWN"):
        slurm.read_limits("old")


def test_a_machine_without_slurm_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SweepError, match=r"there is no Slurm here .* --executor local"):
        slurm.read_limits(None)


def submission(results: Path) -> Submission:
    from sweeps.session import Session

    session = Session("x", "small", str(results), {}, 2, None, [("r1", "{}"), ("r2", "{}")], {"r1": 1.0})
    made = new_submission(
        session, "small", SlurmSettings(), {}, {}, {"path": "/p"}, [Array(10, 1, (("r1", "r2"), ("r2",)))]
    )
    write_submission(made, session)
    return made


def test_a_submission_reads_back_as_it_was_written(tmp_path: Path) -> None:
    made = submission(tmp_path)
    assert read_submission(made.path) == made
    assert made.run_ids == ["r1", "r2"]
    (made.path / "arrays.json").write_text("{")
    with pytest.raises(SweepError, match="not a submission of this version"):
        read_submission(made.path)


def program(tmp_path: Path) -> Path:
    root = tmp_path / "program"
    for room in ("sweeps", "trainer", "analysis"):
        (root / room).mkdir(parents=True)
        (root / room / "__init__.py").write_text(f'"""{room}"""\n')
    return root


def test_a_copy_of_the_program_is_what_no_edit_reaches(tmp_path: Path) -> None:
    root = program(tmp_path)
    first = current_source(tmp_path, root)
    keep_source(first, root)
    kept = Path(first.path)
    assert source_sha256(kept) == first.source_sha256 == source_sha256(root)
    (root / "trainer" / "__init__.py").write_text("raise SystemExit\n")
    (root / "trainer" / "new.py").write_text("x = 1\n")
    assert source_sha256(kept) == first.source_sha256
    from trainer.provenance import code_version

    code_version.cache_clear()
    second = current_source(tmp_path, root)
    assert second.path != first.path
    keep_source(second, root)
    assert (Path(second.path) / "trainer" / "new.py").read_text() == "x = 1\n"
    assert json.loads((kept / "SOURCE.json").read_text())["source_sha256"] == first.source_sha256


def test_a_copy_that_was_tampered_with_is_made_anew(tmp_path: Path) -> None:
    root = program(tmp_path)
    source = current_source(tmp_path, root)
    keep_source(source, root)
    file = Path(source.path) / "sweeps" / "__init__.py"
    with pytest.raises(PermissionError) if os.geteuid() else _no_error():
        file.write_text("oops\n")
    if os.geteuid():
        return
    keep_source(source, root)
    assert source_sha256(Path(source.path)) == source.source_sha256


def _no_error() -> Any:
    import contextlib

    return contextlib.nullcontext()


def test_many_copies_at_once_make_one(tmp_path: Path) -> None:
    root = program(tmp_path)
    script = (
        "import sys; from pathlib import Path; from sweeps.source import *;"
        f"root = Path({str(root)!r}); s = current_source(Path({str(tmp_path)!r}), root); keep_source(s, root)"
    )
    started = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(8)]
    assert [process.wait(60) for process in started] == [0] * 8
    there = list((tmp_path / "sweeps" / "code").iterdir())
    assert len(there) == 1
    assert source_sha256(there[0]) == source_sha256(root)


def configs(tmp_path: Path, preset: str) -> list[Any]:
    from sweeps.grid import expand
    from sweeps.sweepfile import read_sweep

    file = tmp_path / "sizes.toml"
    file.write_text(f'[base]\npreset = "{preset}"\n[axes]\nstructure = ["dense", "lowrank-63"]\n')
    return expand(read_sweep(file))


def test_runs_share_a_gpu_as_far_as_its_memory_goes(tmp_path: Path) -> None:
    from sweeps.submit import cluster_for
    from sweeps.sweepfile import SweepExecution, parse_sweep

    def slots(preset: str, **slurm: Any) -> int:
        sweep = parse_sweep({"slurm": slurm}, tmp_path / "a.toml")
        return cluster_for(sweep, SweepExecution(), None).fitting(configs(tmp_path, preset)).slots

    assert slots("gpu-xs", gpus=1, cpus=8) == 1
    assert slots("gpu-xs", gpus=1, cpus=8, gpu_mem_gb=80) == 8
    assert slots("gpu-xs", gpus=2, cpus=8, gpu_mem_gb=8) == 2
    assert slots("gpu-2xl", gpus=1, cpus=8, gpu_mem_gb=40) < slots("gpu-2xl", gpus=1, cpus=8, gpu_mem_gb=140)
    assert slots("cpu-2xl", cpus=8, mem_gb=64) == 8
    assert slots("cpu-2xl", cpus=8, mem_gb=2) == 2


def test_memory_does_not_change_the_threads_of_a_run_on_a_cpu(tmp_path: Path) -> None:
    from sweeps.submit import cluster_for
    from sweeps.sweepfile import SweepExecution, parse_sweep

    sweep = parse_sweep({"slurm": {"cpus": 8, "mem_gb": 2}}, tmp_path / "a.toml")
    cluster = cluster_for(sweep, SweepExecution(), None).fitting(configs(tmp_path, "cpu-2xl"))
    assert (cluster.slots, cluster.threads, cluster.execution.threads) == (2, 1, 1)


@pytest.mark.parametrize(("preset", "measured"), [("cpu-2xs", 369e6), ("cpu-m", 404e6), ("cpu-2xl", 575e6)])
def test_memory_is_predicted_as_measured_on_a_cpu(tmp_path: Path, preset: str, measured: float) -> None:
    from sweeps.price import run_bytes

    assert run_bytes(configs(tmp_path, preset)[0], gpu=False) == pytest.approx(measured, rel=0.2)


def test_an_array_that_has_ended_hands_its_jobs_at_once_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeps.job import hand_on
    from sweeps.session import Session
    from sweeps.submission import Record, write_diary, write_record

    session = Session("x", "small", str(tmp_path), {}, 2, None, [("r1", "{}")])
    arrays = [Array(10, 1, (("r1",),)), Array(10, 3, (("r2",),) * 9)]
    settings = SlurmSettings(jobs=4)
    made = new_submission(session, "small", settings, {}, {}, {"path": "/p"}, arrays)
    write_submission(made, session)
    write_record(made, Record("submitted", ("7", "8")))
    said = tmp_path / "said"
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    hand_on(made)
    assert not said.exists()
    write_diary(made.diary(0, 0), Diary(1, outcome="finished", message="end: all its runs are over"))
    hand_on(made)
    assert said.read_text() == "update jobid=8 ArrayTaskThrottle=4\n"


def test_jobs_are_found_by_name_where_their_numbers_were_never_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeps.queued import look_up

    made = submission(tmp_path)
    fake(tmp_path, monkeypatch, squeue=f"7|0|{made.name}|RUNNING|n1\n7|1|{made.name}|PENDING|(Priority)\n")
    found = look_up(tmp_path, "small")
    assert [(job.job_id, job.state) for job in found.jobs] == [("7_0", "RUNNING"), ("7_1", "PENDING")]
    assert found.covered == {"r1", "r2"}


def test_what_slurm_has_forgotten_is_told_by_the_jobs_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeps.queued import lines, look_up
    from sweeps.submission import Record, write_diary, write_record

    made = submission(tmp_path)
    write_record(made, Record("submitted", ("7",)))
    write_diary(made.diary(0, 0), Diary(1, outcome="died", message="give up: no step gained in 3 restarts"))
    fake(tmp_path, monkeypatch, squeue="", sacct="")
    text = "\n".join(lines(look_up(tmp_path, "small")))
    assert "2 ended" in text
    assert "7_1" not in text
    write_diary(made.diary(0, 1), Diary(1))
    text = "\n".join(lines(look_up(tmp_path, "small")))
    assert "1 ended, 1 gone (ended without a word)" in text
    assert "job 7_0: give up: no step gained in 3 restarts" in text
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    text = "\n".join(lines(look_up(tmp_path, "small")))
    assert "Slurm could not be asked" in text
    assert "1 not known" in text
