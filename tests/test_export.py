from __future__ import annotations

import csv
import io
import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dces_core import export


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx", '=HYPERLINK("http://x")'])
def test_formulas_are_escaped_in_texts_only(text: str) -> None:
    frame = pl.DataFrame({"text": [text, "1 - 1 = 0"], "value": [-1.5, None]})
    rows = list(csv.reader(io.StringIO(export.to_csv(frame))))
    assert rows == [["text", "value"], ["'" + text, "-1.5"], ["1 - 1 = 0", ""]]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_no_text_cell_starts_a_formula_and_nothing_else_changes(texts: list[str]) -> None:
    rows = list(csv.reader(io.StringIO(export.to_csv(pl.DataFrame({"n": range(len(texts)), "text": texts})), newline="")))[1:]
    for text, (_, cell) in zip(texts, rows, strict=True):
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
        assert cell in (text, "'" + text)


def test_undefined_is_empty_or_null() -> None:
    frame = pl.DataFrame({"metric": ["ece"], "value": [float("nan")], "reason": ["no tokens"]})
    assert export.to_csv(frame) == "metric,value,reason\nece,,no tokens\n"
    assert json.loads(export.to_json(frame)) == [{"metric": "ece", "value": None, "reason": "no tokens"}]


def test_nested_cells_are_json_in_csv_and_stay_nested_in_parquet() -> None:
    frame = pl.DataFrame({"edits": [[{"position": 3, "before": "=a", "after": "é"}], None]})
    rows = list(csv.reader(io.StringIO(export.to_csv(frame))))
    assert json.loads(rows[1][0]) == [{"position": 3, "before": "=a", "after": "é"}]
    assert pl.read_parquet(io.BytesIO(export.to_parquet(frame))).equals(frame)


def test_the_terminal_shows_control_characters_and_markup_as_they_are() -> None:
    text = export.to_table(pl.DataFrame({"text": ["\x1b[31mred", "[bold]1.1.1[/bold]"]}), width=80)
    assert "\x1b" not in text and "\\x1b[31mred" in text and "[bold]1.1.1[/bold]" in text
