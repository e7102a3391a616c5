"""What a person sees while one run trains: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from trainer.commandline import duration
from trainer.curriculum import shortfall
from trainer.loop import Progress as RunProgress
from trainer.rundir import read_result

LINE_SECONDS = 10.0


def stop_on_signals() -> Callable[[], bool]:
    """Make Ctrl-C and TERM ask for a checkpointed stop; a second Ctrl-C ends at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        print("stopping after this step; the run will be resumable (again to end at once)", file=sys.stderr)

    signal.signal(signal.SIGINT, ask)
    signal.signal(signal.SIGTERM, ask)
    return lambda: asked


class Terminal:
    """Shows a run's progress on stderr."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[facts]}"), TimeElapsedColumn(), console=self.console,
        )  # fmt: skip
        self.task = self.bar.add_task("train", total=None, facts="")
        self.last_line = 0.0

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None
    ) -> None:
        self.bar.stop()

    def show(self, progress: RunProgress) -> None:
        """Show where the run stands."""
        if progress.note:
            self.console.print(progress.note, highlight=False)
            return
        facts = []
        if progress.train_loss is not None:
            facts.append(f"loss {progress.train_loss:.4f}")
        if progress.tokens_per_second:
            facts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
        if progress.utilisation:
            facts.append(f"MFU {progress.utilisation:.1%}")
        if progress.eta_seconds:
            facts.append(f"{duration(progress.eta_seconds)} left")
        if self.console.is_terminal:
            self.bar.update(
                self.task, description=progress.phase, completed=progress.step, total=progress.total,
                facts="  ".join(facts),
            )  # fmt: skip
        elif time.monotonic() - self.last_line >= LINE_SECONDS:
            self.last_line = time.monotonic()
            print(progress.phase, f"{progress.step}/{progress.total}", *facts, sep="  ", file=sys.stderr)

    def summary(self, state: str, run_dir: Path) -> None:
        """Say how the run ended."""
        result = read_result(run_dir)
        if state == "done" and result:
            bits = result["val_bits_per_byte"]
            bytes_part = f", {bits:.4f} bits per byte" if bits is not None else ""
            loss, error = result["val_loss"], result["val_loss_se"]
            if result.get("val_accuracy") is not None:
                bytes_part += f", {result['val_accuracy']:.2%} of answers right"
            what = "answer" if result.get("val_accuracy") is not None else "token"
            print(f"done: held-out loss {loss:.4f} ± {error:.4f} nats per {what}{bytes_part}; {run_dir}")
            if missed := shortfall(result):
                print(f"note: the curriculum {missed}; the held-out loss is at full length")
        elif state == "diverged" and result:
            print(f"diverged at step {result['diverged_step']}: no held-out loss; {run_dir}")
        else:
            print(f"{state}: the same command resumes it; {run_dir}")
