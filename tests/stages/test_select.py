from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import TEXT, make_config, make_inputs, make_pool, reference, unit_rows

from dces_core.arms import ARMS
from dces_core.records import SAMPLES
from dces_core.stages.cluster import NOISE, Clustering, spherical_kmeans
from dces_core.stages.control import Spread
from dces_core.stages.gate import EMPTY, LOOP
from dces_core.stages.quality import IMPLAUSIBLE
from dces_core.stages.select import Selection, measure_reference, select

LOOPING = "The answer is one of the ones that are good. It is good. It is good. It is good. It is good."


def check(found: Selection, pool_size: int, n: int, name: str = "dces") -> None:
    """What holds for every selection, whatever the pool."""
    samples, flow, arm = found.samples, found.controller["flow"], ARMS[name]
    assert dict(samples.schema) == SAMPLES and len(samples) == pool_size
    wanted = min(n - sum(arm.real_pairs(make_config().train, n)), pool_size) if arm.select != "none" else 0
    picked = np.flatnonzero((samples["fate"] == "picked").to_numpy())
    assert len(picked) == len(found.order) == wanted and set(picked) == set(found.order.tolist())
    assert samples["trained_text"].is_not_null().sum() == wanted
    assert (samples["reason"].is_null() == (samples["fate"] == "picked")).all()
    assert flow["pool"] == pool_size == sum(flow["gated"].values()) + flow["center"] + flow["edge"]
    assert flow["center"] + flow["edge"] == (
        sum(flow["rejected"].values()) + flow["over_quota"] + flow["picked_center"] + flow["picked_edge"]
    )
    assert flow["picked_center"] + flow["picked_edge"] + flow["picked_other"] == wanted
    assert (samples["role"] == "center").sum() == flow["center"] and (samples["role"] == "edge").sum() == flow["edge"]
    assert (samples["role"].is_null() == samples["cluster"].is_null()).all()
    assert sum(row["size"] for row in found.controller["clusters"]) == len(found.clustered) == flow["center"] + flow["edge"]
    assert sum(row["center"] for row in found.controller["clusters"]) == flow["center"]
    assert set(found.edit.tolist()) <= set(found.order.tolist())
    if arm.edits == "center":
        assert (samples["role"].gather(found.edit) == "center").all()
    else:
        assert len(found.edit) == (wanted if arm.edits == "all" else round(wanted / 2))
    json.dumps(found.controller, allow_nan=False)


def texts_of(kind: str, n: int) -> list[str]:
    kinds = {"good": [TEXT], "empty": [""], "loop": [LOOPING], "mixed": [TEXT, "", LOOPING, "1.1.1.1.1.1.1.1.1.1."]}
    return [kinds[kind][i % len(kinds[kind])] for i in range(n)]


@settings(max_examples=150, deadline=None)
@given(
    arm=st.sampled_from(sorted(ARMS)),
    kind=st.sampled_from(["good", "empty", "loop", "mixed"]),
    pool_size=st.integers(1, 50),
    n=st.integers(2, 40),
    distinct=st.sampled_from([0, 1, 2, 5, 50]),
    limit=st.sampled_from([None, -2.5, 0.0]),
    unknown=st.booleans(),
    options=st.sampled_from([{}, {"split": {"scorer": "frozen"}}, {"controller": {"per_cluster": True}}, {"gate": {"on": False}}]),
)
def test_exactly_n_from_every_pool(
    arm: str, kind: str, pool_size: int, n: int, distinct: int, limit: float | None, unknown: bool, options: dict[str, Any]
) -> None:
    pool = make_pool(texts_of(kind, pool_size), [None] * pool_size if unknown else None)
    rows = unit_rows(pool_size, distinct=distinct) if distinct else np.zeros((pool_size, 16), np.float32)
    inputs = make_inputs(arm, pool, make_config(n, **options), embeddings=rows, reference=reference(quality_limit=limit))
    check(select(inputs), pool_size, n, arm)


def test_gated_samples_are_rejected_with_a_reason_and_have_no_role() -> None:
    pool = make_pool([TEXT] * 40 + ["", LOOPING])
    found = select(make_inputs("dces", pool))
    last = found.samples.tail(2)
    assert last["fate"].to_list() == ["rejected"] * 2 and last["reason"].to_list() == [EMPTY, LOOP]
    for column in ("cluster", "role", "distance", "centrality"):
        assert last[column].null_count() == 2
    assert found.controller["flow"]["gated"] == {EMPTY: 1, LOOP: 1}
    for arm, config in (("plain", make_config()), ("dces", make_config(gate={"on": False}))):
        other = select(make_inputs(arm, pool, config))
        assert other.controller["flow"]["gated"] == {} and other.samples["role"].null_count() == 0


