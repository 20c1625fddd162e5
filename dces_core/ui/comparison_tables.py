"""The tables of the Compare page as HTML that this project writes: arms in rows, every foreign word escaped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from math import exp
from typing import Any

import polars as pl

from dces_core.arms import ARMS
from dces_core.compare import LOG_METRICS, NOISE_FLOOR, REFERENCE_ROWS
from dces_core.evidence import number
from dces_core.metrics.degradation import DIRECTION, TITLE
from dces_core.metrics.verdict import DEFINITIONS
from dces_core.ui import look
from dces_core.ui.comparison import QUANTITIES, Choice, Mark, ablations, differences, lacking, mark
from dces_core.ui.sources import Comparison, Measured
from dces_core.ui.text import escaped

ARROWS = {"lower": " ↓", "higher": " ↑", "neutral": ""}
#: Sign and class of a difference: the sign says the same as the colour.
SIGNS: dict[Mark, tuple[str, str]] = {
    "better": ("▲ ", "better"),
    "worse": ("▼ ", "worse"),
    "leans better": ("△ ", "better few"),
    "leans worse": ("▽ ", "worse few"),
    "level": ("≈ ", "even"),
    "": ("", "even"),
}
LEGEND = (
    "▲ better, ▼ worse: the whole 95% interval over seeds is on that side. ≈ the interval holds zero, or there is no difference. "
    "△ ▽ fewer than 5 seeds: no interval, only where the mean leans."
)
Row = Mapping[str, Any]


def figure(value: float, low: float | None, high: float | None, sign: str = "", signed: bool = False) -> str:
    """`×0.93 [0.90, 0.97]`; without an interval the mean alone."""
    interval = "" if low is None or high is None else f' <i class="range">[{number(low, signed)}, {number(high, signed)}]</i>'
    return f"{sign}{number(value, signed)}{interval}"


def named(arm: str) -> str:
    """An arm's key, and what it is for where it is no competitor."""
    what = " noise floor" if arm == NOISE_FLOOR else " reference" if arm in REFERENCE_ROWS else ""
    return f'{look.chip(arm)}<span class="tag">{what}</span>'


def seeds_of(comparison: Comparison, arm: str) -> str:
    """`2 of 5`: finished seeds of those that are planned."""
    return f"{len(comparison.evidence.done.get(arm, ()))} of {len(comparison.evidence.planned.get(arm, ()))}"


def why(reason: str | None) -> str:
    """A cell without a figure."""
    return f'<td class="why">undefined: {escaped(reason or "no value")}</td>'


def head(*names: str) -> str:
    """Header cells, of this project's words or of escaped ones."""
    return "".join(f"<th>{name}</th>" for name in names)


def wide(heads: str, rows: list[str], kind: str = "wide") -> str:
    """A table whose first column stays in sight; `kind`: words for one of texts."""
    return f'<div class="{kind}">{look.table(heads, rows)}</div>'


def titled(metric: str) -> str:
    """A metric as a header: its name with the direction that is better, and in full where the pointer rests."""
    return f'<span title="{escape(TITLE.get(metric, metric))}">{escaped(metric)}{ARROWS[DIRECTION.get(metric, "neutral")]}</span>'


# properties -------------------------------------------------------------------------------------------------------------


