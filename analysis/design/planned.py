"""From a table of planned runs to their grid, and to what is assumed of law and noise, with the sources."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.arrays import Array
from analysis.compare.nested import joint_fit
from analysis.design.precision import Assumed, Grid, alike, freed, usable
from analysis.digits import number
from analysis.engine.sums import SumLaw
from analysis.errors import AnalysisError
from analysis.laws import CHINCHILLA, IRREDUCIBLE, POWER, TIED
from analysis.runs.labels import base_and_variant, structure_order
from analysis.runs.table import Runs
from analysis.runs.treatments import VARIANTS, places
from analysis.runs.variants import isoflop_sets, variants

LAWS = (POWER, IRREDUCIBLE, CHINCHILLA, TIED)
"""Laws that a design is made for."""
COLUMNS = ("params", "tokens", "train_flops")
REDUCIBLE, WHOLE = 1.3, 3.0
"""Nats above the irreducible loss at the centre of the grid; the loss there under a law without one."""
DEFAULTS: dict[str, tuple[dict[str, float], str]] = {
    "power": ({"alpha": 0.055}, "log-log slopes in arXiv 2406.16450, fig. 1: .054 to .056"),
    "irreducible": ({"E": 1.69, "alpha": 0.132}, "arXiv 2406.16450, fig. 1, with E = 1.69 subtracted"),
    "chinchilla": (
        {"E": 1.82, "alpha": 0.348, "beta": 0.366},
        "Hoffmann et al.'s runs as fitted by Besiroglu et al., arXiv 2404.10102",
    ),
    "tied": ({"E": 1.82, "eta": 0.36}, "between the two exponents of Besiroglu et al., arXiv 2404.10102"),
}
"""Law -> values that are assumed where nobody gives others, and whose they are."""
SEED_NOISE = 0.0014
SEED_SOURCE = (
    "median sd of log loss between seeds over 16 replicated configurations of 2.8 and 4.2 billion parameters "
    "(published/datablations_spread.csv; they range from .0003 to .01); small networks scatter more: "
    "measure yours with --noise-from"
)
CELL = ("structure", "size", "params", "tokens", "train_flops", "unique_tokens", "peak_lr")
"""Columns in which replicates agree."""


def chosen_laws(name: str | None, table: pd.DataFrame) -> list[SumLaw]:
    """The law of this name, or all for which the table has what they need.

    Raises:
        AnalysisError: no such law, or the table lacks its columns.
    """
    known = {column for column in COLUMNS if column in table and not table[column].isna().any()}
    if name is None:
        laws = [law for law in LAWS if set(law.variables) <= known]
        if laws:
            return laws
        raise AnalysisError("the runs have neither train_flops nor params and tokens; map yours with --map")
    by_name = {law.name: law for law in LAWS}
    if name not in by_name:
        close = difflib.get_close_matches(name, by_name, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"use one of {', '.join(by_name)}"
        raise AnalysisError(f"--law {name}: no law to plan for; {hint}")
    law = by_name[name]
    if missing := [variable for variable in law.variables if variable not in known]:
        raise AnalysisError(
            f"{law.name} ({law.formula}) needs the column '{missing[0]}'; map yours with --map"
        )
    return [law]


def grid_of(table: pd.DataFrame) -> Grid:
    """The planned runs of a table, as far as their columns are known."""
    data = {c: table[c].to_numpy(np.float64) for c in COLUMNS if c in table and not table[c].isna().any()}
    return Grid(data, tuple(map(str, table["structure"])))


def curves(runs: Runs) -> Runs:
    """The runs, their structures completed by what else tells curves apart, as `fit` labels a sweep's runs.

    That is read from a column `config` (the configuration as JSON) where there is one; runs that spend on
    more tokens what they save against dense ones are told apart where sizes are named.
    """
    table = runs.table
    labels, isoflop = [str(name) for name in table["structure"]], False
    if "config" in table:
        configs = [json.loads(text) if text else {} for text in table["config"]]
        sizes = table["size"] if "size" in table else [""] * len(table)
        keys = [(s, str(size), str(seed)) for s, size, seed in zip(labels, sizes, table["seed"], strict=True)]
        flops = [float(value) for value in table["train_flops"]]
        budgets = isoflop_sets([key[:2] for key in keys], flops)
        named = variants(keys, configs, budgets)
        labels = [f"{s}, {v}" if v else s for s, v in zip(labels, named, strict=True)]
        isoflop = budgets is not None
    if "size" in table and not isoflop:
        records = [
            {**{str(k): v for k, v in record.items()}, "structure": label}
            for record, label in zip(table.to_dict("records"), labels, strict=True)
        ]
        found = [VARIANTS.get(place.treatment) if place else None for place in places(records)]
        told = ["tokens=" in base_and_variant(label)[1] for label in labels]
        labels = [
            f"{label}, {extra}" if extra and not known else label
            for label, extra, known in zip(labels, found, told, strict=True)
        ]
    order = sorted(range(len(labels)), key=lambda i: structure_order(labels[i]))
    return replace(runs, table=table.assign(structure=labels).iloc[order].reset_index(drop=True))


def parse_values(text: str, law: SumLaw, structures: tuple[str, ...]) -> dict[str, float]:
    """Read --assume, such as `E=1.7,alpha=0.3` or `alpha[dense]=0.3`.

    Raises:
        AnalysisError: a name that the law has not, or a value that is no positive number.
    """
    values: dict[str, float] = {}
    # A label with a variant holds commas of its own, inside the brackets.
    for part in _parts(text):
        label, sign, word = (piece.strip() for piece in part.rpartition("="))
        if not (sign and label):
            raise AnalysisError(f"--assume {part!r}: is not NAME=VALUE; write for example alpha=0.3")
        name, _, rest = label.partition("[")
        check_parameter("--assume", name, [law], law.parameters)
        if rest and rest.removesuffix("]") not in structures:
            raise AnalysisError(f"--assume {label}: no such structure; there are {', '.join(structures)}")
        try:
            values[label] = float(word)
        except ValueError:
            raise AnalysisError(f"--assume {label}: {word!r} is not a number; mend it") from None
        if not (math.isfinite(values[label]) and values[label] > 0):
            raise AnalysisError(f"--assume {label}={word}: must be above zero; mend it")
    return values


def _parts(text: str) -> list[str]:
    parts: list[str] = []
    for part in text.split(","):
        if parts and parts[-1].count("[") > parts[-1].count("]"):
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    return parts


def check_parameter(option: str, name: str, laws: Sequence[SumLaw], valid: Sequence[str]) -> None:
    """Refuse a name that is none of the laws', with the nearest one that is."""
    if name not in valid:
        close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'? " if close else ""
        who = f"{laws[0].name} has" if len(laws) == 1 else "these laws have"
        raise AnalysisError(f"{option} {name}: {hint}{who} {', '.join(valid)}")


