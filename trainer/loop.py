"""The training loop: from a RunConfig to a finished run folder, top to bottom.

Everything in it that decides the result is a pure function of the configuration and the step (batch,
learning rate, initial weights) or is in the checkpoint, so a run killed at any instant and resumed gives
the same losses, bit for bit, as one that never stopped (same machine, same device, same threads).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.batches import check_corpus
from trainer.checkpoint import (
    LoopState,
    list_checkpoints,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from trainer.config import RunConfig
from trainer.corpora import Corpus
from trainer.curriculum import Curriculum, tokens_of_steps
from trainer.device import cpu_has_bf16, device_name, peak_flops, prepare_device, select_device
from trainer.distributed import World, process_group, world_from_environment
from trainer.errors import CheckpointError
from trainer.evaluate import Evaluation, Interrupted, evaluate
from trainer.execution import Execution
from trainer.flops import spent_flops
from trainer.guidance import guide_weight
from trainer.ownership import check_owner
from trainer.provenance import environment
from trainer.result import build_result
from trainer.rundir import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    append_metrics,
    only_writer,
    read_result,
    read_status,
    record_environment,
    record_failure,
    truncate_metrics,
    write_atomic,
    write_result,
    write_status,
)
from trainer.step import TrainStep


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for whoever watches it."""

    phase: str
    """"train" ("train at 64": on sequences of that length, in a curriculum) or "evaluate"."""
    step: int
    """Updates done (training), or sequences done (evaluation)."""
    total: int
    """Of how many."""
    train_loss: float | None = None
    """Mean loss since the last metrics line, nats per token."""
    tokens_per_second: float | None = None
    """Training speed over this attempt."""
    utilisation: float | None = None
    """Achieved over peak FLOP/s, where the peak is known."""
    eta_seconds: float | None = None
    """Time left."""
    note: str | None = None
    """A line worth showing: a resume, a damaged checkpoint passed over."""