def test_every_arm_is_measured_alike_and_only_dces_obeys() -> None:
    found = {arm: select(make_inputs(arm)) for arm in ARMS}
    for arm, selection in found.items():
        check(selection, 40, 20, arm)
        for column in ("cluster", "role", "distance", "centrality"):
            assert selection.samples[column].equals(found["plain"].samples[column])
        assert selection.controller["value"] == found["plain"].controller["value"] is not None
    assert found["plain"].controller["edge_share"] is None and found["plain"].controller["reason"] == "this arm picks at random"
    assert found["plain"].controller["edit_temperature"] is None and len(found["plain"].edit) == 0
    assert len(found["dces-no-edit"].edit) == 0 and found["dces-no-edit"].controller["edge_share"] is not None
    assert len(found["dces"].edit) == found["dces"].controller["flow"]["picked_center"] > 0
    for arm, reason in (("frozen", "this arm never trains"), ("real", "this arm trains on real pairs")):
        assert set(found[arm].samples["fate"]) == {"over quota"} and set(found[arm].samples["reason"]) == {reason}
    assert found["ppl-low"].controller["reason"] == "this arm picks by perplexity"
    assert found["semdedup"].controller["reason"] == "this arm removes near-duplicates"


def test_perplexity_arms_take_their_part_of_the_pool() -> None:
    logprob = [-1.0 - i % 10 / 10 for i in range(40)]
    rows = {
        arm: set(select(make_inputs(arm, make_pool([TEXT] * 40, logprob))).order.tolist()) for arm in ("ppl-low", "ppl-high", "ppl-band")
    }
    assert rows["ppl-low"] == {i for i in range(40) if i % 10 < 5}
    assert rows["ppl-high"] == {i for i in range(40) if i % 10 >= 5}
    assert {i % 10 for i in rows["ppl-band"]} == {2, 3, 4, 5, 6, 7}
    reasons = select(make_inputs("ppl-low", make_pool([TEXT] * 40, logprob))).samples["reason"].drop_nulls().unique().to_list()
    assert reasons == ["perplexity above the N lowest"]


def test_perplexity_arms_obey_the_scorer_of_the_split() -> None:
    config = make_config(split={"scorer": "frozen"})
    found = select(make_inputs("ppl-low", config=config, frozen_logprob=lambda rows: -np.asarray(rows, float)))
    assert set(found.order.tolist()) == set(range(20))


def test_semdedup_uses_kmeans_and_says_its_eps() -> None:
    rows = unit_rows(24)
    rows[12:] = rows[:12]
    config = make_config(12, cluster={"clusterer": "hdbscan"})
    found = select(make_inputs("semdedup", make_pool([TEXT] * 24), config, embeddings=rows))
    assert len({row % 12 for row in found.order.tolist()}) == 12, "one of every two duplicates"
    assert found.controller["clusterer"] == "kmeans" and found.controller["fallback"] is None
    assert found.controller["notes"][0].startswith("eps = ")
    assert set(found.samples["reason"].drop_nulls()) == {"too close to an earlier sample of its cluster"}


def test_arms_that_pick_at_random_pick_alike() -> None:
    plain = select(make_inputs("plain")).order.tolist()
    for arm in ("toedit", "edit-random", "plain-t1", "plain-tctl", "tce"):
        assert select(make_inputs(arm)).order.tolist() == plain, arm
    assert select(make_inputs("real10")).order.tolist() == plain[:18]


def test_real_pairs_of_the_regime_leave_room_for_exactly_n() -> None:
    config = make_config(train={"regime": "fixed-real", "real_share": 0.25})
    found = select(make_inputs("dces", config=config))
    assert len(found.order) == found.samples["trained_text"].is_not_null().sum() == 15
    assert len(select(make_inputs("real10", config=config)).order) == 13


def test_edit_random_edits_as_many_as_dces_would_at_a0() -> None:
    found = select(make_inputs("edit-random", config=make_config(controller={"a0": 0.3})))
    assert len(found.edit) == 14 and set(found.edit.tolist()) < set(found.order.tolist())
    assert set(found.samples["role"].gather(found.edit)) == {"center", "edge"}
    assert found.controller["edit_temperature"] is not None and found.controller["edge_share"] is None
    assert select(make_inputs("edit-random", make_pool([TEXT] * 40 + [""]))).controller["flow"]["gated"] == {EMPTY: 1}
    later = select(make_inputs("edit-random", config=make_config(controller={"a0": 0.3}), round_=2))
    assert np.argsort(found.order).tolist() != np.argsort(later.order).tolist()


