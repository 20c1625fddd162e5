"""The charts of the Compare page: arms keep their colour, dash and marker; words of others are escaped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

import plotly.graph_objects as go
import polars as pl

from dces_core.ui import charts, look
from dces_core.ui.comparison import QUANTITIES, TRAINED, response, trend
from dces_core.ui.sources import Comparison

ROW_PX = 24


@dataclass(frozen=True)
class Chart:
    """A figure, its key on the page (and name as a file), and what it shows in words."""

    key: str
    figure: go.Figure
    alt: str


def awareness(comparison: Comparison) -> list[Chart]:
    """One panel per controlled quantity: over the entropy of the model that it reacts to, round by round, means over seeds."""
    found = []
    for quantity, words in QUANTITIES.items():
        rows = response(comparison, quantity).drop_nulls("entropy")
        mean = rows.group_by("arm", "round", maintain_order=True).agg(pl.col("value", "entropy").mean()).sort("round")
        if mean.is_empty():
            continue
        figure = charts.panel(words.capitalize(), charts.wrapped("Over the entropy of the model that wrote the round's pool, nats"))
        for arm in comparison.arms():
            _path(figure, mean.filter(arm=arm), arm)
        figure.update_layout(hovermode="closest")
        found.append(Chart(f"awareness-{quantity}", figure, f"{words.capitalize()} against the entropy of the model, one line per arm"))
    return found


def _path(figure: go.Figure, own: pl.DataFrame, arm: str) -> None:
    """The rounds of one arm as a line; its last round is the large marker."""
    style, last = look.look(arm), own.height - 1
    figure.add_scatter(
        x=own["entropy"].to_list(),
        y=own["value"].to_list(),
        name=escape(arm),
        mode="lines+markers",
        customdata=own["round"].to_list(),
        hovertemplate=f"{escape(arm)}, round %{{customdata}}<br>entropy %{{x:.3f}}<br>%{{y:.3f}}<extra></extra>",
        line={"color": style.colour, "dash": style.dash, "width": 1.2},
        marker={"symbol": style.marker, "color": style.colour, "size": [9 if i == last else 4 for i in range(own.height)]},
    )


def quality(comparison: Comparison, round_: int) -> list[Chart]:
    """Loops and reference perplexity of what was trained on, over the rounds; means over seeds."""
    found, study = [], comparison.evidence
    for metric in TRAINED:
        parts = {arm: trend(study, arm, metric) for arm in comparison.arms()}
        parts = {arm: part for arm, part in parts.items() if part.height}
        if not parts:
            continue
        figure = charts.panel(charts.title_of(metric), charts.said_of(metric))
        for arm, part in parts.items():
            _band(figure, part, arm)
            charts.line(figure, part, arm)
        figure.update_xaxes(**charts.round_ticks(study.last))
        figure.update_yaxes(rangemode="nonnegative")
        charts.mark_round(figure, round_)
        found.append(Chart(f"quality-{metric}", figure, f"{metric} over the rounds for {', '.join(parts)}"))
    return found


def _band(figure: go.Figure, part: pl.DataFrame, arm: str) -> None:
    """The interval over seeds, where there is one."""
    part = part.drop_nulls("low")
    if part.height:
        rounds, ends = part["round"].to_list(), [*part["high"].to_list(), *part["low"].to_list()[::-1]]
        colour = look.look(arm).colour
        figure.add_scatter(
            x=[*rounds, *rounds[::-1]], y=ends, mode="none", fill="toself", fillcolor=_pale(colour), hoverinfo="skip", name=escape(arm)
        )


def _pale(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},.14)"


def forest(comparison: Comparison, frame: pl.DataFrame, measures: Mapping[str, str], at: float, words: str) -> go.Figure:
    """Arms in rows: per measure (its label by name) the mean, its interval and, small, every seed; the first is filled, the second open.

    `at`: the x of nothing lost; `words`: what x is.
    """
    arms = [arm for arm in comparison.arms() if arm in frame["arm"].to_list() and arm in comparison.evidence.done]
    figure = charts.base(90 + ROW_PX * len(arms))
    figure.add_vline(at, line={"color": look.faint(0.45), "width": 1, "dash": "dot"}, layer="below")
    for index, (measure, label) in enumerate(measures.items()):
        for row in frame.filter(pl.col("measure") == measure, pl.col("value").is_not_null()).iter_rows(named=True):
            if row["arm"] in arms:
                _mean(figure, row, arms.index(row["arm"]) + (index - 0.5) * 0.36, label, index)
    figure.update_layout(hovermode="closest", margin={"l": 112, "r": 14, "t": 10, "b": 60})
    figure.update_yaxes(
        tickvals=list(range(len(arms))), ticktext=[escape(arm) for arm in arms], range=[len(arms) - 0.4, -0.6], showgrid=True, nticks=None
    )
    figure.update_xaxes(title={"text": charts.wrapped(escape(words), 48), "font": {"size": 12}})
    return figure


def _mean(figure: go.Figure, row: Mapping[str, object], y: float, label: str, index: int) -> None:
    """One arm's row of one measure."""
    style = look.look(str(row["arm"]))
    points, value, low, high = list(row["points"]), float(row["value"]), row["low"], row["high"]  # type: ignore[call-overload, arg-type]
    if len(points) > 1:
        seeds = {"symbol": "line-ns-open", "size": 7, "color": style.colour, "opacity": 0.55}
        figure.add_scatter(x=points, y=[y] * len(points), mode="markers", marker=seeds, hoverinfo="skip")
    error = None if low is None or high is None else [float(high) - value, value - float(low)]  # type: ignore[arg-type]
    bars = {"type": "data", "array": [error[0]], "arrayminus": [error[1]], "thickness": 1.6, "width": 3} if error else {"visible": False}
    figure.add_scatter(
        x=[value],
        y=[y],
        mode="markers",
        error_x={**bars, "color": style.colour},
        marker={
            "symbol": style.marker + "-open" * bool(index),
            "size": 9,
            "color": style.colour,
            "line": {"width": 1.8, "color": style.colour},
        },
        hovertemplate=f"{escape(str(row['arm']))}, {label}: %{{x:.3f}}, n = {row['n_seeds']}<extra></extra>",
    )


def sustained(comparison: Comparison, frame: pl.DataFrame, measures: Mapping[str, str], words: str) -> go.Figure:
    """First rounds at which arms are 10% worse; an arm that never is stands beyond the last round."""
    last = comparison.evidence.last
    never = pl.when(pl.col("degraded") == 0).then(pl.lit(last + 1.0)).otherwise("value").alias("value")
    figure = forest(comparison, frame.with_columns(never), measures, last + 0.5, words)
    every = max(1, -(-last // 8))
    ticks = [*range(0, last + 1, every)]
    figure.update_xaxes(tickvals=[*ticks, last + 1], ticktext=[*map(str, ticks), "never"], range=[-0.3, last + 1.6], tickangle=0)
    return figure