def measured_table(comparison: Comparison, frame: pl.DataFrame, heads: Mapping[str, str], cell: Callable[[Row], str]) -> str:
    """MEASURED with a column per measure, for the arms that have a finished unit. `cell`: the words of a row that says something.

    A measure that no arm has, for one reason, is a sentence and no column.
    """
    done = comparison.evidence.done
    known = {(row["arm"], row["measure"]): row for row in frame.iter_rows(named=True) if row["arm"] in done}
    missing = {measure: {undefined(row) for (_, name), row in known.items() if name == measure} for measure in heads}
    gone = {measure: str(next(iter(reasons))) for measure, reasons in missing.items() if len(reasons) == 1 and None not in reasons}
    lines = []
    for arm in (arm for arm in comparison.arms() if arm in done):
        rows = [known[arm, measure] for measure in heads if measure not in gone]
        cells = [why(row["reason"]) if undefined(row) else f"<td>{cell(row)}{of(row, len(done[arm]))}</td>" for row in rows]
        lines.append(f"<tr><td>{named(arm)}</td><td>{seeds_of(comparison, arm)}</td>{''.join(cells)}</tr>")
    words = {reason: [heads[measure] for measure in gone if gone[measure] == reason] for reason in gone.values()}
    said = "".join(
        f'<p class="quiet">{", ".join(names)}: undefined in every arm, {escaped(reason)}.</p>' for reason, names in words.items()
    )
    shown = [heads[measure] for measure in heads if measure not in gone]
    return (wide(head("arm", "seeds", *shown), lines) if shown else "") + said


def undefined(row: Row) -> str | None:
    """Why a row of MEASURED says nothing; None where it says something, also where it says: by no round."""
    return None if row["degraded"] == 0 else row["reason"]


def of(row: Row, n: int) -> str:
    """How many seeds a figure rests on, where it is not the row's `n`."""
    return f' <i class="range">n = {row["n_seeds"]}</i>' if row["n_seeds"] != n and row.get("degraded") is None else ""


def awareness_table(comparison: Comparison, frame: pl.DataFrame) -> str:
    """Per controlled quantity how far it moved, and below it its rank correlation with the entropy."""
    known = {(row["arm"], row["measure"]): row for row in frame.iter_rows(named=True)}
    shown = {name: words for name, words in QUANTITIES.items() if f"{name} moved" in frame["measure"]}
    lines = []
    for arm in (arm for arm in comparison.arms() if arm in comparison.evidence.done):
        cells = "".join(_awareness_cell(known[arm, f"{name} moved"], known[arm, f"{name} follows entropy"]) for name in shown)
        lines.append(f"<tr><td>{named(arm)}</td><td>{seeds_of(comparison, arm)}</td>{cells}</tr>")
    return wide(head("arm", "seeds", *shown.values()), lines)


def _awareness_cell(moved: Row, follows: Row) -> str:
    if moved["value"] is None:
        return why(moved["reason"])
    if follows["value"] is None:
        words = f"no correlation: {escaped(follows['reason'])}"
    else:
        words = f"correlation {figure(follows['value'], follows['low'], follows['high'], signed=True)}"
    return f'<td>moved by {figure(moved["value"], moved["low"], moved["high"])}<br><span class="range">{words}</span></td>'


def ratio_cell(row: Row) -> str:
    """A share of round 0's value."""
    return figure(row["value"], row["low"], row["high"], "×")


def plain_cell(row: Row) -> str:
    """A value."""
    return figure(row["value"], row["low"], row["high"])


def first_round_cell(row: Row) -> str:
    """First round of the seeds that got there, and how many did."""
    if not row["degraded"]:
        return f'<span class="even">&gt; {row["round"]}</span>'
    counts = f' <i class="range">({row["degraded"]} of {row["n_seeds"]})</i>' if row["n_seeds"] > 1 else ""
    return f'<span class="worse">{row["value"]:g}</span>{counts}'


# arms against an arm ----------------------------------------------------------------------------------------------------


def difference_words(row: Row, diff_only: bool = False) -> str:
    """A cell of COMPARISON: the mean over seeds, and below it the difference to `vs` with its mark."""
    log = row["metric"] in LOG_METRICS
    found = mark(row["metric"], row["diff"], row["diff_low"], row["diff_high"])
    sign, kind = SIGNS["" if row["arm"] in REFERENCE_ROWS else found]
    parts = [] if diff_only else [figure(row["mean"], row["low"], row["high"])]
    if row["diff"] is not None:
        ends = [None if end is None else exp(end) if log else end for end in (row["diff"], row["diff_low"], row["diff_high"])]
        words = figure(ends[0] or 0.0, ends[1], ends[2], "×" if log else "", signed=not log)
        parts.append(f'<span class="{kind}">{sign}{words}</span>')
    return "<br>".join(parts)


