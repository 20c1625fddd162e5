"""The one way of text onto a page: verbatim, inert, highlighted."""

from __future__ import annotations

import re
import time
from html import unescape
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as some
from make_run import HOSTILE

from dces_core.ui import text

TRICKS = some.sampled_from(
    [
        *HOSTILE,
        "<",
        ">",
        "&",
        '"',
        "'",
        "&#10;",
        "\n",
        "\t",
        "\r",
        "\u202e",
        "\u2066",
        "\x00",
        "\x1b",
        "\ud800",
        "1. ",
        "1.",
        " the cat sat on",
    ]
)
texts = some.one_of(some.text(alphabet=some.characters()), some.lists(TRICKS, max_size=30).map("".join))


class Reader(HTMLParser):
    """What a browser would make of it: the words, and which tags and attributes are there."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.words, self.tags, self.attributes = "", [], []
        self.feed(html)
        self.close()

    def handle_data(self, data: str) -> None:
        self.words += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def seen(value: str) -> str:
    return "".join(map(text.visible, value))


@given(texts)
def test_escaped_is_verbatim_and_inert(value: str) -> None:
    html = text.escaped(value)
    assert Reader(html).words == seen(value)
    assert set(Reader(html).tags) <= {"span"}
    assert set(Reader(html).attributes) <= {("class", "ctl")}
    assert unescape(re.sub(r"</?span[^>]*>", "", html)) == seen(value)
    assert "\n" not in html, "a line end could be re-indented on its way"
    html.encode("utf-8")


@given(texts, some.booleans())
def test_mark_shows_every_character_once(value: str, highlight: bool) -> None:
    reader = Reader(text.mark(value, highlight))
    assert set(reader.tags) <= {"div", "span"}
    assert {name for name, _ in reader.attributes} <= {"class"}
    assert reader.words == (seen(value) if value else "empty answer")


@given(texts, texts)
def test_diff_shows_both_sides(before: str, after: str) -> None:
    html = text.diff(before, after)
    assert set(Reader(html).tags) <= {"div", "span", "del", "ins"}
    without = lambda tag: Reader(re.sub(rf"<{tag}>.*?</{tag}>", "", html)).words  # noqa: E731
    assert without("ins") == seen(before)
    assert without("del") == seen(after)


@given(texts)
def test_spans_are_ordered_and_do_not_overlap(value: str) -> None:
    at = 0
    for start, end, _ in text.spans_of(value):
        assert at <= start < end <= len(value)
        at = end


@pytest.mark.parametrize("value", ["1.1.1.1.1.1.1.1.1.1.", "1. 1. 1. 1. 1. 1. 1. 1."])
def test_collapsed_texts_are_marked_as_loops(value: str) -> None:
    assert f'<span class="loop">{value}</span>' in text.mark(value)
    assert "loop" not in text.mark(value, highlight=False)


def test_control_and_bidi_characters_have_names() -> None:
    html = text.escaped("a\u202eb\x07c\u200bd")
    assert [match for match in re.findall(r'ctl">([^<]*)<', html)] == ["U+202E", "U+0007", "U+200B"]


def test_cells_cannot_be_formulas() -> None:
    assert text.plain_cell('=HYPERLINK("x")') == '\'=HYPERLINK("x")'
    assert text.plain_cell("1.1.1.") == "1.1.1."
    assert text.plain_cell(-3) == -3


@given(texts, texts)
def test_a_highlighted_diff_marks_what_mark_marks(before: str, after: str) -> None:
    html = text.diff(before, after, highlight=True)
    reader = Reader(re.sub(r"<del>.*?</del>", "", html))
    assert reader.words == seen(after)
    assert ('class="loop"' in html) == ('class="loop"' in text.mark(after))
    assert ('class="rep"' in html) == ('class="rep"' in text.mark(after))


def test_two_loops_of_any_length_are_compared_at_once() -> None:
    started = time.perf_counter()
    html = text.diff("Golf is good. " + "1." * 3000, "Golf is good. " + "1. " * 3000 + "End.")
    assert time.perf_counter() - started < 2, "SequenceMatcher alone takes minutes"
    assert html.startswith('<div class="said">Golf is good.') and html.count("<del>") == html.count("<ins>") == 1


def test_a_diff_beyond_the_limit_keeps_the_common_start_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MOST_PAIRS", 0)
    assert text.diff("a b c d", "a x d") == '<div class="said">a<del> b c</del><ins> x</ins> d</div>'
    assert text.diff("a b", "a b") == '<div class="said">a b</div>'
    assert text.diff("a a", "a a a") == '<div class="said">a a<ins> a</ins></div>'


def test_a_diff_takes_words_with_the_space_before_them() -> None:
    assert text.diff("one two three", "one six three") == '<div class="said">one<del> two</del><ins> six</ins> three</div>'
