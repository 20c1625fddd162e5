"""Degeneracy of the watched prompts' answers, prompts x rounds: one map per arm, whose cells can be clicked."""

from __future__ import annotations

from functools import lru_cache
from html import escape
from typing import Any

import plotly.graph_objects as go
import polars as pl

from dces_core.metrics.text import evenly, loop_units, rep_4_units, units
from dces_core.ui import charts, look

RULE = (
    "Degeneracy of an answer: 1 where it is empty or ends in a loop; else the mean of two shares, its repeated 4-grams "
    "and its repeated words (1 - distinct units / units)."
)
MOST = 60  # rows and columns that one map draws
CELL = 16  # px
NAME = 18  # characters of a prompt's id


@lru_cache(maxsize=100_000)
def degeneracy(text: str) -> float:
    """How degenerate an answer is, 0 (no unit occurs twice) to 1 (empty, or ending in a loop; nothing else is 1). See RULE.

    Not the larger of the two shares: repeated words are never fewer than repeated 4-grams. Below 4 units only they count.
    """
    words = units(text)
    if not words or loop_units(words):
        return 1.0
    repeated, grams = 1 - len(set(words)) / len(words), rep_4_units(words)
    return repeated if grams is None else (repeated + grams) / 2


def graded(rows: pl.DataFrame) -> pl.DataFrame:
    """arm, round, prompt_id, degeneracy of PROBES rows of one mode; null where no answer is stored."""
    values = [None if text is None else degeneracy(text) for text in rows["text"].to_list()]
    return rows.select("arm", "round", "prompt_id").with_columns(pl.Series("degeneracy", values, dtype=pl.Float64))


def worst_prompts(grades: pl.DataFrame) -> list[str]:
    """Prompt ids, the worst first: by the largest value, then by the mean, over all arms and rounds alike; ties by id."""
    value = pl.col("degeneracy")
    order = grades.group_by("prompt_id").agg(value.max().alias("worst"), value.mean().alias("mean"))
    return order.sort("worst", "mean", "prompt_id", descending=[True, True, False], nulls_last=True)["prompt_id"].to_list()


def shown_rounds(grades: pl.DataFrame) -> list[int]:
    """The rounds that a map draws: all, or MOST of them evenly spaced, the last one always."""
    rounds = grades["round"].unique().sort(descending=True).to_list()
    return sorted(rounds[index] for index in evenly(len(rounds), MOST))


def chosen(points: list[dict[str, Any]], prompts: list[str], rounds: list[int]) -> tuple[str, int] | None:
    """The prompt and the round of a clicked cell; None where the click took a selection back. Ids only: `customdata`."""
    for point in points:
        match point.get("customdata"):
            case [int(row), int(column)] if 0 <= row < len(prompts) and 0 <= column < len(rounds):
                return prompts[row], rounds[column]
    return None


def short(prompt_id: str) -> str:
    """A prompt's id as an axis label: never markup."""
    return escape(prompt_id if len(prompt_id) <= NAME else f"{prompt_id[: NAME - 1]}…")


def scale() -> list[str]:
    """The colours of 0 and 1: the ground and the ink, since hues belong to arms."""
    return ["#24282D", "#D8D7D2"] if look.is_dark() else ["#F1F1EE", "#3A3F45"]


def heat_map(grades: pl.DataFrame, prompts: list[str], rounds: list[int], here: tuple[str, int | None]) -> go.Figure:
    """One arm's map, `prompts` from the top. A cross marks 1, a frame the cell `here`; a cell without a value stays empty.

    An invisible marker on every cell takes the clicks: plotly selects points, never cells.
    """
    known = {(row["prompt_id"], row["round"]): row["degeneracy"] for row in grades.to_dicts()}
    table = [[known.get((prompt, round_)) for round_ in rounds] for prompt in prompts]
    cells = [(r, c, value) for r, values in enumerate(table) for c, value in enumerate(values) if value is not None]
    low, high = scale()
    figure = charts.base(CELL * len(prompts) + 46)
    figure.update_layout(hovermode="closest", dragmode=False, margin={"l": 8, "r": 8, "t": 8, "b": 30})
    figure.add_heatmap(z=table, zmin=0, zmax=1, colorscale=[[0, low], [1, high]], showscale=False, xgap=1, ygap=1, hoverinfo="skip")
    full = [(c, r) for r, c, value in cells if value == 1]
    cross = {"symbol": "x-thin", "size": 6, "line": {"width": 1.5, "color": low}}
    figure.add_scatter(x=[c for c, _ in full], y=[r for _, r in full], mode="markers", marker=cross, hoverinfo="skip")
    figure.add_scatter(
        x=[c for _, c, _ in cells],
        y=[r for r, _, _ in cells],
        mode="markers",
        marker={"symbol": "square", "size": CELL - 4, "opacity": 0},
        selected={"marker": {"opacity": 0}},
        unselected={"marker": {"opacity": 0}},
        customdata=[[r, c] for r, c, _ in cells],
        text=[f"{short(prompts[r])}, round {rounds[c]}: {value:.2f}" for r, c, value in cells],
        hovertemplate="%{text}<extra></extra>",
    )
    frame(figure, prompts, rounds, here)
    step = max(1, -(-len(rounds) // 12))
    ticks = list(range(0, len(rounds), step))
    figure.update_xaxes(tickvals=ticks, ticktext=[str(rounds[c]) for c in ticks], range=[-0.5, len(rounds) - 0.5], fixedrange=True)
    names = [short(prompt) for prompt in prompts]
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.5, -0.5], fixedrange=True, showgrid=False)
    figure.update_yaxes(automargin=True, tickfont={"size": 10})
    return figure


def frame(figure: go.Figure, prompts: list[str], rounds: list[int], here: tuple[str, int | None]) -> None:
    """Mark the chosen prompt's row, and inside it the chosen round's cell."""
    prompt, round_ = here
    if prompt not in prompts:
        return
    row = prompts.index(prompt)
    ink = {"color": look.faint(0.85), "width": 1.5}
    figure.add_shape(type="rect", x0=-0.5, x1=len(rounds) - 0.5, y0=row - 0.5, y1=row + 0.5, line={**ink, "width": 1})
    if round_ in rounds:
        column = rounds.index(round_)
        figure.add_shape(type="rect", x0=column - 0.5, x1=column + 0.5, y0=row - 0.5, y1=row + 0.5, line={**ink, "width": 3})


def legend() -> str:
    """The scale as HTML, from 0 to 1."""
    low, high = scale()
    ramp = f'<i class="ramp" style="background:linear-gradient(90deg,{low},{high})"></i>'
    return f'<span class="chip num">0 {ramp} 1</span>'
