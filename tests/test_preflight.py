"""What is refused before a run begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from small import small_config

from dces_core import preflight
from dces_core.config import RunConfig, parse
from dces_core.errors import UserError


def changed(folder: Path, words: int, **more: object) -> dict[str, object]:
    """Settings of a tiny model whose training data has one prompt of so many words."""
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"prompt": text, "reference": "Yes."}) + "\n" for text in ("Why?", "why " * words)))
    return {"engine": "hf", "model": str(tiny.folder("llama")), "data": {"train": str(pairs), **more}}


def test_a_prompt_longer_than_the_context_names_its_field_and_count(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.train: the prompt that begins 'why why .* context of 512"):
        preflight.check(small_config(tmp_path, **changed(tmp_path, 600)))


def test_many_bytes_in_few_tokens_pass(tmp_path: Path) -> None:
    preflight.check(small_config(tmp_path, **changed(tmp_path, 300)))


def test_the_instruction_counts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.train"):
        preflight.check(small_config(tmp_path, **changed(tmp_path, 420, instruction="be brief " * 50)))


@pytest.mark.parametrize(("field", "value"), [("model", "current"), ("exclude_original", True)])
def test_whole_distributions_are_those_of_the_frozen_model(field: str, value: object) -> None:
    def settings(arm: str, **edit: object) -> RunConfig:
        return parse({"engine": "fake", "arms": [arm], "edit": {field: value, **edit}})

    for arm in ("dces-targets", "edit-random"):
        with pytest.raises(UserError, match=rf"edit\.{field} = .* needs edit\.labels = 'draw' for arm {arm}"):
            preflight.check(settings(arm))
        preflight.check(settings(arm, labels="draw"))
    preflight.check(settings("dces"))
