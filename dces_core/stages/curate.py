"""Steps 2 to 8 of a round: the pool becomes a sample table, the controller's state, and the round's training data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dces_core.arms import Arm
from dces_core.engines.base import Example, Soft, Which
from dces_core.events import Progress
from dces_core.lab import Lab, Tools
from dces_core.seeds import rng_for, seed_for
from dces_core.stage import Draft, Stage
from dces_core.stages.control import Reference
from dces_core.stages.edit import edit, with_edits
from dces_core.stages.generate import draw_prompts, mean_or_none, pool_examples
from dces_core.stages.remarks import remarks
from dces_core.stages.select import SelectInputs, Selection, measure_reference, select

TOKENS = pl.List(pl.Int32)
TRAINING: dict[str, pl.DataType | type[pl.DataType]] = {
    "id": pl.String, "source": pl.String, "prompt": TOKENS, "response": TOKENS, "labels": TOKENS, "soft": TOKENS, "temperature": pl.Float64,
}  # fmt: skip


@dataclass(frozen=True)
class Curation:
    """What became of one pool."""

    samples: pl.DataFrame  # SAMPLES, edits filled in
    controller: dict[str, Any]  # as Selection's, with what editing amounts to
    order: NDArray[np.int64]  # picked rows in training order
    examples: list[Example]  # what they train on, in that order; empty where the pool came without tokens


def write_reference(lab: Lab, pool: Stage, draft: Draft, progress: Progress) -> None:
    """What the feedback loop compares with, once per run."""
    draft.json("reference", asdict(reference_of(lab, pool.frame("pool"), progress)))


def reference_of(lab: Tools, first: pl.DataFrame, progress: Progress) -> Reference:
    """Set-points from the `first` pool and from real text cut to the same token budget, under the frozen M_0."""
    limit = lab.config.generate.max_new_tokens
    examples = [lab.example(lab.train, pair) for pair in lab.train.pairs]
    examples = [Example(example.prompt, example.response[:limit]) for example in examples]
    scores = lab.engine.score(examples, "frozen", progress)
    logprob = scores.means(scores.logprob, len(examples))
    entropy = scores.means(scores.entropy, len(examples))
    texts = [lab.engine.decode(example.response) for example in examples]
    return measure_reference(
        lab.config,
        first,
        lab.encoder.embed(first["text"].to_list()),
        lab.encoder.embed(texts),
        logprob,
        entropy,
        entropy_real(lab, "frozen"),
    )


def write_selection(
    lab: Lab, arm: Arm, round_: int, pool: Stage, reference: Stage, previous: Mapping[str, Any] | None, draft: Draft, progress: Progress
) -> None:
    """Select, edit and compose one round of one arm; the engine's current model is M_{t-1}."""
    frame = pool.frame("pool")
    examples = pool_examples(lab.engine, frame)
    embeddings = lab.encoder.embed(frame["text"].to_list())
    progress(1, 3)
    found = curate_pool(
        lab, arm, round_, frame, examples, embeddings, Reference.from_json(reference.json("reference") or {}), previous,
        watched_entropy(lab, arm), progress,
    )  # fmt: skip
    said = remarks(found.controller)
    if said:
        lab.events.note(f"round {round_}, {arm.name}: {'; '.join(said)}")
    picked = zip(found.order.tolist(), found.examples, strict=True)
    rows = [_training_row(frame["id"][i], "generated", example) for i, example in picked]
    real = _real_rows(lab, arm, round_)
    draft.table("samples", found.samples)
    draft.table("training", pl.DataFrame(rows + real, schema=TRAINING))
    draft.json("controller", {**found.controller, "real_pairs": len(real)})
    np.save(draft.file("embeddings.npy"), embeddings)
    progress(3, 3)


def curate_pool(
    lab: Tools, arm: Arm, round_: int, frame: pl.DataFrame, examples: list[Example], embeddings: NDArray[np.float32],
    reference: Reference, previous: Mapping[str, Any] | None, watched: float | None, progress: Progress,
) -> Curation:  # fmt: skip
    """Select from a pool and edit what was picked. `examples`: the pool as tokens; empty for an arm that needs no model."""
    chosen = select(
        SelectInputs(
            arm, lab.config, round_, frame.drop("prompt_ids", "ids", strict=False), embeddings,
            lambda rows: mean_logprob(lab, [examples[i] for i in rows]), reference, previous, watched,
        )
    )  # fmt: skip
    progress(2, 3)
    samples, facts, edited = _edit(lab, arm, round_, chosen, examples)
    final = [edited.get(i, examples[i]) for i in chosen.order.tolist()] if examples else []
    return Curation(samples, {**chosen.controller, **facts}, chosen.order, final)


