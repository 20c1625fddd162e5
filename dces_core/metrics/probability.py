"""Metrics of real text from teacher-forced scores: every figure is token-weighted, never a mean of batch means."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dces_core.metrics.value import Z_95, Value, defined, mean, undefined

if TYPE_CHECKING:
    from dces_core.engines.base import TokenScores

ECE_BINS = 15
ENTROPY_BIN, ENTROPY_BINS = 0.5, 24  # nats; width and number of the bins of an entropy histogram
HEAD, MIDDLE, TAIL = 0, 1, 2
BINS = ("head", "middle", "tail")
BIN_MASS = (0.5, 0.9)  # head: the types that cover the first 50% of all tokens; middle: up to 90%; tail: the rest
TOP_K = (1, 10, 100)
NO_TOKENS = "no target tokens"


def perplexity_values(scores: TokenScores) -> dict[str, Value]:
    """`loss` (nats per token), `ppl` = exp(loss) and `accuracy`, with document-clustered 95% intervals (ppl: log scale).

    n is the number of target tokens. The standard error is the ratio estimator's over documents, because tokens
    of one text are not independent; one document alone gives no interval.
    """
    loss = _clustered_mean(-scores.logprob, scores.example)
    accuracy = _clustered_mean(scores.correct, scores.example)
    if accuracy.low is not None and accuracy.high is not None:
        accuracy = replace(accuracy, low=max(0.0, accuracy.low), high=min(1.0, accuracy.high))
    return {"loss": loss, "ppl": _exponential(loss), "accuracy": accuracy}


def _clustered_mean(values: ArrayLike, cluster: NDArray[np.int64]) -> Value:
    """Mean over all values; 95% interval by the ratio estimator over clusters."""
    array = np.asarray(values, dtype=np.float64)
    point = mean(array, NO_TOKENS)
    _, index = np.unique(cluster, return_inverse=True)
    total, count = np.bincount(index, weights=array), np.bincount(index)
    clusters = len(count)
    if point.value is None or clusters < 2:
        return point
    spread = np.sum((total - point.value * count) ** 2) * clusters / (clusters - 1)
    half = Z_95 * float(np.sqrt(spread)) / point.n
    return defined(point.value, point.n, point.value - half, point.value + half)


def perplexity(logprob: ArrayLike, missing: str = NO_TOKENS) -> Value:
    """exp(-mean log-probability) over all tokens given (nats); n is their number."""
    return _exponential(mean(-np.asarray(logprob, dtype=np.float64), missing))


def _exponential(of: Value) -> Value:
    if of.value is None:
        return of
    with np.errstate(over="ignore"):
        low, high = (None if end is None else float(np.exp(end)) for end in (of.low, of.high))
        return defined(float(np.exp(of.value)), of.n, low, high)


@dataclass(frozen=True)
class Reliability:
    """Per-bin sums of the reliability diagram: 15 equal-width bins (lower, upper] of confidence (Guo et al. 2017)."""

    n: NDArray[np.int64]
    confidence_sum: NDArray[np.float64]
    correct_sum: NDArray[np.float64]

    def rows(self, test_set: str) -> list[dict[str, Any]]:
        """Rows of records.RELIABILITY, empty bins included."""
        sums = zip(self.n.tolist(), self.confidence_sum.tolist(), self.correct_sum.tolist(), strict=True)
        return [
            {"test_set": test_set, "bin": index, "n": n, "confidence_sum": confidence, "correct_sum": correct}
            for index, (n, confidence, correct) in enumerate(sums)
        ]


def reliability(confidence: ArrayLike, correct: ArrayLike) -> Reliability:
    """Sums per confidence bin; tokens whose confidence is not finite are left out."""
    level, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    known = np.isfinite(level)
    level, right = level[known], right[known]
    index = np.clip(np.ceil(level * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
    return Reliability(
        np.bincount(index, minlength=ECE_BINS),
        np.bincount(index, weights=level, minlength=ECE_BINS).astype(np.float64),
        np.bincount(index, weights=right, minlength=ECE_BINS).astype(np.float64),
    )


def calibration_values(bins: Reliability) -> dict[str, Value]:
    """`ece` = sum n_b/n * |acc_b - conf_b|, `ece_signed` = mean confidence - accuracy (> 0: over-confident)."""
    n = int(bins.n.sum())
    if not n:
        return {name: undefined("no target tokens with a finite confidence") for name in ("ece", "ece_signed")}
    gap = bins.confidence_sum - bins.correct_sum
    return {"ece": defined(float(np.abs(gap).sum()) / n, n), "ece_signed": defined(float(gap.sum()) / n, n)}


def frequency_bins(counts: NDArray[np.int64]) -> NDArray[np.int8]:
    """(types,) counts in the real training split -> (types,) bin: 0 head (first 50% of mass), 1 middle (to 90%), 2 tail.

    The type that crosses a limit still belongs to the more frequent bin; equal counts are ordered by index;
    a type that never occurs is tail.
    """
    order = np.argsort(-counts, kind="stable")
    ordered = counts[order]
    before = np.cumsum(ordered) - ordered  # tokens of all more frequent types
    total = int(ordered.sum())
    bins = np.full(len(counts), TAIL, dtype=np.int8)
    middle, head = before < BIN_MASS[1] * total, before < BIN_MASS[0] * total
    bins[order[middle & (ordered > 0)]] = MIDDLE
    bins[order[head & (ordered > 0)]] = HEAD
    return bins


def tail_nll_values(scores: TokenScores, bins: NDArray[np.int8]) -> dict[str, Value]:
    """`tail_nll_head`, `_middle`, `_tail`: mean nll in nats by the frequency bin of the target token."""
    assert not scores.target.size or int(scores.target.max()) < len(bins), "frequency bins must cover the vocabulary"
    bin_of = bins[scores.target]
    return {
        f"tail_nll_{name}": mean(-scores.logprob[bin_of == index], f"no target tokens in the {name} bin") for index, name in enumerate(BINS)
    }


def spread_values(scores: TokenScores) -> dict[str, Value]:
    """`entropy_real` (nats), `effective_vocabulary` = exp(mean entropy), `topk_mass_1`, `_10`, `_100`."""
    entropy = mean(scores.entropy, NO_TOKENS)
    masses = {f"topk_mass_{k}": mean(scores.mass[:, column], NO_TOKENS) for column, k in enumerate(TOP_K)}
    return {"entropy_real": entropy, "effective_vocabulary": _exponential(entropy), **masses}


def entropy_histogram(entropy: NDArray[np.float32], test_set: str) -> list[dict[str, Any]]:
    """Tokens by their entropy, as records.ENTROPY rows: bins of ENTROPY_BIN nats, the last one open upwards, empty ones left out.

    What is not finite is in no bin.
    """
    entropy = entropy[np.isfinite(entropy)]
    bins = np.minimum(entropy / ENTROPY_BIN, ENTROPY_BINS - 1).astype(np.int64)
    return [{"test_set": test_set, "bin": int(bin_), "n": int(n)} for bin_, n in zip(*np.unique(bins, return_counts=True), strict=True)]


def gain_kept(ppl_base: float | None, ppl_t: float | None, ppl_0: float | None, n: int) -> Value:
    """(ppl_base - ppl_t) / (ppl_base - ppl_0): how much of round 0's gain over the base model is left; n target tokens.

    1 for a model that stands still, undefined where round 0 gained nothing (`train.round0 = asis`).
    """
    if ppl_base is None or ppl_t is None or ppl_0 is None:
        absent = "the base model" if ppl_base is None else "this round" if ppl_t is None else "round 0"
        return undefined(f"no perplexity of {absent}", n)
    if not ppl_base > ppl_0:
        return undefined(f"round 0 gained nothing over the base model (perplexity {ppl_base:.4g} -> {ppl_0:.4g})", n)
    return defined((ppl_base - ppl_t) / (ppl_base - ppl_0), n)
