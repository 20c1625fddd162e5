"""Pools for the tests of this folder: ordinary ones and collapsed ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dces_core.arms import ARMS
from dces_core.config import RunConfig, parse
from dces_core.stages.control import Reference, Spread
from dces_core.stages.select import SelectInputs

TEXT = "Tennis and soccer both need hand-eye coordination and a lot of patience."


def unit_rows(n: int, dimensions: int = 16, seed: int = 0, distinct: int | None = None) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(distinct or n, dimensions))
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows[rng.integers(0, distinct, n) if distinct else np.arange(n)].astype(np.float32)


def make_pool(texts: list[str], logprob: list[float | None] | None = None) -> pl.DataFrame:
    n = len(texts)
    rng = np.random.default_rng(7)
    return pl.DataFrame(
        {
            "id": [f"r01-{i:06d}" for i in range(n)],
            "prompt_id": [f"p{i}" for i in range(n)],
            "topic": ["sport"] * n,
            "prompt": ["Which sports?"] * n,
            "text": texts,
            "tokens": [12] * n,
            "ended": [True] * n,
            "logprob": logprob or (-1.0 - rng.random(n)).tolist(),
            "entropy": (1.5 + rng.random(n)).tolist(),
        },
        schema_overrides={"logprob": pl.Float64},
    )


#: A loop in the middle of its range, whatever the defaults are.
LOOP: dict[str, Any] = {"edit_signal": "logprob", "a0": 0.5, "a_min": 0.2, "a_max": 0.8, "edit_kp": 0.6, "edit_ki": 0.15, "edit_t_max": 1.6}


def make_config(n: int = 20, **sections: Any) -> RunConfig:
    values: dict[str, Any] = {"cluster": {"clusterer": "kmeans"}, "split": {"center_share": 0.5}, "edit": {"temperature": 1.1}, **sections}
    return parse({"engine": "fake", "pool": {"n": n}, **values, "controller": {**LOOP, **sections.get("controller", {})}})


def reference(**overrides: Any) -> Reference:
    spreads = {"dispersion": Spread(0.6, 0.01), "entropy": Spread(2.0, 0.05), "logprob": Spread(-1.5, 0.05)}
    return Reference(**{"round0": spreads, "real": spreads, "quality_limit": None, **overrides})


def make_inputs(arm: str = "dces", pool: pl.DataFrame | None = None, config: RunConfig | None = None, **overrides: Any) -> SelectInputs:
    pool = make_pool([TEXT] * 40) if pool is None else pool
    values: dict[str, Any] = {
        "arm": ARMS[arm],
        "config": config or make_config(),
        "round_": 1,
        "pool": pool,
        "embeddings": unit_rows(len(pool)),
        "frozen_logprob": lambda rows: np.full(len(rows), -2.0),
        "reference": reference(),
    }
    return SelectInputs(**{**values, **overrides})
