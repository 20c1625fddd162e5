"""A metric as it is, as its change since round 0, or against another arm: one view of charts, hovers and exports.

Metrics that are compared as ratios (compare.LOG_METRICS) are shown as a log ratio, the others as a difference.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import plotly.graph_objects as go
import polars as pl

from dces_core.compare import LOG_METRICS
from dces_core.metrics.degradation import TITLE
from dces_core.ui import charts, look

VALUE, CHANGE, AGAINST = "value", "change", "against"
LABELS = {VALUE: "value", CHANGE: "change since round 0", AGAINST: "against an arm"}


@dataclass(frozen=True)
class View:
    """What is shown of a metric; `base` is the arm of AGAINST."""

    kind: str = VALUE
    base: str = ""

    @property
    def origin(self) -> str:
        """What a value is compared with."""
        return self.base if self.kind == AGAINST else "round 0"

    @property
    def suffix(self) -> str:
        """The end of a file's name."""
        return {VALUE: "", CHANGE: "-change", AGAINST: f"-against-{self.base}"}[self.kind]


def shown(rows: pl.DataFrame, view: View) -> pl.DataFrame:
    """METRICS with `base` (what each value is compared with) and `delta`; a missing delta has a reason. `rows`: all arms and rounds.

    As a VALUE: METRICS alone.
    """
    if view.kind == VALUE:
        return rows
    keys = ["seed", "test_set", "metric", "arm" if view.kind == CHANGE else "round"]
    own = rows.filter(round=0) if view.kind == CHANGE else rows.filter(arm=view.base)
    joined = rows.join(own.select(*keys, pl.col("value").alias("base")), on=keys, how="left", maintain_order="left")
    value, base = pl.col("value"), pl.col("base")
    log, known = pl.col("metric").is_in(list(LOG_METRICS)), value.is_finite() & base.is_finite()
    delta = pl.when(~log & known).then(value - base).when(log & known & (value > 0) & (base > 0)).then((value / base).log())
    missing = f"no value in {view.origin}" if view.kind == CHANGE else f"no value of {view.origin} in this round"
    why = (
        pl.when(value.is_null())
        .then("reason")
        .when(base.is_null())
        .then(pl.lit(missing))
        .otherwise(pl.lit("no finite ratio or difference"))
    )
    return joined.with_columns(delta=delta).with_columns(reason=pl.when(pl.col("delta").is_null()).then(why).otherwise("reason"))


def drawn(own: pl.DataFrame, metric: str) -> pl.DataFrame:
    """Rows of `shown` as a chart takes them: the delta as `value`, and `hover`, the sum behind it."""
    sign = "ln(%.4g / %.4g)" if metric in LOG_METRICS else "%.4g \u2212 %.4g"
    words = [
        None if delta is None else f"{delta:+.4g} = {sign % (value, base)}"
        for value, base, delta in own.select("value", "base", "delta").iter_rows()
    ]
    return own.with_columns(pl.col("delta").alias("value"), pl.Series("hover", words, dtype=pl.String))


def trajectory(
    own: pl.DataFrame, metric: str, arms: tuple[str, ...], rounds: int, marks: dict[str, int | None], view: View, log: bool
) -> go.Figure:
    """`charts.trajectory` of one metric in this view: its title and hover say what is compared, a line marks zero. `own`: of `shown`."""
    if view.kind == VALUE:
        return charts.trajectory(own, metric, arms, rounds, marks, log)
    figure = charts.trajectory(drawn(own, metric), metric, arms, rounds, marks)
    ratio = metric in LOG_METRICS
    words = f"log ratio to {view.origin}" if ratio else f"minus {view.origin}"
    figure.update_layout(margin={"t": 70}, title={"text": f"Δ {'ln ' if ratio else ''}{charts.title_of(metric)}"})
    figure.update_layout(title={"subtitle": {"text": f"{words}<br>{textwrap.shorten(TITLE.get(metric, ''), 40, placeholder=' …')}"}})
    figure.update_xaxes(unifiedhovertitle={"text": f"round %{{x}}, {words}"})
    figure.update_yaxes(rangemode="tozero", zeroline=True, zerolinecolor=look.faint(0.5), zerolinewidth=1)
    return figure
