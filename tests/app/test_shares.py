"""Survival by frequency and entropy histograms: shares by hand, and what Trajectories says where a table is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from make_run import make_run
from page_kit import reseal, shown
from streamlit.testing.v1 import AppTest

from dces_core.metrics.probability import ENTROPY_BIN, ENTROPY_BINS
from dces_core.records import table
from dces_core.ui import shares

Open = Callable[..., AppTest]
HISTOGRAM = table(
    "entropy", [{"test_set": "", "bin": 0, "n": 30}, {"test_set": "", "bin": 2, "n": 10}, {"test_set": "s", "bin": 23, "n": 1}]
)


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dces_core.ui.look.is_dark", lambda: False)


def test_shares_of_a_set_with_its_empty_bins() -> None:
    assert shares.histogram(HISTOGRAM, "")[:4] == [(0.75, 30), (0.0, 0), (0.25, 10), (0.0, 0)]
    assert len(shares.histogram(HISTOGRAM, "")) == ENTROPY_BINS
    assert shares.histogram(HISTOGRAM, "absent") == []


def test_the_last_bin_is_open() -> None:
    assert shares.bin_name(0) == f"0 to {ENTROPY_BIN} nats"
    assert shares.bin_name(ENTROPY_BINS - 1) == "11.5 nats or more"
    _ground, line = shares.entropy({"plain": HISTOGRAM}, HISTOGRAM, "s").data
    assert line.y[-1] == 1.0 and line.customdata[-1] == "plain: 100.0% of tokens at 11.5 nats or more (1)"


def test_round_0_is_the_ground_and_arms_are_lines_over_it() -> None:
    figure = shares.entropy({"plain": HISTOGRAM, "dces": HISTOGRAM.head(0)}, HISTOGRAM, "")
    ground, plain = figure.data
    assert ground.fill == "tozeroy" and ground.name == "round 0" and plain.fill is None and plain.name == "plain"
    assert list(plain.x)[:3] == [-0.25, 0.25, 0.75] and list(plain.y)[:3] == [0, 0.75, 0]
    assert figure.layout.title.text == shares.OWN_TEXT and figure.layout.xaxis.range == (0, 1.5)
    assert [trace.name for trace in shares.entropy({"plain": HISTOGRAM}, HISTOGRAM.head(0), "").data] == ["plain"]


def metrics(*rows: tuple[str, int, float | None]) -> Any:
    return table("metrics", [{"arm": "plain", "metric": metric, "round": r, "value": value, "n": 1} for metric, r, value in rows])


def test_survival_is_a_share_of_round_0() -> None:
    rows = metrics(("survival_tail", 0, 0.08), ("survival_tail", 1, 0.02), ("survival_tail", 2, None), ("survival_head", 1, 0.5))
    assert shares.left(rows, "plain", "survival_tail")["left"].to_list() == [1.0, 0.25]
    assert shares.left(rows, "plain", "survival_head").height == 0, "no round 0"
    assert shares.left(metrics(("survival_tail", 0, 0.0), ("survival_tail", 1, 0.1)), "plain", "survival_tail").height == 0
    figure = shares.survival(rows, "plain", 2, shares.top_of(rows, ("plain",)))
    assert [trace.name for trace in figure.data] == ["rare"] and [note.text for note in figure.layout.annotations] == ["rare"]
    assert list(figure.data[0].customdata) == [0.08, 0.02] and figure.layout.yaxis.range == (0, 1.08)


@given(some.lists(some.floats(0, 1), max_size=5))
def test_labels_keep_their_order_and_distance(levels: list[float]) -> None:
    moved = sorted(shares.apart(levels, 0.1))
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(moved))
    assert sum(moved) == pytest.approx(sum(levels))
    far = [3 * i for i in range(len(levels))]
    assert shares.apart(far, 0.1) == far


def specs(app: AppTest) -> list[dict[str, Any]]:
    return [json.loads(chart.proto.spec) for chart in app.get("plotly_chart")]


def titles(app: AppTest) -> list[str]:
    return [spec["layout"]["title"]["text"] for spec in specs(app) if "title" in spec["layout"]]


def test_trajectories_draws_every_set_and_survival_per_arm(runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("trajectories", run="synthetic-1", set="generated text", round="2", vs="plain,dces")
    assert titles(app)[-3:] == ["everyday", "passages", shares.OWN_TEXT]
    assert "Entropy in round 2" in shown(app) and "Survival by frequency" in shown(app) and "Calibration" not in shown(app)
    revisions = [spec["layout"].get("uirevision") for spec in specs(app)]
    assert {"synthetic-1 survival plain", "synthetic-1 survival dces", "synthetic-1 entropy own-text"} <= set(revisions)
    assert len(set(revisions)) == len(revisions) and None not in revisions


def test_zoom_is_of_what_is_shown(runs: Path, open_page: Open) -> None:
    make_run(runs)
    revision = lambda **query: specs(open_page("trajectories", run="synthetic-1", **query))[0]["layout"]["uirevision"]  # noqa: E731
    assert revision(set="everyday", round="1") == revision(set="everyday", round="3", vs="plain")
    assert len({revision(set="everyday"), revision(set="passages"), revision(set="everyday", shown="change")}) == 3


def test_trajectories_of_a_run_recorded_before_the_histograms(runs: Path, open_page: Open) -> None:
    run = make_run(runs)
    for path in run.path.glob("round-*/*/evaluate/entropy.parquet"):
        path.unlink()
    words = shown(open_page("trajectories", run="synthetic-1"))
    assert "No entropy histogram of round 3" in words and "recorded before evaluations kept one" in words


def test_probes_of_an_older_run_are_read(runs: Path, open_page: Open) -> None:
    run = make_run(runs)
    for round_ in range(4):
        stage = run.of(round_, "plain", "evaluate")
        stage.frame("probes").drop("frozen_logprob").write_parquet(stage.file("probes.parquet"))
        reseal(stage)
    assert "collapsed at round 2" in shown(open_page("generations", run="synthetic-1", vs="plain,dces"))
