"""Step 1: P samples for prompts drawn from the real training split, with what sampling knew about each of them."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dces_core.config import Generate
from dces_core.engines.base import Example, Generation, LanguageModel
from dces_core.errors import NotFinite
from dces_core.events import Progress
from dces_core.lab import Lab
from dces_core.seeds import rng_for
from dces_core.stage import Draft

BROKEN = "lower train.lr, or check the weights of the model it began with"


def draw_prompts(available: int, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(size,) indices of prompts: without repetition while there are enough, else whole shuffles one after the other."""
    whole = [rng.permutation(available) for _ in range(-(-size // available))]
    return np.concatenate(whole)[:size]


def sample(
    engine: LanguageModel, prompts: list[list[int]], settings: Generate, rng: np.random.Generator, progress: Progress
) -> list[Generation]:
    """One response per prompt; the same noise for the same generator whatever the model. Raises NotFinite."""
    found = engine.generate(prompts, settings, rng.random((len(prompts), settings.max_new_tokens)), progress)
    broken = sum(not np.isfinite(generation.logprob).all() for generation in found)
    if broken:
        raise NotFinite(f"the model's probabilities are not finite in {broken} of {len(found)} responses", BROKEN)
    return found


def as_example(engine: LanguageModel, prompt: list[int], generation: Generation) -> Example:
    """A generated response as training or scoring tokens: the end token only where the text really ended."""
    return Example(prompt, generation.ids + [engine.end] * generation.ended)


def mean_or_none(values: NDArray[np.float32]) -> float | None:
    """The mean as a plain number; None without values, and where one is not finite."""
    return float(values.astype(np.float64).mean()) if len(values) and np.isfinite(values).all() else None


def write_pool(lab: Lab, round_: int, settings: Generate, draft: Draft, progress: Progress) -> None:
    """Generate the pool of a round with the engine's current model, decoded by `settings`."""
    config, corpus = lab.config, lab.train
    rows = draw_prompts(len(corpus.pairs), config.pool.size, rng_for(config.seed, round_, "prompts"))
    pairs = [corpus.pairs[i] for i in rows]
    prompts = [lab.example(corpus, pair).prompt for pair in pairs]
    generations = sample(lab.engine, prompts, settings, rng_for(config.seed, round_, "generate"), progress)
    draft.table(
        "pool",
        pl.DataFrame(
            {
                "id": [f"r{round_:02d}-{i:06d}" for i in range(len(pairs))],
                "prompt_id": [pair.id for pair in pairs],
                "topic": [pair.topic for pair in pairs],
                "prompt": [pair.prompt or lab.engine.decode(ids) for pair, ids in zip(pairs, prompts, strict=True)],
                "text": [lab.engine.decode(generation.ids) for generation in generations],
                "tokens": [len(generation.ids) for generation in generations],
                "ended": [generation.ended for generation in generations],
                "logprob": [mean_or_none(generation.logprob) for generation in generations],
                "entropy": [mean_or_none(generation.entropy) for generation in generations],
                "prompt_ids": prompts,
                "ids": [generation.ids for generation in generations],
            },
            schema_overrides={
                "logprob": pl.Float64, "entropy": pl.Float64, "prompt_ids": pl.List(pl.Int32), "ids": pl.List(pl.Int32),
                "tokens": pl.Int32, "topic": pl.String,
            },
        ),
    )  # fmt: skip
    ended = sum(generation.ended for generation in generations)
    lab.events.note(f"round {round_}: {ended} of {len(generations)} responses ended by themselves ({ended / len(generations):.0%})")


def pool_examples(engine: LanguageModel, pool: pl.DataFrame) -> list[Example]:
    """The pool's responses as tokens, in its order."""
    rows = zip(pool["prompt_ids"].to_list(), pool["ids"].to_list(), pool["ended"].to_list(), strict=True)
    return [Example(prompt, ids + [engine.end] * ended) for prompt, ids, ended in rows]
