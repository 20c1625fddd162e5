"""The report: one file that asks for nothing, with every hostile word escaped."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import polars as pl
import pytest
from make_run import HOSTILE, config_for
from test_comparison import BASE, loop_of, measured

from dces_core.ui import look, report
from dces_core.ui.comparison import ENTROPY, Choice
from dces_core.ui.sources import Measured, pooled
from dces_core.ui.text import visible

ARMS = ("plain", "dces")
CHOICE = Choice("plain", "everyday", 5, ("ppl", "vendi"))
MODEL, NOTE = "<img src=http://127.0.0.1:9/x onerror=alert(1)>", "</style></script><script src='https://127.0.0.1:9/y'></script>"


class Parsed(HTMLParser):
    """Tags, attributes, and the text outside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.words, self.scripts = Counter[str](), list[tuple[str, str, str]](), "", list[str]()
        self.inside = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.inside = tag if tag in ("script", "style") else ""
        self.scripts += [""] * (tag == "script")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        elif not self.inside:
            self.words += data


def source(**changes: object) -> Measured:
    series = {"ppl": [10.0, 11.0, 12.0, 13.0, 14.0, 15.0], "vendi": [9.0, 8.0, 7.0, 6.0, 5.0, 4.0], ENTROPY: [3.0, 2.5, 2.0, 1.5, 1.0, 0.5]}
    values = {(arm, metric, 0): values for arm in ARMS for metric, values in series.items()}
    loop = loop_of({("dces", 0): [0.1, 0.2, 0.3, 0.4, 0.5]})
    return measured(values, loop=loop, budgets=(BASE, replace(BASE, arm="dces")), **changes)


def made(*sources: Measured) -> str:
    known = {f"out:{one.name}": one for one in sources}
    found = pooled(list(known.items()))
    with look.on_paper():
        return report.report("DCES Lab: comparison", ["From two sources."], report.chapters(found, found, known, CHOICE))


ARM, REASON = "<u onclick=alert(1)>arm</u>", "<svg/onload=alert(2)>"


@pytest.fixture(scope="module")
def hostile() -> str:
    note = NOTE + "".join(HOSTILE)
    config = config_for(engine="hf", model=MODEL, data={"instruction": HOSTILE[5], "tests": {"own": HOSTILE[3]}})
    other = source(name=HOSTILE[4], config=config, note=note, kind=NOTE)
    bad = other.metrics.filter(arm="dces").with_columns(arm=pl.lit(ARM), value=pl.lit(None, pl.Float64), reason=pl.lit(REASON))
    odd = other.metrics.filter(arm="dces", metric="vendi").with_columns(arm=pl.lit(ARM))
    metrics = pl.concat([other.metrics, bad.filter(pl.col("metric") != "vendi"), odd])
    return made(source(), replace(other, metrics=metrics, planned={**other.planned, ARM: (0,)}))


def test_nothing_is_asked_of_the_network(hostile: str) -> None:
    parsed = Parsed(hostile)
    loading = [
        (tag, name, value) for tag, name, value in parsed.attributes if name in ("src", "href", "srcset", "data", "action", "poster")
    ]
    assert {value.split(";")[0] for _, _, value in loading} == {"data:image/svg+xml"}
    assert not any("://" in value for _, _, value in parsed.attributes)
    assert parsed.tags.keys() & {"link", "iframe", "object", "embed", "base", "a", "form"} == set()
    assert not re.search(r"@import|url\(", hostile.split("</style>")[0])
    policy = next(value for tag, name, value in parsed.attributes if tag == "meta" and name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none';") and "http" not in policy


def test_plotly_is_there_once_and_every_chart_draws_from_it(hostile: str) -> None:
    scripts = Parsed(hostile).scripts
    assert sum(len(script) > 1_000_000 for script in scripts) == 1
    assert sum("Plotly.newPlot" in script for script in scripts[1:]) == len(scripts) - 1 == 2 * 3
    ids = [value for _, name, value in Parsed(hostile).attributes if name == "id"]
    assert len(ids) == len(set(ids)) == 6
    assert not any("http" in script for script in scripts[1:])


def test_hostile_words_are_shown_and_do_nothing(hostile: str) -> None:
    parsed = Parsed(hostile)
    assert {tag for tag in parsed.tags if tag not in ("span", "td", "th", "tr", "table", "div", "p", "b", "i", "br", "wbr")} <= {
        "html", "head", "meta", "title", "style", "script", "body", "h1", "h2", "h3", "thead", "tbody", "img", "ul", "li",
    }  # fmt: skip
    assert not any(name.startswith("on") for _, name, _ in parsed.attributes)
    for words in (MODEL, NOTE, HOSTILE[3], HOSTILE[4], HOSTILE[5], ARM, REASON):
        assert "".join(map(visible, words)) in parsed.words
    assert "U+202E" in parsed.words and "\u202e" not in hostile


def test_it_has_every_section_of_every_source_and_is_drawn_in_the_light_theme() -> None:
    html = made(source(), source(name="two", config=config_for(generate={"temperature": 1.3})))
    words = Parsed(html).words
    for title in (
        "Model awareness",
        "Diversity mitigation",
        "Sustainability",
        "Arms and metrics",
        "Budgets",
        "Collapse verdicts",
        "Ablations",
    ):
        assert words.count(title) == 2
    for title in ("Robustness", "Settings that differ", "Definitions of collapse", "From two sources.", "generate.temperature"):
        assert title in words
    assert look.LOOKS["dces"].light in html and look.LOOKS["dces"].dark not in html
    assert "undefined in every arm, not kept when this was recorded" in words


def test_sign_and_colour_say_the_same() -> None:
    html = made(source())
    assert 'class="even">≈ ×1.000' in html and 'class="worse">● 1 of 1' in html and 'class="worse">1</span>' in html
