"""The Generations page: what its controls show, and that each of them stands in the address bar."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from make_run import HAND_EYE, HOSTILE, make_run
from page_kit import shown
from streamlit.testing.v1 import AppTest
from test_case import empty_tables

Open = Callable[..., AppTest]


def every_round(app: AppTest) -> str:
    """The table of the picked prompt's rounds."""
    words = shown(app)
    return words[words.index('<div class="head"></div>') :].split('<p class="quiet">')[0]


def list_of(app: AppTest) -> Any:
    """The list of evaluation answers."""
    return app.dataframe[-1].value


def test_the_picked_prompt_is_read_in_the_picked_round(runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("generations", run="synthetic-1", vs="plain,dces", round="2")
    assert "The picked prompt in round 2" in [e.value for e in app.subheader]
    words = shown(app)
    assert f'<div class="ask">{HAND_EYE}</div>' in words
    assert "1 distinct of 13 words" in words and "ends in a loop" in words
    app.select_slider[0].set_value(1).run()
    assert "1 distinct of 13 words" not in shown(app) and app.query_params["round"] == "1"


def test_word_diff_to_the_previous_round(runs: Path, open_page: Open) -> None:
    make_run(runs)
    assert "<del>" not in shown(open_page("generations", run="synthetic-1", vs="plain,dces"))
    app = open_page("generations", run="synthetic-1", vs="plain,dces", diff="round", round="2")
    assert '<ins><span class="loop">1.1.1.' in every_round(app)
    assert "Compared with" not in [e.label for e in app.selectbox]
    assert "unchanged" in shown(app), "dces says the same as in round 1"


def test_word_diff_to_another_arm(runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("generations", run="synthetic-1", vs="plain,dces", diff="arm", round="3")
    assert app.selectbox(key="pick-base").value == "plain"
    assert "<del>1.1.1." in every_round(app)
    app.selectbox(key="pick-base").set_value("dces").run()
    assert "<del>Tennis" in every_round(app) and app.query_params["base"] == "dces"


def test_one_arm_has_no_other_arm(runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("generations", run="synthetic-1", vs="plain", diff="arm")
    assert "<del>" not in shown(app) and app.query_params["diff"] == "off"
    assert not app.exception


def test_highlights_can_be_switched_off_in_the_address(runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("generations", run="synthetic-1", highlight="False")
    assert 'class="loop"' not in shown(app)
    app.toggle(key="pick-highlight").set_value(True).run()
    assert 'class="loop"' in shown(app) and app.query_params["highlight"] == "True"


def test_search_narrows_map_and_list(runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("generations", run="synthetic-1", vs="plain,dces", round="1")
    assert len(list_of(app)) == 40
    app.text_input(key="pick-find").set_value("QUESTION 7:").run()
    assert app.query_params["find"] == "QUESTION 7:"
    assert list_of(app)["prompt"].tolist() == [f"Question 7: {HAND_EYE}"]
    assert "No watched prompt matches the search" in shown(app)
    app.text_input(key="pick-find").set_value("").run()
    assert "find" not in app.query_params and len(list_of(app)) == 40
    found = open_page("generations", run="synthetic-1", find="hand-eye coord")
    assert "Showing 1 of 12 prompts" in shown(found)


@pytest.mark.parametrize("find", [*HOSTILE[:10], "(", "nothing says this"])
def test_a_hostile_search_is_words(find: str, runs: Path, open_page: Open) -> None:
    make_run(runs, rounds=1)
    app = open_page("generations", run="synthetic-1", find=find)
    assert not app.markdown and "<script>" not in shown(app)


def test_topic_and_order_are_linked(runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("generations", run="synthetic-1", vs="plain,dces", topic="cooking", sort="dces", round="3")
    table = list_of(app)
    assert set(table["topic"]) == {"cooking"} and len(table) == 13
    assert table["dces degeneracy"].tolist() == sorted(table["dces degeneracy"], reverse=True)
    app.selectbox(key="pick-topic").set_value("").run()
    assert "topic" not in app.query_params and len(list_of(app)) == 40
    fallback = open_page("generations", run="synthetic-1", topic="<b>", sort="nobody")
    assert len(list_of(fallback)) == 40 and fallback.selectbox(key="pick-sort").value == ""


def test_the_worst_stand_first_and_favour_no_arm(runs: Path, open_page: Open) -> None:
    make_run(runs)
    for vs in ("plain,dces", "dces,plain"):
        table = list_of(open_page("generations", run="synthetic-1", vs=vs, round="3"))
        worst = table[["plain degeneracy", "dces degeneracy"]].max(axis=1).tolist()
        assert worst == sorted(worst, reverse=True)


def test_the_answer_of_the_address_is_read(runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("generations", run="synthetic-1", answer="test-009", round="1")
    assert f'test-009 in round 1</p><div class="ask">Question 9: {HAND_EYE}</div>' in shown(app)
    lost = open_page("generations", run="synthetic-1", answer="../x", round="1", topic="poetry")
    assert " in round 1</p>" in shown(lost) and "../x" not in shown(lost)


def test_no_match_is_said(runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("generations", run="synthetic-1", topic="sports", find="Question 7:")
    assert "No evaluation prompt matches" in shown(app)
    assert not [e for e in app.get("download_button")]


def test_two_arms_can_be_taken_to_llm_comparator(runs: Path, open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    buttons: dict[str, Any] = {}
    monkeypatch.setattr(st, "download_button", lambda label, data, *_, **__: buttons.update({label: data}))
    make_run(runs)
    app = open_page("generations", run="synthetic-1", vs="plain,dces", topic="cooking", round="2")
    assert app.selectbox(key="comparator-b").options == ["dces"]
    document = json.loads(buttons["Pairs as JSON"]())
    assert [model["name"] for model in document["models"]] == ["plain", "dces"]
    ids = [example["custom_fields"]["prompt_id"] for example in document["examples"]]
    assert len(ids) == 13 and ids != sorted(ids), "in the order of the list"
    assert {tag for example in document["examples"] for tag in example["tags"]} == {"cooking"}
    assert document["metadata"]["source_path"].startswith("synthetic-1, round 2")
    buttons.clear()
    open_page("generations", run="synthetic-1", vs="plain")
    assert "Pairs as JSON" not in buttons


def test_a_run_that_keeps_no_answers(runs: Path, open_page: Open) -> None:
    run = make_run(runs, rounds=1)
    empty_tables(run, "probes", "generations")
    words = shown(open_page("generations", run=run.id))
    assert "No watched prompts" in words and "No evaluation answers in round 1" in words
