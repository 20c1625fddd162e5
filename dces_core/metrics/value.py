"""A measured value: the number, how many items it rests on, its interval, and why it is undefined where it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Z_95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Value:
    """`value` is null if and only if `reason` says why; `low` and `high` are a 95% interval over evaluation items."""

    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        assert (self.value is None) == (self.reason is not None), f"a value or a reason, not both: {self}"


def undefined(reason: str, n: int = 0) -> Value:
    """A value that does not exist, and why."""
    return Value(None, n, reason=reason)


def defined(value: float, n: int, low: float | None = None, high: float | None = None) -> Value:
    """A value; one that is not finite becomes undefined, an interval that is not finite is left out."""
    value = float(value)
    if not math.isfinite(value):
        return undefined(f"the result is not finite ({value})", n)
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return Value(value, n)
    return Value(value, n, float(low), float(high))


def mean(values: ArrayLike, missing: str) -> Value:
    """Mean of all entries, n = how many; `missing` is the reason if there are none."""
    array = np.asarray(values, dtype=np.float64)
    if not array.size:
        return undefined(missing)
    if not np.isfinite(array).all():
        return undefined(f"{np.count_nonzero(~np.isfinite(array))} of {array.size} values are not finite", array.size)
    return defined(float(array.mean()), array.size)


def rate(successes: int, n: int, missing: str) -> Value:
    """A share with Wilson's 95% score interval (Wilson 1927)."""
    if not n:
        return undefined(missing)
    share, spread = successes / n, Z_95**2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = Z_95 / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return defined(share, n, max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share)))


def rows(values: Mapping[str, Value], *, arm: str, seed: int, round_: int, test_set: str = "") -> list[dict[str, Any]]:
    """Values by metric name as rows of records.METRICS. `test_set` is empty for metrics of generated text."""
    key = {"arm": arm, "seed": seed, "round": round_, "test_set": test_set}
    return [
        {**key, "metric": name, "value": item.value, "n": item.n, "low": item.low, "high": item.high, "reason": item.reason}
        for name, item in values.items()
    ]
