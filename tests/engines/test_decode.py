"""Decoding: the sampler against transformers' processors, the decoder against `generate`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from scipy.stats import chisquare
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from dces_core.config import Generate
from dces_core.engines.base import Generation
from dces_core.engines.decode import BLOCK, LEAST_SHARED, SHORT_LIST, Decoder, choose, invert, shared_tokens, top_of
from dces_core.engines.lean import lean_body

CPU = torch.device("cpu")
NEVER = [-1]  # no token ends a response
VOCABULARY = 4096  # more than twice SHORT_LIST blocks: the block search is in use


def reference(logits: torch.Tensor, settings: Generate) -> np.ndarray[Any, Any]:
    """(vocabulary,) probabilities by transformers' own processors, in its order."""
    steps = LogitsProcessorList([TemperatureLogitsWarper(settings.temperature)])
    if settings.top_k:
        steps.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        steps.append(TopPLogitsWarper(settings.top_p))
    found: np.ndarray[Any, Any] = steps(torch.zeros((1, 1), dtype=torch.long), logits[None].double()).softmax(-1)[0].numpy()
    return found


def draw(logits: torch.Tensor, settings: Generate, uniforms: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """One token per uniform from the same logits."""
    parts = [choose(logits.expand(len(u), -1), settings, torch.from_numpy(u))[0] for u in np.array_split(uniforms, 4)]
    return torch.cat(parts).numpy()


def logits_of(scale: float, size: int = VOCABULARY) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(3)) * scale


CASES = [
    (1.0, {"temperature": 0.8, "top_p": 0.9}),
    (3.0, {"temperature": 0.8, "top_p": 0.9}),
    (3.0, {"temperature": 1.0, "top_p": 1.0, "top_k": 50}),
    (3.0, {"temperature": 0.7, "top_p": 0.95, "top_k": SHORT_LIST + 100}),
    (3.0, {"temperature": 1.5, "top_p": 0.5, "top_k": 10}),
    (3.0, {"temperature": 1.0, "top_p": 1.0}),
    (2.0, {"temperature": 1.3, "top_p": 1.0}),
    (0.1, {"temperature": 1.0, "top_p": 0.95}),  # thousands of tokens in the nucleus
    (1.0, {"temperature": 1.0, "top_p": 1e-6}),  # the likeliest alone
]


@pytest.mark.parametrize(("scale", "truncation"), CASES)
def test_the_sampled_distribution_is_the_reference_samplers(scale: float, truncation: dict[str, float]) -> None:
    settings, logits = Generate.model_validate(truncation), logits_of(scale)
    wanted = reference(logits, settings)
    if scale <= 0.1:
        assert (wanted > 0).sum() > 5 * SHORT_LIST
    n = 5000
    drawn = draw(logits, settings, np.random.default_rng(5).random(n))
    assert (wanted[drawn] > 0).all(), "a token outside the truncated distribution was drawn"
    count, expected = np.bincount(drawn, minlength=VOCABULARY), n * wanted
    common = expected >= 5
    seen, due = np.append(count[common], count[~common].sum()), np.append(expected[common], expected[~common].sum())
    if due[-1] < 1e-6:
        assert seen[-1] == 0
        seen, due = seen[:-1], due[:-1]
    if len(due) > 1:
        assert chisquare(seen, due * seen.sum() / due.sum()).pvalue > 1e-3


@pytest.mark.parametrize(("scale", "truncation"), CASES)
def test_an_even_grid_of_uniforms_gives_every_token_its_share(scale: float, truncation: dict[str, float]) -> None:
    settings, logits, n = Generate.model_validate(truncation), logits_of(scale), 4000
    drawn = draw(logits, settings, (np.arange(n) + 0.5) / n)
    assert np.abs(np.bincount(drawn, minlength=VOCABULARY) - n * reference(logits, settings)).max() < 1.01


