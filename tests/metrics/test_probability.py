"""Closed-form oracles of the teacher-forced metrics."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from dces_core.engines.base import TokenScores
from dces_core.metrics import probability as metrics

Scores = Callable[..., TokenScores]


def test_perplexity_is_token_weighted_not_a_mean_of_batches(token_scores: Scores) -> None:
    scores = token_scores(logprob=[-1.0, -1.0, -1.0, -5.0], example=[0, 0, 0, 1])
    values = metrics.perplexity_values(scores)
    assert values["loss"].value == pytest.approx(2.0)
    assert values["ppl"].value == pytest.approx(math.exp(2.0))
    assert values["ppl"].value != pytest.approx((math.exp(1) + math.exp(5)) / 2)
    assert values["loss"].n == 4


def test_intervals_take_documents_as_the_unit(token_scores: Scores) -> None:
    """Ten copies of every token of a document leave the document-level uncertainty as it is."""
    nll = np.random.default_rng(0).normal(3, 1, 40)
    once = metrics.perplexity_values(token_scores(logprob=-nll, example=np.arange(40)))
    copied = metrics.perplexity_values(token_scores(logprob=-np.repeat(nll, 10), example=np.repeat(np.arange(40), 10)))
    assert copied["loss"].low == pytest.approx(once["loss"].low)
    half = 1.959964 * nll.std(ddof=1) / math.sqrt(40)
    assert once["loss"].high == pytest.approx(nll.mean() + half)
    assert once["ppl"].high == pytest.approx(math.exp(nll.mean() + half))


def test_the_interval_covers(token_scores: Scores) -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        lengths = rng.integers(1, 20, 60)
        example = np.repeat(np.arange(60), lengths)
        nll = 2 + rng.normal(0, 1, 60)[example] + rng.normal(0, 1, len(example))
        value = metrics.perplexity_values(token_scores(logprob=-nll, example=example))["loss"]
        assert value.low is not None and value.high is not None
        hits += value.low <= 2 <= value.high
    assert 0.90 <= hits / 300 <= 0.98


def test_accuracy_stays_in_bounds_and_one_document_gives_no_interval(token_scores: Scores) -> None:
    value = metrics.perplexity_values(token_scores(correct=[True] * 9 + [False], example=range(10)))["accuracy"]
    assert value.value == pytest.approx(0.9)
    assert value.high == 1.0
    alone = metrics.perplexity_values(token_scores(correct=[True, False], example=[0, 0]))["accuracy"]
    assert (alone.value, alone.low) == (0.5, None)


def test_calibrated_sampler_has_no_calibration_error() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.05, 1, 200_000)
    values = metrics.calibration_values(metrics.reliability(confidence, rng.uniform(size=200_000) < confidence))
    assert values["ece"].value == pytest.approx(0, abs=0.01)
    assert values["ece_signed"].value == pytest.approx(0, abs=0.01)


def test_always_point_nine_and_half_right_is_point_four() -> None:
    values = metrics.calibration_values(metrics.reliability([0.9] * 100, [True, False] * 50))
    assert values["ece"].value == pytest.approx(0.4)
    assert values["ece_signed"].value == pytest.approx(0.4)
    under = metrics.calibration_values(metrics.reliability([0.5] * 10, [True] * 10))
    assert (under["ece"].value, under["ece_signed"].value) == (pytest.approx(0.5), pytest.approx(-0.5))


def test_errors_of_opposite_sign_cancel_only_in_the_signed_value() -> None:
    values = metrics.calibration_values(metrics.reliability([0.9, 0.9, 0.1, 0.1], [True, False, True, False]))
    assert values["ece"].value == pytest.approx(0.4)
    assert values["ece_signed"].value == pytest.approx(0)


def test_reliability_rows_hold_every_token_once() -> None:
    bins = metrics.reliability([0.0, 1.0, 1.0000001, 1 / 15, 0.5, float("nan")], [1, 1, 1, 0, 0, 1])
    rows = bins.rows("everyday")
    assert len(rows) == 15
    assert sum(row["n"] for row in rows) == 5
    assert [row["bin"] for row in rows if row["n"]] == [0, 7, 14]
    assert (rows[0]["n"], rows[14]["n"]) == (2, 2)
    assert sum(row["correct_sum"] for row in rows) == 3


def test_frequency_bins_cover_the_mass() -> None:
    assert metrics.frequency_bins(np.array([5, 50, 20, 20, 5, 0])).tolist() == [2, 0, 1, 1, 2, 2]
    crossing = metrics.frequency_bins(np.array([60, 35, 5]))  # the type that crosses a limit is in the more frequent bin
    assert crossing.tolist() == [0, 1, 2]


def test_frequency_bins_with_ties_and_degenerate_counts() -> None:
    assert np.bincount(metrics.frequency_bins(np.full(10, 7))).tolist() == [5, 4, 1]
    assert metrics.frequency_bins(np.zeros(3, dtype=np.int64)).tolist() == [2, 2, 2]
    assert metrics.frequency_bins(np.array([9])).tolist() == [0]
    assert metrics.frequency_bins(np.array([], dtype=np.int64)).tolist() == []


def test_tail_nll_by_frequency_of_the_target(token_scores: Scores) -> None:
    scores = token_scores(logprob=[-1.0, -2.0, -4.0, -6.0], target=[0, 1, 2, 2])
    values = metrics.tail_nll_values(scores, np.array([0, 0, 2], dtype=np.int8))
    assert values["tail_nll_head"].value == pytest.approx(1.5)
    assert (values["tail_nll_tail"].value, values["tail_nll_tail"].n) == (pytest.approx(5), 2)
    assert values["tail_nll_middle"].reason == "no target tokens in the middle bin"


def test_spread(token_scores: Scores) -> None:
    values = metrics.spread_values(token_scores(entropy=[math.log(8)] * 2, mass=[[0.25, 0.5, 1.0], [0.75, 1.0, 1.0]]))
    assert values["effective_vocabulary"].value == pytest.approx(8)
    assert [values[f"topk_mass_{k}"].value for k in (1, 10, 100)] == pytest.approx([0.5, 0.75, 1.0])


def test_gain_kept() -> None:
    assert metrics.gain_kept(60.0, 20.0, 20.0, 5).value == 1  # frozen
    assert metrics.gain_kept(60.0, 60.0, 20.0, 5).value == 0
    assert metrics.gain_kept(60.0, 80.0, 20.0, 5).value == pytest.approx(-0.5)
    assert "gained nothing" in str(metrics.gain_kept(20.0, 30.0, 20.0, 5).reason)
    assert metrics.gain_kept(None, 30.0, 20.0, 5).reason == "no perplexity of the base model"
    assert metrics.gain_kept(60.0, None, 20.0, 5).reason == "no perplexity of this round"


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_scores_that_are_not_finite_are_undefined(token_scores: Scores, bad: float) -> None:
    scores = token_scores(logprob=[-1.0, bad], entropy=[bad, 1.0], mass=[[bad] * 3] * 2, confidence=[bad, bad])
    values = metrics.perplexity_values(scores) | metrics.spread_values(scores) | metrics.tail_nll_values(scores, np.zeros(9, np.int8))
    values |= metrics.calibration_values(metrics.reliability(scores.confidence, scores.correct))
    for name in ("loss", "ppl", "entropy_real", "effective_vocabulary", "topk_mass_1", "tail_nll_head", "ece"):
        assert values[name].value is None and values[name].reason, name
    assert values["accuracy"].value is not None


def test_a_huge_loss_has_no_perplexity(token_scores: Scores) -> None:
    values = metrics.perplexity_values(token_scores(logprob=[-1000.0, -1001.0], example=[0, 1]))
    assert values["loss"].value == pytest.approx(1000.5)
    assert values["ppl"].value is None


def test_no_tokens(token_scores: Scores) -> None:
    scores = token_scores(logprob=[])
    values = metrics.perplexity_values(scores) | metrics.spread_values(scores) | metrics.tail_nll_values(scores, np.zeros(0, np.int8))
    values |= metrics.calibration_values(metrics.reliability(scores.confidence, scores.correct))
    assert all(value.value is None and value.n == 0 and value.reason for value in values.values())
