from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dces_core import pool_file
from dces_core.errors import UserError

ROW: dict[str, Any] = {"prompt": "Why?", "text": "Because."}


def test_all_forms_are_the_same_pool(tmp_path: Path) -> None:
    rows = [{**ROW, "logprob": -0.5, "round": 2, "ended": False}, {**ROW, "text": "", "logprob": None, "round": 2, "ended": None}]
    frame = pl.DataFrame(rows)
    jsonl, csv, parquet = (tmp_path / f"pool.{kind}" for kind in ("jsonl", "csv", "parquet"))
    jsonl.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    frame.write_csv(csv)
    frame.write_parquet(parquet)
    first = pool_file.read_pool(rows)
    assert all(pool_file.read_pool(source).equals(first, null_equal=True) for source in (frame, jsonl, csv, str(parquet), iter(rows)))
    assert first["id"].to_list() == ["row-000001", "row-000002"] and first["logprob"].to_list() == [-0.5, None]
    assert pool_file.recognised(first) == ["prompt", "text", "round", "logprob", "ended"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"logprob": 0.5}, "logprob = 0.5 is not a mean log-probability"),
        ({"logprob": "x"}, "row 1: logprob = 'x'"),
        ({"logprob": float("nan")}, "logprob = nan"),
        ({"logprob": True}, "logprob = True"),
        ({"logprob": [1]}, r"logprob = \[1\]"),
        ({"entropy": -1}, "entropy = -1"),
        ({"round": 0}, "round = 0 is not a whole number"),
        ({"round": 1.5}, "round = 1.5"),
        ({"round": 10**400}, "round = 1000"),
        ({"ended": "maybe"}, "ended = 'maybe' is not true or false"),
        ({"ids": [1, -1]}, "is not a list of token ids"),
        ({"ids": "12"}, "is not a list of token ids"),
        ({"id": 1.5}, "id = 1.5"),
        ({"id": "\ud800"}, "half a surrogate pair"),
        ({"text": None}, "text is null"),
        ({"prompt": 3}, "prompt is a number"),
    ],
)
def test_what_a_value_must_be(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        pool_file.read_pool([{**ROW, **change}])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "has no rows"),
        ([{"prompt": "x"}], "has no column text; rename"),
        ([{"answer": "x"}], "has no column prompt and no column text"),
        ([{**ROW, "id": "a"}, {**ROW, "id": "a"}], "id 'a' occurs twice"),
        ([ROW, {"prompt": "x"}], "row 2: text is missing"),
    ],
)
def test_what_a_pool_must_have(tmp_path: Path, rows: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        pool_file.read_pool(rows)


def test_other_files_are_refused(tmp_path: Path) -> None:
    for name, body, words in (
        ("a.txt", "x", "ending '.txt'"),
        ("a.jsonl", "[1]", "line 1 is a list"),
        ("a.csv", "x\n1\n", "no column prompt"),
    ):
        (tmp_path / name).write_text(body, encoding="utf-8")
        with pytest.raises(UserError, match=words):
            pool_file.read_pool(tmp_path / name)
