from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import LOOP, reference, unit_rows

from dces_core.config import Controller, Edit
from dces_core.stages.cluster import nearest_distance
from dces_core.stages.control import (
    ControlInput,
    Reference,
    Spread,
    control,
    dispersion,
    dispersion_centroids,
    mean_spread,
    reference_spread,
    sampling_step,
)

EDIT = Edit(temperature=1.1)  # type: ignore[call-arg]
AT_SETPOINT = {"dispersion": 0.6, "entropy": 2.0, "logprob": -1.5}


def step(
    settings: Controller | None = None, previous: Any = None, dynamic: bool = True, ref: Reference | None = None, **values: Any
) -> Any:
    measured = ControlInput({**AT_SETPOINT, **values}, 160)
    return control(settings or Controller(**LOOP), EDIT, dynamic, measured, ref or reference(), previous)


def test_at_the_setpoint_everything_is_at_its_constant() -> None:
    state = step()
    assert state["error"] == 0 and state["edge_share"] == 0.5 and not state["edge_clipped"]
    assert state["edit_error"] == 0 and state["edit_temperature"] == 1.1 and not state["edit_clipped"]
    assert state["reason"] is None and state["edit_reason"] is None


def test_error_is_in_sd_and_gain_scales_it() -> None:
    state = step(dispersion=0.57)
    assert state["error"] == pytest.approx(3)
    assert state["edge_share"] == pytest.approx(0.5 + 0.02 * 3)
    assert step(Controller(**{**LOOP, "sign": -1}), dispersion=0.57)["edge_share"] == pytest.approx(0.44)


@pytest.mark.parametrize(("signal", "value"), [("dispersion", 0.58), ("entropy", 1.9), ("logprob", -1.4)])
def test_collapse_raises_the_edge_share_whatever_the_signal(signal: Any, value: float) -> None:
    state = step(Controller(**{**LOOP, "signal": signal}), **{signal: value})
    assert state["error"] == pytest.approx(2) and state["edge_share"] == pytest.approx(0.54)
    assert (state["signal"], state["value"], state["setpoint"]) == (signal, value, AT_SETPOINT[signal])


def test_bounds_clip_and_say_so() -> None:
    low, high = step(dispersion=1.0), step(dispersion=0.0)
    assert (low["edge_share"], low["edge_clipped"]) == (0.2, True)
    assert (high["edge_share"], high["edge_clipped"]) == (0.8, True)


@settings(deadline=None)
@given(st.floats(0, 2), st.floats(0, 2))
def test_edge_share_is_monotone_in_dispersion(one: float, other: float) -> None:
    less, more = sorted((one, other))
    assert step(dispersion=less)["edge_share"] >= step(dispersion=more)["edge_share"]


@settings(deadline=None)
@given(st.floats(-6, 0), st.floats(-6, 0), st.floats(-3, 3))
def test_temperature_is_monotone_in_logprob_and_bounded(one: float, other: float, integral: float) -> None:
    low, high = (step(previous={"error": None, "edit_integral": integral}, logprob=value) for value in sorted((one, other)))
    assert 0.9 <= low["edit_temperature"] <= high["edit_temperature"] <= 1.6


def test_ema_smooths_over_rounds() -> None:
    settings = Controller(**{**LOOP, "ema": 0.5})
    first = step(settings, dispersion=0.58)
    assert first["error"] == pytest.approx(2), "without a past the error is its own"
    second = step(settings, first, dispersion=0.56)
    assert second["error"] == pytest.approx(0.5 * 2 + 0.5 * 4)


def test_editing_is_a_pi_controller() -> None:
    first = step(logprob=-1.4)
    assert first["edit_temperature"] == pytest.approx(1.1 + 0.6 * 0.1 + 0.15 * 0.1)
    second = step(previous=first, logprob=-1.3)
    assert second["edit_integral"] == pytest.approx(0.3)
    assert second["edit_temperature"] == pytest.approx(1.1 + 0.6 * 0.2 + 0.15 * 0.3)


def test_integral_holds_while_clipped_and_moves_when_the_error_turns() -> None:
    state = step(logprob=-0.4)
    assert state["edit_clipped"] and state["edit_temperature"] == 1.6 and state["edit_integral"] == 0
    for _ in range(5):
        state = step(previous=state, logprob=-0.4)
    assert state["edit_integral"] == 0
    state = step(previous=state, logprob=-1.6)
    assert state["edit_integral"] == pytest.approx(-0.1) and not state["edit_clipped"]
    wound = step(previous={"error": 0.0, "edit_integral": 9.0}, logprob=-1.6)
    assert wound["edit_clipped"] and wound["edit_integral"] == pytest.approx(8.9), "an error that points inward is always counted"


