"""Plotly figures. x = round with integer ticks everywhere; colours, dashes and markers from look.py; ids only in hovers."""

from __future__ import annotations

import textwrap
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from dces_core.metrics.degradation import DIRECTION, TITLE
from dces_core.ui import look

MAP_POINTS = 3_000  # a zoom draws them anew within half a second where WebGL is on the processor
FADED = 0.12  # opacity of what is not selected
CONFIG = {"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"], "responsive": True}
MAP_CONFIG = {"displaylogo": False, "scrollZoom": True, "modeBarButtonsToRemove": ["autoScale2d", "toggleHover"], "responsive": True}


def config(name: str, base: dict[str, Any] = CONFIG) -> dict[str, Any]:
    """Settings of a chart whose picture (the camera in its tool bar) is saved as `name`.png in double size."""
    return {**base, "toImageButtonOptions": {"format": "png", "filename": name, "scale": 2}}


def keep_zoom(figure: go.Figure, *what: object) -> None:
    """Charts of the same `what` keep their zoom when they are made anew, for another round say. See zoom.js."""
    figure.update_layout(uirevision=" ".join(map(str, what)))


def title_of(metric: str) -> str:
    """A metric's name with its direction: "ppl, lower is better"."""
    direction = DIRECTION.get(metric, "neutral")
    return metric if direction == "neutral" else f"{metric}, {direction} is better"


def said_of(metric: str) -> str:
    """What a metric says, in one or two short lines."""
    return wrapped(TITLE.get(metric, ""))


def wrapped(words: str, width: int = 40) -> str:
    """Words of this project in one or two short lines."""
    return "<br>".join(textwrap.wrap(words, width)[:2])


def base(height: int, columns: int | None = None, **layout: Any) -> go.Figure:
    """An empty figure with the shared margins, grid and hover. `columns`: side by side, with the same rows."""
    figure = make_subplots(cols=columns, shared_yaxes=True, horizontal_spacing=0.03) if columns else go.Figure()
    figure.update_layout(
        height=height,
        margin={"l": 46, "r": 10, "t": 34, "b": 34},
        showlegend=False,
        hovermode="x unified",
        paper_bgcolor=look.paper(),
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={"font": {"size": 12}},
        font={"size": 12},
        **layout,
    )
    figure.update_xaxes(
        showgrid=False, zeroline=False, linecolor=look.faint(0.35), showline=True, ticks="outside", ticklen=3, tickcolor=look.faint(0.35)
    )
    figure.update_yaxes(gridcolor=look.faint(0.1), zeroline=False, nticks=5)
    return figure


