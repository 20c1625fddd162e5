"""All metrics of one evaluation, from arrays that the evaluate stage has already computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dces_core.engines.base import TokenScores
from dces_core.metrics import probability, text
from dces_core.metrics.semantic import BertScore, Embeddings, vendi
from dces_core.metrics.value import Value, mean, rate, undefined

UNITS_PER_TEXT = 24  # pooled statistics read 24 units per text on average, so that short pools still fill the budget
NO_GENERATED_TOKENS = "the texts have no tokens"
NOTHING_TRAINED = "no generated text was trained on"


def real_text_values(
    scores: TokenScores,
    *,
    bins: NDArray[np.int8],
    ppl_base: float | None,
    ppl_0: float | None,
    divergence: ArrayLike | None,
) -> dict[str, Value]:
    """Every metric of one test set. `bins` (vocabulary,) by probability.frequency_bins of the training split's tokens.

    `ppl_base`, `ppl_0`: perplexity of M_b and M_0 on the same set (at round 0, ppl_0 is this round's own:
    probability.perplexity(scores.logprob).value). `divergence`: KL(M_0 || M_t) per token in nats, or None.
    """
    fit = probability.perplexity_values(scores)
    return {
        **fit,
        "gain_kept": probability.gain_kept(ppl_base, fit["ppl"].value, ppl_0, len(scores.target)),
        "kl_from_start": mean([] if divergence is None else divergence, "not measured" if divergence is None else probability.NO_TOKENS),
        **probability.calibration_values(probability.reliability(scores.confidence, scores.correct)),
        **probability.tail_nll_values(scores, bins),
        **probability.spread_values(scores),
    }


def generated_text_values(
    texts: Sequence[str],
    *,
    token_counts: Sequence[int],
    ended: Sequence[bool],
    self_logprob: ArrayLike,
    frozen_logprob: ArrayLike,
    entropy: ArrayLike,
    reference_counts: Mapping[str, int],
    bertscore: BertScore | str,
    judge: Embeddings | str,
    dispersion: Value,
    dispersion_frozen: Value,
    nearest_reference: Value,
    sample: int = 200,
    budget_units: int | None = None,
) -> dict[str, Value]:
    """Every metric of generated text. `texts`: prompt stripped, already cut to eval.budget_tokens tokens.

    `token_counts`, `ended`: one per text. `self_logprob`, `frozen_logprob`, `entropy`: one per token of all texts,
    concatenated, by the teacher-forced scorer, nats. `reference_counts`: units of the real training references. `bertscore`, `judge`
    (texts, dimensions): the result, or why there is none. `sample`: texts that vendi and self_bleu read. `budget_units`: see pool_budget.
    """
    budget = pool_budget(len(texts)) if budget_units is None else budget_units
    no_score = {f"bertscore_{part}": undefined(str(bertscore)) for part in ("p", "r", "f1")}
    return {
        "entropy_generated": mean(entropy, NO_GENERATED_TOKENS),
        "entropy_unigram": text.entropy_unigram(texts, budget),
        "self_ppl": probability.perplexity(self_logprob, NO_GENERATED_TOKENS),
        "ref_ppl": probability.perplexity(frozen_logprob, NO_GENERATED_TOKENS),
        **{f"distinct_{n}": text.distinct(texts, n, budget) for n in (1, 2, 3)},
        "rep_4": text.rep_4_mean(texts),
        "loop_rate": text.loop_rate(texts),
        "self_bleu": text.self_bleu(texts, sample),
        "compression_ratio": text.compression_ratio(texts, budget),
        "vendi": undefined(judge) if isinstance(judge, str) else vendi(judge, sample),
        **(no_score if isinstance(bertscore, str) else bertscore.values()),
        "tail_coverage": text.tail_coverage(texts, reference_counts, budget),
        **text.survival(texts, reference_counts, budget),
        "dispersion": dispersion,
        "dispersion_frozen": dispersion_frozen,
        "nearest_reference": nearest_reference,
        "length": mean(token_counts, text.NO_TEXTS),
        "ended_rate": rate(sum(map(bool, ended)), len(ended), text.NO_TEXTS),
    }


def trained_text_values(texts: Sequence[str], frozen_logprob: ArrayLike) -> dict[str, Value]:
    """Every metric of the generated text that a round trained on, edits included; `frozen_logprob`: one per token, nats."""
    if not len(texts):
        return dict.fromkeys(("trained_ref_ppl", "trained_loop_rate"), undefined(NOTHING_TRAINED))
    return {"trained_ref_ppl": probability.perplexity(frozen_logprob, NO_GENERATED_TOKENS), "trained_loop_rate": text.loop_rate(texts)}


def pool_budget(texts: int) -> int:
    """Units that the pooled statistics of so many texts read: the same in every round and arm of a run."""
    return UNITS_PER_TEXT * texts


def parameters(*, budget_units: int, sample: int, bertscore: BertScore | str) -> dict[str, Any]:
    """What the figures were computed with, to be stored beside them."""
    return {
        "units": text.UNIT.pattern,
        "budget_units": budget_units,
        "loop": {"period_units": text.LOOP_PERIOD, "repeats": text.LOOP_REPEATS, "least_units": text.LOOP_UNITS},
        "vendi_and_self_bleu": {"texts": sample, "smoothing": "exp", "effective_order": True},
        "tail_coverage": {"least_count": 2, "quantile": text.TAIL_QUANTILE},
        "frequency_bins": {"mass": list(probability.BIN_MASS)},
        "ece": {"bins": probability.ECE_BINS, "edges": "equal width, (lower, upper]"},
        "interval": "95%: documents as clusters (loss, ppl, accuracy), Wilson (rates)",
        "bertscore": bertscore if isinstance(bertscore, str) else bertscore.parameters,
    }
