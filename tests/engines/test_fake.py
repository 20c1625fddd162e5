"""The fake engine: probabilities against the formula, sampling against the probabilities, and the collapse it is there for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dces_core.config import Edit, Generate, Train, parse
from dces_core.data import Pair, load_train
from dces_core.engines import fake
from dces_core.engines.base import Example, Generation, LanguageModel
from dces_core.engines.fake import END, START, UNKNOWN, FakeModel

PAIRS = [
    Pair("1", "Say red.", "red red blue.", ""),
    Pair("2", "Say blue.", "blue.", ""),
    Pair("3", "Say green.", "red green blue blue.", ""),
]
SAMPLE = Generate(max_new_tokens=12)


@pytest.fixture
def model() -> FakeModel:
    return FakeModel(PAIRS)


def exact(model: FakeModel, left: int, boost: tuple[int, ...] = ()) -> np.ndarray[Any, Any]:
    """p(. | left) of the base model, by the formula in the module's docstring."""
    counts = np.zeros((model.vocabulary, model.vocabulary))
    for pair in PAIRS:
        ids = [START, *model.encode_text(pair.reference), END]
        np.add.at(counts, (ids[:-1], ids[1:]), 1)
    counts[START, END] = fake.EMPTY / (1 - fake.EMPTY) * counts[START].sum()
    uniform = np.full(model.vocabulary, 1 / (model.vocabulary - 1))
    unigram = (1 - fake.UNIFORM) * counts.sum(0) / counts.sum() + fake.UNIFORM * uniform
    unigram[START] = 0
    row = counts[left]
    bigram = row / (row.sum() + fake.BACKOFF * (row > 0).sum()) if row.any() else row
    p = bigram + (1 - bigram.sum()) * unigram
    p[list(boost)] *= fake.PROMPT_BOOST
    return p / p.sum()


def scored(model: FakeModel, prompt: list[int], response: list[int]) -> np.ndarray[Any, Any]:
    return model.score([Example(prompt, response)]).logprob


def draws(model: FakeModel, settings: Generate, prompt: list[int], n: int = 4000) -> np.ndarray[Any, Any]:
    """Share of each first token when the uniforms cover [0, 1) evenly."""
    grid = ((np.arange(n) + 0.5) / n)[:, None]
    first = [(g.ids or [END])[0] for g in model.generate([prompt] * n, settings.model_copy(update={"max_new_tokens": 1}), grid)]
    return np.bincount(first, minlength=model.vocabulary) / n


# text ---------------------------------------------------------------------------------------------------------------------


def test_it_is_a_language_model(model: FakeModel) -> None:
    seam: LanguageModel = model
    members = [name for name in (*vars(LanguageModel), *LanguageModel.__annotations__) if not name.startswith("_")]
    assert members
    assert all(hasattr(seam, name) for name in members)


def test_text_survives_and_special_tokens_do_not(model: FakeModel) -> None:
    text = "red green blue."
    ids = model.encode_text(text)
    assert model.decode(ids) == text == "".join(model.piece(token) for token in ids)
    assert model.decode([START, *ids, UNKNOWN, END]) == text
    assert model.encode_text("zebra") == [UNKNOWN]
    assert model.encode_prompt("Say red.") == [*model.encode_text("Say red."), START]


def test_pieces_that_continue_a_word(model: FakeModel) -> None:
    flags = model.continues_word()
    assert flags.shape == (model.vocabulary,)
    assert [flags[model.encode_text(piece)[0]] for piece in ("red", " red", ".")] == [True, False, False]
    assert not flags[[END, START, UNKNOWN]].any()


def test_rare_words_are_left_out_of_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "WORDS", 2)
    assert FakeModel(PAIRS).vocabulary == 2 + len(fake.SPECIAL)


# probabilities ------------------------------------------------------------------------------------------------------------


def test_scores_follow_the_formula(model: FakeModel) -> None:
    prompt = model.encode_prompt("Say red.")
    boost = tuple(set(prompt) - {START})
    response = [*model.encode_text("red green."), END]
    rows = np.stack([exact(model, left, boost) for left in [START, *response[:-1]]])
    scores = model.score([Example(prompt, response)])
    assert np.allclose(np.exp(scores.logprob), rows[np.arange(4), response], atol=1e-6)
    positive = np.where(rows > 0, rows, 1)
    assert np.allclose(scores.entropy, -(rows * np.log(positive)).sum(1), atol=1e-5)
    assert np.allclose(scores.confidence, rows.max(1), atol=1e-6)
    assert scores.correct.tolist() == (rows.argmax(1) == response).tolist()
    assert np.allclose(scores.mass[:, 1], np.sort(rows)[:, ::-1][:, :10].sum(1), atol=1e-6)
    assert np.allclose(scores.mass[:, 2], 1, atol=1e-6)


