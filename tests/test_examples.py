"""The examples do what they say, on a tiny model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dces_core import models
from dces_core.cli import main

ROOT = Path(__file__).resolve().parent.parent


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_loop_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    if not models.pulled():
        pytest.skip("the default model, whose tokenizer the tiny models use, is not on this machine: dces models pull")
    import torch

    torch.manual_seed(0)
    reports = example("sft_with_dces").main(rounds=2, encoder="hash")
    assert [report["round"] for report in reports] == [1, 2]
    assert reports[0]["setpoint"] == reports[0]["value"] == reports[1]["setpoint"] != reports[1]["value"]
    assert reports[0]["edit_value"] == pytest.approx(reports[0]["edit_setpoint"])
    assert all(report["changed"] > 0 and report["undefined"].keys() == {"entropy"} for report in reports)


@pytest.mark.slow
def test_the_callback_gives_the_next_rows(tmp_path: Path) -> None:
    if not importlib.util.find_spec("trl"):
        pytest.skip("TRL is not installed; the callback needs only transformers, its use in SFTTrainer needs TRL: the extra `bench`")
    from transformers import TrainerControl, TrainerState, TrainingArguments

    def pool_of(model: Any) -> list[dict[str, Any]]:
        return [{"prompt": "Say.", "text": f"Round {model} of thing {i} and some other words.", "logprob": -1.0 - i} for i in range(8)]

    callback = example("trl_callback").Curation(pool_of, 4, settings=["encoder.name=hash"])
    arguments = TrainingArguments(output_dir=str(tmp_path / "out"), report_to=[])
    for model in (1, 2):
        callback.on_epoch_end(arguments, TrainerState(), TrainerControl(), model=model)
        assert len(callback.rows) == 4 and all(f"Round {model} " in row["text"] for row in callback.rows)
    assert [report["round"] for report in callback.reports] == [1, 2]


def test_three_verbs_on_a_history_that_no_loop_of_ours_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DCES_RUNS", str(tmp_path / "runs"))
    folder, chosen = tmp_path / "bigrams", tmp_path / "selected.jsonl"
    example("bigram_history").main(folder, rounds=3, texts=120)
    plain = ["--encoder", "hash", "--format", "json"]

    assert main(["diagnose", str(folder), "--sample", "60", "--map", "off", *plain]) == 0
    metrics = {(row["metric"], row["round"]): row["value"] for row in json.loads(capsys.readouterr().out)["metrics"]}
    assert metrics["distinct_2", 0] > metrics["distinct_2", 1] > metrics["distinct_2", 2]

    assert main(["curate", str(folder / "round-2.jsonl"), "--n", "30", "--out", str(chosen), "--set", "encoder.name=hash"]) == 0
    rows = [json.loads(line) for line in chosen.read_text().splitlines()]
    assert len(rows) == 30 and {row["role"] for row in rows} == {"center", "edge"}

    capsys.readouterr()
    assert main(["watch", str(folder), "--dry-run", *plain]) == 0
    fired = {(row["rule"], row["round"]) for row in json.loads(capsys.readouterr().out)}
    assert {("lexical", 1), ("lexical", 2)} <= fired
