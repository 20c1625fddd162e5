"""Arithmetic of the fake engine's bigram rows: drawing from them, their entropy, and a step of training."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
from numpy.typing import NDArray

from dces_core.engines.base import Ints

Doubles = NDArray[np.float64]
UNKNOWN = 2
MAX_ROW = 0.98  # largest bigram mass of a row: no probability is ever zero
RATE = 300.0  # how far one visit moves a row, per unit of learning rate
UNIGRAM_RATE = 1.0  # the same for the unigram distribution


def sample(rows: Doubles, uniforms: Doubles, temperature: float, top_k: int, top_p: float) -> Ints:
    """One token per row (n, vocabulary): temperature, then top-k, then top-p, inverted in order of probability. Never <unk>."""
    n, vocabulary = rows.shape
    key = rows * (1 - 1e-12 * np.arange(vocabulary))  # the smaller id first where probabilities are equal
    key[:, UNKNOWN] = 0
    order = np.argsort(-key, axis=1)
    if top_k:
        order = order[:, :top_k]
    weights = np.take_along_axis(key, order, axis=1) ** (1 / temperature)
    weights /= weights.sum(axis=1, keepdims=True)
    cumulative = np.cumsum(weights, axis=1)
    kept = ((cumulative - weights < top_p) & (weights > 0)).sum(axis=1)
    target = uniforms * cumulative[np.arange(n), kept - 1]
    index = np.minimum((cumulative <= target[:, None]).sum(axis=1), kept - 1)
    drawn: Ints = order[np.arange(n), index].astype(np.int64)
    return drawn


def log(rows: Doubles) -> Doubles:
    """Logarithm with log 0 = 0, for use under a factor of 0."""
    return np.log(np.where(rows > 0, rows, 1))


def entropy_of(rows: Doubles) -> Doubles:
    """Entropy of each row, nats."""
    return -(rows * log(rows)).sum(axis=1)  # type: ignore[no-any-return]


def move(rows: dict[int, tuple[Ints, Doubles]], unigram: Doubles, lefts: list[int], targets: list[int], lr: float) -> None:
    """One step, in place: each row that was met moves towards what followed there, the further the more often it was met."""
    seen: dict[int, Counter[int]] = defaultdict(Counter)
    for left, target in zip(lefts, targets, strict=True):
        seen[left][target] += 1
    for left, row in seen.items():
        old, old_mass = rows.get(left, (np.zeros(0, np.int64), np.zeros(0)))
        keep = np.exp(-RATE * lr * row.total())
        new = np.array(list(row), np.int64)
        tokens = np.union1d(old, new)
        mass = np.zeros(len(tokens))
        mass[np.searchsorted(tokens, old)] = keep * old_mass
        mass[np.searchsorted(tokens, new)] += (1 - keep) * np.array(list(row.values())) / row.total()
        rows[left] = (tokens, mass * min(1, MAX_ROW / mass.sum()))
    if targets:
        keep = np.exp(-UNIGRAM_RATE * lr * len(targets))
        unigram *= keep
        unigram += (1 - keep) * np.bincount(targets, minlength=len(unigram)) / len(targets)