def test_scores_of_many_examples_are_concatenated(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [Example([START], model.encode_text(text)) for text in ("red blue.", "", "blue")]
    whole = model.score(examples)
    assert whole.example.tolist() == [0, 0, 0, 2]
    assert whole.target.tolist() == [token for example in examples for token in example.response]
    monkeypatch.setattr(fake, "CHUNK", 2)
    assert np.array_equal(model.score(examples).logprob, whole.logprob)
    assert model.score([]).mass.shape == (0, 3)


def test_no_probability_is_zero_except_the_start_token(model: FakeModel) -> None:
    every = [token for token in range(model.vocabulary) if token != START]
    model.train([Example([START], [every[-1]] * 20)] * 50, Train(lr=1.0, epochs=5), 0)
    assert np.isfinite(scored(model, [START], every)).all()
    assert np.exp(scored(model, [every[-1]], [every[-1]])) > 0.97


# sampling -----------------------------------------------------------------------------------------------------------------


def test_draws_follow_the_truncated_distribution(model: FakeModel) -> None:
    for settings in (Generate(temperature=1, top_p=1), Generate(temperature=0.5, top_p=0.8), Generate(temperature=2, top_p=1, top_k=3)):
        p = exact(model, START)
        p[UNKNOWN] = 0
        p = p ** (1 / settings.temperature) / (p ** (1 / settings.temperature)).sum()
        order = np.argsort(-p, kind="stable")
        cut = settings.top_k or len(p)
        p[order[cut:]] = 0
        p /= p.sum()
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= settings.top_p]] = 0
        assert np.allclose(draws(model, settings, [START]), p / p.sum(), atol=1e-3)


def test_greedy_takes_the_likeliest_whatever_the_noise(model: FakeModel) -> None:
    prompt = model.encode_prompt("Say green.")
    greedy = [model.generate([prompt], Generate(decoding="greedy", max_new_tokens=5), np.full((1, 5), u))[0] for u in (0.0, 0.999999)]
    assert greedy[0].ids == greedy[1].ids
    scores = model.score([Example(prompt, [*greedy[0].ids, *[END] * greedy[0].ended])])
    assert scores.correct.all()


def test_a_generation_knows_its_own_scores(model: FakeModel) -> None:
    prompts = [model.encode_prompt(pair.prompt) for pair in PAIRS] * 5
    generations = model.generate(prompts, SAMPLE, np.random.default_rng(0).random((15, 12)))
    scores = model.score([Example(prompt, g.ids) for prompt, g in zip(prompts, generations, strict=True)])
    assert np.array_equal(scores.logprob, np.concatenate([g.logprob for g in generations]))
    assert np.array_equal(scores.entropy, np.concatenate([g.entropy for g in generations]))
    assert all(END not in g.ids for g in generations)
    assert {g.ended for g in generations if len(g.ids) < 12} == {True}


