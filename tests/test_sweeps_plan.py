"""Plans: actions, prices, totals, caps and tuning parity."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from conftest import fake_result
from hypothesis import given
from hypothesis import strategies as st

from sweeps.errors import SweepError
from sweeps.grid import expand
from sweeps.identity import UNKNOWN
from sweeps.layout import plan_layout, with_options
from sweeps.ledger import RunState
from sweeps.parity import differences
from sweeps.plan import Plan, make_plan, refuse_past_caps, wall_seconds
from sweeps.price import STARTUP_SECONDS, Prices, Setting
from sweeps.report import plan_table, totals_text
from sweeps.sweepfile import SweepExecution, parse_sweep
from sweeps.text import count, flops, number, size, table
from trainer.commandline import duration
from trainer.config import RunConfig
from trainer.flops import flops_per_token, model_counts, train_flops
from trainer.presets import run_labels

SETTING = Setting("a processor", 1)

GRID = """
[base]
model = { n_heads = 2, seq_len = 32 }
optim = { peak_lr = 5e-3, batch_tokens = 256 }
[base.data]
corpus = { kind = "synthetic", vocab_size = 32, order = 1 }
[axes]
structure = ["dense", "lowrank-63"]
[[zip]]
model.d_model = [16, 32]
model.n_layers = [2, 3]
[budget]
tokens = 25600
"""


def grid(text: str = GRID, more: str = "") -> list[RunConfig]:
    return expand(parse_sweep(tomllib.loads(text + more), Path("try.toml")))


def planned(states: dict[str, RunState] | None = None, slots: int = 2, more: str = "") -> Plan:
    configs = grid(more=more)
    ids = [f"run{n}" for n in range(len(configs))]
    return make_plan(configs, ids, states or {}, Prices([], SETTING), slots)


def test_plan_table_golden() -> None:
    states = {
        "run0": RunState("done", result=fake_result(grid()[0], "run0", tokens_per_second=20_000.0)),
        "run1": RunState("preempted", checkpoint=40),
        "run2": RunState("failed", failures=2, message="why"),
    }
    configs = grid()
    results = [fake_result(configs[n], "x", tokens_per_second=20_000.0) for n in (0, 1, 3)]
    ids = [f"run{n}" for n in range(4)]
    plan = make_plan(configs, ids, states, Prices(results, SETTING), 2)
    expected = [
        "id    size    structure   seed  params  tokens  steps  FLOPs  batch  peak LR  time  state",
        "run0  d16-L2  dense          1    7.1k   25.6k    100  1.3e9    256     5e-3     -  done",
        "run1  d32-L3  dense          1   39.2k   25.6k    100  6.8e9    256     5e-3   {}  resume 40%",
        "run2  d16-L2  lowrank-63     1   6.34k   25.6k    100  1.2e9    256     5e-3     -  failed",
        "run3  d32-L3  lowrank-63     1   33.1k   25.6k    100  5.8e9    256     5e-3  {}  new",
    ]
    for n in (1, 3):
        rate = 20_000.0 * flops_per_token(configs[n].model)
        work = plan.runs[n].new_flops + configs[n].eval.tokens * model_counts(configs[n].model).forward
        expected[n + 1] = expected[n + 1].format(duration(round(work / rate + STARTUP_SECONDS, 1)))
    assert [" ".join(line.split()) for line in plan_table(plan).splitlines()] == [
        " ".join(line.split()) for line in expected
    ]
    assert max(map(len, plan_table(plan).splitlines())) <= 120


def test_the_real_table_fits_120_columns() -> None:
    text = '[axes]\npreset = ["paper-xl", "cpu-2xl"]\nstructure = ["blockshuffle-63"]\nseed = [100000]\n'
    configs = grid(text)
    plan = make_plan(configs, ["0123456789ab"] * 2, {}, Prices([], SETTING), 1)
    assert max(map(len, plan_table(plan).splitlines())) <= 120


@pytest.mark.parametrize(
    ("state", "action"),
    [
        (RunState(), "new"),
        (RunState("running", step=5), "running"),
        (RunState("preempted", checkpoint=50), "resume"),
        (RunState("preempted"), "retry"),
        (RunState("failed", failures=1), "retry"),
        (RunState("failed", failures=2), "failed"),
        (RunState("done"), "done"),
        (RunState("diverged"), "diverged"),
        (RunState("corrupt"), "corrupt"),
    ],
)
def test_actions(state: RunState, action: str) -> None:
    assert planned({"run0": state}).runs[0].action == action


def test_only_what_is_left_is_priced() -> None:
    whole = planned().totals
    configs = grid()
    assert whole.new_flops == whole.flops == sum(train_flops(config) for config in configs)
    part = planned({"run0": RunState("done"), "run1": RunState("preempted", checkpoint=75)}).totals
    saved = train_flops(configs[0]) + 0.75 * train_flops(configs[1])
    assert part.new_flops == whole.flops - saved
    assert part.actions == {"done": 1, "resume": 1, "new": 2}
    assert part.bytes == 24 * sum(model_counts(config.model).params_total for config in configs[1:])


def test_runs_without_id_are_priced_as_new() -> None:
    configs = grid()
    plan = make_plan(configs, [UNKNOWN] * len(configs), {UNKNOWN: RunState("done")}, Prices([], SETTING), 1)
    assert {run.action for run in plan.runs} == {"new"}


@given(st.lists(st.floats(0.1, 100), max_size=20), st.integers(1, 5))
def test_wall_time_lies_between_its_bounds(seconds: list[float], slots: int) -> None:
    wall = wall_seconds(seconds, slots)
    least = max([sum(seconds) / slots, *seconds])
    assert least - 1e-6 <= wall <= sum(seconds) / slots + max(seconds, default=0) + 1e-6


def test_speed_comes_from_finished_runs_on_the_same_setting() -> None:
    small, large = grid()[0], grid()[1]
    rates = {id(small): 4e9, id(large): 1e10}
    results = [
        fake_result(c, "x", tokens_per_second=rates[id(c)] / flops_per_token(c.model)) for c in (small, large)
    ]
    prices = Prices(results, SETTING)
    for config in (small, large):
        price = prices.price(config)
        work = train_flops(config) + config.eval.tokens * model_counts(config.model).forward
        assert price.measured
        assert price.seconds == pytest.approx(work / rates[id(config)] + STARTUP_SECONDS)
    for setting in (Setting("another", 1), Setting("a processor", 2)):
        assert not Prices(results, setting).price(small).measured


def test_speed_is_interpolated_between_sizes_and_kept_apart_by_structure() -> None:
    configs = grid()
    small, large, low = configs[0], configs[1], configs[3]
    between = grid(GRID.replace("[16, 32]", "[24]").replace("[2, 3]", "[2]"))[0]
    results = [
        fake_result(small, "x", tokens_per_second=1e9 / flops_per_token(small.model)),
        fake_result(large, "x", tokens_per_second=4e9 / flops_per_token(large.model)),
        fake_result(low, "x", tokens_per_second=1e8 / flops_per_token(low.model)),
    ]
    prices = Prices(results, SETTING)
    work = train_flops(between) + between.eval.tokens * model_counts(between.model).forward
    rate = work / (prices.price(between).seconds - STARTUP_SECONDS)
    assert 1e9 < rate < 4e9
    assert prices.price(low).seconds > 10 * prices.price(large).seconds


def test_what_was_measured_far_away_or_too_shortly_makes_a_guess_and_not_a_measurement() -> None:
    small, large = grid()[0], grid()[1]
    assert not Prices([fake_result(small, "x")], SETTING).price(large).measured
    assert not Prices([fake_result(small, "x", seconds=0.5)], SETTING).price(small).measured
    slow, fast = (Prices([fake_result(small, "x", tokens_per_second=s)], SETTING) for s in (1e3, 1e5))
    assert slow.price(large).seconds > 10 * fast.price(large).seconds


def test_caps_refuse_and_say_by_how_much() -> None:
    totals = planned().totals
    refuse_past_caps(totals, totals.new_flops, totals.seconds / 3600 + 0.01)
    with pytest.raises(SweepError, match=f"{flops(totals.new_flops - 1e9)} more than --max-flops 1e"):
        refuse_past_caps(totals, 1e9, None)
    with pytest.raises(SweepError, match=r"more than --max-hours 0\.0001"):
        refuse_past_caps(totals, None, 0.0001)


def warnings(more: str, text: str = GRID) -> list[str]:
    configs = grid(text, more)
    labels = [(run_labels(c)["size"], run_labels(c)["structure"]) for c in configs]
    return differences(configs, labels)


def test_equal_tuning_is_not_warned_of() -> None:
    assert warnings("") == []


def test_tuning_differences_are_named_with_their_values() -> None:
    lines = warnings(
        '[[override]]\nwhen = { structure = "lowrank-63", model.d_model = 16 }\n'
        "set = { optim.peak_lr = 4e-3, optim.weight_decay = 0.0, eval.tokens = 640, seed = 3 }\n"
    )
    assert lines == [
        "d16-L2: peak_lr differs: dense 5e-3, lowrank-63 4e-3",
        "d16-L2: weight_decay differs: dense 0.1, lowrank-63 0",
        "d16-L2: eval.tokens differs: dense 131072, lowrank-63 640",
        "d16-L2: seed differs: dense 1, lowrank-63 3",
    ]


def test_a_budget_of_each_run_itself_is_a_difference() -> None:
    text = GRID.replace("tokens = 25600", "tokens_per_param = 20")
    assert [line.split(":")[1].split()[0] for line in warnings("", text)] == ["tokens", "tokens"]


def test_equal_sets_of_values_are_no_difference() -> None:
    assert (
        warnings("", GRID.replace("[axes]\n", "[axes]\noptim.peak_lr = [1e-3, 2e-3]\nseed = [1, 2]\n")) == []
    )


def test_other_shapes_of_one_size_are_a_difference() -> None:
    lines = warnings(
        '[[override]]\nwhen = { structure = "dense" }\nset = { model.d_ff = 48, model.bias = false }\n'
    )
    assert [line.split(" differs")[0] for line in lines[:2]] == ["d16-L2: d_ff", "d16-L2: bias"]


def test_layout_shares_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps import machine

    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(machine, "gpus", lambda: ())
    for given_, slots, threads in (
        ({}, 8, 1),
        ({"slots": 2}, 2, 4),
        ({"threads": 4}, 2, 4),
        ({"slots": 3, "threads": 2}, 3, 2),
        ({"slots": 20}, 20, 1),
    ):
        layout = plan_layout(SweepExecution.model_validate(given_))
        assert (layout.slots, layout.execution.threads) == (slots, threads)
        assert {env["OMP_NUM_THREADS"] for env in layout.environments} == {str(threads)}
    with pytest.raises(SweepError, match="no GPU that torch can use"):
        plan_layout(SweepExecution(device="cuda"))
    with pytest.raises(SweepError, match="--device cpu contradicts"):
        with_options(SweepExecution(devices=(0,)), None, None, "cpu", "try.toml")
    with pytest.raises(SweepError, match=r"command line: device = 'tpu'"):
        with_options(SweepExecution(), None, None, "tpu", "try.toml")


def test_layout_packs_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps import machine

    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(machine, "gpus", lambda: (machine.Gpu("2", "NVIDIA X"), machine.Gpu("5", "NVIDIA X")))
    layout = plan_layout(SweepExecution(per_device=2))
    assert [env["CUDA_VISIBLE_DEVICES"] for env in layout.environments] == ["2", "5", "2", "5"]
    assert (layout.execution.device, layout.execution.threads) == ("cuda", 2)
    assert layout.setting == Setting("NVIDIA X", 2, gpu=True, per_device=2)
    only = plan_layout(SweepExecution(devices=(1,)))
    assert [env["CUDA_VISIBLE_DEVICES"] for env in only.environments] == ["5"]
    with pytest.raises(SweepError, match="there is no GPU 2"):
        plan_layout(SweepExecution(devices=(2,)))


def test_totals_are_readable() -> None:
    text = totals_text(planned().totals, "here")
    assert text.startswith("4 runs (4 new); 1.5e10 FLOPs in all\nto do: 1.5e10 FLOPs, about ")
    assert "guessed" in text
    assert text.endswith("here")


def test_numbers_as_people_write_them() -> None:
    assert [count(x) for x in (0, 842, 999.7, 1000, 12_345, 2_345_678, 9.999e8)] == [
        "0", "842", "1k", "1k", "12.3k", "2.35M", "1G",
    ]  # fmt: skip
    assert [number(x) for x in (5e-3, 0.016, 2.5e-4, 0.1, 4096, 1.5e9, 0.0)] == [
        "5e-3", "0.016", "2.5e-4", "0.1", "4096", "1.5e9", "0",
    ]  # fmt: skip
    assert [duration(x) for x in (0.4, 59.6, 3599.7, 86400 * 2.5)] == [
        "0 s",
        "1 min 00 s",
        "1 h 00 min",
        "2 d 12 h",
    ]
    assert (size(1.5e6), size(12), flops(1.234e13)) == ("1.5 MB", "12 B", "1.2e13")
    assert table(("a", "bb"), [("1", "x"), ("22", "y")], frozenset({"a"})) == " a  bb\n 1  x\n22  y"
