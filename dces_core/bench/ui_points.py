"""A page with one map of $DCES_BENCH_POINTS samples, drawn as the Clusters page draws it: `streamlit run` of this file."""

from __future__ import annotations

import os

import numpy as np
import polars as pl
import streamlit as st

from dces_core.ui import charts, crowd

CLUSTERS, GROUND, SPAN = 40, 2_000, 10.0


def samples(count: int, rng: np.random.Generator) -> pl.DataFrame:
    """What a map reads of SAMPLES: clouds of center, edge, edited, rejected and unpicked samples."""
    cluster = rng.integers(-1, CLUSTERS, count)
    centres = rng.uniform(0, SPAN, (CLUSTERS + 1, 2))
    x, y = (centres[cluster] + rng.normal(0, 0.4, (count, 2))).T
    draw = rng.random((3, count))
    fates = np.array(["picked", "over quota", "rejected"])
    return pl.DataFrame(
        {
            "row": np.arange(count), "x": x, "y": y, "cluster": cluster, "changed": np.where(draw[0] < 0.2, 3, 0),
            "role": np.where(draw[1] < 0.5, "center", "edge"), "fate": fates[(3 * draw[2]).astype(int)],
        }
    )  # fmt: skip


def page() -> None:
    """Draw it."""
    rng = np.random.default_rng(0)
    ground = pl.DataFrame(dict(zip("xy", rng.uniform(0, SPAN, (2, GROUND)), strict=True)))
    points = samples(int(os.environ["DCES_BENCH_POINTS"]), rng)
    drawn = charts.stratified(points)
    figure = charts.scatter_map(drawn, ground, {"x": [0, SPAN], "y": [0, SPAN]})
    if drawn.height < points.height:
        crowd.shade(figure, points)
    st.plotly_chart(figure, key="points", on_select="rerun", selection_mode=("points", "box", "lasso"), config=charts.MAP_CONFIG)


if __name__ == "__main__":
    page()
