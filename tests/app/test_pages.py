"""Every page in every state: it draws, says what is so, and quotes no text unescaped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from make_run import HOSTILE, make_run
from page_kit import OF_A_RUN, PAGES, reseal, shown
from streamlit.testing.v1 import AppTest

from dces_core import launch, models, processes, store
from dces_core.stage import write_json
from dces_core.ui.text import escaped

Open = Callable[..., AppTest]


@pytest.mark.parametrize("page", PAGES)
def test_no_runs_at_all(page: str, runs: Path, open_page: Open) -> None:
    words = shown(open_page(page))
    expected = {
        "start": "No comparison to show yet",
        "launch": "Launch",
        "curate": "Give a pool of texts",
        "tune": "No search yet",
        "cost": "Nothing was measured for this recipe",
        "diagnose": "it says whether the texts collapse",
        "runs": "No runs yet",
    }
    assert expected.get(page, "Nothing has been run yet") in words


@pytest.mark.parametrize("page", PAGES)
def test_a_finished_run(page: str, runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page(page, run="synthetic-1")
    assert app.sidebar.selectbox[0].value == "synthetic-1"
    expected = {
        "start": "Perplexity on everyday: plain is 10% worse from round 1 on",
        "launch": "Keeps running if you close this tab or restart the dashboard",
        "curate": "One curation is made at a time",
        "tune": "It goes on where it stopped",
        "cost": "Rounds lost to collapse",
        "watch": "A column is a round",
        "trajectories": "1 seed: points, no interval",
        "clusters": "Distances in two dimensions have no direct meaning",
        "feedback": "Every sample of the pool leaves it once",
        "point": "plain in round 3: 98% on its likeliest token",
        "generations": "collapsed at round 2",
        "case": "under plain 4 of 8, first in round 2 (greedy); under dces none of 8",
        "ask": "Put a prompt of your own to two checkpoints",
        "diagnose": "One diagnosis is made at a time",
        "runs": "Select a row",
    }
    assert expected[page] in shown(app)


STATES = {
    "failed": {"plain": 1, "dces": 1, "dces-targets": 0},
    "lost": {"plain": 2, "dces": 1, "dces-targets": 1},
    "queued": {"plain": -1, "dces": -1, "dces-targets": -1},
    "running": {"plain": 0, "dces": 0, "dces-targets": 0},
    "stopped": {"plain": 1, "dces": 0, "dces-targets": 0},
}


@pytest.mark.parametrize(
    ("page", "state"), [*(("watch", state) for state in STATES), *((page, state) for page in PAGES for state in ("failed", "queued"))]
)
def test_every_state(page: str, state: str, runs: Path, open_page: Open) -> None:
    make_run(runs, upto=STATES[state], state=state)
    app = open_page(page, run="synthetic-1")
    if page in OF_A_RUN:
        assert f">{state}</span>" in shown(app)


def test_watch_says_why_it_failed_and_offers_to_resume(runs: Path, open_page: Open) -> None:
    make_run(runs, upto={"plain": 1, "dces": 0, "dces-targets": 0}, state="failed")
    app = open_page("watch", run="synthetic-1")
    assert "training loss became NaN" in shown(app)
    assert app.button(key="resume") and not [b for b in app.button if b.key == "stop"]


def test_watch_counts_only_an_arms_own_map(runs: Path, open_page: Open) -> None:
    make_run(runs, upto={"plain": 1, "dces": 1, "dces-targets": 0}, state="failed")
    words = shown(open_page("watch", run="synthetic-1"))
    assert 'title="round 1 dces map: done"' in words
    assert 'title="round 1 dces-targets map: to do"' in words


def test_watch_names_the_run_it_waits_for(runs: Path, open_page: Open) -> None:
    run = make_run(runs, upto={"plain": -1, "dces": -1, "dces-targets": -1}, state="queued")
    run.write_status({**run.status(), "waiting_for": "other-1", "queue_position": 2})
    words = shown(open_page("watch", run=run.id))
    assert "Queued behind run other-1" in words and "Position 2 in the queue" in words


def test_watch_says_on_which_node_of_a_cluster_a_run_is(runs: Path, open_page: Open) -> None:
    run = make_run(runs, upto={"plain": 0, "dces": 0, "dces-targets": 0}, state="running")
    run.write_status({**run.status(), "host": "node-<7>", "pid": 2**22 - 3})
    app = open_page("watch", run=run.id)
    assert 'node</span> &nbsp;<b class="num">node-&lt;7&gt;</b>' in shown(app) and app.button(key="stop")


HOSTILE_ID = "![x](http://127.0.0.1:9/b.png)<script>"


@pytest.mark.parametrize(
    ("page", "value"), [*((page, HOSTILE_ID) for page in PAGES), *(("watch", v) for v in ("../../etc", "/etc/passwd", "nothing-here"))]
)
def test_an_address_that_names_no_run(page: str, value: str, runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page(page, run=value)
    words = shown(app)
    assert "<script>" not in words
    assert not app.error and not app.markdown
    if page in OF_A_RUN:
        assert "names no run here" in words
        assert "synthetic-1" in app.sidebar.selectbox[0].options[0]


@pytest.mark.parametrize(("text", "round_"), [("2", 2), ("99", 3), ("-4", 1), ("NaN", 3), ("1e9", 3), ("", 3)])
def test_rounds_are_clamped(text: str, round_: int, runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("clusters", run="synthetic-1", round=text)
    assert app.select_slider[0].value == round_
    assert f"The feedback loop in round {round_}" in [e.label for e in app.expander]


def test_bad_arms_prompts_and_sets_fall_back(runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("generations", run="synthetic-1", vs="dces,<b>,nobody", prompt="probe-99", mode="beam")
    assert app.selectbox(key="pick-prompt").value == "probe-01"
    assert 'alt=""' in shown(app)
    assert open_page("trajectories", run="synthetic-1", set="../x", vs="nobody").button_group[0].value


def test_deep_link_opens_the_prompt_and_the_arms(runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("generations", run="synthetic-1", vs="plain,dces", prompt="probe-02", mode="sampled", round="1")
    assert app.selectbox(key="pick-prompt").value == "probe-02"
    assert "dces-targets</b>" not in shown(app)
    assert app.select_slider[0].value == 1


def test_the_picked_run_survives_a_change_of_page(runs: Path, open_page: Open) -> None:
    make_run(runs, "one")
    make_run(runs, "two")
    app = open_page("watch", run="one")
    app.query_params.clear()
    app.switch_page("pages/trajectories.py").run()
    assert not app.exception
    assert app.sidebar.selectbox[0].value == "one"


def test_an_unreadable_run_is_said(runs: Path, open_page: Open) -> None:
    run = make_run(runs)
    (run.path / "run.json").write_text('{"schema": 1, "config": {"rounds": 0}}')
    assert "rounds = 0 is not allowed" in shown(open_page("watch", run=run.id))
    assert not open_page("runs").exception


def test_recorded_runs_are_read_only(runs: Path, open_page: Open) -> None:
    make_run(store.recorded_root(), "shipped")
    app = open_page("runs", run="shipped")
    assert app.button(key="delete").disabled and app.button(key="stop").disabled and app.button(key="resume").disabled
    assert "Recorded comparison" in shown(open_page("start"))


def test_delete_asks_first(runs: Path, open_page: Open) -> None:
    run = make_run(runs)
    app = open_page("runs", run=run.id)
    app.button(key="delete").click().run()
    assert run.path.exists()
    app.button(key="delete").click()
    app.button(key="delete-yes").click().run()
    assert not app.exception and not run.path.exists()


def test_runs_acts_on_the_run_of_the_address(runs: Path, open_page: Open) -> None:
    make_run(runs, "one")
    make_run(runs, "two")
    for name in ("one", "two"):
        assert name in [text.value for text in open_page("runs", run=name).text]


def test_hostile_answers_are_never_markdown(runs: Path, open_page: Open) -> None:
    make_run(runs)
    for i in range(len(HOSTILE)):
        app = open_page("generations", run="synthetic-1", prompt=f"probe-{i + 2:02d}")
        assert not app.markdown
        words = shown(app)
        assert "<script>" not in words and "<img src=x" not in words and "<b>&amp;</b>" not in words


def test_launch_form_has_every_setting_with_its_bounds(runs: Path, open_page: Open) -> None:
    from dces_core.config import RunConfig

    app = open_page("launch")
    keys = {
        str(e.key).split("/", 1)[1]
        for kind in ("number_input", "text_input", "selectbox", "toggle", "text_area", "multiselect")
        for e in app.get(kind)
        if "/" in str(e.key)
    }
    for name, info in RunConfig.model_fields.items():
        inner = getattr(info.annotation, "model_fields", None)
        wanted = {name} if inner is None else {f"{name}/{field}" for field in inner}
        assert wanted <= keys
    rounds = next(e for e in app.number_input if str(e.key).endswith("/rounds"))
    assert (rounds.min, rounds.max) == (1, 10_000)
    assert rounds.help


def test_launch_form_refuses_in_a_sentence(runs: Path, open_page: Open) -> None:
    app = open_page("launch")
    name = next(e for e in app.text_input if str(e.key).endswith("/name"))
    name.set_value("../![x](y)").run()
    assert not app.exception
    assert "must use letters, digits" in shown(app)
    assert not [b for b in app.button if b.key == "launch"]


def test_start_offers_the_model_that_is_not_here_and_shows_how_far_it_is(
    runs: Path, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulls: list[float] = []

    def pull() -> None:
        pulls.append(0.4)
        models.models_root().mkdir(parents=True, exist_ok=True)
        facts = {"share": pulls[-1], "text": "downloading 93 MB", "error": None, **processes.identity()}
        write_json(models.models_root() / f"{models.DEFAULT}.progress.json", facts)

    monkeypatch.setattr(launch, "pull_model", pull)
    app = open_page("start")
    assert "is not on this machine yet" in shown(app)
    next(button for button in app.button if button.key == "pull").click().run()
    assert pulls and not app.exception
    assert "Goes on if you close this tab" in shown(app)
    assert [bar.proto.value for bar in app.get("progress")] == [40]


def test_feedback_shows_both_arms_and_says_what_nothing_steers(runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("feedback", run="synthetic-1", vs="plain,dces", round="2")
    words = shown(app)
    assert app.select_slider[0].value == 2 and "round 2 went" in words
    assert "Nothing is controlled; no edge share (this arm picks at random)" in words
    assert "The loop set: edge share 0.54, editing temperature 1.16." in words
    assert "undefined: this arm does not edit" in words
    assert words.count("56 of the pool&#x27;s 120 samples trained on.") == 2
    assert len(app.get("plotly_chart")) == 6 + 2


def test_feedback_of_a_half_finished_run_draws_what_is_there(runs: Path, open_page: Open) -> None:
    make_run(runs, upto={"plain": 2, "dces": 1, "dces-targets": 0}, state="stopped")
    app = open_page("feedback", run="synthetic-1", vs="plain,dces", round="2")
    assert "No selection in round 2" in shown(app)
    assert len(app.get("plotly_chart")) == 6 + 1


def test_feedback_quotes_stored_words_verbatim(runs: Path, open_page: Open) -> None:
    run = make_run(runs, rounds=1)
    path = run.stage(1, "plain", "select").path / "controller.json"
    write_json(path, {**run.controller("plain", 1), "reason": HOSTILE[4], "notes": [HOSTILE[3]]})
    reseal(run.stage(1, "plain", "select"))
    app = open_page("feedback", run=run.id, vs="plain,dces")
    words = shown(app)
    assert not app.markdown
    assert "<script>" not in words and "<img src=x" not in words
    assert escaped(HOSTILE[4]) in words and escaped(HOSTILE[3]) in words


def test_generations_maps_degeneracy_of_each_arm_in_the_mode_shown(runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("generations", run="synthetic-1", vs="plain,dces", prompt="probe-02", round="1")
    words = shown(app)
    assert len(app.get("plotly_chart")) == 2
    assert "Degeneracy of an answer: 1 where it is empty or ends in a loop" in words
    assert words.count('<div class="round now">1</div>') == 1
    assert words.count('class="round now"') == 1
    assert '<div class="round now">0</div>' in shown(open_page("generations", run="synthetic-1", round="-1"))


def test_generations_of_a_half_finished_run_maps_what_is_there(runs: Path, open_page: Open) -> None:
    make_run(runs, upto={"plain": 1, "dces": 0, "dces-targets": 0}, state="stopped")
    app = open_page("generations", run="synthetic-1")
    assert len(app.get("plotly_chart")) == 3
    assert "not evaluated yet" in shown(app)
