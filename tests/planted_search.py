"""Studies whose losses are planted: a stand-in for training that can fail, diverge, lag and be killed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from conftest import fake_result

from sweeps.ledger import FAILURES, MAX_ATTEMPTS, Ledger, RunState
from sweeps.prune import prune_line
from sweeps.search.asktell import Keeper
from sweeps.search.bench import Silent, loss_of
from sweeps.search.cells import cells_of
from sweeps.search.owner import Owner
from sweeps.search.searched import Searched, Trial
from sweeps.search.space import Space
from sweeps.search.studyfile import Study, read_study
from sweeps.search.triallog import Asked, TrialLog, folder_of, read_log
from sweeps.search.warm import learn_from_ledger, recover
from trainer.config import RunConfig
from trainer.corpora import fingerprint
from trainer.rundir import CONFIG, METRICS, RESULT, STATUS, write_result

TEXT = """
kind = "{kind}"
{top}
[base]
preset = "cpu-2xs"
model.dense_first_ffn = false
data.corpus = {{ kind = "synthetic", vocab_size = 17 }}
{base}
[axes]
{axes}
[budget]
{budget}
[space]
{space}
[shape]
{shape}
[search]
{search}
{tail}
"""
PARTS = {
    "kind": "width", "top": "", "base": "", "axes": 'structure = ["dense"]', "budget": "train_flops = 1e11",
    "space": "d_model = [12, 24, 36]\nn_layers = [1, 2]", "shape": "", "search": "", "tail": "",
}  # fmt: skip
LOOKS = 4
"""Looks that a run takes."""


class Killed(BaseException):
    """The owner was killed."""


def text(**parts: str) -> str:
    """The text of a study file; each part is TOML of a table."""
    return TEXT.format(**{**PARTS, **parts})


def study(folder: Path, name: str = "planted", **parts: str) -> Study:
    """A study that was written to a file and read."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.toml"
    file.write_text(text(**parts))
    return read_study(file)


def spaces_of(one: Study) -> list[Space]:
    """The spaces of a study's cells."""
    return [Space(cell) for cell in cells_of(one)]


