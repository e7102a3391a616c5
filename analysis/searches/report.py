"""Tables of a study: best shapes, parity of tuning, optimum widths and trade-offs, as text in three forms."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import replace

from analysis.digits import estimate, number, probability, quantity, with_error
from analysis.isoflop.widths import Valley
from analysis.searches.curves import valleys
from analysis.searches.optimum import contrasts, growth
from analysis.searches.pareto import contests, second_name
from analysis.searches.parity import Tuned, parity, searched_batch, verdict
from analysis.searches.series import PARAMS, chosen
from analysis.searches.shapes import Best, Tried, best_shapes
from analysis.searches.transfer import Transfer, transfer
from analysis.searches.trials import Cell, Study, words
from analysis.tables import Table, latex_file

Texts = dict[str, str]
SELECTED = (
    "The lowest of several noisy losses is optimistic, by about their noise: train the winners again with "
    "other seeds before their losses are compared."
)
SCATTER = (
    "Curvature within the scatter means that the parabola's bend is no larger than the scatter of the losses "
    "about the parabolas lets it be by chance; the scatter holds their misfit, as on a coarse grid, besides "
    "noise."
)
BEST_HEADER = ("cell", "runs (done)", "shape", "loss", "above the best", "in standard errors", "remark")
PARITY_HEADER = (
    "size", "structure", "trials", "runs", "without a loss", "rates tried", "best rate", "loss",
    "fitted optimum", "95 % interval", "remark",
)  # fmt: skip
TRANSFER_HEADER = ("structure", "rate", "95 % interval", "best rate tried", "in a sweep file")
WIDTH_HEADER = ("structure", "budget", "best tried", "loss", "fitted optimum", "95 % interval", "remark")
GROWTH_HEADER = ("structure", "budgets", "exponent", "95 % interval", "remark")
PARETO_HEADER = ("size", "budget", "structure", "shape", "loss", "second", "not dominated by")
CSV_HEADER = ("quantity", "structure", "budget", "unit", "value", "low", "high", "loss", "reason")


def best_texts(study: Study) -> Texts:
    """NAME_best: the best shape of every cell, its neighbours and its ties."""
    found = best_shapes(study)
    rows: list[list[str]] = []
    plain: list[list[str]] = []
    for best in found:
        rows.append(_row(study, best, best.shape, "; ".join(_remarks(best))))
        plain.append(_plain(best, best.shape, "best", ""))
        shown = set()
        for neighbour in best.neighbours:
            shape, side = neighbour.shape, f"next {neighbour.side} {neighbour.dimension}"
            if shape is None:
                plain.append([best.cell.label, "neighbour", side, *[""] * 5, *_counts(best.cell)])
                continue
            shown.add(shape.values)
            told = side if neighbour.alone else f"{side}, other dimensions differ too"
            tie = "; tie" if shape in best.ties else ""
            rows.append(_row(study, best, shape, told + tie))
            plain.append(_plain(best, shape, "neighbour", side))
        rows += [_row(study, best, shape, "tie") for shape in best.ties if shape.values not in shown]
        plain += [_plain(best, shape, "tie", "") for shape in best.ties]
    none = [study.title(cell) for cell in study.cells if not cell.done]
    notes = [
        f"Data: {study.coverage()}.",
        *unequal(study),
        "In units of the standard error of the best shape's loss over the held-out text; a tie lies within "
        "one. All runs are held against the same text, so differences are surer than that; what another "
        "seed would change is not in it. A neighbour is the next value tried in one dimension, and the shape "
        "there that is nearest in all others.",
        *([SELECTED] if rows else []),
        *([f"No run has a loss in {', '.join(none)}."] if none else []),
    ]
    caption = f"{study.name}: best shapes and their neighbours (held-out loss, nats per token)."
    header = (
        "cell", "role", "side", "shape", "run_ids", "val_loss", "val_loss_se", "above_in_se", "runs", "done",
    )  # fmt: skip
    if len(study.pooled.cells) < len(study.cells):
        notes.append("Cells that differ in their seed alone are one: runs of one shape are averaged.")
    return _texts(study, "best", "best shapes", [Table(BEST_HEADER, rows, caption)], notes, header, plain)


def _remarks(best: Best) -> list[str]:
    said = [f"edge: {edge}" if not edge.startswith("only") else edge for edge in best.edges]
    ties = len(best.ties)
    if ties:
        said.insert(0, f"{ties} tie{'s' if ties > 1 else ''} within one standard error")
    if len(best.cell.done) == 1:
        said = ["the only run that has a loss"]
    return ["best", *said]


def _row(study: Study, best: Best, shape: Tried, remark: str) -> list[str]:
    first = shape is best.shape
    above, units = shape.loss - best.shape.loss, best.above(shape)
    return [
        study.pooled.title(best.cell) if first else "",
        "{} ({})".format(*_counts(best.cell)) if first else "",
        shape.words,
        with_error(shape.loss, shape.se, 5),
        "-" if first else number(above, best.shape.se, 3),
        "-" if first or math.isnan(units) else f"{units:.1f}",
        remark,
    ]


def _plain(best: Best, shape: Tried, role: str, side: str) -> list[str]:
    numbers = [shape.loss, shape.se, best.above(shape)]
    ids = "+".join(shape.runs)
    return [best.cell.label, role, side, shape.words, ids, *map(_cell, numbers), *_counts(best.cell)]


def _counts(cell: Cell) -> list[str]:
    return [str(len(cell.distinct)), str(len(cell.done))]


def unequal(study: Study) -> list[str]:
    """What is to be said of cells that are compared, but had unequal numbers of runs; at most one note."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in study.pooled.cells:
        key = cell.size, str(cell.budget), chosen(cell.label).get(PARAMS, "")
        groups.setdefault(key, []).append(cell)
    said = [
        ", ".join("{} {} ({} done)".format(study.pooled.title(cell), *_counts(cell)) for cell in mine)
        for mine in groups.values()
        if len({tuple(_counts(cell)) for cell in mine}) > 1
    ]
    if not said:
        return []
    return [f"Unequal numbers of runs, of which the lowest of more is more optimistic: {'; '.join(said)}."]


