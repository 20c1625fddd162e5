"""Synthetic pools of any size: clustered embeddings, and texts that differ."""

from __future__ import annotations

from itertools import cycle, islice

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dces_core import data
from dces_core.arms import ARMS
from dces_core.config import parse
from dces_core.stages.control import Reference, Spread
from dces_core.stages.select import SelectInputs

Floats = NDArray[np.float32]
TOPICS = 400  # directions that the rows scatter around, of unequal size
SCATTER = 1.2  # length of the noise, of a direction's
PART = 50_000
FILTERED = -3.0  # quality limit, nats: about one edge sample in a hundred is below
LOOP = " It is so. It is so. It is so. It is so."


def clustered_rows(n: int, dimensions: int, seed: int = 0) -> Floats:
    """(n, dimensions) unit rows around TOPICS random directions, topic sizes falling as 1/rank."""
    rng = np.random.default_rng(seed)
    topics = rng.standard_normal((TOPICS, dimensions), dtype=np.float32)
    topics /= np.linalg.norm(topics, axis=1, keepdims=True)
    shares = 1 / np.arange(1, TOPICS + 1)
    out = np.empty((n, dimensions), np.float32)
    for start in range(0, n, PART):
        part = out[start : start + PART]
        rng.standard_normal(part.shape, dtype=np.float32, out=part)
        part *= np.float32(SCATTER / dimensions**0.5)
        part += topics[rng.choice(TOPICS, len(part), p=shares / shares.sum())]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return out


def texts(n: int) -> list[str]:
    """`n` different texts: the references of the shipped training split with a number behind; one in fifty ends in a loop."""
    references = [pair.reference for pair in data.load_train(parse({})).pairs]
    return [f"{text} {i}{LOOP if i % 50 == 0 else ''}" for i, text in enumerate(islice(cycle(references), n))]


def pool(n: int) -> pl.DataFrame:
    """What selection reads of `n` samples."""
    rng = np.random.default_rng(1)
    index = pl.Series(range(n)).cast(pl.String)
    return pl.DataFrame({"id": "r01-" + index, "prompt_id": "p" + index, "text": texts(n)}).with_columns(
        pl.lit("topic").alias("topic"),
        pl.lit("What is it?").alias("prompt"),
        pl.lit(48).alias("tokens"),
        pl.lit(True).alias("ended"),
        pl.Series("logprob", -1 - rng.random(n)),
        pl.Series("entropy", 1.5 + rng.random(n)),
    )


def inputs(rows: Floats, frame: pl.DataFrame, clusters: int) -> SelectInputs:
    """Selection of half of a pool by arm dces with k-means. M_0's log-probabilities are given: no model takes part."""
    spreads = {"dispersion": Spread(0.6, 0.01), "entropy": Spread(2.0, 0.05), "logprob": Spread(-1.5, 0.05)}
    frozen = np.random.default_rng(2).normal(-1.5, 0.65, len(rows))
    settings = {"pool": {"n": max(2, len(rows) // 2)}, "cluster": {"clusterer": "kmeans", "k": clusters}}
    return SelectInputs(ARMS["dces"], parse(settings), 1, frame, rows, lambda chosen: frozen[chosen], Reference(spreads, spreads, FILTERED))
