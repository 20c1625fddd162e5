"""A run whose rounds train adapters: interrupted, exported, and light on the disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from small import finished, go_on, small_run
from test_resume import cut_and_go_on

from dces_core import model_folder, store
from dces_core.engines.hf import HFModel
from dces_core.errors import UserError
from dces_core.preflight import check
from dces_core.store import SHARED, WEIGHTS, Run

ARMS = ["plain", "dces"]


def settings(**train: Any) -> dict[str, Any]:
    return {
        "engine": "hf", "model": str(tiny.folder("llama")), "device": "cpu", "arms": ARMS, "keep": "all",
        "train": {"lora_rank": 2, "lr": 1e-2, "precision": "fp32", **train},
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished(tmp_path_factory.mktemp("whole"), **settings(round0="finetune"))


def test_every_round_keeps_an_adapter_and_the_run_says_what_trains(whole: Run) -> None:
    base = sum(file.stat().st_size for file in tiny.folder("llama").glob("*.safetensors"))
    places = [(0, SHARED), *((round_, arm) for round_ in (1, 2) for arm in ARMS)]
    kept = [whole.stage(round_, arm, "train").file(WEIGHTS).read_bytes() for round_, arm in places]
    assert max(len(data) for data in kept) < base / 100
    assert len(set(kept)) == len(kept)
    notes = " ".join(event.get("text", "") for event in whole.events()[0] if event["kind"] == "note")
    assert "adapters of rank 2 train: " in notes


@pytest.mark.slow
def test_an_interrupted_run_equals_the_other(whole: Run, tmp_path: Path) -> None:
    cut = store.create(whole.config, {}, tmp_path / "run")
    cut_and_go_on(cut, whole, [(0, SHARED, "train"), (1, "dces", "train"), (1, "dces", "evaluate"), (2, "plain", "generate")])


def test_an_export_is_merged(whole: Run) -> None:
    model, _ = model_folder.load(whole, "dces", 2)
    engine = HFModel(whole.config)
    engine.load(whole.stage(2, "dces", "train").file(WEIGHTS))
    own = engine._master.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())
    base, _ = model_folder.load(finished_base(whole), "plain", 0)
    assert not torch.equal(base.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)
    assert torch.equal(base.model.embed_tokens.weight, model.model.embed_tokens.weight)


def finished_base(whole: Run) -> Run:
    """The same run as if round 0 were the base model as it is."""
    path = whole.path.parent / "asis"
    shutil.rmtree(path, ignore_errors=True)
    train = whole.config.train.model_copy(update={"round0": "asis"})
    return store.create(whole.config.model_copy(update={"train": train}), {}, path)


def test_restarting_rounds_begin_with_a_new_adapter(tmp_path: Path) -> None:
    run = small_run(tmp_path, **settings(init="base") | {"arms": ["plain"], "rounds": 1})
    go_on(run)
    assert run.stage(1, "plain", "train").file(WEIGHTS).is_file()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"engine": "fake", "train": {"lora_rank": 2}}, "train.lora_rank = 2 needs engine = 'hf'"),
        ({"engine": "fake", "train": {"gradient_checkpointing": True}}, "train.gradient_checkpointing = True needs engine = 'hf'"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    run = small_run(tmp_path, **changes)
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        check(run.config)


def test_settings_at_their_default_leave_the_digest_alone(tmp_path: Path) -> None:
    """Runs and studies that were recorded before these settings came still are the runs of their settings."""
    usual, rank = (small_run(tmp_path, str(i), **changes).config for i, changes in enumerate(({}, {"train": {"lora_rank": 2}})))
    assert usual.digest() != rank.digest()
    recorded = [Run(path.parent) for path in store.recorded_root().glob("*/run.json")]
    assert recorded
    for run in recorded:
        assert run.manifest["config_hash"] == run.config.digest()
