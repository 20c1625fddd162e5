"""Token-level editing: single tokens in one pass over the ORIGINAL ones (ToEdit, arXiv 2412.14689), or the end of a response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dces_core.config import Edit, Generate
from dces_core.engines.base import Example, LanguageModel, Soft
from dces_core.records import SAMPLES
from dces_core.stages.groups import position_within

Mode = Literal["text", "targets"]


@dataclass(frozen=True)
class EditResult:
    """What editing did to each of n samples."""

    examples: list[Example]  # text mode: another response; targets mode: labels or soft targets beside it
    edits: list[list[dict[str, object]]]  # per sample: position, before, after (pieces as written)
    flagged: NDArray[np.int32]  # (n,) tokens that editing chose
    changed: NDArray[np.int32]  # (n,) tokens, or targets, that differ afterwards


def edit(
    engine: LanguageModel,
    examples: list[Example],
    settings: Edit,
    mode: Mode,
    decoding: Generate,
    temperature: float,
    seed: int,
    keys: Sequence[int],
) -> EditResult:
    """Edit responses as `settings` and `mode` say; `decoding`: how the pool was sampled, for the token limit."""
    if mode == "text" and settings.unit == "suffix":
        return rewrite_ends(engine, examples, settings, decoding, temperature, seed, keys)
    if mode == "targets" and settings.labels == "distribution":
        return soften_targets(engine, examples, settings, temperature, seed, keys)
    return edit_responses(engine, examples, settings, mode, temperature, seed, keys)


def edit_responses(
    engine: LanguageModel,
    examples: list[Example],
    settings: Edit,
    mode: Mode,
    temperature: float,
    seed: int,
    keys: Sequence[int] | None = None,
) -> EditResult:
    """Resample flagged tokens of each response at `temperature`.

    Flagged: probability >= settings.threshold, not the first token, at most `share` of the response's tokens, chosen at
    random. Text mode replaces the token itself: never the end token, never by a token that cannot be written, and under
    `whole_words` a continuation piece only by a continuation piece; a draw that this forbids counts as not changed.
    Targets mode changes the label of any flagged position, the end token's included, so that the draw stays one from
    the model's own distribution. `keys` number the samples for the random draws (default: 0, 1, ...): arms that edit
    the same sample use the same numbers.
    """
    if not examples:
        return EditResult([], [], np.zeros(0, np.int32), np.zeros(0, np.int32))
    uniforms = _uniforms(examples, seed, range(len(examples)) if keys is None else keys)
    proposals = engine.resample(examples, settings, temperature, [pair[1] for pair in uniforms])
    tokens = _Tokens(examples)
    before, drawn = tokens.ids, np.concatenate([proposal.drawn for proposal in proposals])
    candidate = np.concatenate([proposal.probability for proposal in proposals]) >= settings.threshold
    if mode == "text":
        candidate &= before != engine.end
    flagged = tokens.flag(candidate, settings.share if mode == "text" else settings.share_targets, uniforms)
    changed = flagged & (drawn != before)
    if mode == "text":
        changed &= _writable(engine, settings, before, drawn, changed)
    after = np.where(changed, drawn, before)
    return EditResult(
        [_edited(example, ids, mode) for example, ids in zip(examples, tokens.split(after), strict=True)],
        _differences(engine, len(examples), tokens.sample[changed], tokens.place[changed], before[changed], after[changed]),
        tokens.count(flagged),
        tokens.count(changed),
    )


def soften_targets(
    engine: LanguageModel, examples: list[Example], settings: Edit, temperature: float, seed: int, keys: Sequence[int]
) -> EditResult:
    """Flag tokens as `edit_responses` does in targets mode; each learns the distribution that a token would be drawn from. [ours]

    The expectation of the drawn label over all draws, without their noise. No text changes, so the first token may be flagged too.
    Nothing is drawn, so no edits are listed; every flagged target counts as changed.
    """
    if not examples:
        return EditResult([], [], np.zeros(0, np.int32), np.zeros(0, np.int32))
    uniforms, tokens = _uniforms(examples, seed, keys), _Tokens(examples)
    candidate = np.ones(len(tokens.ids), np.bool_)
    if settings.threshold:
        proposals = engine.resample(examples, settings, temperature, [pair[1] for pair in uniforms])
        candidate = np.concatenate([proposal.probability for proposal in proposals]) >= settings.threshold
    flagged = tokens.flag(candidate, settings.share_targets, uniforms, first=True)
    places = [np.flatnonzero(part).tolist() for part in tokens.split(flagged)]
    softened = [
        replace(example, soft=Soft(own, temperature, settings.top_k)) if own else example
        for example, own in zip(examples, places, strict=True)
    ]
    return EditResult(softened, [[] for _ in examples], tokens.count(flagged), tokens.count(flagged))


class _Tokens:
    """All response tokens of n samples, end to end."""

    def __init__(self, examples: list[Example]) -> None:
        self.lengths = np.array([len(example.response) for example in examples])
        self.sample = np.repeat(np.arange(len(examples)), self.lengths)
        self.ids = np.concatenate([np.asarray(example.response, np.int64) for example in examples])
        self.place = np.arange(len(self.ids)) - np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths)

    def flag(
        self, candidate: NDArray[np.bool_], share: float, uniforms: list[NDArray[np.float64]], first: bool = False
    ) -> NDArray[np.bool_]:
        """At most `share` of each sample's tokens, at random among the candidates; the first token only where `first`."""
        candidate = candidate & (first | (self.place > 0))
        order = position_within(self.sample, ~candidate, np.concatenate([pair[0] for pair in uniforms]))
        flagged: NDArray[np.bool_] = candidate & (order < np.floor(share * self.lengths + 1e-9)[self.sample])
        return flagged

    def split(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Values per token as values per sample."""
        return np.split(values, np.cumsum(self.lengths)[:-1])

    def count(self, chosen: NDArray[np.bool_]) -> NDArray[np.int32]:
        """(n,) chosen tokens of each sample."""
        return np.bincount(self.sample[chosen], minlength=len(self.lengths)).astype(np.int32)


def rewrite_ends(
    engine: LanguageModel, examples: list[Example], settings: Edit, decoding: Generate, temperature: float, seed: int, keys: Sequence[int]
) -> EditResult:
    """Rewrite the last `share` of each response token by token, each drawn after the edited ones before it. [ours]

    Drawn from the whole distribution of `settings.model` at `temperature` (or from its settings.top_k likeliest tokens), until the end
    token or `decoding.max_new_tokens`, so that every token fits what stands before it. The first token stays. `keys`: see `edit_responses`.
    """
    lengths = np.array([len(example.response) for example in examples], np.int64)
    flagged = np.minimum(np.floor(settings.share * lengths + 1e-9).astype(np.int64), lengths - 1).clip(min=0)
    rows = np.flatnonzero(flagged).tolist()
    kept = (lengths - flagged)[rows].tolist()
    limits = [max(1, decoding.max_new_tokens - start) for start in kept]
    noise = np.array([np.random.default_rng([seed, keys[row]]).random(decoding.max_new_tokens) for row in rows])
    prompts = [examples[row].prompt + examples[row].response[:start] for row, start in zip(rows, kept, strict=True)]
    own = {"decoding": "sample", "temperature": temperature, "top_p": 1.0, "top_k": settings.top_k}
    found = engine.generate(prompts, decoding.model_copy(update=own), noise, limits=limits, which=settings.model) if len(rows) else []
    edited, changed = list(examples), np.zeros(len(examples), np.int32)
    edits: list[list[dict[str, object]]] = [[] for _ in examples]
    for row, start, new in zip(rows, kept, found, strict=True):
        before = examples[row].response
        after = before[:start] + new.ids + [engine.end] * new.ended
        edited[row] = replace(examples[row], response=after)
        edits[row] = _replaced(engine, before, after)
        changed[row] = sum(old != token for old, token in zip_longest(before, after[: len(before)]))
    return EditResult(edited, edits, flagged.astype(np.int32), changed)


def with_edits(samples: pl.DataFrame, rows: NDArray[np.int64], result: EditResult, texts: list[str]) -> pl.DataFrame:
    """SAMPLES with flagged, changed, edits and trained_text filled in for `rows`; `texts`: the edited texts, decoded."""
    values: dict[str, list[Any]] = {
        "flagged": result.flagged.tolist(),
        "changed": result.changed.tolist(),
        "edits": result.edits,
        "trained_text": texts,
    }
    columns = []
    for name, new in values.items():
        column = samples[name].to_list()
        for row, value in zip(rows.tolist(), new, strict=True):
            column[row] = value
        columns.append(pl.Series(name, column, dtype=SAMPLES[name]))
    return samples.with_columns(columns)


def _uniforms(examples: list[Example], seed: int, keys: Sequence[int]) -> list[NDArray[np.float64]]:
    """Per sample (2, tokens) in [0, 1): one row chooses the positions, the other draws the tokens."""
    return [np.random.default_rng([seed, key]).random((2, len(example.response))) for key, example in zip(keys, examples, strict=True)]


def _writable(
    engine: LanguageModel, settings: Edit, before: NDArray[np.int64], drawn: NDArray[np.int64], changed: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Where the drawn token may stand in the text: it decodes to something and keeps words whole."""
    tokens = np.unique(drawn[changed])
    silent = tokens[[token == engine.end or not engine.decode([int(token)]) for token in tokens]]
    allowed = ~np.isin(drawn, silent)
    if settings.whole_words:
        continues = engine.continues_word()
        allowed &= ~continues[before] | continues[drawn]
    return allowed


def _edited(example: Example, ids: NDArray[np.int64], mode: Mode) -> Example:
    return replace(example, response=ids.tolist()) if mode == "text" else replace(example, labels=ids.tolist())


def _replaced(engine: LanguageModel, before: list[int], after: list[int]) -> list[dict[str, object]]:
    """Positions at which two responses differ; what stands nowhere is an empty text."""
    pairs = enumerate(zip_longest(before, after))
    return [
        {"position": i, "before": "" if old is None else engine.piece(old), "after": "" if new is None else engine.piece(new)}
        for i, (old, new) in pairs
        if old != new
    ]


def _differences(
    engine: LanguageModel,
    count: int,
    sample: NDArray[np.int64],
    place: NDArray[np.int64],
    before: NDArray[np.int64],
    after: NDArray[np.int64],
) -> list[list[dict[str, object]]]:
    piece = cache(engine.piece)
    edits: list[list[dict[str, object]]] = [[] for _ in range(count)]
    for index, position, old, new in zip(sample.tolist(), place.tolist(), before.tolist(), after.tolist(), strict=True):
        edits[index].append({"position": position, "before": piece(old), "after": piece(new)})
    return edits
