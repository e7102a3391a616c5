"""The laws: formulas as the literature writes them, each with its source."""

from __future__ import annotations

from analysis.engine.sums import SumLaw, Term

POWER = SumLaw(
    "power", "L = k C^-alpha", (Term("k", {"train_flops": "alpha"}),),
    "Kaplan et al., arXiv 2001.08361, eq. 1.1-1.3",
)  # fmt: skip
IRREDUCIBLE = SumLaw(
    "irreducible", "L = E + k C^-alpha", (Term("E", {}), Term("k", {"train_flops": "alpha"})),
    "Hestness et al., arXiv 1712.00409, eq. 1",
)  # fmt: skip
CHINCHILLA = SumLaw(
    "chinchilla", "L = E + A N^-alpha + B D^-beta",
    (Term("E", {}), Term("A", {"params": "alpha"}), Term("B", {"tokens": "beta"})),
    "Hoffmann et al., arXiv 2203.15556, eq. 2",
)  # fmt: skip
TIED = SumLaw(
    "tied", "L = E + A N^-eta + B D^-eta",
    (Term("E", {}), Term("A", {"params": "eta"}), Term("B", {"tokens": "eta"})),
    "Gadre et al., arXiv 2403.08540, eq. 4: E + (a M^h + b M^-h) C^-h with M = D/N, C = 6ND, h = eta/2",
)  # fmt: skip

OVERTRAIN = SumLaw(
    "overtrain", "L = E + (a M^eta + b M^-eta) C^-eta, M = D/N",
    (
        Term("E", {}), Term("a", {"flops_over_multiplier": "eta"}),
        Term("b", {"flops_times_multiplier": "eta"}),
    ),
    "Gadre et al., arXiv 2403.08540, eq. 4, in counted FLOPs and the token multiplier",
)  # fmt: skip
AVERAGE = SumLaw(
    "average", "L = E + A N_avg^-alpha + B D^-beta",
    (Term("E", {}), Term("A", {"params_avg": "alpha"}), Term("B", {"tokens": "beta"})),
    "Jin et al., arXiv 2501.12486: N_avg = (1/D) integral of N(t) dt, for networks pruned while they train",
)  # fmt: skip

SUM_LAWS = {law.name: law for law in (POWER, IRREDUCIBLE, CHINCHILLA, TIED, OVERTRAIN, AVERAGE)}
