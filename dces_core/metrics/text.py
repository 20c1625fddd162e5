r"""Statistics of generated text, and the loop detector.

Units of all text statistics are `re.findall(r"\w+|[^\w\s]", text)`, never model tokens and never words by white
space, where "1.1.1.1." is one word. Pooled statistics depend on how much text they see, so each takes
`budget_units` and reads exactly that many units of the pool (`cut_pool`), or all of a smaller pool; n tells.
This module imports the standard library and NumPy only: the web process uses it too.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dces_core.metrics.probability import BINS, frequency_bins
from dces_core.metrics.value import Value, defined, mean, rate, undefined

UNIT = re.compile(r"\w+|[^\w\s]")
LOOP_PERIOD = 16  # longest period, units
LOOP_REPEATS = 3  # full repeats
LOOP_UNITS = 8  # shortest loop, units
TAIL_QUANTILE = 0.2
NO_TEXTS = "no texts"
NO_UNITS = "the texts have no units"


def units(text: str) -> list[str]:
    """Words and single punctuation marks."""
    return UNIT.findall(text)


def cut(text: str, budget_units: int) -> str:
    """The text up to the end of its unit number `budget_units`."""
    end = 0
    for count, match in enumerate(UNIT.finditer(text)):
        if count >= budget_units:
            return text[:end]
        end = match.end()
    return text


def cut_pool(texts: Sequence[str], budget_units: int) -> list[str]:
    """Every text cut at one common length, so that the pool has exactly `budget_units` units (or all, if it has fewer).

    What is left over after the common length goes to the first longer texts, one unit each.
    """
    lengths = np.array([len(units(text)) for text in texts], dtype=np.int64)
    if int(lengths.sum()) <= budget_units:
        return list(texts)
    return [cut(text, int(budget)) for text, budget in zip(texts, unit_budgets(lengths, budget_units), strict=True)]


def unit_budgets(lengths: NDArray[np.int64], budget_units: int) -> NDArray[np.int64]:
    """(texts,) units that `cut_pool` reads of each text, from their lengths in units."""
    if int(lengths.sum()) <= budget_units:
        return lengths
    short, long = 0, int(lengths.max())  # the largest common length that fits lies in [short, long)
    while long - short > 1:
        middle = (short + long) // 2
        short, long = (middle, long) if int(np.minimum(lengths, middle).sum()) <= budget_units else (short, middle)
    budgets = np.minimum(lengths, short)
    longer = np.flatnonzero(lengths > short)
    budgets[longer[: max(0, budget_units - int(budgets.sum()))]] += 1
    return budgets


def loop_span(text: str) -> tuple[int, int] | None:
    """Characters (start, end) of the loop that the text ends in, or None. Time: at most 16 comparisons per unit.

    A loop: a period of at most 16 units, at least 3 full repeats (after them one may be cut, even inside a unit),
    covering at least 8 units. The longest one counts.
    """
    found = list(UNIT.finditer(text))
    longest = loop_units([match.group() for match in found])
    return (found[-longest].start(), found[-1].end()) if longest else None


def loop_units(words: list[str]) -> int:
    """Units at the end of a text that make its loop (see loop_span); 0 without one."""
    if len(words) < LOOP_UNITS or words[-2] not in words[-2 - LOOP_PERIOD : -2]:
        return 0  # every loop has its last unit but one a period earlier
    periods = [period for period in range(1, min(LOOP_PERIOD, len(words) - 2) + 1) if words[-2 - period] == words[-2]]
    return max(_periodic_end(words, period) for period in periods)


def _periodic_end(words: list[str], period: int) -> int:
    """Units at the end that repeat with this period; 0 where they make no loop."""
    if len(words) <= period:
        return 0
    last = len(words) - 1
    before = words[last - period]
    cut_unit = words[last] != before and before.startswith(words[last])
    start = last - cut_unit
    while start >= period and words[start] == words[start - period]:
        start -= 1
    full = last - cut_unit - start + period
    return full + cut_unit if full >= max(LOOP_REPEATS * period, LOOP_UNITS) else 0


def ends_in_loop(text: str) -> bool:
    """Whether the text ends in a loop ("1.1.1.1.1.1.")."""
    return loop_units(units(text)) > 0


def loop_rate(texts: Sequence[str]) -> Value:
    """Share of texts that end in a loop; Wilson interval."""
    return rate(sum(map(ends_in_loop, texts)), len(texts), NO_TEXTS)


def repeated_spans(text: str, n: int = 4) -> list[tuple[int, int]]:
    """Characters (start, end) of n-grams that occurred earlier in the text, merged where they touch."""
    found = list(UNIT.finditer(text))
    seen: set[tuple[str, ...]] = set()
    runs: list[tuple[int, int]] = []  # in units
    for start, gram in enumerate(_ngrams([match.group() for match in found], n)):
        if gram in seen:
            joined = runs.pop()[0] if runs and start <= runs[-1][1] else start
            runs.append((joined, start + n))
        seen.add(gram)
    return [(found[first].start(), found[end - 1].end()) for first, end in runs]


def rep_4(text: str) -> float | None:
    """1 - unique/total 4-grams of one text; None below 4 units."""
    return rep_4_units(units(text))


def rep_4_units(words: list[str]) -> float | None:
    """As rep_4, of a text's units."""
    total = len(words) - 3
    return 1 - len(set(zip(words, words[1:], words[2:], words[3:], strict=False))) / total if total > 0 else None


def rep_4_mean(texts: Sequence[str]) -> Value:
    """Mean of rep_4 over the texts that have 4 units; n counts those."""
    known = [value for value in map(rep_4, texts) if value is not None]
    return mean(known, "no text has 4 units")


