"""SemDeDup (Abbas et al. 2023, arXiv 2303.09540): semantic near-duplicates inside clusters, cut to a budget."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dces_core.stages.cluster import SAME, Floats

CHUNK = 1024  # rows of a cluster whose similarities are held at once


def nearest_earlier(x: Floats, labels: NDArray[Any], distance: NDArray[Any]) -> NDArray[np.float64]:
    """(n,) largest cosine of each of n unit rows to any EARLIER row of its cluster; -inf for the first row of a cluster.

    Inside a cluster the row farthest from the centroid comes first (ties: the earlier row). Whether an earlier row was
    itself removed plays no part. Zero rows (empty texts) are duplicates of each other and of nothing else.
    """
    zero = np.asarray(~x.any(axis=1))
    out = np.full(len(x), -np.inf)
    order = np.lexsort((-np.asarray(distance, np.float64), labels))
    for group in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        for start in range(0, len(group), CHUNK):
            rows, earlier = group[start : start + CHUNK], group[: start + CHUNK]
            similar = x[rows] @ x[earlier].T + np.outer(zero[rows], zero[earlier])
            similar[np.arange(len(earlier)) >= start + np.arange(len(rows))[:, None]] = -np.inf
            out[rows] = similar.max(axis=1)
    out[out > 1.0 - SAME] = 1.0
    return out


def survivors(nearest: NDArray[np.float64], eps: float) -> NDArray[np.bool_]:
    """(n,) rows that SemDeDup keeps: those whose largest cosine to an earlier row does not exceed 1 - eps."""
    return nearest <= 1.0 - eps


def budget_eps(nearest: NDArray[np.float64], n: int) -> tuple[float, str]:
    """The eps that leaves exactly `n` rows, as bisection would find it, and what there is to say about it.

    Removed rows still remove others, so the survivors at eps are the rows below a threshold, and the eps lies between two
    neighbours of the sorted cosines. Where these are equal no eps leaves exactly `n`: the one returned leaves more.
    """
    if n >= len(nearest):
        return 0.0, "eps = 0: nothing had to be removed"
    ordered = np.maximum(np.sort(nearest), -1.0)
    kept, removed = ordered[n - 1 : n + 1]
    eps = float(1.0 - (kept + removed) / 2)
    said = f"eps = {eps:.4f}: removed where the cosine to an earlier sample of the cluster exceeds {1 - eps:.4f}"
    if kept < removed:
        return eps, said
    tied, surplus = int((ordered == kept).sum()), int((ordered <= kept).sum()) - n
    what = "exact duplicates" if kept == 1.0 else "first samples of a cluster" if kept == -1.0 else "samples of equal cosine"
    return eps, f"{said}; no eps leaves exactly {n}: of {tied} {what} the last {surplus} were removed"