def parity_texts(study: Study) -> Texts:
    """NAME_parity: the best learning rate of every structure and size, and how hard each was searched."""
    found = parity(study)
    rows = [_parity_row(one) for one in found]
    plain = []
    for one in found:
        c = one.curve
        ends = [c.optimum, c.low, c.high] if c is not None else [math.nan] * 3
        best = [dict(one.best.values).get("peak_lr", math.nan), one.best.loss] if one.best else [math.nan] * 2
        counts = [str(one.trials), str(one.runs)]
        plain.append([one.cell.size, one.cell.structure, *counts, *map(_cell, [*best, *ends]), one.reason])
    notes = [
        f"Data: {study.coverage()}.",
        *(f"{line}." for line in verdict(found)),
        "Fitted optima are vertices of parabolas of loss in log rate, intervals Fieller's, the variance "
        "pooled over the study; an edge is a best rate at the end of those tried, and no optimum.",
        SCATTER,
        *([SELECTED] if rows else []),
        *(
            ["Of several batch sizes the fitted one is that of the best run."]
            if searched_batch(found)
            else []
        ),
    ]
    caption = f"{study.name}: best peak learning rate by structure and size."
    header = (
        "size", "structure", "trials", "runs", "best_lr", "val_loss", "optimum", "low", "high", "reason",
    )  # fmt: skip
    tables = [Table(PARITY_HEADER, rows, caption)]
    return _texts(study, "parity", "parity of tuning", tables, notes, header, plain)


def _parity_row(one: Tuned) -> list[str]:
    best, curve = one.best, one.curve
    lost = ", ".join(f"{count} {state}" for state, count in one.lost.items()) or "-"
    settings = dict(best.values) if best else {}
    others = words(tuple(pair for pair in settings.items() if pair[0] != "peak_lr"))
    known = curve is not None and not curve.reason
    ends = estimate(curve.optimum, curve.low, curve.high) if curve is not None and known else ("-", "-")
    return [
        one.cell.size, one.cell.structure, str(one.trials), str(one.runs), lost,
        f"{one.low:.3g} to {one.high:.3g}", number(settings.get("peak_lr", math.nan), None, 3),
        with_error(best.loss, best.se, 5) if best else "-", *ends,
        "; ".join(filter(None, [one.reason, others])),
    ]  # fmt: skip


