"""Counting inside groups, vectorised: the split, the pick and the edit all need it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def position_within(groups: NDArray[Any], *keys: NDArray[Any]) -> NDArray[np.int64]:
    """0-based position of each of n rows inside its group, ordered by `keys` (the first one decides), then by row.

    All arrays are (n,). NaN keys come last.
    """
    order = np.lexsort((*reversed(keys), groups))
    ordered = groups[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))) if len(order) else np.zeros(0, np.int64)
    sizes = np.diff(np.append(starts, len(order)))
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order)) - np.repeat(starts, sizes)
    return position


def apportion(shares: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Whole numbers that add up to `total`, each within one of its share (largest remainder; ties go to the first).

    `shares` (k,) are not negative and add up to `total` within one half.
    """
    whole = np.floor(shares + 1e-9).astype(np.int64)
    missing = total - int(whole.sum())
    first = np.argsort(-(shares - whole), kind="stable")
    whole[first[:missing]] += 1
    return whole
