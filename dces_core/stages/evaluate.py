"""Step 9: what the model of a round has become, on real text that it never saw and in what it writes.

Real text: every test set, teacher-forced. Generated text: one response per prompt of the first test set that has prompts, by the
settings of the pool, with the same prompts and the same noise in every round and arm. Probes: greedy and sampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dces_core.data import Corpus, Pair
from dces_core.engines.base import Example, Generation
from dces_core.errors import UserError
from dces_core.events import Progress
from dces_core.lab import Lab
from dces_core.metrics import probability
from dces_core.metrics.assemble import generated_text_values, parameters, pool_budget, real_text_values, trained_text_values
from dces_core.metrics.semantic import BertScore, bertscore, dispersion, nearest_reference
from dces_core.metrics.text import ends_in_loop, rep_4, units
from dces_core.metrics.value import Value, rows
from dces_core.records import table
from dces_core.seeds import rng_for, seed_for
from dces_core.stage import Draft, Stage
from dces_core.stages.control import dispersion_centroids
from dces_core.stages.generate import mean_or_none, sample

NEXT_TOKENS = 20  # likeliest next tokens that are kept of a watched prompt
DIVERGENCE_EXAMPLES = 24  # KL needs two models' full distributions: a fixed subset of every test set


def write_evaluation(
    lab: Lab, arm: str, round_: int, start: Stage | None, selection: Stage | None, draft: Draft, progress: Progress
) -> None:
    """All tables of one evaluation of the engine's current model, which was trained on `selection`.

    `start`: round 0's evaluation. At round 0 itself there is neither.
    """
    steps = len(lab.tests) + 3
    first = (start.json("start") or {}) if start else {}
    metrics, reliability, entropy = [], [], []
    for step, (name, corpus) in enumerate(lab.tests.items()):
        values, bins, spread = _real_text(lab, name, corpus, first, at_start=start is None)
        metrics += rows(values, arm=arm, seed=lab.config.seed, round_=round_, test_set=name)
        reliability += bins
        entropy += spread
        progress(step + 1, steps)
    written = _write(lab)
    progress(steps - 2, steps)
    centroids = np.load(start.file("centroids.npy")) if start else None
    values, facts, generations = _generated_text(lab, written, centroids, draft)
    metrics += rows({**values, **_trained_text(lab, selection)}, arm=arm, seed=lab.config.seed, round_=round_)
    entropy += probability.entropy_histogram(np.concatenate([generation.entropy for generation in written.generations]), "")
    progress(steps - 1, steps)
    draft.table("metrics", table("metrics", metrics))
    draft.table("reliability", table("reliability", reliability))
    draft.table("entropy", table("entropy", entropy))
    draft.table("generations", table("generations", generations))
    draft.table("probes", table("probes", _probes(lab, arm, round_)))
    draft.table("next_tokens", table("next_tokens", _next_tokens(lab, arm, round_)))
    if start is None:
        draft.json("start", first)
    draft.json("parameters", {**facts, "block_tokens": lab.config.eval.block_tokens, "scored": "reference tokens, no end token"})
    progress(steps, steps)


def repeat_evaluation(lab: Lab, arm: str, round_: int, start: Stage, draft: Draft) -> None:
    """The evaluation of a model that did not change is round 0's, to the last bit: same prompts, same noise."""
    for name in ("metrics", "probes", "next_tokens"):
        frame = start.frame(name).to_dicts()
        draft.table(name, table(name, [{**row, "arm": arm, "round": round_} for row in frame]))
    for name in ("reliability", "entropy", "generations"):
        draft.table(name, start.frame(name))
    draft.json("parameters", start.json("parameters"))


# real text --------------------------------------------------------------------------------------------------------------