def test_one_loop_moves_one_temperature() -> None:
    high = make_pool([TEXT] * 40, [-1.2] * 40)  # 0.3 nats above the set-point
    state = {arm: select(make_inputs(arm, high)).controller for arm in ("plain-tctl", "edit-random", "plain", "toedit", "dces-static")}
    assert state["plain-tctl"]["sampling_temperature"] == pytest.approx(0.8 + (0.6 + 0.15) * 0.3)
    assert state["plain-tctl"]["edit_temperature"] is None and "sampling_temperature" not in state["plain"]
    assert state["edit-random"]["edit_temperature"] == pytest.approx(1.1 + (0.6 + 0.15) * 0.3)
    assert (state["toedit"]["edit_temperature"], state["dces-static"]["edit_temperature"]) == (1.0, 1.1)
    off = {arm: select(make_inputs(arm, high, make_config(dynamic=False))).controller for arm in ("plain-tctl", "edit-random")}
    assert (off["plain-tctl"]["sampling_temperature"], off["plain-tctl"]["sampling_reason"]) == (0.8, "dynamic is off")
    assert (off["edit-random"]["edit_temperature"], off["edit-random"]["edit_reason"]) == (1.1, "dynamic is off")


def test_ablations_switch_off_what_they_name() -> None:
    pool = make_pool([TEXT] * 40 + [""])
    found = {
        arm: select(make_inputs(arm, pool, frozen_logprob=lambda rows: np.full(len(rows), -9.0), reference=reference(quality_limit=-3.0)))
        for arm in ("dces", "dces-no-filter", "dces-no-gate")
    }
    gated = {arm: sum(selection.controller["flow"]["gated"].values()) for arm, selection in found.items()}
    rejected = {arm: sum(selection.controller["flow"]["rejected"].values()) > 0 for arm, selection in found.items()}
    assert gated == {"dces": 1, "dces-no-filter": 1, "dces-no-gate": 0}
    assert rejected == {"dces": True, "dces-no-filter": False, "dces-no-gate": True}


def test_plain_and_random_share_a_distribution_but_not_a_draw() -> None:
    plain, again = (select(make_inputs(arm)).order for arm in ("plain", "random"))
    assert not np.array_equal(plain, again)
    assert np.array_equal(plain, select(make_inputs("plain")).order), "a draw repeats itself"
    assert not np.array_equal(plain, select(make_inputs("plain", round_=2)).order)
    counts = np.zeros(40)
    for seed in range(400):
        counts[select(make_inputs("random", config=make_config(seed=seed, cluster={"clusterer": "kmeans", "k": 1}))).order] += 1
    assert np.abs(counts / 400 - 0.5).max() < 5 * 0.5 / 20


def test_the_edge_share_reaches_the_pick() -> None:
    pool = make_pool([TEXT] * 400)
    shares = {}
    for value, expected in ((0.0, 0.8), (0.6, 0.5), (2.0, 0.2)):
        config = make_config(100, controller={"signal": "entropy"})
        spreads = {**reference().round0, "entropy": Spread(float(np.mean(pool["entropy"].to_list())) + (0.6 - value), 0.01)}
        found = select(make_inputs("dces", pool, config, reference=reference(round0=spreads)))
        assert found.controller["edge_share"] == pytest.approx(expected)
        shares[value] = found.controller["flow"]["picked_edge"] / 100
    assert shares[0.0] == pytest.approx(0.8, abs=0.02) and shares[2.0] == pytest.approx(0.2, abs=0.02)


def test_static_arm_and_static_run_hold_every_constant() -> None:
    far = reference(round0={"dispersion": Spread(0.9, 0.001), "entropy": Spread(9.0, 0.01), "logprob": Spread(-9.0, 0.01)})
    moving = select(make_inputs("dces", reference=far)).controller
    assert (moving["edge_share"], moving["edit_temperature"]) == (0.8, 1.6)
    for found in (
        select(make_inputs("dces-static", reference=far)),
        select(make_inputs("dces", config=make_config(dynamic=False), reference=far)),
    ):
        assert (found.controller["edge_share"], found.controller["edit_temperature"]) == (0.5, 1.1)
        assert found.controller["error"] == pytest.approx(moving["error"])


