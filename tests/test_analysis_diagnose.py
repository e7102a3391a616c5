"""Every pitfall of the catalogue, planted and found; clean tables, in which nothing is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.arrays import Array
from analysis.claim import Claim, read_claim
from analysis.diagnose import diagnose
from analysis.errors import AnalysisError
from analysis.findings import CATALOGUE
from analysis.fit import LEAST_SQUARES, Fit, Settings, fit_law
from analysis.laws import CHINCHILLA, IRREDUCIBLE
from analysis.runs.reading import read_csv
from analysis.runs.table import Runs

LAW = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
NOISE = 0.002


def loss_of(n: Array, d: Array, law: dict[str, float] = LAW) -> Array:
    return law["E"] + law["A"] * n ** -law["alpha"] + law["B"] * d ** -law["beta"]


def frame(
    n: Array, d: Array, seed: int = 0, law: dict[str, float] = LAW, noise: float = NOISE
) -> pd.DataFrame:
    dice = np.random.default_rng(seed)
    loss = loss_of(n, d, law) * np.exp(noise * dice.standard_normal(n.size))
    return pd.DataFrame(
        {
            "structure": "dense",
            "seed": 0,
            "params": n,
            "tokens": d,
            "train_flops": 6 * n * d,
            "val_loss": loss,
        }
    )


def grid(sizes: int = 6, ratios: int = 5, seed: int = 0, law: dict[str, float] = LAW) -> pd.DataFrame:
    n = np.repeat(np.geomspace(1e7, 1e10, sizes), ratios)
    return frame(n, n * np.tile(np.geomspace(4, 90, ratios), sizes), seed, law)


def budgets(center: float = 1.0, width: float = 16.0, seed: int = 0) -> pd.DataFrame:
    """Five budgets of seven sizes about the optimum of each, times `center`."""
    parts = []
    for c in np.geomspace(1e18, 1e21, 5):
        best = (LAW["alpha"] * LAW["A"] / LAW["beta"] / LAW["B"]) ** (1 / 0.62) * (c / 6) ** (0.28 / 0.62)
        n = best * center * np.geomspace(1 / width, width, 7)
        parts.append(frame(n, c / 6 / n, seed + len(parts)))
    return pd.concat(parts, ignore_index=True)


def codes(table: pd.DataFrame, law: Any = CHINCHILLA, **options: Any) -> set[str]:
    clusters = [str(run) for run in table["run"]] if "run" in table else None
    found = diagnose(Runs(table), "t", law, clusters=clusters, **options)
    return {finding.code for one in found for finding in one.findings}


def seeds() -> pd.DataFrame:
    """Four sizes along one line, three seeds of each: enough for a law in FLOPs."""
    flops = np.repeat(np.geomspace(1e15, 1e19, 6), 3)
    dice = np.random.default_rng(5)
    loss = (1.2 + 4e3 * flops**-0.22) * np.exp(0.0005 * dice.standard_normal(flops.size))
    n = np.sqrt(flops / 120)
    return pd.DataFrame(
        {
            "structure": "dense", "seed": np.tile([0, 1, 2], 6), "params": n, "tokens": 20 * n,
            "train_flops": flops, "val_loss": loss,
        }
    )  # fmt: skip


def test_nothing_is_found_in_clean_tables() -> None:
    other = pd.concat([grid(seed=3), grid(seed=4, law={**LAW, "A": 500.0}).assign(structure="lowrank")])
    counted = grid(8, 6, seed=6)
    counted["train_flops"] *= 1.03
    assert codes(grid(seed=1)) == set()
    assert codes(other.reset_index(drop=True)) == set()
    assert codes(counted) == set()
    assert codes(seeds(), IRREDUCIBLE) == set()


def test_nothing_is_found_in_clean_budgets() -> None:
    assert codes(budgets(width=8)) <= {"SL017"}


def planted_outliers() -> pd.DataFrame:
    table = grid(10, 8, seed=2)
    table.loc[[0, 1, 2], "val_loss"] *= 1.08
    return table


def planted_minima() -> pd.DataFrame:
    """Where N and D vary together the two terms can change places: two optima, equally good."""
    n = np.geomspace(1e7, 1e10, 16)
    return frame(n, 20 * n, law={"E": 1.69, "A": 6000.0, "B": 30.0, "alpha": 0.55, "beta": 0.15}, noise=1e-4)


def planted_rounding() -> pd.DataFrame:
    table = budgets(width=4)
    spent = table["train_flops"] * np.where(table["train_flops"] > 1e19, 1.0, 1.075)
    table["tokens"] = spent / 6 / table["params"]
    table["train_flops"] = [float(f"{value:.0e}") for value in table["train_flops"]]
    return table


def planted_decay() -> pd.DataFrame:
    return grid().assign(lr_decayed=["true"] * 20 + ["false"] * 10)


def planted_rates() -> pd.DataFrame:
    return pd.concat([grid().assign(peak_lr="1e-3"), grid().iloc[:6].assign(peak_lr="2e-3", seed=1)])


def planted_runs() -> pd.DataFrame:
    n = np.repeat(np.geomspace(1e7, 1e10, 12), 5)
    table = frame(n, n * np.tile([5.0, 10, 20, 40, 80], 12))
    return table.assign(run=[f"r{i // 5}" for i in range(60)])


def planted_counts() -> pd.DataFrame:
    table = grid()
    table["train_flops"] *= 1.2
    return table


def planted_bend() -> pd.DataFrame:
    """A sawtooth over sizes with three seeds: replicates scatter less than the law misses."""
    table = pd.concat([grid(seed=s).assign(seed=s) for s in range(3)], ignore_index=True)
    place = table["params"].rank(method="dense").astype(int)
    table["val_loss"] *= np.where(place % 2 == 0, 1.02, 0.98)
    return table


PLANTED: list[tuple[str, Callable[[], pd.DataFrame]]] = [
    ("SL004", planted_minima),
    ("SL006", lambda: frame(np.geomspace(1e7, 1e10, 12), 20 * np.geomspace(1e7, 1e10, 12))),
    ("SL007", lambda: grid(law={**LAW, "E": 1e-9})),
    ("SL008", planted_outliers),
    ("SL009", planted_decay),
    ("SL010", lambda: grid().assign(n_trials=["5"] * 10 + ["1"] * 20)),
    ("SL010", planted_rates),
    ("SL011", planted_rounding),
    ("SL012", planted_counts),
    ("SL015", lambda: budgets(center=60.0, width=4)),
    ("SL018", planted_runs),
    ("SL019", lambda: grid().assign(loss_kind="train, smoothed")),
    ("SL021", planted_bend),
    ("SL023", lambda: frame(np.repeat(np.geomspace(1e8, 4e8, 6), 4), np.tile(np.geomspace(1e9, 4e9, 4), 6))),
]  # fmt: skip


@pytest.mark.parametrize(("code", "table"), PLANTED, ids=[f"{c}-{i}" for i, (c, _) in enumerate(PLANTED)])
def test_a_planted_defect_is_found_by_its_code(code: str, table: Callable[[], pd.DataFrame]) -> None:
    assert code in codes(table().reset_index(drop=True))


def test_runs_of_other_ratios_on_one_curve_are_found() -> None:
    assert "SL024" in codes(grid(), IRREDUCIBLE) and "SL024" not in codes(grid())
    assert "SL024" not in codes(seeds(), IRREDUCIBLE)


def test_an_inverted_parabola_is_found() -> None:
    table = budgets(width=4)
    first = table["train_flops"] < 2e18
    x = np.log(table.loc[first, "params"])
    table.loc[first, "val_loss"] = 3.4 - 0.02 * (x - x.mean()) ** 2
    assert "SL014" in codes(table)


def test_a_flat_curve_is_found() -> None:
    table = budgets(width=1.05)
    table["val_loss"] *= np.exp(0.01 * np.random.default_rng(1).standard_normal(len(table)))
    assert "SL016" in codes(table)


def test_delta_far_from_the_noise_is_found() -> None:
    assert "SL005" in codes(grid(8, 6), settings=Settings(huber_delta=1e-5))
    assert "SL005" in codes(grid(8, 6), settings=Settings(huber_delta=1.0))


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("SL002", {"starts": {name: [0.9 * value, value] for name, value in LAW.items()}}),
        ("SL003", {"bounds": {"B": (0.0, 410.7)}}),
        ("SL001", {"params": {**LAW, "alpha": 0.30, "A": 200.0}}),
        ("SL013", {"intervals": {"alpha": (0.3399, 0.3401)}}),
    ],
)
def test_a_published_fit_is_held_against_the_data(code: str, changes: dict[str, Any]) -> None:
    table = grid(seed=1)
    clean = Claim(
        params=LAW, intervals={"alpha": (0.32, 0.36)}, starts={"E": [0.5, 1.0], "alpha": [0.34]},
        bounds={"B": (0.0, 1e4)},
    )  # fmt: skip
    assert not {"SL002", "SL003", "SL013"} & codes(table, claim=clean)
    assert code in codes(table, claim=Claim(**{**vars(clean), **changes}))


def test_fits_of_porian_that_never_left_their_start() -> None:
    """Nine of their fifteen weighted fits are points of the grid that the optimiser began from."""
    folder = Path(__file__).parent.parent / "results" / "published"
    optima, fits = pd.read_csv(folder / "porian_optima.csv"), pd.read_csv(folder / "porian_fits.csv")
    grid_of_starts = {
        "E": [float(np.exp(v)) for v in (-1, -0.5, 0, 0.5, 1)],
        "k": [float(np.exp(v)) for v in (0, 5, 10, 15, 20, 25)],
        "alpha": [0.0, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0],
    }
    stuck = 0
    for config, row in fits.set_index("config").iterrows():
        points = optima[optima["config"] == config].dropna()
        table = pd.DataFrame(
            {
                "structure": "dense", "seed": 0, "params": points["N_opt"], "tokens": points["D_opt"],
                "train_flops": points["flops"], "val_loss": points["loss_opt"],
            }
        )  # fmt: skip
        params = {"E": row["weighted_E"], "k": row["weighted_A"], "alpha": row["weighted_alpha"]}
        found = codes(table, IRREDUCIBLE, claim=Claim(params=params, starts=grid_of_starts))
        stuck += "SL002" in found
    assert stuck == 9


@pytest.mark.parametrize("digits", [2, 3, 4, 8])
def test_the_optimum_itself_may_be_printed_with_any_number_of_digits(tmp_path: Path, digits: int) -> None:
    table, path = grid(seed=1), tmp_path / "claim.json"
    data = {name: table[name].to_numpy() for name in ("params", "tokens")}
    best = fit_law("chinchilla", data, table["val_loss"].to_numpy(), settings=LEAST_SQUARES)
    assert isinstance(best, Fit)
    printed = ", ".join(f'"{name}": {value:.{digits}g}' for name, value in best.params.items())
    path.write_text(f'{{"params": {{{printed}}}}}')
    assert "SL001" not in codes(table, claim=read_claim(path))


def test_claims_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    for text, words in (
        ("{", "is no JSON"),
        ("[]", "has no object 'params'"),
        ('{"params": {"E": "much"}}', "params.E = 'much' is no finite number"),
        ('{"params": {"E": NaN}}', "params.E = nan is no finite number"),
        ('{"params": {"E": 1}, "intervals": {"E": [1]}}', "intervals.E = .1.0. is no pair"),
        ('{"params": {"E": 1}, "intervals": {"E": [2, 1]}}', "is no pair"),
        ('{"params": {"E": 1}, "intervals": {"F": [1, 2]}}', "intervals.F: params has no 'F'"),
        ('{"params": {"E": 1}, "bounds": 3}', "bounds is no object of lists"),
        ('{"params": {"E": 1}, "intervall": {}}', "'intervall' is no key; its keys are law, group"),
    ):
        path.write_text(text)
        with pytest.raises(AnalysisError, match=words):
            read_claim(path)
    with pytest.raises(AnalysisError, match="cannot be read"):
        read_claim(tmp_path / "none.json")
    with pytest.raises(AnalysisError, match="A = -1 is not above zero"):
        codes(grid(), claim=Claim(params={**LAW, "A": -1.0}))
    with pytest.raises(AnalysisError, match="no value of A"):
        codes(grid(), claim=Claim(params={"E": 1.0}))


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["analysis", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    grid().assign(lr_decayed=["true"] * 20 + ["false"] * 10).to_csv(path, index=False)
    assert len(read_csv(path).table) == 30
    card = tmp_path / "card.md"
    assert command(monkeypatch, "diagnose", str(path), "--card", str(card)) == 0
    text = capsys.readouterr().out
    assert "SL009 learning rate not decayed (dense): 10 of 30 points" in text and "Remedy:" in text
    assert "## Runs" in card.read_text() and "dataset: not recorded" in card.read_text()
    assert command(monkeypatch, "diagnose", str(path), "--strict", "--json") == 1
    body = json.loads(capsys.readouterr().out)
    assert [item["code"] for item in body[0]["diagnostics"]] == ["SL009"]
    assert command(monkeypatch, "diagnose", "--catalogue") == 0
    assert all(code in capsys.readouterr().out for code in ("SL001",)) and len(CATALOGUE) >= 20
    assert command(monkeypatch, "diagnose") == 2
    assert command(monkeypatch, "diagnose", str(path), "--card", str(tmp_path / "card.txt")) == 2
    assert capsys.readouterr().err.count("\n") == 2
