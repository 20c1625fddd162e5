"""The case study: which rounds, which prompts, what is said; and the page in every state."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from make_run import HAND_EYE, HOSTILE, make_run
from page_kit import shown
from streamlit.testing.v1 import AppTest
from test_page_text import Reader, seen

from dces_core import records
from dces_core.store import SHARED, Run
from dces_core.ui import case
from dces_core.ui.text import escaped

Open = Callable[..., AppTest]
LOOP = "1.1.1.1.1.1.1.1."
HALF = "the cat the dog"  # degeneracy 1/8


def answers(*rows: tuple[str, int, str, str, str | None]) -> pl.DataFrame:
    """ANSWERS of (arm, round, prompt_id, mode, text)."""
    full = [(arm, round_, key, f"Ask {key}", mode, text) for arm, round_, key, mode, text in rows]
    return pl.DataFrame(full, schema=case.ANSWERS, orient="row")


@pytest.mark.parametrize(
    ("rounds", "at", "told"),
    [([0], 0, [0]), ([0, 1], 1, [0, 1]), (range(11), 10, [0, 5, 10]), (range(11), 7, [0, 5, 7, 10]), ([0, 2, 4], 4, [0, 2, 4])],
)
def test_the_story_stops_at_the_ends_the_middle_and_the_picked_round(rounds: list[int], at: int, told: list[int]) -> None:
    assert case.told(rounds, at) == told


def test_verdict_counts_both_arms() -> None:
    rows = answers(
        ("plain", 0, "p", "greedy", "Golf."),
        ("plain", 2, "p", "greedy", LOOP),
        ("plain", 1, "p", "sampled", ""),
        ("dces", 2, "p", "greedy", "Golf."),
    )
    said = case.verdict(case.by_mode(rows), ("plain", "dces"))
    assert said == "Answers that are empty or end in a loop: under plain 2 of 3, first in round 1 (sampled); under dces none of 1."


def test_verdict_of_a_prompt_that_holds_says_so() -> None:
    said = case.verdict(case.by_mode(answers(("plain", 0, "p", "greedy", "Golf."))), ("plain", "dces"))
    assert said.startswith("This prompt does not degenerate here") and said.endswith("under plain none of 1.")
    assert case.verdict({}, ("plain",)) == "No answer to this prompt is stored."


def test_ranked_by_the_end_then_by_the_rise() -> None:
    rows = answers(
        ("plain", 0, "mild", "greedy", "one two three four"),
        ("plain", 5, "mild", "greedy", HALF),
        ("plain", 0, "loop", "greedy", "one two three four"),
        ("plain", 5, "loop", "greedy", LOOP),
        ("plain", 0, "late", "greedy", HALF),
        ("plain", 5, "late", "greedy", LOOP),
        ("dces", 5, "late", "greedy", "Fine."),
        ("plain", 0, "always", "greedy", LOOP),
        ("plain", 5, "always", "greedy", LOOP),
        ("plain", 0, "better", "greedy", HALF),
        ("plain", 5, "better", "greedy", "one two"),
        ("plain", 5, "new", "greedy", LOOP),
        ("plain", 0, "modes", "greedy", "one two three four"),
        ("plain", 0, "modes", "sampled", "one two three four"),
        ("plain", 5, "modes", "greedy", HALF),
        ("plain", 5, "modes", "sampled", ""),
    )
    found = case.ranked(rows, "plain", "dces", 5)
    assert [one.prompt_id for one in found] == ["loop", "modes", "late", "mild"], "worse than in round 0, each prompt once"
    assert [(one.mode, one.end) for one in found] == [("greedy", 1), ("sampled", 1), ("greedy", 1), ("greedy", 1 / 8)]
    assert [one.right for one in found] == [None, None, "Fine.", None]
    assert case.ranked(rows.reverse(), "plain", "dces", 5) == found
    assert case.ranked(rows, "plain", None, 4) == []


def test_share_counts_stored_answers_only() -> None:
    rows = answers(("plain", 3, "a", "greedy", LOOP), ("plain", 3, "b", "greedy", "x"), ("plain", 3, "c", "greedy", None))
    assert case.degenerate_share(rows, "plain", 3) == (1, 2)
    assert case.degenerate_share(rows, "dces", 3) == (0, 0)


def test_the_table_of_words_is_thinned_to_the_last_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dces_core.ui.look.is_dark", lambda: False)
    own = {("plain", round_): LOOP if round_ == 40 else "one two" for round_ in range(41)}
    html = case.word_table({"greedy": own}, ("plain",), range(41), 40)
    assert html.count("<th>") == 2 + case.MOST_ROUNDS and "<th>40</th>" in html
    assert html.count('<td class="now worse">1 ×</td>') == 1 and html.count('<td class="">2</td>') == case.MOST_ROUNDS - 1


def test_hostile_answers_stay_verbatim_in_the_story(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dces_core.ui.look.is_dark", lambda: False)
    modes: dict[str, Any] = {"greedy": {("plain", round_): value for round_, value in enumerate(HOSTILE)}}
    worst = case.Worst(HOSTILE[4], HOSTILE[3], "greedy", 0.0, 1.0, HOSTILE[5], HOSTILE[8])
    html = case.story(modes, ("plain",), range(len(HOSTILE)), 1) + case.worst_case(worst, ("plain", "dces"), 3, f"?x={HOSTILE[4]}")
    reader = Reader(case.columns_of(("plain", "dces"), {}, html))
    assert all(seen(value) in reader.words for value in HOSTILE)
    assert set(reader.tags) <= {"div", "span", "img", "b", "p", "a"}
    assert {name for name, _ in reader.attributes} <= {"class", "style", "src", "alt", "href"}
    assert [value for name, value in reader.attributes if name == "href"] == [f"?x={HOSTILE[4]}"]


# the page ---------------------------------------------------------------------------------------------------------------


def test_the_page_tells_the_hand_eye_prompt_and_the_worst(runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("case", run="synthetic-1", vs="plain,dces-targets")
    words = shown(app)
    assert f'<div class="ask big">{HAND_EYE}</div>' in words
    assert "collapsed at round 2" in words and "not degenerate up to round 3" in words
    for round_ in (0, 1, 2, 3):
        assert (f"<b>Round {round_}</b>" in words) == (round_ != 1), "the first, the middle, the last"
    assert "What degenerated most under plain" in words
    assert words.count("Its story</a>") == case.WORST
    assert "<b>Round 1</b>" in shown(open_page("case", run="synthetic-1", round="1"))
    assert not app.markdown


def test_an_evaluation_prompt_can_be_told(runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("case", run="synthetic-1", prompt="test-004")
    assert app.selectbox(key="pick-prompt").value == "test-004"
    assert f"Question 4: {HAND_EYE}" in shown(app)
    assert [e.label for e in app.expander] == ["The reference answer to this prompt"]
    app.selectbox(key="pick-prompt").set_value("probe-02").run()
    assert not app.exception and app.query_params["prompt"] == "probe-02" and not app.expander


def test_a_prompt_that_holds_is_said_and_the_worst_are_shown(runs: Path, open_page: Open) -> None:
    make_run(runs, arms=("frozen", "plain"))
    words = shown(open_page("case", run="synthetic-1", vs="frozen,plain"))
    assert "This prompt does not degenerate here" not in words, "plain is beside it"
    make_run(runs, "held", arms=("frozen",))
    words = shown(open_page("case", run="held"))
    assert "This prompt does not degenerate here" in words
    assert "What degenerated most under frozen" in words and "No prompt is answered worse than in round 0" in words


def test_plain_comes_first_whatever_the_order_of_the_run(runs: Path, open_page: Open) -> None:
    make_run(runs, arms=("dces", "plain"))
    app = open_page("case", run="synthetic-1")
    assert (app.selectbox(key="pair-left").value, app.selectbox(key="pair-right").value) == ("plain", "dces")
    app.button(key="swap").click().run()
    assert not app.exception and app.query_params["vs"] == "dces,plain"
    assert "What degenerated most under dces" in shown(app)


def test_the_links_of_the_worst_lead_to_their_stories(runs: Path, open_page: Open) -> None:
    make_run(runs)
    words = shown(open_page("case", run="synthetic-1", vs="plain,dces"))
    hrefs = [str(value) for name, value in Reader(words).attributes if name == "href"]
    assert len(hrefs) == case.WORST
    query = dict(part.split("=") for part in hrefs[0].removeprefix("?").split("&"))
    assert query["run"] == "synthetic-1" and query["vs"] == "plain%2Cdces"
    asked = open_page("case", run="synthetic-1", vs="plain,dces", prompt=query["prompt"])
    assert asked.selectbox(key="pick-prompt").value == query["prompt"]


def test_only_round_0(runs: Path, open_page: Open) -> None:
    make_run(runs, upto={"plain": 0, "dces": 0, "dces-targets": 0}, state="stopped")
    words = shown(open_page("case", run="synthetic-1"))
    assert "Before the first round all arms are one model." in words
    assert "No round to look back on yet" in words


def test_a_half_finished_run(runs: Path, open_page: Open) -> None:
    make_run(runs, upto={"plain": 3, "dces": 0, "dces-targets": 0}, state="stopped")
    words = shown(open_page("case", run="synthetic-1", vs="plain,dces"))
    assert "not evaluated yet" in words and "none stored under dces" in words
    other = shown(open_page("case", run="synthetic-1", vs="dces,plain"))
    assert "dces has not finished round 1" in other


def empty_tables(run: Run, *names: str) -> None:
    for round_, arm in [(0, SHARED), *((r, arm) for r in range(1, run.config.rounds + 1) for arm in run.config.arms)]:
        for name in names:
            records.table(name, []).write_parquet(run.stage(round_, arm, "evaluate").path / f"{name}.parquet")


def test_a_run_without_any_answer(runs: Path, open_page: Open) -> None:
    unwatched, mute = make_run(runs, "unwatched", rounds=1), make_run(runs, "mute", rounds=1)
    empty_tables(unwatched, "probes")
    empty_tables(mute, "probes", "generations")
    assert "Question 0:" in shown(open_page("case", run=unwatched.id)), "without watched prompts the first evaluation prompt is told"
    assert "No answer to read" in shown(open_page("case", run=mute.id))


def test_hostile_prompts_and_answers_are_never_markup(runs: Path, open_page: Open) -> None:
    make_run(runs, rounds=1)
    for i, value in enumerate(HOSTILE):
        app = open_page("case", run="synthetic-1", prompt=f"probe-{i + 2:02d}")
        words = shown(app)
        assert not app.markdown
        assert "<script>" not in words and "<img src=x" not in words
        assert escape(f"Hostile prompt {i} <b>&amp;</b> *x*") in words
        assert not value or escaped(value[:6]) in words