def train(
    config: RunConfig,
    corpus: Corpus,
    run_dir: Path,
    run_id: str,
    execution: Execution,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> str:
    """Train a run to its end, resuming from its folder; returns its state: done, diverged or preempted.

    A finished run is left untouched, a folder that holds another run is refused.  `should_stop` is asked
    after every step: when it says yes the run checkpoints and becomes `preempted`.  Raises TrainerError for
    what a user can mend.
    """
    check_owner(run_dir, config, run_id, corpus.fingerprint)
    if (finished := read_result(run_dir)) is not None:
        return str(finished["state"])
    world = world_from_environment()
    device = select_device(execution, world.local_rank)
    prepare_device(execution, device)
    with only_writer(run_dir, world.is_main), process_group(world, device):
        try:
            attempt = _Run(
                config, corpus, run_dir, run_id, execution, world, device, should_stop, on_progress
            )
            return attempt.run()
        except Exception as error:
            if world.is_main:
                record_failure(run_dir, error)
            raise


class _Run:
    """One attempt at a run."""

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        run_dir: Path,
        run_id: str,
        execution: Execution,
        world: World,
        device: torch.device,
        should_stop: Callable[[], bool],
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.config, self.corpus, self.run_dir, self.run_id = config, corpus, run_dir, run_id
        self.execution, self.world, self.device = execution, world, device
        self.should_stop, self.on_progress = should_stop, on_progress
        self.batches = check_corpus(config, corpus)
        fresh = not list_checkpoints(run_dir)
        self.step = TrainStep(config, execution, device, world, draw_weights=fresh, scored=corpus.scored)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.state = LoopState()
        self.attempt = int(read_status(run_dir).get("attempt", 0)) + 1
        self.started = time.time()
        self.last_status = 0.0
        self.attempt_seconds = 0.0
        self.attempt_tokens = self.attempt_flops = 0
        self.diverged_step: int | None = None

    def run(self) -> str:
        """Resume, train, evaluate, write the result."""
        self._open_folder()
        outcome = self._train()
        if outcome == "done":
            try:
                evaluation = self._evaluate()
            except Interrupted:
                outcome = "preempted"
            else:
                self._finish("done", evaluation)
        elif outcome == "diverged":
            self._finish("diverged", None)
        if outcome == "preempted":
            self._write_status("preempted")
        self.world.barrier()
        return outcome

    def _open_folder(self) -> None:
        """Create or resume the run folder, and load the newest good checkpoint."""
        state, notes = load_checkpoint(
            self.run_dir, self.step.network, self.step.optimizer, self._accumulators(), self.step.skip_to
        )
        if state is not None:
            self.state = state
            notes.append(f"resumed at step {state.step} of {self.config.steps}")
        self.attempt_tokens, self.attempt_flops = self._tokens, self._spent()
        if not self.world.agree(self.state.step, self.device):
            raise CheckpointError(
                f"{self.run_dir / CHECKPOINTS}: the processes of this run find different checkpoints (this "
                f"one step {self.state.step}); is it the same folder on every node? run again once it is"
            )
        if self.world.is_main:
            remove_leftovers(self.run_dir)
            if not (self.run_dir / CONFIG).exists():
                write_atomic(self.run_dir / CONFIG, self.config.canonical_json() + "\n")
            record_environment(self.run_dir, environment(device_name(self.device), torch.get_num_threads()))
            if (self.run_dir / METRICS).exists():
                truncate_metrics(self.run_dir, self.state.logged_step)
            self._write_status("running")
        if self.config.precision == "bf16" and self.device.type == "cpu" and not cpu_has_bf16():
            notes.append(
                "this CPU has no bf16 instructions: bf16 is emulated, some 20 times slower than fp32"
            )
        for note in notes:
            self.on_progress(Progress("train", self.state.step, self.config.steps, note=note))
        self.world.barrier()

    def _train(self) -> str:
        """The loop proper; returns done, diverged or preempted."""
        config, state = self.config, self.state
        curriculum = Curriculum(config, state.stages) if config.curriculum else None
        every = max(1, config.steps // self.execution.log_points)
        clock = last_saved = time.monotonic()
        while state.step < config.steps:
            length, rate = config.model.seq_len, 1.0
            if curriculum is not None:
                if curriculum.due(state.step):
                    if (bad := self.step.guard.diverged_at()) is not None:
                        self.diverged_step = bad
                        return "diverged"
                    if not self._measure(curriculum):
                        return "preempted"
                if state.stages.finished:
                    if state.step > state.logged_step:
                        self._log(None)
                    self._save()
                    return "done"
                length, rate = curriculum.length, curriculum.rate
            step = config.data_step(state.step)
            batch = self.batches.batch(step, self.world.rank, self.world.size, length)
            loss, grad_norm = self.step(state.step, *batch, rate)
            self.loss_sum += loss
            state.step += 1

            now = time.monotonic()
            state.seconds += now - clock
            self.attempt_seconds += now - clock
            clock = now
            at_end = state.step == config.steps
            due = now - last_saved >= self.execution.checkpoint_seconds
            stopping, due = self.world.any((self.should_stop(), due), self.device)
            saving = at_end or stopping or due
            logging = at_end or state.step % every == 0
            if (logging or saving) and (bad := self.step.guard.diverged_at()) is not None:
                self.diverged_step = bad
                return "diverged"
            if logging:
                self._log(grad_norm)
            if saving:
                self._save()
                last_saved = time.monotonic()
            if stopping and not at_end:
                return "preempted"
            if now - self.last_status >= self.execution.heartbeat_seconds:
                self._report()
        return "done"

    def _measure(self, curriculum: Curriculum) -> bool:
        """Measure the present stage's held-out loss, and move on; False where the run was asked to stop."""
        start, length = time.monotonic(), curriculum.length
        try:
            found = self._evaluate(length, curriculum.plan.sequences * length)
        except Interrupted:
            # The weights of this step are saved, and the next attempt measures them first.
            self._save()
            return False
        # The loop's clock adds this time with the next step.
        seconds = self.state.seconds + time.monotonic() - start
        curriculum.record(self.state.step, found.loss, found.accuracy, seconds)
        return True

    def _evaluate(self, seq_len: int | None = None, tokens: int | None = None) -> Evaluation:
        """The held-out loss, by default at full length on eval.tokens; raises Interrupted."""
        return evaluate(
            self.step.network,
            self.corpus,
            self.config,
            self.step.micro,
            self.device,
            self.world,
            self._eval_tick,
            seq_len,
            tokens,
        )

    @property
    def _tokens(self) -> int:
        """Training tokens so far."""
        return tokens_of_steps(self.config, self.state.step, self.state.stages.ends)

    def _accumulators(self) -> dict[str, Tensor]:
        return {"loss_sum": self.loss_sum}

    def _save(self) -> None:
        if self.world.is_main:
            save_checkpoint(
                self.run_dir, self.step.network, self.step.optimizer, self._accumulators(), self.state
            )
        self.world.barrier()

    def _log(self, grad_norm: Tensor | None) -> None:
        """Write one metrics line and start the next window; a run that may just have resumed has no norm."""
        window = self.state.step - self.state.logged_step
        self.state.train_loss = self.loss_sum.item() / window
        self.loss_sum.zero_()
        self.state.logged_step = self.state.step
        if not self.world.is_main:
            return
        append_metrics(
            self.run_dir,
            {
                "step": self.state.step,
                "tokens": self._tokens,
                "train_loss": self.state.train_loss,
                "lr": self.step.rate,
                **self._guide_weight(),
                **self._stage(),
                "grad_norm": None if grad_norm is None else grad_norm.item(),
                "tokens_per_second": round(self._tokens_per_second(), 1),
                "seconds": round(self.state.seconds, 3),
                "time": round(time.time(), 3),
            },
        )

    def _guide_weight(self) -> dict[str, float]:
        guided = self.config.guided_steps
        return {"guide_weight": guide_weight(self.state.step - 1, guided)} if guided else {}

    def _stage(self) -> dict[str, float | None]:
        if self.config.curriculum is None:
            return {}
        stages = self.state.stages
        length = self.config.curriculum.lengths[len(stages.ends)]
        return {"seq_len": length, "stage_loss": stages.loss, "stage_accuracy": stages.accuracy}

    def _tokens_per_second(self) -> float:
        return (self._tokens - self.attempt_tokens) / max(1e-9, self.attempt_seconds)

    def _spent(self) -> int:
        """Training FLOPs so far."""
        return spent_flops(self.config, self.state.step, ends=self.state.stages.ends)

    def _report(self) -> None:
        """Heartbeat for the ledger and progress for the watcher."""
        speed = self._tokens_per_second()
        left = (self.config.steps - self.state.step) * self.config.optim.batch_tokens / max(speed, 1e-9)
        peak = peak_flops(self.device, self.config.precision)
        work = self._spent() - self.attempt_flops
        achieved = work / max(1e-9, self.attempt_seconds) / (peak * self.world.size) if peak else None
        self._write_status("running", tokens_per_second=round(speed, 1), eta_seconds=round(left, 1))
        phase = f"train at {self._stage()['seq_len']}" if self.config.curriculum else "train"
        self.on_progress(
            Progress(phase, self.state.step, self.config.steps, self.state.train_loss, speed, achieved, left)
        )

    def _eval_tick(self, done: int, total: int) -> bool:
        if time.monotonic() - self.last_status >= self.execution.heartbeat_seconds:
            self._write_status("running", eta_seconds=0.0)
            self.on_progress(Progress("evaluate", done, total, self.state.train_loss))
        return self.world.any((self.should_stop(),), self.device)[0]

    def _write_status(self, state: str, **more: Any) -> None:
        self.last_status = time.monotonic()
        if not self.world.is_main:
            return
        status = {
            "state": state,
            "attempt": self.attempt,
            "step": self.state.step,
            "total_steps": self.config.steps,
            "tokens": self._tokens,
            "train_loss": self.state.train_loss,
            "heartbeat": time.time(),
            "started": self.started,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            **more,
        }
        write_status(self.run_dir, status)

    def _finish(self, state: str, evaluation: Evaluation | None) -> None:
        """Write result.json, last, then the final status."""
        if not self.world.is_main:
            return
        result = build_result(
            self.config,
            self.corpus,
            self.run_id,
            state,
            evaluation,
            self.state,
            self.diverged_step,
        )
        machine = {"device": device_name(self.device), "threads": torch.get_num_threads()}
        write_result(self.run_dir, {**result, **machine, "attempts": self.attempt})
        self._write_status(state)
