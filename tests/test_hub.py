"""Data of a folder, and of a data set of a hub: tested against a local folder in the hub's layout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import polars as pl
import pytest

from dces_core import data
from dces_core.config import parse
from dces_core.errors import UserError

ROWS = [{"prompt": f"What is {i}?", "reference": f"It is {i}.", "score": i} for i in range(6)]


def pairs_of(value: Path | str) -> list[data.Pair]:
    return data.load_train(parse({"data": {"train": str(value)}})).pairs


def refusal(value: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        pairs_of(value)
    return str(caught.value)


def write_all(folder: Path) -> None:
    """Rows 0 and 1 as JSONL, 2 and 3 as CSV, 4 and 5 as Parquet in `data/`."""
    (folder / "data").mkdir(parents=True)
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:2]), encoding="utf-8")
    pl.DataFrame(ROWS[2:4]).write_csv(folder / "b.csv")
    pl.DataFrame(ROWS[4:]).write_parquet(folder / "data" / "train-00000-of-00001.parquet")
    (folder / "README.md").write_text("no data", encoding="utf-8")
    (folder / ".hidden.jsonl").write_text("no JSON", encoding="utf-8")


def test_a_folder_is_all_its_files(tmp_path: Path) -> None:
    write_all(tmp_path / "own")
    found = pairs_of(tmp_path / "own")
    assert [(pair.prompt, pair.reference) for pair in found] == [(row["prompt"], row["reference"]) for row in ROWS]
    assert len({pair.id for pair in found}) == 6 and found[0].id == "a.jsonl-line-1"


def test_texts_of_a_folder(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(f"The text {name} has words.\n", encoding="utf-8")
    corpus = data.load_train(parse({"data": {"train": str(tmp_path)}}))
    assert corpus.kind == "texts"
    assert [pair.reference for pair in corpus.pairs] == [f"The text {name} has words." for name in ("one", "two")]


def test_what_a_folder_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no folder with files of the endings .jsonl, .csv, .parquet, .txt" in refusal(tmp_path)
    write_all(tmp_path / "own")
    (tmp_path / "own" / "c.jsonl").write_text('{"question": "?"}\n', encoding="utf-8")
    assert "c.jsonl line 1: prompt is missing" in refusal(tmp_path / "own")
    (tmp_path / "own" / "c.jsonl").write_text("{\n", encoding="utf-8")
    assert "own', c.jsonl, line 1 is not JSON" in refusal(tmp_path / "own")
    (tmp_path / "own" / "c.jsonl").unlink()
    monkeypatch.setattr(data, "MAX_ROWS", 5)
    assert "over 5 rows" in refusal(tmp_path / "own")
    monkeypatch.setattr(data, "MAX_FILE_BYTES", 100)
    assert "over the limit of 0 MiB" in refusal(tmp_path / "own")


@pytest.mark.parametrize("value", ["hub:", "hub:alone", "hub:a/b:", "hub:a/b/c", "hub:../b:train", "hub:a/b:tr/ain"])
def test_names_of_no_data_set(value: str) -> None:
    assert "write hub:owner/name or hub:owner/name:split" in refusal(value)


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refusal("hub:owner/name").endswith('not installed; run: pip install "dces-lab[hub]".')


@pytest.mark.slow
def test_a_data_set_in_the_layout_of_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="an extra: dces-lab[hub]")
    folder = tmp_path / "owner" / "name" / "data"
    folder.mkdir(parents=True)
    pl.DataFrame(ROWS[:4]).write_parquet(folder / "train-00000-of-00001.parquet")
    pl.DataFrame(ROWS[4:]).write_parquet(folder / "test-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert [pair.prompt for pair in pairs_of("hub:owner/name")] == [row["prompt"] for row in ROWS[:4]]
    assert [pair.prompt for pair in pairs_of("hub:owner/name:test")] == [row["prompt"] for row in ROWS[4:]]
    assert "split 'validation' cannot be had (" in refusal("hub:owner/name:validation")
    assert "cannot be had (" in refusal("hub:owner/absent")
    monkeypatch.setattr(data, "MAX_ROWS", 3)
    assert "has 4 rows" in refusal("hub:owner/name")