def test_static_freezes_every_controlled_quantity_and_still_measures() -> None:
    state = step(dynamic=False, dispersion=0.1, logprob=-0.1)
    assert (state["edge_share"], state["edit_temperature"], state["edit_integral"]) == (0.5, 1.1, 0)
    assert state["reason"] == state["edit_reason"] == "dynamic is off"
    assert state["error"] == pytest.approx(50) and state["edit_error"] == pytest.approx(1.4)


def test_edit_signal_off_keeps_the_temperature() -> None:
    state = step(Controller(**{**LOOP, "edit_signal": "off"}), logprob=-0.1)
    assert state["edit_temperature"] == 1.1 and state["edit_reason"] == "edit_signal is off"
    assert state["edit_error"] == pytest.approx(1.4), "the pool's log-probability is still shown"


def test_the_entropy_of_real_text_may_steer_the_editing_temperature() -> None:
    watched = {**reference().round0, "entropy_real": Spread(3.0, None)}
    settings = Controller(**{**LOOP, "edit_signal": "entropy_real"})
    state = step(settings, ref=reference(round0=watched), entropy_real=2.9)
    assert state["edit_error"] == pytest.approx(0.1) and (state["edit_value"], state["edit_setpoint"]) == (2.9, 3.0)
    assert state["edit_temperature"] == pytest.approx(1.1 + 0.6 * 0.1 + 0.15 * 0.1), "entropy falls: edit hotter"
    unknown = step(settings, ref=reference(round0=watched))
    assert (unknown["edit_temperature"], unknown["edit_reason"]) == (1.1, "entropy_real is undefined in this round")
    assert step(settings, entropy_real=2.9)["edit_reason"] == "entropy_real is undefined for M_0"


@pytest.mark.parametrize(
    ("spread", "value", "reason"),
    [
        (Spread(0.6, 0.0), 0.5, "the sd of dispersion is zero"),
        (Spread(0.6, None), 0.5, "the sd of dispersion is undefined"),
        (Spread(None, None), 0.5, "dispersion is undefined in the reference"),
        (Spread(0.6, 0.1), None, "dispersion is undefined in this pool"),
    ],
)
def test_an_undefined_error_leaves_the_constant_and_says_why(spread: Spread, value: float | None, reason: str) -> None:
    spreads = {**reference().round0, "dispersion": spread}
    state = step(ref=reference(round0=spreads), dispersion=value)
    assert (state["error"], state["edge_share"], state["reason"]) == (None, 0.5, reason)


def test_an_undefined_logprob_leaves_the_temperature() -> None:
    state = step(previous={"error": None, "edit_integral": 0.4}, logprob=None)
    assert (state["edit_temperature"], state["edit_integral"]) == (1.1, 0.4)
    assert state["edit_reason"] == "logprob is undefined in this round"


def test_real_setpoint_is_another_one() -> None:
    ref = reference(real={**reference().real, "dispersion": Spread(0.7, 0.05)})
    assert step(Controller(**{**LOOP, "setpoint": "real"}), ref=ref)["error"] == pytest.approx(2)
    assert step(Controller(**{**LOOP, "setpoint": "round0"}), ref=ref)["error"] == 0


def test_per_cluster_shares() -> None:
    def shares(value: list[float], size: list[int], **values: Any) -> Any:
        measured = ControlInput({**AT_SETPOINT, **values}, 160, np.array(value), np.array(size))
        return control(Controller(**{**LOOP, "per_cluster": True}), EDIT, True, measured, reference(), None)

    one = shares([0.4], [160], dispersion=0.58)
    assert one["edge_share_by_cluster"] == {"0": pytest.approx(one["edge_share"])}, "a single cluster is the pool"
    state = shares([0.3, 0.5], [40, 40])
    tight, loose = state["edge_share_by_cluster"].values()
    assert tight == pytest.approx(0.5 + 0.02 * 0.1 / (0.01 * 2)) and loose == pytest.approx(1.0 - tight)
    state = shares([0.3, float("nan"), 0.3], [40, 0, 40])
    assert state["edge_share_by_cluster"] == {"0": 0.5, "1": 0.5, "2": 0.5}
    assert step()["edge_share_by_cluster"] is None


