"""What a model needs before it is there: memory of one device, part by part, and seconds of a round. Pure functions of dimensions.

LoRA on frozen bf16 weights and several devices (FSDP: all states in equal parts) are planned by the same formulas, for those who choose
hardware: the program keeps frozen weights in fp32 and splits training alone. docs/plan.md compares the formulas with measured peaks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

Method = Literal["full", "lora"]
Device = Literal["cpu", "cuda"]

LEAN_KINDS = ("llama", "mistral", "qwen2", "qwen3")  # as engines.lean, which imports torch
NAMES = {
    "width": ("hidden_size", "n_embd"),
    "layers": ("num_hidden_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_head"),
    "ffn": ("intermediate_size", "ffn_dim", "n_inner"),
}
PROCESS_BYTES = {"cpu": 1_200_000_000, "cuda": 1_000_000_000}  # Python, libraries, encoders; or the context on the card
#: Of the activations that training keeps, per token and block: bytes per unit of width, and per unit of the inner width by activation.
WIDTH_BYTES, INNER_BYTES, OTHER_INNER_BYTES = 40, {"relu": 4, "gelu_new": 10, "gelu": 6, "silu": 10}, 10
SCORE_BYTES = 14  # per attention score, where attention has dropout
LOGIT_BYTES = 12  # per token of a response and token of the vocabulary: log-probabilities and two gradients, fp32
RANK = 16
LINK_BYTES_PER_S = 50e9
FORMULAS = {
    "weights": "4 P / N; lora: (2 P + 4 T) / N",
    "base": "4 P / N, the M_b that a restart needs; lora: 0",
    "sampling_copy": "2 P / N in bf16; lora: 0",
    "frozen_copy": "2 P / N, M_0; lora: 4 T / N",
    "laid_out": "Llama's layout only: 4 P, both copies once more for the processor; on cuda 4 / N x what is joined; lora: half",
    "gradients": "4 T / N",
    "optimiser": "8 T / N, AdamW's two moments",
    "gathered": "one device: 2 P, the weights in bf16 during a step; N > 1: 2 (2 largest block + V w)",
    "activations": "batch / N x layers x tokens x (40 w + a f), a by activation; where attention has dropout + 14 x heads x tokens more",
    "logits": "12 batch / N x new tokens x V",
    "kv_cache": "2 x 2 bytes x layers x KV heads x head width x tokens x sequences decoded at once / N",
    "process": "1.2 GB on the processor, 1 GB on a card",
    "total": "weights to laid_out + process + gathered + max(optimiser + max(gradients + 4 V w, activations + logits), kv_cache)",
    "round_s": "fixed seconds + token seconds / N + bytes gathered and scattered (3 x 2 P (N - 1) / N a step) / (50 GB/s)",
}


@dataclass(frozen=True)
class Shape:
    """A causal language model as dimensions."""

    kind: str
    parameters: int
    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    inner: int
    gated: bool
    activation: str
    tied: bool
    drops_scores: bool
    block: int
    block_linear: int  # sum of inputs and outputs of a block's linear layers: an adapter of rank r has r times as many parameters

    @property
    def lean(self) -> bool:
        """Whether the engine lays its weights out once more for sampling and scoring."""
        return self.kind in LEAN_KINDS


@dataclass(frozen=True)
class Work:
    """What a step and a decoding hold at once, in sequences and tokens."""

    batch: int
    prompt_tokens: int
    new_tokens: int
    decoded: int

    @property
    def tokens(self) -> int:
        """Of a sequence."""
        return self.prompt_tokens + self.new_tokens


@dataclass(frozen=True)
class Layout:
    """Where and how it trains."""

    method: Method = "full"
    devices: int = 1
    device: Device = "cuda"
    rank: int = RANK


def shape_of(values: dict[str, Any], parameters: int | None = None) -> Shape:
    """From the values of a config.json. Raises KeyError where a dimension has no known name."""
    width, layers, heads = (_dimension(values, name) for name in ("width", "layers", "heads"))
    kind, activation = str(values.get("model_type")), str(values.get("hidden_act") or values.get("activation_function") or "gelu_new")
    gated = kind in LEAN_KINDS
    inner = 4 * width if kind == "gpt2" and not values.get("n_inner") else _dimension(values, "ffn")
    kv_heads = int(values.get("num_key_value_heads") or heads)
    head_width = int(values.get("head_dim") or width // heads)
    ends = (width + heads * head_width) * 2 + 2 * (width + kv_heads * head_width) + (3 if gated else 2) * (width + inner)
    products = width * head_width * 2 * (heads + kv_heads) + (3 if gated else 2) * width * inner
    vocabulary, tied = int(values["vocab_size"]), bool(values.get("tie_word_embeddings", True))
    counted = layers * products + vocabulary * width * (1 if tied else 2)
    return Shape(
        kind, parameters or counted, vocabulary, width, layers, heads, kv_heads, head_width, inner, gated, activation, tied,
        bool(values.get("attn_pdrop", 0.1 if kind == "gpt2" else 0) or values.get("attention_dropout")), products, ends,
    )  # fmt: skip


def memory(shape: Shape, work: Work, layout: Layout) -> dict[str, int]:
    """Bytes of one device, by the parts of FORMULAS, and their `total` at the worst moment."""
    n, full = layout.devices, layout.method == "full"
    count, batch = shape.parameters, math.ceil(work.batch / n)
    trained = count if full else layout.rank * shape.block_linear * shape.layers
    table = shape.vocabulary * shape.width
    parts = {
        "weights": (4 * count if full else 2 * count + 4 * trained) / n,
        "base": 4 * count / n if full else 0,
        "sampling_copy": 2 * count / n if full else 0,
        "frozen_copy": (2 * count if full else 4 * trained) / n,
        "laid_out": _laid_out(shape, layout),
        "gradients": 4 * trained / n,
        "optimiser": 8 * trained / n,
        "gathered": (2 * count if full else 0) if n == 1 else 2 * (2 * shape.block + table),
        "activations": activations(shape, batch, work.tokens),
        "logits": LOGIT_BYTES * batch * work.new_tokens * shape.vocabulary,
        "kv_cache": 4 * shape.layers * shape.kv_heads * shape.head_width * work.tokens * math.ceil(work.decoded / n),
        "process": PROCESS_BYTES[layout.device],
    }
    after = parts["gradients"] + (4 * table if full else 0)
    training = parts["optimiser"] + max(after, parts["activations"] + parts["logits"])
    lasting = sum(parts[name] for name in ("weights", "base", "sampling_copy", "frozen_copy", "laid_out", "gathered", "process"))
    return {name: round(value) for name, value in {**parts, "total": lasting + max(training, parts["kv_cache"])}.items()}


def activations(shape: Shape, sequences: int, tokens: int) -> int:
    """Bytes that a forward pass keeps for the backward pass, blocks only."""
    each = WIDTH_BYTES * shape.width + INNER_BYTES.get(shape.activation, OTHER_INNER_BYTES) * shape.inner
    scores = SCORE_BYTES * shape.heads * tokens**2 if shape.drops_scores else 0
    return sequences * shape.layers * (tokens * each + scores)


def round_seconds(one: float, fixed: float, steps: int, shape: Shape, layout: Layout) -> float:
    """Seconds of a round on these devices: `one` is that of a single device, of which `fixed` do not shrink; division is ideal."""
    n = layout.devices
    moved = 6 * shape.parameters * (n - 1) / n * steps
    return fixed + (one - fixed) / n + moved / LINK_BYTES_PER_S


def _laid_out(shape: Shape, layout: Layout) -> float:
    """The second layout of current and frozen weights: everything on the processor, joined products elsewhere; LoRA has one copy."""
    if not shape.lean:
        return 0.0
    copies = 2 if layout.method == "full" else 1
    if layout.device == "cpu":
        outside = 0 if shape.tied else shape.vocabulary * shape.width
        return copies * 2.0 * (shape.parameters - outside)
    joined = shape.layers * shape.width * (shape.head_width * (shape.heads + 2 * shape.kv_heads) + 2 * shape.inner)
    return copies * 2.0 * joined / layout.devices


def _dimension(values: dict[str, Any], name: str) -> int:
    found = next((values[key] for key in NAMES[name] if values.get(key)), None)
    if found is None:
        raise KeyError(name)
    return int(found)
