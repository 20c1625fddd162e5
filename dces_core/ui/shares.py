"""Shares: of the real vocabulary that is still used, by frequency; and of tokens by the entropy of their distribution."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go
import polars as pl

from dces_core.metrics.probability import ENTROPY_BIN, ENTROPY_BINS
from dces_core.ui import charts, look

OWN_TEXT = "its own text"
#: Metric -> name of the line, from the frequent words to the rare ones, which are drawn the boldest.
SURVIVAL = {"survival_head": ("frequent", 1.0, 0.45), "survival_middle": ("middling", 1.6, 0.7), "survival_tail": ("rare", 2.6, 1.0)}
SURVIVAL_RULE = (
    "How many different words of the real training text the generated text still uses, against round 0 (100%), in samples of one size. "
    "Frequent: the words that make up half of the real text; middling: up to 90% of it; rare: the last tenth. Their shares stand above."
)
LABEL_GAP = 0.09  # of the axis: a line of small letters
ENTROPY_RULE = (
    f"Share of tokens by the entropy of the distribution that they were predicted with, in bins of {ENTROPY_BIN} nats; the last bin is "
    "open. 0: the model expects a single token. Filled: round 0. Lines: this round, one per arm. On real text the model reads the "
    "reference; on its own it reads what it wrote."
)


def left(rows: pl.DataFrame, arm: str, metric: str) -> pl.DataFrame:
    """`round`, `value` and `left`, the value as a share of round 0's; empty where round 0 has none. `rows`: METRICS."""
    own = rows.filter((pl.col("arm") == arm) & (pl.col("metric") == metric)).sort("round").drop_nulls("value")
    first = own.filter((pl.col("round") == 0) & (pl.col("value") > 0))["value"].to_list()
    return own.select("round", "value", left=pl.col("value") / first[0]) if first else own.head(0).select("round", "value", left="value")


def apart(levels: list[float], gap: float) -> list[float]:
    """These levels in their order, at least `gap` from each other, with the same mean."""
    moved, before = list(levels), -float("inf")
    for index in sorted(range(len(levels)), key=levels.__getitem__):
        moved[index] = before = max(levels[index], before + gap)
    excess = (sum(moved) - sum(levels)) / max(1, len(levels))
    return [level - excess for level in moved]


def survival(rows: pl.DataFrame, arm: str, rounds: int, top: float) -> go.Figure:
    """How much of round 0's vocabulary one arm still uses, a line for each frequency. `rows`: METRICS of SURVIVAL; `top`: of the axis."""
    figure, style = charts.base(230), look.look(arm)
    figure.update_layout(margin={"t": 10, "r": 62})
    lines = [(left(rows, arm, metric), *how) for metric, how in SURVIVAL.items()]
    lines = [line for line in lines if line[0].height]
    ends = apart([own["left"][-1] for own, *_ in lines], LABEL_GAP * top)
    for (own, name, width, opacity), end in zip(lines, ends, strict=True):
        figure.add_scatter(
            x=own["round"].to_list(),
            y=own["left"].to_list(),
            name=name,
            mode="lines+markers",
            opacity=opacity,
            customdata=own["value"].to_list(),
            hovertemplate="%{y:.0%}, share %{customdata:.3g}",
            line={"color": style.colour, "dash": style.dash, "width": width},
            marker={"symbol": style.marker, "size": 5, "color": style.colour},
        )
        at = {"x": own["round"][-1], "y": end, "xanchor": "left", "xshift": 8, "showarrow": False}
        figure.add_annotation(text=name, **at, font={"size": 11, "color": look.faint(0.8)})
    figure.update_xaxes(**charts.round_ticks(rounds))
    figure.update_yaxes(range=[0, top], tickformat=".0%")
    return figure


def top_of(rows: pl.DataFrame, arms: tuple[str, ...]) -> float:
    """The end of the axis that all arms' `survival` fits under."""
    values = [value for arm in arms for metric in SURVIVAL for value in left(rows, arm, metric)["left"].to_list()]
    return 1.08 * float(max([1.0, *values]))


def histogram(table: pl.DataFrame, test_set: str) -> list[tuple[float, int]]:
    """(share, tokens) of every bin from 0 nats on; empty without tokens. `table`: ENTROPY; `test_set` "": the model's own text."""
    counts = dict(table.filter(pl.col("test_set") == test_set).select("bin", "n").iter_rows())
    whole = sum(counts.values())
    return [(counts.get(bin_, 0) / whole, counts.get(bin_, 0)) for bin_ in range(ENTROPY_BINS)] if whole else []


def bin_name(bin_: int) -> str:
    """A bin in words."""
    low = bin_ * ENTROPY_BIN
    return f"{low:g} nats or more" if bin_ == ENTROPY_BINS - 1 else f"{low:g} to {low + ENTROPY_BIN:g} nats"


def entropy(tables: Mapping[str, pl.DataFrame], ground: pl.DataFrame, test_set: str) -> go.Figure:
    """Tokens by their entropy: one stepped line per arm over round 0's filled ground. `tables`: ENTROPY by arm."""
    figure = charts.panel(test_set or OWN_TEXT, "")
    figure.update_layout(hovermode="closest", margin={"t": 34, "b": 46})
    first = histogram(ground, test_set)
    own = {arm: histogram(table, test_set) for arm, table in tables.items()}
    shown = [bins for bins in (first, *own.values()) if bins]
    last = max((bin_ for bins in shown for bin_, (_, n) in enumerate(bins) if n), default=0)
    centres = [(bin_ + 0.5) * ENTROPY_BIN for bin_ in range(-1, min(last + 2, ENTROPY_BINS))]
    for arm, bins in (("", first), *own.items()):
        if not bins:
            continue
        points = [(0.0, 0), *bins[: len(centres) - 1]]  # the first one closes the ground at 0 nats
        words = [f"{arm or 'round 0'}: {share:.1%} of tokens at {bin_name(bin_ - 1)} ({n:,})" for bin_, (share, n) in enumerate(points)]
        line = {"shape": "hvh", "width": 0} if not arm else {"shape": "hvh", "color": look.look(arm).colour, "dash": look.look(arm).dash}
        fill = {} if arm else {"fill": "tozeroy", "fillcolor": look.faint(0.13)}
        figure.add_scatter(
            x=centres,
            y=[share for share, _ in points],
            name=arm or "round 0",
            mode="lines",
            line=line,
            customdata=words,
            hovertemplate="%{customdata}<extra></extra>",
            **fill,
        )
    figure.update_xaxes(range=[0, (last + 1) * ENTROPY_BIN], title={"text": "entropy, nats", "font": {"size": 11}})
    figure.update_yaxes(rangemode="tozero", tickformat=".0%")
    return figure
