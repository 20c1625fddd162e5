from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dces_core.stages.groups import apportion
from dces_core.stages.pick import Picks, pick, pick_at_random, pick_by_perplexity
from dces_core.stages.split import CENTER, EDGE


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def roles(labels: np.ndarray, is_edge: np.ndarray) -> np.ndarray:
    return np.where(is_edge | (labels < 0), EDGE, CENTER)


def test_quotas_follow_size_and_edge_share() -> None:
    labels = np.repeat([0, 1, 2], [40, 20, 20])
    role = roles(labels, np.arange(80) % 2 == 0)
    found = pick(labels, role, np.ones(80, bool), 40, 0.3, rng())
    assert [quota["quota"] for quota in found.quotas] == [20, 10, 10]
    assert [quota["picked_edge"] for quota in found.quotas] == [6, 3, 3]
    assert found.mask.sum() == 40 and not found.notes
    assert (role[found.order] == EDGE).sum() == 12


def test_one_edge_share_per_cluster_and_noise_all_edge() -> None:
    labels = np.repeat([-1, 0, 1], [10, 20, 20])
    role = roles(labels, np.arange(50) % 2 == 0)
    found = pick(labels, role, np.ones(50, bool), 25, np.array([0.2, 0.8]), rng())
    assert [(q["cluster"], q["picked_center"], q["picked_edge"]) for q in found.quotas] == [(-1, 0, 5), (0, 8, 2), (1, 2, 8)]
    assert not found.notes


def test_small_quotas_keep_the_edge_share_overall() -> None:
    labels = np.arange(90) // 3
    role = roles(labels, np.arange(90) % 3 > 0)
    found = pick(labels, role, np.ones(90, bool), 30, 0.49, rng())
    assert sum(quota["edge_wanted"] for quota in found.quotas) == 15


def test_a_lacking_role_is_filled_from_the_other_and_noted() -> None:
    labels = np.zeros(20, int)
    role = roles(labels, np.arange(20) < 2)
    found = pick(labels, role, np.ones(20, bool), 10, 0.5, rng())
    assert found.quotas[0]["edge_wanted"] == 5 and found.quotas[0]["picked_edge"] == 2
    assert found.notes == ["3 center in place of edge samples, in 1 clusters that had too few"]
    found = pick(labels, roles(labels, np.arange(20) >= 2), np.ones(20, bool), 10, 0.5, rng())
    assert found.quotas[0]["picked_center"] == 2
    assert found.notes == ["3 edge in place of center samples, in 1 clusters that had too few"]


def test_rejected_samples_fill_up_and_are_noted() -> None:
    eligible = np.arange(20) < 6
    labels = np.zeros(20, int)
    found = pick(labels, roles(labels, np.arange(20) % 2 == 0), eligible, 10, 0.5, rng())
    assert found.mask.sum() == 10 and found.mask[:6].all()
    assert found.refilled.sum() == 4 and not found.refilled[:6].any()
    assert found.notes == ["4 rejected samples picked: only 6 of the 10 needed had passed"]


def test_a_pool_below_n_is_taken_whole_and_noted() -> None:
    found = pick_at_random(np.ones(5, bool), 8, rng())
    assert sorted(found.order.tolist()) == [0, 1, 2, 3, 4]
    assert found.notes == ["the pool has 5 samples, 8 were needed"]


def test_arms_share_the_draw() -> None:
    labels = np.zeros(60, int)
    role = roles(labels, np.arange(60) % 2 == 0)
    eligible = np.ones(60, bool)
    by_role = pick(labels, role, eligible, 30, 0.5, rng(4))
    plain = pick_at_random(eligible, 30, rng(4))
    priority = np.argsort(np.random.default_rng(4).permutation(60))
    assert plain.order.tolist() == priority[:30].tolist()
    for name in (CENTER, EDGE):
        mine = [row for row in priority.tolist() if role[row] == name][:15]
        assert [row for row in by_role.order.tolist() if role[row] == name] == mine
    fewer = pick_at_random(np.arange(60) != plain.order[0], 29, rng(4))
    assert fewer.order.tolist() == plain.order[1:].tolist()


