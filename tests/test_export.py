from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import finished, small_run

from dces_core import cli, export, store
from dces_core.errors import UserError


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


def test_samples_for_embedding_atlas_are_flat_and_placed(tmp_path: Path) -> None:
    run = store.find("standard")
    with pytest.raises(UserError, match="arm = 'x' is not in run"):
        export.for_atlas(run, ["x"])
    out = tmp_path / "samples.parquet"
    assert cli.main(["export", run.id, "--samples", "--arm", "dces", "--arm", "plain", "--out", str(out)]) == 0
    frame = pl.read_parquet(out)
    assert tuple(frame.columns[: len(export.ATLAS)]) == export.ATLAS
    assert not any(kind.is_nested() for kind in frame.schema.values())
    assert frame["x"].is_finite().all() and frame["y"].is_finite().all()
    assert frame.height == sum(run.samples(arm, k).height for arm in ("plain", "dces") for k in run.finished(arm, "select"))


def test_samples_without_a_map_have_no_place(tmp_path: Path) -> None:
    frame = export.for_atlas(finished(tmp_path, arms=["plain"]), [])
    assert frame.height == 32 and tuple(frame.columns[: len(export.ATLAS) - 2]) == export.ATLAS[2:]
    assert not {"x", "y"} & set(frame.columns)
    with pytest.raises(UserError, match="has no samples yet"):
        export.for_atlas(small_run(tmp_path, "fresh"), [])
