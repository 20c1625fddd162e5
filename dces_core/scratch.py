"""Models of 4 million parameters with random weights: three architectures, to check that the program treats them alike.

They are nobody's published models. Each is built from its family's own configuration and one fixed seed, with the default model's
tokenizer, into the cache; round 0 trains it from scratch. Only `write` imports torch and transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

WIDTH, LAYERS, HEADS, CONTEXT, SEED = 72, 4, 4, 1024, 0
#: Parameters of each, tied embeddings counted once.
PARAMETERS = {"tiny-opt": 3_865_536, "tiny-gpt2": 3_865_392, "tiny-qwen3": 3_788_568}
VOCABULARY = 49_152


def write(name: str, tokenizer_folder: Path, folder: Path) -> None:
    """Save the model (fp32 safetensors) and its tokenizer; the same weights wherever it is done."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        made = AutoModelForCausalLM.from_config(_config(name, tokenizer.eos_token_id), dtype=torch.float32)  # type: ignore[no-untyped-call]
    made.save_pretrained(folder)
    tokenizer.model_max_length = CONTEXT
    tokenizer.init_kwargs.pop("local_files_only", None)
    tokenizer.save_pretrained(folder)


def dimensions(name: str) -> dict[str, Any]:
    """What config.json will say of its size."""
    kind = name.removeprefix("tiny-")
    return {
        "model_type": kind, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "vocab_size": VOCABULARY,
        "ffn_dim" if kind == "opt" else "intermediate_size": (3 if kind == "qwen3" else 4) * WIDTH,
        "num_key_value_heads": HEADS // 2 if kind == "qwen3" else HEADS,
        "activation_function" if kind == "opt" else "hidden_act": {"opt": "relu", "gpt2": "gelu_new", "qwen3": "silu"}[kind],
    }  # fmt: skip


def _config(name: str, end: int) -> Any:
    """The family's configuration, made small. No padding token: OPT would give its embedding no gradient."""
    from transformers import GPT2Config, OPTConfig, Qwen3Config

    tokens: dict[str, Any] = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": None, "tie_word_embeddings": True}
    if name == "tiny-opt":
        return OPTConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, word_embed_proj_dim=WIDTH, ffn_dim=4 * WIDTH, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, max_position_embeddings=CONTEXT, **tokens,
        )  # fmt: skip
    if name == "tiny-gpt2":
        return GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=CONTEXT, **tokens)
    assert name == "tiny-qwen3", name
    return Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2, head_dim=WIDTH // HEADS, max_position_embeddings=CONTEXT, **tokens,
    )  # fmt: skip