def test_perplexity_ties_go_to_the_earlier_row_and_unknown_ones_come_last() -> None:
    logprob = np.array([-2.0, -1.0, np.nan, -1.0, -3.0, -1.0])
    rows = {
        (rule, n): sorted(pick_by_perplexity(logprob, rule, np.ones(6, bool), n, rng()).order.tolist())
        for rule in ("ppl-low", "ppl-high", "ppl-band")
        for n in (2, 3, 5)
    }
    assert rows["ppl-low", 2] == [1, 3] and rows["ppl-low", 3] == [1, 3, 5]
    assert rows["ppl-high", 2] == [0, 4] and rows["ppl-high", 3] == [0, 1, 4]
    assert rows["ppl-band", 3] == [0, 1, 3]
    assert all(rows[rule, 5] == [0, 1, 3, 4, 5] for rule in ("ppl-low", "ppl-high", "ppl-band"))
    found = pick_by_perplexity(logprob, "ppl-band", np.ones(6, bool), 6, rng())
    assert found.notes == ["1 samples without a perplexity picked: only 5 have one"]
    assert found.order.tolist() == pick_at_random(np.ones(6, bool), 6, rng()).order.tolist(), "the common training order"
    eligible = np.arange(6) != 1
    assert sorted(pick_by_perplexity(logprob, "ppl-low", eligible, 2, rng()).order.tolist()) == [3, 5]


def check(found: Picks, eligible: np.ndarray, n: int) -> None:
    size = len(eligible)
    assert len(found.order) == len(set(found.order.tolist())) == min(n, size)
    assert found.refilled.sum() == max(0, min(n, size) - int(eligible.sum()))
    assert not (found.refilled & eligible).any()
    if found.refilled.any():
        assert found.mask[eligible].all()


@given(
    st.lists(st.tuples(st.integers(-1, 5), st.booleans(), st.booleans()), max_size=80),
    st.integers(1, 60),
    st.floats(0, 1),
    st.integers(0, 5),
)
def test_exactly_n_and_quotas_add_up(rows: list[tuple[int, bool, bool]], n: int, share: float, seed: int) -> None:
    labels = np.array([row[0] for row in rows], int)
    role = roles(labels, np.array([row[1] for row in rows], bool))
    eligible = np.array([row[2] for row in rows], bool)
    check(pick_at_random(eligible, n, rng(seed)), eligible, n)
    check(pick_by_perplexity(np.where(role == EDGE, share, np.nan), "ppl-band", eligible, n, rng(seed)), eligible, n)
    found = pick(labels, role, eligible, n, share, rng(seed))
    check(found, eligible, n)
    assert sum(quota["quota"] for quota in found.quotas) == min(n, int(eligible.sum()))
    for quota in found.quotas:
        inside = eligible & (labels == quota["cluster"])
        assert quota["eligible_center"] + quota["eligible_edge"] == inside.sum() >= quota["quota"]
        assert quota["picked_center"] + quota["picked_edge"] == quota["quota"]
        assert quota["picked_edge"] == (inside & found.mask & (role == EDGE)).sum()
        assert quota["picked_center"] == (inside & found.mask & (role == CENTER)).sum()
    assert np.array_equal(found.order, pick(labels, role, eligible, n, share, rng(seed)).order)


@given(st.lists(st.floats(0, 50), min_size=1, max_size=20), st.booleans())
def test_apportion_stays_within_one(shares: list[float], up: bool) -> None:
    values = np.array(shares)
    total = round(float(values.sum()))
    whole = apportion(values, total)
    assert whole.sum() == total
    assert (np.abs(whole - values) <= 1 + 1e-6).all()


def test_apportion_gives_the_remainder_to_the_largest() -> None:
    assert apportion(np.array([1.2, 2.7, 3.1]), 7).tolist() == [1, 3, 3]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_extreme_shares(share: float) -> None:
    labels = np.zeros(40, int)
    role = roles(labels, np.arange(40) % 2 == 0)
    found = pick(labels, role, np.ones(40, bool), 20, share, rng())
    assert (role[found.order] == EDGE).sum() == 20 * share
