"""How well and how quickly studies search: `python -m sweeps.search.bench [TRIALS]`, nothing is trained.

A planted objective stands for training: L(N, D) = E + A / N^a + B / D^b (Hoffmann et al. 2022), times a
penalty for shapes away from a known best one.  First, how many runs tpe and random need to come within 2 % of
the lowest loss of the space, over seeds; then what a trial costs the owner at TRIALS trials, 8 in flight.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeps.ledger import Ledger, RunState
from sweeps.search.asktell import Keeper
from sweeps.search.cells import cells_of
from sweeps.search.outcome import write_outcome
from sweeps.search.owner import Owner
from sweeps.search.searched import Searched, Trial
from sweeps.search.space import Space
from sweeps.search.studyfile import Study, read_study
from sweeps.search.triallog import TrialLog, folder_of
from trainer.config import RunConfig
from trainer.corpora import fingerprint
from trainer.flops import describe, model_counts
from trainer.presets import run_labels
from trainer.rundir import CONFIG, write_result

STUDY = """
kind = "width"
[base]
preset = "cpu-2xs"
model.dense_first_ffn = false
structure = "lowrank"
data.corpus = {{ kind = "synthetic", vocab_size = 256 }}
budget.train_flops = 1e15
[shape]
head_dim = 16
[space]
d_model = {{ low = 32, high = 512, step = 16 }}
n_layers = {{ low = 1, high = 12 }}
ff_ratio = [1, 2, 3, 4, 6, 8]
rank_ratio = [0.125, 0.25, 0.5, 0.75]
[search]
sampler = "{sampler}"
trials = {trials}
seed = {seed}
in_flight = 8
warm_start = false
"""
SPECTRUM = {"E": 1.69, "A": 406.4, "B": 410.7, "a": 0.34, "b": 0.28}
BEST_ASPECT, BEST_FF, BEST_RANK = 32.0, 3.0, 0.5
WITHIN = 0.02
SEEDS = 20
IN_FLIGHT = 8


def loss_of(config: RunConfig) -> float:
    """The planted loss of a run, nats per token."""
    model = config.model
    params, s = model_counts(model).params_total, SPECTRUM
    law = s["E"] + s["A"] / params ** s["a"] + s["B"] / config.tokens ** s["b"]
    aspect = math.log(model.d_model / model.n_layers / BEST_ASPECT)
    form = math.log(model.d_ff / model.d_model / BEST_FF)
    rank = math.log(getattr(model.structure, "rank", model.d_model) / model.d_model / BEST_RANK)
    penalty = 0.15 * aspect**2 + 0.15 * form**2 + 0.15 * rank**2
    return float(law * (1 + penalty))


class Planted:
    """Stands for training: a run is over some looks after it was begun, with its planted loss."""

    def __init__(self, ledger: Ledger, seed: int) -> None:
        self.ledger, self.begun = ledger, 0
        self._left: dict[str, tuple[int, RunConfig]] = {}
        self._random = random.Random(seed)

    def add(self, run_id: str, config: RunConfig) -> None:
        """Begin a run; one that was begun before is the bug that this looks for."""
        folder = self.ledger.run_dir(run_id)
        assert not folder.exists(), f"{run_id} is trained twice"
        folder.mkdir(parents=True)
        self._left[run_id] = self._random.randint(1, IN_FLIGHT), config
        self.begun += 1

    def given_up(self, run_id: str, state: RunState) -> bool:
        """Never: none fails."""
        return False

    def prune(self, run_id: str, facts: Mapping[str, Any]) -> None:
        """Nothing is pruned."""

    def look(self) -> None:
        """Let some time pass."""
        for run_id, (left, config) in list(self._left.items()):
            if left > 1:
                self._left[run_id] = left - 1, config
            else:
                del self._left[run_id]
                finish(self.ledger.run_dir(run_id), run_id, config, loss_of(config))


def finish(folder: Path, run_id: str, config: RunConfig, loss: float) -> None:
    """Write the folder of a run that is done."""
    counts = describe(config)
    (folder / CONFIG).write_text(config.canonical_json())
    result = {
        "run_id": run_id, "schema": 1, "state": "done", **run_labels(config),
        "structure_kind": config.model.structure.kind, "seed": config.seed, "precision": config.precision,
        "params": counts.pop("params_total"), **counts, "val_loss": loss, "val_loss_se": 0.01,
        "seconds": 10.0, "tokens_per_second": 1e4, "finished": "2025-01-01T00:00:00+00:00",
        "device": "a processor", "threads": 1, "attempts": 1,
    }  # fmt: skip
    write_result(folder, result)


class Silent:
    """Is told nothing."""

    def asked(self, searched: Searched, trial: Trial) -> None:
        """Nothing."""

    def told(self, searched: Searched, trial: Trial) -> None:
        """Nothing."""


def planted_study(folder: Path, sampler: str, trials: int, seed: int) -> Study:
    """The study, as a file."""
    file = folder / f"{sampler}-{seed}.toml"
    file.write_text(STUDY.format(sampler=sampler, trials=trials, seed=seed))
    return read_study(file)


def losses(study: Study, space: Space, results: Path, kept: bool = False) -> tuple[list[float], float]:
    """Search to the end; the loss of each run in the order of proposals, and the owner's seconds."""
    ledger, folder = Ledger(results), folder_of(results, study.name)
    flight = Planted(ledger, study.search.seed)
    log = TrialLog(folder)
    keeper = Keeper("", folder) if kept else None
    one = Searched(space.cell, space, study.search.seed, log, keeper, fingerprint(space.largest.data))
    owner = Owner([one], ledger, flight, Silent(), IN_FLIGHT)
    owner.take_up()
    spent = 0.0
    while True:
        began = time.perf_counter()
        owner.step(hurry=True)
        spent += time.perf_counter() - began
        if owner.over:
            break
        flight.look()
    began = time.perf_counter()
    if kept:
        write_outcome(study, [one], results, importance=False)
    spent += time.perf_counter() - began
    log.close()
    assert flight.begun == one.counted == len(one.by_run)
    return [trial.loss or math.inf for trial in one.by_run.values()], spent