@pytest.mark.parametrize("size", [40, SHORT_LIST, 1000])
def test_truncation_wider_than_a_small_vocabulary(size: int) -> None:
    logits = logits_of(2.0, size)
    for truncation in ({"top_k": 1000, "top_p": 1.0}, {"top_k": 0, "top_p": 0.999999}, {"top_k": size, "top_p": 0.9}):
        settings = Generate.model_validate({"temperature": 1.0, **truncation})
        drawn = draw(logits, settings, (np.arange(2000) + 0.5) / 2000)
        assert np.abs(np.bincount(drawn, minlength=size) - 2000 * reference(logits, settings)).max() < 1.01


def test_wide_and_narrow_nuclei_share_a_batch() -> None:
    settings = Generate(temperature=1.0, top_p=0.95)
    rows = torch.stack([logits_of(scale) for scale in (0.1, 3.0, 0.05, 2.0)])
    uniforms = torch.tensor([0.1, 0.6, 0.99, 0.3], dtype=torch.float64)
    together = choose(rows, settings, uniforms)
    for i in range(4):
        alone = choose(rows[i : i + 1], settings, uniforms[i : i + 1])
        for whole, part in zip(together, alone, strict=True):
            assert torch.equal(whole[i : i + 1], part)


def test_log_probability_and_entropy_are_untruncated_and_at_temperature_1() -> None:
    logits = torch.stack([logits_of(2.0), logits_of(0.3)])
    token, logprob, entropy = choose(logits, Generate(temperature=0.3, top_p=0.5, top_k=5), torch.tensor([0.2, 0.7]))
    exact = logits.double().log_softmax(-1)
    assert logprob.numpy() == pytest.approx(exact.gather(1, token[:, None])[:, 0].numpy(), abs=1e-5)
    assert entropy.numpy() == pytest.approx(-(exact.exp() * exact).sum(-1).numpy(), abs=1e-4)


@pytest.mark.parametrize("size", [7, 100, 16 * 400, 16 * 400 + 3, 49_152])
@pytest.mark.parametrize("k", [1, 100, SHORT_LIST])
@pytest.mark.parametrize("kind", ["distinct", "ties", "equal", "impossible"])
def test_top_of_is_exact(size: int, k: int, kind: str) -> None:
    rows = torch.randn((3, size), generator=torch.Generator().manual_seed(size + k))
    if kind == "ties":
        rows = (rows * 2).round()
    elif kind == "equal":
        rows = torch.zeros_like(rows)
    elif kind == "impossible":
        rows[:, BLOCK // 2 :: 3] = -torch.inf
    values, index = top_of(rows, k)
    assert torch.equal(values, torch.topk(rows, min(k, size), dim=-1).values)
    assert torch.equal(rows.gather(1, index), values)
    assert all(len(set(row)) == min(k, size) for row in index.tolist())


def test_invert_at_its_boundaries() -> None:
    below_one = np.nextafter(1.0, 0.0)
    weights = torch.tensor([[0.0, 0.5, 0.0, 1.5, 0.0, 0.0]])
    uniforms = [0.0, 0.2499, 0.25, 0.2501, below_one, 1.0]
    found = [int(invert(weights, torch.tensor([u], dtype=torch.float64))) for u in uniforms]
    assert found == [1, 1, 3, 3, 3, 3]
    assert int(invert(torch.tensor([[0.0, 0.0, 1e-30]]), torch.tensor([0.5]))) == 2
    flat = torch.full((1, 50_000), 1 / 3)  # not representable: the sum is off by rounding
    assert int(invert(flat, torch.tensor([below_one], dtype=torch.float64))) == 49_999


def test_invert_never_chooses_what_is_impossible() -> None:
    weights = torch.rand((500, 60), generator=torch.Generator().manual_seed(1))
    weights[torch.rand((500, 60), generator=torch.Generator().manual_seed(2)) < 0.7] = 0
    weights[:, 30] += 0.01
    for u in (0.0, 0.5, np.nextafter(1.0, 0.0)):
        index = invert(weights, torch.full((500,), u, dtype=torch.float64))
        assert (weights.gather(1, index[:, None]) > 0).all()


# the decoder against transformers ---------------------------------------------------------------------------------------


PATHS = [*((family, False) for family in tiny.FAMILIES), ("llama", True), ("qwen3", True)]


def decoder(model: Any, ends: list[int], lean: bool = False) -> Decoder:
    return Decoder(model, CPU, ends, lean_body(model) if lean else None)


def prompts_of(count: int, seed: int = 0, shared: int = 0) -> list[list[int]]:
    """Prompts of 1 to 40 tokens, behind `shared` tokens that all have."""
    rng = np.random.default_rng(seed)
    prefix = rng.integers(3, 300, shared).tolist()
    return [prefix + rng.integers(3, 300, size).tolist() for size in [1, 40, *rng.integers(2, 40, count - 2)]]


def by_generate(family: str, prompts: list[list[int]], limit: int, ends: list[int]) -> list[tuple[list[int], bool]]:
    """Greedy responses of transformers, one left-padded batch: tokens before the end, and whether one came."""
    model, longest = tiny.model(family, attention="eager"), max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=limit, eos_token_id=ends or None, pad_token_id=0
        )
    found = []
    for row in out[:, longest:].tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), None)
        found.append((row[:stop], stop is not None))
    return found


