"""A checkpoint of a run as a model of transformers: in memory, or as a folder that `from_pretrained` loads.

A run keeps bare weights, for its base model has the rest; here both are put together. Only functions import transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dces_core import models
from dces_core.ask import absent, checkpoints
from dces_core.config import RunConfig
from dces_core.errors import UserError
from dces_core.store import SHARED, WEIGHTS, Run, find

CARD = "README.md"


def load(run: str | Run, arm: str, round_: int) -> tuple[Any, Any]:
    """(model, tokenizer) of transformers: an arm's model after a round, fp32, on the CPU. `run`: a name, a path, or a Run.

    Raises UserError where there is no such checkpoint, or its weights are gone.
    """
    found = find(run) if isinstance(run, str) else run
    path = weights_of(found, arm, round_)
    from dces_core.engines import adapters
    from dces_core.engines.hf import end_tokens, open_model

    tokenizer, model = open_model(found.config.model)
    train = found.config.train
    if path and train.lora_rank:
        adapters.merge(model, train, adapters.read(path, train))
    elif path:
        state = adapters.read(path, train)
        own = model.state_dict()
        kept = {own[name].data_ptr() for name in state if name in own}
        absent_names = [name for name in own if name not in state and own[name].data_ptr() not in kept]
        if absent_names or state.keys() - own.keys():
            raise UserError(f"the weights of round {round_} of {arm} are not those of model {found.config.model!r}; restore the model.")
        model.load_state_dict(state, strict=False)  # tied weights are stored once
    _decode_as(model, found.config, end_tokens(model, tokenizer))
    return model, tokenizer


def weights_of(run: Run, arm: str, round_: int) -> Path | None:
    """The safetensors file of a checkpoint; None: the base model as it is. Raises UserError where there is none."""
    config = run.config
    if config.engine != "hf":
        raise UserError(f"run {run.id!r} was made by engine {config.engine!r}, not by transformers; take one of engine 'hf'.")
    if arm not in (SHARED, *config.arms) or (arm == SHARED and round_):
        raise UserError(f"arm = {arm!r} is not in run {run.id!r}; it has: {', '.join(config.arms)}.")
    known = 0 <= round_ <= config.rounds
    reason = absent(run, arm, round_) if known else f"the run has rounds 0 to {config.rounds}"
    if reason:
        there = ", ".join(f"{one.arm}:{one.round}" for one in checkpoints(run))
        raise UserError(f"model = '{arm}:{round_}' of run {run.id!r} is not there: {reason}. There are: {there or 'none'}.")
    if not round_:
        return run.stage(0, SHARED, "train").file(WEIGHTS) if config.train.round0 == "finetune" else None
    return run.stage(round_, arm, "train").file(WEIGHTS)


def write_folder(run: Run, arm: str, round_: int, out: Path) -> Path:
    """A folder with config, safetensors, tokenizer, generation config and a card, whole or not at all; returns it.

    Raises UserError as `load` does, and where the folder exists or cannot be written.
    """
    if out.exists():
        raise UserError(f"out = {str(out)!r} exists already; choose another, or delete it.")
    model, tokenizer = load(run, arm, round_)

    def write(folder: Path) -> None:
        model.save_pretrained(folder, max_shard_size="1TB")
        tokenizer.init_kwargs.pop("local_files_only", None)
        tokenizer.save_pretrained(folder)
        (folder / CARD).write_text(card(run, arm, round_), encoding="utf-8")

    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        models._place(out.absolute(), write, source=f"run {run.id}, arm {arm}, round {round_}", config_hash=run.config.digest())
    except OSError as error:
        raise UserError(f"out = {str(out)!r} cannot be written: {error.strerror or error}; free space, or choose another.") from None
    return out


def card(run: Run, arm: str, round_: int) -> str:
    """Where a model comes from, in words: a README with the front matter of a model card."""
    config, manifest = run.config, run.manifest
    name = Path(config.model).name
    versions = manifest.get("versions")
    rows = {
        "run": run.id,
        "arm, round": f"{arm}, {round_} of {config.rounds}",
        "base model": name,
        "made": manifest.get("created"),
        "seed": config.seed,
        "settings (hash)": config.digest(),
        "samples a round": f"{config.pool.n} of {config.pool.size}",
        "versions": ", ".join(f"{key} {value}" for key, value in versions.items()) if isinstance(versions, dict) else None,
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items() if value is not None)
    trained = (
        f"`{name}` after {round_} rounds of training on its own output, which arm `{arm}` chose."
        if round_
        else f"`{name}` before any round of training on its own output."
    )
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [dces-lab, self-consuming-training]\n---\n\n"
        f"# {name}, {arm}, round {round_}\n\n{trained} Made to study model collapse, not for use: its text may be degenerate.\n\n"
        f"| what | value |\n|---|---|\n{table}\n\n"
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")\n```\n\n'
        f"`generation_config.json` has the run's decoding. The licence is that of `{name}`. `{models.MARKER}` has their hash.\n"
    )


def _decode_as(model: Any, config: RunConfig, ends: list[int]) -> None:
    """Let `generate` decode as the run did."""
    from transformers import GenerationConfig

    own, drawn = config.generate, config.generate.decoding == "sample"
    old = model.generation_config
    values: dict[str, Any] = {"do_sample": drawn, "max_new_tokens": own.max_new_tokens, "eos_token_id": ends}
    if drawn:
        values |= {"temperature": own.temperature, "top_p": own.top_p, "top_k": own.top_k}
    if own.decoding == "beam":
        values["num_beams"] = own.beams
    tokens = {"bos_token_id": old.bos_token_id, "pad_token_id": ends[0] if old.pad_token_id is None else old.pad_token_id}
    model.generation_config = GenerationConfig(**tokens, **values)  # type: ignore[no-untyped-call]
