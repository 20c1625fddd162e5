"""Sampling: ours against transformers' `generate` and CTranslate2."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dces_core import models
from dces_core.bench import sides
from dces_core.bench.clock import Pair, alternate
from dces_core.bench.plan import Plan
from dces_core.bench.rows import Row, skipped
from dces_core.config import Generate
from dces_core.engines.base import LanguageModel
from dces_core.lab import Lab
from dces_core.seeds import rng_for
from dces_core.stages.generate import draw_prompts

UNIT = "tokens/s"
Side = Callable[[int], int]  # the repetition in, tokens out


def topp(plan: Plan) -> list[Row]:
    """Nucleus sampling of one batch."""
    return [_against_transformers("generate-topp", plan, temperature=0.8, top_p=0.95, top_k=0)]


def topk(plan: Plan) -> list[Row]:
    """The same with top-k 50 in place of the nucleus."""
    return [_against_transformers("generate-topk", plan, temperature=0.8, top_p=1.0, top_k=50)]


def greedy(plan: Plan) -> list[Row]:
    """The same, greedily."""
    return [_against_transformers("generate-greedy", plan, decoding="greedy")]


def pool(plan: Plan) -> list[Row]:
    """Round 1's pool of the recipe: ours with its own batches and order, the peer in batches of 32 as the prompts come; ends end."""
    with sides.open_lab(sides.settings(plan)) as lab:
        config = lab.config
        rows = draw_prompts(len(lab.train.pairs), config.pool.size, rng_for(config.seed, 1, "prompts"))
        prompts = [lab.prompt(lab.train.pairs[i].prompt) for i in rows]
        peer = _transformers(plan, lab, prompts, config.generate, plan.batch, stop=True)
        pair = alternate(_ours(lab.engine, prompts, config.generate), peer, plan.repeats)
    return [
        _row(
            "generate-round",
            pair,
            f"{len(prompts)} prompts of {plan.recipe}, up to {config.generate.max_new_tokens} tokens, {plan.precision}",
        )
    ]


def ctranslate2(plan: Plan) -> list[Row]:
    """As generate-topp against CTranslate2 in int8, converted once, outside the timed part."""
    name = "generate-ct2"
    if importlib.util.find_spec("ctranslate2") is None:
        return [skipped(name, "ctranslate2 is not installed: pip install -c constraints.txt -e .[bench]")]
    settings = fixed(plan, temperature=0.8, top_p=0.95, top_k=0)
    with sides.open_lab(sides.settings(plan)) as lab, tempfile.TemporaryDirectory(prefix="dces-bench-") as folder:
        started = time.perf_counter()
        _convert(Path(str(models.resolve(plan.model))), Path(folder) / "model")
        seconds = time.perf_counter() - started
        prompts = sides.prompts(lab, plan.batch)
        pair = alternate(
            _endless(lab.engine, prompts, settings), _ctranslate2(Path(folder) / "model", lab.engine, prompts, settings), plan.repeats
        )
    return [_row(name, pair, f"int8; the conversion, which a round would need once, took {seconds:.0f} s more")]


def _against_transformers(name: str, plan: Plan, **decoding: Any) -> Row:
    settings = fixed(plan, **decoding)
    with sides.open_lab(sides.settings(plan)) as lab:
        prompts = sides.prompts(lab, plan.batch)
        peer = _transformers(plan, lab, prompts, settings, plan.batch, stop=False)
        pair = alternate(_endless(lab.engine, prompts, settings), peer, plan.repeats)
    return _row(name, pair, f"{plan.batch} x {plan.new_tokens} tokens, {plan.precision}")


def _row(name: str, pair: Pair, note: str) -> Row:
    return Row(name, pair.ours, pair.peer, pair.ratio, UNIT, pair.n, note)


def fixed(plan: Plan, **decoding: Any) -> Generate:
    """Decoding settings of a bench whose responses all have the plan's length."""
    return Generate(max_new_tokens=plan.new_tokens, batch_size=plan.batch, **decoding)


# the sides --------------------------------------------------------------------------------------------------------------


def _ours(engine: LanguageModel, prompts: list[list[int]], settings: Generate) -> Side:
    def work(repetition: int) -> int:
        noise = np.random.default_rng(repetition).random((len(prompts), settings.max_new_tokens))
        found = engine.generate(prompts, settings, noise)
        return sum(len(one.ids) + one.ended for one in found)

    return work


def _endless(engine: LanguageModel, prompts: list[list[int]], settings: Generate) -> Side:
    """As `_ours`, with no token that ends a response."""
    engine._ends = []  # type: ignore[attr-defined]
    whole, work = len(prompts) * settings.max_new_tokens, _ours(engine, prompts, settings)

    def all_tokens(repetition: int) -> int:
        done = work(repetition)
        assert done == whole, f"{done} tokens in place of {whole}"
        return done

    return all_tokens


def _transformers(plan: Plan, lab: Lab, prompts: list[list[int]], settings: Generate, batch: int, stop: bool) -> Side:
    """`generate` in batches as the prompts come; without `stop`, nothing ends a response. Counts up to the first end."""
    model = sides.peer_model(plan, sides.peer_type(plan))
    ends = list(lab.engine._ends) if stop else []  # type: ignore[attr-defined]
    model.generation_config.eos_token_id = ends or None
    options: dict[str, Any] = {"do_sample": False}
    if settings.decoding == "sample":
        options = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k}

    @torch.inference_mode()
    def work(repetition: int) -> int:
        torch.manual_seed(repetition)
        count = 0
        for start in range(0, len(prompts), batch):
            ids, mask = _left_padded(prompts[start : start + batch], lab.engine.end)
            out = model.generate(ids, attention_mask=mask, max_new_tokens=settings.max_new_tokens, pad_token_id=lab.engine.end, **options)
            ended = torch.isin(out[:, ids.shape[1] :], torch.tensor(ends, dtype=out.dtype))
            count += int((ended.cumsum(1) - ended.long() == 0).sum())  # up to the first end, which counts
        return count

    return work


def _left_padded(prompts: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def _convert(source: Path, target: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(source)).convert(str(target), quantization="int8")


def _ctranslate2(folder: Path, engine: LanguageModel, prompts: list[list[int]], settings: Generate) -> Side:
    """A generator whose responses all have the full length."""
    import ctranslate2

    model = ctranslate2.Generator(str(folder), device="cpu", compute_type="int8", intra_threads=torch.get_num_threads())
    tokens = [engine.tokenizer.convert_ids_to_tokens(prompt) for prompt in prompts]  # type: ignore[attr-defined]
    whole = len(prompts) * settings.max_new_tokens

    def work(repetition: int) -> int:
        ctranslate2.set_random_seed(repetition)
        found = model.generate_batch(
            tokens, include_prompt_in_result=False, min_length=settings.max_new_tokens, max_length=settings.max_new_tokens,
            sampling_topk=settings.top_k, sampling_topp=settings.top_p, sampling_temperature=settings.temperature,
        )  # fmt: skip
        done = sum(len(one.sequences_ids[0]) for one in found)
        assert done == whole, f"{done} tokens in place of {whole}"
        return done

    return work
