"""The one way in which model text, prompts and labels reach a page: escaped, verbatim, highlighted.

`st.markdown` turns "1. 1. 1." into empty lists and an image link into a request. So text goes through `mark` (or a
dataframe cell): every character is escaped, control and bidirectional characters are shown by name, white space is
kept, line ends travel as `&#10;` so that nothing on the way can re-indent them.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from html import escape

from dces_core.metrics.text import loop_span, repeated_spans

Span = tuple[int, int, str]
PIECE = re.compile(r"\s+|\w+|[^\w\s]")
UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def visible(character: str) -> str:
    """A character as a reader should meet it: an invisible one by its code point, any other as it is."""
    if character in "\n\t" or unicodedata.category(character) not in UNSEEN:
        return character
    return f"U+{ord(character):04X}"


def escaped(text: str) -> str:
    """Safe HTML that shows `text` verbatim; unescaping it and dropping the tags gives back its visible characters."""
    parts = []
    for character in text:
        seen = visible(character)
        if seen != character:
            parts.append(f'<span class="ctl">{seen}</span>')
        elif character in "\n\t":
            parts.append(f"&#{ord(character)};")
        else:
            parts.append(escape(character))
    return "".join(parts)


def spans_of(text: str) -> list[Span]:
    """What to highlight: (start, end, class), ordered, without overlap; a final loop hides repeats inside it."""
    loop = loop_span(text)
    repeats = [(start, end, "rep") for start, end in repeated_spans(text)]
    if loop is None:
        return repeats
    start, end = loop
    return [(a, min(b, start), kind) for a, b, kind in repeats if a < start] + [(start, end, "loop")]


def mark(text: str | None, highlight: bool = True) -> str:
    """Model text as a block of safe HTML, loops and repeated spans highlighted."""
    if text is None:
        return '<div class="said"><span class="none">no answer stored</span></div>'
    if not text:
        return '<div class="said"><span class="none">empty answer</span></div>'
    parts, at = [], 0
    for start, end, kind in spans_of(text) if highlight else []:
        parts += [escaped(text[at:start]), f'<span class="{kind}">{escaped(text[start:end])}</span>']
        at = end
    return f'<div class="said">{"".join(parts)}{escaped(text[at:])}</div>'


def diff(before: str, after: str) -> str:
    """A word diff as a block of safe HTML: what was replaced, what came in its place."""
    old, new = PIECE.findall(before), PIECE.findall(after)
    parts = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(escaped("".join(old[a:b])))
            continue
        if b > a:
            parts.append(f"<del>{escaped(''.join(old[a:b]))}</del>")
        if d > c:
            parts.append(f"<ins>{escaped(''.join(new[c:d]))}</ins>")
    return f'<div class="said">{"".join(parts)}</div>'


def plain_cell(value: object) -> object:
    """A cell of a CSV export: text that a spreadsheet would run as a formula gets a leading apostrophe."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
