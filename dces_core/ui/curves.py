"""Small curves as pictures: they need no chart library in the browser, so they are there with the page's first words.

Lines and markers are an SVG; the words lie over it as text, and resting the pointer on a round tells its values.
"""

from __future__ import annotations

import math
from html import escape

import polars as pl

from dces_core.metrics.degradation import DIRECTION, TITLE
from dces_core.ui import look

WIDTH, HEIGHT = 300, 168  # of the picture, in the drawing's units
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 8, 24
TICKS = 5

Series = dict[str, list[tuple[int, float | None]]]


def curves(drawn: list[str]) -> str:
    """Curves side by side, as many in a row as there is room for."""
    return f'<div class="curves">{"".join(drawn)}</div>'


def curve(rows: pl.DataFrame, metric: str, arms: tuple[str, ...], rounds: int, marks: dict[str, int | None]) -> str:
    """One metric over the rounds, one line per arm. `rows`: METRICS of this metric; `marks`: ringed rounds per arm."""
    finite = pl.when(pl.col("value").is_finite()).then("value").alias("value")
    series: Series = {arm: rows.filter(pl.col("arm") == arm).sort("round").select("round", finite).rows() for arm in arms}
    values = [value for own in series.values() for _, value in own if value is not None]
    direction = DIRECTION.get(metric, "neutral")
    title = metric if direction == "neutral" else f"{metric}, {direction} is better"
    said = TITLE.get(metric, "")
    plot = Plot(values, rounds).html(series, marks, said or metric) if values else why_empty(rows)
    return f'<div class="curve"><b>{escape(title)}</b><span class="quiet">{escape(said)}</span>{plot}</div>'


def why_empty(rows: pl.DataFrame) -> str:
    """Where no value is defined, the reason stands in place of the picture."""
    reasons = ", ".join(rows["reason"].drop_nulls().unique(maintain_order=True).to_list())
    return f'<div class="none">undefined: {escape(reasons or "no value yet")}</div>'


def ticks(low: float, high: float) -> list[float]:
    """At most TICKS round numbers from low to high: 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


class Plot:
    """The ground of one curve: from rounds and values to places."""

    def __init__(self, values: list[float], rounds: int) -> None:
        lowest, highest = min(values), max(values)
        margin = 0.07 * (highest - lowest) or 0.1 * abs(highest) or 1.0
        self.low, self.high, self.rounds = max(0.0, lowest - margin) if lowest >= 0 else lowest - margin, highest + margin, max(1, rounds)

    def x(self, round_: float) -> float:
        """Where a round is."""
        return LEFT + 8 + (WIDTH - LEFT - RIGHT - 16) * round_ / self.rounds

    def y(self, value: float) -> float:
        """Where a value is."""
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.high - value) / (self.high - self.low)

    def html(self, series: Series, marks: dict[str, int | None], name: str) -> str:
        """The picture with its words."""
        levels = ticks(self.low, self.high)
        grid = "".join(f'<path d="M{LEFT} {self.y(level):.1f}H{WIDTH - RIGHT}" stroke="{look.faint(0.1)}"/>' for level in levels)
        axis = f'<path d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}" stroke="{look.faint(0.35)}"/>'
        lines = "".join(self.line(arm, own, marks.get(arm)) for arm, own in series.items())
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">{grid}{axis}{lines}</svg>'
        words = [f'<span class="y" style="top:{100 * self.y(level) / HEIGHT:.2f}%">{level:,.10g}</span>' for level in levels]
        every = range(0, self.rounds + 1, -(-self.rounds // 8))
        words += [f'<span class="x" style="left:{100 * self.x(round_) / WIDTH:.2f}%">{round_}</span>' for round_ in every]
        return f'<div class="plot">{look.image(svg, told(name, series))}{"".join([*words, *self.hovers(series)])}</div>'

    def line(self, arm: str, own: list[tuple[int, float | None]], mark: int | None) -> str:
        """One arm: a line with gaps where a round has no value, its markers, a ring around the marked round."""
        style, path, drawn, pen = look.look(arm), "", "", "M"
        for round_, value in own:
            if value is None:
                pen = "M"
                continue
            x, y = self.x(round_), self.y(value)
            path += f"{pen}{x:.1f} {y:.1f}"
            drawn += f'<g transform="translate({x:.1f} {y:.1f}) scale(.8) translate(-14 -7)">{look.SVG_MARKER[style.marker]}</g>'
            if round_ == mark:
                drawn += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7.5" fill="none" stroke="{style.colour}" stroke-width="1.5"/>'
            pen = "L"
        dash = f'stroke-dasharray="{look.SVG_DASH[style.dash]}"'
        return f'<path d="{path}" fill="none" stroke="{style.colour}" stroke-width="2" {dash}/><g fill="{style.colour}">{drawn}</g>'

    def hovers(self, series: Series) -> list[str]:
        """One strip per round; its title tells the values."""
        found, width = [], 100 * (self.x(1) - self.x(0)) / WIDTH
        for round_ in range(self.rounds + 1):
            values = [f"{arm} {value:.4g}" for arm, own in series.items() for at, value in own if at == round_ and value is not None]
            if values:
                words = escape("\n".join([f"round {round_}", *values])).replace("\n", "&#10;")
                left = 100 * self.x(round_) / WIDTH - width / 2
                found.append(f'<span class="at" style="left:{left:.2f}%;width:{width:.2f}%" title="{words}"></span>')
        return found


def told(name: str, series: Series) -> str:
    """The picture in words: where every arm begins and where it has got to."""
    parts = []
    for arm, own in series.items():
        known = [(round_, value) for round_, value in own if value is not None]
        if known:
            parts.append(f"{arm} {known[0][1]:.4g} in round {known[0][0]}, {known[-1][1]:.4g} in round {known[-1][0]}")
    return f"{name} over the rounds: {'; '.join(parts)}."
