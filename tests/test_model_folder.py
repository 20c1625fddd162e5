"""A checkpoint leaves a run as a model of transformers: the same logits, from memory and from a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from small import finished, small_run
from transformers import AutoModelForCausalLM, AutoTokenizer

import dces_core
from dces_core import cli, model_folder
from dces_core.engines.hf import HFModel
from dces_core.errors import UserError
from dces_core.store import WEIGHTS


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])  # tied and untied embeddings
def test_the_folder_is_the_checkpoint(family: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = finished(
        tmp_path, engine="hf", model=str(tiny.folder(family)), device="cpu", arms=["plain"], rounds=1, pool={"n": 4},
        train={"lr": 1e-3, "precision": "fp32"},
    )  # fmt: skip
    out = tmp_path / "export" / "plain-1"
    assert cli.main(["export", str(run.path), "--model", "plain:1", "--out", str(out)]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == str(out)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    engine = HFModel(run.config)
    weights = run.stage(1, "plain", "train").file(WEIGHTS)
    engine.load(weights)
    ids = torch.tensor([engine.encode_prompt("What is the sea?")])
    with torch.inference_mode():
        wanted = engine._master(ids).logits
        assert torch.equal(model.eval()(ids).logits, wanted)
        engine.load(None)
        assert not torch.allclose(engine._master(ids).logits, wanted)
        base, _ = dces_core.load(run, "plain", 0)
        assert torch.equal(base(ids).logits, engine._master(ids).logits)
        assert torch.equal(dces_core.load(str(run.path), "plain", 1)[0](ids).logits, wanted)
    assert tokenizer("The sea.")["input_ids"] == engine.tokenizer("The sea.")["input_ids"]
    own = model.generation_config
    assert (own.do_sample, own.temperature, own.top_p, own.top_k, own.max_new_tokens) == (True, 0.8, 0.9, 0, 12)
    assert own.eos_token_id == engine._ends
    assert model.generate(ids, attention_mask=torch.ones_like(ids)).shape[1] <= ids.shape[1] + 12
    card = (out / model_folder.CARD).read_text(encoding="utf-8")
    assert run.config.digest() in card and "plain, 1 of 1" in card and str(tmp_path) not in card
    assert str(tiny.folder(family)) not in "".join(file.read_text("utf-8") for file in out.glob("*.json"))
    assert load_file(out / WEIGHTS).keys() == load_file(weights).keys()
    with pytest.raises(UserError, match="exists already"):
        model_folder.write_folder(run, "plain", 1, out)
    with pytest.raises(UserError, match=r"the run has rounds 0 to 1. There are: shared:0, plain:1"):
        dces_core.load(run, "plain", 2)
    other = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert other["architectures"] and not (out / ".cache").exists()


@pytest.mark.parametrize(
    ("what", "words"),
    [("plain", "is not ARM:ROUND"), ("plain:x", "is not ARM:ROUND"), (":1", "is not ARM:ROUND"), ("plain:1", "was made by engine 'fake'")],
)
def test_what_is_no_checkpoint_is_refused_in_a_sentence(what: str, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = small_run(tmp_path, arms=["plain"])
    assert cli.main(["export", str(run.path), "--model", what, "--out", str(tmp_path / "out")]) == 2
    error = capfd.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_an_arm_that_is_not_there(tmp_path: Path) -> None:
    run = small_run(tmp_path, engine="hf", model="no/matter", arms=["plain"])
    with pytest.raises(UserError, match="arm = 'dces' is not in run 'run'; it has: plain"):
        dces_core.load(run, "dces", 1)
    with pytest.raises(UserError, match="'plain:1' of run 'run' is not there: not trained yet"):
        dces_core.load(run, "plain", 1)
