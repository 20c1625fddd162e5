"""A value is defined or has a reason."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dces_core.metrics.value import Value, defined, mean, rate, rows, undefined
from dces_core.records import METRICS, table


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_undefined(bad: float) -> None:
    value = defined(bad, 3, 0.0, 1.0)
    assert value.value is None and value.n == 3 and "not finite" in str(value.reason)
    assert defined(1.0, 3, bad, 2.0) == Value(1.0, 3)
    assert "1 of 2" in str(mean([1.0, bad], "none").reason)


def test_a_value_without_reason_and_a_reason_with_value_are_refused() -> None:
    with pytest.raises(AssertionError):
        Value(None, 0)
    with pytest.raises(AssertionError):
        Value(1.0, 1, reason="why")


def test_mean() -> None:
    assert mean(np.array([1, 2], dtype=np.float32), "none") == Value(1.5, 2)
    assert mean([], "no texts") == undefined("no texts")


def test_wilson_interval() -> None:
    value = rate(10, 100, "none")  # Wilson's interval of 10/100: 0.0552 to 0.1744
    assert (value.low, value.high) == (pytest.approx(0.0552, abs=1e-4), pytest.approx(0.1744, abs=1e-4))
    nothing, everything = rate(0, 20, "none"), rate(20, 20, "none")
    assert (nothing.value, nothing.low) == (0, 0)
    assert nothing.high == pytest.approx(0.1611, abs=1e-4)
    assert (everything.value, everything.high) == (1, 1)
    assert rate(0, 0, "no texts").reason == "no texts"


def test_rows_are_metrics_rows() -> None:
    values = {"loss": Value(1.0, 5, 0.5, 1.5), "ece": undefined("no target tokens")}
    frame = table("metrics", rows(values, arm="plain", seed=0, round_=2, test_set="everyday"))
    assert frame.columns == list(METRICS)
    assert frame.row(0) == ("plain", 0, 2, "everyday", "loss", 1.0, 5, 0.5, 1.5, None)
    assert frame.row(1) == ("plain", 0, 2, "everyday", "ece", None, 0, None, None, "no target tokens")
    assert rows(values, arm="plain", seed=0, round_=2)[0]["test_set"] == ""
