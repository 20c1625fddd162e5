"""The clusters of a round: the table by hand, the core contour against SciPy, the exports, and rows that select."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from make_run import make_run
from page_kit import shown
from streamlit.testing.v1 import AppTest

from dces_core.records import COORDS, SAMPLES
from dces_core.ui import clusters, hull

Open = Callable[..., AppTest]
NUMBERS = some.integers(-50, 50).map(float)


def samples(*rows: tuple[int | None, str | None, float | None, str, int]) -> pl.DataFrame:
    """cluster, role, distance, fate, changed; the text is the row's number."""
    names = ("cluster", "role", "distance", "fate", "changed")
    body = [{**dict(zip(names, row, strict=True)), "text": f"text {i}", "x": float(i), "y": float(i * i)} for i, row in enumerate(rows)]
    return pl.DataFrame(body, schema={**SAMPLES, "x": COORDS["x"], "y": COORDS["y"]})


FRAME = samples(
    *((1, "center", 0.2, "picked", 2), (1, "center", 0.1, "over quota", 0), (1, "edge", 0.6, "picked", 0), (1, "edge", 0.9, "rejected", 0)),
    *((0, "edge", 0.9, "rejected", 0), (-1, "edge", 0.7, "picked", 0), (None, None, None, "rejected", 0)),
)
STATE = {"edge_share": 0.5, "clusters": [{"cluster": 1, "size": 4, "center": 2, "dispersion": 0.45, "edge_share": 0.3}]}


def test_a_row_per_cluster_by_hand() -> None:
    rows = clusters.cluster_rows(FRAME, STATE, "dces")
    assert rows.rows() == [
        ("dces", 0, 1, 0, 1, 0, 1, None, 0.5, None, None),
        ("dces", 1, 4, 2, 2, 1, 1, 0.45, 0.3, "text 1", "text 2"),
        ("dces", -1, 1, 0, 1, 0, 0, None, 0.5, None, "text 5"),
    ]
    assert clusters.cluster_rows(FRAME, {"edge_share": None}, "plain")["edge share"].to_list() == [None] * 3
    assert clusters.cluster_rows(FRAME.head(0), {}, "plain").height == 0


def test_a_square_has_its_corners_and_its_area() -> None:
    points = np.array([[0, 0], [2, 0], [1, 0], [2, 2], [0, 2], [1, 1], [0, 0], [np.nan, 9]])
    corners = hull.convex_hull(points)
    assert corners.tolist() == [[0, 0], [2, 0], [2, 2], [0, 2]]
    assert hull.area(corners) == 4


@pytest.mark.parametrize("points", [[], [[1, 1]], [[1, 1], [2, 2]], [[0, 0], [1, 1], [3, 3]], [[1, 1]] * 5])
def test_what_spans_no_area_has_no_contour(points: list[list[float]]) -> None:
    corners = hull.convex_hull(np.array(points, dtype=float).reshape(-1, 2))
    assert corners.shape == (0, 2) and hull.area(corners) is None
    figure = go.Figure()
    hull.draw(figure, corners, "plain")
    assert not figure.layout.shapes


@settings(deadline=None)
@given(some.lists(some.tuples(NUMBERS, NUMBERS), min_size=3, max_size=40))
def test_the_hull_is_scipys(points: list[tuple[float, float]]) -> None:
    from scipy.spatial import ConvexHull, QhullError

    cloud = np.array(points)
    corners = hull.convex_hull(cloud)
    try:
        expected = ConvexHull(cloud)
    except QhullError:
        assert not len(corners)
        return
    assert {tuple(corner) for corner in corners} == {tuple(cloud[i]) for i in expected.vertices}
    assert hull.area(corners) == pytest.approx(expected.volume)


def test_the_core_is_of_center_samples_alone() -> None:
    frame = samples(*[(0, "center", 0.1, "picked", 0)] * 4, (0, "edge", 0.9, "picked", 0))
    assert hull.core(frame)[:, 0].max() == 3
    assert not len(hull.core(frame.with_columns(pl.lit(None, dtype=pl.Float32).alias("x"))))


def test_parquet_has_what_embedding_atlas_asks_for() -> None:
    table = pl.read_parquet(io.BytesIO(clusters.as_parquet([FRAME, FRAME])))
    assert table.columns[:3] == ["x", "y", "text"] and {"arm", "role", "cluster"} <= set(table.columns)
    assert table.height == 14 and not any(kind.is_nested() for kind in table.schema.values())


def test_the_html_stands_alone_and_is_inert() -> None:
    hostile = "<script>alert(1)</script>"
    page = clusters.as_html(hostile, hostile, [("<b>plain</b>", go.Figure()), ("", go.Figure())], "#FFF", "#000").decode()
    assert hostile not in page and page.count("Plotly.newPlot(") == 2
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)


def open_clusters(open_page: Open, picked: list[int]) -> AppTest:
    app = open_page("clusters", run="synthetic-1", round="1", vs="plain,dces")
    app.session_state["clusters-1-plain-dces"] = {"selection": {"rows": picked, "columns": [], "cells": []}}
    return app.run()


def test_a_picked_row_selects_its_cluster(runs: Path, open_page: Open) -> None:
    run = make_run(runs)
    rows = clusters.cluster_rows(run.samples("plain", 1), run.controller("plain", 1), "plain")
    app = open_clusters(open_page, [0, rows.height])
    assert not app.exception and not app.markdown
    first = rows["size"][0] + int((run.samples("dces", 1)["cluster"] == 0).sum())
    assert f"{first} selected" in [title.value for title in app.subheader]
    faded = json.loads(app.get("plotly_chart")[0].proto.spec)["data"][1]["marker"]["opacity"]
    kept = json.loads(open_page("clusters", run="synthetic-1", round="1").get("plotly_chart")[0].proto.spec)["data"][1]["marker"]["opacity"]
    assert faded != kept


def test_the_maps_have_their_core_and_their_area(runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_clusters(open_page, [])
    specs = [json.loads(chart.proto.spec) for chart in app.get("plotly_chart")]
    assert [[shape["name"] for shape in spec["layout"]["shapes"]] for spec in specs] == [["core"], ["core"]]
    assert "hull area <b>" in shown(app) and "core <b>" in shown(app)
    assert "selected" not in " ".join(title.value for title in app.subheader)
    assert {button.proto.label for button in app.get("download_button")} == {"Samples as Parquet", "Maps as HTML"}
