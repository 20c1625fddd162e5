"""Vendi, dispersion, distances and BERTScore."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from dces_core.errors import UserError
from dces_core.metrics import semantic as metrics


def unit(rows: list[list[float]]) -> metrics.Embeddings:
    array = np.array(rows, dtype=np.float32)
    return (array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def test_vendi_of_identical_and_orthogonal_texts() -> None:
    assert metrics.vendi(unit([[1, 2, 3]] * 20), 200).value == pytest.approx(1)
    assert metrics.vendi(np.eye(7, dtype=np.float32), 200).value == pytest.approx(7)
    assert metrics.vendi(np.repeat(np.eye(4, dtype=np.float32), 5, axis=0), 200).value == pytest.approx(4)


def test_vendi_equals_the_entropy_of_the_kernel() -> None:
    rows = unit(np.random.default_rng(0).normal(size=(30, 5)).tolist())
    eigenvalues = np.linalg.eigvalsh(rows.astype(np.float64) @ rows.T.astype(np.float64) / 30)
    eigenvalues = eigenvalues[eigenvalues > 1e-12]
    assert metrics.vendi(rows, 200).value == pytest.approx(float(np.exp(-np.sum(eigenvalues * np.log(eigenvalues)))), rel=1e-5)


def test_vendi_of_empty_texts_and_of_a_subsample() -> None:
    empty = np.zeros((6, 3), dtype=np.float32)
    assert metrics.vendi(empty, 200).value == pytest.approx(1)
    assert metrics.vendi(np.vstack([empty, unit([[1, 0, 0]] * 6)]), 200).value == pytest.approx(2)
    assert metrics.vendi(np.eye(9, dtype=np.float32), 4) == metrics.Value(pytest.approx(4), 4)  # type: ignore[arg-type]


def test_undefined_embeddings() -> None:
    rows = np.eye(3, dtype=np.float32)
    bad = np.full((2, 3), np.nan, dtype=np.float32)
    nothing = np.zeros((0, 3), dtype=np.float32)
    assert metrics.vendi(bad, 9).reason == metrics.dispersion(bad, rows).reason == metrics.NOT_FINITE
    assert metrics.vendi(nothing, 9).reason == "no texts"
    assert metrics.vendi(rows, 0).reason == "switched off"
    assert metrics.dispersion(rows, nothing).reason == "no centroids"
    assert metrics.nearest_reference(rows, np.zeros((4, 3), dtype=np.float32)).reason == "no references"
    assert metrics.dispersion(np.zeros((4, 3), dtype=np.float32), rows).value is None


def test_dispersion_is_the_mean_cosine_distance_to_the_nearest_centroid() -> None:
    rows = unit([[1, 0], [0, 1], [1, 1], [0, 0]])
    value = metrics.dispersion(rows, np.array([[5, 0]], dtype=np.float32))
    assert value.value == pytest.approx((0 + 1 + 1 - 2**-0.5) / 3)
    assert value.n == 3  # the empty text has no direction
    assert metrics.dispersion(rows, rows[:3]).value == pytest.approx(0, abs=1e-6)


def test_nearest_reference_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows, references = unit(rng.normal(size=(25, 4)).tolist()), unit(rng.normal(size=(11, 4)).tolist())
    whole = metrics.nearest_reference(rows, references)
    monkeypatch.setattr(metrics, "BATCH_ROWS", 4)
    assert metrics.nearest_reference(rows, references).value == pytest.approx(whole.value)


@pytest.mark.slow
def test_bertscore_of_equal_different_and_empty_texts() -> None:
    references = ["Tennis and soccer need a good eye.", "Rinse the rice first.", "Check the yeast.", ""]
    score = metrics.bertscore(["Tennis and soccer need a good eye.", "1.1.1.1.1.1.1.", "  ", "said"], references)
    assert score.f1[0] == pytest.approx(1, abs=1e-5)
    assert score.f1[1] < 0.5
    assert score.precision[2] == score.recall[2] == score.f1[2] == 0
    assert np.isnan(score.f1[3])
    assert score.values()["bertscore_f1"].value == pytest.approx(score.f1[:3].mean())
    assert score.values()["bertscore_f1"].n == 3
    assert score.parameters["empty_candidates"] == 1
    assert (score.parameters["model"], score.parameters["layers"], score.parameters["rescaled"]) == ("minilm", 6, False)


@pytest.mark.slow
def test_bertscore_cuts_both_sides_to_the_same_budget() -> None:
    same = "tea tea tea tea tea tea tea tea "
    score = metrics.bertscore([same + "x " * 700], [same + "other words " * 700], budget_tokens=8)
    assert score.f1[0] == pytest.approx(1, abs=1e-5)
    assert metrics.bertscore([same + "x"], [same + "other"], budget_tokens=64).f1[0] < 0.99
    assert metrics.bertscore(["long " * 2000], ["text " * 2000], budget_tokens=4096).parameters["budget_tokens"] == 508


@pytest.mark.slow
def test_bertscore_of_a_collapsed_pool() -> None:
    for candidates in (["", " "], ["\u200b", "\n"]):
        score = metrics.bertscore(candidates, ["a reference", "another"])
        assert score.values()["bertscore_f1"].value == 0
        assert score.parameters["empty_candidates"] == 2
    assert metrics.bertscore([], []).values()["bertscore_p"].reason == "no pairs with a reference"


def test_bertscore_by_a_model_that_is_not_there(tmp_path: object) -> None:
    with pytest.raises(UserError, match=r"eval\.bertscore"):
        metrics.bertscore(["a"], ["b"], model=f"{tmp_path}/nowhere")


@pytest.mark.slow
def test_bertscore_has_the_same_bits_in_every_process() -> None:
    """bert-score batches texts in the order of a set, which Python shuffles from process to process."""
    code = (
        "import json, sys; from dces_core.config import SHIPPED; from dces_core.metrics.semantic import bertscore; "
        "lines = (SHIPPED / 'everyday' / 'train.jsonl').read_text(encoding='utf-8').splitlines()[:150]; "
        "texts = [json.loads(line)['reference'] for line in lines]; "
        "sys.stdout.write(bertscore(texts[1:] + texts[:1], texts).f1.tobytes().hex())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1 and len(found.pop()) == 150 * 16
