"""The page Cost: its address, its figures and their sources, hostile values, nothing measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from make_run import event, make_run
from page_kit import shown
from streamlit.testing.v1 import AppTest

from dces_core.store import SHARED, Run

Open = Callable[..., AppTest]
SHARED_STAGES = ("generate", "reference", "map")


def timed(root: Path, seconds: float = 4.0) -> Run:
    """A run of the fake engine whose every stage took as long."""
    run = make_run(root)
    event(run, {"kind": "span", "round": 0, "arm": SHARED, "stage": "evaluate", "seconds": seconds})
    for stage in SHARED_STAGES:
        event(run, {"kind": "span", "round": 1, "arm": SHARED, "stage": stage, "seconds": seconds})
    for arm in run.config.arms:
        for round_ in range(1, 4):
            for stage in ("generate", "select", "map", "train", "evaluate")[round_ == 1 :]:
                event(run, {"kind": "span", "round": round_, "arm": arm, "stage": stage, "seconds": seconds})
    return run


def metrics_of(app: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in app.metric}


def test_a_deep_link_says_it_all(runs: Path, open_page: Open) -> None:
    run = timed(runs)
    app = open_page("cost", recipe="smoke", by=f"run/{run.id}", rounds="3", price="3.6", watts="1000", currency="EUR")
    words = shown(app)
    assert f"run {run.id} (an unnamed processor" in words and "n = 2 rounds" in words and "scaled" in words
    assert "Rounds lost to collapse" in words and "dces bench dces-total" in words and "whole units" not in words
    said = metrics_of(app)
    figure = json.loads(app.get("plotly_chart")[0].proto.spec)
    amounts = sum(sum(trace["x"]) for trace in figure["data"])
    assert said["Money, the run"] == f"{amounts:.3g} EUR" and said["Energy of the run"] == f"{amounts * 1000 / 3600:.3g} kWh"
    assert {label for trace in figure["data"] for label in trace["y"]} == {"plain", "dces", "once, for all"}
    app.number_input(key="pick-price").set_value(None).run()
    assert metrics_of(app)["Money, the run"] == "–" and "price" not in app.query_params
    app.number_input(key="pick-price").set_value(2.5).run()
    assert app.query_params["price"] in ("2.5", ["2.5"]) and metrics_of(app)["Money, the run"] != "–"
    app.selectbox(key="pick-recipe").select("quick").run()
    assert "rounds" not in app.query_params and "by" not in app.query_params and app.number_input(key="pick-rounds").value == 3


def test_nothing_is_measured(runs: Path, open_page: Open) -> None:
    app = open_page("cost", recipe="smoke", price="1")
    words = shown(app)
    assert "Nothing was measured for this recipe" in words and "no run with the engine fake on cpu is here" in words
    assert set(metrics_of(app).values()) == {"–"} and not app.get("plotly_chart")


@pytest.mark.parametrize("value", ["-1", "<script>alert(2)</script>"])
def test_hostile_addresses(runs: Path, open_page: Open, value: str) -> None:
    timed(runs)
    query = {"recipe": value, "rounds": value, "by": value, "price": value, "watts": value}
    words = shown(open_page("cost", **query))
    assert "price = " in words and "counts as not given" in words and "measured nothing for this recipe here" in words
    assert "<script>" not in words
    words = shown(open_page("cost", currency=value))
    assert "<script>" not in words and "currency = " in words