def transfer_texts(study: Study) -> Texts:
    """NAME_transfer: the rule by which learning rates go to other sizes, and as a table of a sweep file."""
    rule = transfer(study)
    rows, plain = [], []
    for one in rule.rates:
        tried = ", ".join(f"{rate:g} at {width}" for width, rate in sorted(one.tried.items()))
        ends = estimate(one.rate, one.low, one.high)
        rows.append([one.structure, *ends, tried, f"{one.rate:.3g}"])
        plain.append(
            [one.structure, str(rule.width), *map(_cell, [one.rate, one.low, one.high, rule.exponent])]
        )
    caption = f"{study.name}: best peak learning rate at d_model {rule.width}, by one rule for all sizes."
    notes = [f"Data: {study.coverage()}.", *_rule_notes(rule)]
    header = ("structure", "of_width", "peak_lr", "low", "high", "exponent")
    texts = _texts(
        study, "transfer", "learning rates of other sizes", [Table(TRANSFER_HEADER, rows, caption)], notes,
        header, plain,
    )  # fmt: skip
    file = f"{study.name}_transfer.md"
    return {**texts, file: texts[file] + (f"\nIn a sweep file:\n\n{_rates_table(rule)}" if rows else "")}


def _rates_table(rule: Transfer) -> str:
    """The rule as the table [rates] of a sweep file, in a Markdown block."""
    rates = [f"{one.structure} = {one.rate:.3g}" for one in rule.rates]
    head = ["[rates]", f"of_width = {rule.width}", f"exponent = {rule.exponent:.3f}", "[rates.peak_lr]"]
    return "\n".join(["```toml", *head, *rates, "```"]) + "\n"


def _rule_notes(rule: Transfer) -> list[str]:
    """What the rule is, how far it can be trusted, and how a sweep file says it."""
    if rule.reason:
        return [f"No rule: {rule.reason}."]
    exponent = with_error(rule.exponent, rule.exponent_se)
    own = (
        "There are too few losses to ask whether optima of their own fit better."
        if math.isnan(rule.p_own)
        else f"Optima of their own for each structure and size fit no better: p {probability(rule.p_own)}."
        if rule.p_own > 0.05
        else f"Optima of their own for each structure and size fit better (p {probability(rule.p_own)}): the "
        "rule is a compromise."
    )
    return [
        f"peak_lr = rate x (d_model / {rule.width})^b, b = {exponent}, the same for all structures. Least "
        "squares of log loss on all rates within reach of each curve's lowest (5 %, five rates at least): a "
        "parabola in log rate with one curvature, a level for each curve, a rate for each structure.",
        f"{own} About the fit the losses scatter by {number(rule.sd)} ({rule.dof} degrees of freedom).",
    ]


def optimum_texts(study: Study) -> Texts:
    """NAME_optimum: the best width of every structure and budget, and the exponents over budgets."""
    found = valleys(study)
    rates, against = growth(found), contrasts(growth(found))
    setting = found[0].over if found else "d_model"
    rows, plain = [], []
    for v in found:
        known = not v.reason
        ends = estimate(v.optimum, v.low, v.high) if known else ("-", "-")
        rows.append(
            [v.structure, f"{quantity(v.budget)} {v.unit}", f"{v.best:g}", number(v.mean(v.best), None, 5),
             *ends, v.reason]
        )  # fmt: skip
        plain.append(
            [f"best {setting}", v.structure, _cell(v.budget), v.unit, *map(_cell, [v.optimum, v.low, v.high]),
             _cell(v.mean(v.best)), v.reason]
        )  # fmt: skip
    lines = []
    for g in rates:
        ends = estimate(g.exponent, g.low, g.high) if not g.reason else ("-", "-")
        said = (
            f"not identified: {g.reason}"
            if g.reason
            else ("" if g.line else f"{g.usable} budgets: no lack of fit seen")
        )
        lines.append([g.structure, f"{g.usable} of {g.budgets}", *ends, said])
        plain.append(
            ["exponent", g.structure, "", "", *map(_cell, [g.exponent, g.low, g.high]), "", g.reason]
        )
    for c in against:
        ends = estimate(c.difference, c.low, c.high) if not c.reason else ("-", "-")
        lines.append([f"{c.structure} less {c.reference}", "-", *ends, c.verdict])
        numbers = [c.difference, c.low, c.high]
        plain.append(["exponent less dense", c.structure, "", "", *map(_cell, numbers), "", c.reason])
    caption = f"{study.name}: best {setting} at each budget (loss in nats per token)."
    tables = [Table(WIDTH_HEADER, rows, caption)]
    if lines:
        tables.append(Table(GROWTH_HEADER, lines, f"{study.name}: growth of the best {setting}."))
    notes = [f"Data: {study.coverage()}.", *_optimum_notes(found, len(against))]
    return _texts(study, "optimum", f"best {setting}", tables, notes, CSV_HEADER, plain)


