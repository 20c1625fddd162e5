"""The actions of the page Runs, and the two ways from a run to the form of the page Launch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from make_run import make_run
from page_kit import shown
from small import finished
from streamlit.testing.v1 import AppTest

from dces_core import branch, labels, launch, store
from dces_core.config import parse
from dces_core.store import Run

Open = Callable[..., AppTest]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished(tmp_path_factory.mktemp("runs"), "small-1", arms=["plain", "dces"], rounds=2)


@pytest.fixture
def run(made: Run, runs: Path) -> Run:
    shutil.copytree(made.path, runs / made.id)
    return Run(runs / made.id)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """What the pages start; no process is made."""
    found: list[Run] = []
    monkeypatch.setattr(launch, "start", lambda job: found.append(job) or job)
    return found


def button(app: AppTest, key: str) -> Any:
    return next(one for one in app.button if one.key == key)


def pressed(app: AppTest, key: str) -> AppTest:
    button(app, key).click().run()
    assert not app.exception, [e.value for e in app.exception]
    return app


def inside(app: AppTest, opener: str, act: Callable[[], Any]) -> AppTest:
    """Do something in a dialog: the test's page is always run whole, so the button that opened it is pressed along."""
    button(app, opener).click()
    act().run()
    assert not app.exception, [e.value for e in app.exception]
    return app


def save(app: AppTest) -> AppTest:
    return inside(app, "describe", lambda: next(one for one in app.button if one.form_id == "describe").click())


def rows(app: AppTest) -> list[str]:
    """The runs of the table."""
    return list(app.dataframe[0].value["run"])


# labels -----------------------------------------------------------------------------------------------------------------


def test_label_note_and_tags(run: Run, open_page: Open) -> None:
    app = open_page("runs", run=run.id)
    assert {"label", "tags"}.isdisjoint(app.dataframe[0].proto.column_order)
    pressed(app, "describe")
    app.text_input(key="label").set_value("the baseline")
    app.text_area(key="note").set_value("<b>why</b>\nso")
    app.multiselect(key="tags").set_value(["good", "seed0"])
    save(app)
    assert labels.read(run) == labels.Labels("the baseline", "<b>why</b>\nso", ("good", "seed0"))
    app = open_page("runs", run=run.id)
    words = shown(app)
    assert "the baseline" in words and "&lt;b&gt;why&lt;/b&gt;" in words and not app.markdown
    assert "the baseline" in app.sidebar.selectbox[0].options[0]
    assert "the baseline" in shown(open_page("watch", run=run.id))


def test_a_bad_tag_is_a_sentence(run: Run, open_page: Open) -> None:
    app = pressed(open_page("runs", run=run.id), "describe")
    app.multiselect(key="tags").set_value(["two words"])
    save(app)
    assert "must use letters, digits" in shown(app) and labels.read(run).tags == ()


def test_the_table_is_filtered_by_tags(runs: Path, open_page: Open) -> None:
    for name, tags in (("one", ["a"]), ("two", ["a", "b"]), ("three", [])):
        labels.tag(make_run(runs, name), tags)
    app = open_page("runs")
    assert sorted(rows(app)) == ["one", "three", "two"]
    app.multiselect(key="pick-tag").set_value(["a"]).run()
    assert sorted(rows(app)) == ["one", "two"]
    app.multiselect(key="pick-tag").set_value(["a", "b"]).run()
    assert rows(app) == ["two"] and "a,b" in app.query_params["tag"]
    assert rows(open_page("runs", tag="b")) == ["two"]
    assert sorted(rows(open_page("runs", tag="<script>,nobody"))) == ["one", "three", "two"]


def test_tags_that_no_run_has_together(runs: Path, open_page: Open) -> None:
    for name, tags in (("one", ["a"]), ("two", ["b"])):
        labels.tag(make_run(runs, name), tags)
    app = open_page("runs", tag="a,b")
    assert "No run has all of these tags" in shown(app)
    app.multiselect(key="pick-tag").set_value([]).run()
    assert sorted(rows(app)) == ["one", "two"]


def test_a_damaged_label_file_hides_nothing(run: Run, open_page: Open) -> None:
    run.labels_path.write_text("{", encoding="utf-8")
    assert rows(open_page("runs", run=run.id)) == [run.id]


def test_an_unreadable_run_can_be_deleted_and_labelled_only(run: Run, open_page: Open) -> None:
    (run.path / "run.json").write_text("{}", encoding="utf-8")
    app = open_page("runs", run=run.id)
    off = {one.key: one.disabled for one in app.button}
    assert {key: off[key] for key in ("resume", "again", "continue", "fork", "describe", "delete")} == {
        "resume": True, "again": True, "continue": True, "fork": True, "describe": False, "delete": False,
    }  # fmt: skip
    pressed(app, "describe")


# continue ---------------------------------------------------------------------------------------------------------------


def test_continue(run: Run, runs: Path, open_page: Open, started: list[Run]) -> None:
    app = pressed(open_page("runs", run=run.id), "continue")
    inside(app, "continue", lambda: app.number_input(key="more").set_value(3))
    assert "A new run of 5 rounds takes rounds 0 to 2 over from small-1" in shown(app)
    inside(app, "continue", button(app, "continue-yes").click)
    (made,) = started
    assert made.config.rounds == 5 and made.finished("dces") == [0, 1, 2] and launch.state(made) == "queued"
    words = shown(open_page("runs", run=made.id))
    assert "Continued from small-1, whose rounds 0 to 2 it took over. Changed: rounds: 2 → 5." in words
    assert "continued from small-1 at round 2" in shown(open_page("trajectories", run=made.id))


