"""Published models as dimensions (data/architectures.toml): read, and built at full size with random weights.

What is built has the family's special tokens, vocabulary, positions and tying, and nobody's weights: its text means nothing.
Only functions import torch and transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import count, product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from filelock import FileLock

from dces_core.config import SHIPPED
from dces_core.errors import UserError, quoted
from dces_core.plan import NAMES, Shape
from dces_core.reading import read_toml
from dces_core.stage import read_json

PATH = SHIPPED / "architectures.toml"
SEED = 0
DEFAULT_IS = "smollm2-135m"  # the default model's entry
WORD_START = "\u0120"  # how a byte-level tokenizer writes a space


@dataclass(frozen=True)
class Architecture:
    """One entry of data/architectures.toml."""

    name: str
    hub: str
    parameters: int
    config: dict[str, Any]
    tokenizer_tokens: int
    special: dict[str, str]
    starts: bool = False
    chat_template: str | None = None

    def values(self, layers: int | None = None) -> dict[str, Any]:
        """The values of its config.json, with fewer layers where wanted. Raises UserError where it has not as many."""
        key = next(key for key in NAMES["layers"] if key in self.config)
        if layers is not None and not 1 <= layers <= self.config[key]:
            raise UserError(f"layers = {layers} is not allowed for {self.name}; it has {self.config[key]}, take 1 to that.")
        return {**self.config, key: layers or self.config[key]}

    def configuration(self, layers: int | None = None, tokens: dict[str, Any] | None = None) -> Any:
        """The same as transformers has it."""
        return configuration({**self.values(layers), **(tokens or {})})


def configuration(values: dict[str, Any]) -> Any:
    """The values of a config.json as a configuration of transformers."""
    from transformers import AutoConfig

    return AutoConfig.for_model(values["model_type"], **{key: value for key, value in values.items() if key != "model_type"})


@cache
def known() -> dict[str, Architecture]:
    """All of them by name."""
    return {name: Architecture(name, **values) for name, values in read_toml(PATH).items()}


def find(name: str) -> Architecture:
    """By its name or its hub id. Raises UserError where there is none."""
    for found in known().values():
        if name in (found.name, found.hub):
            return found
    raise UserError(f"arch = {quoted(name)} is not known; there are: {', '.join(known())}.")


def dimensions(model: str) -> tuple[dict[str, Any], int | None] | None:
    """The values of a model's config.json and its parameters where they are known: published, tiny, or a folder's. None: not known here."""
    from dces_core import models, scratch

    wanted = DEFAULT_IS if model == models.DEFAULT else model
    found = next((each for each in known().values() if wanted in (each.name, each.hub)), None)
    if found:
        return found.config, found.parameters
    if model in scratch.PARAMETERS:
        return scratch.dimensions(model), scratch.PARAMETERS[model]
    try:
        values = read_json(Path(model).expanduser() / "config.json")
    except (OSError, RuntimeError, ValueError):  # a name that is no path
        return None
    return (values, None) if isinstance(values, dict) else None


def exact(shape: Shape, config: Any) -> Shape:
    """`shape` with counts instead of formulas: the model of a transformers configuration, made without memory (the meta device)."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        made: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    blocks = next(module for module in made.base_model.modules() if isinstance(module, torch.nn.ModuleList))
    block = max(blocks, key=lambda module: sum(weight.numel() for weight in module.parameters()))
    return replace(
        shape,
        parameters=sum(weight.numel() for weight in made.parameters()),
        tied=made.get_output_embeddings().weight is made.get_input_embeddings().weight,
        block=sum(weight.numel() for weight in block.parameters()),
        block_linear=sum(sum(weight.shape) for name, weight in block.named_parameters() if weight.dim() == 2),
    )


def build(name: str, layers: int | None = None) -> Path:
    """The folder of a model with random weights in the cache, built on first use, whole or not at all.

    Raises UserError where the architecture is not known, or the default model, whose tokenizer it uses, is not here.
    """
    from dces_core import models

    found = find(name)
    tokenizer = models.check(models.DEFAULT)
    label = f"random-{found.name}" + (f"-{layers}-layers" if layers else "")
    models.models_root().mkdir(parents=True, exist_ok=True)
    with FileLock(models.models_root() / f"{label}.lock"):
        if not models.pulled(label):
            source = f"random weights, seed {SEED}"
            models._place(models.models_root() / label, lambda folder: write(found, layers, Path(tokenizer), folder), source=source)
    return models.models_root() / label


def write(found: Architecture, layers: int | None, tokenizer_folder: Path, folder: Path) -> None:
    """Save model (fp32 safetensors) and tokenizer; the same weights wherever it is done."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = tokenizer_of(found, tokenizer_folder)
    tokens = {f"{name}_id": getattr(tokenizer, f"{name}_id") for name in ("bos_token", "eos_token", "pad_token")}
    config = found.configuration(layers, tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    made.save_pretrained(folder, max_shard_size="1TB")
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def tokenizer_of(found: Architecture, folder: Path) -> Any:
    """The tokenizer in `folder`, its vocabulary filled up to the architecture's size, with the architecture's special tokens."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = values["model"]["vocab"]
    own = [token["content"] for token in values["added_tokens"]]
    new = [token for token in dict.fromkeys(found.special.values()) if token not in vocabulary and token not in own]
    fill = _words(vocabulary)
    first = max([*vocabulary.values(), *(token["id"] for token in values["added_tokens"])]) + 1
    vocabulary |= {next(fill): index for index in range(first, found.tokenizer_tokens - len(new))}
    raw = Tokenizer.from_str(json.dumps(values))
    raw.add_special_tokens(list(dict.fromkeys(found.special.values())))
    if found.starts:
        start = found.special["bos_token"]
        raw.post_processor = processors.TemplateProcessing(single=f"{start} $A", special_tokens=[(start, raw.token_to_id(start))])
    made: Any = PreTrainedTokenizerFast(tokenizer_object=raw, **found.special)  # type: ignore[no-untyped-call]
    made.chat_template = found.chat_template
    return made


def _words(vocabulary: dict[str, int]) -> Iterator[str]:
    """Words of letters that a vocabulary lacks, so that any token has a text."""
    for length in count(3):
        for letters in product(ascii_lowercase, repeat=length):
            word = WORD_START + "".join(letters)
            if word not in vocabulary:
                yield word
