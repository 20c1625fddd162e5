"""Published architectures with random weights: their tokenizers, their cache, the hub's layout, one round."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dces_core import architectures, cli, models
from dces_core.errors import UserError
from dces_core.store import cache_root

pytestmark = pytest.mark.slow
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOAD = """
import sys
from dces_core.engines.hf import open_model
from dces_core.errors import UserError
for name in sys.argv[1:]:
    try:
        tokenizer, model = open_model(name)
        print(len(tokenizer), model.config.model_type, sum(weight.numel() for weight in model.parameters()))
    except UserError as error:
        print(error)
"""


@pytest.fixture
def tokenizer_folder() -> Path:
    if not models.pulled():
        pytest.skip("the default model, whose tokenizer this needs, is not on this machine: dces models pull")
    return models.models_root() / models.DEFAULT


@pytest.fixture
def own_cache(tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with the default model alone."""
    (tmp_path / "cache" / "models").mkdir(parents=True)
    (tmp_path / "cache" / "models" / models.DEFAULT).symlink_to(tokenizer_folder)
    monkeypatch.setenv("DCES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", list(architectures.known()))
def test_a_tokenizer_has_the_familys_layout(name: str, tokenizer_folder: Path) -> None:
    found = architectures.find(name)
    made = architectures.tokenizer_of(found, tokenizer_folder)
    assert len(made) == found.tokenizer_tokens <= found.config["vocab_size"]
    assert {
        f"{kind}_token": getattr(made, f"{kind}_token") for kind in ("bos", "eos", "pad") if getattr(made, f"{kind}_token")
    } == found.special
    text = " two  spaces, naïve café, 日本 🙂"
    ids = made(text)["input_ids"]
    assert made.decode(ids[found.starts :]) == text and (ids[0] == made.bos_token_id) == found.starts
    assert all(made.decode([token]).strip() for token in (found.tokenizer_tokens - 7, found.tokenizer_tokens - 3))
    assert bool(made.chat_template) == (name == "qwen3-0.6b")


def test_the_chat_template_answers_at_once(tokenizer_folder: Path) -> None:
    made: Any = architectures.tokenizer_of(architectures.find("qwen3-0.6b"), tokenizer_folder)
    said = made.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False, enable_thinking=False)
    assert said == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def test_a_round_passes_and_the_model_is_built_once(own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = own_cache / "plan.json"
    assert cli.main(["doctor", "--arch", "opt-125m", "--layers", "1", "--format", "json", "--out", str(results)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["stage"] for row in found["stages"]] == [
        "train", "evaluate", "generate", "reference", "map", "select", "map", "train", "evaluate",
    ]  # fmt: skip
    assert found["passed"] and all(row["passed"] and row["seconds"] >= 0 and row["peak_bytes"] > 0 for row in found["stages"])
    assert found["peak_bytes"] == max(row["peak_bytes"] for row in found["stages"])
    assert found["needed"]["total"] == pytest.approx(found["peak_bytes"], rel=0.3)
    (entry,) = json.loads(results.read_text(encoding="utf-8"))
    assert (entry["name"], entry["layers"], entry["stages"]) == ("opt-125m", 1, 9)
    folder = cache_root() / "models" / "random-opt-125m-1-layers"
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert architectures.build("opt-125m", 1) == folder and (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")], "nothing half written stays"


def test_hub_ids_are_loaded_from_what_a_download_leaves(tmp_path: Path, tokenizer_folder: Path) -> None:
    """models--OWNER--NAME: blobs, and a snapshot of links to them. Without network; what was not fetched is one sentence."""
    found = architectures.find("gpt2")
    home = tmp_path / "hub" / "models--openai-community--gpt2"
    blobs, snapshot = home / "blobs", home / "snapshots" / COMMIT
    for folder in (blobs, snapshot, home / "refs"):
        folder.mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    architectures.write(found, 1, tokenizer_folder, blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOAD, found.hub, "facebook/opt-125m"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    first, second = done.stdout.splitlines()
    assert first == f"{found.tokenizer_tokens} gpt2 46473216", done.stderr[-2000:]
    assert second.startswith("model = 'facebook/opt-125m' cannot be loaded (")


def test_no_tokenizer_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCES_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="dces models pull"):
        architectures.build("gpt2", 1)
