"""Peak learning rates of a sweep by rule: a rate for each structure at one width, and how it goes with width.

[rates]
of_width = 24                # d_model at which the rates below hold
exponent = -1.0              # peak_lr = rate * (d_model / of_width)^exponent; the same for all structures
peak_lr = { dense = 0.0125, lowrank-32 = 0.011 }

`python -m analysis figures STUDY` writes this table from a study of learning rates at two sizes or more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from sweeps.errors import SweepError
from sweeps.rules import lookup
from trainer.messages import nearest
from trainer.presets import Partial

DIGITS = 3
"""Significant digits of a rate: what the rule says is no better known, and reads well in tables."""
KEY = "optim.peak_lr"


class Rates(BaseModel):
    """The table [rates] of a sweep file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    of_width: int = Field(gt=0)
    """d_model at which the rates hold."""
    exponent: float = -1.0
    """Of d_model in the peak learning rate; -1 is the usual rule for Adam in the standard parametrization."""
    peak_lr: dict[str, float] = Field(min_length=1)
    """Structure, by the name that the sweep gives it -> peak learning rate at that width."""

    def at(self, structure: str, d_model: int) -> float:
        """The peak learning rate of a structure at a width, to three significant digits."""
        rate = self.peak_lr[structure] * (d_model / self.of_width) ** self.exponent
        return float(f"{rate:.{DIGITS}g}")


def rate_of(rates: Rates, partial: Partial, source: str) -> float:
    """The peak learning rate of a grid point; SweepError where the table has none for it.

    Args:
        rates: the table.
        partial: the point, without its own peak learning rate.
        source: what error messages call the point.
    """
    structure, width = lookup(partial, "structure"), lookup(partial, "model.d_model")
    if not isinstance(structure, str):
        shown = structure.get("kind") if isinstance(structure, Mapping) else structure
        raise SweepError(
            f"{source}: [rates] goes by the names of structures, and this one ({shown}) is a table; give its "
            "peak_lr in an [[override]] and leave it out of a sweep with [rates], or name it, as 'lowrank-32'"
        )
    if structure not in rates.peak_lr:
        hint = nearest(structure, list(rates.peak_lr))
        raise SweepError(f"{source}: rates.peak_lr has no rate for structure '{structure}'{hint}")
    if not isinstance(width, int) or isinstance(width, bool) or width <= 0:
        raise SweepError(f"{source}: [rates] goes by the width; give model.d_model or a preset")
    return rates.at(structure, width)


def checked(rates: Rates, base: Partial, chosen: Sequence[str], source: str) -> Rates:
    """The table, once no second place says the rates and all are positive; SweepError otherwise.

    It may have structures that the grid has not: a rule is pasted whole.

    Args:
        rates: the table.
        base: partial configuration of all points.
        chosen: dotted keys of axes, zips and the space.
        source: what error messages call the file.
    """
    for structure, rate in rates.peak_lr.items():
        if not rate > 0:
            raise SweepError(f"{source}: rates.peak_lr.{structure} = {rate:g}: give a rate above 0")
    if KEY in chosen or "peak_lr" in chosen:
        raise SweepError(f"{source}: both [rates] and an axis say {KEY}; keep one")
    if "peak_lr" in (base.get("optim") or {}):
        raise SweepError(f"{source}: both [rates] and base.{KEY} say the rate; keep one")
    return rates
