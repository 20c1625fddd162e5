"""The gate: text that no cluster should be built on, rejected with a reason before clustering [ours].

In a collapsed pool the loops are the center, so a filter on edge samples alone could not see them.
"""

from __future__ import annotations

from dces_core.config import Gate
from dces_core.metrics.text import ends_in_loop, rep_4, units

EMPTY = "empty"
FEW_WORDS = "too few distinct words"
LOOP = "ends in a loop"
REPEATS = "repeats its 4-grams"
FEW_LETTERS = "too few letters"


def gate(texts: list[str], settings: Gate) -> list[str | None]:
    """Why each text is rejected, None where it passes."""
    return [_reason(text, settings) for text in texts]


def _reason(text: str, settings: Gate) -> str | None:
    parts = units(text)
    if not parts:
        return EMPTY
    if len({part.casefold() for part in parts if part[0].isalnum()}) < settings.min_words:
        return FEW_WORDS
    if ends_in_loop(text):
        return LOOP
    if (rep_4(text) or 0.0) > settings.max_rep_4:
        return REPEATS
    if _letter_share(text) < settings.min_letters:
        return FEW_LETTERS
    return None


def _letter_share(text: str) -> float:
    """Letters among non-space characters; the text is not blank."""
    visible = "".join(text.split())
    return sum(character.isalpha() for character in visible) / len(visible)
