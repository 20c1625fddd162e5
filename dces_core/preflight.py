"""What can be refused before a run begins, without torch: data that cannot be read, prompts that no context can hold."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from dces_core import data, models
from dces_core.arms import ARMS
from dces_core.config import RunConfig
from dces_core.errors import UserError
from dces_core.reading import fitted, is_count
from dces_core.stage import read_json

#: config.json's names for the longest sequence.
CONTEXT = ("max_position_embeddings", "n_positions", "sliding_window")


def check(config: RunConfig) -> None:
    """Raise UserError where settings exclude each other, a file cannot be used, the model is not there, or a prompt leaves no room.

    Prompts are counted without the chat template around them, and only for a model in a folder; what passes here and is
    still too long ends round 0 with the same sentence.
    """
    _check_editing(config)
    _check_training(config)
    found = models.check(config.model) if config.engine == "hf" else None
    prompts = list(_prompts(config))
    if isinstance(found, Path) and found.is_dir():
        _check_lengths(found, prompts)


def _check_editing(config: RunConfig) -> None:
    edit = config.edit
    arms = [name for name in config.arms if ARMS[name].edit == "targets"]
    if arms and edit.labels == "distribution" and (edit.model == "current" or edit.exclude_original):
        field = "edit.model = 'current'" if edit.model == "current" else "edit.exclude_original = true"
        raise UserError(f"{field} needs edit.labels = 'draw' for arm {arms[0]}: whole distributions are those of the frozen M_0.")


def _check_training(config: RunConfig) -> None:
    train = config.train
    asked = (
        ("peft", "lora_rank", 0, "lora"),
        ("bitsandbytes", "optimizer", "adamw", "8bit"),
        (None, "micro_batch_size", 0, ""),
        (None, "gradient_checkpointing", False, ""),
    )
    for module, field, usual, extra in asked:
        value = getattr(train, field)
        if value == usual:
            continue
        if config.engine != "hf":
            raise UserError(f"train.{field} = {value!r} needs engine = 'hf' (now {config.engine!r}); leave it at {usual!r}.")
        if module and find_spec(module) is None:
            raise UserError(f"train.{field} = {value!r} needs {module}: pip install -e .[{extra}]; or leave it at {usual!r}.")


def _prompts(config: RunConfig) -> Iterator[tuple[str, str, int]]:
    """(the field it comes from, the prompt as the model sees it, tokens that its response may have)."""
    named = [("data.train", data.load_train(config))]
    named += [(f"data.tests.{name}", corpus) for name, corpus in data.load_tests(config).items()]
    limit = config.generate.max_new_tokens
    found = [(field, pair.prompt, limit) for field, corpus in named if corpus.kind == "pairs" for pair in corpus.pairs]
    found += [("data.probes", probe.prompt, config.eval.probe_tokens) for probe in data.load_probes(config)]
    for field, prompt, room in found:
        yield field, f"{prompt} {config.data.instruction}".strip(), room


def _check_lengths(folder: Path, prompts: list[tuple[str, str, int]]) -> None:
    facts = fitted(read_json(folder / "config.json"), dict.fromkeys(CONTEXT, is_count))
    context = min((facts[name] for name in CONTEXT if facts.get(name)), default=1 << 62)
    suspects = [item for item in prompts if len(item[1].encode()) + item[2] > context]  # a token covers at least a byte
    if not suspects or not (folder / "tokenizer.json").is_file():
        return
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"the model's {folder / 'tokenizer.json'} cannot be read ({error}); restore it, or choose another model.") from None
    for field, prompt, room in suspects:
        tokens = len(tokenizer.encode(prompt, add_special_tokens=False).ids)
        if tokens + room > context:
            raise UserError(
                f"{field}: the prompt that begins {prompt[:40]!r} has {tokens} tokens; with {room} new tokens it exceeds the model's "
                f"context of {context}: shorten it, or lower generate.max_new_tokens or eval.probe_tokens."
            )
