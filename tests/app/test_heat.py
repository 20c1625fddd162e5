"""Degeneracy as one number, and the map of it: order, clicks, nothing of a text as markup."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from make_run import HOSTILE

from dces_core.metrics.text import ends_in_loop, rep_4, units
from dces_core.ui import heat

WORDS = some.lists(some.sampled_from(["a", "b", "c", "d", "."]), max_size=40).map(" ".join)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 1.0),
        (" \n\t", 1.0),
        ("1.1.1.1.1.1.1.1.1.", 1.0),
        ("One two three four five.", 0.0),
        ("Ottawa.", 0.0),
        ("no no no", 2 / 3),  # below 4 units there is no 4-gram, and 3 units are no loop
        ("the cat the dog", 1 / 8),  # 1 of 4 words repeats, the only 4-gram does not
        ("a b c d x a b c d", (4 / 9 + 1 / 6) / 2),
    ],
)
def test_degeneracy_by_hand(text: str, value: float) -> None:
    assert heat.degeneracy(text) == pytest.approx(value)


@settings(deadline=None)
@given(WORDS)
def test_one_is_exactly_what_is_called_degenerate(text: str) -> None:
    value = heat.degeneracy(text)
    assert 0 <= value <= 1
    assert (value == 1) == (not units(text) or ends_in_loop(text))


@settings(deadline=None)
@given(WORDS.filter(lambda text: len(units(text)) >= 4))
def test_repeated_words_are_never_fewer_than_repeated_4_grams(text: str) -> None:
    words = units(text)
    assert (rep_4(text) or 0) <= 1 - len(set(words)) / len(words) + 1e-12


def grades(rows: list[tuple[str, int, str, float | None]]) -> pl.DataFrame:
    schema = {"arm": pl.String, "round": pl.Int32, "prompt_id": pl.String, "degeneracy": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def test_an_answer_that_is_not_stored_has_no_value() -> None:
    rows = pl.DataFrame({"arm": ["plain"] * 2, "round": [0, 1], "prompt_id": ["p"] * 2, "text": [None, "one two"]})
    assert heat.graded(rows)["degeneracy"].to_list() == [None, 0.0]


def test_worst_prompts_first_whatever_the_arm() -> None:
    rows = [("plain", 0, "mild", 0.4), ("dces", 0, "mild", 0.4), ("plain", 0, "once", 0.0), ("dces", 0, "once", 1.0)]
    rows += [("plain", 0, "always", 1.0), ("dces", 0, "always", 0.9), ("plain", 0, "b", 0.0), ("plain", 0, "a", 0.0)]
    table = grades([*rows, ("plain", 0, "unknown", None)])
    assert heat.worst_prompts(table) == ["always", "once", "mild", "a", "b", "unknown"]
    assert heat.worst_prompts(table.reverse()) == heat.worst_prompts(table)


def test_many_rounds_are_thinned_to_the_last_one() -> None:
    assert heat.shown_rounds(grades([("plain", r, "p", 0.1) for r in range(11)])) == list(range(11))
    few = heat.shown_rounds(grades([("plain", r, "p", 0.1) for r in range(1001)]))
    assert len(few) == heat.MOST and few[-1] == 1000 and few == sorted(set(few))


@pytest.mark.parametrize("data", [None, 3, [], [0], [2, 0], [0, 2], [-1, 0], ["0", 0], [0, 0, 0]])
def test_a_click_that_names_no_cell_chooses_nothing(data: Any) -> None:
    assert heat.chosen([{"customdata": data}], ["p", "q"], [0, 5]) is None


def test_a_click_chooses_its_prompt_and_round() -> None:
    assert heat.chosen([{"customdata": [1, 1], "x": 0, "y": 0}], ["p", "q"], [0, 5]) == ("q", 5)
    assert heat.chosen([], ["p"], [0]) is None


@pytest.mark.parametrize("dark", [False, True])
def test_the_map_has_a_target_for_every_value_and_no_markup(dark: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dces_core.ui.look.is_dark", lambda: dark)
    prompts = [HOSTILE[4], "p"]
    table = grades([("plain", 0, prompts[0], 1.0), ("plain", 2, prompts[0], 0.25), ("plain", 0, "p", None)])
    figure = heat.heat_map(table, prompts, [0, 2], (prompts[0], 2))
    cells, crosses, targets = figure.data
    assert [list(row) for row in cells.z] == [[1.0, 0.25], [None, None]]
    assert (list(crosses.x), list(crosses.y)) == ([0], [0])
    assert [list(pair) for pair in targets.customdata] == [[0, 0], [0, 1]]
    assert not any("<" in words for words in [*targets.text, *figure.layout.yaxis.ticktext])
    assert [(shape.x0, shape.x1) for shape in figure.layout.shapes] == [(-0.5, 1.5), (0.5, 1.5)]
    assert not heat.heat_map(table, prompts, [0, 2], ("elsewhere", 0)).layout.shapes
