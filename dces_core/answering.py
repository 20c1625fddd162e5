"""What a question's process does: load each checkpoint, answer greedily and by sampling, write down what came."""

from __future__ import annotations

from typing import Any

from dces_core.ask import Checkpoint, Job, Question
from dces_core.config import RunConfig
from dces_core.engines.base import LanguageModel
from dces_core.errors import UserError
from dces_core.events import Events
from dces_core.metrics.text import ends_in_loop
from dces_core.seeds import rng_for
from dces_core.stage import write_json
from dces_core.stages.generate import mean_or_none, sample


def answer(job: Job, events: Events) -> None:
    """Ask every checkpoint in turn: the same prompt and the same noise for each. Answers appear as they come.

    Raises UserError for a prompt that leaves no room, and where weights or the model are not there.
    """
    try:
        asked, config = job.question, job.config
        engine = _engine(config)
        prompt = engine.encode_prompt(f"{asked.prompt} {config.data.instruction}".strip())
        if len(prompt) + asked.max_new_tokens > engine.context:
            raise UserError(
                f"prompt has {len(prompt)} tokens; with max_new_tokens = {asked.max_new_tokens} it exceeds the model's context of "
                f"{engine.context}: shorten it, or ask for fewer tokens."
            )
        rows: list[dict[str, Any]] = []
        for index, place in enumerate(asked.checkpoints):
            events.check_stop()
            engine.load(job.weights(index))
            for mode in ("greedy", "sampled") if asked.samples else ("greedy",):
                rows += _answers(engine, prompt, asked, config, place, mode, events)
                write_json(job.answers_path, rows)
    finally:
        job.unlink_weights()


def _engine(config: RunConfig) -> LanguageModel:
    if config.engine == "fake":
        from dces_core.engines.fake import FakeModel

        return FakeModel()
    from dces_core.engines.hf import HFModel

    return HFModel(config)


def _answers(
    engine: LanguageModel, prompt: list[int], asked: Question, config: RunConfig, place: Checkpoint, mode: str, events: Events
) -> list[dict[str, Any]]:
    """One checkpoint's answers in one mode, as rows of ask.ANSWERS."""
    own = asked.model_dump(include={"max_new_tokens", "temperature", "top_p", "top_k"})
    settings = config.generate.model_copy(update={**own, "decoding": "greedy" if mode == "greedy" else "sample"})
    draws = 1 if mode == "greedy" else asked.samples
    with events.span(place.round, place.arm, mode) as progress:
        found = sample(engine, [prompt] * draws, settings, rng_for(asked.seed, 0, "ask"), progress)
    rows = []
    for draw, generation in enumerate(found, 1):
        text = engine.decode(generation.ids)
        rows.append(
            {
                "arm": place.arm, "round": place.round, "mode": mode, "draw": draw, "text": text, "tokens": len(generation.ids),
                "ended": generation.ended, "logprob": mean_or_none(generation.logprob), "loop": ends_in_loop(text),
            }
        )  # fmt: skip
    return rows
