"""The Compare page as one HTML file: opens anywhere, asks the network for nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from dces_core.ui import charts, look, sections
from dces_core.ui.comparison import Choice
from dces_core.ui.comparison_tables import sources_table
from dces_core.ui.sections import Section
from dces_core.ui.sources import Comparison, Measured
from dces_core.ui.text import escaped

#: The browser itself refuses every request, whatever a text in the file may try.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
CSS = """
body {margin: 0 auto; max-width: 1240px; padding: 2rem 1.5rem 4rem; font: 15px/1.5 system-ui, sans-serif; color: #212529; background: #fff;}
h1 {font-size: 1.7rem;}
h2 {margin: 2.6rem 0 .2rem; padding-top: .8rem; border-top: 1px solid rgba(128,128,128,.35);}
h3 {margin: 1.6rem 0 .1rem;}
.quiet {margin: .2rem 0 .7rem;} .panels {display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: .6rem;}
.panels > div {min-width: 0;}
"""


@dataclass(frozen=True)
class Chapter:
    """A comparison, or what goes across them."""

    title: str
    said: str
    sections: Sequence[Section]


def chosen(choice: Choice) -> str:
    """The choice in words, for all sources."""
    round_ = "The last round" if choice.round == sections.LAST else f"Round {choice.round}, or the last,"
    return f"{round_} of every source; real text of {choice.test_set}; compared with {choice.base}; where a source has them."


def chapters(shown: Sequence[Comparison], every: Sequence[Comparison], sources: Mapping[str, Measured], choice: Choice) -> list[Chapter]:
    """The whole page, with every chosen comparison."""
    table = Section("", "", sources_table(sources))
    found = [Chapter("Sources", "What is compared.", [table, sections.configs(sources)])]
    for one in shown:
        found.append(Chapter(one.title, sections.extent(one), sections.of_comparison(one, sections.fitting(one, choice))))
    matrices = [sections.robustness(every, metric, choice.test_set) for metric in choice.metrics]
    across = "The same metrics for everything that was run, and what was not."
    return [*found, Chapter("Other models", across, [*matrices, sections.definitions()])]


def report(title: str, facts: Sequence[str], chapters: Sequence[Chapter]) -> str:
    """One self-contained HTML file. `title`, `facts` and the chapters' titles are plain text, whoever wrote them.

    plotly.js is in it once; the figures must have been made inside `look.on_paper()`.
    """
    body = "".join(_chapter(chapter, f"chapter-{index}") for index, chapter in enumerate(chapters))
    said = "".join(f'<p class="quiet">{escaped(fact)}</p>' for fact in facts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{look.rules()}{CSS}</style><script>{get_plotlyjs()}</script></head>"
        f"<body><h1>{escaped(title)}</h1>{said}{body}</body></html>\n"
    )


def _chapter(chapter: Chapter, key: str) -> str:
    parts = "".join(_section(section, f"{key}-{index}") for index, section in enumerate(chapter.sections))
    return f'<h2>{escaped(chapter.title)}</h2><p class="quiet">{escaped(chapter.said)}</p>{parts}'


def _section(section: Section, key: str) -> str:
    panels = "".join(f"<div>{_figure(chart.figure, f'{key}-{chart.key}', chart.alt)}</div>" for chart in section.charts)
    drawn = f'<div class="panels">{panels}</div>' if panels else ""
    heading = f'<h3>{escaped(section.title)}</h3><p class="quiet">{escaped(section.said)}</p>' if section.title else ""
    return f"{heading}{drawn}{section.html}"


def _figure(figure: go.Figure, key: str, alt: str) -> str:
    """A chart as a division and the script that draws it."""
    plain = go.Figure(figure).update_layout(template="none")
    drawn: str = plain.to_html(
        include_plotlyjs=False, full_html=False, div_id=key, config=charts.config(key), default_height=figure.layout.height
    )
    return f'<div role="img" aria-label="{escape(alt)}">{drawn}</div>'