class Training:
    """Stands for the machine: keeps all it knows in the run folders, so that it survives its owner.

    Args:
        ledger: where the runs are.
        fate: of a configuration, how it ends: done, diverged or failed.
        loss: its held-out loss, and the level of its training loss.
    """

    def __init__(
        self,
        ledger: Ledger,
        fate: Callable[[RunConfig], str] = lambda config: "done",
        loss: Callable[[RunConfig], float] = loss_of,
    ) -> None:
        self.ledger, self.fate, self.loss = ledger, fate, loss
        self.under_way: dict[str, tuple[int, RunConfig]] = {}
        self.ended: Counter[str] = Counter()
        self.begun: list[str] = []
        self.pruned: dict[str, Mapping[str, Any]] = {}
        self.fuse: Callable[[], None] = lambda: None
        self.most = 0

    def add(self, run_id: str, config: RunConfig) -> None:
        """Begin or resume a run, which the log has to have already."""
        self.fuse()
        logged = {line.run for log in self.ledger.results.glob("searches/*") for line in read_log(log)}
        assert run_id in logged, "a run was begun that no log has"
        folder = self.ledger.run_dir(run_id)
        if not (folder / RESULT).exists():
            if not folder.exists():
                self.begun.append(run_id)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CONFIG).write_text(config.canonical_json())
            self.under_way[run_id] = 0, config
            self.most = max(self.most, len(self.under_way))
        self.fuse()

    def given_up(self, run_id: str, state: RunState) -> bool:
        """After as many attempts as anywhere."""
        return state.failures >= MAX_ATTEMPTS

    def prune(self, run_id: str, facts: Mapping[str, Any]) -> None:
        """Stop a run early, if it is still under way."""
        if run_id in self.under_way:
            looks, config = self.under_way.pop(run_id)
            self.pruned[run_id] = facts
            folder = self.ledger.run_dir(run_id)
            (folder / STATUS).write_text(json.dumps({"state": "pruned", "message": prune_line(facts)}))
            (folder / "checkpoints").mkdir()
            for end in ("safetensors", "json"):
                step = looks * config.steps // LOOKS
                (folder / "checkpoints" / f"step-{step}.{end}").write_text("{}")

    def look(self) -> None:
        """Let some time pass."""
        for run_id, (looks, config) in list(self.under_way.items()):
            looks += 1
            self.under_way[run_id] = looks, config
            self._log(run_id, config, looks / LOOKS)
            if looks >= LOOKS:
                del self.under_way[run_id]
                self._end(run_id, config)

    def _log(self, run_id: str, config: RunConfig, share: float) -> None:
        # Twenty lines a run, of which the level tells the runs apart.
        every = max(1, config.steps // 20)
        steps = range(every, round(share * config.steps) + 1, every)
        lines = [{"step": step, "train_loss": self.loss(config) + 1 - step / config.steps} for step in steps]
        content = "".join(json.dumps(line) + "\n" for line in lines)
        (self.ledger.run_dir(run_id) / METRICS).write_text(content)

    def _end(self, run_id: str, config: RunConfig) -> None:
        folder, fate = self.ledger.run_dir(run_id), self.fate(config)
        if fate == "failed":
            failures = {"failures": MAX_ATTEMPTS, "message": "broken", "session": "s", "permanent": False}
            (folder / FAILURES).write_text(json.dumps(failures))
            (folder / STATUS).write_text(json.dumps({"state": "failed", "message": "broken"}))
            return
        self.ended[run_id] += 1
        assert self.ended[run_id] == 1, f"{run_id} is trained twice"
        end: dict[str, Any] = {"val_loss": self.loss(config)}
        if fate == "diverged":
            end = {"state": "diverged", "val_loss": None, "val_loss_se": None, "diverged_step": 3, "steps": 3}
        write_result(folder, fake_result(config, run_id, **end))


class _Log(TrialLog):
    fuse: Callable[[], None]

    def add(self, asked: Asked) -> None:
        self.fuse()
        super().add(asked)
        self.fuse()


class _Keeper(Keeper):
    fuse: Callable[[], None]

    def add(self, study: Any, trial: Any) -> None:
        self.fuse()
        super().add(study, trial)
        self.fuse()


class Lab:
    """A study with its results folder; `open` makes all objects anew, as a new process does.

    Args:
        one: the study.
        results: results folder.
        training: what trains; it outlives owners.
        most: trials in flight.
        second: of a pareto study.
    """

    def __init__(
        self,
        one: Study,
        results: Path,
        training: Training | None = None,
        most: int = 2,
        second: Callable[[str, RunConfig], float] | None = None,
    ) -> None:
        self.study, self.results, self.most, self.second = one, results, most, second
        self.training = training or Training(Ledger(results))
        self.spaces = spaces_of(one)
        self.folder = folder_of(results, one.name)
        self.record: list[str] = []
        self.fuse: Callable[[], None] = lambda: None
        self.log: TrialLog | None = None

    def open(self) -> Owner:
        """Take the study up."""
        ledger, settings = Ledger(self.results), self.study.search
        self.close()
        log = self.log = _Log(self.folder)
        keeper = _Keeper(settings.storage, self.folder)
        log.fuse = keeper.fuse = self.training.fuse = lambda: self.fuse()
        self.recovered = recover(self.spaces, log, ledger, self.record)
        self.searched = [
            Searched(s.cell, s, settings.seed + n, log, keeper, fingerprint(s.largest.data))
            for n, s in enumerate(self.spaces)
        ]
        rungs = settings.rungs if settings.pruner != "none" else ()
        self.owner = Owner(
            self.searched, ledger, self.training, Silent(), self.most, rungs, self.second
        )  # fmt: skip
        self.owner.take_up()
        self.learned = learn_from_ledger(self.searched, ledger) if settings.warm_start else 0
        return self.owner

    def close(self) -> None:
        """Let go of the log, as a process that ends does."""
        if self.log is not None:
            self.log.close()
            self.log = None

    def run(self, steps: int = 10_000) -> bool:
        """Take it up and go on for so many looks; whether it is over then."""
        owner = self.open()
        for _ in range(steps):
            owner._pruned = float("-inf")
            owner.step(hurry=True)
            self._remember()
            if owner.over:
                self.close()
                return True
            self.training.look()
        return False

    def killed_after(self, many: int) -> bool:
        """Go on until so many writes of the owner were begun or ended; whether it was over before."""
        left = [many]

        def burn() -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        self.fuse = burn
        try:
            return self.run()
        except Killed:
            return False
        finally:
            self.fuse = lambda: None

    def _remember(self) -> None:
        """Keep what the sweep record would have."""
        runs = [trial.asked.run for trial in self.trials if trial.counts]
        self.record = list(dict.fromkeys(runs))

    @property
    def trials(self) -> list[Trial]:
        """Trials of all cells."""
        return [trial for one in self.searched for trial in one.trials]

    @property
    def counted(self) -> list[Trial]:
        """Those that the study asked for."""
        return [trial for trial in self.trials if trial.counts]

    def kept(self) -> Sequence[Any]:
        """Trials that Optuna's storage has, as another process sees them."""
        import optuna

        keeper = Keeper(self.study.search.storage, self.folder)
        found = []
        for summary in optuna.get_all_study_summaries(keeper._storage):
            found += optuna.load_study(study_name=summary.study_name, storage=keeper._storage).trials
        return found

    def check_kept(self) -> None:
        """Optuna's storage has every trial that is over and no repeat once, as it was told, and no other."""
        kept = {trial.user_attrs["run"]["run_id"]: trial for trial in self.kept()}
        assert len(kept) == len(self.kept())
        told = {trial.asked.run: trial for trial in self.trials if not trial.asked.repeat}
        assert kept.keys() == told.keys()
        words = {"PRUNED": ("pruned",), "FAIL": ("failed",), "COMPLETE": ("done", "diverged")}
        for run_id, trial in kept.items():
            outcome = told[run_id].outcome
            assert outcome is not None and outcome.state in words[trial.state.name]
            # Optuna calls the last training loss that a pruned trial reported its value.
            assert outcome.state == "pruned" or tuple(trial.values or ()) == outcome.values
            assert trial.user_attrs["run"]["trial"] == told[run_id].asked.number


def torn(path: Path, left: int = 7) -> None:
    """Cut the last line of a file, as a writer leaves it that did not live to end it."""
    content = path.read_bytes()
    start = content.rstrip(b"\n").rfind(b"\n") + 1
    path.write_bytes(content[: start + left])
