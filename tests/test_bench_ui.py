"""The dashboard's bench on a run of a few samples: that it measures what it says, not how fast."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest

sys.path.insert(0, str(Path(__file__).parent / "app"))

from make_run import event, make_run, round_of

from dces_core.bench import ui, ui_browser, ui_points, ui_run
from dces_core.bench.plan import Plan
from dces_core.bench.rows import Row
from dces_core.bench.ui_server import APP, Visitor, serve
from dces_core.store import Run
from dces_core.ui import charts, look

PLAN = Plan(repeats=1, ui_arms=3, ui_rounds=2, ui_samples=40, ui_ticks=2, ui_points=(1000,), ui_zooms=2)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("DCES_CACHE", str(tmp_path / "cache"))
    return make_run(tmp_path / "runs", rounds=2, state="running")


def check(found: list[Row]) -> dict[str, Row]:
    for row in found:
        assert row.ours is not None and row.n > 0 and row.peer is None, row
        assert row.ours > 0 or row.name == "ui-tick-figures"
    return {row.name: row for row in found}


def test_the_server_is_asked_for_maps_ticks_and_memory(run: Run) -> None:
    found = check(ui.server_rows(PLAN, run))
    assert found.keys() == {"ui-map-cold", "ui-map-warm", "ui-map-first", "ui-tick", "ui-tick-figures", "ui-memory"}
    assert found["ui-map-cold"].n == 1 and found["ui-tick-figures"].n == 4 * PLAN.ui_ticks
    assert found["ui-tick-figures"].ours == 0, "an unchanged tick sends no figure"
    assert 50 < (found["ui-memory"].ours or 0) < 400


def test_a_round_that_lands_sends_figures_and_a_log_line_sends_none(run: Run) -> None:
    open_run = make_run(run.path.parent, "open-1", rounds=3, upto={"plain": 2, "dces": 2, "dces-targets": 2}, state="running")
    with serve(APP, run.path.parent) as server:
        server.wait()
        visitor = Visitor(server.port, "watch", f"run={open_run.id}")
        timers = visitor.opened.timers
        assert visitor.opened.figures == 4 and len(timers) == 2
        event(open_run, {"kind": "note", "text": "a word"})
        assert [visitor.tick(timer).figures for timer in timers] == [0, 0]
        round_of(open_run, open_run.config, "plain", 3, np.random.default_rng(0))
        landed = visitor.tick(timers[0])
        assert landed.figures == 4 and len(landed.timers) == 2, "the whole page is drawn anew"
        assert visitor.tick(landed.timers[0]).figures == 0
        visitor.close()


def test_without_a_browser_its_rows_are_skipped_with_the_reason(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = ui.browser_rows(Plan(), run)
    assert [row.name for row in found] == ["ui-first-paint", "ui-zoom-5k", "ui-zoom-50k"]
    assert all(row.ours is None and row.note.startswith("skipped: ") and "pip install" in row.note for row in found)


def test_without_the_pages_everything_is_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ui, "APP", tmp_path / "app.py")
    assert [row.note for row in ui.ui(PLAN)] == ["skipped: the dashboard is not here: measure in a checkout of the project"]


def test_colours_of_the_map_are_those_of_the_clusters() -> None:
    for clusters in ([None, 3, -1, 0, 3], [2, 2], [1, None], []):
        with look.on_paper():
            found = charts.hues(pl.Series(clusters, dtype=pl.Int32))
            expected = [look.hue(cluster) for cluster in clusters]
        scale = {round(place * found["cmax"]): colour for place, colour in found["colorscale"] or []}
        assert [scale[step] for step in found["color"].tolist()] == expected


def test_points_have_every_look_of_a_sample() -> None:
    found = ui_points.samples(900, np.random.default_rng(0))
    assert found.height == 900 and set(charts.symbols(found)) == {"circle", "circle-open", "diamond", "diamond-open", "x-thin-open"}


@pytest.mark.slow
def test_the_run_is_whole_and_seems_alive(tmp_path: Path) -> None:
    made = ui_run.make(PLAN, tmp_path)
    assert made.config.arms == ui_run.ARMS[:3] and made.config.rounds == 2 and not (tmp_path / "first").exists()
    for arm in made.config.arms:
        assert made.finished(arm) == [0, 1, 2]
        frame = made.samples(arm, 2)
        assert frame.height == 40 and set(frame["arm"]) == {arm} and set(frame["round"]) == {2}
        assert frame["x"].count() == 40 and frame["id"].str.starts_with("r02-").all()
    assert made.status()["state"] == "running" and len(made.log_tail(99)) > 20
    assert set(made.metrics()["round"]) == {0, 1, 2} and made.generations("random", 2).height > 0


@pytest.mark.browser
def test_a_browser_paints_and_zooms(run: Run) -> None:
    with ThreadPoolExecutor(1) as apart:  # this thread may hold the loop of pytest's own Playwright
        if reason := apart.submit(ui_browser.absent).result():
            pytest.skip(reason)
        found = apart.submit(ui.browser_rows, PLAN, run).result()
    assert check(found).keys() == {"ui-first-paint", "ui-zoom-1k"}
