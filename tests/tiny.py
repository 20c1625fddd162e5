"""Tiny models of four architectures, random weights: learned and rotary positions, tied and untied embeddings, grouped heads, query norms.

`model` makes one with a small vocabulary and no tokenizer. `folder` saves one as it would lie on a disk, with the default model's
tokenizer re-saved with the special tokens of its family.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig, PreTrainedTokenizerFast, Qwen3Config
from transformers.utils.logging import disable_progress_bar

from dces_core import models
from dces_core.engines.decode import ATTENTION

FAMILIES = ("opt", "gpt2", "llama", "qwen3")
CONTEXT = 512
SPREAD = 0.15  # of the random weights: wide enough for distributions that are neither flat nor a point
GROUPED: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
    "max_position_embeddings": CONTEXT, "initializer_range": SPREAD,
}  # fmt: skip
SPECIAL: dict[str, dict[str, str]] = {
    "opt": {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"},
    "gpt2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "llama": {"bos_token": "<s>", "eos_token": "</s>"},
    "qwen3": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
}
FINAL_NORM = {"opt": "decoder.final_layer_norm", "gpt2": "ln_f", "llama": "norm", "qwen3": "norm"}
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def config(family: str, vocabulary: int, **more: Any) -> Any:
    """The architecture's own config, made small."""
    if family == "opt":
        return OPTConfig(
            vocab_size=vocabulary, hidden_size=64, word_embed_proj_dim=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=CONTEXT, init_std=SPREAD, **more,
        )  # fmt: skip
    if family == "gpt2":
        return GPT2Config(vocab_size=vocabulary, n_embd=64, n_layer=2, n_head=4, n_positions=CONTEXT, initializer_range=SPREAD, **more)
    if family == "llama":
        return LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=False, **GROUPED, **more)
    return Qwen3Config(vocab_size=vocabulary, tie_word_embeddings=True, head_dim=32, **GROUPED, **more)


def model(family: str, vocabulary: int = 300, seed: int = 0, attention: str = ATTENTION) -> Any:
    """A model in evaluation mode; the same seed gives the same weights."""
    torch.manual_seed(seed)
    tokens = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    made: Any = AutoModelForCausalLM.from_config(config(family, vocabulary, **tokens), attn_implementation=attention)
    return made.eval()


@cache
def folder(family: str) -> Path:
    """A saved model with its tokenizer; removed when the tests end. Skips the test where the default model is not here."""
    tokenizer = _tokenizer(family)
    torch.manual_seed(7)
    ids = {f"{name}_id": getattr(tokenizer, f"{name}_id") for name in ("bos_token", "eos_token", "pad_token")}
    made: Any = AutoModelForCausalLM.from_config(config(family, len(tokenizer), **ids))
    with torch.no_grad():  # sharper: with 49,152 tokens the nucleus of random weights would hold thousands
        made.base_model.get_submodule(FINAL_NORM[family]).weight.mul_(4)
    path = Path(tempfile.mkdtemp(prefix=f"tiny-{family}-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    made.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def _tokenizer(family: str) -> Any:
    if not models.pulled():
        pytest.skip("the default model, whose tokenizer these tests use, is not on this machine: dces models pull")
    raw = Tokenizer.from_file(str(models.models_root() / models.DEFAULT / "tokenizer.json"))
    wanted = SPECIAL[family]
    raw.add_special_tokens(list(dict.fromkeys(wanted.values())))
    if family in ("opt", "llama"):  # these put their start token before every text
        start = wanted["bos_token"]
        raw.post_processor = processors.TemplateProcessing(single=f"{start} $A", special_tokens=[(start, raw.token_to_id(start))])
    made = PreTrainedTokenizerFast(tokenizer_object=raw, **wanted)
    if family == "qwen3":
        made.chat_template = CHAT
    return made