def test_what_prompts_share_leaves_each_a_token() -> None:
    assert shared_tokens(prompts_of(12, shared=LEAST_SHARED)) >= LEAST_SHARED
    assert shared_tokens(prompts_of(12, shared=LEAST_SHARED - 2)) == 0
    same = list(range(3, 33))
    assert shared_tokens([same, same]) == 29
    assert shared_tokens([same, same[:20]]) == 19
    assert shared_tokens([same]) == 0


@pytest.mark.parametrize("shared", [0, 20])
@pytest.mark.parametrize(("family", "lean"), PATHS)
def test_greedy_is_token_identical_to_generate(family: str, lean: bool, shared: int) -> None:
    prompts, limit = prompts_of(12, shared=shared), 24
    settings = Generate(decoding="greedy", max_new_tokens=limit, batch_size=12)
    noise = np.zeros((12, limit))
    free = decoder(tiny.model(family), NEVER, lean).generate(prompts, settings, noise)
    assert [(g.ids, g.ended) for g in free] == by_generate(family, prompts, limit, [])
    ends = sorted({free[0].ids[2], free[1].ids[5], free[3].ids[9], free[5].ids[0]})  # rows finish at different steps
    wanted = by_generate(family, prompts, limit, ends)
    assert sum(ended for _, ended in wanted) > 1
    for batch_size in (12, 5, 1):
        found = decoder(tiny.model(family), ends, lean).generate(prompts, settings.model_copy(update={"batch_size": batch_size}), noise)
        assert [(g.ids, g.ended) for g in found] == wanted


@pytest.mark.parametrize("shared", [0, 20])
@pytest.mark.parametrize(("family", "lean"), PATHS)
def test_a_sample_does_not_depend_on_batch_order_or_neighbours(family: str, lean: bool, shared: int) -> None:
    prompts, limit, count = prompts_of(13, shared=shared), 16, 13
    noise = np.random.default_rng(4).random((count, limit))
    settings = Generate(max_new_tokens=limit, batch_size=count, temperature=1.0, top_p=0.95)
    ends = list(range(0, 300, 12))  # about one token in twelve ends a response: rows leave the batch at many steps
    one = decoder(tiny.model(family), ends, lean)
    whole = one.generate(prompts, settings, noise)
    assert {g.ended for g in whole} == {True, False} or len({len(g.ids) for g in whole}) > 5
    order = np.random.default_rng(5).permutation(count)
    shuffled = one.generate([prompts[i] for i in order], settings, noise[order])
    parts = one.generate(prompts, settings.model_copy(update={"batch_size": 4}), noise)
    alone = [one.generate([prompts[i]], settings, noise[i : i + 1])[0] for i in range(count)]
    for other in ([shuffled[i] for i in np.argsort(order)], parts, alone):
        for a, b in zip(whole, other, strict=True):
            agree(a, b)


