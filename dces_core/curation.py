"""One DCES step on any pool of texts: `dces_core.curate` in Python, `dces curate` in a terminal, the page Curate.

The stages are those of a run (stages/curate.py). What a run knows and a pool may lack, a model, log-probabilities or real text, is
left out with a reason; an arm that is nothing without it is refused. The controller's state goes from round to round in a State.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dces_core import data, models, pool_file
from dces_core.arms import ARMS, Arm
from dces_core.config import RunConfig, parse
from dces_core.curation_state import Memory, State, read_state, remembered, settings_of, write_state
from dces_core.data import Corpus
from dces_core.engines.base import Example, LanguageModel, silent
from dces_core.errors import UserError
from dces_core.events import Progress
from dces_core.lab import Tools
from dces_core.pool_file import Source
from dces_core.seeds import seed_for
from dces_core.stages.control import Reference, reference_spread
from dces_core.stages.curate import Curation, curate_pool, reference_of, watched_entropy
from dces_core.stages.generate import pool_examples
from dces_core.stages.select import measure_reference
from dces_core.store import WEIGHTS

BY_PERPLEXITY = ("ppl-low", "ppl-high", "ppl-band")
SELECTED = (
    "id", "arm", "round", "prompt", "text", "pool_text", "role", "cluster", "distance", "centrality", "logprob", "frozen_logprob",
    "fate", "reason", "flagged", "changed", "edits",
)  # fmt: skip
IGNORED = -100  # the label of a token that is not learned, as transformers and TRL have it
DRAWS = 40  # bootstrap draws of the first pool, where there is no real text
NO_MODEL, NO_REFERENCE = "no model was given", "no reference was given"


@dataclass(frozen=True)
class Curated:
    """What one step made of a pool."""

    table: pl.DataFrame  # SAMPLES: every row of the pool, in its order, with role, distance, fate and reason
    selected: pl.DataFrame  # SELECTED: the picked rows in training order; with `input_ids` and `labels` where an arm edits targets
    state: dict[str, Any]  # a State: give it to the next round
    report: dict[str, Any]  # counts, the controller, and `undefined`: what was not possible, and why


def curate(
    pool: Source,
    n: int,
    *,
    arm: str = "dces",
    model: str | LanguageModel | None = None,
    current: str | Path | None = None,
    reference: Source | None = None,
    state: str | Path | dict[str, Any] | None = None,
    seed: int | None = None,
    settings: RunConfig | Sequence[str] = (),
    progress: Progress = silent,
) -> Curated:
    """Choose `n` of a pool's rows by an arm's rule.

    pool: a JSONL, CSV or Parquet file, a table, or rows; with `prompt` and `text`, perhaps `logprob` and `round` (docs/curate.md).
    model: M_0, which edits and judges: a name, a folder, or a loaded engine. current: weights of M_{t-1} (default: M_0's).
    reference: real pairs or texts, or "everyday". state: of the round before; a path is read if it exists, and replaced.
    settings: of a run, or `section.key=value`. seed: default the state's, else that of `settings`.
    Raises UserError where something needed is missing or wrong.
    """
    rule, frame, before = _arm(arm), pool_file.read_pool(pool), read_state(state)
    config = _config(settings if isinstance(settings, RunConfig) else settings_of(settings), n, frame, seed, model, before)
    round_ = _round(frame, before)
    _refuse(rule, frame, config, model, current, before)
    tools = _tools(config, model, _weights(current), _corpus(reference, config))
    found = _step(tools, rule, round_, frame, before, progress)
    if isinstance(state, str | Path):
        write_state(Path(state), found.state)
    return found


# what is refused --------------------------------------------------------------------------------------------------------


def _arm(name: str) -> Arm:
    usable = [arm.name for arm in ARMS.values() if not arm.real and arm.select != "none"]
    if name in usable:
        return ARMS[name]
    why = "draws no sample from a pool alone" if name in ARMS else "is no arm"
    raise UserError(f"arm = {name[:80]!r} {why}; use one of: {', '.join(usable)}.")


def _config(
    settings: RunConfig, n: int, frame: pl.DataFrame, seed: int | None, model: str | LanguageModel | None, before: State | None
) -> RunConfig:
    """The settings with what the call says; their pool is this one."""
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= frame.height:
        raise UserError(f"n = {n!r} must be a whole number from 1 to the pool's {frame.height} rows; lower it, or give a larger pool.")
    if before and seed is not None and seed != before.seed:
        raise UserError(f"seed = {seed} is not the state's seed {before.seed}; leave it out, or begin a new state.")
    seed = seed if seed is not None else before.seed if before else settings.seed
    parse({"seed": seed})
    name = model if isinstance(model, str) else model.name if model is not None else ""
    update: dict[str, Any] = {"seed": seed, "model": name, "engine": "fake" if name == "fake" else "hf", "train": parse({}).train}
    return settings.model_copy(update={**update, "pool": settings.pool.model_copy(update={"n": n, "factor": frame.height / n})})


def _round(frame: pl.DataFrame, before: State | None) -> int:
    """The pool's own round, else the one after the state's."""
    given, last = frame["round"].unique().sort(nulls_last=True).to_list(), before.round if before else 0
    if len(given) > 1:
        raise UserError(f"round has several values in the pool ({str(given)[1:60]}...); give one round's rows, or drop the column.")
    if before and before.pool == pool_file.fingerprint(frame):
        raise UserError(f"pool is the one of the state's round {last}; give the next round's pool, or the state of the round before.")
    if given[0] is not None and given[0] <= last:
        raise UserError(f"round = {given[0]} in the pool, but the state is of round {last}; give a later round's pool, or another state.")
    return given[0] or last + 1


def _refuse(
    arm: Arm, frame: pl.DataFrame, config: RunConfig, model: str | LanguageModel | None, current: str | Path | None, before: State | None
) -> None:
    if before and before.arm != arm.name:
        raise UserError(f"arm = {arm.name!r}, but the state is of arm {before.arm!r}; use that arm, or begin a new state.")
    if before:
        now = remembered(config)
        other = [key for key in now if now[key] != before.settings.get(key)]
        if other:
            words = f"{other[0]} = {now[other[0]]!r}, but the state was made with {before.settings.get(other[0])!r}"
            raise UserError(f"{words}; keep the settings of the first round, or begin a new state.")
    if model is not None:
        if isinstance(model, str) and model != "fake":
            models.check(model)
        return
    if current is not None:
        raise UserError("current gives weights without a model; say which model they belong to.")
    if arm.edit == "targets" or (arm.edit != "none" and arm.select == "random"):
        raise UserError(f"arm = {arm.name!r} edits what it picks and needs a model; give one, or use 'dces-no-edit' or 'random'.")
    if config.split.scorer == "frozen":
        raise UserError("split.scorer = 'frozen' scores the pool by a model; give one, or use 'current'.")
    if arm.select in BY_PERPLEXITY and frame["logprob"].is_null().all():
        raise UserError(f"arm = {arm.name!r} picks by perplexity; give the pool a column logprob, or give a model that scores it.")


def _weights(current: str | Path | None) -> Path | None:
    """A safetensors file, or the one in a model's folder."""
    if current is None:
        return None
    path = Path(current) / WEIGHTS if Path(current).is_dir() else Path(current)
    if path.suffix != ".safetensors" or not path.is_file():
        raise UserError(f"current = {str(current)!r} is neither a safetensors file nor a folder with {WEIGHTS}; save the model there.")
    return path


def _corpus(reference: Source | None, config: RunConfig) -> Corpus:
    """The real texts; empty without any."""
    if reference is None:
        return Corpus("reference", "pairs", [])
    if isinstance(reference, str | Path):
        return data.load("reference", f"reference = {str(reference)!r}", str(reference), "train")
    given = reference.iter_rows(named=True) if isinstance(reference, pl.DataFrame) else reference
    return data.corpus_of("reference", "reference", [(f"row {number}", dict(row)) for number, row in enumerate(given, 1)])


# the step ---------------------------------------------------------------------------------------------------------------


def _tools(config: RunConfig, model: str | LanguageModel | None, weights: Path | None, train: Corpus) -> Tools:
    """Engine (where there is a model) and encoder, loaded."""
    tools = Tools(config, train, lambda text: None)
    if model is None:
        from dces_core.engines.encoder import load_encoder

        device = "cpu"
        if config.encoder.name != "hash":
            from dces_core.engines.hf import pick_device

            device = str(pick_device(config.device))
        tools.encoder = load_encoder(config.encoder.name, device)
        return tools
    if not isinstance(model, str):
        tools.engine = model
    engine = tools.engine
    if weights:
        try:
            engine.load(weights)
        except (RuntimeError, KeyError, StopIteration, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
            raise UserError(
                f"current = {str(weights)!r} does not fit model {config.model!r} ({reason}); give weights of that model."
            ) from None
    return tools


def _step(tools: Tools, arm: Arm, round_: int, frame: pl.DataFrame, before: State | None, progress: Progress) -> Curated:
    """Tokens and scores where there is a model, set-points in the first round, then what a run does."""
    config, modelled = tools.config, "engine" in vars(tools)
    notes: list[str] = []
    limit: int | None = before.max_tokens if before else None
    examples: list[Example] = []
    if modelled:
        frame, notes = _tokenised(tools, frame)
        examples = pool_examples(tools.engine, frame)
        longest = max(len(example.response) for example in examples)
        limit = limit or max(config.generate.max_new_tokens, longest)
        tools.config = _limited(config, limit)
    embeddings = tools.encoder.embed(frame["text"].to_list())
    progress(1, 3)
    reference = before.reference if before else _reference(tools, frame, embeddings, modelled)
    watched = watched_entropy(tools, arm) if modelled and tools.train.pairs else None
    if modelled:
        room = tools.engine.context - max(len(example.prompt) for example in examples)
        tools.config = _limited(config, min(max(limit or 0, longest), room))  # an edited text may be as long as any of the pool
    tools.config = _adapted(tools.config, arm, frame)
    rule = arm if modelled else replace(arm, edit="none", filter=False)
    memory = before.controller.model_dump() if before else None
    found = curate_pool(tools, rule, round_, frame, examples, embeddings, reference, memory, watched, progress)
    undefined = _undefined(tools, arm, frame, found, reference)
    state = State(
        schema_version=1, arm=arm.name, seed=config.seed, round=round_, pool=pool_file.fingerprint(frame), settings=remembered(config),
        max_tokens=limit, reference=reference, controller=Memory(**found.controller),
    )  # fmt: skip
    progress(3, 3)
    return Curated(
        found.samples, _selected(arm, found), state.model_dump(mode="json", exclude_unset=True), _report(found, undefined, notes)
    )


def _limited(config: RunConfig, tokens: int) -> RunConfig:
    return config.model_copy(update={"generate": config.generate.model_copy(update={"max_new_tokens": tokens})})


def _tokenised(tools: Tools, frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """The pool with its tokens and, where it has none, log-probabilities by the current model; and what there is to say."""
    engine, notes = tools.engine, []
    prompts, ids = frame["prompt_ids"].to_list(), frame["ids"].to_list()
    ended = frame["ended"].fill_null(True).to_list()
    limit = min(tools.config.eval.block_tokens, engine.context)
    if None in prompts or None in ids:
        prompts, whole = [tools.prompt(text) for text in frame["prompt"]], [engine.encode_text(text) for text in frame["text"]]
        ids = [tokens[: max(0, limit - 1 - len(prompt))] for prompt, tokens in zip(prompts, whole, strict=True)]
        kept = [len(short) == len(tokens) for short, tokens in zip(ids, whole, strict=True)]
        ended = [end and fits for end, fits in zip(ended, kept, strict=True)]
        if not all(kept):
            notes.append(f"{kept.count(False)} texts were cut to eval.block_tokens = {limit} tokens, prompt included")
    for name, prompt, tokens in zip(frame["id"], prompts, ids, strict=True):
        if len(prompt) + len(tokens) >= engine.context or (not tokens and len(prompt) + 1 >= limit):
            raise UserError(f"pool: the row {name[:80]!r} has {len(prompt) + len(tokens)} tokens, over the limit of {limit}; shorten it.")
        if max([*prompt, *tokens], default=0) >= engine.vocabulary:
            raise UserError(f"pool: the row {name[:80]!r} has token ids that {engine.name!r} does not know; drop ids and prompt_ids.")
    facts = {"prompt_ids": pl.Series(prompts, dtype=pool_file.IDS), "ids": pl.Series(ids, dtype=pool_file.IDS), "ended": pl.Series(ended)}
    frame = frame.with_columns(**facts, tokens=pl.Series([len(tokens) for tokens in ids], dtype=pl.Int32))
    if frame["logprob"].is_null().all():
        examples = [Example(prompt, tokens) for prompt, tokens in zip(prompts, ids, strict=True)]
        scores = engine.score(examples)
        for column, values in (("logprob", scores.logprob), ("entropy", scores.entropy)):
            frame = frame.with_columns(pl.Series(column, scores.means(values, len(examples)), nan_to_null=True))
        notes.append("logprob and entropy are the current model's: the pool has no column logprob")
    return frame, notes


def _reference(tools: Tools, first: pl.DataFrame, embeddings: NDArray[np.float32], modelled: bool) -> Reference:
    """Set-points of the first round: as in a run where there are a model and real text, else what there is. [ours]

    Without real text the sd of dispersion comes from bootstrap draws of the first pool itself.
    """
    if modelled and tools.train.pairs:
        return reference_of(tools, first, silent)
    texts, unknown = [pair.reference for pair in tools.train.pairs], np.full(1, np.nan)
    real = tools.encoder.embed(texts) if texts else embeddings[:0]
    made = measure_reference(tools.config, first, embeddings, real, unknown, unknown)
    if texts:
        return made
    sd = reference_spread(embeddings, len(embeddings), seed_for(tools.config.seed, 0, "bootstrap"), DRAWS).sd
    return replace(made, round0={**made.round0, "dispersion": replace(made.round0["dispersion"], sd=sd)})


def _adapted(config: RunConfig, arm: Arm, frame: pl.DataFrame) -> RunConfig:
    """Settings for what the pool lacks and a file can hold: no distribution as a label, no rank of log-probabilities that are not there."""
    if arm.edit == "targets":
        config = config.model_copy(update={"edit": config.edit.model_copy(update={"labels": "draw"})})
    if frame["logprob"].is_null().all():
        config = config.model_copy(update={"split": config.split.model_copy(update={"weight": 1.0})})
    return config


def _undefined(tools: Tools, arm: Arm, frame: pl.DataFrame, found: Curation, reference: Reference) -> dict[str, str]:
    """What was not possible, and why."""
    modelled, why = "engine" in vars(tools), {}
    controller = found.controller
    if arm.edit != "none" and not modelled:
        controller["edit_reason"] = why["edits"] = NO_MODEL
    if arm.filter and tools.config.filter.on and (not modelled or reference.quality_limit is None):
        why["quality_limit"] = NO_MODEL if not modelled else NO_REFERENCE
    if frame["logprob"].is_null().all():
        why["logprob"] = "the pool has no column logprob and no model scores it: center and edge by distance alone"
    if frame["entropy"].is_null().all():
        why["entropy"] = "the pool has no column entropy"
    if reference.real["dispersion"].mean is None:
        why["setpoint_of_real_text"] = f"{NO_REFERENCE}: the set-points are the first round's own values, kept in the state"
    for name, reason in (("edge_share", "reason"), ("edit_temperature", "edit_reason")):
        if controller[reason] and (controller[name] is None or controller[reason] != "dynamic is off"):
            word = "" if controller[name] is None else "constant: "
            why.setdefault(name, f"{word}{controller[reason]}")
    return why


def _selected(arm: Arm, found: Curation) -> pl.DataFrame:
    """The picked rows in training order."""
    frame = found.samples[found.order].with_columns(pool_text="text", text="trained_text").select(SELECTED)
    if arm.edit != "targets":
        return frame
    inputs = [example.prompt + example.response for example in found.examples]
    labels = [[IGNORED] * len(example.prompt) + (example.labels or example.response) for example in found.examples]
    return frame.with_columns(pl.Series("input_ids", inputs, dtype=pool_file.IDS), pl.Series("labels", labels, dtype=pool_file.IDS))


def _report(found: Curation, undefined: dict[str, str], notes: list[str]) -> dict[str, Any]:
    """The round in figures. `undefined`: what was not possible, and why; `notes`: what happened besides."""
    facts = found.controller
    kept = (
        "arm", "round", "signal", "value", "setpoint", "sd", "error", "edge_share", "edit_signal", "edit_value", "edit_setpoint",
        "edit_error", "edit_temperature", "clusterer", "quality_limit", "flagged", "changed", "edited_tokens",
    )  # fmt: skip
    sampling = {"sampling_temperature": facts["sampling_temperature"]} if "sampling_temperature" in facts else {}
    own = {**{name: facts[name] for name in kept}, **sampling}
    return {**own, "n": len(found.order), **facts["flow"], "undefined": undefined, "notes": [*facts["notes"], *notes]}


def write_jsonl(frame: pl.DataFrame, path: Path, field: str = "out") -> None:
    """Write rows to a JSONL file, whole or not at all. Raises UserError where it cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        frame.write_ndjson(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{field} = {str(path)!r} cannot be written: {error.strerror or error}; choose another place.") from None
    finally:
        temporary.unlink(missing_ok=True)
