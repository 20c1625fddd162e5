"""The forward pass of Llama's layout (Llama, Mistral, Qwen2, Qwen3) in few operations, for decoding and scoring.

At 32 rows a step, what transformers does between the matrix products costs as much as the products: hundreds of small operations per
layer, and weights whose layout is converted in every call. Here query, key and value are one product, gate and up another, the rotary
angles are looked up, and the weights are laid out once for the processor. Every other architecture uses its own forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dces_core.engines.base import Example
from dces_core.engines.decode import PassingCache, PreallocatedCache, attend, shared_tokens
from dces_core.engines.teacher import pad

KINDS = ("llama", "mistral", "qwen2", "qwen3")
STATIC_ANGLES = ("default", "linear", "llama3", "yarn")  # the others depend on the length of the sequence


def packable(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN can lay out weights of this type beforehand on this processor."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


class Linear:
    """x W^T + b with W (out, in) laid out for the processor; several layers that read the same input are one product."""

    def __init__(self, *layers: Any) -> None:
        weights = [layer.weight.detach() for layer in layers]
        self.weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        biases: list[Any] = [layer.bias for layer in layers]
        self.bias = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])
        self.packed = packable(self.weight.dtype, self.weight.device)
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, None)

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, in) -> (rows, out)."""
        if self.packed:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            return out
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Norm:
    """Root mean square normalisation of the last dimension."""

    weight: Tensor
    eps: float

    @classmethod
    def of(cls, module: Any) -> Norm | None:
        """That of a transformers module; None where there is none."""
        return None if module is None else cls(module.weight.detach(), float(module.variance_epsilon))

    def __call__(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Layer:
    """One block's weights."""

    def __init__(self, module: Any) -> None:
        attention, mlp = module.self_attn, module.mlp
        self.before, self.between = Norm.of(module.input_layernorm), Norm.of(module.post_attention_layernorm)
        self.qkv, self.out = Linear(attention.q_proj, attention.k_proj, attention.v_proj), Linear(attention.o_proj)
        self.gate_up, self.down = Linear(mlp.gate_proj, mlp.up_proj), Linear(mlp.down_proj)
        self.query_norm, self.key_norm = (Norm.of(getattr(attention, name, None)) for name in ("q_norm", "k_norm"))
        self.scale = float(attention.scaling)


class LeanBody:
    """Decodes as `model.base_model` does, called the same way; `head` maps its hidden states to logits."""

    def __init__(self, model: Any) -> None:
        base, config = model.base_model, model.config
        self.embedding = base.embed_tokens.weight.detach()
        self.layers = [Layer(module) for module in base.layers]
        self.norm, self.head = Norm.of(base.norm), Linear(model.get_output_embeddings())
        self.heads, self.grouped = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.width = int(base.layers[0].self_attn.head_dim)
        self.angles = base.rotary_emb

    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past_key_values: PreallocatedCache, use_cache: bool = True
    ) -> SimpleNamespace:
        """Token ids and positions (rows, columns), an additive mask over the cache's room -> last_hidden_state (rows, columns, width)."""
        rows, columns = input_ids.shape
        x = self.embedding[input_ids].flatten(0, 1)
        cos, sin = (table.flatten(0, -2).unsqueeze(1) for table in self.angles(x, position_ids))  # (rows * columns, 1, head width)
        sin = torch.cat((-sin[..., : self.width // 2], sin[..., self.width // 2 :]), -1)
        mask = attention_mask.expand(rows, -1, -1, -1)
        for index, layer in enumerate(self.layers):
            x = x + self._attend(layer, index, x, cos, sin, mask, past_key_values)
            gate, up = layer.gate_up(layer.between(x)).chunk(2, -1)  # type: ignore[misc]
            x = x + layer.down(functional.silu(gate) * up)
        assert self.norm
        return SimpleNamespace(last_hidden_state=self.norm(x).view(rows, columns, -1))

    def response_states(self, examples: list[Example]) -> Tensor:
        """As teacher.response_states, without gradients: hidden states (tokens, width) that predict the response tokens."""
        device = self.embedding.device
        skip = shared_tokens([example.prompt for example in examples])
        ids, _, where = pad(examples, skip, device)
        cache = PreallocatedCache(len(self.layers))
        if skip:
            self._causal(cache, torch.tensor([examples[0].prompt[:skip]], device=device))
        found: Tensor = self._causal(PassingCache(cache), ids)[where[:, 0], where[:, 1]]
        return found

    def _causal(self, cache: PreallocatedCache, ids: Tensor) -> Tensor:
        """(rows, columns) ids behind what the cache holds; padding stands on the right, where no token looks."""
        column = torch.arange(cache.room(ids.shape[1]), device=ids.device)
        positions = column[cache.column : cache.column + ids.shape[1]]
        mask = torch.zeros((len(positions), len(column)), dtype=self.embedding.dtype, device=ids.device)
        mask.masked_fill_(column > positions.unsqueeze(1), torch.finfo(mask.dtype).min)
        states: Tensor = self(ids, mask[None, None], positions.expand(len(ids), -1), cache).last_hidden_state
        cache.column += ids.shape[1]
        return states

    def _attend(self, layer: Layer, index: int, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: PreallocatedCache) -> Tensor:
        turned = self.heads + self.grouped
        qkv = layer.qkv(layer.before(x)).view(len(x), turned + self.grouped, self.width)  # type: ignore[misc]
        qk = qkv[:, :turned]
        if layer.query_norm and layer.key_norm:
            qk = torch.cat((layer.query_norm(qk[:, : self.heads]), layer.key_norm(qk[:, self.heads :])), 1)
        qk = torch.addcmul(qk * cos, qk.roll(self.width // 2, -1), sin)
        query, key, value = (
            part.view(len(mask), -1, part.shape[1], self.width).transpose(1, 2)
            for part in (qk[:, : self.heads], qk[:, self.heads :], qkv[:, turned:])
        )
        keys, values = cache.update(key, value, index)
        found = attend(query, keys, values, mask, layer.scale)
        return layer.out(found.reshape(len(x), -1))


def lean_body(model: Any) -> LeanBody | None:
    """The lean pass of a model; None where its layout is another one."""
    config = model.config
    known = config.model_type in KINDS and getattr(config, "hidden_act", "") == "silu"
    if not known or getattr(model.base_model.rotary_emb, "rope_type", "default") not in STATIC_ANGLES:
        return None
    return LeanBody(model)
