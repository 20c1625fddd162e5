"""Teacher-forced passes: scores, divergence, and tokens drawn in the place of others. Logits exist for response positions only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from dces_core.config import Edit
from dces_core.engines.base import Example, Floats, Proposal, TokenScores, silent, unheard
from dces_core.engines.decode import CACHED_ROWS, exact_type, invert, shared_tokens, top_of
from dces_core.engines.memory import Halving
from dces_core.events import Note, Progress

BATCH_TOKENS = 4096
CHUNK_TOKENS = 128
MASS_AT = (1, 10, 100)
Key = tuple[tuple[int, ...], ...]


def batches(examples: list[Example], budget_tokens: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Indices of examples in batches of similar length, at most `budget_tokens` after padding."""
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i].prompt) + len(examples[i].response), i))
    batch: list[int] = []
    for index in order:
        width = len(examples[index].prompt) + len(examples[index].response)
        if batch and width * (len(batch) + 1) > budget_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def pad(examples: list[Example], skip: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded ids (rows, columns) without the first `skip` tokens, the attention mask over all tokens, and the (tokens, 2)
    positions whose hidden state predicts a response token.
    """
    rows = [example.prompt[skip:] + example.response for example in examples]
    ids = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.long)
    mask = torch.zeros((len(rows), skip + ids.shape[1]), dtype=torch.long)
    where = []
    for i, (row, example) in enumerate(zip(rows, examples, strict=True)):
        assert len(example.prompt) > skip, "a response needs at least one token of context"
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : skip + len(row)] = 1
        columns = torch.arange(len(example.prompt) - skip - 1, len(row) - 1)
        where.append(torch.stack([torch.full_like(columns, i), columns], dim=1))
    return ids.to(device), mask.to(device), torch.cat(where).to(device)


def response_states(body: torch.nn.Module, examples: list[Example], device: torch.device, share: bool = True) -> Tensor:
    """Hidden states (tokens, width) that predict the response tokens of these examples, in their order; differentiable.

    What all prompts share is computed once and its keys and values are handed to every row; not so where `share` is False.
    """
    skip = shared_tokens([example.prompt for example in examples]) if share else 0
    ids, mask, where = pad(examples, skip, device)
    cache = None
    if skip:
        cache = DynamicCache()
        body(input_ids=torch.tensor([examples[0].prompt[:skip]], device=device), past_key_values=cache, use_cache=True)
        layers: Any = cache.layers
        for layer in layers:
            layer.keys = layer.keys.expand(len(examples), -1, -1, -1)
            layer.values = layer.values.expand(len(examples), -1, -1, -1)
    positions = torch.arange(skip, mask.shape[1], device=device).expand(len(examples), -1)
    out = body(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=skip > 0)
    chosen: Tensor = out.last_hidden_state[where[:, 0], where[:, 1]]
    return chosen


class Teacher:
    """Scores with one model, by its own forward pass or by `lean`, which has its own `head` and `response_states`."""

    def __init__(self, body: torch.nn.Module, head: Any, device: torch.device, lean: Any = None, note: Note = unheard) -> None:
        self.body, self.head, self.device, self.lean, self.note = body, lean.head if lean else head, device, lean, note

    def hidden(self, examples: list[Example]) -> Tensor:
        """Hidden states (tokens, width) that predict the response tokens of these examples, in their order."""
        if self.lean:
            found: Tensor = self.lean.response_states(examples)
            return found
        return response_states(self.body, examples, self.device)

    def logits(self, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """fp32 logits (tokens, vocabulary), some rows at a time; one empty part where there are no tokens.

        The product takes CHUNK_TOKENS rows; what is then done to them reads the cache where they come few at a time.
        """
        size = CACHED_ROWS if self.device.type == "cpu" else CHUNK_TOKENS
        for start in range(0, max(1, len(hidden)), CHUNK_TOKENS):
            chunk = self.head(hidden[start : start + CHUNK_TOKENS])
            for first in range(0, max(1, len(chunk)), size):
                rows = chunk[first : first + size]
                yield slice(start + first, start + first + len(rows)), rows.float()

    @torch.inference_mode()
    def score(self, examples: list[Example], progress: Progress = silent) -> TokenScores:
        """See LanguageModel.score."""
        scores = _empty_scores(examples)
        starts = np.cumsum([0, *(len(example.response) for example in examples)])
        done = 0

        def work(batch: list[int]) -> None:
            nonlocal done
            chosen = [examples[i] for i in batch]
            places = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in batch])
            target = torch.from_numpy(scores.target[places]).to(self.device)
            columns = _concat(_score_chunk(logits, target[part]) for part, logits in self.logits(self.hidden(chosen)))
            for name, values in columns.items():
                getattr(scores, name)[places] = values
            done += len(batch)
            progress(done, len(examples))

        self.each(examples, work)
        return scores

    def each(self, examples: list[Example], work: Callable[[list[int]], None]) -> None:
        """`work` on every batch of examples."""
        memory = Halving("scoring", self.note)
        for batch in batches(examples):
            memory.do(batch, work)

    @torch.inference_mode()
    def next_tokens(self, prompts: list[list[int]], k: int) -> list[list[tuple[int, float]]]:
        """See LanguageModel.next_tokens."""
        out: list[list[tuple[int, float]]] = [[] for _ in prompts]
        examples = [Example(prompt, [0]) for prompt in prompts]  # a response of any one token: what predicts it is asked for

        def work(batch: list[int]) -> None:
            for part, logits in self.logits(self.hidden([examples[i] for i in batch])):
                likeliest = logits.softmax(-1).topk(min(k, logits.shape[1]))
                for i, ids, mass in zip(batch[part], likeliest.indices.tolist(), likeliest.values.tolist(), strict=True):
                    out[i] = list(zip(ids, mass, strict=True))

        self.each(examples, work)
        return out

    @torch.inference_mode()
    def resample(self, examples: list[Example], settings: Edit, temperature: float, uniforms: list[NDArray[np.float64]]) -> list[Proposal]:
        """See LanguageModel.resample."""
        out: list[Proposal | None] = [None] * len(examples)

        def work(batch: list[int]) -> None:
            chosen = [examples[i] for i in batch]
            target = torch.tensor([token for example in chosen for token in example.response], dtype=torch.long, device=self.device)
            noise = torch.from_numpy(np.concatenate([uniforms[i] for i in batch])).to(self.device, exact_type(self.device))
            columns = _concat(
                _draw_chunk(logits, target[part], noise[part], settings, temperature) for part, logits in self.logits(self.hidden(chosen))
            )
            ends = np.cumsum([len(example.response) for example in chosen])[:-1]
            for i, p, drawn in zip(batch, np.split(columns["probability"], ends), np.split(columns["drawn"], ends), strict=True):
                out[i] = Proposal(p, drawn)

        self.each(examples, work)
        return [proposal for proposal in out if proposal is not None]


@torch.inference_mode()
def divergence(frozen: Teacher, current: Teacher, examples: list[Example], cache: dict[Key, Tensor] | None = None) -> Floats:
    """KL(frozen || current) per response token, in the order of `examples`.

    `cache` keeps the hidden states of the frozen model, which is asked about the same examples in every round.
    """
    cache = {} if cache is None else cache
    out: list[Floats] = [np.zeros(0, np.float32)] * len(examples)

    def work(batch: list[int]) -> None:
        chosen = [examples[i] for i in batch]
        key = tuple((*example.prompt, -1, *example.response) for example in chosen)
        if key not in cache:
            cache[key] = frozen.hidden(chosen)
        pairs = zip(frozen.logits(cache[key]), current.logits(current.hidden(chosen)), strict=True)
        kl = []
        for (_, left), (_, right) in pairs:
            p, q = left.log_softmax(-1), right.log_softmax(-1)
            kl.append((p.exp() * (p - q)).sum(-1).clamp(min=0).cpu().numpy())
        ends = np.cumsum([len(example.response) for example in chosen])[:-1]
        for i, piece in zip(batch, np.split(np.concatenate(kl), ends), strict=True):
            out[i] = piece

    current.each(examples, work)
    return np.concatenate(out) if out else np.zeros(0, np.float32)


def _score_chunk(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    peak, best = logits.max(-1)
    shifted = logits - peak.unsqueeze(1)
    weights = shifted.exp()
    total = weights.sum(-1)
    top, _ = top_of(shifted, MASS_AT[-1])
    cumulative = top.exp().cumsum(-1) / total.unsqueeze(1)
    last = cumulative.shape[1] - 1
    return {
        "logprob": shifted.gather(1, target.unsqueeze(1)).squeeze(1) - total.log(),
        "entropy": total.log() - torch.linalg.vecdot(weights, shifted) / total,
        "confidence": 1 / total,
        "correct": best == target,
        "mass": torch.stack([cumulative[:, min(k - 1, last)] for k in MASS_AT], dim=1),
    }


def _draw_chunk(logits: Tensor, target: Tensor, noise: Tensor, settings: Edit, temperature: float) -> dict[str, Tensor]:
    shifted = logits - logits.amax(-1, keepdim=True)
    weights = shifted.exp()
    probability = weights.gather(1, target.unsqueeze(1)).squeeze(1) / weights.sum(-1)
    if settings.exclude_original:
        shifted = shifted.scatter(1, target.unsqueeze(1), -torch.inf)
    if settings.top_k:
        top, index = torch.topk(shifted, min(settings.top_k, shifted.shape[1]), dim=-1)
        drawn = index.gather(1, invert((top / temperature).exp(), noise).unsqueeze(1)).squeeze(1)
    else:
        drawn = invert((shifted / temperature).exp(), noise)
    return {"probability": probability, "drawn": drawn}


def _concat(chunks: Iterator[dict[str, Tensor]]) -> dict[str, NDArray[np.generic]]:
    found = list(chunks)
    return {name: torch.cat([chunk[name] for chunk in found]).cpu().numpy() for name in found[0]}


def _empty_scores(examples: list[Example]) -> TokenScores:
    """Room for the scores of all tokens: made once, so that nothing small is left between what a batch needs and gives back."""
    counts = [len(example.response) for example in examples]
    n = sum(counts)
    return TokenScores(
        example=np.repeat(np.arange(len(examples), dtype=np.int64), counts),
        target=np.array([token for example in examples for token in example.response], dtype=np.int64),
        logprob=np.zeros(n, np.float32),
        entropy=np.zeros(n, np.float32),
        confidence=np.zeros(n, np.float32),
        correct=np.zeros(n, np.bool_),
        mass=np.zeros((n, len(MASS_AT)), np.float32),
    )
