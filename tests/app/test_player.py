"""Playing the rounds: what starts it, what ends it. The beat itself needs a browser."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from make_run import make_run
from streamlit.testing.v1 import AppTest

from dces_core.ui import state

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


class Rerun(Exception):
    """The page was drawn again."""


@pytest.mark.parametrize(
    ("before", "now", "asked", "drawn"),
    [
        ([[0, 1], [0, 1]], [[0, 1], [0, 1]], None, False),
        ([[0, 1], [0, 1]], [[0, 1, 2], [0, 1]], None, True),
        ([[0, 1, 2], [0, 1]], [[0, 1, 2], [0, 1, 2]], "2", True),  # the second arm reaches the round that is shown
        ([[0, 1, 2], [0, 1]], [[0, 1, 2, 3], [0, 1]], "2", False),  # a newer round is offered
    ],
)
def test_what_a_live_run_draws_again(
    monkeypatch: pytest.MonkeyPatch, before: list[list[int]], now: list[list[int]], asked: str | None, drawn: bool
) -> None:
    polls: list[Any] = []
    answers = iter([*before, *now])
    monkeypatch.setattr(state.pace, "timed", lambda poll, base_s: polls.append(poll) or (lambda: None))
    monkeypatch.setattr(state.st, "rerun", lambda scope: (_ for _ in ()).throw(Rerun))
    monkeypatch.setattr(state.st, "button", lambda *a, **k: False)
    monkeypatch.setattr(state, "asked", lambda name: asked)
    monkeypatch.setattr(state.read, "live", lambda run: True)
    monkeypatch.setattr(state.read, "finished", lambda run, arm, name: next(answers))
    run: Any = SimpleNamespace(config=SimpleNamespace(arms=("plain", "dces")))
    state.follow(run, "evaluate", max(map(max, before)))
    with pytest.raises(Rerun) if drawn else nullcontext():
        polls[0]()


def test_the_beat_of_playing_has_a_box_of_its_own(runs: Path, open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(runs)
    boxed: list[float | None] = []
    part = state.pace.part
    monkeypatch.setattr(state.pace, "part", lambda draw, every_s=None: boxed.append(every_s) or part(draw, every_s))
    app = open_page("feedback", run="synthetic-1", round="1")
    assert state.BEAT_S not in boxed
    app.button(key="round-play").click().run()
    assert playing(app) and state.BEAT_S in boxed
