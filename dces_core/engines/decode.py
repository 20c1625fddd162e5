"""Batched decoding for every causal architecture of transformers: one attention function, one preallocated cache.

Why not `generate`: with one query token per sequence it spends most of its time outside the matrix products (concatenating the
cache, repeating grouped keys, walking the whole vocabulary several times per token, computing finished sequences). Here the cache is
written in place, grouped heads share one batched product, the sampler looks at a short list, and finished rows leave the batch.

All randomness is `uniforms`: one number in [0, 1) per sequence and step, turned into a token by inverting the truncated distribution's
cumulative function in order of probability. So a result does not depend on batch size or order beyond rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import sdpa_mask

from dces_core.config import Generate
from dces_core.engines.base import Generation, silent, unheard
from dces_core.engines.memory import Halving
from dces_core.events import Note, Progress

ATTENTION = "dces_grouped"
SHORT_LIST = 192
BLOCK = 16
WIDE = 4096
CACHED_ROWS = 8
COMPACT_BELOW = 0.8
COLUMNS = 32
LEAST_SHARED = 8


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None = None, dropout: float = 0.0) -> Tensor:
    """Attention (batch, heads, queries, width) -> (batch, queries, heads, width); keys and values may have fewer heads (GQA)."""
    batch, heads, queries, width = query.shape
    groups = heads // key.shape[1]
    if queries > 1 or torch.is_grad_enabled() or (mask is not None and mask.dtype == torch.bool):
        out = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout,
            scale=scale,
            is_causal=mask is None and queries > 1,
            enable_gqa=groups > 1,
        )
        return out.transpose(1, 2).contiguous()
    flat = batch * key.shape[1]
    rows = query.reshape(flat, groups, width)
    scale = scale if scale is not None else width**-0.5
    keys, values = key.flatten(0, 1), value.flatten(0, 1)
    if mask is None:
        scores = torch.bmm(rows * scale, keys.transpose(1, 2))
    else:
        hidden = mask.expand(batch, key.shape[1], 1, keys.shape[1]).reshape(flat, 1, -1)
        scores = torch.baddbmm(hidden, rows, keys.transpose(1, 2), alpha=scale)
    return torch.bmm(torch.softmax(scores, -1), values).view(batch, 1, heads, width)


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """`attend` as transformers calls an attention function."""
    return attend(query, key, value, attention_mask, scaling, dropout), None


AttentionInterface.register(ATTENTION, grouped_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def shared_tokens(prompts: list[list[int]]) -> int:
    """Length of the prefix that all prompts share (a chat template's system text), short of the last token of each; 0 if not worth it."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts), max(prompts)
    common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    common = min(common, min(map(len, prompts)) - 1)
    return common if common >= LEAST_SHARED else 0


class PreallocatedCache(Cache):
    """Keys and values of all layers, written in place at `column`, which the decoder advances once per forward pass.

    Room is made COLUMNS columns at a time and handed out whole: a dense tensor is multiplied without a copy, a slice of one is not. The
    mask hides columns that hold nothing yet.
    """

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[DynamicLayer() for _ in range(layers)])  # type: ignore[no-untyped-call]
        self.column = 0
        self._parts: list[tuple[Tensor, Tensor] | None] = [None] * layers

    def room(self, new: int) -> int:
        """Columns that `update` returns after `new` more."""
        return -(-(self.column + new) // COLUMNS) * COLUMNS

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write (batch, heads, new, width) and return everything so far with the room behind it."""
        end, room = self.column + key_states.shape[2], self.room(key_states.shape[2])
        part = self._parts[layer_idx]
        if part is None or part[0].shape[2] < room:
            part = self._parts[layer_idx] = (
                self._grown(key_states, part and part[0], room),
                self._grown(value_states, part and part[1], room),
            )
        keys, values = part
        keys[:, :, self.column : end] = key_states
        values[:, :, self.column : end] = value_states
        return keys, values

    def _grown(self, like: Tensor, old: Tensor | None, room: int) -> Tensor:
        new = like.new_zeros((*like.shape[:2], room, like.shape[3]))
        if old is not None:
            new[:, :, : self.column] = old[:, :, : self.column]
        return new

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns written so far."""
        return self.column

    def spread(self, rows: int) -> None:
        """Give every one of `rows` sequences what the only one has."""
        self._parts = [part and (part[0].repeat(rows, 1, 1, 1), part[1].repeat(rows, 1, 1, 1)) for part in self._parts]

    def select(self, rows: Tensor) -> None:
        """Keep these sequences only."""
        self._parts = [part and (part[0][rows], part[1][rows]) for part in self._parts]


class PassingCache(PreallocatedCache):
    """Keys and values of one forward pass behind `prefix`, which every sequence shares: one buffer, which each layer writes anew."""

    def __init__(self, prefix: PreallocatedCache) -> None:
        super().__init__(0)
        self.column, self._prefix = prefix.column, prefix._parts
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """As PreallocatedCache; what is returned holds until the next layer's call."""
        new, room = key_states.shape[2], self.room(key_states.shape[2])
        if self._buffers is None:
            self._buffers = self._grown(key_states, None, room), self._grown(value_states, None, room)
        for buffer, part, before in zip(self._buffers, (key_states, value_states), self._prefix[layer_idx] or (None, None), strict=True):
            if before is not None:
                buffer[:, :, : self.column] = before[:, :, : self.column]
            buffer[:, :, self.column : self.column + new] = part
        return self._buffers


def top_of(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row (values, indices), descending. Exact: the k largest lie in the k blocks of largest maximum."""
    rows, size = logits.shape
    blocks = size // BLOCK
    if blocks <= 2 * k or size % BLOCK:
        best = torch.topk(logits, min(k, size), dim=-1)
        return best.values, best.indices
    parts = logits.view(rows, blocks, BLOCK)
    chosen = torch.topk(parts.amax(-1), k, dim=-1, sorted=False).indices
    candidates = parts.gather(1, chosen.unsqueeze(-1).expand(-1, -1, BLOCK)).flatten(1)
    best = torch.topk(candidates, k, dim=-1)
    block = chosen.gather(1, best.indices // BLOCK)
    return best.values, block * BLOCK + best.indices % BLOCK


def invert(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Index at which the cumulative sum of each row first exceeds uniform * total; rows need not sum to 1. Shape (rows,).

    A vocabulary is inverted in two steps: which block of tokens, then which token of it.
    """
    rows, size = probabilities.shape
    uniforms = uniforms.to(exact_type(probabilities.device)).unsqueeze(-1)
    if size % BLOCK or size < WIDE:
        return _first_beyond(probabilities, lambda cumulative: uniforms * cumulative[:, -1:])[0]
    parts = probabilities.view(rows, -1, BLOCK)
    block, left = _first_beyond(parts.sum(-1), lambda cumulative: uniforms * cumulative[:, -1:])
    own = parts[torch.arange(rows, device=parts.device), block]
    return block * BLOCK + _first_beyond(own, lambda _: left)[0]


def _first_beyond(mass: Tensor, target: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Index (rows,) at which the cumulative sum of each row first exceeds its target (rows, 1), and what of the target lies in it."""
    cumulative = mass.to(exact_type(mass.device)).cumsum(-1)
    wanted = target(cumulative)
    index = torch.searchsorted(cumulative, wanted, right=True).squeeze(-1)
    last = (mass > 0).int().mul(torch.arange(mass.shape[1], device=mass.device)).argmax(-1)  # rounding must not select an impossible token
    index = torch.minimum(index, last)
    before = torch.where(index > 0, cumulative.gather(1, (index - 1).clamp(min=0).unsqueeze(1)).squeeze(1), 0)
    return index, wanted - before.unsqueeze(1)


def exact_type(device: torch.device) -> torch.dtype:
    """The widest float of a device."""
    return torch.float32 if device.type == "mps" else torch.float64  # mps has no float64


def choose(logits: Tensor, settings: Generate, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Next tokens (rows,), their untruncated log-probabilities at T = 1, and the entropies at T = 1; logits (rows, vocabulary).

    On a processor a few rows at a time: every pass over them but the first then reads the cache, not the memory.
    """
    size = CACHED_ROWS if logits.device.type == "cpu" else len(logits)
    parts = [_choose(part.float(), settings, u) for part, u in zip(torch.split(logits, size), torch.split(uniforms, size), strict=True)]
    token, logprob, entropy = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return token, logprob, entropy


def _choose(logits: Tensor, settings: Generate, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shifted = logits - logits.amax(-1, keepdim=True)
    weights = shifted.exp()
    total = weights.sum(-1)
    log_total = total.log()
    entropy = log_total - torch.linalg.vecdot(weights, shifted) / total
    token = logits.argmax(-1) if settings.decoding == "greedy" else _sample(shifted, weights, settings, uniforms)
    logprob = shifted.gather(1, token.unsqueeze(1)).squeeze(1) - log_total
    return token, logprob, entropy


def _sample(shifted: Tensor, weights: Tensor, settings: Generate, uniforms: Tensor) -> Tensor:
    """Temperature, then top-k, then top-p (transformers' order), then the inverse of the cumulative function."""
    if settings.top_k:
        top, index = top_of(shifted, min(settings.top_k, shifted.shape[1]))
        mass = (top / settings.temperature).exp()
        kept = _nucleus(mass, mass.sum(-1), settings.top_p)
        return index.gather(1, invert(kept, uniforms).unsqueeze(1)).squeeze(1)
    tempered = weights if settings.temperature == 1 else (shifted / settings.temperature).exp_()
    if settings.top_p == 1:
        return invert(tempered, uniforms)
    top, index = top_of(tempered, min(SHORT_LIST, shifted.shape[1]))
    whole = tempered.sum(-1)
    token = index.gather(1, invert(_nucleus(top, whole, settings.top_p), uniforms).unsqueeze(1)).squeeze(1)
    for row in (top.sum(-1) < settings.top_p * whole).nonzero().squeeze(1).tolist():
        token[row] = _sample_wide(tempered[row], settings.top_p, uniforms[row : row + 1])
    return token


def _sample_wide(mass: Tensor, top_p: float, uniform: Tensor) -> Tensor:
    """As `_sample` where the nucleus is wider than the short list; mass (vocabulary,).

    All tokens below (1 - top_p) / vocabulary of the whole are together too light to reach into the nucleus: they need not be sorted.
    """
    whole = mass.sum()
    index = (mass >= (1 - top_p) * whole / len(mass)).nonzero().squeeze(1)
    order = index[mass[index].argsort(descending=True, stable=True)]
    return order[invert(_nucleus(mass[order].unsqueeze(0), whole.unsqueeze(0), top_p), uniform)].squeeze(0)


def _nucleus(mass: Tensor, whole: Tensor, top_p: float) -> Tensor:
    """Zero what lies behind the smallest set of mass >= top_p (Holtzman et al. 2020); rows sorted descending."""
    if top_p == 1:
        return mass
    before = mass.cumsum(-1) - mass
    return mass.masked_fill(before >= top_p * whole.unsqueeze(-1), 0)


@dataclass
class _Batch:
    """Rows that are still being decoded."""

    rows: Tensor  # index into the caller's prompts
    padding: Tensor  # (rows,) columns of left padding
    mask: Tensor  # (rows, columns) additive
    token: Tensor


class Decoder:
    """Decodes with one model, by its own forward pass or by `lean`, which has its own `head` (hidden states to logits) as well."""

    def __init__(self, model: Any, device: torch.device, ends: list[int], lean: Any = None, note: Note = unheard) -> None:
        self.body, self.head = (lean, lean.head) if lean else (model.base_model, model.get_output_embeddings())
        self.note = note
        self.layers, self.dtype, self.device = int(model.config.num_hidden_layers), model.dtype, device
        self.ends = torch.tensor(ends, device=device)

    @torch.inference_mode()
    def generate(
        self,
        prompts: list[list[int]],
        settings: Generate,
        uniforms: NDArray[np.float64],
        progress: Progress = silent,
        limits: list[int] | None = None,
    ) -> list[Generation]:
        """One response per prompt; see LanguageModel.generate."""
        most = np.minimum(settings.max_new_tokens, limits if limits is not None else [settings.max_new_tokens] * len(prompts))
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        out: list[Generation | None] = [None] * len(prompts)

        def decode(rows: list[int]) -> None:
            done = sum(generation is not None for generation in out)

            def report(finished: int) -> None:
                progress(done + finished, len(order))

            found = self._decode([prompts[i] for i in rows], settings, uniforms[rows], torch.from_numpy(most[rows]), report)
            for row, generation in zip(rows, found, strict=True):
                out[row] = generation

        memory = Halving("generating", self.note)
        for start in range(0, len(order), settings.batch_size):
            memory.do(order[start : start + settings.batch_size], decode)
        return [generation for generation in out if generation is not None]

    def _decode(
        self, prompts: list[list[int]], settings: Generate, uniforms: NDArray[np.float64], length: Tensor, report: Any
    ) -> list[Generation]:
        """`length`: the most tokens of each response, which becomes how many it has."""
        limit, count = int(length.max()), len(prompts)
        tokens = torch.zeros((count, limit), dtype=torch.long)
        logprob, entropy = torch.zeros((count, limit)), torch.zeros((count, limit))
        ended = torch.zeros(count, dtype=torch.bool)
        noise = torch.from_numpy(uniforms).to(self.device, exact_type(self.device))
        cache, batch, hidden = self._prefill(prompts)
        for step in range(limit):
            token, lp, ent = choose(self.head(hidden), settings, noise[batch.rows, step])
            rows = batch.rows.cpu()
            tokens[rows, step], logprob[rows, step], entropy[rows, step] = token.cpu(), lp.cpu(), ent.cpu()
            stop = rows[torch.isin(token, self.ends).cpu() & (length[rows] > step)]
            ended[stop] = True
            length[stop] = step
            batch.token = token
            left = length > step + 1
            report(count - int(left.sum()))
            if not bool(left.any()):
                break
            alive = left[rows].to(self.device)
            if int(alive.sum()) <= COMPACT_BELOW * len(rows):
                keep = alive.nonzero().squeeze(1)
                cache.select(keep)
                batch = _Batch(batch.rows[keep], batch.padding[keep], batch.mask[keep], token[keep])
            hidden = self._step(cache, batch)
        return [
            Generation(
                ids=tokens[i, : length[i]].tolist(),
                ended=bool(ended[i]),
                logprob=logprob[i, : length[i]].numpy().copy(),
                entropy=entropy[i, : length[i]].numpy().copy(),
            )
            for i in range(count)
        ]

    def _prefill(self, prompts: list[list[int]]) -> tuple[PreallocatedCache, _Batch, Tensor]:
        """Run the prompts: what they share once, then the rest, padded between the two. Returns the last hidden state of each."""
        count, skip = len(prompts), shared_tokens(prompts)
        cache = PreallocatedCache(self.layers)
        if skip:
            self._forward(cache, torch.tensor([prompts[0][:skip]], device=self.device), torch.arange(skip, device=self.device)[None], None)
            cache.spread(count)
        longest = max(map(len, prompts))
        ids = torch.zeros((count, longest - skip), dtype=torch.long)
        for i, prompt in enumerate(prompts):
            ids[i, longest - len(prompt) :] = torch.tensor(prompt[skip:])
        padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=self.device)
        column = torch.arange(cache.room(longest - skip), device=self.device)
        hidden_columns = (column >= skip) & (column < skip + padding.unsqueeze(1))
        floor = torch.finfo(self.dtype).min
        mask = torch.zeros(hidden_columns.shape, dtype=self.dtype, device=self.device)
        mask.masked_fill_(hidden_columns, floor)
        later = column > torch.arange(skip, longest, device=self.device).unsqueeze(1)
        positions = (column[skip:longest] - padding.unsqueeze(1)).clamp(min=0)
        hidden = self._forward(cache, ids.to(self.device), positions, mask[:, None, None, :].masked_fill(later, floor))
        mask[:, longest:] = floor
        return cache, _Batch(torch.arange(count, device=self.device), padding, mask, ids[:, -1]), hidden

    def _step(self, cache: PreallocatedCache, batch: _Batch) -> Tensor:
        """Run the newest token of each sequence."""
        short = cache.room(1) - batch.mask.shape[1]
        if short > 0:
            batch.mask = functional.pad(batch.mask, (0, short), value=torch.finfo(batch.mask.dtype).min)
        batch.mask[:, cache.column] = 0
        return self._forward(cache, batch.token.unsqueeze(1), (cache.column - batch.padding).unsqueeze(1), batch.mask[:, None, None, :])

    def _forward(self, cache: PreallocatedCache, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:  # causal over the room that the cache hands out
            column = torch.arange(cache.room(ids.shape[1]), device=self.device)
            mask = torch.zeros((1, 1, ids.shape[1], len(column)), dtype=self.dtype, device=self.device)
            mask.masked_fill_(column > column[: ids.shape[1]].unsqueeze(1), torch.finfo(mask.dtype).min)
        out = self.body(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        cache.column += ids.shape[1]
        hidden: Tensor = out.last_hidden_state[:, -1]
        return hidden
