from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import unit_rows

from dces_core.stages import dedup
from dces_core.stages.dedup import budget_eps, nearest_earlier, survivors


def at_angles(*degrees: float) -> np.ndarray:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def kept(x: np.ndarray, distance: list[float], eps: float, labels: list[int] | None = None) -> list[int]:
    nearest = nearest_earlier(x, np.array(labels or [0] * len(x)), np.array(distance))
    return np.flatnonzero(survivors(nearest, eps)).tolist()


def by_hand(x: np.ndarray, labels: np.ndarray, distance: np.ndarray, eps: float) -> list[int]:
    """The rule, word by word."""
    out = []
    for cluster in np.unique(labels):
        rows = sorted(np.flatnonzero(labels == cluster), key=lambda row: (-distance[row], row))
        for place, row in enumerate(rows):
            earlier = [float(x[row].astype(np.float64) @ x[other]) for other in rows[:place]]
            if not earlier or max(earlier) <= 1 - eps:
                out.append(int(row))
    return sorted(out)


def test_three_exact_duplicates_keep_one() -> None:
    x = unit_rows(4, seed=3)[[0, 0, 1, 0, 2]]
    for eps in (1e-4, 1e-3, 0.1):
        assert kept(x, [0.1, 0.5, 0.2, 0.3, 0.4], eps) == [1, 2, 4]


def test_a_chain_keeps_only_its_first_because_removed_ones_still_remove() -> None:
    chain = at_angles(0, 20, 40)  # a ~ b ~ c, a !~ c
    eps = 1 - np.cos(np.deg2rad(25))
    assert kept(chain, [0.3, 0.2, 0.1], eps) == [0]
    assert kept(chain, [0.2, 0.3, 0.1], eps) == [1]
    assert kept(chain, [0.3, 0.1, 0.2], eps) == [0, 2], "b comes last: a and c are not alike"


def test_clusters_do_not_see_each_other_and_ties_go_to_the_earlier_row() -> None:
    x = at_angles(0, 0, 0, 0)
    assert kept(x, [0.0, 0.0, 0.0, 0.0], 0.1, [0, 1, 0, 1]) == [0, 1]


def test_empty_texts_are_duplicates_of_each_other_and_of_nothing_else() -> None:
    x = np.concatenate([at_angles(0, 90), np.zeros((3, 2), np.float32)])
    assert kept(x, [0.1, 0.2, 1.0, 1.0, 1.0], 0.05) == [0, 1, 2]


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 60), st.integers(0, 5))
def test_it_is_the_rule_word_by_word_and_the_eps_is_where_bisection_ends(rows: int, clusters: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, labels, distance = unit_rows(rows, 4, seed), rng.integers(0, clusters, rows), rng.random(rows)
    nearest = nearest_earlier(x, labels, distance)
    eps, said = budget_eps(nearest, n)
    assert np.flatnonzero(survivors(nearest, eps)).tolist() == by_hand(x, labels, distance, eps)
    if n >= rows:
        assert eps == 0 and survivors(nearest, eps).all()
    elif "no eps" not in said:
        assert survivors(nearest, eps).sum() == n
        low, high = 0.0, 2.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if survivors(nearest, middle).sum() > n else (low, middle)
        assert np.array_equal(survivors(nearest, high), survivors(nearest, eps))
    else:
        assert "first samples of a cluster" in said and survivors(nearest, 2.0).sum() > n


def test_what_no_eps_can_do_is_said() -> None:
    duplicates = nearest_earlier(at_angles(0, 0, 0, 90), np.zeros(4), np.array([0.1, 0.1, 0.1, 0.2]))
    assert budget_eps(duplicates, 2) == (
        pytest.approx(0.5),
        "eps = 0.5000: removed where the cosine to an earlier sample of the cluster exceeds 0.5000",
    )
    eps, said = budget_eps(duplicates, 3)
    assert eps == 0 and said.endswith("no eps leaves exactly 3: of 2 exact duplicates the last 1 were removed")
    firsts = nearest_earlier(at_angles(0, 90, 180), np.arange(3), np.zeros(3))
    assert budget_eps(firsts, 2)[1].endswith("of 3 first samples of a cluster the last 1 were removed")
    assert budget_eps(firsts, 3) == (0.0, "eps = 0: nothing had to be removed")


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels, distance = unit_rows(50), np.arange(50) % 3, np.random.default_rng(1).random(50)
    whole = nearest_earlier(x, labels, distance)
    monkeypatch.setattr(dedup, "CHUNK", 4)
    assert nearest_earlier(x, labels, distance) == pytest.approx(whole, abs=1e-6)


def test_nothing_to_deduplicate() -> None:
    assert len(nearest_earlier(np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0))) == 0
