"""Selection from a large pool: gate, cluster, split, control, filter, pick."""

from __future__ import annotations

import time
from statistics import median

import numpy as np
from numpy.typing import NDArray

from dces_core.bench import pools
from dces_core.bench.clock import PeakMemory
from dces_core.bench.plan import Plan
from dces_core.bench.rows import Row
from dces_core.stages.select import select


def large(plan: Plan) -> list[Row]:
    """Selection from plan.rows samples against scikit-learn's k-means of the same rows: seconds, peak memory, inertia."""
    rows = pools.clustered_rows(plan.rows, plan.dimensions)
    given = pools.inputs(rows, pools.pool(plan.rows), plan.clusters)
    seconds = []
    with PeakMemory() as memory:
        for _ in range(plan.repeats):
            started = time.perf_counter()
            found = select(given)
            seconds.append(time.perf_counter() - started)
    members = rows[found.clustered]  # those that passed the gate
    labels, fitted_s = _scikit(members, plan)
    ours, peer = inertia(members, found.clustering.labels), inertia(members, labels)
    ours_s, gigabytes = median(seconds), memory.peak_bytes / 1e9
    return [
        Row("select-1m", ours_s, fitted_s, fitted_s / ours_s, "s", plan.rows * plan.repeats,
            "ours: the whole selection; peer: KMeans.fit alone, timed once"),
        Row("select-1m-memory", gigabytes, None, None, "GB", plan.rows, "peak of the process, embeddings and texts included"),
        Row("select-1m-inertia", ours, peer, ours / peer, "", len(members),
            f"k = {plan.clusters}; squared distances to the means of the labels, of the rows that passed the gate"),
    ]  # fmt: skip


def inertia(rows: pools.Floats, labels: NDArray[np.int32]) -> float:
    """Sum of squared distances of (n, d) unit rows to the mean of their label, in float64: n - sum of |sum of rows|^2 / size."""
    sums = np.zeros((int(labels.max()) + 1, rows.shape[1]))
    for start in range(0, len(rows), pools.PART):
        part = slice(start, start + pools.PART)
        order = np.argsort(labels[part], kind="stable")
        ordered = labels[part][order]
        first = np.flatnonzero(np.diff(ordered, prepend=-1))
        sums[ordered[first]] += np.add.reduceat(rows[part][order].astype(np.float64), first)
    sizes = np.maximum(np.bincount(labels), 1)
    return float(len(rows) - (np.einsum("ij,ij->i", sums, sums) / sizes).sum())


def _scikit(rows: pools.Floats, plan: Plan) -> tuple[NDArray[np.int32], float]:
    """Labels and seconds of scikit-learn's k-means: k-means++, one start, as many iterations as ours may do."""
    import warnings

    from sklearn.cluster import KMeans

    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says when the iterations did not suffice
        found = KMeans(plan.clusters, n_init=1, max_iter=plan.iterations, random_state=0, copy_x=False).fit(rows)
    return found.labels_, time.perf_counter() - started
