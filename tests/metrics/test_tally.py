"""Statistics batch by batch are those of text.py, whatever the batches."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dces_core.metrics import tally, text

WORDS = st.lists(st.sampled_from(["a", "b", "c", "1", ".", "é", "long word", "\n", ""]), max_size=14).map(" ".join)
TEXTS = st.lists(WORDS, min_size=1, max_size=12)


def batched(texts: list[str], size: int) -> list[list[str]]:
    return [texts[start : start + size] for start in range(0, len(texts), size)]


@settings(max_examples=80, deadline=None)
@given(texts=TEXTS, size=st.integers(1, 5), budget=st.integers(0, 60))
def test_same_figures_as_with_all_texts_at_once(texts: list[str], size: int, budget: int) -> None:
    scan = tally.scan(batched(texts, size))
    pool = tally.pool(batched(texts, size), scan.lengths, budget)
    assert scan.values == {"loop_rate": text.loop_rate(texts), "rep_4": text.rep_4_mean(texts)}
    assert scan.empty == sum(not text.units(one) for one in texts)
    expected = {f"distinct_{n}": text.distinct(texts, n, budget) for n in (1, 2, 3)}
    expected["entropy_unigram"] = text.entropy_unigram(texts, budget)
    expected["compression_ratio"] = text.compression_ratio(texts, budget)
    assert pool.values == expected
    assert pool.counts == text._pooled(texts, budget)
    real = Counter({"a": 3, "b": 2, "c": 2, "z": 5})
    assert text.tail_seen(pool.counts, real) == text.tail_coverage(texts, real, budget)
    assert text.types_seen(pool.counts, real) == text.survival(texts, real, budget)


def test_the_worst_come_first_and_none_twice() -> None:
    loop, half = "1. " * 8, "we say it again we say it again and then stop"
    fine = "every word here is new and none comes back at all"
    found = tally.scan([[fine, half, loop], [loop, "x" * 5000 + " a b c d e f g h i a b c d"]], keep=2).worst
    assert [one.text for one in found] == [loop, half]
    assert found[0].loop_units == found[0].units == 16 and found[0].score == 1 > found[1].score > 0
    assert len(tally.scan([["y " * 3000]], keep=2).worst[0].text) == tally.KEPT_CHARACTERS
    assert tally.scan([[fine]]).worst == []


def test_pick_takes_places_across_batches() -> None:
    assert tally.pick([["a", "b"], ["c"], ["d"]], [1, 2]) == ["b", "c"]


def test_a_budget_that_cannot_be_counted_exactly_is_a_mistake() -> None:
    with pytest.raises(AssertionError):
        tally.pool([["a"]], tally.scan([["a"]]).lengths, tally.MAX_UNITS + 1)
