"""Files and values that anybody may have made: reading.py, and the readers that stand on it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import make_config

from dces_core import config, data, estimate, labels, launch, models, reading, store, study
from dces_core.config import parse
from dces_core.errors import UserError, quoted
from dces_core.stage import Stage, read_json
from dces_core.store import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return store.create(make_config(tmp_path), {}, tmp_path / "run")


def refused(call: Any) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_json_gives_a_value_or_a_value_error(text: str | bytes) -> None:
    try:
        json.dumps(reading.parse_json(text), allow_nan=False, ensure_ascii=False).encode()
    except ValueError as error:
        assert not isinstance(error, UnicodeEncodeError)


@pytest.mark.parametrize(("text", "value"), [("[NaN, -Infinity, 1e999, 2]", [None, None, None, 2]), ('"\\ud83d\\ude00\\ud800"', "😀?")])
def test_what_json_cannot_say_is_replaced(text: str, value: object) -> None:
    assert reading.parse_json(text) == reading.parse_json(text.encode()) == value


@pytest.mark.parametrize("text", ["[" * 33 + "]" * 33, "[" * 100_000, "9" * 5000, '{"a":' * 40 + "1" + "}" * 40])
def test_json_beyond_the_limits(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        reading.parse_json(text)
    (tmp_path / "x.json").write_text(text)
    assert read_json(tmp_path / "x.json") is None
    assert reading.parse_json("[" * 32 + "]" * 32)


def test_a_pipe_a_device_and_a_long_file_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / "a\0b"):
        with pytest.raises(OSError):
            reading.read_bytes(path, 10)
        assert read_json(path) is None
    (tmp_path / "long").write_text("x" * 11)
    with pytest.raises(ValueError, match="more than 10 bytes"):
        reading.read_text(tmp_path / "long", 10)


@pytest.mark.parametrize("text", ["x = " + "[" * 30_000, "a." * 30_000 + "b = 1", "seed = " + "9" * 5000, "seed = 0x" + "f" * 9000, "\0"])
def test_hostile_toml(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    refused(lambda: config.load_recipe(str(path)))
    refused(lambda: study.load_study(str(path)))
    refused(lambda: config.load_recipe("study", [text]))


def test_a_date_in_a_study_is_the_value_of_no_setting(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("name = 'x'\narms = ['plain']\nseeds = [0]\nset.note = 1979-05-27\n")
    assert "is the value of no setting" in refused(lambda: study.load_study(str(tmp_path / "x.toml")))


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "~nobody-here/x", "\ud800"])
def test_names_that_no_file_has(name: str) -> None:
    refused(lambda: config.load_recipe(name))
    refused(lambda: study.load_study(name))
    refused(lambda: models.check(name))
    assert estimate.count_parameters(name) is None


def test_a_rule_that_quotes_a_long_value_is_cut() -> None:
    refused(lambda: parse({"data": {"tests": {"/" * 9000: "x"}}}))
    refused(lambda: parse({"name": "/" * 9000}))


def test_quoted_shows_what_cannot_be_shown() -> None:
    assert quoted(10**5000) == "a int that is too large to show"
    assert len(quoted("x" * 10_000)) < 300


def test_data_that_lies(tmp_path: Path) -> None:
    loads = lambda path: lambda: data.load_train(parse({"data": {"train": str(path)}}))  # noqa: E731
    (tmp_path / "a.jsonl").write_text('{"text": "x", "id": "\\ud800"}')
    assert "id has half a surrogate pair" in refused(loads(tmp_path / "a.jsonl"))
    (tmp_path / "a.csv").write_text("text," + "a," * 10_000 + "b\nx\n")
    assert "at most 10,000 column names" in refused(loads(tmp_path / "a.csv"))
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + b"\0" * 50 + b"\xff\xff\xff\x7fPAR1")
    assert "damaged footer" in refused(loads(tmp_path / "a.parquet"))
    pl.DataFrame({"text": [["x"]]}).write_parquet(tmp_path / "b.parquet")
    assert "text is no text but nested" in refused(loads(tmp_path / "b.parquet"))
    pl.DataFrame({"text": ["x" * 900_000]}).select(pl.col("text").repeat_by(700).explode()).write_parquet(tmp_path / "c.parquet")
    assert "over 512 MiB of text" in refused(loads(tmp_path / "c.parquet"))


def test_figures_of_another_form_are_null(run: Run) -> None:
    run.status_path.write_text(json.dumps({"pid": "x", "heartbeat": [], "done": -1, "eta_s": 1e300, "state": 5, "round": 2}))
    assert run.status() == {"pid": None, "heartbeat": None, "done": None, "eta_s": None, "state": None, "round": 2}
    assert launch.state(run) == "lost"
    run.events_path.write_text('[1]\n{"kind": "span"}\n{"kind": "note", "text": "x"}\n' + "[" * 5000 + "\n")
    assert [event["kind"] for event in run.events()[0]] == ["note"]


def test_a_stage_names_plain_files_only(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    for name, whole in (("a.json", True), ("../a.json", False), ("..", False), ("/etc/passwd", False)):
        (tmp_path / "_done.json").write_text(json.dumps({"inputs": "x", "files": {name: {"bytes": 1, "sha256": "x"}}}))
        assert (stage.done is not None) == whole, name


def test_a_table_of_other_columns_is_empty(tmp_path: Path) -> None:
    pl.DataFrame({"value": ["not a number"]}).write_parquet(tmp_path / "metrics.parquet")
    (tmp_path / "probes.parquet").write_bytes(b"PAR1" * 9)
    assert Stage(tmp_path).frame("metrics").shape == (0, 10)
    assert Stage(tmp_path).frame("probes").height == 0


def test_nothing_is_written_through_a_link(run: Run, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("as it was")
    run.events_path.symlink_to(outside)
    for write in (lambda: labels.rename(run, "x"), lambda: launch.check_resumable(run)):
        assert "has a symbolic link, 'events.jsonl'" in refused(write)
    assert outside.read_text() == "as it was"
    launch.delete(run)
    assert outside.exists()
    assert not run.path.exists()