def test_a_sample_does_not_depend_on_its_batch(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [model.encode_prompt(PAIRS[i % 3].prompt) for i in range(9)]
    uniforms = np.random.default_rng(1).random((9, 12))
    whole = model.generate(prompts, SAMPLE, uniforms)
    cut = model.generate(prompts, SAMPLE, uniforms, limits=[3] * len(prompts), which="frozen")
    assert [(g.ids, g.ended) for g in cut] == [(g.ids[:3], g.ended and len(g.ids) < 3) for g in whole]
    alone = [model.generate([prompts[i]], SAMPLE, uniforms[i : i + 1])[0] for i in range(9)]
    monkeypatch.setattr(fake, "CHUNK", 4)
    for other in (alone, model.generate(prompts, SAMPLE, uniforms)):
        assert [same(a, b) for a, b in zip(whole, other, strict=True)] == [True] * 9


def same(a: Generation, b: Generation) -> bool:
    return a.ids == b.ids and a.ended == b.ended and np.array_equal(a.logprob, b.logprob) and np.array_equal(a.entropy, b.entropy)


def test_beam_search_of_width_one_is_greedy_and_a_wider_one_finds_likelier_texts() -> None:
    model = FakeModel()
    prompts = [model.encode_prompt(f"What is {word}?") for word in ("bread", "rain", "a bank", "music", "iron", "sleep")]
    greedy, single, wide = (
        model.generate(prompts, Generate(decoding=decoding, beams=beams, max_new_tokens=24), np.zeros((len(prompts), 24)))
        for decoding, beams in (("greedy", 5), ("beam", 1), ("beam", 8))
    )
    assert all(same(one, other) for one, other in zip(single, greedy, strict=True))

    def mean(found: list[Generation]) -> float:
        scored = [Example(prompt, g.ids + [END] * g.ended) for prompt, g in zip(prompts, found, strict=True)]
        return float(np.mean([model.score([example]).logprob.mean() for example in scored]))

    assert mean(wide) > mean(greedy)
    for prompt, g in zip(prompts, wide, strict=True):
        scores = model.score([Example(prompt, g.ids)])
        assert g.logprob == pytest.approx(scores.logprob, abs=1e-5) and g.entropy == pytest.approx(scores.entropy, abs=1e-5)


def test_a_beam_wider_than_the_vocabulary(model: FakeModel) -> None:
    found = model.generate([[START]], Generate(decoding="beam", beams=32, max_new_tokens=4), np.zeros((1, 4)))[0]
    assert UNKNOWN not in found.ids and len(found.ids) <= 4


# truncated loss -----------------------------------------------------------------------------------------------------------


def test_tokens_above_gamma_give_no_loss_and_move_nothing() -> None:
    model = FakeModel()
    example = Example(model.encode_prompt("Why does bread rise?"), [*model.encode_text("The yeast makes gas in the dough."), END])
    chance = np.exp(model.score([example]).logprob.astype(np.float64))
    gamma = float(np.median(chance))
    kept = chance <= gamma
    assert 0 < kept.sum() < len(chance)
    assert model.train([example], Train(loss="full", tce_gamma=gamma), 0) == pytest.approx([-np.log(chance).mean()], rel=1e-5)
    model.load(None)
    loss = model.train([example], Train(loss="truncated", tce_gamma=gamma * (1 + 1e-6)), 0)
    assert loss == pytest.approx([-np.log(chance[kept]).sum() / len(chance)], rel=1e-5)
    model.load(None)
    assert model.train([example], Train(loss="truncated", tce_gamma=1e-12), 0) == [0.0]
    assert np.log(chance) == pytest.approx(model.score([example]).logprob, abs=1e-5)
    assert model.train([example], Train(loss="truncated", tce_gamma=1.0), 0) == pytest.approx([-np.log(chance).mean()], rel=1e-5)


# resampling ---------------------------------------------------------------------------------------------------------------


def test_resampling_at_temperature_1_keeps_a_token_as_often_as_its_probability(model: FakeModel) -> None:
    red = model.encode_text("red")[0]
    n = 4000
    grid = [np.array([u]) for u in (np.arange(n) + 0.5) / n]
    proposals = model.resample([Example([START], [red])] * n, Edit(), 1.0, grid)
    p = exact(model, START)
    assert proposals[0].probability[0] == pytest.approx(p[red], abs=1e-6)
    kept = np.mean([proposal.drawn[0] == red for proposal in proposals])
    assert kept == pytest.approx(p[red] / (1 - p[UNKNOWN]), abs=1e-3)
    other = model.resample([Example([START], [red])] * n, Edit(labels="draw", exclude_original=True), 1.0, grid)
    assert all(proposal.drawn[0] != red for proposal in other)
    assert other[0].probability[0] == proposals[0].probability[0]


def test_resampling_keeps_shapes_and_knows_top_k_and_the_model(model: FakeModel) -> None:
    examples = [Example([START], model.encode_text(text)) for text in ("red blue.", "", "blue")]
    uniforms = [np.full(len(example.response), 0.9) for example in examples]
    proposals = model.resample(examples, Edit(top_k=1), 1.5, uniforms)
    assert [len(proposal.drawn) for proposal in proposals] == [3, 0, 1]
    best = [exact(model, left).argmax() for left in [START, *examples[0].response[:-1]]]
    assert proposals[0].drawn.tolist() == best
    model.train([Example([START], model.encode_text("blue"))] * 40, Train(lr=1e-3), 0)
    now, frozen = (model.resample(examples, Edit(labels="draw", model=which), 1.0, uniforms) for which in ("current", "frozen"))
    assert now[2].probability[0] > frozen[2].probability[0] == pytest.approx(proposals[2].probability[0])
    assert model.resample([], Edit(), 1.0, []) == []


# training -----------------------------------------------------------------------------------------------------------------


def test_training_lowers_the_loss_and_reports_every_step(model: FakeModel) -> None:
    examples = [Example([START], [*model.encode_text("green green green."), END])] * 10
    losses = model.train(examples, Train(epochs=3, batch_size=4), 0)
    assert len(losses) == 8  # 30 examples in steps of 4
    assert losses[0] == pytest.approx(-scored(FakeModel(PAIRS), [START], examples[0].response).mean(), abs=1e-6)
    assert losses == sorted(losses, reverse=True)


def test_labels_take_the_place_of_the_response(model: FakeModel) -> None:
    red, green = (model.encode_text(word)[0] for word in ("red", " green"))
    before = scored(model, [red], [green])[0]
    model.train([Example([START], [red, red], labels=[red, green])] * 8, Train(), 0)
    assert scored(model, [red], [green])[0] > before


def test_a_constant_and_a_linear_schedule_differ_and_empty_responses_teach_nothing(model: FakeModel) -> None:
    examples = [Example([START], model.encode_text("green"))] * 20
    after = {}
    for schedule in ("constant", "linear"):
        model.load(None)
        model.train(examples, Train.model_validate({"schedule": schedule}), 0)
        after[schedule] = scored(model, [START], examples[0].response)[0]
    assert after["constant"] > after["linear"]
    model.load(None)
    assert model.train([Example([START], [])] * 3, Train(), 0) == [0.0]
    assert np.array_equal(model.divergence(examples), np.zeros(20))


def test_divergence_is_the_sum_over_the_vocabulary(model: FakeModel) -> None:
    blue = model.encode_text("blue")
    model.train([Example([START], blue)] * 16, Train(lr=1e-3), 0)
    p = exact(model, START)
    every = [token for token in range(model.vocabulary) if token != START]
    q = np.array([np.exp(scored(model, [START], [token])[0]) for token in every])
    expected = (p[every] * np.log(p[every] / q)).sum()
    assert expected > 0.01
    assert model.divergence([Example([START], blue)])[0] == pytest.approx(expected, abs=1e-5)
    model.load(None)
    assert model.divergence([Example([START], blue)])[0] == 0


def test_next_tokens_are_the_likeliest_of_the_formula(model: FakeModel) -> None:
    prompts = [model.encode_prompt("blue"), [START]]
    for prompt, found in zip(prompts, model.next_tokens(prompts, 3), strict=True):
        p = exact(model, START, tuple(prompt[:-1]))
        assert [mass for _, mass in found] == pytest.approx(sorted(p, reverse=True)[:3])
        assert [p[token] for token, _ in found] == pytest.approx([mass for _, mass in found])


def test_saved_weights_go_on_as_the_current_ones(model: FakeModel, tmp_path: Path) -> None:
    examples = [Example(model.encode_prompt(pair.prompt), [*model.encode_text(pair.reference), END]) for pair in PAIRS] * 4
    model.train(examples, Train(), 1)
    model.save(tmp_path / "model.safetensors")
    other = FakeModel(PAIRS)
    other.load(tmp_path / "model.safetensors")
    assert other.train(examples, Train(), 2) == model.train(examples, Train(), 2)
    assert np.array_equal(other.score(examples).logprob, model.score(examples).logprob)
    other.freeze(tmp_path / "model.safetensors")
    assert (other.divergence(examples) > 0).any()
    other.load(tmp_path / "model.safetensors")
    assert np.array_equal(other.divergence(examples), np.zeros(sum(len(example.response) for example in examples)))


# collapse -----------------------------------------------------------------------------------------------------------------


def test_plain_self_training_collapses() -> None:
    model = FakeModel()
    assert 1000 < model.vocabulary < 4096
    pairs = load_train(parse({})).pairs
    real = [Example(model.encode_prompt(pair.prompt), [*model.encode_text(pair.reference), END]) for pair in pairs[:40]]
    entropy, distinct, copies, empty = [], [], [], 0
    for round_ in range(9):
        rng = np.random.default_rng(round_)
        prompts = [model.encode_prompt(pairs[i].prompt) for i in rng.choice(len(pairs), 96, replace=False)]
        pool = model.generate(prompts, Generate(max_new_tokens=32), rng.random((96, 32)))
        bigrams = [pair for g in pool for pair in zip(g.ids, g.ids[1:], strict=False)]
        distinct.append(len(set(bigrams)) / max(1, len(bigrams)))
        copies.append(96 - len({tuple(g.ids) for g in pool}))
        empty += sum(not g.ids for g in pool)
        entropy.append(float(model.score(real).entropy.mean()))
        examples = [Example(prompt, [*g.ids, *[END] * g.ended]) for prompt, g in zip(prompts, pool, strict=True)]
        assert np.isfinite(model.train(examples[:80], Train(), round_)).all()
    assert entropy[8] < 0.85 * entropy[0]
    assert distinct[8] < 0.4 * distinct[0]
    assert copies[8] > 20 > copies[0]
    assert empty > 0


def test_going_on_after_a_part_of_an_answer_is_as_likely_as_in_one_go(model: FakeModel) -> None:
    prompt = model.encode_prompt("Say green.")
    whole = scored(model, prompt, model.encode_text("red green blue"))
    rest = scored(model, [*prompt, *model.encode_text("red")], model.encode_text(" green blue"))
    assert whole[1:] == pytest.approx(rest)
