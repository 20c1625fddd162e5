"""The two sides of a model bench: our engine in a temporary run, and transformers with the same weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from dces_core import models, store
from dces_core.bench.plan import Plan
from dces_core.config import RunConfig, load_recipe
from dces_core.engines.base import Example
from dces_core.events import Events
from dces_core.lab import Lab


def settings(plan: Plan, *changes: str) -> RunConfig:
    """The plan's recipe with its model, on the processor, in its precision; later changes win."""
    own = (f'model="{plan.model}"', 'device="cpu"', f'train.precision="{plan.precision}"')
    return load_recipe(plan.recipe, [*own, *plan.changes, *changes])


@contextmanager
def open_lab(config: RunConfig) -> Iterator[Lab]:
    """A run in a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="dces-bench-") as folder:
        run = store.create(config, {}, Path(folder) / "run")
        events = Events(run, {})
        try:
            yield Lab(run, events)
        finally:
            events.close()


def prompts(lab: Lab, count: int) -> list[list[int]]:
    """The first prompts of the training split as tokens; from the front again where it is too short."""
    return [lab.prompt(pair.prompt) for pair in islice(cycle(lab.train.pairs), count)]


def examples(lab: Lab, count: int) -> list[Example]:
    """The first pairs of the training split as training examples, likewise."""
    return [lab.training_example(lab.train, pair) for pair in islice(cycle(lab.train.pairs), count)]


def peer_model(plan: Plan, dtype: torch.dtype) -> Any:
    """What transformers makes of the weights: its attention, its cache, its sampler."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]
    model: Any = AutoModelForCausalLM.from_pretrained(models.resolve(plan.model), dtype=dtype, use_safetensors=True)
    return model.eval()


def peer_type(plan: Plan) -> torch.dtype:
    """The type of the plan's precision."""
    return torch.bfloat16 if plan.precision == "bf16" else torch.float32
