"""The Compare page in every state: nothing, one study, a part of one, runs, several of all of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from make_run import make_run
from page_kit import shown
from streamlit.testing.v1 import AppTest

from dces_core import store
from dces_core.stage import read_json, write_json
from dces_core.study_store import Output, recorded_studies
from dces_core.ui import sources

Open = Callable[..., AppTest]
SECTIONS = (
    "The four properties that the method claims",
    "Arms and metrics",
    "Collapse verdicts",
    "Ablations",
    "Robustness",
    "Settings that differ",
    "Take it with you",
)


def titles(app: AppTest) -> list[str]:
    return [element.value for element in app.subheader]


def put(study: Output, folder: Path) -> Path:
    shutil.copytree(study.path, folder)
    return folder


def test_nothing_at_all_says_which_command_makes_something(runs: Path, open_page: Open) -> None:
    app = open_page("compare")
    assert "Nothing to compare yet" in shown(app) and "dces study smoke --out $DCES_RUNS/smoke-study" in shown(app)
    assert titles(app) == [] and not app.multiselect


def test_a_run_that_is_not_finished_is_no_source(runs: Path, open_page: Open) -> None:
    make_run(runs, upto={"plain": 1, "dces": 0, "dces-targets": 0}, state="stopped")
    assert "Nothing to compare yet" in shown(open_page("compare", run="synthetic-1"))


def test_a_whole_study(runs: Path, open_page: Open, study: Output) -> None:
    put(study, runs / "mine")
    app = open_page("compare")
    words = shown(app)
    assert tuple(titles(app)) == SECTIONS and not app.markdown
    assert app.multiselect(key="pick-sources").value == ["out:mine"]
    assert "5 of 5 units (one arm, one seed) are finished; no arm has 5 seeds, so no figure has an interval." in words
    assert "fake engine: figures mean nothing" in words and "this arm picks at random" in words
    assert "▲" in words and "not run" in words and "facebook/opt-6.7b" in words
    assert "One source: choose a second one" in words
    assert app.selectbox(key="pick-base").value == "plain" and app.selectbox(key="pick-base").options[0] == "random"


def test_a_part_of_a_study_says_what_is_missing(runs: Path, open_page: Open, study: Output) -> None:
    folder = put(study, recorded_studies() / "chain")
    for unit in ("seed-1/plain", "seed-0/dces", "seed-1/dces", "seed-1/random"):
        shutil.rmtree(folder / "units" / unit)
    words = shown(open_page("compare"))
    assert (
        "1 of 5 units (one arm, one seed) are finished; seeds are missing of plain 1 of 2; nothing yet of random, dces; no arm has" in words
    )
    assert "no finished unit of dces here" in words and "No arm of this comparison has a feedback loop" in words
    assert "chain" in words and "1 of 2" in words


def test_a_study_without_any_unit_says_how_to_go_on(runs: Path, open_page: Open, study: Output) -> None:
    shutil.rmtree(put(study, recorded_studies() / "chain") / "units")
    app = open_page("compare", sources="study:chain")
    assert "No finished unit yet" in shown(app) and "dces study chain" in shown(app) and titles(app) == []


def test_seeds_of_the_arms_may_differ(runs: Path, open_page: Open, study: Output) -> None:
    folder = put(study, runs / "mine")
    shutil.rmtree(folder / "units/seed-0/plain")
    words = shown(open_page("compare", base="dces"))
    assert "seeds are missing of plain 1 of 2" in words and "base</span>" in words


def test_a_run_is_one_seed(runs: Path, open_page: Open) -> None:
    make_run(runs, seed=0)
    words = shown(open_page("compare", sources="run:synthetic-1"))
    assert "3 of 3 units (one arm, one seed) are finished; no arm has 5 seeds" in words
    assert "undefined in every arm, not kept when this was recorded" in words
    assert "not stored" in words, "its budget"


def test_runs_of_the_same_settings_are_pooled_and_others_are_chosen_between(runs: Path, open_page: Open, study: Output) -> None:
    put(study, runs / "mine")
    make_run(runs, "one")
    make_run(runs, "two", arms=("plain", "random"))
    app = open_page("compare", sources="run:one,run:two,out:mine")
    (picker,) = [group for group in app.button_group if group.key == "pick-comparison"]
    assert picker.options and len(picker.options) == 2 and picker.value == "out:mine"
    assert "generate.temperature" not in shown(app) and "eval.bertscore" in shown(app)
    app = open_page("compare", sources="run:one,run:two,out:mine", comparison=next(one.key for one in sources.find() if one.kind == "run"))
    assert "1 unit of" in shown(app) and "under Budgets" in shown(app)


def test_the_address_carries_everything(runs: Path, open_page: Open, study: Output) -> None:
    put(study, runs / "mine")
    link = {"sources": "out:mine", "round": "1", "base": "dces", "set": "passages", "metrics": "ppl,ece", "metric": "ece"}
    app = open_page("compare", **link)
    assert app.select_slider[0].value == 1 and app.selectbox(key="pick-base").value == "dces"
    assert app.multiselect(key="pick-metrics").value == ["ppl", "ece"] and app.selectbox(key="pick-set").value == "passages"
    words = shown(app)
    assert "Round 1, real text of passages" in words and "difference to dces" in words and "Does it hold for other models? ece at" in words
    app.multiselect(key="pick-metrics").set_value(["vendi"]).run()
    assert not app.exception and "vendi" in app.query_params["metrics"]


@pytest.mark.parametrize("value", ["../../etc", "out:mine,out:../x", "<script>", "run:", "study:mine"])
def test_an_address_that_names_nothing_is_said_to(value: str, runs: Path, open_page: Open, study: Output) -> None:
    put(study, runs / "mine")
    app = open_page("compare", sources=value, round="1e9", base="<b>", metrics="x,<i>", comparison="?", metric="#")
    words = shown(app)
    assert "names nothing that is here" in words and "<script>" not in words and "<i>" not in words.replace('<i class="range">', "")
    assert ("No source chosen" in words) == ("out:mine" not in value)


def test_no_source_is_a_choice_too(runs: Path, open_page: Open, study: Output) -> None:
    put(study, runs / "mine")
    app = open_page("compare")
    app.multiselect(key="pick-sources").set_value([]).run()
    assert not app.exception and "No source chosen" in shown(app) and titles(app) == []


def test_a_damaged_source_does_not_hide_the_others(runs: Path, open_page: Open, study: Output) -> None:
    put(study, runs / "mine")
    (put(study, runs / "bad") / "units/seed-0/plain/metrics.parquet").write_bytes(b"")
    app = open_page("compare", sources="out:mine,out:bad")
    assert "is damaged: metrics.parquet" in shown(app) and tuple(titles(app)) == SECTIONS


def test_hostile_words_of_a_study_are_escaped(runs: Path, open_page: Open, study: Output) -> None:
    folder = put(study, runs / "mine")
    facts = read_json(folder / "study.json")
    assert isinstance(facts, dict)
    write_json(folder / "study.json", {**facts, "study": {**facts["study"], "note": "<script>alert(1)</script> ![x](y)"}})
    app = open_page("compare")
    assert "&lt;script&gt;alert(1)" in shown(app) and "<script>" not in shown(app) and not app.markdown


def test_the_downloads_are_made_when_they_are_asked_for(
    runs: Path, open_page: Open, study: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    import streamlit as st

    put(study, runs / "mine")
    make_run(store.recorded_root(), "shipped")
    made = {}
    button = st.download_button
    monkeypatch.setattr(st, "download_button", lambda label, data, *a, **k: made.update({label: data}) or button(label, data, *a, **k))
    open_page("compare", sources="out:mine,run:shipped")
    assert list(made) == ["Report", "properties", "arms", "verdicts", "budgets", "ablations", "robustness", "settings"]
    html = made["Report"]().decode()
    assert html.startswith("<!DOCTYPE html>") and html.count("<h2>") == 4 and "shipped" in html
    tables = {name: pl.read_csv(made[name](), infer_schema_length=None) for name in made if name != "Report"}
    assert set(tables["arms"]["comparison"]) == {"mine", "shipped"} and tables["settings"].height
    assert all(table.height for table in tables.values())
