"""Coverage of the intervals and level of the tests, in simulated tables of known laws."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from analysis.__main__ import parsers
from analysis.commandline import parse
from analysis.commands import coverage as command
from analysis.coverage.nulls import WIDE, Setting, clean_groups, reject, settings
from analysis.coverage.report import (
    COVERAGE_HEADER,
    REJECTION_HEADER,
    UNEQUAL_HEADER,
    WANTED,
    WANTED_REJECTIONS,
    Simulated,
    markdown,
    simulate,
    to_json,
)
from analysis.coverage.simulate import NOISE, Study, clean_losses, cover, errors, studies
from analysis.coverage.unequal import PLACES, TIMES, larger, reject_unequal, unequal_settings
from analysis.errors import AnalysisError
from analysis.fit import Fit, fit_law

FEW = [study for study in studies() if study.words in ("4 sizes x 3 ratios", "6 budgets x 4 seeds")]
TESTS = [setting for setting in settings() if setting.sizes == 4 and setting.flops == WIDE]
UNEQUAL = unequal_settings()
NULLS = 2000


def silent(_: str) -> None:
    pass


def few(seed: int = 0) -> Simulated:
    return simulate(4, seed, FEW[:3], TESTS, UNEQUAL[:2])


@pytest.fixture(scope="module")
def found() -> Simulated:
    return few()


def test_tables_have_a_row_for_each_study_and_the_same_seed_gives_the_same_bytes(found: Simulated) -> None:
    text = markdown(found)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 3 * 2 + 3 + len(TESTS) + 2
    headers = (COVERAGE_HEADER, REJECTION_HEADER, UNEQUAL_HEADER)
    assert {line.count(" | ") + 1 for line in lines} <= {len(header) for header in headers}
    again = few()
    assert markdown(again) == text and to_json(again) == to_json(found)


def test_simulated_fits_and_tests_are_those_of_the_public_functions(found: Simulated) -> None:
    assert max(c.gap for c in found.coverages) < 1e-5 and all(c.checked for c in found.coverages)
    assert max(r.gap for r in found.rejections) < 1e-6 and not any(r.disagreed for r in found.rejections)
    assert max(u.gap for u in found.unequal) < 1e-9 and all(u.checked for u in found.unequal)


def test_json_holds_the_counts(found: Simulated) -> None:
    body = json.loads(to_json(found))
    first, test = body["coverage"][0], body["rejections"][-1]
    assert (first["law"], first["n"], first["simulations"]) == ("chinchilla", 12, 20)
    assert to_json(simulate(8, 1, FEW[:1], (), ())) != to_json(simulate(8, 0, FEW[:1], (), ()))
    assert set(first["coverage"]) == {"E", "A", "B", "alpha", "beta", "a"}
    assert first["coverage"]["a"] == pytest.approx(1 - (first["below"]["a"] + first["above"]["a"]) / 20)
    assert (test["hypothesis"], test["nulls"], test["permuted"]) == ("separate", 20, 4)
    uneven = body["unequal"][1]
    assert (uneven["place"], uneven["structures"], uneven["nulls"]) == ("at the smallest size", 5, 20)


@pytest.mark.parametrize("study", studies(), ids=lambda s: f"{s.law}-{s.words}-{s.noise}".replace(" ", "_"))
def test_the_truth_of_a_study_is_what_a_fit_without_noise_finds(study: Study) -> None:
    found = fit_law(study.law, study.data, clean_losses(study))
    assert isinstance(found, Fit) and found.params == pytest.approx(study.truth, rel=1e-9)
    drawn = errors(study, 4000, np.random.default_rng(0))
    # Of t3, whose fourth moment is infinite, the standard deviation settles slowly.
    assert drawn.std() == pytest.approx(NOISE, rel=0.05)
    if study.runs is not None:
        within = np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]
        assert within == pytest.approx(0.25, abs=0.06)


@pytest.mark.parametrize("setting", TESTS, ids=lambda s: s.hypothesis)
def test_structures_of_a_null_differ_in_all_but_their_exponent(setting: Setting) -> None:
    groups = clean_groups(setting)
    slopes, levels = set(), set()
    for flops, loss in groups.values():
        law = "power" if setting.hypothesis == "none" else "irreducible"
        fit = fit_law(law, {"train_flops": flops}, loss)
        assert isinstance(fit, Fit) and fit.n == setting.sizes * setting.seeds
        slopes.add(round(fit.value("alpha"), 6))
        levels.add(round(fit.value("k"), 3))
    assert len(slopes) == 1 and len(levels) == setting.structures == len(groups)


def test_command_prints_and_writes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("analysis.coverage.report.studies", lambda: tuple(FEW[:1]))
    monkeypatch.setattr("analysis.coverage.report.settings", lambda: tuple(TESTS[:1]))
    monkeypatch.setattr("analysis.coverage.report.unequal_settings", lambda: UNEQUAL[:1])
    words = ["coverage", "--simulations", "2", "--out", str(tmp_path), "--json", str(tmp_path / "c.json")]
    command.run(parse(*parsers(), words))
    printed = capsys.readouterr().out
    assert (tmp_path / "coverage.md").read_text() == printed
    assert json.loads((tmp_path / "c.json").read_text())["simulations"] == 2


@pytest.mark.parametrize(("simulations", "seed"), [(0, 0), (-3, 0), (5, -1)])
def test_senseless_counts_are_refused(simulations: int, seed: int) -> None:
    with pytest.raises(AnalysisError):
        simulate(simulations, seed)


def slack(level: float, count: int) -> float:
    """Two standard errors of a share: what chance may add to the limits."""
    return 2 * math.sqrt(level * (1 - level) / count)


PLAIN = [s for s in studies() if s.runs is None]


@pytest.mark.parametrize("place", PLACES)
def test_noise_is_larger_where_it_is_said_to_be(place: str) -> None:
    design = Setting(3, 5, 2, WIDE, "none")
    mine = larger(design, place).reshape(3, 5, 2)
    wanted = np.zeros((3, 5, 2), bool)
    wanted[{
        "nowhere": np.s_[:0],
        "at the smallest size": np.s_[:, 0],
        "at the largest size": np.s_[:, 4],
        "at the two largest sizes": np.s_[:, 3:],
        "at the middle size": np.s_[:, 2],
        "in the first structure": np.s_[0],
    }[place]] = True  # fmt: skip
    assert np.array_equal(mine, wanted)


def test_the_wild_bootstrap_keeps_its_level_where_noise_is_unequal_and_f_does_not() -> None:
    design = Setting(5, 5, 3, WIDE, "none")
    found = reject_unequal(design, "at the largest size", 400, (0, 9), 1, silent)
    assert TIMES == 3 and found.gap < 1e-9
    # A share of 8 % has a standard error of 1.4; F rejects about 21 %.
    assert found.by_wild / 400 < 0.09 < 0.15 < found.by_f / 400
    assert found.found_by_f > found.by_f and found.found_by_wild > found.by_wild
    assert reject_unequal(design, "nowhere", 400, (0, 9), 0, silent).by_f / 400 < 0.085


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("study", PLAIN, ids=lambda s: f"{s.law}-{s.words}-{s.noise}".replace(" ", "_"))
def test_intervals_of_95_percent_cover_the_truth_93_to_97_percent(study: Study) -> None:
    count = 250 if study.resampled else 1000
    found = cover(study, count, (0, 7), 2, silent)
    assert found.without == 0 and found.gap < 1e-5
    extra = slack(0.95, count)
    for name in found.below:
        assert WANTED[0] - extra <= found.share(name) <= WANTED[1] + extra, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting", settings(), ids=lambda s: f"{s.words}-{s.flops[0]:g}-{s.hypothesis}".replace(" ", "_")
)
def test_f_rejects_equal_exponents_in_5_percent_of_the_tables(setting: Setting) -> None:
    found = reject(setting, NULLS, 0, (0, 8), 2, silent)
    assert found.gap < 1e-5
    share, extra = found.by_f / NULLS, slack(0.05, NULLS)
    assert share <= WANTED_REJECTIONS[1] + extra
    # Where the points do not identify E, its bound at 0 makes the test conservative.
    assert setting.note or share >= WANTED_REJECTIONS[0] - extra
    assert found.by_likelihood >= found.by_f


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_checkpoints_need_their_runs_for_honest_intervals() -> None:
    alone, told = (s for s in studies() if s.words.startswith("12 runs x 6 checkpoints"))
    careless, careful = cover(alone, 120, (0, 9), 1, silent), cover(told, 500, (0, 9), 1, silent)
    for name in careful.below:
        assert careful.share(name) >= WANTED[0] - slack(0.95, 500)
    assert np.mean([careless.share(name) for name in careless.below]) < WANTED[0]