def round_ticks(rounds: int) -> dict[str, Any]:
    """Integer ticks, at most about eight; the hover is headed by the round."""
    hover = {"unifiedhovertitle": {"text": "round %{x}"}}
    return {"tick0": 0, "dtick": max(1, -(-rounds // 8)), "range": [-0.3, rounds + 0.4], **hover}


def mark_round(figure: go.Figure, round_: int) -> None:
    """A thin vertical line at the round that is picked."""
    figure.add_vline(round_, line={"color": look.faint(0.45), "width": 1}, layer="below")


def panel(title: str, said: str) -> go.Figure:
    """An empty small multiple: its title, and in small one or two lines of what it says."""
    subtitle = {"text": said, "font": {"size": 11, "color": look.faint(0.66)}}
    place = {"x": 0, "xref": "container", "y": 0.985, "yanchor": "top"}
    figure = base(250, title={"text": title, "font": {"size": 13}, "subtitle": subtitle, **place})
    figure.update_layout(margin={"t": 66})
    return figure


def clicked_round(points: list[dict[str, Any]], rounds: list[int]) -> int | None:
    """The round of a clicked point; None where the click took a selection back or names no round."""
    for point in points:
        match point.get("x"):
            case int(x) | float(x) if x in rounds:
                return int(x)
    return None


def line(figure: go.Figure, own: pl.DataFrame, arm: str) -> None:
    """One arm's line; a round without a value leaves a gap. `own`: `round` and `value` of this arm, `hover` where numbers do not say it."""
    own, style = own.sort("round"), look.look(arm)
    words = own["hover"].to_list() if "hover" in own.columns else None
    figure.add_scatter(
        x=own["round"].to_list(),
        y=own["value"].to_list(),
        name=arm,
        mode="lines+markers",
        connectgaps=False,
        customdata=words,
        hovertemplate="%{customdata}" if words else "%{y:.4g}",
        line={"color": style.colour, "dash": style.dash, "width": 2},
        marker={"symbol": style.marker, "size": 6, "color": style.colour},
        selected={"marker": {"opacity": 1}},
        unselected={"marker": {"opacity": 1}},
    )


def trajectory(
    rows: pl.DataFrame, metric: str, arms: tuple[str, ...], rounds: int, marks: dict[str, int | None], log: bool = False
) -> go.Figure:
    """One metric over the rounds, one line per arm. `rows`: METRICS of this metric; `marks`: ringed rounds per arm."""
    figure = panel(title_of(metric), said_of(metric))
    for arm in arms:
        own = rows.filter(pl.col("arm") == arm)
        line(figure, own, arm)
        ring(figure, own, arm, marks.get(arm))
    figure.update_xaxes(**round_ticks(rounds))
    why_empty(figure, rows)
    values = rows["value"].drop_nulls()
    if values.len() and float(values.min()) >= 0:  # type: ignore[arg-type]
        figure.update_yaxes(rangemode="nonnegative")
    if log and values.len() and float(values.min()) > 0:  # type: ignore[arg-type]
        figure.update_yaxes(type="log", dtick="D2")
    return figure


def why_empty(figure: go.Figure, rows: pl.DataFrame) -> None:
    """Where no value is defined, the reason stands in the chart."""
    if rows["value"].drop_nulls().len():
        return
    reasons = rows["reason"].drop_nulls().unique().to_list()
    words = "<br>".join(textwrap.wrap(escape("undefined: " + (", ".join(reasons) or "no value yet")), 40))
    figure.add_annotation(text=words, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False, font={"color": look.faint(0.7)})
    figure.update_yaxes(showticklabels=False, showgrid=False)


def ring(figure: go.Figure, own: pl.DataFrame, arm: str, round_: int | None) -> None:
    """A ring around the first round that is 10% worse than round 0."""
    hit = own.filter(pl.col("round") == round_) if round_ is not None else own.head(0)
    if hit.height:
        marker = {"symbol": "circle-open", "size": 16, "color": look.look(arm).colour, "line": {"width": 1.6}}
        figure.add_scatter(
            x=hit["round"].to_list(),
            y=hit["value"].to_list(),
            mode="markers",
            marker=marker,
            hoverinfo="skip",
            cliponaxis=False,
            unselected={"marker": {"opacity": 1}},
        )


def reliability(tables: dict[str, pl.DataFrame], test_set: str) -> go.Figure:
    """Reliability diagram, one line per arm over the diagonal; below it, how many tokens stand behind each bin."""
    figure = base(
        420, title={"text": f"Reliability on {test_set}", "font": {"size": 13}, "x": 0, "xref": "container"}, bargap=0.15, barmode="group"
    )
    figure.update_layout(hovermode="closest")
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": look.faint(0.4), "dash": "dot", "width": 1}, hoverinfo="skip", name="calibrated"
    )
    hover = "<br>confidence %{x:.3f}<br>accuracy %{y:.3f}<br>%{customdata} tokens<extra></extra>"
    for arm, table in tables.items():
        own = table.filter((pl.col("test_set") == test_set) & (pl.col("n") > 0)).sort("bin")
        style = look.look(arm)
        n = own["n"].to_numpy()
        x, y = own["confidence_sum"].to_numpy() / n, own["correct_sum"].to_numpy() / n
        figure.add_scatter(
            x=x,
            y=y,
            name=arm,
            mode="lines+markers",
            customdata=n,
            hovertemplate=arm + hover,
            line={"color": style.colour, "dash": style.dash, "width": 2},
            marker={"symbol": style.marker, "size": 6},
        )
        figure.add_bar(
            x=(own["bin"].to_numpy() + 0.5) / 15,
            y=n / max(1, n.sum()),
            name=arm,
            yaxis="y2",
            marker={"color": style.colour, "opacity": 0.55},
            hoverinfo="skip",
        )
    figure.update_layout(
        yaxis={"domain": [0.27, 1], "range": [0, 1], "title": {"text": "accuracy"}},
        xaxis={"range": [0, 1], "title": {"text": "confidence"}, "anchor": "y2"},
        yaxis2={"domain": [0, 0.2], "title": {"text": "tokens"}, "tickformat": ".0%", "nticks": 3, "gridcolor": look.faint(0.1)},
    )
    return figure


def stratified(frame: pl.DataFrame, limit: int = MAP_POINTS) -> pl.DataFrame:
    """At most `limit` rows, the same share of every cluster, in a shuffled order that is always the same."""
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=0)
    if frame.height <= limit:
        return shuffled
    share = limit / frame.height
    rank = pl.int_range(pl.len()).over("cluster")
    return shuffled.filter(rank < (pl.len().over("cluster") * share).ceil()).head(limit)


def symbols(frame: pl.DataFrame) -> list[str]:
    """Center filled, edge outlined, rejected a cross, edited a diamond."""
    edited = pl.col("changed").fill_null(0) > 0
    symbol = (
        pl.when(pl.col("fate") == "rejected")
        .then(pl.lit("x-thin-open"))
        .when(edited & (pl.col("role") == "edge"))
        .then(pl.lit("diamond-open"))
        .when(edited)
        .then(pl.lit("diamond"))
        .when(pl.col("role") == "edge")
        .then(pl.lit("circle-open"))
        .otherwise(pl.lit("circle"))
    )
    return frame.select(symbol.alias("symbol"))["symbol"].to_list()


def hues(clusters: pl.Series) -> dict[str, Any]:
    """A marker's colour by cluster, as steps of a colour scale: plotly reads every single colour of a list, but not of numbers."""
    gated = -2  # below the noise of the clusterer
    known, steps = np.unique(clusters.fill_null(gated).to_numpy(), return_inverse=True)
    tints = [look.hue(cluster) for cluster in known.tolist()]
    tints *= 2 if len(tints) == 1 else 1
    last = max(1, len(tints) - 1)
    scale = [[step / last, tint] for step, tint in enumerate(tints)] or None
    return {"color": steps, "colorscale": scale, "cmin": 0, "cmax": last}


def scatter_map(points: pl.DataFrame, ground: pl.DataFrame, facts: dict[str, Any], picked: list[int] | None = None) -> go.Figure:
    """One arm's round in the run's frame. `points`: SAMPLES with x, y and `row`, the id that a selection gives back.

    `picked`: clusters that stand out, the others are faded; none or empty: all of them.
    """
    figure = base(520)
    figure.update_layout(hovermode="closest", dragmode="lasso", margin={"l": 4, "r": 4, "t": 6, "b": 4})
    ground_marker = {"size": 5, "color": look.faint(0.17), "line": {"width": 0}}
    figure.add_scattergl(
        x=ground["x"].to_numpy(), y=ground["y"].to_numpy(), mode="markers", marker=ground_marker, hoverinfo="skip", name="real"
    )
    faded = ~points["cluster"].is_in(picked).fill_null(False).to_numpy() if picked else np.zeros(points.height, dtype=bool)
    colours = hues(points["cluster"])
    marker = {
        "size": np.where((points["changed"].fill_null(0) > 0).to_numpy(), 8.5, 7.0),
        "symbol": symbols(points),
        **colours,
        "line": {"width": 1.5, **colours},
        "opacity": np.where(faded, FADED, np.where((points["fate"] == "over quota").to_numpy(), 0.42, 0.95)),
    }
    figure.add_scattergl(
        x=points["x"].to_numpy(),
        y=points["y"].to_numpy(),
        mode="markers",
        marker=marker,
        customdata=points["row"].to_numpy(),
        hovertemplate="sample %{customdata}<extra></extra>",
        name="samples",
        selected={"marker": {"opacity": 1}},
        unselected={"marker": {"opacity": FADED}},
    )
    hidden = {"visible": True, "showticklabels": False, "showgrid": False, "ticks": "", "showline": False}
    figure.update_layout(plot_bgcolor=look.faint(0.03))
    figure.update_xaxes(range=padded(facts.get("x")), constrain="domain", **hidden)
    figure.update_yaxes(range=padded(facts.get("y")), scaleanchor="x", scaleratio=1, constrain="domain", constraintoward="top", **hidden)
    return figure


def padded(bounds: list[float] | None) -> list[float] | None:
    """The frame's range with a margin: later rounds may lie a little outside what it was fitted on."""
    if not bounds:
        return None
    margin = 0.08 * (bounds[1] - bounds[0])
    return [bounds[0] - margin, bounds[1] + margin]


def outside(points: pl.DataFrame, facts: dict[str, Any]) -> int:
    """Points that lie beyond the drawn frame."""
    x, y = padded(facts.get("x")), padded(facts.get("y"))
    if not x or not y:
        return 0
    return points.height - points.filter(pl.col("x").is_between(x[0], x[1]) & pl.col("y").is_between(y[0], y[1])).height


def live_lines(rows: pl.DataFrame, metric: str, arms: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """An ECharts option for a trajectory that grows: ECharts updates in place, plotly would be rebuilt."""
    symbol = {"circle": "circle", "diamond": "diamond", "square": "rect", "triangle-up": "triangle"}
    series = []
    for arm in arms:
        style, own = look.look(arm), rows.filter(pl.col("arm") == arm).sort("round")
        line = {"color": style.colour, "width": 2, "type": {"solid": "solid", "dot": "dotted"}.get(style.dash, "dashed")}
        data = [[r, v] for r, v in zip(own["round"], own["value"], strict=True)]
        series.append(
            {
                "name": arm,
                "type": "line",
                "data": data,
                "symbol": symbol.get(style.marker, "circle"),
                "symbolSize": 8,
                "lineStyle": line,
                "itemStyle": {"color": style.colour},
            }
        )
    ink, pale = look.faint(0.75), look.faint(0.12)
    return {
        "title": {"text": title_of(metric), "left": 0, "top": 6, "textStyle": {"fontSize": 13, "fontWeight": 600, "color": ink}},
        "grid": {"left": 6, "right": 16, "top": 40, "bottom": 8, "containLabel": True},
        "tooltip": {"trigger": "axis", "valueFormatter": "%.4g"},
        "animationDuration": 300,
        "xAxis": {
            "type": "value",
            "min": 0,
            "max": rounds,
            "interval": max(1, -(-rounds // 8)),
            "splitLine": {"show": False},
            "axisLabel": {"color": ink},
        },
        "yAxis": {
            "type": "value",
            "scale": True,
            "splitNumber": 3,
            "splitLine": {"lineStyle": {"color": pale}},
            "axisLabel": {"color": ink},
        },
        "series": series,
    }
