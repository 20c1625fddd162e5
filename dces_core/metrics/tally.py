"""Text statistics of a round of any size, batch by batch: the same figures as text.py's, without all texts in memory.

What stays in memory: 16 bytes a text, the units of the budget as numbers (8 bytes each), and the worst texts.
"""

from __future__ import annotations

import heapq
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dces_core.metrics.text import NO_TEXTS, NO_UNITS, UNIT, cut, loop_units, rep_4_units, unit_budgets, units
from dces_core.metrics.value import Value, defined, mean, rate, undefined

Batches = Iterable[Sequence[str]]
MAX_UNITS = 2_000_000  # of a round's pool: three numbers of so many types fit 63 bits, so n-grams are counted exactly
LEAST_UNITS = 8  # shorter texts are not ranked among the worst
KEPT_CHARACTERS = 2_000  # of a text that is kept as an example


@dataclass(frozen=True)
class Example:
    """A degenerate text: its units, those of its final loop, and rep_4."""

    text: str
    units: int
    loop_units: int
    rep_4: float

    @property
    def score(self) -> float:
        """Share of the text that only repeats: the larger of its final loop and rep_4."""
        return max(self.loop_units / self.units, self.rep_4)


@dataclass(frozen=True)
class Scan:
    """What every text of a round says by itself."""

    lengths: NDArray[np.int64]  # (texts,) units
    empty: int  # texts without units
    values: dict[str, Value]  # loop_rate, rep_4
    worst: list[Example]  # worst first, no text twice


def scan(batches: Batches, keep: int = 10) -> Scan:
    """Read every text once; `keep` of the worst are kept, cut to KEPT_CHARACTERS."""
    lengths, repeats, loops = array("q"), array("d"), 0
    heap: list[tuple[float, int, Example]] = []
    kept: set[str] = set()
    for batch in batches:
        for text in batch:
            words = units(text)
            repeat, loop = rep_4_units(words), loop_units(words)
            lengths.append(len(words))
            loops += loop > 0
            if repeat is not None:
                repeats.append(repeat)
            if len(words) >= LEAST_UNITS and (loop or repeat):
                _rank(heap, kept, Example(text[:KEPT_CHARACTERS], len(words), loop, repeat or 0.0), len(lengths), keep)
    sizes = np.array(lengths, dtype=np.int64)
    known = np.array(repeats, dtype=np.float64)
    values = {"loop_rate": rate(loops, len(sizes), NO_TEXTS), "rep_4": mean(known, "no text has 4 units")}
    return Scan(sizes, int(np.count_nonzero(sizes == 0)), values, [one for _, _, one in sorted(heap, reverse=True)])


def _rank(heap: list[tuple[float, int, Example]], kept: set[str], one: Example, place: int, keep: int) -> None:
    """Keep the text where it is among the worst; of equals the earlier."""
    item = (one.score, -place, one)
    if one.text in kept or (len(heap) == keep and item <= heap[0]):
        return
    kept.add(one.text)
    if len(heap) < keep:
        heapq.heappush(heap, item)
    else:
        kept.discard(heapq.heapreplace(heap, item)[2].text)


@dataclass(frozen=True)
class Pool:
    """What the texts of a round say together, over one budget of units."""

    values: dict[str, Value]  # distinct_1, distinct_2, distinct_3, entropy_unigram, compression_ratio
    counts: Counter[str]  # of units


def pool(batches: Batches, lengths: NDArray[np.int64], budget_units: int) -> Pool:
    """Pooled statistics over exactly `budget_units` units, taken as text.cut_pool takes them; `lengths` as Scan has them."""
    assert budget_units <= MAX_UNITS, f"{budget_units} units are more than can be counted exactly"
    budgets = unit_budgets(lengths, budget_units)
    whole = bool((budgets == lengths).all())
    index: dict[str, int] = {}
    ids = array("q")
    packed = _Packed()
    for text, budget, length in zip(_flat(batches), budgets.tolist(), lengths.tolist(), strict=True):
        ids.extend([index.setdefault(word, len(index)) for word in units(text)[:budget]])
        packed.add(text if whole or budget == length else cut(text, budget))
    numbers = np.array(ids, dtype=np.int64)
    counts = np.bincount(numbers, minlength=len(index))
    values = _distinct(numbers, budgets, len(index))
    return Pool(
        {**values, "entropy_unigram": _entropy(counts), "compression_ratio": packed.ratio()},
        Counter(dict(zip(index, counts.tolist(), strict=True))),
    )


def _distinct(ids: NDArray[np.int64], budgets: NDArray[np.int64], types: int) -> dict[str, Value]:
    """distinct_1 to distinct_3 of texts as numbers below `types`, one after the other, of `budgets` units each."""
    owner = np.repeat(np.arange(len(budgets)), budgets)
    found: dict[str, Value] = {}
    for n in (1, 2, 3):
        grams = np.zeros(max(0, len(ids) - n + 1), dtype=np.int64)
        for step in range(n):
            grams = grams * types + ids[step : len(ids) - n + 1 + step]
        grams = grams[owner[: len(grams)] == owner[n - 1 :]] if len(grams) else grams
        total = len(grams)
        found[f"distinct_{n}"] = defined(len(np.unique(grams)) / total, total) if total else undefined(f"no text has {n} units")
    return found


def _entropy(counts: NDArray[np.int64]) -> Value:
    if not counts.size:
        return undefined(NO_UNITS)
    share = counts.astype(np.float64) / counts.sum()
    return defined(max(0.0, -float(np.sum(share * np.log(share)))), int(counts.sum()))


class _Packed:
    """Texts joined by line ends, and how small zlib makes them."""

    def __init__(self) -> None:
        self._zlib = zlib.compressobj(9)
        self._texts, self._raw, self._small = 0, 0, 0

    def add(self, text: str) -> None:
        """One text more; without units it is left out."""
        if UNIT.search(text):
            data = ("\n" * bool(self._texts) + text).encode("utf-8", errors="replace")
            self._texts += 1
            self._raw += len(data)
            self._small += len(self._zlib.compress(data))

    def ratio(self) -> Value:
        """compression_ratio; n counts the texts."""
        self._small += len(self._zlib.flush())
        return defined(self._raw / self._small, self._texts) if self._texts else undefined(NO_UNITS)


def pick(batches: Batches, places: Sequence[int]) -> list[str]:
    """The texts at these places of the round, ascending."""
    wanted = set(places)
    return [text for place, text in enumerate(_flat(batches)) if place in wanted]


def _flat(batches: Batches) -> Iterator[str]:
    for batch in batches:
        yield from batch
