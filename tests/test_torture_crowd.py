"""Several tabs on one run: no errors, the same state for all, timers that the server can stretch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torture import crowd
from torture.goals import GOALS

from dces_core.bench.rows import goal_of
from dces_core.bench.ui_server import APP, Visitor, serve

sys.path.insert(0, str(Path(__file__).parent / "app"))

from make_run import make_run


@pytest.mark.slow
def test_a_small_crowd_sees_no_errors() -> None:
    rows = {row.name: row for row in crowd.measure(0.05)}
    assert set(rows) == {f"crowd-{what}-{viewers}" for what in ("slowdown", "errors", "share", "memory") for viewers in (10, 100)}
    for name in ("crowd-errors-10", "crowd-errors-100"):
        assert goal_of(rows[name], GOALS).endswith("met"), rows[name].note
        assert rows[name].n > 0, "nobody looked again"


def test_two_tabs_on_one_run_see_it_stop(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", rounds=2, upto={"plain": 1}, state="running")
    with serve(APP, run.path.parent, DCES_CACHE=str(tmp_path / "cache")) as server:
        server.wait()
        tabs = [Visitor(server.port, "watch", f"run={run.id}") for _ in range(2)]
        for tab in tabs:
            assert set(tab.beats.values()) == {2.0}
        run.write_status({**run.status(), "state": "stopped"})
        for tab in tabs:
            tab.tick(next(iter(tab.beats)))
            assert tab.beats == {}, "a run that has ended is not looked at again"
            tab.close()


SCRIPT = """
import streamlit as st
from dces_core.ui import pace

def part():
    st.text(str(pace.PACE.stretch))
    pace.PACE.note("heavy", 2.0, 1e3, __import__("time").monotonic())

pace.timed(part, 2.0)()
"""


def test_a_beat_gives_its_own_timer_another_interval(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    with serve(tmp_path / "script.py", tmp_path) as server:
        server.wait()
        tab = Visitor(server.port, "", "")
        (timer,) = tab.beats
        before_s = tab.beats[timer]
        tab.tick(timer)
        assert before_s == 2.0 and tab.beats[timer] > 2.0
        tab.close()
