"""The one way in which model text, prompts and labels reach a page: escaped, verbatim, highlighted.

`st.markdown` turns "1. 1. 1." into empty lists and an image link into a request. So text goes through `mark` (or a
dataframe cell): every character is escaped, control and bidirectional characters are shown by name, white space is
kept, line ends travel as `&#10;` so that nothing on the way can re-indent them.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from html import escape

from dces_core.metrics.text import loop_span, repeated_spans

Span = tuple[int, int, str]
PIECE = re.compile(r"\s*(?:\w+|[^\w\s])|\s+")  # a word or a mark with the white space before it
MOST_PAIRS = 20_000
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


def painted(text: str, start: int, end: int, spans: list[Span]) -> str:
    """text[start:end] as safe HTML with the parts of the (ordered) spans that lie in it."""
    parts, at = [], start
    for first, last, kind in spans:
        first, last = max(first, at), min(last, end)
        if first < last:
            parts += [escaped(text[at:first]), f'<span class="{kind}">{escaped(text[first:last])}</span>']
            at = last
    return "".join([*parts, escaped(text[at:end])])


def mark(text: str | None, highlight: bool = True) -> str:
    """Model text as a block of safe HTML, loops and repeated spans highlighted."""
    if not text:
        return f'<div class="said"><span class="none">{"no answer stored" if text is None else "empty answer"}</span></div>'
    return f'<div class="said">{painted(text, 0, len(text), spans_of(text) if highlight else [])}</div>'


def opcodes(old: list[str], new: list[str]) -> list[tuple[str, int, int, int, int]]:
    """As SequenceMatcher.get_opcodes. That is cubic in how often a piece recurs, and looping answers recur in nothing else:
    beyond MOST_PAIRS equal pairs only the common start and the common end count as equal.
    """
    counts = Counter(old)
    if sum(counts[piece] for piece in new) <= MOST_PAIRS:
        return list(difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes())
    short = min(len(old), len(new))
    head = next((i for i in range(short) if old[i] != new[i]), short)
    tail = next((i for i in range(short - head) if old[-1 - i] != new[-1 - i]), short - head)
    a, b = len(old) - tail, len(new) - tail
    return [("equal", 0, head, 0, head), ("replace", head, a, head, b), ("equal", a, len(old), b, len(new))]


def diff(before: str, after: str, highlight: bool = False) -> str:
    """A word diff as a block of safe HTML: what is gone, what came; loops and repeated spans of `after` where asked for."""
    old, new = PIECE.findall(before), PIECE.findall(after)
    spans = spans_of(after) if highlight else []
    parts, at = [], 0
    for kind, a, b, c, d in opcodes(old, new):
        if kind != "equal" and b > a:
            parts.append(f"<del>{escaped(''.join(old[a:b]))}</del>")
        end = at + sum(map(len, new[c:d]))
        if end > at:
            body = painted(after, at, end, spans)
            parts.append(body if kind == "equal" else f"<ins>{body}</ins>")
        at = end
    return f'<div class="said">{"".join(parts)}</div>'


def plain_cell(value: object) -> object:
    """A cell of a CSV export: text that a spreadsheet would run as a formula gets a leading apostrophe."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