def _optimum_notes(found: Sequence[Valley], compared: int) -> list[str]:
    notes = [
        "Vertices of parabolas of log loss in log width through the widths about the lowest loss without a "
        "gap: those within 5 % of it, its neighbours and the five lowest in any case. Intervals are "
        "Fieller's, and hold the scatter about the parabolas only: a parabola is an approximation.",
        SCATTER,
        "Exponents are of the budget: by a weighted log-log line with its lack of fit from three budgets on, "
        "else between two vertices, with an interval from theirs (Zou and Donner 2008), and no lack of fit "
        "can be seen there. No difference shown is not equality shown.",
    ]
    if any(valley.apart for valley in found):
        notes.append(
            "A width counts where the cell's best shape was tried at it: other shapes alone are no sign of "
            "how low the loss can be there, and no parabola steps over such a width."
        )
    if any(valley.selected for valley in found):
        notes.append(
            "At a width the lowest of the shapes tried is taken: a minimum over noisy losses, optimistic by "
            "about the noise, and the more so where more shapes were tried."
        )
    if compared > 1:
        notes.append("Differences are at 95 % each, not corrected for their number.")
    return notes


def pareto_texts(study: Study) -> Texts:
    """NAME_pareto: the runs that no other of their structure beats in both objectives."""
    name = second_name(study)
    rows, plain = [], []
    found = contests(study)
    for contest in found:
        for i in contest.own:
            trial = contest.trials[i]
            budget = quantity(contest.budget)
            told = "any" if i in contest.front else trial.structure
            second = trial.numbers["second"]
            rows.append(
                [contest.size or "-", budget, trial.structure, trial.words,
                 with_error(trial.loss, trial.se, 5), number(second), told]
            )  # fmt: skip
            plain.append(
                [contest.size, _cell(contest.budget), trial.structure, trial.words, trial.run_id,
                 _cell(trial.loss), _cell(second), told]
            )  # fmt: skip
    missing = sum(contest.unmeasured for contest in found)
    notes = [
        f"Data: {study.coverage()}.",
        f"Lower is better in both: held-out loss (nats per token) and {name}. A run that is not dominated by "
        "any is marked 'any', else only runs of its own structure are meant. Differences within the noise of "
        "either count in full.",
        *([f"{missing} runs with a loss have no {name} and are left out."] if missing else []),
    ]
    header = ("size", "budget_flops", "structure", "shape", "run_id", "val_loss", name, "not_dominated_by")
    head = tuple(name if cell == "second" else cell for cell in PARETO_HEADER)
    tables = [Table(head, rows, f"{study.name}: runs that are not dominated in loss and {name}.")]
    return _texts(study, "pareto", f"loss against {name}", tables, notes, header, plain)


def _texts(
    study: Study,
    what: str,
    heading: str,
    tables: Sequence[Table],
    notes: Sequence[str],
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> Texts:
    """The tables as Markdown and LaTeX, and rows at full precision as CSV, by file name."""
    stem = f"{study.name}_{what}"
    parts = [f"# {study.name}: {heading}", *(table.markdown() for table in tables), *notes]
    labels = [f"tab:{study.name}-{what}" + (f"-{i}" if i else "") for i in range(len(tables))]
    noted = [replace(table, notes=notes if i == len(tables) - 1 else ()) for i, table in enumerate(tables)]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header, *rows])
    return {
        f"{stem}.md": "\n\n".join(parts) + "\n",
        f"{stem}.tex": latex_file(zip(labels, noted, strict=True)),
        f"{stem}.csv": out.getvalue(),
    }


def _cell(value: float) -> str:
    return repr(value) if math.isfinite(value) else ""