def assume(
    law: SumLaw,
    grid: Grid,
    loss: Array | None,
    given: Mapping[str, float],
    noise: tuple[float, str] | None,
) -> Assumed:
    """What to take for true: what is given, else what the losses say, else published values.

    Args:
        law: the law.
        grid: planned runs.
        loss: their losses, shape (n,), where they have been run.
        given: values of --assume.
        noise: standard deviation of log loss and its source; None for that about the fit, or between seeds.
    """
    fitted = fit_assumed(law, grid, loss) if loss is not None else None
    said = []
    if fitted is not None and fitted.values is not None:
        values = dict(fitted.values)
        said.append(fitted.words)
    else:
        chosen, source = DEFAULTS[law.name]
        values = {**chosen, **_coefficients(law, grid, {**chosen, **given}, given)}
        said += [f"not the losses: {fitted.words}"] if fitted is not None else []
        said.append(f"{source}; coefficients such that {_centre_words(law)}")
    if given:
        values = {k: v for k, v in values.items() if k.split("[")[0] not in given} | dict(given)
        own = "as given: " + ", ".join(f"{name} = {value:g}" for name, value in given.items())
        said = [own] if set(law.parameters) <= set(given) else [own, *said]
    if noise is None and fitted is not None and fitted.noise is not None:
        noise = (fitted.noise, f"residual sd of the fit to the {grid.n} losses of the table")
    level, source = noise or (SEED_NOISE, SEED_SOURCE)
    return Assumed(law, values, level, ("; ".join(said), source))


def _centre_words(law: SumLaw) -> str:
    if len(law.terms) == 1:
        return f"the loss is {WHOLE:g} at the centre of the grid, which has no effect"
    return f"the loss is {REDUCIBLE:g} above E at the centre of the grid"


