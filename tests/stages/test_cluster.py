from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from pools import unit_rows

from dces_core.config import Cluster
from dces_core.stages.cluster import NOISE, cluster, default_k, distances, nearest_distance, spherical_kmeans

KMEANS = Cluster(clusterer="kmeans")
DENSITY = Cluster(clusterer="hdbscan")


def blobs(n: int, centers: int, spread: float = 0.02, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % centers
    x = np.eye(centers, 16)[truth] + spread * rng.normal(size=(n, 16))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), truth


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    return len(set(zip(a.tolist(), b.tolist(), strict=True))) == len(set(a.tolist())) == len(set(b.tolist()))


@pytest.mark.parametrize(("pool", "k"), [(1, 8), (160, 9), (128, 8), (1000, 22), (10**6, 256)])
def test_default_k(pool: int, k: int) -> None:
    assert default_k(pool) == k


def test_kmeans_finds_blobs_and_their_means() -> None:
    x, truth = blobs(120, 6)
    labels, centroids = spherical_kmeans(x, 6, seed=1)
    assert same_partition(labels, truth)
    for label in range(6):
        mean = x[labels == label].mean(axis=0)
        np.testing.assert_allclose(centroids[label], mean / np.linalg.norm(mean), atol=1e-5)


@pytest.mark.parametrize("distinct", [1, 3, 7])
def test_kmeans_clips_k_to_distinct_rows(distinct: int) -> None:
    x = unit_rows(60, distinct=distinct)
    labels, centroids = spherical_kmeans(x, 20, seed=0)
    found = len(np.unique(x, axis=0))
    assert len(centroids) == found == labels.max() + 1
    np.testing.assert_allclose(nearest_distance(x, centroids), 0, atol=1e-6)


def test_kmeans_with_zero_rows() -> None:
    x = unit_rows(20)
    x[::2] = 0
    labels, centroids = spherical_kmeans(x, 4, seed=0)
    assert np.isfinite(centroids).all() and len(labels) == 20
    labels, centroids = spherical_kmeans(np.zeros((5, 8), np.float32), 4, seed=0)
    assert labels.tolist() == [0] * 5 and centroids.shape == (1, 8)


def test_kmeans_over_more_rows_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = blobs(300, 5)
    whole = spherical_kmeans(x, 5, seed=3)
    monkeypatch.setattr("dces_core.stages.cluster.CHUNK", 7)
    parts = spherical_kmeans(x, 5, seed=3)
    assert np.array_equal(whole[0], parts[0])
    np.testing.assert_allclose(whole[1], parts[1], atol=1e-6)


def test_kmeans_starts_from_a_subset_of_a_large_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dces_core.stages.cluster.SEED_ROWS", 40)
    x, truth = blobs(400, 5)
    assert same_partition(spherical_kmeans(x, 5, seed=0)[0], truth)


def test_kmeans_as_asked_is_no_fallback() -> None:
    found = cluster(unit_rows(40), KMEANS, seed=0)
    assert (found.method, found.reason) == ("kmeans", None)
    assert len(np.unique(found.labels)) == len(found.centroids) == default_k(40)
    assert len(cluster(unit_rows(40), Cluster(clusterer="kmeans", k=3), seed=0).centroids) == 3


@pytest.mark.parametrize("distinct", [1, 5, 12])
def test_hdbscan_gives_way_to_kmeans_where_rows_are_few(distinct: int) -> None:
    x = unit_rows(200, distinct=distinct)
    found = cluster(x, DENSITY, seed=0)
    assert found.method == "kmeans" and found.reason and "distinct" in found.reason
    assert not (found.labels == NOISE).any()


def test_nothing_to_cluster() -> None:
    found = cluster(np.zeros((0, 8), np.float32), Cluster(), seed=0)
    assert (found.method, len(found.labels), found.centroids.shape) == ("none", 0, (0, 8))
    assert len(distances(np.zeros((0, 8), np.float32), found)) == 0


def test_distances_of_members_and_noise() -> None:
    x, _ = blobs(60, 3)
    found = cluster(x, Cluster(clusterer="kmeans", k=3), seed=0)
    expected = 1 - (x * found.centroids[found.labels]).sum(axis=1)
    np.testing.assert_allclose(distances(x, found), expected, atol=1e-6)
    found.labels[:5] = NOISE
    np.testing.assert_allclose(distances(x, found)[:5], 1 - (x[:5] @ found.centroids.T).max(axis=1), atol=1e-6)


@pytest.mark.slow
def test_hdbscan_finds_blobs_and_repeats_itself() -> None:
    x, truth = blobs(160, 4)
    found = cluster(x, DENSITY, seed=5)
    assert found.method == "hdbscan" and found.reason is None
    kept = found.labels != NOISE
    assert kept.mean() > 0.9 and len(found.centroids) == found.labels.max() + 1
    for label in range(len(found.centroids)):
        members = found.labels == label
        assert len(np.unique(truth[members])) == 1
        mean = x[members].mean(axis=0)
        np.testing.assert_allclose(found.centroids[label], mean / np.linalg.norm(mean), atol=1e-5)
    assert np.array_equal(found.labels, cluster(x, DENSITY, seed=5).labels)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([0] * 100, "hdbscan found 1 cluster"),
        ([NOISE] * 100, "hdbscan found 0 clusters"),
        ([NOISE] * 51 + [0, 1] * 24 + [1], "hdbscan called 51% of the samples noise"),
        ([NOISE] * 50 + [0, 1] * 25, None),
    ],
)
def test_what_hdbscan_finds_decides(monkeypatch: pytest.MonkeyPatch, labels: list[int], reason: str | None) -> None:
    same = SimpleNamespace(fit_transform=lambda x: x)
    found_by_hdbscan = SimpleNamespace(fit_predict=lambda x: np.array(labels))
    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=lambda **options: same))
    monkeypatch.setitem(sys.modules, "hdbscan", SimpleNamespace(HDBSCAN=lambda **options: found_by_hdbscan))
    found = cluster(unit_rows(100), DENSITY, seed=0)
    assert (found.method, found.reason) == ("kmeans" if reason else "hdbscan", reason)
    assert (found.labels.tolist() == labels) is (reason is None)
