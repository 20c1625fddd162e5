"""The gate: text that no cluster should be built on, rejected with a reason before clustering [ours].

In a collapsed pool the loops are the center, so a filter on edge samples alone could not see them.
"""

from __future__ import annotations

import string

from dces_core.config import Gate
from dces_core.metrics.text import loop_units, rep_4_units, units

EMPTY = "empty"
FEW_WORDS = "too few distinct words"
LOOP = "ends in a loop"
REPEATS = "repeats its 4-grams"
FEW_LETTERS = "too few letters"

LETTERS = string.ascii_letters.encode()
SPACES = bytes(code for code in range(128) if chr(code).isspace())


def gate(texts: list[str], settings: Gate) -> list[str | None]:
    """Why each text is rejected, None where it passes. Equal texts are read once."""
    known = {text: _reason(text, settings) for text in set(texts)}
    return [known[text] for text in texts]


def _reason(text: str, settings: Gate) -> str | None:
    parts = units(text)
    if not parts:
        return EMPTY
    if not _has_words(parts, settings.min_words):
        return FEW_WORDS
    if loop_units(parts):
        return LOOP
    if (rep_4_units(parts) or 0.0) > settings.max_rep_4:
        return REPEATS
    if _letter_share(text) < settings.min_letters:
        return FEW_LETTERS
    return None


def _has_words(parts: list[str], wanted: int) -> bool:
    """Whether at least `wanted` distinct words, whatever their case, are among the units; stops counting there."""
    seen: set[str] = set()
    for part in parts:
        if len(seen) >= wanted:
            break
        if part[0].isalnum():
            seen.add(part.casefold())
    return len(seen) >= wanted


def _letter_share(text: str) -> float:
    """Letters among non-space characters; the text is not blank."""
    if text.isascii():  # two passes in C instead of one step per character
        visible = text.encode().translate(None, SPACES)
        return (len(visible) - len(visible.translate(None, LETTERS))) / len(visible)
    characters = "".join(text.split())
    return sum(character.isalpha() for character in characters) / len(characters)