def _real_text(
    lab: Lab, name: str, corpus: Corpus, first: dict[str, Any], at_start: bool
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """Metrics of one test set, its reliability diagram and its entropy histogram."""
    examples = [example for pair in corpus.pairs if (example := lab.example(corpus, pair)).prompt and example.response]
    scores = lab.engine.score(examples)
    if at_start:
        own = probability.perplexity(scores.logprob).value
        asis = lab.config.train.round0 == "asis"
        first[name] = {"ppl_0": own, "ppl_base": own if asis else probability.perplexity(lab.base_scores(examples).logprob).value}
    values = real_text_values(
        scores,
        bins=probability.frequency_bins(_token_counts(lab)),
        ppl_base=first[name]["ppl_base"],
        ppl_0=first[name]["ppl_0"],
        divergence=lab.engine.divergence(examples[:DIVERGENCE_EXAMPLES]),
    )
    reliability = probability.reliability(scores.confidence, scores.correct).rows(name)
    return values, reliability, probability.entropy_histogram(scores.entropy, name)


def _token_counts(lab: Lab) -> NDArray[np.int64]:
    ids = [token for pair in lab.train.pairs for token in lab.engine.encode_text(pair.reference)]
    return np.bincount(np.array(ids, dtype=np.int64), minlength=lab.engine.vocabulary)


# generated text ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """What the model wrote for the evaluation prompts, cut to eval.budget_tokens."""

    pairs: list[Pair]
    examples: list[Example]
    generations: list[Generation]
    prompts: list[str]
    texts: list[str]
    references: list[str]


def _write(lab: Lab) -> Written:
    corpus = next((corpus for corpus in lab.tests.values() if corpus.kind == "pairs"), next(iter(lab.tests.values())))
    budget = lab.config.eval.budget_tokens
    whole = [lab.example(corpus, pair) for pair in corpus.pairs]
    generations = sample(
        lab.engine, [example.prompt for example in whole], lab.config.generate, rng_for(lab.config.seed, 0, "evaluate"), lambda *_: None
    )
    return Written(
        corpus.pairs,
        [Example(example.prompt, generation.ids) for example, generation in zip(whole, generations, strict=True)],
        generations,
        [pair.prompt or lab.engine.decode(example.prompt) for pair, example in zip(corpus.pairs, whole, strict=True)],
        [lab.engine.decode(generation.ids[:budget]) for generation in generations],
        [lab.engine.decode(example.response[:budget]) for example in whole],
    )


def _generated_text(
    lab: Lab, written: Written, centroids: NDArray[np.float32] | None, draft: Draft
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Metrics of generated text, what they were computed with, and the generations themselves."""
    config, texts = lab.config, written.texts
    embeddings = lab.encoder.embed(texts)
    own = dispersion_centroids(embeddings, seed_for(config.seed, 0, "dispersion"))
    if centroids is None:
        centroids = own
        np.save(draft.file("centroids.npy"), own)
    frozen = lab.engine.score(written.examples, "frozen")
    scores = _bertscore(lab, written)
    values = generated_text_values(
        texts,
        token_counts=[len(generation.ids) for generation in written.generations],
        ended=[generation.ended for generation in written.generations],
        self_logprob=np.concatenate([generation.logprob for generation in written.generations]),
        frozen_logprob=frozen.logprob,
        entropy=np.concatenate([generation.entropy for generation in written.generations]),
        reference_counts=_unit_counts(lab),
        bertscore=scores,
        judge=lab.judge(texts) if config.eval.vendi_n else "eval.vendi_n is 0",
        dispersion=dispersion(embeddings, own),
        dispersion_frozen=dispersion(embeddings, centroids),
        nearest_reference=nearest_reference(embeddings, lab.real_embeddings),
        sample=config.eval.vendi_n,
    )
    facts = parameters(budget_units=pool_budget(len(texts)), sample=config.eval.vendi_n, bertscore=scores)
    facts |= {"encoder": lab.encoder.name, "decoding": config.generate.model_dump(mode="json")}
    return values, facts, _generation_rows(written, frozen.means(frozen.logprob, len(texts)), scores)


def _trained_text(lab: Lab, selection: Stage | None) -> dict[str, Value]:
    """Metrics of the generated text that the current model was trained on."""
    frame = selection.frame("training").filter(source="generated") if selection else None
    if frame is None or not frame.height:
        return trained_text_values([], [])
    responses = [ids[: len(ids) - (ids[-1:] == [lab.engine.end])] for ids in frame["response"].to_list()]
    examples = [Example(prompt, ids) for prompt, ids in zip(frame["prompt"].to_list(), responses, strict=True)]
    return trained_text_values([lab.engine.decode(ids) for ids in responses], lab.engine.score(examples, "frozen").logprob)


def _bertscore(lab: Lab, written: Written) -> BertScore | str:
    """The scores, or why there are none: a model that cannot be had must not end a run."""
    config = lab.config.eval
    if config.bertscore == "off":
        return "eval.bertscore is off"
    try:
        return bertscore(
            written.texts, written.references, config.bertscore, config.budget_tokens, lab.engine.device.replace("fake", "cpu")
        )
    except UserError as error:
        lab.events.note(str(error))
        return str(error)


def _unit_counts(lab: Lab) -> dict[str, int]:
    counts: dict[str, int] = {}
    for pair in lab.train.pairs:
        for unit in units(pair.reference):
            counts[unit] = counts.get(unit, 0) + 1
    return counts


def _generation_rows(written: Written, frozen: NDArray[np.float64], scores: BertScore | str) -> list[dict[str, Any]]:
    f1 = [None] * len(written.texts) if isinstance(scores, str) else [None if np.isnan(x) else float(x) for x in scores.f1]
    return [
        {
            "prompt_id": pair.id,
            "topic": pair.topic,
            "prompt": prompt,
            "reference": reference,
            "text": text,
            "tokens": len(generation.ids),
            "ended": generation.ended,
            "logprob": mean_or_none(generation.logprob),
            "frozen_logprob": None if np.isnan(under_start) else float(under_start),
            "loop": ends_in_loop(text),
            "rep_4": rep_4(text),
            "bertscore_f1": score,
        }
        for pair, prompt, reference, text, generation, under_start, score in zip(
            written.pairs, written.prompts, written.references, written.texts, written.generations, frozen, f1, strict=True
        )
    ]


def _probes(lab: Lab, arm: str, round_: int) -> list[dict[str, Any]]:
    """Every watched prompt, greedily and by the settings of the pool."""
    prompts = [lab.prompt(pair.prompt) for pair in lab.probes]
    written: list[tuple[str, Pair, Example]] = []
    for mode, decoding in (("greedy", "greedy"), ("sampled", "sample")):
        settings = lab.config.generate.model_copy(update={"decoding": decoding, "max_new_tokens": lab.config.eval.probe_tokens})
        found = sample(lab.engine, prompts, settings, rng_for(lab.config.seed, 0, "probes"), lambda *_: None)
        written += [(mode, pair, Example(prompt, one.ids)) for pair, prompt, one in zip(lab.probes, prompts, found, strict=True)]
    scores = lab.engine.score([example for _, _, example in written], "frozen")
    frozen = scores.means(scores.logprob, len(written))
    return [
        {
            "arm": arm,
            "round": round_,
            "prompt_id": pair.id,
            "prompt": pair.prompt,
            "mode": mode,
            "text": (text := lab.engine.decode(example.response)),
            "loop": ends_in_loop(text),
            "frozen_logprob": None if np.isnan(logprob) else float(logprob),
        }
        for (mode, pair, example), logprob in zip(written, frozen, strict=True)
    ]


def _next_tokens(lab: Lab, arm: str, round_: int) -> list[dict[str, Any]]:
    """What the model would say first to every watched prompt."""
    found = lab.engine.next_tokens([lab.prompt(pair.prompt) for pair in lab.probes], NEXT_TOKENS)
    return [
        {"arm": arm, "round": round_, "prompt_id": pair.id, "rank": rank, "token": lab.engine.piece(token), "probability": probability}
        for pair, likeliest in zip(lab.probes, found, strict=True)
        for rank, (token, probability) in enumerate(likeliest, 1)
    ]