def agree(a: Generation, b: Generation) -> None:
    assert (a.ids, a.ended) == (b.ids, b.ended)
    assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
    assert a.entropy == pytest.approx(b.entropy, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_lean_pass_gives_the_same_probabilities(family: str) -> None:
    prompts, noise = prompts_of(9, shared=12), np.random.default_rng(8).random((9, 20))
    settings = Generate(max_new_tokens=20, batch_size=9, temperature=1.0, top_p=0.95)
    pairs = (decoder(tiny.model(family), NEVER, lean).generate(prompts, settings, noise) for lean in (False, True))
    for a, b in zip(*pairs, strict=True):
        agree(a, b)


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_other_layouts_have_no_lean_pass(family: str) -> None:
    assert lean_body(tiny.model(family)) is None


def test_compaction_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, noise = prompts_of(10), np.random.default_rng(6).random((10, 20))
    settings = Generate(max_new_tokens=20, batch_size=10, temperature=1.0, top_p=0.95)
    one = decoder(tiny.model("llama"), list(range(0, 300, 9)))
    found = []
    for below in (0.0, 0.8, 1.0):  # never, usual, after every finished row
        monkeypatch.setattr("dces_core.engines.decode.COMPACT_BELOW", below)
        found.append(one.generate(prompts, settings, noise))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            agree(a, b)


def test_a_response_that_was_cut_has_not_ended() -> None:
    prompts, noise = prompts_of(4), np.random.default_rng(0).random((4, 8))
    settings = Generate(max_new_tokens=8, temperature=1.0, top_p=1.0)
    cut = decoder(tiny.model("gpt2"), NEVER).generate(prompts, settings, noise)
    assert [(len(g.ids), g.ended) for g in cut] == [(8, False)] * 4
    last = [g.ids[7] for g in cut]
    first = decoder(tiny.model("gpt2"), [cut[0].ids[0]]).generate(prompts[:1], settings, noise[:1])[0]
    assert (first.ids, first.ended, len(first.logprob)) == ([], True, 0)
    ends_last = decoder(tiny.model("gpt2"), [last[1]]).generate(prompts[1:2], settings, noise[1:2])[0]
    assert ends_last.ended and ends_last.ids == cut[1].ids[: cut[1].ids.index(last[1])]


def test_progress_counts_finished_sequences() -> None:
    seen: list[tuple[int, int]] = []
    settings = Generate(max_new_tokens=6, batch_size=3)
    decoder(tiny.model("llama"), NEVER).generate(prompts_of(7), settings, np.full((7, 6), 0.5), lambda *pair: seen.append(pair))
    assert seen[-1] == (7, 7)
    assert seen == sorted(seen)
    assert decoder(tiny.model("llama"), NEVER).generate([], settings, np.zeros((0, 6))) == []


@pytest.mark.parametrize("lean", [False, True])
def test_each_response_has_its_own_limit(lean: bool) -> None:
    prompts, noise, limits = prompts_of(7), np.random.default_rng(2).random((7, 12)), [12, 1, 5, 20, 3, 12, 8]
    settings = Generate(max_new_tokens=12, batch_size=4, temperature=1.0, top_p=1.0)
    one = decoder(tiny.model("llama"), list(range(0, 300, 30)), lean)
    for whole, part, limit in zip(
        one.generate(prompts, settings, noise), one.generate(prompts, settings, noise, limits=limits), limits, strict=True
    ):
        assert part.ids == whole.ids[:limit] and len(part.logprob) == len(part.ids)
        assert part.ended == (whole.ended and len(whole.ids) < limit)