def arms_table(comparison: Comparison, choice: Choice) -> str:
    """Arms x metrics at the round, each with its difference to the base."""
    cells, reasons = _cells(comparison, choice, comparison.arms(choice.base))
    lines = []
    for arm, own in cells.items():
        base = '<span class="tag"> base</span>' if arm == choice.base else ""
        lines.append(f"<tr><td>{named(arm)}{base}</td><td>{seeds_of(comparison, arm)}</td>{own}</tr>")
    return wide(head("arm", "seeds", *map(titled, choice.metrics)), lines) + reasons


def _cells(comparison: Comparison, choice: Choice, arms: Sequence[str], diff_only: bool = False) -> tuple[dict[str, str], str]:
    """Cells of every arm that has a finished unit, and a sentence on those that are undefined."""
    known = {(row["arm"], row["metric"]): row for row in differences(comparison, choice).iter_rows(named=True)}
    cells, reasons = dict[str, str](), dict[str, list[str]]()
    for arm in (arm for arm in arms if arm in comparison.evidence.done):
        cells[arm] = ""
        for metric in choice.metrics:
            row = known.get((arm, metric))
            if row and row["mean"] is not None and not (diff_only and row["diff"] is None):
                cells[arm] += f"<td>{difference_words(row, diff_only)}{of(row, len(comparison.evidence.done[arm]))}</td>"
                continue
            reason = "no seed in common"
            if row is None or row["mean"] is None:
                reason = lacking(comparison.evidence, arm, metric, row["test_set"] if row else choice.test_set, choice.round)
            reasons.setdefault(f"{metric}: {reason}", []).append(arm)
            cells[arm] += '<td class="why">undefined</td>'
    return cells, undefined_words(reasons, len(cells))


def undefined_words(reasons: Mapping[str, Sequence[str]], arms: int) -> str:
    """Why cells are undefined: each reason once, with its arms."""
    words = [f"{reason} ({'every arm' if len(own) == arms else ', '.join(own)})" for reason, own in reasons.items()]
    return f'<p class="quiet">Undefined. {escaped(". ".join(words))}.</p>' if words else ""


