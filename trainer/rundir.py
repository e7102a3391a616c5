"""The run folder: the only truth about a run.  Torch-free; every file is replaced atomically.

config.json    canonical RunConfig            status.json   state, attempt, step, heartbeat, host
env.json       versions, device, argv         metrics.jsonl one line a logging step
checkpoints/   see trainer.checkpoint         result.json   written once, last; has its own checksum
error.txt      traceback of a failed attempt
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.errors import RunDirError
from trainer.hints import hint

CONFIG, STATUS, ENV, METRICS, RESULT, ERROR = (
    "config.json",
    "status.json",
    "env.json",
    "metrics.jsonl",
    "result.json",
    "error.txt",
)
CHECKPOINTS = "checkpoints"
STATES = ("new", "running", "done", "failed", "diverged", "preempted")


@contextmanager
def io_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder and the like into a RunDirError that says how to mend it."""
    try:
        yield
    except OSError as error:
        remedy = {
            errno.ENOSPC: "free some space and run again: finished steps are kept",
            errno.EDQUOT: "free some quota and run again: finished steps are kept",
            errno.EROFS: "choose a writable folder with --results",
            errno.EACCES: "make it writable or choose another folder with --results",
            errno.EPERM: "make it writable or choose another folder with --results",
        }.get(error.errno or 0)
        remedy = remedy or "choose another folder"
        raise RunDirError(f"{path}: {os.strerror(error.errno or 0)}; {remedy}") from error


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old or the new content and nothing between."""
    payload = data.encode() if isinstance(data, str) else data
    temp = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with io_errors(path):
        try:
            with open(temp, "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temp, path)
            sync_folder(path.parent)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder outlive a power failure, where the system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object atomically, keys in the given order."""
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None where there is none; RunDirError where it is not JSON."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunDirError(f"{path}: not JSON ({error}); move it away and run again") from None
    if not isinstance(value, dict):
        raise RunDirError(f"{path}: holds no JSON object; move it away and run again")
    return value


def write_status(run_dir: Path, status: dict[str, Any]) -> None:
    """Replace status.json; cheap enough for a heartbeat (no fsync: it is not worth a point of data)."""
    path = run_dir / STATUS
    temp = path.with_name(f".{STATUS}.{os.getpid()}.tmp")
    with io_errors(path):
        temp.write_text(json.dumps(status) + "\n")
        os.replace(temp, path)


def read_status(run_dir: Path) -> dict[str, Any]:
    """The last status, or {"state": "new"}; a torn status.json counts as none, since folders outrank it."""
    try:
        return read_json(run_dir / STATUS) or {"state": "new"}
    except RunDirError:
        return {"state": "new"}


def _checksum(result: dict[str, Any]) -> str:
    body = {key: value for key, value in result.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def write_result(run_dir: Path, result: dict[str, Any]) -> None:
    """Write result.json with its checksum."""
    write_json(run_dir / RESULT, {**result, "sha256": _checksum(result)})


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """The verified result of a run, or None where it has none.

    Raises RunDirError, naming the file and the remedy, where result.json is not what was written.
    """
    path = run_dir / RESULT
    retry = hint(["retry", run_dir.name], run_dir.parent.parent)
    remedy = f"'{retry}' moves it aside and evaluates again from the checkpoint"
    try:
        result = read_json(path)
    except RunDirError:
        raise RunDirError(f"{path}: corrupted (not JSON); {remedy}") from None
    if result is not None and result.get("sha256") != _checksum(result):
        raise RunDirError(f"{path}: corrupted (checksum does not match); {remedy}")
    return result


def record_environment(run_dir: Path, environment: dict[str, Any]) -> None:
    """Write env.json; what earlier attempts ran with stays in it, under `earlier_attempts`."""
    earlier = read_json(run_dir / ENV) or {}
    history = [*earlier.pop("earlier_attempts", []), *([earlier] if earlier else [])]
    write_json(run_dir / ENV, {**environment, "earlier_attempts": history} if history else environment)


def record_failure(run_dir: Path, error: Exception) -> None:
    """Leave error.txt and the state `failed`; a disk that takes neither has already told its own error."""
    report = "".join(traceback.format_exception(error))
    try:
        (run_dir / ERROR).write_text(report, encoding="utf-8")
        write_status(run_dir, {**read_status(run_dir), "state": "failed", "message": str(error)})
    except (OSError, RunDirError):
        return


@contextmanager
def only_writer(run_dir: Path, is_main: bool = True) -> Iterator[None]:
    """Hold the folder for one training process (the main one of several); make it where it is not there.

    Raises RunDirError where another process holds it, or it cannot be written.
    """
    if not is_main:
        yield
        return
    from filelock import FileLock, Timeout

    lock = FileLock(run_dir / ".train.lock")
    with io_errors(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunDirError(
                f"{run_dir}: another process is training this run; wait for it or choose another folder"
            ) from None
    try:
        yield
    finally:
        lock.release()


def append_metrics(run_dir: Path, line: dict[str, Any]) -> None:
    """Append one line to metrics.jsonl, flushed at once: a kill tears at most the last line."""
    path = run_dir / METRICS
    with io_errors(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All good lines of metrics.jsonl.

    A torn last line, as a kill leaves it, and lines that a failing disk spoilt are dropped: metrics are for
    looking at, the result does not come from them.
    """
    try:
        text = (run_dir / METRICS).read_bytes()
    except FileNotFoundError:
        return []
    metrics = []
    for line in text.split(b"\n")[:-1]:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and "step" in value:
            metrics.append(value)
    return metrics


def truncate_metrics(run_dir: Path, step: int) -> None:
    """Drop what was logged after `step`, so that a resumed run repeats no line."""
    kept = [line for line in read_metrics(run_dir) if line["step"] <= step]
    write_atomic(run_dir / METRICS, "".join(json.dumps(line) + "\n" for line in kept))