def test_state_and_reference_survive_json() -> None:
    state = step(Controller(**{**LOOP, "ema": 0.3}), dispersion=0.123, logprob=-1.234)
    again = json.loads(json.dumps(state, allow_nan=False))
    assert again == state
    assert step(Controller(**{**LOOP, "ema": 0.3}), again, dispersion=0.4) == step(
        Controller(**{**LOOP, "ema": 0.3}), state, dispersion=0.4
    )
    assert Reference.from_json(json.loads(json.dumps(asdict(reference(quality_limit=-3.5))))) == reference(quality_limit=-3.5)


def test_dispersion_closed_forms() -> None:
    same = np.tile(unit_rows(1), (50, 1))
    assert dispersion(same, 0) == pytest.approx(0, abs=1e-6)
    assert dispersion(np.zeros((5, 8), np.float32), 0) is None
    pairs = np.eye(16, dtype=np.float32)  # 16 orthogonal rows in k = 8 clusters: a cluster of m rows lies at 1 - 1/sqrt(m)
    labels = (pairs @ dispersion_centroids(pairs, 3).T).argmax(axis=1)
    sizes = np.bincount(labels)
    assert dispersion(pairs, 3) == pytest.approx(float((sizes * (1 - 1 / np.sqrt(sizes))).sum() / 16), abs=1e-6)


def test_dispersion_leaves_empty_texts_out() -> None:
    x = unit_rows(40)
    with_empty = np.concatenate([x, np.zeros((20, 16), np.float32)])
    assert dispersion(with_empty, 1) == pytest.approx(float(nearest_distance(x, dispersion_centroids(with_empty, 1)).mean()))


def test_reference_spread() -> None:
    x = unit_rows(300, 32)
    spread = reference_spread(x, 80, seed=1, draws=60)
    fresh = np.array([dispersion(unit_rows(80, 32, seed=100 + i), i) for i in range(60)], float)
    assert spread.mean == pytest.approx(fresh.mean(), abs=3 * fresh.std() / 60**0.5)
    assert spread.sd is not None and 0.6 < spread.sd / fresh.std() < 1.8
    assert spread == reference_spread(x, 80, seed=1, draws=60)
    assert reference_spread(x[:1], 80, seed=1) == Spread(None, None)
    small = reference_spread(x[:30], 80, seed=1, draws=20)
    assert small.mean is not None and small.sd


def test_mean_spread_is_the_standard_error() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, np.nan])
    spread = mean_spread(values)
    assert spread.mean == 2.5 and spread.sd == pytest.approx(np.std([1, 2, 3, 4], ddof=1) / 2)
    assert mean_spread(values, 16).sd == pytest.approx(np.std([1, 2, 3, 4], ddof=1) / 4)
    assert mean_spread(np.array([np.nan])) == Spread(None, None)
    assert mean_spread(np.array([3.0])) == Spread(3.0, None)


def sampling(logprob: float | None, previous: Any = None, dynamic: bool = True, base: float = 0.8, **changes: Any) -> Any:
    state = {"edit_value": logprob, "edit_setpoint": -1.5, "edit_error": None if logprob is None else logprob + 1.5}
    return sampling_step(Controller(**{**LOOP, **changes}), EDIT, base, dynamic, state, previous)


def test_the_sampling_temperature_is_the_editing_loop_around_another_centre() -> None:
    assert sampling(-1.5) == {"sampling_temperature": 0.8, "sampling_integral": 0, "sampling_clipped": False, "sampling_reason": None}
    first = sampling(-1.4)
    assert first["sampling_temperature"] == pytest.approx(0.8 + 0.75 * 0.1)
    assert sampling(-1.4, first)["sampling_temperature"] == pytest.approx(0.8 + 0.6 * 0.1 + 0.15 * 0.2)
    low, high = sampling(-9.0), sampling(0.0)
    assert (low["sampling_temperature"], high["sampling_temperature"]) == (pytest.approx(0.6), pytest.approx(1.3))
    assert low["sampling_clipped"] and high["sampling_clipped"] and high["sampling_integral"] == 0, "no windup"
    assert sampling(-9.0, base=0.1)["sampling_temperature"] == pytest.approx(0.01)


def test_what_holds_the_sampling_temperature() -> None:
    for held, reason in (
        (sampling(-1.0, dynamic=False), "dynamic is off"),
        (sampling(-1.0, edit_signal="off"), "edit_signal is off"),
        (sampling(None), "logprob is undefined in this round"),
    ):
        assert (held["sampling_temperature"], held["sampling_reason"]) == (0.8, reason)
