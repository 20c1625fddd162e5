"""Loop detector, units and pooled statistics of generated text."""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dces_core.metrics import text as metrics

DATA = Path(__file__).resolve().parents[2] / "data" / "everyday"
WORDS = st.sampled_from(["a", "b", "1", ".", "tennis"])

LOOPS = [
    "1.1.1.1.1.1.",
    "1. 1. 1. 1. 1.",
    "Sports:\n1.1.1.1.1.1.1.1.1.1.",
    "no " * 8,
    "I like tea. I like tea. I like tea.",
    "I like tea. I like tea. I like tea. I li",  # the last repeat is cut inside a word
    "!!!!!!!!",
]
NOT_LOOPS = [
    "",
    "   \n",
    "1.1.1.",  # 6 units
    "no no no no no no no",  # 7 units
    "I like tea. I like tea.",  # 2 repeats
    "1.1.1.1.1.1. But then it goes on in another way.",  # does not end in it
    "1. Tennis 2. Soccer 3. Golf 4. Rowing 5. Darts 6. Judo",
    " ".join(f"w{index}" for index in range(17)) + " " + " ".join(f"w{index}" for index in range(17)),
]


@pytest.mark.parametrize("text", LOOPS)
def test_loops(text: str) -> None:
    assert metrics.ends_in_loop(text)


@pytest.mark.parametrize("text", NOT_LOOPS)
def test_not_loops(text: str) -> None:
    assert metrics.loop_span(text) is None


def test_the_span_is_the_loop_alone() -> None:
    text = "Sports are 1. 1. 1. 1. 1. \n"
    start, end = metrics.loop_span(text) or (0, 0)
    assert text[start:end] == "1. 1. 1. 1. 1."


@pytest.mark.parametrize(("period", "repeats", "expected"), [(16, 3, True), (17, 3, False), (16, 2, False), (2, 4, True), (2, 3, False)])
def test_limits_of_period_repeats_and_length(period: int, repeats: int, expected: bool) -> None:
    text = " ".join([f"w{index}" for index in range(period)] * repeats)
    assert metrics.ends_in_loop("start here " + text) is expected


def naive_loop(words: list[str]) -> bool:
    """The definition, word for word, for uncut units."""
    for period in range(1, 17):
        for length in range(max(8, 3 * period), len(words) + 1):
            tail = words[-length:]
            if all(tail[index] == tail[index - period] for index in range(period, length)):
                return True
    return False


@given(st.lists(st.sampled_from(["xa", "yb", "."]), max_size=30))
def test_detector_equals_its_definition(words: list[str]) -> None:
    assert metrics.ends_in_loop(" ".join(words)) == naive_loop(words)


@given(st.lists(WORDS, max_size=20), st.lists(WORDS, min_size=1, max_size=16), st.integers(8, 12), st.integers(0, 15))
def test_any_prefix_and_any_cut_of_the_last_repeat(prefix: list[str], period: list[str], repeats: int, cut: int) -> None:
    loop = period * repeats + period[: cut % len(period)]
    span = metrics.loop_span(" ".join(prefix + loop))
    assert span is not None
    assert span[0] <= len(" ".join([*prefix, ""]))


@given(st.lists(st.integers(0, 10**6), unique=True, max_size=60))
def test_text_without_repetition_never_loops(numbers: list[int]) -> None:
    assert not metrics.ends_in_loop(" ".join(f"w{number}." for number in numbers))


@given(st.text(max_size=200))
@settings(max_examples=200)
def test_any_text_is_accepted_and_spans_lie_inside(text: str) -> None:
    spans = [*metrics.repeated_spans(text), *([metrics.loop_span(text)] if metrics.ends_in_loop(text) else [])]
    assert all(span is not None and 0 <= span[0] < span[1] <= len(text) for span in spans)


def test_detector_is_linear() -> None:
    started = time.perf_counter()
    assert metrics.ends_in_loop("a " * 50_000)
    assert time.perf_counter() - started < 5


