from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dces_core.stages.split import CENTER, EDGE, split

NAN = float("nan")


def run(labels: list[int], distance: list[float], logprob: list[float], weight: float = 0.5, share: float = 0.5):
    return split(np.array(labels, np.int32), np.array(distance), np.array(logprob), weight, share)


def test_weight_one_ranks_by_closeness_alone() -> None:
    centrality, role = run([0] * 4, [0.4, 0.1, 0.3, 0.2], [-1, -4, -2, -3], weight=1.0)
    np.testing.assert_allclose(centrality, [0, 1, 1 / 3, 2 / 3])
    assert role.tolist() == [EDGE, CENTER, EDGE, CENTER]


def test_weight_zero_ranks_by_logprob_alone() -> None:
    centrality, role = run([0] * 4, [0.4, 0.1, 0.3, 0.2], [-1, -4, -2, -3], weight=0.0)
    np.testing.assert_allclose(centrality, [1, 0, 2 / 3, 1 / 3])
    assert role.tolist() == [CENTER, EDGE, CENTER, EDGE]


def test_clusters_rank_apart_singletons_are_center_noise_is_edge() -> None:
    centrality, role = run([0, 1, 0, -1, 2, -1], [0.9, 0.0, 0.1, 0.0, 0.5, 0.1], [-1] * 6, weight=1.0)
    assert role.tolist() == [EDGE, CENTER, CENTER, EDGE, CENTER, EDGE]
    np.testing.assert_array_equal(centrality, [0, 1, 1, NAN, 1, NAN])


def test_ties_go_to_the_earlier_sample() -> None:
    assert run([0] * 4, [0.2] * 4, [-1] * 4)[1].tolist() == [CENTER, CENTER, EDGE, EDGE]


def test_an_undefined_logprob_ranks_last() -> None:
    assert run([0] * 3, [0.1] * 3, [NAN, -9, -1], weight=0.0)[0].tolist() == [0, 0.5, 1]


def test_nothing() -> None:
    centrality, role = run([], [], [])
    assert len(centrality) == len(role) == 0


@given(st.lists(st.integers(-1, 4), max_size=60), st.floats(0, 1), st.floats(0.01, 0.99), st.integers(0, 9))
def test_roles_partition_every_cluster(labels: list[int], weight: float, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = np.array(labels, np.int32)
    centrality, role = split(found, rng.integers(0, 3, len(found)) / 3, rng.integers(0, 3, len(found)) / -3, weight, share)
    assert set(role.tolist()) <= {CENTER, EDGE}
    for label in set(labels):
        members = found == label
        centers = int((role[members] == CENTER).sum())
        if label < 0:
            assert centers == 0 and np.isnan(centrality[members]).all()
            continue
        assert centers == max(1, int(share * members.sum() + 0.5))
        inside, outside = centrality[members & (role == CENTER)], centrality[members & (role == EDGE)]
        assert ((centrality[members] >= 0) & (centrality[members] <= 1 + 1e-12)).all()
        assert not len(outside) or inside.min() >= outside.max()
