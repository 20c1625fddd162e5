"""Teacher-forced scores against one plain forward pass with full logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from scipy.stats import chisquare

from dces_core.config import Edit
from dces_core.engines import teacher as module
from dces_core.engines.base import Example
from dces_core.engines.lean import lean_body
from dces_core.engines.teacher import Teacher, batches, divergence

CPU = torch.device("cpu")


PATHS = [*((family, False) for family in tiny.FAMILIES), ("llama", True), ("qwen3", True)]


def teacher(family: str, seed: int = 0, lean: bool = False) -> Teacher:
    model = tiny.model(family, seed=seed)
    return Teacher(model.base_model, model.get_output_embeddings(), CPU, lean_body(model) if lean else None)


def examples_of(count: int = 9, shared: int = 0) -> list[Example]:
    """Prompts and responses of many lengths, empty responses among them; prompts begin with `shared` equal tokens."""
    rng = np.random.default_rng(0)
    prefix = list(range(5, 5 + shared))
    out = [Example(prefix + rng.integers(3, 300, 1 + i * 3).tolist(), rng.integers(3, 300, (i * 7) % 20).tolist()) for i in range(count)]
    assert any(not example.response for example in out)
    return out


def plain(family: str, example: Example, seed: int = 0) -> Any:
    """(tokens, vocabulary) exact log-probabilities at the response positions."""
    model = tiny.model(family, seed=seed, attention="eager")
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([example.prompt + example.response])).logits[0]
    return logits[len(example.prompt) - 1 : -1].double().log_softmax(-1)


@pytest.mark.parametrize("shared", [0, 12])
@pytest.mark.parametrize(("family", "lean"), PATHS)
def test_scores_are_those_of_a_plain_forward_pass(family: str, lean: bool, shared: int) -> None:
    examples = examples_of(shared=shared)
    found = teacher(family, lean=lean).score(examples)
    exact = torch.cat([plain(family, example) for example in examples])
    target = torch.tensor([token for example in examples for token in example.response])
    assert found.target.tolist() == target.tolist()
    assert found.example.tolist() == [i for i, example in enumerate(examples) for _ in example.response]
    assert found.logprob == pytest.approx(exact.gather(1, target[:, None])[:, 0].numpy(), abs=1e-4)
    assert found.entropy == pytest.approx(-(exact.exp() * exact).sum(-1).numpy(), abs=1e-4)
    assert found.confidence == pytest.approx(exact.exp().amax(-1).numpy(), abs=1e-5)
    assert found.correct.tolist() == (exact.argmax(-1) == target).tolist()
    ordered = exact.exp().sort(-1, descending=True).values.cumsum(-1)
    assert found.mass == pytest.approx(ordered[:, [0, 9, 99]].numpy(), abs=1e-5)
    assert [column.dtype for column in (found.logprob, found.mass, found.correct)] == [np.float32, np.float32, np.bool_]


@pytest.mark.parametrize(("family", "lean"), PATHS)
def test_next_tokens_are_the_likeliest_of_a_plain_forward_pass(family: str, lean: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [example.prompt for example in examples_of()]
    found = teacher(family, lean=lean).next_tokens(prompts, 5)
    for prompt, own in zip(prompts, found, strict=True):
        exact = plain(family, Example(prompt, [0]))[0].exp().topk(5)
        assert [token for token, _ in own] == exact.indices.tolist()
        assert [mass for _, mass in own] == pytest.approx(exact.values.tolist(), abs=1e-5)
    monkeypatch.setattr(module, "BATCH_TOKENS", 8)
    monkeypatch.setattr(module.batches, "__defaults__", (8,))
    again = teacher(family, lean=lean).next_tokens(prompts, 5)
    assert [[token for token, _ in own] for own in again] == [[token for token, _ in own] for own in found]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_scores_do_not_depend_on_batching(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, examples = teacher(family), examples_of()
    whole = one.score(examples)
    monkeypatch.setattr(module, "CHUNK_TOKENS", 3)
    chunked = one.score(examples)
    alone = np.concatenate([one.score([example]).logprob for example in examples])
    backwards = one.score(examples[::-1])
    order = np.concatenate([np.flatnonzero(backwards.example == len(examples) - 1 - i) for i in range(len(examples))])
    for other in (chunked.logprob, alone, backwards.logprob[order]):
        assert other == pytest.approx(whole.logprob, abs=1e-4)


def test_batches_hold_every_example_once_within_the_budget() -> None:
    examples = examples_of(30)
    found = list(batches(examples, budget_tokens=100))
    assert sorted(i for batch in found for i in batch) == list(range(30))
    assert len(found) > 3
    for batch in found:
        width = max(len(examples[i].prompt) + len(examples[i].response) for i in batch)
        assert len(batch) == 1 or width * len(batch) <= 100


def test_nothing_to_score() -> None:
    one, empty = teacher("llama"), [Example([5, 6], []), Example([7], [])]
    for examples in ([], empty):
        found = one.score(examples)
        assert (len(found.logprob), found.mass.shape, len(found.target)) == (0, (0, 3), 0)
        assert len(divergence(one, one, examples)) == 0
    proposals = one.resample(empty, Edit(), 1.0, [np.zeros(0), np.zeros(0)])
    assert [len(proposal.drawn) for proposal in proposals] == [0, 0]


# resampling -------------------------------------------------------------------------------------------------------------


def first_draws(settings: Edit, temperature: float, uniforms: np.ndarray[Any, Any], target: int = 17) -> tuple[Any, Any]:
    """(draws of the one response token of the same example, probability that it has)."""
    proposals = teacher("qwen3").resample([Example([5, 9, 4], [target])] * len(uniforms), settings, temperature, list(uniforms[:, None]))
    return np.array([proposal.drawn[0] for proposal in proposals]), proposals[0].probability[0]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.4])
def test_what_is_drawn_follows_the_softmax_at_the_temperature(temperature: float) -> None:
    logits, n = plain("qwen3", Example([5, 9, 4], [17]))[0], 3000
    wanted = (logits / temperature).softmax(-1).numpy()
    drawn, probability = first_draws(Edit(), temperature, np.random.default_rng(1).random(n))
    assert probability == pytest.approx(float(logits[17].exp()), abs=1e-6)
    common = n * wanted >= 5
    count = np.bincount(drawn, minlength=300)
    seen, due = np.append(count[common], count[~common].sum()), n * np.append(wanted[common], wanted[~common].sum())
    assert chisquare(seen, due).pvalue > 1e-3
    even, _ = first_draws(Edit(), temperature, (np.arange(n) + 0.5) / n)
    assert np.abs(np.bincount(even, minlength=300) - n * wanted).max() < 1.01


def test_top_k_and_exclude_original_are_honoured() -> None:
    logits, n = plain("qwen3", Example([5, 9, 4], [17]))[0], 2000
    best = logits.argsort(descending=True).tolist()
    grid = (np.arange(n) + 0.5) / n
    drawn, _ = first_draws(Edit(top_k=8), 1.1, grid)
    assert set(drawn.tolist()) == set(best[:8])
    wanted = (logits[best[:8]] / 1.1).softmax(-1).numpy()
    assert np.abs([(drawn == token).sum() for token in best[:8]] - n * wanted).max() < 1.01
    without, probability = first_draws(Edit(labels="draw", exclude_original=True), 1.0, grid, target=best[0])
    assert best[0] not in without
    assert probability == pytest.approx(float(logits[best[0]].exp()), abs=1e-6)
    rest = logits.exp().numpy()
    rest[best[0]] = 0
    assert np.abs(np.bincount(without, minlength=300) - n * rest / rest.sum()).max() < 1.01
    both, _ = first_draws(Edit(labels="draw", exclude_original=True, top_k=3), 1.0, grid, target=best[1])
    assert set(both.tolist()) == {best[0], best[2], best[3]}


def test_proposals_do_not_depend_on_batching() -> None:
    one, examples = teacher("gpt2"), examples_of()
    uniforms = [np.random.default_rng(i).random(len(example.response)) for i, example in enumerate(examples)]
    whole = one.resample(examples, Edit(), 1.2, uniforms)
    target = one.score(examples)
    assert np.log(np.concatenate([p.probability for p in whole])) == pytest.approx(target.logprob, abs=1e-4)
    for i, example in enumerate(examples):
        alone = one.resample([example], Edit(), 1.2, uniforms[i : i + 1])[0]
        assert alone.drawn.tolist() == whole[i].drawn.tolist()


# divergence -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_divergence_is_zero_for_one_model_and_the_sum_over_the_vocabulary_for_two(family: str) -> None:
    examples = examples_of()
    one, other = teacher(family), teacher(family, seed=1)
    assert divergence(one, one, examples).max() == 0
    exact = []
    for example in examples:
        p, q = plain(family, example), plain(family, example, seed=1)
        exact.append((p.exp() * (p - q)).sum(-1).numpy())
    found = divergence(one, other, examples)
    assert found == pytest.approx(np.concatenate(exact), rel=1e-3, abs=1e-4)
    assert found.min() > 0.01
