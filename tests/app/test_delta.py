"""A metric as a change or against an arm: the sums, what the charts say of them, and the address that leads there."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from make_run import make_run
from page_kit import shown as words_of
from streamlit.testing.v1 import AppTest

from dces_core.compare import LOG_METRICS, compare
from dces_core.records import table
from dces_core.ui import charts, delta, read

Open = Callable[..., AppTest]
CHANGE, AGAINST = delta.View(delta.CHANGE), delta.View(delta.AGAINST, "plain")


def rows_of(*rows: tuple[str, int, str, float | None]) -> pl.DataFrame:
    names = ("arm", "round", "metric", "value")
    full = [{**dict(zip(names, row, strict=True)), "seed": 0, "test_set": "s", "n": 1} for row in rows]
    return table("metrics", [{**row, "reason": "why" if row["value"] is None else None} for row in full])


ROWS = rows_of(
    *(("plain", 0, "ppl", 8.0), ("plain", 1, "ppl", 16.0), ("dces", 0, "ppl", 8.0), ("dces", 1, "ppl", 4.0)),
    *(("plain", 0, "ece", 0.1), ("plain", 1, "ece", 0.3), ("dces", 0, "ece", 0.1), ("dces", 1, "ece", None)),
)


def deltas(view: delta.View) -> dict[tuple[str, int, str], float | None]:
    rows = delta.shown(ROWS, view)
    return {(row["arm"], row["round"], row["metric"]): row["delta"] for row in rows.to_dicts()}


def test_change_is_a_log_ratio_of_perplexities_and_a_difference_of_the_rest() -> None:
    found = deltas(CHANGE)
    assert found["plain", 1, "ppl"] == pytest.approx(math.log(2)) and found["dces", 1, "ppl"] == pytest.approx(-math.log(2))
    assert found["plain", 1, "ece"] == pytest.approx(0.2)
    assert {value for (_, round_, _), value in found.items() if round_ == 0} == {0.0}


def test_against_an_arm_is_what_compare_calls_the_difference() -> None:
    found = deltas(AGAINST)
    compared = compare(ROWS, "plain", ("plain", "dces")).filter(arm="dces")
    assert compared.height == 4
    for row in compared.to_dicts():
        assert found["dces", row["round"], row["metric"]] == (None if row["diff"] is None else pytest.approx(row["diff"]))
    assert found["dces", 1, "ppl"] == pytest.approx(-math.log(4))


def test_what_has_no_delta_says_why() -> None:
    rows = rows_of(("plain", 0, "ppl", None), ("plain", 1, "ppl", 3.0), ("dces", 0, "ppl", 0.0), ("dces", 1, "ppl", 3.0))
    assert delta.shown(rows, CHANGE)["delta"].to_list() == [None] * 4
    assert delta.shown(rows, CHANGE)["reason"].to_list() == ["why", "no value in round 0", *["no finite ratio or difference"] * 2]
    against = delta.shown(rows.filter(~((pl.col("arm") == "plain") & (pl.col("round") == 1))), AGAINST)
    assert against["reason"].to_list()[-1] == "no value of plain in this round"
    assert delta.shown(rows, delta.View()).equals(rows)


@pytest.mark.parametrize(("metric", "title", "says"), [("ppl", "Δ ln ppl", "log ratio to plain"), ("ece", "Δ ece", "minus plain")])
def test_the_chart_says_what_is_compared_and_draws_zero(metric: str, title: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dces_core.ui.look.is_dark", lambda: False)
    own = delta.shown(ROWS, AGAINST).filter(pl.col("metric") == metric, pl.col("arm") == "dces")
    figure = delta.trajectory(own, metric, ("dces",), 1, {"dces": 1}, AGAINST, log=True)
    assert figure.layout.title.text.startswith(title) and says in figure.layout.title.subtitle.text
    assert figure.layout.xaxis.unifiedhovertitle.text == f"round %{{x}}, {says}"
    assert figure.layout.yaxis.zeroline and figure.layout.yaxis.rangemode == "tozero" and figure.layout.yaxis.type != "log"
    hover = figure.data[0].customdata[0]
    assert hover == ("+0 = ln(8 / 8)" if metric in LOG_METRICS else "+0 = 0.1 \u2212 0.1")


@pytest.mark.parametrize(
    ("points", "round_"), [([], None), ([{"x": 2}], 2), ([{"x": 9}], None), ([{"x": "2"}], None), ([{}, {"x": 1.0}], 1)]
)
def test_a_click_names_a_round_that_there_is(points: list[dict[str, Any]], round_: int | None) -> None:
    assert charts.clicked_round(points, [0, 1, 2]) == round_


def specs(app: AppTest) -> list[dict[str, Any]]:
    return [json.loads(chart.proto.spec) for chart in app.get("plotly_chart")]


def test_the_address_leads_to_the_view(runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("trajectories", run="synthetic-1", shown="against", base="dces", round="2")
    assert app.selectbox(key="pick-base").value == "dces" and "The zero line is dces." in words_of(app)
    charted = [spec for spec in specs(app) if spec["layout"]["title"]["text"].startswith("Δ")]
    assert len(charted) == len(specs(app)) - 4, "all but the reliability diagram and three entropy histograms"
    assert {trace["name"] for trace in charted[0]["data"] if "name" in trace} == {"plain", "dces-targets"}
    lines = [shape for shape in charted[0]["layout"]["shapes"] if shape["x0"] == 2]
    assert len(lines) == 1, "the picked round"
    assert json.loads(app.get("plotly_chart")[0].proto.config)["toImageButtonOptions"]["filename"] == "synthetic-1-ppl-against-dces"


def test_without_a_round_in_the_address_no_line_is_drawn(runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("trajectories", run="synthetic-1", shown="nonsense", base="<b>")
    assert not [spec for spec in specs(app) if spec["layout"].get("shapes")]
    assert "zero line" not in words_of(app) and app.button(key="round-latest").disabled


def test_an_arm_against_itself_is_said(runs: Path, open_page: Open) -> None:
    make_run(runs)
    assert "plain against itself" in words_of(open_page("trajectories", run="synthetic-1", shown="against", base="plain", vs="plain"))


def test_the_rows_shown_are_an_export(runs: Path, open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[pl.DataFrame] = []
    write = read.csv_of
    monkeypatch.setattr(read, "csv_of", lambda frame: (made.append(frame), write(frame))[1])
    make_run(runs)
    open_page("trajectories", run="synthetic-1", shown="change", set="passages", vs="plain,dces")
    rows, everything = made
    assert {"base", "delta"} <= set(rows.columns) and rows["test_set"].unique().to_list() == ["passages"]
    assert set(everything["test_set"]) > {"passages", ""} and set(rows["arm"]) == {"plain", "dces"}
