"""The transformers engine: text and tokens, weights on disk, precision, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

from dces_core.config import Generate, RunConfig, Train, parse
from dces_core.engines.base import Example
from dces_core.engines.hf import HFModel, context_of, end_tokens, open_model, pick_device
from dces_core.errors import UserError

EXAMPLES = [Example([5, 6, 7], [8, 9, 10]), Example([11], [12, 13])]
START = {"opt": "</s>", "gpt2": "", "llama": "<s>", "qwen3": ""}


def settings(family: str, **more: Any) -> RunConfig:
    return parse({"model": str(tiny.folder(family)), "device": "cpu", "train": {"precision": "fp32"}, **more})


@pytest.fixture(params=tiny.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_text_and_tokens(family: str) -> None:
    engine = HFModel(settings(family))
    text = " Hello, it's me. Écoutez 東"
    assert engine.decode(engine.encode_text(text)) == text
    hostile = "</s><|endoftext|><|im_end|><s>"
    ids = engine.encode_text(hostile)
    assert engine.end not in ids and engine.decode(ids) == hostile
    assert "".join(engine.tokenizer.convert_ids_to_tokens(engine.start())) == START[family]
    assert engine.decode([*engine.encode_text("done"), engine.end]) == "done"
    prompt = engine.encode_prompt("Say it.")
    written = engine.tokenizer.decode(prompt)
    if family == "qwen3":
        assert written == "<|im_start|>user\nSay it.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    else:
        assert written == START[family] + "Say it.\n"
        assert engine.end not in prompt[1:]
    assert HFModel(settings(family, data={"template": "plain"})).encode_prompt("Hi")[-1:] == engine.encode_text("\n")


def test_pieces_and_the_flags_of_continuation() -> None:
    engine = HFModel(settings("opt"))
    world, comma = engine.encode_text(" world")[0], engine.encode_text(",")[0]
    inside = engine.encode_text("ing")[0]
    flags = engine.continues_word()
    assert flags.shape == (engine.vocabulary,)
    assert [bool(flags[token]) for token in (world, comma, inside, engine.end)] == [False, False, True, False]
    assert [engine.piece(token) for token in (world, comma, inside)] == [" world", ",", "ing"]


class Metaspace:
    """A SentencePiece tokenizer of five tokens; its decoder drops the space in front, and one id has no token."""

    marks = ("▁the", "re", "▁", "!", None)

    def __len__(self) -> int:
        return 5

    def convert_ids_to_tokens(self, ids: range) -> list[str | None]:
        return [self.marks[i] for i in ids]

    def batch_decode(self, rows: list[list[int]]) -> list[str]:
        return [(self.marks[row[0]] or "").removeprefix("▁") for row in rows]


def test_sentencepiece_marks_are_spaces() -> None:
    engine = HFModel(settings("llama"))
    engine.tokenizer, engine.vocabulary = Metaspace(), 7
    assert [engine.piece(i) for i in range(7)] == [" the", "re", " ", "!", "", "", ""]
    assert engine.continues_word().tolist() == [False, True, False, False, False, False, False]


# weights ----------------------------------------------------------------------------------------------------------------


def test_weights_survive_the_disk(family: str, tmp_path: Path) -> None:
    engine, path = HFModel(settings(family)), tmp_path / "model.safetensors"
    base = engine.score(EXAMPLES).logprob
    engine.train(EXAMPLES, Train(lr=1e-2), 0)
    trained = engine.score(EXAMPLES).logprob
    assert np.abs(trained - base).max() > 0.01
    engine.save(path)
    tied = family != "llama"
    assert len(load_file(path)) == len(engine._master.state_dict()) - tied
    engine.load(None)
    assert np.array_equal(engine.score(EXAMPLES).logprob, base)
    engine.load(path)
    assert np.array_equal(engine.score(EXAMPLES).logprob, trained)
    assert engine.divergence(EXAMPLES).min() > 0
    engine.freeze(path)
    assert np.array_equal(engine.score(EXAMPLES, "frozen").logprob, trained)
    assert engine.divergence(EXAMPLES).max() == 0
    engine.freeze(None)
    assert np.array_equal(engine.score(EXAMPLES, "frozen").logprob, base)
    again = HFModel(settings(family))
    again.load(path)
    assert again.train(EXAMPLES, Train(), 1) == engine.train(EXAMPLES, Train(), 1)
    assert again._master.get_output_embeddings().weight.dtype == torch.float32


def test_the_half_copy_follows_the_masters_and_keeps_its_positions(family: str) -> None:
    half, full = HFModel(settings(family, train={"precision": "bf16"})), HFModel(settings(family))
    assert {parameter.dtype for parameter in half._copy.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in half._master.parameters()} == {torch.float32}
    for name, buffer in full._master.named_buffers():
        assert torch.equal(dict(half._copy.named_buffers())[name], buffer), f"{name} lost precision"
    assert np.array_equal(half.score(EXAMPLES).logprob, half.score(EXAMPLES, "frozen").logprob)
    far = [Example(list(range(3, 403)), list(range(500, 540)))]
    assert half.score(far).logprob == pytest.approx(full.score(far).logprob, abs=0.5)
    assert np.abs(half.score(far).logprob - full.score(far).logprob).mean() < 0.1
    before = half.score(EXAMPLES).logprob
    half.train(EXAMPLES, Train(lr=1e-2), 0)
    assert np.abs(half.score(EXAMPLES).logprob - before).max() > 0.01
    half.load(None)
    assert np.array_equal(half.score(EXAMPLES).logprob, before)


# the rest of the seam ---------------------------------------------------------------------------------------------------


def test_beam_search_is_transformers_own(family: str) -> None:
    engine = HFModel(settings(family))
    prompts = [[5, 6, 7], [11]]
    found = engine.generate(prompts, Generate(decoding="beam", beams=3, max_new_tokens=6), np.zeros((2, 6)))
    scores = engine.score([Example(prompt, g.ids) for prompt, g in zip(prompts, found, strict=True)])
    assert np.concatenate([g.logprob for g in found]) == pytest.approx(scores.logprob, abs=1e-5)
    greedy = engine.generate(prompts, Generate(decoding="greedy", max_new_tokens=6), np.zeros((2, 6)))
    single = engine.generate(prompts, Generate(decoding="beam", beams=1, max_new_tokens=6), np.zeros((2, 6)))
    assert [g.ids for g in single] == [g.ids for g in greedy]
    for wide, narrow in zip(found, greedy, strict=True):
        if wide.ended == narrow.ended:
            assert wide.logprob.sum() >= narrow.logprob.sum() - 0.5


def test_hidden_states_are_unit_rows() -> None:
    rows = HFModel(settings("gpt2")).embed_hidden(["", "one", "one two " * 600])
    assert rows.shape == (3, 64)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)


def test_a_prompt_without_room_for_a_response_is_refused() -> None:
    engine = HFModel(settings("opt"))
    engine.generate([[5] * (tiny.CONTEXT - 4)], Generate(max_new_tokens=4), np.zeros((1, 4)))
    with pytest.raises(UserError, match=r"a prompt has 509 tokens; with generate\.max_new_tokens = 4 it exceeds"):
        engine.generate([[5] * (tiny.CONTEXT - 3)], Generate(max_new_tokens=4), np.zeros((1, 4)))


def test_the_context_ends_with_the_sliding_window() -> None:
    assert context_of(SimpleNamespace(max_position_embeddings=4096, sliding_window=512)) == 512
    assert context_of(SimpleNamespace(max_position_embeddings=4096, sliding_window=None)) == 4096
    assert context_of(SimpleNamespace()) == 1 << 20


def test_end_tokens_come_from_all_places_once() -> None:
    model = SimpleNamespace(
        generation_config=SimpleNamespace(eos_token_id=[7, 9]), config=SimpleNamespace(eos_token_id=9), name_or_path="x"
    )
    assert end_tokens(model, SimpleNamespace(eos_token_id=4)) == [4, 7, 9]
    nothing = SimpleNamespace(generation_config=SimpleNamespace(), config=SimpleNamespace(eos_token_id=None), name_or_path="x")
    with pytest.raises(UserError, match="has no end token"):
        end_tokens(nothing, SimpleNamespace(eos_token_id=None))


def test_what_cannot_be_opened_has_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="cannot be loaded"):
        open_model(str(tmp_path))
    with pytest.raises(UserError, match=r"data\.template = 'chat', but the tokenizer"):
        HFModel(settings("gpt2", data={"template": "chat"}))


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    absent = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(UserError, match=f"device = '{absent}' is not available here"):
        pick_device(absent)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_generation_follows_the_weights_that_were_loaded_last(family: str, tmp_path: Path) -> None:
    engine = HFModel(settings(family))
    prompts, greedy = [[5, 6, 7], [8, 9, 10, 11]], Generate(decoding="greedy", max_new_tokens=12)

    def wanted() -> list[list[int]]:
        rows = [
            engine._master.generate(torch.tensor([p]), do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0)
            for p in prompts
        ]
        return [row[0, len(p) :].tolist() for row, p in zip(rows, prompts, strict=True)]

    engine._ends = [engine.vocabulary - 1]
    before = [g.ids for g in engine.generate(prompts, greedy, np.zeros((2, 12)))]
    assert before == wanted()
    engine.train([Example([5, 6, 7], [20, 21, 22, 23])] * 8, Train(epochs=4, lr=0.01, batch_size=4), seed=0)
    after = [g.ids for g in engine.generate(prompts, greedy, np.zeros((2, 12)))]
    assert after == wanted() and after != before
    engine.load(None)
    assert [g.ids for g in engine.generate(prompts, greedy, np.zeros((2, 12)))] == before
