"""Common random numbers: every stage draws from (seed, round, stage), the same for all arms.

Never from the arm, the run id, a path, or what ran before: that is why an interrupted run equals an
uninterrupted one, and why two arms that generate for the same prompts see the same sampling noise.
"""

from __future__ import annotations

import hashlib

import numpy as np


def seed_for(seed: int, round_: int, stage: str) -> int:
    """A 63-bit seed for one stage of one round."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{round_}/{stage}".encode()).digest()[:8], "big") >> 1


def rng_for(seed: int, round_: int, stage: str) -> np.random.Generator:
    """A NumPy generator seeded by `seed_for`."""
    return np.random.default_rng(seed_for(seed, round_, stage))