def runs_needed(found: list[float], goal: float) -> float:
    """Runs until a loss is below the goal; infinite where none is."""
    return next((number for number, loss in enumerate(found, 1) if loss <= goal), math.inf)


def quality(trials: int, seeds: int) -> dict[str, list[float]]:
    """Runs that each sampler needs to come within 2 % of the lowest loss, for each seed."""
    needed: dict[str, list[float]] = {"random": [], "tpe": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = planted_study(folder, "tpe", trials, 0)
        space = Space(cells_of(study)[0])
        every = sorted(loss_of(space.config(point)) for point in space.every())
        goal = every[0] * (1 + WITHIN)
        share = sum(loss <= goal for loss in every) / len(every)
        print(f"{len(every):,} shapes; {share:.2%} are within {WITHIN:.0%} of the lowest loss {every[0]:.4f}")
        for sampler, found in needed.items():
            for seed in range(1, seeds + 1):
                study = planted_study(folder, sampler, trials, seed)
                cell = cells_of(study)[0]
                space.cell = cell
                found.append(runs_needed(losses(study, space, folder / sampler / str(seed))[0], goal))
    return needed


def main(trials: int) -> None:
    """Print how many runs are needed, and what a trial costs."""
    needed = quality(trials=200, seeds=SEEDS)
    for sampler, found in needed.items():
        print(
            f"{sampler:7} median {statistics.median(found):g} runs (each seed: {sorted(found)})", flush=True
        )
    with tempfile.TemporaryDirectory() as name:
        study = planted_study(Path(name), "tpe", trials, 1)
        space = Space(cells_of(study)[0])
        _, spent = losses(study, space, Path(name) / "results", kept=True)
        print(f"overhead with SQLite: {1e3 * spent / trials:.1f} ms a trial over {trials} trials")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
