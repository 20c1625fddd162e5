"""All metrics at once: names are a contract, and total collapse is an ordinary case."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dces_core.engines.base import TokenScores
from dces_core.metrics import assemble
from dces_core.metrics.degradation import DIRECTION, TITLE
from dces_core.metrics.semantic import BertScore
from dces_core.metrics.value import Value, undefined

REAL = [
    "loss",
    "ppl",
    "accuracy",
    "gain_kept",
    "kl_from_start",
    "ece",
    "ece_signed",
    "entropy_real",
    "tail_nll_head",
    "tail_nll_middle",
    "tail_nll_tail",
    "topk_mass_1",
    "topk_mass_10",
    "topk_mass_100",
    "effective_vocabulary",
]
GENERATED = [
    "entropy_generated",
    "entropy_unigram",
    "self_ppl",
    "ref_ppl",
    "distinct_1",
    "distinct_2",
    "distinct_3",
    "rep_4",
    "loop_rate",
    "self_bleu",
    "compression_ratio",
    "vendi",
    "bertscore_p",
    "bertscore_r",
    "bertscore_f1",
    "tail_coverage",
    "survival_head",
    "survival_middle",
    "survival_tail",
    "dispersion",
    "dispersion_frozen",
    "nearest_reference",
    "length",
    "ended_rate",
]
TRAINED = ["trained_ref_ppl", "trained_loop_rate"]


def generated(texts: list[str], logprob: Any = (), judge: Any = "switched off", bertscore: Any = "switched off") -> dict[str, Value]:
    return assemble.generated_text_values(
        texts,
        token_counts=[len(text) for text in texts],
        ended=[False] * len(texts),
        self_logprob=logprob,
        frozen_logprob=logprob,
        entropy=logprob,
        reference_counts={"the": 9, "cat": 2, "sat": 2},
        bertscore=bertscore,
        judge=judge,
        dispersion=undefined("no texts"),
        dispersion_frozen=undefined("no texts"),
        nearest_reference=undefined("no texts"),
    )


def test_names_are_complete_and_described(token_scores: Callable[..., TokenScores]) -> None:
    scores = token_scores(logprob=[-1.0, -2.0], example=[0, 1])
    real = assemble.real_text_values(scores, bins=np.zeros(3, np.int8), ppl_base=9.0, ppl_0=math.exp(1.5), divergence=[0.0, 0.0])
    assert sorted(real) == sorted(REAL)
    assert sorted(generated(["a b"])) == sorted(GENERATED)
    assert set(DIRECTION) == set(TITLE) == {*REAL, *GENERATED, *TRAINED}


def test_what_a_round_trained_on() -> None:
    values = assemble.trained_text_values(["no no no no no no no no no", "a quiet day"], np.log([0.5, 0.125]))
    assert list(values) == TRAINED and values["trained_ref_ppl"].value == pytest.approx(4)
    assert (values["trained_loop_rate"].value, values["trained_loop_rate"].n) == (0.5, 2)
    assert {value.reason for value in assemble.trained_text_values([], []).values()} == {"no generated text was trained on"}


def test_the_frozen_model_keeps_its_gain(token_scores: Callable[..., TokenScores]) -> None:
    scores = token_scores(logprob=[-1.0, -2.0], example=[0, 1])
    values = assemble.real_text_values(scores, bins=np.zeros(3, np.int8), ppl_base=9.0, ppl_0=math.exp(1.5), divergence=[0.0, 0.0])
    assert values["gain_kept"].value == pytest.approx(1)
    assert values["kl_from_start"] == Value(0.0, 2)
    none = assemble.real_text_values(scores, bins=np.zeros(3, np.int8), ppl_base=None, ppl_0=None, divergence=None)
    assert none["gain_kept"].reason and none["kl_from_start"].reason == "not measured"


@pytest.mark.parametrize("texts", [[], [""], ["", "", ""], ["x"], ["1.1.1.1.1.1."] * 4, ["\x00"] * 3])
@pytest.mark.parametrize("logprob", [[], [math.nan, -1.0], [-math.inf]])
def test_total_collapse_never_raises(texts: list[str], logprob: list[float]) -> None:
    score = BertScore(*[np.zeros(len(texts))] * 3)
    values = generated(texts, np.array(logprob), np.zeros((len(texts), 4), dtype=np.float32), score)
    for name, value in values.items():
        assert (value.value is None) == bool(value.reason), name
        assert value.value is None or math.isfinite(value.value), name
    if not texts:
        assert all(value.value is None for value in values.values())
    assert values["self_ppl"].value is None


def test_self_perplexity_is_over_all_tokens() -> None:
    values = generated(["a b", "c"], [-1.0, -1.0, -4.0])
    assert values["self_ppl"] == Value(pytest.approx(math.exp(2)), 3)  # type: ignore[arg-type]
    assert values["vendi"].reason == values["bertscore_p"].reason == "switched off"


def test_parameters_are_json() -> None:
    stored = assemble.parameters(budget_units=assemble.pool_budget(10), sample=200, bertscore="switched off")
    assert json.loads(json.dumps(stored))["budget_units"] == 240
