"""The costs of a run drawn: its seconds or its money by stage, and tables with the source of every figure."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go
import polars as pl

from dces_core.cost import FORMULAS, WHOLE, Costs
from dces_core.events import clock
from dces_core.store import SHARED
from dces_core.ui import charts, look
from dces_core.ui.text import escaped

STAGES = ("generate", "select", "map", "train", "evaluate", "reference", WHOLE)
SHARED_LABEL = "once, for all"
BAR_PX, FRAME_PX = 46, 96


def number(value: float | None) -> str:
    """Three significant digits; nothing where it is undefined."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def money(value: float | None, currency: str) -> str:
    """An amount with its unit."""
    return "–" if value is None else f"{number(value)} {currency}".strip()


def breakdown(found: Costs) -> go.Figure:
    """The whole run: one bar an arm, one segment a stage; money where there is a price, else seconds."""
    rate = found.facts["inputs"]
    by = "money" if rate["price_per_hour"] else "seconds"
    rows = found.stages.drop_nulls("seconds").with_columns(amount=pl.col(by) * pl.col("times"))
    parts = [part for part in [*found.facts["arms"], SHARED] if part in rows["part"]]
    figure = charts.base(FRAME_PX + BAR_PX * len(parts), barmode="stack", bargap=0.42)
    for index, stage in enumerate(STAGES):
        own = rows.filter(stage=stage)
        if own.height:
            figure.add_trace(_segment(own, stage, index, rate["currency"] or ""))
    unit = (
        "seconds of the run"
        if by == "seconds"
        else " ".join(["money of the run", f"({escape(rate['currency'])})" * bool(rate["currency"])])
    )
    figure.update_layout(
        showlegend=True,
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "traceorder": "normal", "font": {"size": 12}},
        margin={"l": 10, "r": 12, "t": 40, "b": 46},
        uniformtext={"minsize": 11, "mode": "hide"},
    )
    labels = [SHARED_LABEL if part == SHARED else escape(part) for part in parts]
    figure.update_yaxes(categoryorder="array", categoryarray=labels[::-1], automargin=True, showgrid=False)
    figure.update_xaxes(title={"text": unit, "font": {"size": 12}}, rangemode="tozero", showgrid=True, gridcolor=look.faint(0.1), nticks=6)
    return figure


def _segment(own: pl.DataFrame, stage: str, index: int, currency: str) -> go.Bar:
    """One stage in every bar."""
    words = [
        f"{number(row['seconds'])} s × {row['times']}"
        + (f"<br>{number(row['kwh'] * row['times'])} kWh" if row["kwh"] is not None else "")
        + (f"<br>{escape(money(row['money'] * row['times'], currency))}" if row["money"] is not None else "")
        for row in own.iter_rows(named=True)
    ]
    return go.Bar(
        y=[SHARED_LABEL if part == SHARED else escape(part) for part in own["part"]],
        x=own["amount"].to_list(),
        name=stage,
        orientation="h",
        text=[stage] * own.height,
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        insidetextfont={"color": look.paper()},
        customdata=words,
        hovertemplate=f"<b>%{{y}}: {stage}</b><br>%{{customdata}}<extra></extra>",
        marker={"color": look.hue(index), "line": {"color": look.paper(), "width": 1.5}},
    )


def words_of(found: Costs) -> str:
    """The picture in words, for those who cannot see it."""
    rows = found.stages.drop_nulls("seconds")
    said = [
        f"{part} {stage} {number(seconds * times)} s"
        for part, stage, seconds, times in rows.select("part", "stage", "seconds", "times").rows()
    ]
    return "Bars of a run's stages by arm: " + ", ".join(said)


# tables -----------------------------------------------------------------------------------------------------------------


def totals(found: Costs) -> str:
    """Sums with their sources."""
    heads = ["", "time", *_priced_heads(found), "source"]
    rows = [[escaped(row["part"]), time_of(row["seconds"]), *_priced(row, found), _source(row)] for row in found.totals.to_dicts()]
    return _table(heads, rows)


def stages(found: Costs) -> str:
    """Every stage with its source."""
    heads = ["", "stage", "times in the run", "scale", "seconds, once", *_priced_heads(found), "source"]
    rows = [
        [
            *(escaped(row[name]) for name in ("part", "stage")),
            *(number(row[name]) for name in ("times", "scale", "seconds")),
            *_priced(row, found),
            _source(row),
        ]
        for row in found.stages.to_dicts()
    ]
    return _table(heads, rows)


def collapse(found: Costs) -> str:
    """Rounds after the first degraded one."""
    heads = ["arm", "test set", "first degraded round", "rounds lost", "of", "time", *_priced_heads(found), "source"]
    rows = [
        [
            look.chip(row["arm"]) if row["arm"] else "–",
            *(escaped(row[name] or "–") for name in ("test_set", "first_degraded")),
            *(number(row[name]) for name in ("lost_rounds", "of_rounds")),
            time_of(row["seconds"]),
            *_priced(row, found),
            _source(row),
        ]
        for row in found.collapse.to_dicts()
    ]
    return _table(heads, rows)


def extra(found: Costs) -> str:
    """A round of dces beside one of plain."""
    heads = ["dces, s", "plain, s", "dces / plain", "more, s", *_priced_heads(found), "source"]
    rows = [
        [*(number(row[name]) for name in ("dces_s", "plain_s", "ratio", "seconds")), *_priced(row, found), _source(row)]
        for row in found.dces_over_plain.to_dicts()
    ]
    return _table(heads, rows)


def formulas() -> str:
    """What is computed, as a list."""
    return '<dl class="life">' + "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(words)}</dd>" for name, words in FORMULAS.items()) + "</dl>"


def time_of(seconds: float | None) -> str:
    """Seconds, from 100 on as h:mm:ss."""
    return "–" if seconds is None else f"{number(seconds)} s" if seconds < 100 else clock(seconds)


def _priced_heads(found: Costs) -> list[str]:
    rate = found.facts["inputs"]
    unit = f"money, {rate['currency']}" if rate["currency"] else "money"
    return ["kWh"] * (rate["watts"] is not None) + [unit] * (rate["price_per_hour"] is not None)


def _priced(row: dict[str, float | None], found: Costs) -> list[str]:
    rate = found.facts["inputs"]
    return [number(row["kwh"])] * (rate["watts"] is not None) + [number(row["money"])] * (rate["price_per_hour"] is not None)


def _source(row: dict[str, str | None]) -> str:
    """Where the figure comes from; else why there is none."""
    return escaped(row["source"] if row["seconds"] is not None and row["source"] else row["reason"] or "–")


def _table(heads: list[str], rows: list[list[str]]) -> str:
    head = "".join(f'<th class="what">{escaped(name)}</th>' if name == "source" else f"<th>{escaped(name)}</th>" for name in heads)
    cells = ["".join(f"<td>{cell}</td>" for cell in row[:-1]) + f'<td class="what">{row[-1]}</td>' for row in rows]
    return look.table(head, [f"<tr>{row}</tr>" for row in cells])
