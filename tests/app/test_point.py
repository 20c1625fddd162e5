"""Towards one point: sums, bounds and order by hand, no token as markup, and the page in every state."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from make_run import make_run
from make_tables import HOSTILE_TOKENS
from page_kit import shown
from streamlit.testing.v1 import AppTest

from dces_core.records import table
from dces_core.stages import evaluate
from dces_core.store import Run
from dces_core.ui import point

Open = Callable[..., AppTest]
DONE = {"plain": [0, 1], "dces": [0, 1]}
FOUND = {
    ("plain", 0): {"a": 0.5, "b": 0.3},
    ("plain", 1): {"a": 0.9, "c": 0.05},
    ("dces", 0): {"a": 0.5, "b": 0.3},
    ("dces", 1): {"b": 0.6, "a": 0.2},
}


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dces_core.ui.look.is_dark", lambda: False)


def test_as_many_tokens_as_an_evaluation_keeps() -> None:
    assert point.TOP == evaluate.NEXT_TOKENS


def test_tokens_written_alike_count_as_one() -> None:
    rows = [("plain", 0, "p", 1, "x", 0.5), ("plain", 0, "p", 2, "\ufffd", 0.2), ("plain", 0, "p", 3, "\ufffd", 0.1)]
    names = ("arm", "round", "prompt_id", "rank", "token", "probability")
    found = point.masses(table("next_tokens", [dict(zip(names, row, strict=True)) for row in rows]))
    assert list(found) == [("plain", 0)] and list(found["plain", 0]) == ["x", "\ufffd"]
    assert found["plain", 0]["\ufffd"] == pytest.approx(0.3) and point.rest(found["plain", 0]) == pytest.approx(0.2)


def test_order_is_the_largest_probability_of_any_arm() -> None:
    assert point.ranked(FOUND.values()) == ["a", "b", "c"]
    assert point.ranked([FOUND["dces", 1]]) == ["b", "a"]
    assert point.ranked([{"z": 0.2, "y": 0.2}]) == ["y", "z"]


def test_rest_is_never_below_zero() -> None:
    assert point.rest({"a": 0.7, "b": 0.3 + 1e-7}) == 0
    assert point.rest(FOUND["plain", 1], ["a", "elsewhere"]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("mass", "number"),
    [
        ({"a": 1.0}, 1.0),
        ({"a": 0.5, "b": 0.5}, 2.0),
        ({str(i): 0.05 for i in range(20)}, 20.0),
        ({str(i): 0.01 for i in range(20)}, 100.0),  # what is left must be 80 more of them
        ({"a": 0.5, "b": 0.25}, math.exp(0.5 * math.log(2) + 2 * 0.25 * math.log(4))),  # a, b, and one more like b
        ({"a": 0.5, "b": 0.4}, math.exp(-0.5 * math.log(0.5) - 0.4 * math.log(0.4) - 0.1 * math.log(0.1))),
    ],
)
def test_effective_number_by_hand(mass: dict[str, float], number: float) -> None:
    assert point.effective(mass) == pytest.approx(number)


@settings(deadline=None)
@given(some.lists(some.floats(1e-6, 1), min_size=21, max_size=60))
def test_the_true_effective_number_is_never_smaller(weights: list[float]) -> None:
    true = sorted((weight / sum(weights) for weight in weights), reverse=True)
    number = math.exp(-sum(p * math.log(p) for p in true))
    known = point.effective({str(i): p for i, p in enumerate(true[: point.TOP])})
    assert 1 <= known <= number * (1 + 1e-9)


def test_readings_of_every_round_and_why_there_is_none() -> None:
    rows = point.readings(FOUND, {"plain": [0, 1, 2], "dces": [0]})
    value = {(row["arm"], row["round"], row["quantity"]): row for row in rows.to_dicts()}
    assert len(value) == 4 * 3
    assert value["plain", 1, "likeliest"]["value"] == 0.9 and value["plain", 1, "likeliest"]["hover"] == "90% a"
    assert value["plain", 1, "kept"]["value"] == pytest.approx(0.95)
    assert value["plain", 2, "kept"]["value"] is None and value["plain", 2, "kept"]["reason"] == "no distribution stored"


def test_told_in_numbers() -> None:
    assert point.told(FOUND, "plain", 1, DONE).startswith("plain in round 1: 90% on its likeliest token, choice among at least 1.5 tokens;")
    assert "in round 0 it was 50%" in point.told(FOUND, "dces", 1, DONE) and "it was" not in point.told(FOUND, "dces", 0, DONE)
    assert point.told(FOUND, "dces", 2, DONE) == "dces has not finished round 2."
    assert point.told({}, "dces", 1, DONE) == "round 1 of dces was evaluated before distributions were kept."


@pytest.mark.parametrize(
    ("token", "seen"),
    [
        (" the", "␣the"),
        ("\n\t ", "↵⇥␣"),
        ("", "(no text)"),
        ("\x00\u202e", "U+0000U+202E"),
        ("\u00a0\u3000", "U+00A0U+3000"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("x" * 16, "x" * 16),
        ("x" * 17, "x" * 15 + "…"),
        ("<" * 40, "&lt;" * 15 + "…"),
    ],
)
def test_a_token_as_it_is_written(token: str, seen: str) -> None:
    assert point.written(token, 16) == seen


@pytest.mark.parametrize(
    ("share", "words"),
    [
        *((0, "0.00%"), (1e-9, "<0.01%"), (0.0034, "0.34%"), (0.034, "3.4%"), (0.34, "34%")),
        *((0.99, "99%"), (0.9997, "99.97%"), (0.99999, "100%"), (1, "100%")),
    ],
)
def test_percent(share: float, words: str) -> None:
    assert point.percent(share) == words


def test_bars_share_order_and_axis_and_sum_to_one(light: None) -> None:
    figure = point.bars(FOUND, ("plain", "dces"), 1, DONE)
    plain, _, dces, _ = figure.data
    assert list(figure.layout.yaxis.ticktext) == ["a", "b", "c", point.REST]
    assert list(plain.x) == [0.9, None, 0.05, pytest.approx(0.05)] and list(dces.x) == [0.2, 0.6, None, pytest.approx(0.2)]
    for bars in (plain, dces):
        assert sum(x for x in bars.x if x is not None) == pytest.approx(1)
    assert list(figure.data[1].text) == ["≤5.0%"], "b is not among those of plain"
    assert figure.layout.xaxis.range == figure.layout.xaxis2.range == (0, pytest.approx(1.16 * 0.9))
    assert figure.layout.xaxis.range == point.bars(FOUND, ("plain", "dces"), 0, DONE).layout.xaxis.range, "rounds are comparable"


def test_an_arm_without_the_round_says_so(light: None) -> None:
    figure = point.bars(
        {key: mass for key, mass in FOUND.items() if key != ("dces", 1)}, ("plain", "dces"), 1, {"plain": [0, 1], "dces": [0]}
    )
    assert [note.text for note in figure.layout.annotations][-1] == "dces has not finished round 1"
    assert list(figure.layout.yaxis.ticktext) == ["a", "c", point.REST]


def test_maps_have_the_same_rows_and_columns_that_sum_to_one(light: None) -> None:
    figure = point.heat_maps(FOUND, ("plain", "dces"), [0, 1], 1)
    plain, marks, dces, _ = figure.data
    assert list(figure.layout.yaxis.ticktext) == ["a", "b", "c", point.REST]
    assert [list(row) for row in plain.z] == [[0.5, 0.9], [0.3, None], [None, 0.05], [pytest.approx(0.2), pytest.approx(0.05)]]
    assert [list(row) for row in dces.z][3] == [pytest.approx(0.2), pytest.approx(0.2)]
    assert next(iter(marks.text)) == "a, round 0: 50%" and len(figure.layout.shapes) == 2
    assert not point.heat_maps(FOUND, ("plain",), [0, 1], 7).layout.shapes


def test_many_rounds_have_no_numbers_in_their_cells(light: None) -> None:
    found = {("plain", r): {"a": 0.5} for r in range(30)}
    assert point.heat_maps(found, ("plain",), list(range(30)), 0).data[0].texttemplate is None
    assert point.heat_maps(found, ("plain",), [0, 1], 0).data[0].texttemplate == "%{text}"


def test_no_token_is_markup_anywhere(light: None) -> None:
    found = {("plain", 0): {token: 0.08 for token in HOSTILE_TOKENS}}
    rows = point.readings(found, {"plain": [0]})
    figures = [
        point.bars(found, ("plain",), 0, {"plain": [0]}),
        point.heat_maps(found, ("plain",), [0], 0),
        *(point.panel(name, rows.filter(quantity=name), ("plain",), 1, 0) for name in point.PANELS),
    ]
    for figure in figures:
        words = json.dumps(figure.to_plotly_json(), default=lambda value: value.tolist(), ensure_ascii=False)
        assert not [markup for markup in ("</script", "<a href", "\u202e", "\\t") if markup in words]
    assert "&lt;/script&gt;" in json.dumps(figures[0].layout.yaxis.ticktext)


# the page ---------------------------------------------------------------------------------------------------------------


def specs(app: AppTest) -> list[dict[str, Any]]:
    return [json.loads(chart.proto.spec) for chart in app.get("plotly_chart")]


def test_the_address_leads_to_prompt_arms_and_round(runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("point", run="synthetic-1", prompt="probe-02", vs="dces,plain", round="1")
    assert app.selectbox(key="pick-prompt").value == "probe-02" and app.select_slider[0].value == 1
    assert [heading.value for heading in app.subheader] == ["The first token in round 1", "Round by round"]
    assert "dces in round 1" in shown(app) and len(specs(app)) == 5
    assert specs(app)[3]["layout"]["annotations"][0]["text"] == "<b>dces</b>"
    assert specs(app)[0]["layout"]["uirevision"] == "synthetic-1 point likeliest"
    assert not app.markdown


def test_a_hostile_address_falls_back(runs: Path, open_page: Open) -> None:
    make_run(runs)
    app = open_page("point", run="synthetic-1", prompt="<b>", vs="x,y", round="-9")
    assert app.selectbox(key="pick-prompt").value == "probe-01" and app.select_slider[0].value == 0
    assert "both columns show the same model" in shown(app)


def test_only_round_0(runs: Path, open_page: Open) -> None:
    make_run(runs, upto={"plain": 0, "dces": 0, "dces-targets": 0}, state="stopped")
    app = open_page("point", run="synthetic-1")
    assert "Round <b>0</b>, the only one so far" in shown(app) and len(specs(app)) == 5


def test_an_arm_that_has_no_round_of_its_own(runs: Path, open_page: Open) -> None:
    make_run(runs, upto={"plain": 2, "dces": 0, "dces-targets": 0}, state="failed")
    app = open_page("point", run="synthetic-1", vs="plain,dces", round="2")
    assert "dces has not finished round 2." in shown(app)
    assert specs(app)[3]["layout"]["annotations"][-1]["text"] == "dces has not finished round 2"
    app = open_page("point", run="synthetic-1", vs="dces,dces-targets", round="2")
    assert "No distribution in round 2" in shown(app) and len(specs(app)) == 4


def test_a_run_of_one_arm(runs: Path, open_page: Open) -> None:
    make_run(runs, arms=("plain",))
    assert len(specs(open_page("point", run="synthetic-1", round="0"))) == 5


def without(run: Run, name: str, round_: str = "*") -> None:
    """As if the run, or a round of it, had been recorded before the table existed."""
    for path in run.path.glob(f"round-{round_}/*/evaluate/{name}.parquet"):
        path.unlink()


def test_a_run_recorded_before_the_table_existed(runs: Path, open_page: Open) -> None:
    without(make_run(runs), "next_tokens")
    words = shown(open_page("point", run="synthetic-1"))
    assert "No next-token distributions in this run" in words and "recorded before evaluations kept them" in words


def test_a_run_whose_first_rounds_were_evaluated_before(runs: Path, open_page: Open) -> None:
    run = make_run(runs)
    without(run, "next_tokens", "00")
    without(run, "next_tokens", "01")
    app = open_page("point", run="synthetic-1", round="1")
    assert "round 1 of plain was evaluated before distributions were kept" in shown(app)
    app = open_page("point", run="synthetic-1", round="2")
    assert "it was" not in shown(app) and len(specs(app)) == 5


def test_a_run_that_watches_nothing(runs: Path, open_page: Open) -> None:
    run = make_run(runs)
    without(run, "probes")
    without(run, "next_tokens")
    assert "No watched prompts" in shown(open_page("point", run="synthetic-1"))