def test_continue_says_what_went_wrong(run: Run, open_page: Open, started: list[Run]) -> None:
    run.stage(1, "dces", "select").file("samples.parquet").write_bytes(b"")
    app = pressed(open_page("runs", run=run.id), "continue")
    inside(app, "continue", button(app, "continue-yes").click)
    assert "round-01/dces/select is damaged" in shown(app) and not started


@pytest.mark.parametrize(("state", "able"), [("failed", False), ("running", False), ("queued", False), ("done", True)])
def test_only_a_finished_run_is_continued_or_deleted(runs: Path, open_page: Open, state: str, able: bool) -> None:
    make_run(runs, state=state, upto=None if able else {"plain": 1, "dces": 1, "dces-targets": 1})
    app = open_page("runs", run="synthetic-1")
    assert button(app, "continue").disabled is not able
    assert button(app, "delete").disabled is (state in launch.ALIVE)
    assert not button(app, "fork").disabled and not button(app, "again").disabled


def test_a_recorded_run_is_only_launched_again(run: Run, open_page: Open) -> None:
    shutil.copytree(run.path, store.recorded_root() / "shipped")
    app = open_page("runs", run="shipped")
    off = {one.key: one.disabled for one in app.button}
    assert not off["again"] and off["continue"] and off["fork"] and off["describe"] and off["delete"]


# launch again -----------------------------------------------------------------------------------------------------------


def widget(app: AppTest, kind: str, field: str) -> Any:
    return next(one for one in app.get(kind) if str(one.key).endswith(f"/{field}"))


def test_launch_again_opens_the_form_with_the_runs_settings(run: Run, open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_page("launch", **{"from": run.id})
    words = shown(app)
    assert "Settings of small-1" in words and "Differs from" not in words and not app.button_group
    assert widget(app, "number_input", "pool/n").value == 8 and widget(app, "number_input", "rounds").value == 2
    assert not widget(app, "number_input", "seed").disabled
    widget(app, "number_input", "seed").set_value(5).run()
    assert "Differs from run small-1" in shown(app) and "seed = 5" in shown(app)
    launched: list[Any] = []
    monkeypatch.setattr(launch, "launch", lambda config: launched.append(config) or run)
    pressed(app, "launch")
    assert launched == [parse({**run.config.model_dump(mode="json"), "seed": 5})]


def test_back_to_recipes(run: Run, open_page: Open) -> None:
    app = pressed(open_page("launch", **{"from": run.id}), "drop")
    assert "Settings of" not in shown(app) and app.button_group


@pytest.mark.parametrize("value", ["nobody", "../../etc", "<script>"])
def test_an_address_that_names_no_run(run: Run, open_page: Open, value: str) -> None:
    app = open_page("launch", **{"from": value, "fork": "1"})
    words = shown(app)
    assert "names no run here" in words and "<script>" not in words and app.button_group


# fork -------------------------------------------------------------------------------------------------------------------


def test_fork_from_the_button_to_the_new_run(run: Run, open_page: Open, started: list[Run]) -> None:
    app = open_page("launch", **{"from": run.id, "fork": "1"})
    words = shown(app)
    assert "Fork of small-1" in words and "takes rounds 0 to 1 of its arms over" in words
    assert "The weights of round 1 were deleted for plain, dces" in words
    assert button(app, "launch").label == "Fork from round 1"
    fields = [one for kind in ("number_input", "text_input", "selectbox", "toggle", "multiselect", "text_area") for one in app.get(kind)]
    for field in fields:
        if "/" in str(field.key):
            assert field.disabled == (branch.why_fixed(str(field.key).partition("/")[2].replace("/", ".")) is not None), field.key
    widget(app, "number_input", "edit/temperature").set_value(1.4).run()
    assert "edit.temperature = 1.4" in shown(app)
    pressed(app, "launch")
    (made,) = started
    assert made.config.edit.temperature == 1.4 and made.finished("dces") == [0, 1]
    assert (made.parent["run"], made.parent["round"], made.config.rounds) == ("small-1", 1, 6)


def test_what_cannot_be_forked_is_said_before_the_button(run: Run, open_page: Open, started: list[Run]) -> None:
    app = open_page("launch", **{"from": run.id, "fork": "1"})
    widget(app, "number_input", "train/lr").set_value(3e-4).run()
    assert "train.lr cannot change at round 1" in shown(app) and button(app, "launch").disabled
    app.select_slider(key="pick-fork").set_value(2).run()
    assert "train.lr cannot change" not in shown(app) and not button(app, "launch").disabled
    widget(app, "multiselect", "arms").set_value(["plain", "random"]).run()
    assert "arms: &#x27;random&#x27; has no round 2" in shown(app) and button(app, "launch").disabled


@pytest.mark.parametrize(("text", "round_"), [("99", 2), ("-3", 0), ("x", 2), ("", 2)])
def test_the_round_of_the_address_is_clamped(run: Run, open_page: Open, text: str, round_: int) -> None:
    assert open_page("launch", **{"from": run.id, "fork": text}).select_slider(key="pick-fork").value == round_


def test_nothing_to_fork_from(runs: Path, open_page: Open) -> None:
    make_run(runs, upto={"plain": -1, "dces": -1, "dces-targets": -1}, state="failed")
    assert button(open_page("runs", run="synthetic-1"), "fork").disabled
    assert "has no finished round to fork from" in shown(open_page("launch", **{"from": "synthetic-1", "fork": "0"}))
