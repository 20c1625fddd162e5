"""Maps of many samples: the shade has every sample in its place, and a lasso takes what is inside, drawn or not."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest
from make_run import make_run
from page_kit import shown
from PIL import Image
from streamlit.testing.v1 import AppTest

from dces_core.ui import charts, crowd, look

Open = Callable[..., AppTest]
FRAME = pl.DataFrame({"row": [0, 1, 2, 3], "x": [1.0, 9.0, 5.0, 50.0], "y": [1.0, 9.0, 5.0, 5.0], "cluster": [0, 1, None, 0]})


def test_the_shade_has_every_sample_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "is_dark", lambda: False)
    figure = go.Figure(layout={"xaxis": {"range": [0, 10]}, "yaxis": {"range": [0, 10]}})
    crowd.shade(figure, FRAME)
    image = figure.layout.images[0]
    assert (image.x, image.y, image.sizex, image.sizey, image.layer) == (0, 10, 10, 10, "below")
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(image.source.split(",", 1)[1]))))
    rows, columns = np.nonzero(pixels[..., 3])
    assert list(zip(columns.tolist(), rows.tolist(), strict=True)) == [(288, 32), (160, 160), (32, 288)], "y upwards; beyond the frame: no"
    red, green, blue, _ = pixels[288, 32].tolist()
    assert blue > green > red, "cluster 0 is blue"
    assert len(set(pixels[160, 160, :3].tolist())) == 1, "no cluster is grey"


def test_a_selection_takes_what_is_inside_and_each_sample_once() -> None:
    lasso = {"x": [0, 6, 6, 0], "y": [0, 0, 6, 6]}
    selection = {"points": [{"customdata": 0}, {"customdata": [3, 0]}, {"customdata": None}], "box": [], "lasso": [lasso]}
    assert crowd.taken(selection, FRAME) == {0, 2, 3}
    assert crowd.taken({"points": [], "box": [{"x": [10, 4], "y": [4, 10]}], "lasso": []}, FRAME) == {1, 2}
    notched = {"x": [0, 10, 10, 5, 0], "y": [0, 0, 10, 4, 10]}  # a V is cut out of the top, and (5, 5) lies in it
    assert crowd.taken({"points": [], "lasso": [notched]}, FRAME) == {0}
    assert crowd.taken({"points": []}, FRAME) == set()


def test_a_map_of_many_says_so(runs: Path, open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(runs)
    whole = open_page("clusters", run="synthetic-1", round="1", vs="plain,dces")
    assert "the shade is of all" not in shown(whole)
    monkeypatch.setattr(charts, "stratified", lambda frame: frame.head(50))
    part = open_page("clusters", run="synthetic-1", round="1", vs="plain,dces")
    assert "showing 50 of 120; the shade is of all" in shown(part)
    specs = [json.loads(chart.proto.spec) for chart in part.get("plotly_chart")]
    assert [len(spec["layout"]["images"]) for spec in specs] == [1, 1]


def test_the_address_names_a_sample(runs: Path, open_page: Open) -> None:
    run = make_run(runs)
    own = run.samples("dces", 1).row(7, named=True)
    app = open_page("clusters", run="synthetic-1", round="1", vs="plain,dces", sample=f"dces:{own['id']}")
    assert "The linked sample" in [title.value for title in app.subheader]
    assert f"mean log-probability {own['logprob']:.4g} nats" in shown(app)
    assert "The linked sample" in [
        title.value for title in open_page("clusters", run="synthetic-1", round="1", vs="plain,dces", sample=own["id"]).subheader
    ]
    other = open_page("clusters", run="synthetic-1", round="1", vs="plain,dces", sample="../../<script>")
    assert "The linked sample" not in [title.value for title in other.subheader] and "<script>" not in shown(other)
