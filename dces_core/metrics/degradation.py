"""Which way each metric degrades, what it says in one line, and the first round at which it crosses 10%."""

from __future__ import annotations

import math
from typing import Literal

import polars as pl

Direction = Literal["lower", "higher", "neutral"]
THRESHOLD = 0.1

#: The better direction of every metric. For diversity a fall is the degradation; neutral metrics carry no verdict.
DIRECTION: dict[str, Direction] = {
    "loss": "lower",
    "ppl": "lower",
    "accuracy": "higher",
    "gain_kept": "higher",
    "kl_from_start": "neutral",
    "ece": "lower",
    "ece_signed": "neutral",
    "entropy_real": "higher",
    "tail_nll_head": "lower",
    "tail_nll_middle": "lower",
    "tail_nll_tail": "lower",
    "topk_mass_1": "lower",
    "topk_mass_10": "lower",
    "topk_mass_100": "lower",
    "effective_vocabulary": "higher",
    "entropy_generated": "higher",
    "entropy_unigram": "higher",
    "self_ppl": "neutral",
    "ref_ppl": "neutral",
    "trained_ref_ppl": "neutral",
    "distinct_1": "higher",
    "distinct_2": "higher",
    "distinct_3": "higher",
    "rep_4": "lower",
    "loop_rate": "lower",
    "trained_loop_rate": "lower",
    "self_bleu": "lower",
    "compression_ratio": "lower",
    "vendi": "higher",
    "bertscore_p": "higher",
    "bertscore_r": "higher",
    "bertscore_f1": "higher",
    "tail_coverage": "higher",
    "survival_head": "higher",
    "survival_middle": "higher",
    "survival_tail": "higher",
    "dispersion": "higher",
    "dispersion_frozen": "neutral",
    "nearest_reference": "neutral",
    "length": "neutral",
    "ended_rate": "neutral",
}

#: One line for people.
TITLE: dict[str, str] = {
    "loss": "Loss on real text, nats per token",
    "ppl": "Perplexity on real text",
    "accuracy": "Next-token accuracy on real text",
    "gain_kept": "Share of round 0's gain over the base model that is left",
    "kl_from_start": "KL divergence from round 0 on real text, nats",
    "ece": "Expected calibration error",
    "ece_signed": "Mean confidence minus accuracy (above 0: over-confident)",
    "entropy_real": "Entropy of the next token on real text, nats",
    "tail_nll_head": "Loss on frequent tokens, nats",
    "tail_nll_middle": "Loss on middling tokens, nats",
    "tail_nll_tail": "Loss on rare tokens, nats",
    "topk_mass_1": "Probability of the likeliest token",
    "topk_mass_10": "Probability of the 10 likeliest tokens",
    "topk_mass_100": "Probability of the 100 likeliest tokens",
    "effective_vocabulary": "Effective vocabulary, exp of the entropy on real text",
    "entropy_generated": "Entropy of the next token on the model's own text, nats",
    "entropy_unigram": "Entropy of the words in generated text, nats",
    "self_ppl": "Perplexity of generated text under its own model (falls under collapse)",
    "ref_ppl": "Perplexity of generated text under round 0's model (falls under collapse)",
    "trained_ref_ppl": "Perplexity under round 0's model of the generated text that the round trained on",
    "distinct_1": "Distinct words in generated text",
    "distinct_2": "Distinct word pairs in generated text",
    "distinct_3": "Distinct word triples in generated text",
    "rep_4": "Repeated 4-grams within a generation",
    "loop_rate": "Generations that end in a loop",
    "trained_loop_rate": "Generated texts that the round trained on and that end in a loop",
    "self_bleu": "Self-BLEU: how much generations resemble each other",
    "compression_ratio": "Compression ratio of generated text",
    "vendi": "Vendi score: effective number of different generations",
    "bertscore_p": "BERTScore precision against the references",
    "bertscore_r": "BERTScore recall against the references",
    "bertscore_f1": "BERTScore F1 against the references",
    "tail_coverage": "Rare real words that generated text still uses",
    "survival_head": "Frequent real words that generated text still uses",
    "survival_middle": "Middling real words that generated text still uses",
    "survival_tail": "Words of the real tail that generated text still uses",
    "dispersion": "Dispersion: mean distance to the cluster centroid",
    "dispersion_frozen": "Mean distance to round 0's nearest centroid",
    "nearest_reference": "Mean distance to the nearest real reference",
    "length": "Mean length of a generation, tokens",
    "ended_rate": "Generations that ended by themselves",
}

LEAD_TIMES: dict[str, pl.DataType] = {
    "arm": pl.String(),
    "seed": pl.Int64(),
    "test_set": pl.String(),
    "metric": pl.String(),
    "start": pl.Float64(),  # value at round 0
    "round": pl.Int32(),  # first round at or beyond 10% degradation
    "value": pl.Float64(),  # value at that round
    "reason": pl.String(),  # why there is no such round
}


def lead_times(metrics: pl.DataFrame) -> pl.DataFrame:
    """First round at which each metric is 10% worse than at round 0, per arm, seed and test set (LEAD_TIMES columns).

    `metrics` has the columns of records.METRICS. Where round 0's value is 0, 10% of it means nothing: then 0.1 in the
    metric's own unit is the threshold. Neutral metrics, and those undefined at round 0, get a reason.
    """
    keys = ["arm", "seed", "test_set", "metric"]
    found = []
    for key, group in metrics.sort("round").group_by(keys, maintain_order=True):
        known = [
            (round_, value) for round_, value in group.select("round", "value").iter_rows() if value is not None and math.isfinite(value)
        ]
        found.append({**dict(zip(keys, key, strict=True)), **_lead_time(str(key[3]), known)})
    return pl.DataFrame(found, schema=LEAD_TIMES).sort(keys)


def _lead_time(metric: str, known: list[tuple[int, float]]) -> dict[str, object]:
    """`known`: (round, value) by round, defined ones only."""
    if not known or known[0][0] != 0:
        return {"reason": "undefined at round 0"}
    start = known[0][1]
    direction = DIRECTION.get(metric, "neutral")
    if direction == "neutral":
        return {"start": start, "reason": "no better or worse direction"}
    limit = THRESHOLD * abs(start) or THRESHOLD
    for round_, value in known[1:]:
        worse = value - start if direction == "lower" else start - value
        if worse >= limit:
            return {"start": start, "round": round_, "value": value}
    return {"start": start, "reason": f"not crossed up to round {known[-1][0]}"}
