"""Playing the rounds: what starts it, what ends it. The beat itself needs a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from make_run import make_run
from streamlit.testing.v1 import AppTest

Open = Callable[..., AppTest]


def playing(app: AppTest) -> bool:
    assert not app.exception
    return "pause" in str(app.button(key="round-play").proto.icon)


def test_play_starts_where_it_is_and_pause_stays_there(runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("clusters", run="synthetic-1", round="2")
    assert not playing(app)
    app.button(key="round-play").click().run()
    assert playing(app) and app.select_slider[0].value == 2
    app.button(key="round-play").click().run()
    assert not playing(app) and app.select_slider[0].value == 2


def test_play_at_the_end_begins_again(runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("feedback", run="synthetic-1")
    app.button(key="round-play").click().run()
    assert playing(app) and app.select_slider[0].value == 1


@pytest.mark.parametrize("touch", ["slider", "arrow", "latest"])
def test_touching_the_scrubber_ends_it(touch: str, runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("clusters", run="synthetic-1", round="1")
    app.button(key="round-play").click().run()
    if touch == "slider":
        app.select_slider[0].set_value(2).run()
    else:
        app.button(key={"arrow": "round-right", "latest": "round-latest"}[touch]).click().run()
    assert not playing(app)
    assert app.select_slider[0].value == (3 if touch == "latest" else 2)


def test_another_page_ends_it(runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("clusters", run="synthetic-1", round="1")
    app.button(key="round-play").click().run()
    assert playing(app)
    app.switch_page("pages/runs.py").run()
    app.switch_page("pages/clusters.py").run()
    assert not playing(app) and app.select_slider[0].value == 1
