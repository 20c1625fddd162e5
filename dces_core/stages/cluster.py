"""Semantic clusters of a pool: hdbscan on a UMAP, or spherical k-means."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dces_core.config import Cluster

Floats = NDArray[np.float32]
Labels = NDArray[np.int32]

NOISE = -1
CHUNK = 8192  # rows whose similarities are held at once
SEED_ROWS = 20_000  # k-means++ looks at no more rows than this (and at 8 per centroid)
TRAIN_ROWS = 256  # per centroid: the iterations over a pool of more than SEED_ROWS look at no more rows
FINISHING = 1  # iterations over all rows after those
SAME = 1e-6  # cosine distance below which two rows count as the same


@dataclass(frozen=True)
class Clustering:
    """Clusters of n rows. `reason` says why `method` is not the one that was asked for."""

    labels: Labels  # (n,): 0..k-1, or -1 for noise
    centroids: Floats  # (k, d): normalised means of the members in the encoder's space
    method: str  # hdbscan | kmeans | none
    reason: str | None = None


def cluster(embeddings: Floats, settings: Cluster, seed: int) -> Clustering:
    """Cluster (n, d) unit rows. hdbscan gives way to spherical k-means where it cannot serve, and says why."""
    n = len(embeddings)
    if n == 0:
        return Clustering(np.zeros(0, np.int32), np.zeros((0, embeddings.shape[1]), np.float32), "none", "no sample to cluster")
    reason = None
    if settings.clusterer == "hdbscan":
        labels, reason = _density_labels(embeddings, settings, seed)
        if reason is None:
            return Clustering(labels, _centroids(embeddings, labels), "hdbscan")
    labels, centroids = spherical_kmeans(embeddings, settings.k or default_k(n), seed)
    return Clustering(labels, centroids, "kmeans", reason)


def default_k(pool: int) -> int:
    """The number of k-means clusters for a pool of P: clip(round(sqrt(P / 2)), 8, 256)."""
    return int(np.clip(round((pool / 2) ** 0.5), 8, 256))


def distances(embeddings: Floats, clustering: Clustering) -> NDArray[np.float64]:
    """(n,) cosine distance of each row to its cluster's centroid; of noise, to the nearest centroid. In [0, 2]."""
    out = np.empty(len(embeddings), np.float64)
    for part in _chunks(len(embeddings)):
        out[part] = 1.0 - np.einsum("ij,ij->i", embeddings[part], clustering.centroids[clustering.labels[part]])
    noise = clustering.labels == NOISE
    if noise.any():
        out[noise] = nearest_distance(embeddings[noise], clustering.centroids)
    return np.clip(out, 0.0, 2.0)


def nearest_distance(embeddings: Floats, centroids: Floats) -> NDArray[np.float64]:
    """(n,) cosine distance of each row to the nearest of (k, d) unit centroids. In [0, 2]."""
    out = np.empty(len(embeddings), np.float64)
    for part in _chunks(len(embeddings)):
        out[part] = 1.0 - (embeddings[part] @ centroids.T).max(axis=1)
    return np.clip(out, 0.0, 2.0)


def spherical_kmeans(x: Floats, k: int, seed: int, iterations: int = 25) -> tuple[Labels, Floats]:
    """Labels (n,) and unit centroids (k', d) of at most `k` non-empty clusters of (n, d) unit rows, by cosine.

    k' is below k where there are fewer distinct rows. Zero rows (empty texts) belong to cluster 0 and pull no centroid.
    Memory beyond `x` is O(n) plus a subset and one chunk (Dhillon and Modha 2001). In a large pool k-means++ (Arthur and Vassilvitskii
    2007) starts from a random subset, the iterations run on a larger one (as Faiss does, Johnson et al. 2017), and all rows finish.
    """
    rng = np.random.default_rng(seed)
    trials = 1 if len(x) <= SEED_ROWS else 2 + int(np.log(k))
    centroids = _plus_plus(_subset(x, max(SEED_ROWS, 8 * k), rng), k, rng, trials)
    trained_on = _subset(x, max(SEED_ROWS, TRAIN_ROWS * k), rng)
    if len(trained_on) < len(x):
        _, centroids = _iterate(trained_on, centroids, iterations)
        iterations = FINISHING
    labels, centroids = _iterate(x, centroids, iterations)
    used, compact = np.unique(labels, return_inverse=True)
    return compact.astype(np.int32), centroids[used]


def _subset(x: Floats, limit: int, rng: np.random.Generator) -> Floats:
    """At most `limit` random rows, in their order."""
    return x if len(x) <= limit else x[np.sort(rng.choice(len(x), limit, replace=False))]


