"""Greedy answers to the watched prompts: which ones degenerate, and whether one is coherent.

The texts are a model's and hostile: whoever prints them escapes them.
"""

from __future__ import annotations

from dataclasses import dataclass

from dces_core.evidence import Evidence
from dces_core.metrics.text import ends_in_loop, units

#: The prompt of the published case study.
HAND_EYE = "What sports require good hand-eye coordination?"
FEW_WORDS = 5
ENOUGH_WORDS = 8
SPORTS = (
    "archery", "badminton", "baseball", "basketball", "billiards", "bowling", "boxing", "cricket", "darts", "fencing", "football", "golf",
    "handball", "hockey", "juggling", "lacrosse", "pickleball", "polo", "racquetball", "rugby", "shooting", "snooker", "soccer", "softball",
    "squash", "tennis", "volleyball",
)  # fmt: skip


def distinct_words(text: str) -> set[str]:
    """Different words of a text in lower case: its units (metrics.text) without punctuation marks."""
    return {unit.lower() for unit in units(text) if unit[0].isalnum() or unit[0] == "_"}


def degenerate(text: str) -> bool:
    """Whether it ends in a loop (metrics.text) or has fewer than FEW_WORDS different words."""
    return ends_in_loop(text) or len(distinct_words(text)) < FEW_WORDS


def coherent(text: str) -> bool:
    """Whether it ends in no loop, has ENOUGH_WORDS different words and names one of SPORTS."""
    found = distinct_words(text)
    return not ends_in_loop(text) and len(found) >= ENOUGH_WORDS and not found.isdisjoint(SPORTS)


def described(text: str) -> str:
    """What the two rules look at, in words that are safe to print."""
    found = distinct_words(text)
    named = [sport for sport in SPORTS if sport in found]
    loop, plural = "ends in a loop" if ends_in_loop(text) else "no loop", "s" * (len(found) != 1)
    return f"{loop}, {len(found)} distinct word{plural}, names {', '.join(named) or 'no listed sport'}"


@dataclass(frozen=True)
class Answer:
    """A greedy answer."""

    prompt: str
    text: str
    frozen_logprob: float | None = None  # mean per token under M_0, nats


def answers(study: Evidence, arm: str, seed: int, round_: int) -> list[Answer]:
    """Greedy answers to all watched prompts."""
    rows = study.probes.filter(arm=arm, seed=seed, round=round_, mode="greedy")
    return [Answer(*row) for row in rows.select("prompt", "text", "frozen_logprob").iter_rows()]


def answer(study: Evidence, arm: str, seed: int, round_: int, prompt: str = HAND_EYE) -> Answer | None:
    """The greedy answer to one prompt; None where it was not watched."""
    return next((found for found in answers(study, arm, seed, round_) if found.prompt == prompt), None)


def plausible(answer: Answer, limit: float | None) -> bool | None:
    """Whether its perplexity under M_0 is one that 99 of 100 real references do not exceed (`limit`: log-probability); None: not known."""
    return None if limit is None or answer.frozen_logprob is None else answer.frozen_logprob >= limit
