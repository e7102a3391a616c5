"""Wide and structured networks against the transformer: published and ours, with the speed of generating."""

from __future__ import annotations

import csv
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from analysis.arms.gaps import Difference, Gaps, Row, gaps
from analysis.digits import number, quantity, with_error
from analysis.errors import AnalysisError
from analysis.latency import setting
from analysis.runs.labels import base_and_variant, family_and_budget
from analysis.runs.table import Runs
from analysis.runs.treatments import FIXED_FLOPS, MORE_TOKENS, PLAIN, structure_label
from analysis.tables import Table, latex_file

PUBLISHED = "published"
TRANSFORMER, GROUPED, OTHER_DENSE, WIDE = "transformer", "GQA", "dense, other shape", "wide and structured"
GENERATED = 256
"""New tokens of a generation, as in the paper."""
HEADER = (
    "from", "size", "network", "parameters", "training FLOPs", "tokens", "runs", "perplexity",
    "over the transformer (%)", "95 % interval (%)", "tokens/s", "verdict",
)  # fmt: skip


@dataclass(frozen=True)
class Network:
    """One network of the comparison.

    whose: `published`, or the name of a runs table. kind: `transformer`, its grouped-query form `GQA`,
    `dense, other shape`, or `wide and structured`. label: of the structure, for its look. tokens: distinct.
    perplexity: exp of the mean loss over seeds. se: of that mean loss, nats; None for one run.
    gap: to the transformer, nats, paired by seed; None for the transformer and for published ones.
    throughput: new tokens a second at the batch size that gives most, NaN where it was not measured.
    """

    whose: str
    size: str
    kind: str
    label: str
    treatment: str
    params: float
    flops: float
    tokens: float
    runs: int
    perplexity: float
    se: float | None = None
    gap: Difference | None = None
    verdict: str = ""
    diverged: int = 0
    throughput: float = math.nan

    @property
    def words(self) -> str:
        """What kind of network, and what its saved FLOPs were spent on."""
        arm = {PLAIN: "", FIXED_FLOPS: "self-guided", MORE_TOKENS: MORE_TOKENS}.get(
            self.treatment, self.treatment
        )
        return ", ".join(part for part in (self.kind, arm) if part)


def percent(gap: float) -> float:
    """A difference of losses, nats, as what a perplexity lies over the other, in percent."""
    return 100 * math.expm1(gap)


