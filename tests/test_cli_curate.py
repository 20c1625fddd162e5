from __future__ import annotations

import json
from pathlib import Path

import pytest

import dces_core
from dces_core import cli, curation_state
from dces_core.errors import UserError

HASH = ["--set", "encoder.name=hash"]


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    rows = [{"prompt": "Say.", "text": f"A thing of {i % 5} and {i} more words stands here.", "logprob": -1.0 - i / 9} for i in range(20)]
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_files_report_and_state(pool: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, table, state = (tmp_path / name for name in ("out.jsonl", "table.jsonl", "state.json"))
    call = ["curate", str(pool), "--n", "8", "--out", str(out), "--table", str(table), "--state", str(state), *HASH]
    assert cli.main([*call, "--format", "json"]) == 0
    report = json.loads(capfd.readouterr().out)
    found = dces_core.curate(pool, 8, settings=["encoder.name=hash"])
    assert report == json.loads(json.dumps(found.report)) and json.loads(state.read_text(encoding="utf-8")) == found.state
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert lines == found.selected.to_dicts() and len(table.read_text(encoding="utf-8").splitlines()) == 20
    assert cli.main(call) == 2 and "is the one of the state's round 1" in capfd.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"pool.jsonl", "out.jsonl", "table.jsonl", "state.json"}
    state.unlink()
    assert cli.main(call) == 0
    shown = capfd.readouterr().out
    assert "no edits" in shown and "no model was given" in shown


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--n", "21"], "n = 21 must be a whole number"),
        (["--arm", "real"], "arm = 'real'"),
        (["--out", "absent/x.jsonl"], "lies in a folder that is not there"),
        (["--set", "train.lr=1"], "is nothing that curation reads"),
        (["--set", "gate.nope=1"], "gate.nope is not a setting"),
        (["--model", "./absent"], "is neither a folder"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    pool: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], change: list[str], words: str
) -> None:
    assert cli.main(["curate", str(pool), "--n", "8", "--out", str(tmp_path / "out.jsonl"), *HASH, *change]) == 2
    error = capfd.readouterr().err
    assert words in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pool.jsonl"]


def test_only_settings_that_are_read_can_be_set() -> None:
    assert curation_state.settings_of(["controller.gain=0.5", "device=cpu", "data.template=plain"]).controller.gain == 0.5
    for override in ("rounds=3", "seed=1", "pool.n=4", "data.train=x", "encoder.judge=hash", "nope"):
        with pytest.raises(UserError, match="nothing that curation reads"):
            curation_state.settings_of([override])