def test_the_filter_asks_for_edges_once_and_rejects_the_implausible() -> None:
    calls: list[Any] = []

    def frozen(rows: Any) -> Any:
        calls.append(rows)
        return np.where(rows % 2 == 0, -9.0, -1.0)

    found = select(make_inputs("dces", frozen_logprob=frozen, reference=reference(quality_limit=-3.0)))
    edges = np.flatnonzero((found.samples["role"] == "edge").to_numpy())
    assert len(calls) == 1 and np.array_equal(calls[0], edges)
    bad = edges[edges % 2 == 0]
    assert found.controller["flow"]["rejected"] == {IMPLAUSIBLE: len(bad)}
    assert set(np.flatnonzero((found.samples["reason"] == IMPLAUSIBLE).fill_null(False).to_numpy())) == set(bad)
    assert found.samples["frozen_logprob"].is_not_null().sum() == len(edges)
    select(make_inputs("dces", config=make_config(filter={"on": False}), frozen_logprob=frozen))
    select(make_inputs("plain", frozen_logprob=frozen))
    assert len(calls) == 1, "nothing else needs M_0"
    select(make_inputs("dces", config=make_config(split={"scorer": "frozen"}), frozen_logprob=frozen))
    assert len(calls) == 2 and len(calls[1]) == 40


def test_rejected_samples_are_the_last_resort() -> None:
    pool = make_pool([TEXT] * 12 + [""] * 28)
    found = select(make_inputs("dces", pool))
    assert (found.samples["fate"].head(12) == "picked").all()
    assert found.controller["flow"]["picked_other"] == 8
    assert found.controller["notes"][-1] == "8 rejected samples picked: only 12 of the 20 needed had passed"


def test_round_one_meets_its_own_setpoint_exactly() -> None:
    pool, rows = make_pool([TEXT] * 40), unit_rows(40)
    config = make_config()
    measured = measure_reference(config, pool, rows, unit_rows(120, seed=9), -1.0 - np.arange(100) / 100, np.full(100, 2.0))
    state = select(make_inputs("dces", pool, config, embeddings=rows, reference=measured)).controller
    assert select(make_inputs("dces", pool, config, embeddings=rows, reference=measured, round_=2)).controller["error"] == 0
    assert state["error"] == 0 and state["edge_share"] == 0.5
    assert state["edit_error"] == 0 and state["edit_temperature"] == 1.1
    assert measured.quality_limit == pytest.approx(-1.9801)
    assert measured.round0["dispersion"].sd == measured.real["dispersion"].sd


def test_previous_state_carries_over() -> None:
    config = make_config(controller={"ema": 0.5})
    first = select(make_inputs("dces", config=config))
    second = select(make_inputs("dces", config=config, round_=2, previous=json.loads(json.dumps(first.controller))))
    assert second.controller["edit_integral"] == pytest.approx(2 * first.controller["edit_error"]) or second.controller["edit_clipped"]
    assert second.controller["error"] == pytest.approx(first.controller["error"])


def test_collapsed_pool_of_one_text() -> None:
    rows = np.tile(unit_rows(1), (160, 1))
    found = select(make_inputs("dces", make_pool([TEXT] * 160), make_config(80, cluster={"clusterer": "hdbscan"}), embeddings=rows))
    check(found, 160, 80)
    assert found.controller["clusterer"] == "kmeans" and "distinct" in found.controller["fallback"]
    assert found.controller["value"] == pytest.approx(0, abs=1e-6) and found.controller["edge_share"] == 0.8


def test_training_order_is_the_common_permutation() -> None:
    plain, dces = select(make_inputs("plain")).order.tolist(), select(make_inputs("dces")).order.tolist()
    common = [row for row in plain if row in set(dces)]
    assert common == [row for row in dces if row in set(plain)] and len(common) > 5


def test_selection_does_not_depend_on_the_label_of_the_run() -> None:
    inputs = make_inputs("dces")
    renamed = replace(inputs, config=make_config(name="another", note="x"))
    assert select(inputs).samples.equals(select(renamed).samples)


def test_noise_is_edge_and_a_group_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_noise(rows: Any, options: Any, seed: int) -> Clustering:
        labels, centroids = spherical_kmeans(rows, 4, seed)
        labels[::5] = NOISE
        return Clustering(labels, centroids, "hdbscan")

    monkeypatch.setattr("dces_core.stages.select.cluster", with_noise)
    found = select(make_inputs("dces", make_pool([TEXT] * 180), make_config(60, cluster={"clusterer": "hdbscan"})))
    check(found, 180, 60)
    noise = found.samples.filter(pl.col("cluster") == NOISE)
    assert len(noise) == found.controller["flow"]["noise"] == found.controller["clusters"][-1]["size"] == 36
    assert set(noise["role"]) == {"edge"} and noise["centrality"].null_count() == 36 and noise["distance"].null_count() == 0
    quota = found.controller["quotas"][0]
    assert (quota["cluster"], quota["quota"], quota["picked_center"], quota["picked_edge"]) == (NOISE, 12, 0, 12)
    assert found.controller["fallback"] is None
