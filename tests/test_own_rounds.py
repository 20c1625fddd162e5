"""Own files: all forms give the same rounds, and what cannot be used is one clear sentence."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from dces_core import data, own_rounds
from dces_core.engines.base import silent
from dces_core.errors import UserError
from dces_core.own_rounds import BATCH, OwnRounds

NAMES = ("round", "text")
ROWS = [{"round": r, "text": f"text {r} {i}", "x": i} for i in range(BATCH // 2 + 7) for r in (0, 3, 1)]


def read(*paths: Path, names: tuple[str, str] = NAMES) -> OwnRounds:
    return own_rounds.read_files(paths, paths[0].parent / f"{paths[0].name}.spool", names, silent)


def write(path: Path, rows: list[dict[str, object]] = ROWS) -> Path:  # type: ignore[assignment]
    frame = pl.DataFrame(rows)
    {".jsonl": frame.write_ndjson, ".csv": frame.write_csv, ".parquet": frame.write_parquet}[path.suffix](path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_one_file(tmp_path: Path, kind: str) -> None:
    found = read(write(tmp_path / f"a.{kind}"))
    assert found.rounds == [0, 1, 3] and set(found.counts.values()) == {BATCH // 2 + 7}
    texts = [text for batch in found.batches(3) for text in batch]
    assert texts == [f"text 3 {i}" for i in range(BATCH // 2 + 7)]
    assert found.scan(1).select(pl.len()).collect().item() == len(texts)


def test_a_file_per_round_and_a_directory(tmp_path: Path) -> None:
    folder = tmp_path / "rounds"
    folder.mkdir()
    for round_ in (2, 10):
        write(folder / f"v1-round-{round_}.jsonl", [{"text": f"r{round_}"}, {"text": "b"}])
    (folder / ".hidden.jsonl").write_text("no")
    (folder / "notes.md").write_text("no")
    assert read(folder).counts == {2: 2, 10: 2}


def test_two_files_of_one_round_are_refused(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}-3.jsonl", [{"text": "a"}]) for name in "ab"]
    with pytest.raises(UserError, match="both say round 3"):
        read(*files)


def test_other_names_of_columns_and_empty_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"gen": 1, "out": null}\n{"gen": "2", "out": "b"}\n{"gen": 2.0, "out": ""}\n')
    found = read(path, names=("gen", "out"))
    assert found.counts == {1: 1, 2: 2} and list(found.batches(1)) == [[""]]


BAD = {
    "a.jsonl": [
        ('{"text": "a"}', "has no column 'round'"),
        ('{"round": 1}', "has no column 'text'"),
        ('{"round": 1, "text": "x"}', "one round only (1)"),
        ('{"round": 1, "text": "x"}\n{"round": "z", "text": "x"}', "line 2: round = 'z' is no whole number"),
        ('{"round": 1, "text": "x"}\n{"round": 1.5, "text": "x"}', "round = '1.5'"),
        ('{"round": 1, "text": "x"}\n{"text": "x"}', "line 2: round is missing"),
        ('{"round": 1, "text": "x"}\n{"round": 2}', "line 2: text is missing"),
        ('{"round": 1, "text": 5}', "text is a number"),
        ('{"round": 1, "text": ""}\n{"round": 2, "text": " "}', "all 2 texts are empty"),
        ("{", "is not JSON"),
        ("", "is empty"),
    ],
    "a.csv": [
        ("round,text\n1,a\nx,b\n", "row 2: round = 'x' is no whole number"),
        ("round,text\n1,a\n-2,b\n", "row 2: round = '-2'"),
        ("round,answer\n1,a\n", "has no column 'text'"),
        ("a,b\n1,2\n", "has no column 'text'"),
        ("text\na\n", "has no column 'round'"),
        ("round,text\n", "has no row"),
    ],
    "a.txt": [("a", "has the ending '.txt'")],
    "a.parquet": [("PAR1....", "cannot be parsed")],
}


@pytest.mark.parametrize(("name", "content", "words"), [(name, *case) for name, cases in BAD.items() for case in cases])
def test_refusals(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        read(tmp_path / name)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"round": 1.5, "text": "a"}], "round = '1.5'"),
        ([{"round": 1, "text": 4}], "text holds Int64"),
        ([{"round": r, "text": "a"} for r in range(own_rounds.MOST_ROUNDS + 1)], "over 200 rounds"),
        ([{"round": own_rounds.LAST_ROUND + 1, "text": "a"}], "is no whole number from 0 to 100,000"),
    ],
)
def test_refusals_of_parquet(tmp_path: Path, rows: list[dict[str, object]], words: str) -> None:
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        read(write(tmp_path / "a.parquet", rows))


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", [{"round": 0, "text": "a"}, {"round": 1, "text": "b" * 20}])
    monkeypatch.setattr(data, "MAX_TEXT_BYTES", 10)
    with pytest.raises(UserError, match="row 2: text is over"):
        read(path)
    monkeypatch.setattr(data, "MAX_TEXT_BYTES", 100)
    monkeypatch.setattr(data, "MAX_ROWS", 1)
    with pytest.raises(UserError, match="over the limit of 1 rows"):
        read(path)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there"):
        read(tmp_path / "nothing.jsonl")
    with pytest.raises(UserError, match="has no file with the ending"):
        own_rounds.read_files([tmp_path], tmp_path / "spool", NAMES, silent)


def test_progress_ends_at_the_size(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"round": r, "text": "a"}) + "\n" for r in (0, 1)))
    seen: list[tuple[int, int]] = []
    own_rounds.read_files([path], tmp_path / "spool", NAMES, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)