def budgets_html(frame: pl.DataFrame, base: str) -> str:
    """What each arm was given."""
    lines = []
    for row in frame.iter_rows(named=True):
        counts = [f"{row[name]:,.0f}" if row[name] is not None else "not stored" for name in ("steps", "tokens")]
        counts = ["none" if row["arm"] == "frozen" else count for count in counts]
        over = "–" if row["over_base"] is None else f"×{row['over_base']:.2f}"
        cells = [row["pool"], row["n"], escaped(row["regime"]), *counts, over, f'<span class="quiet">{escaped(row["decoding"])}</span>']
        lines.append(f"<tr><td>{named(row['arm'])}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    names = ("arm", "pool", "N", "regime", "optimiser steps", "trained tokens", f"over {escaped(base)}", "decoding")
    return wide(head(*names), lines)


# verdicts and ablations -------------------------------------------------------------------------------------------------


def verdicts_table(comparison: Comparison, test_set: str) -> str:
    """Seeds that collapse by each definition, of those that can be told, and the median of their first rounds."""
    known = {
        (row["arm"], row["definition"]): row
        for row in comparison.collapses.filter(pl.col("test_set").is_in(["", test_set])).iter_rows(named=True)
    }
    lines = []
    for arm in (arm for arm in comparison.arms() if arm in comparison.evidence.done):
        cells = "".join(_verdict_cell(known.get((arm, name))) for name in DEFINITIONS)
        lines.append(f"<tr><td>{named(arm)}</td><td>{seeds_of(comparison, arm)}</td>{cells}</tr>")
    heads = [f'<span title="{escape(rule.formula)}">{name}</span>' for name, rule in DEFINITIONS.items()]
    return wide(head("arm", "seeds", *heads), lines)


def _verdict_cell(row: Row | None) -> str:
    if row is None or not row["n_seeds"]:
        return '<td class="why">undefined</td>'
    if not row["collapsed"]:
        return f'<td><span class="better">○ {row["collapsed"]} of {row["n_seeds"]}</span></td>'
    counts = f'<span class="worse">● {row["collapsed"]} of {row["n_seeds"]}</span>'
    return f'<td>{counts}<br><i class="range">round {row["median_round"]:g}</i></td>'


def definitions_table() -> str:
    """Every definition with its formula and source."""
    cells = [(rule.name, rule.formula, rule.source) for rule in DEFINITIONS.values()]
    return wide(head("definition", "collapsed where", "after"), [_line(row) for row in cells], "words")


def ablations_table(comparison: Comparison, choice: Choice) -> str:
    """Each ablation against dces. `choice`: its base is dces."""
    arms = ablations(comparison)
    cells, reasons = _cells(comparison, choice, arms, diff_only=True)
    lines = []
    for arm in arms:
        words = f'<td class="what">{escaped(ARMS[arm].title if arm in ARMS else "")}</td>'
        seeds = f"<td>{seeds_of(comparison, arm)}</td>" if arm in cells else "<td></td>"
        own = cells.get(arm, f'<td class="why" colspan="{len(choice.metrics)}">not run</td>')
        lines.append(f"<tr><td>{named(arm)}</td>{words}{seeds}{own}</tr>")
    heads = f'<th>arm</th><th class="what">what it is</th>{head("seeds", *map(titled, choice.metrics))}'
    return wide(heads, lines) + reasons


# across comparisons -----------------------------------------------------------------------------------------------------


def matrix_table(frame: pl.DataFrame) -> str:
    """MATRIX of one metric: arms in rows, a column per model and comparison."""
    columns = list(dict.fromkeys(frame.select("model", "comparison").iter_rows()))
    known = {(row["arm"], row["model"], row["comparison"]): row for row in frame.iter_rows(named=True)}
    ratio = frame["metric"].first() in LOG_METRICS
    lines = [
        f"<tr><td>{named(arm)}</td>{''.join(_matrix_cell(known[(arm, *column)], ratio) for column in columns)}</tr>"
        for arm in frame["arm"].unique(maintain_order=True)
    ]
    names = [f"{escaped(model).replace('/', '/<wbr>')}<br><i class='range'>{escaped(title or '')}</i>" for model, title in columns]
    return wide(head("arm", *names), lines, "wide matrix")


def _matrix_cell(row: Row, ratio: bool) -> str:
    if row["state"] == "not run":
        return '<td class="why">not run</td>'
    if row["state"] == "undefined":
        return f'<td class="why" title="{escape(row["reason"])}">undefined</td>'
    words = figure(row["value"], row["low"], row["high"], "×" if ratio else "", signed=not ratio)
    return f'<td>{words}<br><i class="range">n = {row["n_seeds"]}</i></td>'


def settings_table(frame: pl.DataFrame, names: Sequence[str]) -> str:
    """`differing`, a column per source; `names`: theirs."""
    rows = [_line(["–" if cell is None else cell for cell in row]) for row in frame.iter_rows()]
    return wide(head("setting", *map(escaped, names)), rows, "words")


def sources_table(sources: Mapping[str, Measured]) -> str:
    """What is compared: of each source its model, how a round starts, rounds and how many of its units are finished."""
    lines = []
    for one in sources.values():
        model = "fake engine: figures mean nothing" if one.config.engine == "fake" else one.config.model
        start = "the round before it" if one.config.train.init == "previous" else "the base model"
        done = f"{len(one.done)} of {sum(map(len, one.planned.values()))}"
        seeds = len({seed for own in one.planned.values() for seed in own})
        counts = (str(one.config.rounds), str(len(one.planned)), str(seeds), done)
        lines.append(_line([one.name, one.kind, model, start, one.config.train.regime, *counts]))
    heads = head("source", "kind", "model", "a round starts from", "regime", "rounds", "arms", "seeds", "units finished")
    return wide(heads, lines, "words")


def _line(cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<td>{escaped(cell)}</td>' for cell in cells)}</tr>"