def published_networks(path: Path) -> list[Network]:
    """The rows of `structuredffn_table2_wide_gqa.csv`, arXiv 2406.16450v1, Table 2.

    Raises:
        AnalysisError: the file is not what the repository tracks.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [_published(row) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise AnalysisError(f"{path}: cannot be read ({error}); check the file out again") from None


def _published(row: Mapping[str, str]) -> Network:
    model = row["model"]
    ours, guided = model.startswith("Ours"), "self-guided" in model
    kind = WIDE if ours else GROUPED if "GQA" in model else TRANSFORMER
    tokens, ppl = 1e9 * float(row["tokens_B"]), float(row["ppl"])
    return Network(
        whose=PUBLISHED,
        size=model.replace("-", " ").split()[1],
        kind=kind,
        label="lowrank-63" if ours else "dense",
        treatment=FIXED_FLOPS if guided else MORE_TOKENS if ours else PLAIN,
        params=1e6 * float(row["params_M"]),
        flops=float(row["training_flops"]),
        tokens=tokens,
        runs=1,
        perplexity=ppl,
        throughput=float(row["max_throughput_tok_s_gen256"]),
    )


def own_networks(runs: Runs, name: str, decode: Path | None = None) -> tuple[list[Network], list[str]]:
    """The arms of a runs table, and notes on them.

    Speeds are those of the very network: of its size, structure, number of parameters and, where the table
    counts them, key and value heads. One machine and setting stands for all, that which measured
    most of them.

    Args:
        runs: the table.
        name: of the table.
        decode: results/tables/bench/decode.csv.

    Raises:
        AnalysisError: as `gaps`; the measurements cannot be read.
    """
    found: Gaps = gaps(runs, name)
    table = runs.table.assign(label=[structure_label(str(label)) for label in runs.table["structure"]])
    networks, keys = [], []
    for row in found.rows:
        mine = table[(table["label"] == row.place.structure) & (table["size"] == row.place.size)]
        record = {str(key): value for key, value in mine.iloc[0].items()}
        networks.append(_own(row, record, name))
        keys.append(_key(record))
    notes = list(found.notes)
    if runs.expected > len(runs.table):
        notes.append(found.coverage)
    if decode is None:
        return networks, notes
    where, speeds = _speeds(decode, keys)
    if speeds:
        notes.append(f"tokens/s: {where}; the batch size that gives most")
    return [
        replace(n, throughput=speeds.get(k, math.nan)) for n, k in zip(networks, keys, strict=True)
    ], notes


def _own(row: Row, record: Mapping[str, Any], name: str) -> Network:
    place, guided = row.place, row.place.treatment.startswith("self-guided")
    if place.is_reference:
        kind = TRANSFORMER
    elif family_and_budget(place.structure)[0] != "dense":
        kind = WIDE
    else:
        heads, queries = (_count(record.get(column)) for column in ("n_kv_heads", "n_heads"))
        kind = GROUPED if heads is not None and queries is not None and heads < queries else OTHER_DENSE
    return Network(
        whose=name,
        size=place.size,
        kind=kind,
        label="dense"
        if family_and_budget(place.structure)[0] == "dense"
        else base_and_variant(place.structure)[0],
        treatment=place.treatment,
        params=float(record["params"]),
        flops=row.flops,
        tokens=place.budget if guided and place.budget > 0 else row.tokens,
        runs=len(row.losses),
        perplexity=math.exp(row.loss),
        se=row.se,
        gap=row.gap,
        verdict=row.verdict,
        diverged=row.diverged,
    )


Key = tuple[str, str, int, int | None]


def _key(record: Mapping[str, Any]) -> Key:
    params = _count(record.get("params"))
    structure = base_and_variant(str(record["structure"]))[0]
    return str(record.get("size") or ""), structure, params or -1, _count(record.get("n_kv_heads"))


def _count(value: Any) -> int | None:
    try:
        return round(float(value))
    except (TypeError, ValueError):
        return None


def _speeds(path: Path, keys: Sequence[Key]) -> tuple[str, dict[Key, float]]:
    """The machine and setting that measured most of the networks, in words, and the most that each gave."""
    best: dict[str, dict[Key, float]] = defaultdict(dict)
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if not row.get("error")]
        for row in rows:
            count = row.get("threads") or ""
            threads = f", {count} thread{'s' if count != '1' else ''}" if count else ""
            where = f"{row['device']}{threads}, {setting(row)}, {int(row['length']):,} tokens"
            structure = base_and_variant(row["structure"])[0]
            speed = float(row["tokens_per_second"])
            for key in keys:
                same = key[:3] == (row["size"], structure, int(row["params_total"]))
                if same and key[3] in (None, int(row["n_kv_heads"])):
                    best[where][key] = max(speed, best[where].get(key, 0.0))
    except (OSError, KeyError, ValueError) as error:
        raise AnalysisError(
            f"{path}: cannot be read ({error}); write it again with 'python -m trainer bench decode'"
        ) from None
    if not best:
        return "", {}
    where = min(best, key=lambda name: (-len(best[name]), f"{GENERATED} tokens" not in name, name))
    return where, best[where]


def wide_rows(networks: Sequence[Network]) -> tuple[tuple[str, ...], list[list[str]]]:
    """The comparison as a table: its header, and a row a network; a dash is a number that is not known."""
    rows = []
    for n in networks:
        gap, ends = _gap(n, networks)
        rows.append(
            [
                "arXiv 2406.16450" if n.whose == PUBLISHED else n.whose,
                n.size,
                n.words,
                quantity(n.params),
                quantity(n.flops),
                quantity(n.tokens),
                f"{n.runs} (+ {n.diverged} diverged)" if n.diverged else str(n.runs),
                f"{n.perplexity:.2f}" if n.se is None else with_error(n.perplexity, n.perplexity * n.se),
                gap,
                ends,
                f"{n.throughput:,.0f}" if math.isfinite(n.throughput) else "-",
                "the reference" if n.kind == TRANSFORMER else n.verdict or "-",
            ]
        )
    return HEADER, rows


def _gap(n: Network, networks: Sequence[Network]) -> tuple[str, str]:
    """Perplexity over the transformer's and its interval, in percent."""
    if n.kind == TRANSFORMER:
        return "-", "-"
    if n.whose == PUBLISHED:
        other = [m for m in networks if (m.whose, m.size, m.kind) == (PUBLISHED, n.size, TRANSFORMER)]
        return (f"{100 * (n.perplexity / other[0].perplexity - 1):+.1f}" if other else "-"), "-"
    if n.gap is None:
        return "-", "-"
    mean = percent(n.gap.mean)
    if n.gap.interval is None or n.gap.se is None:
        return f"{mean:+.2g}", "-"
    se = 100 * n.gap.se
    low, high = (number(percent(end), se) for end in n.gap.interval)
    return f"{'+' if mean > 0 else ''}{number(mean, se)}", f"[{low}, {high}]"


def wide_table(networks: Sequence[Network], notes: Sequence[str]) -> Table:
    """The comparison with its notes, for Markdown and LaTeX."""
    header, rows = wide_rows(networks)
    caption = "Wide and structured networks against the transformer at equal training FLOPs."
    return Table(header, rows, caption, (*wide_notes(networks), *notes))


def wide_texts(networks: Sequence[Network], notes: Sequence[str], stem: str) -> dict[str, str]:
    """The table as Markdown and LaTeX, by the names of their files; nothing depends on time or place."""
    table = wide_table(networks, notes)
    heading = "# Wide and structured networks against the transformer"
    return {
        f"{stem}.md": f"{heading}\n\n{table.markdown()}\n",
        f"{stem}.tex": latex_file([(f"tab:{stem}", table)]),
    }


def wide_notes(networks: Sequence[Network]) -> list[str]:
    """What the numbers are, in words."""
    notes = []
    if any(n.whose == PUBLISHED for n in networks):
        notes.append(
            "arXiv 2406.16450v1, Table 2: printed, one run each, so without intervals; other text and tokens "
            "than ours (compare differences, not levels); most tokens generated per second at 256 new ones."
        )
    if any(n.whose != PUBLISHED for n in networks):
        notes.append(
            "Ours: exp of the mean loss over seeds ± standard error; differences paired by seed, intervals "
            "by Student's t over seeds, p-values corrected by Holm. Tokens: distinct ones; self-guided runs "
            "repeat some."
        )
    dashes = Counter(n.whose for n in networks if not math.isfinite(n.throughput))
    for whose, count in sorted(dashes.items()):
        total = sum(n.whose == whose for n in networks)
        notes.append(
            f"{whose}: generation was not measured for {count} of {total} networks of just these shapes; "
            "a network of another shape does not stand in."
        )
    if any(n.kind == OTHER_DENSE for n in networks):
        notes.append(
            f"{OTHER_DENSE}: a dense network whose FFN is not four times its width; the runs table does not "
            "count key and value heads, so it cannot say whether this is the grouped-query form."
        )
    return notes