def mean_logprob(lab: Tools, examples: list[Example]) -> NDArray[np.float64]:
    """(len(examples),) mean log-probability under the frozen M_0, nats per token; NaN for an empty response."""
    scores = lab.engine.score(examples, "frozen")
    return scores.means(scores.logprob, len(examples))


def entropy_real(lab: Tools, which: Which) -> float | None:
    """Mean entropy (nats per token) on controller.watched real training references, the same ones in every round; None without tokens."""
    pairs = lab.train.pairs
    rows = rng_for(lab.config.seed, 0, "watched").permutation(len(pairs))[: lab.config.controller.watched]
    limit = lab.config.generate.max_new_tokens
    examples = [lab.example(lab.train, pairs[row]) for row in rows]
    return mean_or_none(lab.engine.score([replace(e, response=e.response[:limit]) for e in examples], which).entropy)


def watched_entropy(lab: Tools, arm: Arm) -> float | None:
    """The signal entropy_real of M_{t-1}, where an arm is steered by it."""
    steered = arm.edit != "none" or arm.decode == "controlled"
    return entropy_real(lab, "current") if steered and lab.config.controller.edit_signal == "entropy_real" else None


def _edit(
    lab: Tools, arm: Arm, round_: int, chosen: Selection, examples: list[Example]
) -> tuple[pl.DataFrame, dict[str, Any], dict[int, Example]]:
    """The sample table with its edits, what they amount to, and the edited examples by pool row."""
    if arm.edit == "none":
        return chosen.samples, {"flagged": None, "changed": None, "edited_tokens": None}, {}
    before = [examples[i] for i in chosen.edit]
    result = edit(
        lab.engine, before, arm.editing(lab.config.edit), arm.edit, lab.config.generate, chosen.controller["edit_temperature"],
        seed_for(lab.config.seed, round_, "edit"), chosen.edit.tolist(),
    )  # fmt: skip
    texts = [lab.engine.decode(example.response) for example in result.examples]
    facts = {
        "flagged": int(result.flagged.sum()),
        "changed": int(result.changed.sum()),
        "edited_tokens": sum(len(example.response) for example in before),
    }
    edited = dict(zip(chosen.edit.tolist(), result.examples, strict=True))
    return with_edits(chosen.samples, chosen.edit, result, texts), facts, edited


def _real_rows(lab: Lab, arm: Arm, round_: int) -> list[dict[str, Any]]:
    """The real pairs among a round's N samples: the regime's, and the arm's own."""
    pairs = []
    for stream, count in zip((0, round_), arm.real_pairs(lab.config.train, lab.config.pool.n), strict=True):
        if count:
            rows = draw_prompts(len(lab.train.pairs), count, rng_for(lab.config.seed, stream, "real"))
            pairs += [lab.train.pairs[i] for i in rows]
    real = [(pair, lab.training_example(lab.train, pair)) for pair in pairs]
    return [_training_row(pair.id, "real", example) for pair, example in real]


def _training_row(id_: str, source: str, example: Example) -> dict[str, Any]:
    soft = example.soft
    return {
        "id": id_, "source": source, "prompt": example.prompt, "response": example.response, "labels": example.labels,
        "soft": soft.positions if soft else None, "temperature": soft.temperature if soft else None,
    }  # fmt: skip


def training_data(lab: Lab, round_: int, rounds: list[Stage]) -> list[Example]:
    """What a round trains on, from the `select` stages of rounds 1..t (this one last), by train.regime."""
    found = _by_regime(lab, round_, rounds)
    silent = sum(not example.response for example in found)
    if silent:
        whole = "the model stays as it was" if silent == len(found) else "fewer optimiser steps"
        lab.events.note(f"round {round_}, train: {silent} of {len(found)} samples have no token to learn: {whole}")
    return found


def _by_regime(lab: Lab, round_: int, rounds: list[Stage]) -> list[Example]:
    settings = lab.config.train
    if settings.regime in ("accumulate", "accumulate-subsample"):
        found = [example for stage in rounds for example in _examples(lab, stage)]
        if settings.round0 == "finetune":
            found = [lab.training_example(lab.train, pair) for pair in lab.train.pairs] + found
        if settings.regime == "accumulate-subsample" and len(found) > lab.config.pool.n:
            kept = rng_for(lab.config.seed, round_, "subsample").choice(len(found), lab.config.pool.n, replace=False)
            found = [found[i] for i in kept]
        return found
    return _examples(lab, rounds[-1])


def _examples(lab: Lab, stage: Stage) -> list[Example]:
    def soft(row: dict[str, Any]) -> Soft | None:
        return None if row["soft"] is None else Soft(row["soft"], row["temperature"], lab.config.edit.top_k)

    return [Example(row["prompt"], row["response"], row["labels"], soft(row)) for row in stage.frame("training").to_dicts()]