def _ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def distinct(texts: Sequence[str], n: int, budget_units: int) -> Value:
    """Unique / total n-grams pooled over the budget (Li et al. 2016); Value.n is the total. No n-gram spans two texts."""
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in cut_pool(texts, budget_units):
        grams = _ngrams(units(text), n)
        seen.update(grams)
        total += len(grams)
    return defined(len(seen) / total, total) if total else undefined(f"no text has {n} units")


def entropy_unigram(texts: Sequence[str], budget_units: int) -> Value:
    """Entropy (nats) of the distribution of units pooled over the budget; n counts the units."""
    counts = np.array(list(_pooled(texts, budget_units).values()), dtype=np.float64)
    if not counts.size:
        return undefined(NO_UNITS)
    share = counts / counts.sum()
    return defined(max(0.0, -float(np.sum(share * np.log(share)))), int(counts.sum()))


def _pooled(texts: Sequence[str], budget_units: int) -> Counter[str]:
    return Counter(unit for text in cut_pool(texts, budget_units) for unit in units(text))


def compression_ratio(texts: Sequence[str], budget_units: int) -> Value:
    """Raw bytes / zlib-9 bytes of the texts joined by line ends (UTF-8, over the budget); higher = more redundant.

    n counts the texts joined; texts without units are left out.
    """
    kept = [text for text in cut_pool(texts, budget_units) if UNIT.search(text)]
    if not kept:
        return undefined(NO_UNITS)
    raw = "\n".join(kept).encode("utf-8", errors="replace")
    return defined(len(raw) / len(zlib.compress(raw, 9)), len(kept))


def evenly(total: int, limit: int) -> list[int]:
    """At most `limit` of the indices 0..total-1, evenly spaced: the fixed subsample of quadratic metrics."""
    if limit <= 0:
        return []
    return list(range(total)) if total <= limit else [index * total // limit for index in range(limit)]


def self_bleu(texts: Sequence[str], limit: int = 1000) -> Value:
    """Mean BLEU-4 in [0, 1] of each text against all others (Zhu et al. 2018), on a fixed subsample; n counts the texts.

    sacrebleu's n-grams and formula (exponential smoothing, effective order) over our units. Only the leave-one-out
    reference counts are computed here, in linear time; texts without units are left out.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.helpers import extract_all_word_ngrams

    lines = [" ".join(units(texts[index])) for index in evenly(len(texts), limit)]
    grams = [extract_all_word_ngrams(line, 1, 4) for line in lines if line]
    if len(grams) < 2:
        return undefined("switched off" if limit <= 0 else f"fewer than 2 of {len(lines)} texts have units", len(grams))
    top: dict[tuple[str, ...], list[int]] = {}  # the two largest counts of an n-gram in one text
    for counts, _ in grams:
        for gram, count in counts.items():
            top[gram] = sorted([*top.get(gram, [0, 0]), count])[1:]
    lengths = Counter(length for _, length in grams)
    total = 0.0
    for counts, length in grams:
        correct, possible = [0] * 4, [0] * 4
        for gram, count in counts.items():
            second, first = top[gram]
            correct[len(gram) - 1] += min(count, second if count == first else first)
            possible[len(gram) - 1] += count
        others = [other for other, number in lengths.items() if other != length or number > 1]
        _, closest = min((abs(other - length), other) for other in others)
        total += BLEU.compute_bleu(correct, possible, length, closest, smooth_method="exp", effective_order=True).score
    return defined(total / len(grams) / 100, len(grams))


def tail_coverage(texts: Sequence[str], reference_counts: Mapping[str, int], budget_units: int) -> Value:
    """Share of the rare real types that occur in the pooled sample; n counts those types.

    Rare: a count of 2..q20 in the real training split, q20 being the 20% quantile of the counts >= 2 (at least 2).
    Types that occur once are noise and left out.
    """
    return tail_seen(_pooled(texts, budget_units), reference_counts)


def tail_seen(sample: Counter[str], reference_counts: Mapping[str, int]) -> Value:
    """As tail_coverage, of a sample that is counted already."""
    counts = sorted(count for count in reference_counts.values() if count >= 2)
    if not counts:
        return undefined("no real type occurs twice")
    limit = counts[math.ceil(TAIL_QUANTILE * len(counts)) - 1]
    rare = {unit for unit, count in reference_counts.items() if 2 <= count <= limit}
    return _share_seen(rare, sample, "rare")


def survival(texts: Sequence[str], reference_counts: Mapping[str, int], budget_units: int) -> dict[str, Value]:
    """`survival_head`, `_middle`, `_tail`: share of the real types of each frequency bin that occur in the pooled sample."""
    return types_seen(_pooled(texts, budget_units), reference_counts)


def types_seen(sample: Counter[str], reference_counts: Mapping[str, int]) -> dict[str, Value]:
    """As survival, of a sample that is counted already."""
    ordered = sorted(unit for unit, count in reference_counts.items() if count > 0)
    bins = frequency_bins(np.array([reference_counts[unit] for unit in ordered], dtype=np.int64))
    members: dict[str, set[str]] = {name: set() for name in BINS}
    for unit, index in zip(ordered, bins, strict=True):
        members[BINS[index]].add(unit)
    return {f"survival_{name}": _share_seen(types, sample, name) for name, types in members.items()}


def _share_seen(types: set[str], sample: Counter[str], name: str) -> Value:
    if not types or not sample:
        return undefined(f"no {name} types in the real text" if not types else NO_UNITS, len(types))
    return defined(len(types & sample.keys()) / len(types), len(types))
