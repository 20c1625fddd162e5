"""Forecasts have the stated form, know when they cannot be made, and are counted honestly."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from dces_core.metrics import trend
from dces_core.metrics.trend import Forecast, backtest, forecast, risk
from dces_core.metrics.verdict import DEFINITIONS
from dces_core.records import table


def series(metric: str, values: list[float | None], seed: int = 0) -> pl.DataFrame:
    rows = [
        {
            "arm": "plain",
            "seed": seed,
            "round": t,
            "test_set": "",
            "metric": metric,
            "value": value,
            "n": 9,
            "reason": None if value else "no",
        }
        for t, value in enumerate(values)
    ]
    return table("metrics", rows)  # type: ignore[arg-type]


def test_a_steady_fall_goes_on_and_is_sure_of_it() -> None:
    found = forecast("vendi", {t: 100 * 0.9**t for t in range(5)}, 6)
    assert isinstance(found, Forecast)
    assert found.interval() == pytest.approx([100 * 0.9**6] * 3)


def test_the_interval_is_student_of_the_changes() -> None:
    from scipy.stats import t

    known = dict(enumerate([8.0, 9.0, 7.0, 7.5, 6.0]))
    found = forecast("vendi", known, 6)
    assert isinstance(found, Forecast)
    steps = np.diff(np.log(list(known.values())))
    spread = steps.std(ddof=1) * math.sqrt(2 + 4 / 4)
    value, low, high = found.interval()
    middle = math.log(6.0) + 2 * steps.mean()
    assert value == pytest.approx(math.exp(middle))
    assert (math.log(high) - math.log(low)) / 2 == pytest.approx(float(t.ppf(0.9, 3)) * spread)
    assert found.below(high) == pytest.approx(0.9) and found.below(low) == pytest.approx(0.1) and found.below(0) == 0


def test_gaps_count_as_long_as_they_are() -> None:
    found = forecast("vendi", {0: 100.0, 1: 90.0, 4: 100 * 0.9**4, 5: 100 * 0.9**5}, 7)
    assert isinstance(found, Forecast) and found.interval()[0] == pytest.approx(100 * 0.9**7)


def test_shares_stay_shares_and_may_be_zero() -> None:
    found = forecast("loop_rate", {0: 0.0, 1: 0.4, 2: 0.5, 3: 0.9}, 5)
    assert isinstance(found, Forecast)
    value, low, high = found.interval()
    assert value == high == 1.0 and 0 <= low < 1


@pytest.mark.parametrize(
    ("known", "words"), [({0: 1.0, 1: 2.0, 2: 1.0}, "a trend needs 4"), ({0: 1.0, 1: 0.0, 2: 1.0, 3: 1.0}, "no log scale")]
)
def test_what_cannot_be_told_says_why(known: dict[int, float], words: str) -> None:
    assert words in str(forecast("vendi", known, 5))
    assert words in str(risk(DEFINITIONS["semantic"], known | {0: 1.0}, 5)) or "reached" in str(risk(DEFINITIONS["semantic"], known, 5))


def test_risk_of_a_definition() -> None:
    semantic, loops = DEFINITIONS["semantic"], DEFINITIONS["loops"]
    assert risk(semantic, {0: 10.0, 1: 9.9, 2: 9.7, 3: 8.0}, 4) == "reached at round 3"
    falling = risk(semantic, {0: 10.0, 1: 9.8, 2: 9.5, 3: 9.3}, 5)
    steady = risk(semantic, {0: 10.0, 1: 10.1, 2: 9.9, 3: 10.0}, 5)
    assert isinstance(falling, float) and isinstance(steady, float) and 0 <= steady < 0.1 < 0.5 < falling <= 1
    assert risk(loops, {t: 0.0 for t in range(5)}, 6) == 0.0
    assert risk(semantic, {}, 4) == "vendi is undefined"


def test_tables_name_the_next_rounds() -> None:
    metrics = pl.concat([series("vendi", [10.0, 9.8, 9.5, 9.3]), series("rep_4", [None] * 4)])
    found = trend.forecasts(metrics)
    assert found.filter(metric="vendi")["round"].to_list() == [4, 5]
    assert found.filter(metric="rep_4")["reason"].to_list() == ["0 rounds with a value; a trend needs 4"] * 2
    assert trend.risks(metrics).filter(definition="semantic")["probability"].null_count() == 0


def test_backtest_counts_coverage() -> None:
    rng = np.random.default_rng(0)
    parts = [series("vendi", np.exp(3 + np.cumsum(rng.normal(-0.02, 0.02, 14))).tolist(), seed) for seed in range(60)]
    found = backtest(pl.concat(parts).with_columns(study=pl.lit("s")))
    assert found["metric"].to_list() == ["all", "vendi"] and found["n"].to_list() == [540, 540] and found["series"].to_list() == [60, 60]
    row = found.row(0, named=True)
    assert 0.74 < row["coverage"] < 0.86, "its own model must be covered as often as the interval says"
    assert row["better"] > 0.5 and row["brier"] < row["brier_rate"]


def test_backtest_sees_a_break() -> None:
    jump = series("vendi", [10.0, 9.9, 9.8, 9.7, 9.6, 2.0])
    row = backtest(jump.with_columns(study=pl.lit("s"))).row(0, named=True)
    assert (row["n"], row["coverage"]) == (1, 0.0)