def _iterate(x: Floats, centroids: Floats, iterations: int) -> tuple[Labels, Floats]:
    """Lloyd's iterations until nothing moves: labels (n,) and the unit means (k, d) of what they say."""
    labels, sums = _assign(x, centroids)
    for _ in range(iterations):
        centroids = _unit(sums, centroids)
        before = labels
        labels, sums = _assign(x, centroids)
        if np.array_equal(before, labels):
            break
    return labels, _unit(sums, centroids)


def _density_labels(embeddings: Floats, settings: Cluster, seed: int) -> tuple[Labels, str | None]:
    """Labels of hdbscan, or the reason why they cannot be used."""
    n = len(embeddings)
    need = max(settings.umap_dims + 2, 2 * settings.min_cluster_size)
    distinct = len(np.unique(embeddings, axis=0)) if n > need else n
    if distinct <= need:
        return np.full(n, NOISE, np.int32), f"{distinct} distinct samples are too few for hdbscan"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces its own deprecations at import
        import hdbscan
    reducer = load_umap().UMAP(
        n_components=settings.umap_dims, metric="cosine", n_neighbors=min(15, n - 1), min_dist=0.0, random_state=seed % 2**32, n_jobs=1
    )
    reduced = reducer.fit_transform(embeddings)
    labels = hdbscan.HDBSCAN(min_cluster_size=settings.min_cluster_size, core_dist_n_jobs=1).fit_predict(reduced).astype(np.int32)
    found, noise = int(labels.max()) + 1, float((labels == NOISE).mean())
    if found < 2:
        return labels, f"hdbscan found {found} cluster{'s' * (found != 1)}"
    if noise > 0.5:
        return labels, f"hdbscan called {noise:.0%} of the samples noise"
    return labels, None


def load_umap() -> Any:
    """The umap module. Its numba gets a thread pool of its own: the default one would reset the number of torch's threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap announces optional parts at import
        import numba

        numba.config.THREADING_LAYER = "workqueue"  # type: ignore[attr-defined]
        import umap
    return umap


def _centroids(x: Floats, labels: Labels) -> Floats:
    k = int(labels.max()) + 1
    sums = np.zeros((k, x.shape[1]), np.float64)
    for part in _chunks(len(x)):
        sums += _sum_by(np.where(labels[part] == NOISE, k, labels[part]), x[part], k + 1)[:k]
    return _unit(sums, np.zeros((k, x.shape[1]), np.float32))


def _plus_plus(x: Floats, k: int, rng: np.random.Generator, trials: int) -> Floats:
    """Initial centroids, at most k: rows drawn in proportion to their cosine distance to those already drawn.

    Of `trials` rows drawn at a time the one stays that leaves the smallest sum of distances (greedy, as scikit-learn does).
    """
    alive = np.einsum("ij,ij->i", x, x) > 0
    if not alive.any():
        return np.zeros((1, x.shape[1]), np.float32)
    chosen = [int(rng.choice(np.flatnonzero(alive)))]
    left = np.where(alive, 1.0 - x @ x[chosen[0]], 0.0).astype(np.float64)
    while len(chosen) < k:
        left[left < SAME] = 0.0
        total = np.cumsum(left)
        if total[-1] <= 0:
            break
        drawn = np.searchsorted(total, rng.random(trials) * total[-1], side="right")
        rests = [np.minimum(left, 1.0 - similar) for similar in (x @ x[drawn].T).T]
        best = int(np.argmin([rest.sum() for rest in rests]))
        chosen.append(int(drawn[best]))
        left = rests[best]
    return np.ascontiguousarray(x[chosen])


def _assign(x: Floats, centroids: Floats) -> tuple[Labels, NDArray[np.float64]]:
    """Nearest centroid of every row and the sum (k, d) of each cluster's rows."""
    labels = np.empty(len(x), np.int32)
    sums = np.zeros(centroids.shape, np.float64)
    for part in _chunks(len(x)):
        labels[part] = (x[part] @ centroids.T).argmax(axis=1)
        sums += _sum_by(labels[part], x[part], len(centroids))
    return labels, sums


def _unit(sums: NDArray[np.float64], otherwise: Floats) -> Floats:
    """Rows of `sums` at length 1; a row without a direction keeps the one in `otherwise`."""
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(norms > 0, sums / np.where(norms > 0, norms, 1.0), otherwise).astype(np.float32)


def _sum_by(labels: NDArray[np.int32], x: Floats, k: int) -> Floats:
    """(k, d) sums of the rows of each label."""
    from scipy.sparse import csr_array

    members = csr_array((np.ones(len(x), np.float32), labels, np.arange(len(x) + 1)), shape=(len(x), k))
    sums: Floats = members.T @ x
    return sums


def _chunks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))
