"""Answers side by side: facts, badges, what a diff starts from, the order and the filters of the list."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
import streamlit as st
from make_run import HOSTILE
from test_page_text import Reader, seen

from dces_core.records import table
from dces_core.ui import pairs
from dces_core.ui.pairs import View

LOOP = "1.1.1.1.1.1.1.1."
ANSWERS: pairs.Answers = {
    ("plain", 0): "a sport is good",
    ("dces", 0): "a sport is good",
    ("plain", 2): LOOP,
    ("dces", 2): "a sport is tennis",
    ("plain", 3): LOOP,
    ("dces", 3): "",
    ("dces", 4): "a sport is golf",
    ("real", 0): None,
}


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dces_core.ui.look.is_dark", lambda: False)


@pytest.mark.parametrize(
    ("text", "counts"),
    [("", (0, 0)), ("... !", (0, 0)), ("The cat, the cat.", (2, 4)), (LOOP, (1, 8)), ("don't", (2, 2)), ("_x_ é É", (2, 3))],
)
def test_words_are_counted_without_case_and_marks(text: str, counts: tuple[int, int]) -> None:
    assert pairs.word_counts(text) == counts


def test_facts_of_an_answer() -> None:
    assert "1 distinct of 8 words" in pairs.facts(LOOP) and "ends in a loop" in pairs.facts(LOOP)
    assert "1 distinct of 1 word<" in pairs.facts("Golf.") and "loop" not in pairs.facts("Golf.")
    assert "no words" in pairs.facts("...")
    assert "unchanged" in pairs.facts("Golf.", "Golf.") and "unchanged" not in pairs.facts("Golf.", "golf.")
    assert pairs.facts(None) == ""


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ("plain", "collapsed at round 2"),
        ("dces", "degenerate in 1 of 4 rounds, first in 3"),
        ("real", "collapsed at round 0"),
        ("frozen", ""),
    ],
)
def test_collapsed_means_from_there_to_the_end(arm: str, words: str) -> None:
    badge = pairs.badge_of(ANSWERS, arm)
    assert words in badge and bool(words) == bool(badge)
    assert "not degenerate up to round 2" in pairs.badge_of({("plain", 0): "a b", ("plain", 2): "c d"}, "plain")


def test_what_a_diff_starts_from() -> None:
    assert pairs.compared(ANSWERS, "plain", 2, View()) is None
    assert pairs.compared(ANSWERS, "plain", 2, View("round")) == "a sport is good", "the previous round that is there"
    assert pairs.compared(ANSWERS, "plain", 0, View("round")) is None
    assert pairs.compared(ANSWERS, "dces", 2, View("arm", "plain")) == LOOP
    assert pairs.compared(ANSWERS, "plain", 2, View("arm", "plain")) is None
    assert pairs.compared(ANSWERS, "dces", 4, View("arm", "plain")) is None


def test_said_shows_the_diff_and_the_loop() -> None:
    assert "<del> good</del><ins> tennis</ins>" in pairs.said(ANSWERS, "dces", 2, View("round"))
    marked = pairs.said(ANSWERS, "plain", 2, View("round"))
    assert f'<ins><span class="loop">{LOOP}</span></ins>' in marked and "<del>a sport is good</del>" in marked
    assert "loop" not in pairs.said(ANSWERS, "plain", 2, View("round", highlight=False))
    assert "empty answer" in pairs.said(ANSWERS, "dces", 3, View("round"))
    assert "not evaluated yet" in pairs.said(ANSWERS, "plain", 4, View("round"))
    assert "no answer stored" in pairs.said(ANSWERS, "real", 0, View())


def test_tables_of_hostile_answers_are_inert_and_whole() -> None:
    answers: pairs.Answers = {("plain", i): value for i, value in enumerate(HOSTILE)}
    for view in (View(), View("round"), View(highlight=False)):
        reader = Reader(pairs.through(answers, ("plain",), 1, view))
        assert set(reader.tags) <= {"div", "span", "img", "b", "del", "ins"}
        assert {name for name, _ in reader.attributes} <= {"class", "style", "src", "alt", "tabindex"}
        assert all(str(value).startswith("data:image/svg+xml;base64,") for name, value in reader.attributes if name == "src")
    words = Reader(pairs.through(answers, ("plain",), 1, View())).words
    assert all(seen(value) in words for value in HOSTILE)


def rows(*values: tuple[str, str, str, float | None]) -> pl.DataFrame:
    parts = [
        {"prompt_id": key, "topic": topic, "prompt": f"Ask {key}", "reference": "r", "text": said, "bertscore_f1": f1, "rep_4": 0.0}
        for key, topic, said, f1 in values
    ]
    return table("generations", parts)


PLAIN = rows(("a", "tea", "one two three", 0.5), ("b", "bees", LOOP, 0.4), ("c", "tea", "one two four", 0.3), ("d", "tea", "", None))
DCES = rows(("a", "tea", "no no no", 0.9), ("b", "bees", "Bees hum.", 0.8), ("c", "tea", "Tea.", 0.9))


def test_the_list_has_every_prompt_and_both_arms() -> None:
    found = pairs.evaluation_table({"plain": PLAIN, "dces": DCES})
    assert found["prompt_id"].to_list() == ["a", "b", "c", "d"]
    assert found["plain degeneracy"].to_list() == [0, 1, 0, 1]
    assert found["dces text"].to_list() == ["no no no", "Bees hum.", "Tea.", None]
    assert found["dces degeneracy"].to_list() == [pytest.approx(2 / 3), 0, 0, None]


def test_worst_first_under_any_arm_or_one() -> None:
    found = pairs.evaluation_table({"plain": PLAIN, "dces": DCES})
    order = lambda *arms: pairs.worst_first(found, arms)["prompt_id"].to_list()  # noqa: E731
    assert order("plain", "dces") == ["b", "d", "a", "c"]
    assert order("plain") == ["b", "d", "c", "a"], "c and a are equally degenerate, c is farther from its reference"
    assert order("dces") == ["a", "b", "c", "d"]
    assert pairs.worst_first(found.reverse(), ["plain", "dces"])["prompt_id"].to_list() == order("plain", "dces")


@pytest.mark.parametrize(
    ("topic", "find", "ids"),
    [
        ("", "", "abcd"),
        ("tea", "", "acd"),
        ("", "ONE", "ac"),
        ("", "ask B", "b"),
        ("bees", "one", ""),
        ("", "1.1", "b"),
        ("", ".*", ""),
        ("", "hum", "b"),
        ("none", "", ""),
    ],
)
def test_topic_and_search(topic: str, find: str, ids: str) -> None:
    found = pairs.chosen_answers(pairs.evaluation_table({"plain": PLAIN, "dces": DCES}), topic, find)
    assert "".join(found["prompt_id"]) == ids


@pytest.mark.parametrize(("picked", "answer"), [([1], "b"), ([7], None), ([], None)])
def test_a_picked_row_goes_into_the_address(picked: list[int], answer: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    put: dict[str, Any] = {}
    monkeypatch.setattr(st, "session_state", {"list": {"selection": {"rows": picked}}})
    monkeypatch.setattr("dces_core.ui.state.put", put.__setitem__)
    pairs.row_picked("list", ["a", "b"])
    assert put.get("answer") == answer
