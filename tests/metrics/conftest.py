"""Token scores from the few arrays that a test cares about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dces_core.engines.base import TokenScores


@pytest.fixture
def token_scores() -> Callable[..., TokenScores]:
    """TokenScores of equal length; what is not given has a plain constant."""

    def build(**given: Any) -> TokenScores:
        size = len(next(iter(given.values())))
        plain = {
            "example": np.zeros,
            "target": np.zeros,
            "logprob": np.zeros,
            "entropy": np.ones,
            "confidence": np.ones,
            "correct": np.ones,
        }
        arrays = {name: np.asarray(list(given.get(name, make(size))), dtype=np.float64) for name, make in plain.items()}
        return TokenScores(
            example=arrays["example"].astype(np.int64),
            target=arrays["target"].astype(np.int64),
            logprob=arrays["logprob"].astype(np.float32),
            entropy=arrays["entropy"].astype(np.float32),
            confidence=arrays["confidence"].astype(np.float32),
            correct=arrays["correct"].astype(np.bool_),
            mass=np.asarray(given.get("mass", np.ones((size, 3))), dtype=np.float32).reshape(size, 3),
        )

    return build
