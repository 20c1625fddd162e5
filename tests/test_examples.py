"""The examples do what they say, on a tiny model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dces_core import models

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
