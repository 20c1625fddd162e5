"""Paired differences over seeds, with numbers that can be checked by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from dces_core.compare import COMPARISON, Budget, compare, ordered, refuse_unequal, remarks, t_975, t_interval
from dces_core.errors import UserError
from dces_core.records import table

T_4 = 2.7764451051977987  # 97.5% point of Student's t with 4 degrees of freedom


def metrics(values: dict[str, list[float | None]], metric: str = "accuracy", round_: int = 1) -> pl.DataFrame:
    """One value per arm and seed."""
    rows: list[dict[str, object]] = [
        {"arm": arm, "seed": seed, "round": round_, "test_set": "everyday", "metric": metric, "value": value, "n": 9}
        for arm, series in values.items()
        for seed, value in enumerate(series)
    ]
    return table("metrics", rows)


def row(frame: pl.DataFrame, arm: str) -> dict[str, Any]:
    (found,) = frame.filter(arm=arm).to_dicts()
    return found


def test_columns_are_those_that_are_promised() -> None:
    found = compare(metrics({"plain": [0.1], "dces": [0.2]}), "plain", ["plain", "dces"])
    assert ",".join(found.columns) == "arm,vs,metric,test_set,round,mean,low,high,diff,diff_low,diff_high,n_seeds"
    assert found.schema == pl.Schema(COMPARISON)


def test_paired_differences_have_the_t_interval_of_five_seeds() -> None:
    plain = [1.0, 5.0, 9.0, 2.0, 7.0]
    differences = [1.0, 2.0, 3.0, 4.0, 5.0]  # mean 3, standard deviation sqrt(2.5)
    dces = [a + b for a, b in zip(plain, differences, strict=True)]
    found = row(compare(metrics({"plain": plain, "dces": dces}), "plain", ["plain", "dces"]), "dces")
    half = T_4 * math.sqrt(2.5) / math.sqrt(5)
    assert (found["diff"], found["n_seeds"]) == (pytest.approx(3.0), 5)
    assert (found["diff_low"], found["diff_high"]) == (pytest.approx(3.0 - half), pytest.approx(3.0 + half))
    assert found["mean"] == pytest.approx(sum(dces) / 5) and found["low"] < found["mean"] < found["high"]
    assert found["high"] - found["low"] > 4 * half, "the means vary more than their paired differences"


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 7, 8, 30, 101])
def test_the_t_quantile_is_that_of_scipy(df: int) -> None:
    from scipy.stats import t

    assert t_975(df) == pytest.approx(float(t.ppf(0.975, df)), rel=1e-12)


def test_four_seeds_are_points_without_an_interval() -> None:
    found = row(compare(metrics({"plain": [1.0] * 4, "dces": [1.0, 2.0, 3.0, 4.0]}), "plain", ["plain", "dces"]), "dces")
    assert (found["mean"], found["diff"], found["n_seeds"]) == (2.5, 1.5, 4)
    assert [found[name] for name in ("low", "high", "diff_low", "diff_high")] == [None] * 4


@pytest.mark.parametrize("metric", ["ppl", "self_ppl", "ref_ppl"])
def test_perplexity_is_compared_on_the_log_scale(metric: str) -> None:
    frame = metrics({"plain": [2.0, 8.0, 4.0, 4.0, 4.0], "dces": [4.0, 16.0, 8.0, 8.0, 8.0]}, metric)
    found = compare(frame, "plain", ["plain", "dces"])
    assert row(found, "plain")["mean"] == pytest.approx(4.0), "geometric: the arithmetic mean is 4.4"
    ours = row(found, "dces")
    assert (ours["diff"], ours["diff_low"], ours["diff_high"]) == (pytest.approx(math.log(2)),) * 3
    logs = [math.log(value) for value in (4.0, 16.0, 8.0, 8.0, 8.0)]
    assert (ours["low"], ours["high"]) == tuple(pytest.approx(math.exp(value or 0)) for value in t_interval(logs)[1:])


def test_only_common_seeds_are_paired() -> None:
    frame = metrics({"plain": [1.0, 1.0, 1.0, 1.0, 1.0, 1.0], "dces": [None, 2.0], "toedit": [3.0] * 5})
    found = compare(frame, "dces", ["plain", "dces", "toedit"])
    assert (row(found, "plain")["diff"], row(found, "plain")["n_seeds"], row(found, "plain")["diff_low"]) == (-1.0, 6, None)
    assert row(found, "toedit")["diff"] == 1.0
    assert row(found, "plain")["low"] == 1.0


def test_undefined_stays_empty() -> None:
    frame = metrics({"plain": [1.0, 1.0], "dces": [None, math.inf], "random": [float("nan"), None]})
    for arm in ("dces", "random"):
        found = row(compare(frame, "plain", ["plain", "dces", "random"]), arm)
        assert [found[name] for name in ("mean", "low", "high", "diff", "diff_low", "diff_high", "n_seeds")] == [None] * 6 + [0]
    found = row(compare(frame, "plain", ["plain"]), "plain")
    assert (found["mean"], found["diff"]) == (1.0, None), "an arm is not compared with itself"


def test_the_noise_floor_comes_first_and_reference_rows_last() -> None:
    arms = ["frozen", "plain", "dces", "real", "random"]
    assert ordered(arms, "plain") == ["random", "plain", "dces", "frozen", "real"]
    assert ordered(arms, "frozen") == ["random", "frozen", "plain", "dces", "real"]
    found = compare(metrics({arm: [1.0] for arm in arms}), "plain", arms)
    assert found["arm"].to_list() == ordered(arms, "plain")


def test_vs_must_be_there() -> None:
    with pytest.raises(UserError, match="vs = 'real' has no finished unit"):
        compare(metrics({"plain": [1.0]}), "real", ["plain", "real"])


# budgets ----------------------------------------------------------------------------------------------------------------

BASE = Budget("plain", 0, 96, 48, "replace", (6, 6), (6, 6), (1000, 1000), {"decoding": "sample", "temperature": 0.8})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"pool": 95}, "pool 96 against 95"),
        ({"n": 47}, "n 48 against 47"),
        ({"planned_steps": (6, 7)}, "optimiser steps"),
        ({"regime": "accumulate"}, "regime"),
        ({"decoding": {"decoding": "greedy", "temperature": 0.8}}, "decoding"),
    ],
)
def test_unequal_budgets_are_refused(change: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        refuse_unequal([BASE, replace(BASE, arm="dces", **change)])
    refuse_unequal([BASE, replace(BASE, arm="frozen", **change), replace(BASE, arm="dces")])


def test_arms_about_the_decoding_may_have_their_own() -> None:
    refuse_unequal([BASE, replace(BASE, arm="plain-t1", decoding={"decoding": "sample", "temperature": 1.0})])
    with pytest.raises(UserError, match="pool"):
        refuse_unequal([BASE, replace(BASE, arm="plain-t1", pool=48)])


def test_trained_tokens_over_ten_percent_are_flagged() -> None:
    far, near = replace(BASE, arm="dces", trained_tokens=(1000, 1300)), replace(BASE, arm="random", trained_tokens=(1000, 1190))
    (said,) = remarks([BASE, far, near], "plain")
    assert said == "dces, seed 0, trained on 2300 tokens, plain on 2000 (+15%)."
    short = replace(BASE, arm="dces", optimiser_steps=(6, 5))
    refuse_unequal([BASE, short])
    assert "1 optimiser step less" in remarks([BASE, short], "plain")[0]