def test_no_reference_text_is_a_loop() -> None:
    records = [json.loads(line) for path in DATA.rglob("*.jsonl") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts = [record[key] for record in records for key in ("reference", "text") if key in record]
    assert len(texts) > 100
    assert [text for text in texts if metrics.ends_in_loop(text)] == []


def test_units_are_words_and_punctuation() -> None:
    assert metrics.units("1.1. It's a café!") == ["1", ".", "1", ".", "It", "'", "s", "a", "café", "!"]


def test_repeated_spans_merge() -> None:
    text = "the cat sat down. Then the cat sat down. End"
    assert [text[start:end] for start, end in metrics.repeated_spans(text)] == ["the cat sat down."]
    assert metrics.repeated_spans("one two three four five") == []


def test_rep_4() -> None:
    assert metrics.rep_4("a b c") is None
    assert metrics.rep_4("a b c d") == 0
    assert metrics.rep_4("a a a a a") == pytest.approx(0.5)  # 2 four-grams, 1 unique
    assert metrics.rep_4_mean(["a b c", "a b c d", "a a a a a"]) == metrics.Value(0.25, 2)


@given(st.lists(st.lists(WORDS, max_size=12), max_size=8), st.integers(0, 60))
def test_the_pool_is_cut_to_exactly_its_budget(pool: list[list[str]], budget: int) -> None:
    texts = [" ".join(words) for words in pool]
    kept = metrics.cut_pool(texts, budget)
    assert sum(len(metrics.units(text)) for text in kept) == min(budget, sum(map(len, pool)))
    assert all(text.startswith(part) for text, part in zip(texts, kept, strict=True))


def test_distinct_is_pooled_over_the_budget() -> None:
    texts = ["a b c d", "a b c d"]
    assert metrics.distinct(texts, 1, 100) == metrics.Value(0.5, 8)
    assert metrics.distinct(texts, 2, 100) == metrics.Value(0.5, 6)  # a mean per text would be 1
    assert metrics.distinct(texts, 1, 4) == metrics.Value(0.5, 4)
    assert metrics.distinct(["a"], 2, 100).value is None


def test_distinct_does_not_depend_on_the_size_of_the_pool() -> None:
    long = " ".join(f"w{index % 50}" for index in range(400))
    assert metrics.distinct([long], 1, 100) == metrics.distinct([long * 2], 1, 100)


def test_entropy_of_units() -> None:
    value = metrics.entropy_unigram(["a b", "c d"], 100)
    assert (value.value, value.n) == (pytest.approx(math.log(4)), 4)
    assert metrics.entropy_unigram(["a a a"], 100).value == 0


def test_compression_ratio_rises_with_redundancy() -> None:
    loop, varied = "1. " * 300, " ".join(str(index * 7919 % 10007) for index in range(300))
    high, low = metrics.compression_ratio([loop], 10**6).value, metrics.compression_ratio([varied], 10**6).value
    assert high is not None and low is not None and high > 10 > low > 1


@pytest.mark.parametrize(
    "texts",
    [
        ["the cat sat on the mat .", "the cat ran on the mat today .", "a dog sat", "the the the the cat", "dog", "dog"],
        ["a b c d e", "a b c d e", "a b c d e f g h", "x y", "y x z a b c"],
    ],
)
def test_self_bleu_equals_sacrebleu_pair_by_pair(texts: list[str]) -> None:
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(tokenize="none", effective_order=True, smooth_method="exp")
    expected = [bleu.sentence_score(text, texts[:index] + texts[index + 1 :]).score for index, text in enumerate(texts)]
    value = metrics.self_bleu(texts)
    assert value.value == pytest.approx(sum(expected) / len(expected) / 100)
    assert value.n == len(texts)


def test_self_bleu_of_identical_and_of_disjoint_texts() -> None:
    assert metrics.self_bleu(["a b c d e"] * 5).value == pytest.approx(1)
    assert metrics.self_bleu(["a b c d e", "f g h i j"]).value == 0
    assert metrics.self_bleu(["a b c d e"] * 5, limit=3).n == 3
    assert metrics.self_bleu(["a b c d e"] * 5, limit=0).reason == "switched off"


def test_tail_coverage_and_survival() -> None:
    counts = {"head": 100, "mid": 60, "rare1": 2, "rare2": 2, "once": 1}
    assert metrics.tail_coverage(["head rare1"], counts, 100) == metrics.Value(0.5, 2)
    assert metrics.tail_coverage(["head rare1"], {"once": 1}, 100).value is None
    alive = metrics.survival(["head rare1"], counts, 100)
    assert alive["survival_head"] == metrics.Value(1.0, 1)
    assert alive["survival_middle"] == metrics.Value(0.0, 1)
    assert alive["survival_tail"] == metrics.Value(1 / 3, 3)


@given(st.lists(st.sampled_from(["", " ", "a", "a b c d", "1.1.1.1.1.1.", "\ud800", "\x00", "∞"]), max_size=6))
def test_collapsed_pools_never_raise(texts: list[str]) -> None:
    counts = Counter(["the", "the", "cat"])
    values = [
        *(metrics.distinct(texts, n, 50) for n in (1, 2, 3)),
        metrics.entropy_unigram(texts, 50),
        metrics.compression_ratio(texts, 50),
        metrics.self_bleu(texts),
        metrics.tail_coverage(texts, counts, 50),
        metrics.rep_4_mean(texts),
        metrics.loop_rate(texts),
    ]
    assert all(value.value is None or math.isfinite(value.value) for value in values)
    if not re.search(r"\S", "".join(texts)):
        assert all(value.reason for value in values[:8])


def test_evenly_spaced_subsample() -> None:
    assert metrics.evenly(3, 10) == [0, 1, 2]
    assert metrics.evenly(10, 5) == [0, 2, 4, 6, 8]
    assert metrics.evenly(10, 0) == []