def _coefficients(
    law: SumLaw, grid: Grid, values: Mapping[str, float], given: Mapping[str, float]
) -> dict[str, float]:
    """Coefficients for a loss that is REDUCIBLE above the constant at the centre of the grid.

    Two terms share it as at the compute optimum, inversely to their exponents.
    """
    terms = [term for term in law.terms if term.powers]

    def exponent(name: str) -> float:
        own = [value for label, value in values.items() if label.split("[")[0] == name]
        return float(np.mean(own))

    weights = [1 / sum(exponent(name) for name in term.powers.values()) for term in terms]
    found, height = {}, REDUCIBLE if len(terms) < len(law.terms) else WHOLE
    for term, weight in zip(terms, weights, strict=True):
        fall = sum(exponent(name) * float(np.log(grid.data[x]).mean()) for x, name in term.powers.items())
        if term.coefficient not in given:
            found[term.coefficient] = height * weight / sum(weights) * math.exp(fall)
    return found


@dataclass(frozen=True)
class Fitted:
    """What the losses of a table say of a law.

    values: of its parameters; None where they are not identified.
    words: how they were fitted, or why there are none.
    noise: residual standard deviation of log loss; None without degrees of freedom.
    """

    values: dict[str, float] | None
    words: str
    noise: float | None


def fit_assumed(law: SumLaw, grid: Grid, loss: Array) -> Fitted:
    """Fit a law to runs that have losses: each structure's own, with one irreducible loss for all.

    Args:
        law: the law.
        grid: the runs.
        loss: held-out losses in nats per token, shape (n,).
    """
    able = usable(law, grid)
    if len(able) < len(grid.structures):
        return Fitted(None, "some structures have too few runs for a fit", None)
    if any(alike(law, grid.of(name)) for name in able):
        return Fitted(None, "their runs do not identify the law", None)
    free = freed(law, share_floor=True) if len(able) > 1 else ()
    fit = joint_fit(law, dict(grid.data), loss, grid.groups, free)
    if fit.dof < 1:
        return Fitted(None, "a fit of them leaves no degree of freedom", None)
    noise, bound = math.sqrt(fit.squares / fit.dof), fit.optimum.bound
    if fit.at_bound:
        return Fitted(None, f"fitted to them, {', '.join(fit.optimum.vanished)} vanishes", noise)
    natural = dict(
        zip((c.label for c in bound.columns), map(float, bound.natural(fit.optimum.phi)), strict=True)
    )
    if min(natural.values()) <= 0:
        return Fitted(None, "fitted to them, the law does not fall", noise)
    jointly = ", one E for all" if free and law.terms[0].powers == {} else ""
    return Fitted(natural, f"fitted to the {grid.n} losses of the table{jointly}", noise)


def seed_noise(runs: Runs, name: str) -> tuple[float, str]:
    """Standard deviation of log loss between replicates of a table, pooled, and where it is from.

    Args:
        runs: the table; rows that agree in structure, size, tokens and FLOPs are replicates.
        name: what the source calls it.

    Raises:
        AnalysisError: no two runs differ in their seed alone.
    """
    table = runs.table
    if table.empty:
        raise AnalysisError(f"--noise-from {name}: no finished runs; name a table with replicates")
    cells = [column for column in CELL if column in table]
    by_cell = np.log(table["val_loss"]).groupby([table[column] for column in cells], dropna=False)
    counts, variances = by_cell.count().to_numpy(), by_cell.var(ddof=1).to_numpy(np.float64)
    several = counts > 1
    dof = int(np.sum(counts[several] - 1))
    if dof == 0:
        raise AnalysisError(
            f"--noise-from {name}: no two runs differ in their seed alone; name a table with replicates, "
            "or give --noise"
        )
    sd = math.sqrt(float(np.sum(variances[several] * (counts[several] - 1))) / dof)
    if not sd > 0:
        raise AnalysisError(f"--noise-from {name}: its replicates have equal losses; give --noise")
    cells_said = f"{int(several.sum())} configuration{'s' if several.sum() > 1 else ''}"
    low, high = math.sqrt(variances[several].min()), math.sqrt(variances[several].max())
    ends = f", from {number(low, None, 2)} to {number(high, None, 2)}" if several.sum() > 1 else ""
    return sd, f"between replicates of {name}: {cells_said}, {dof} degrees of freedom{ends}"
