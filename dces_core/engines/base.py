"""What a language model and an encoder must do. Token ids, NumPy arrays and plain numbers cross this seam, no tensors.

Two models live in an engine: `current` (M_{t-1} or M_t, whatever was loaded last) and `frozen` (M_0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dces_core.config import Edit, Generate, Train
from dces_core.errors import NotFinite
from dces_core.events import Note, Progress

Which = Literal["current", "frozen"]
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


def silent(done: int, total: int) -> None:
    """A progress function that says nothing."""


def unheard(text: str) -> None:
    """Where notes go that nobody reads."""


def require_finite(name: str, value: float, step: int, steps: int, lr: float) -> None:
    """Raise NotFinite where a number of a training step is NaN or infinite."""
    if not math.isfinite(value):
        raise NotFinite(f"the {name} is {value} at step {step} of {steps}", f"lower train.lr (now {lr:g})")


@dataclass(frozen=True)
class Soft:
    """Response positions that learn the whole distribution of the frozen M_0 in place of a token (targets mode)."""

    positions: list[int]
    temperature: float
    top_k: int = 0  # of its likeliest tokens only; 0: all


@dataclass(frozen=True)
class Example:
    """A prompt and a response as token ids. `response` includes the end token only if the text really ended there."""

    prompt: list[int]
    response: list[int]
    labels: list[int] | None = None  # training targets for `response`, where they differ from it (targets mode, drawn)
    soft: Soft | None = None


@dataclass(frozen=True)
class Generation:
    """One sampled response. Arrays have one entry per token of `ids`; log-probabilities are untruncated, T = 1, nats."""

    ids: list[int]  # without the end token
    ended: bool
    logprob: Floats
    entropy: Floats


@dataclass(frozen=True)
class TokenScores:
    """Teacher-forced scores of response tokens, all examples concatenated; every array has n_tokens entries."""

    example: Ints  # index of the example
    target: Ints  # token id
    logprob: Floats  # nats
    entropy: Floats  # nats
    confidence: Floats  # largest probability
    correct: NDArray[np.bool_]  # argmax equals target
    mass: NDArray[np.float32]  # (n_tokens, 3): probability mass of the top 1, 10, 100 tokens

    def means(self, values: Floats, examples: int) -> NDArray[np.float64]:
        """(examples,) mean of each example's token values; NaN without tokens."""
        counts = np.bincount(self.example, minlength=examples)
        return np.where(counts > 0, np.bincount(self.example, values, examples) / np.maximum(counts, 1), np.nan)


@dataclass(frozen=True)
class Proposal:
    """For each response token of one example: the probability of what stands there, and a token drawn in its place."""

    probability: Floats
    drawn: Ints


class LanguageModel(Protocol):
    """A causal language model that can be sampled, scored and trained."""

    name: str
    parameters: int
    vocabulary: int
    context: int  # longest sequence in tokens
    device: str
    end: int  # the end token that training appends and sampling stops at
    note: Note  # hears what a reader of the run should know, such as a batch that was too large

    def encode_prompt(self, prompt: str) -> list[int]:
        """Prompt as token ids, through the chat template where the model has one (data.template)."""

    def encode_text(self, text: str) -> list[int]:
        """Text as token ids, nothing added."""

    def start(self) -> list[int]:
        """Token ids that come before every text that has no prompt; empty where the model has none."""

    def decode(self, ids: list[int]) -> str:
        """Token ids as text, special tokens left out."""

    def piece(self, token: int) -> str:
        """One token as it is written (for showing an edit)."""

    def continues_word(self) -> NDArray[np.bool_]:
        """(vocabulary,): whether a token continues a word (it starts neither with a space nor with punctuation)."""

    def load(self, path: Path | None) -> None:
        """Make the weights at `path` the current model; None: the base model M_b."""

    def freeze(self, path: Path | None) -> None:
        """Make the weights at `path` the frozen M_0; None: the base model M_b."""

    def save(self, path: Path) -> None:
        """Write the current model's weights (safetensors, fp32)."""

    def generate(
        self,
        prompts: list[list[int]],
        settings: Generate,
        uniforms: NDArray[np.float64],
        progress: Progress = silent,
        limits: list[int] | None = None,
        which: Which = "current",
    ) -> list[Generation]:
        """One response per prompt. `uniforms` (len(prompts), max_new_tokens) in [0, 1) is all the randomness there is.

        `limits`: the most tokens of each response, at least 1, where they are fewer than max_new_tokens; sampling and greedy only.
        """

    def score(self, examples: list[Example], which: Which = "current", progress: Progress = silent) -> TokenScores:
        """Teacher-forced scores of all response tokens, in the order of `examples`."""

    def next_tokens(self, prompts: list[list[int]], k: int) -> list[list[tuple[int, float]]]:
        """Per prompt the k likeliest tokens after it, likeliest first, with their probability at temperature 1."""

    def divergence(self, examples: list[Example]) -> Floats:
        """KL(M_0 || M_current) in nats at every response position, concatenated."""

    def resample(self, examples: list[Example], settings: Edit, temperature: float, uniforms: list[NDArray[np.float64]]) -> list[Proposal]:
        """One teacher-forced pass by settings.model; `uniforms[i]` has one draw per response token of example i."""

    def train(self, examples: list[Example], settings: Train, seed: int, progress: Progress = silent) -> list[float]:
        """Fine-tune the current model on response tokens; the mean loss of each optimiser step. Raises NotFinite."""

    def embed_hidden(self, texts: list[str]) -> NDArray[np.float32]:
        """(len(texts), width) mean hidden states of the frozen M_0, L2-normalised: an encoder that selection does not use."""


class Encoder(Protocol):
    """A frozen sentence encoder."""

    name: str

    def embed(self, texts: list[str], progress: Progress = silent) -> NDArray[np.float32]:
        """(len(texts), dimensions), rows L2-normalised; an empty text is a zero row."""
