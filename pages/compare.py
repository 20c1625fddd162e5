"""Any number of studies and runs: what each way of picking the data did to the model, and how sure that is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import polars as pl
import streamlit as st

from dces_core.export import to_csv
from dces_core.metrics.degradation import TITLE
from dces_core.ui import charts, comparison_tables, look, report, sections, sources, state
from dces_core.ui.comparison import CLAIMED, Choice
from dces_core.ui.comparison_charts import Chart
from dces_core.ui.report import Chapter
from dces_core.ui.sections import Section
from dces_core.ui.sources import Comparison, Measured, Source

#: Where the page finds what it makes.
COMMAND = f"dces study smoke --out {'$DCES_RUNS' if os.environ.get('DCES_RUNS') else 'runs'}/smoke-study"


def pick_many(label: str, name: str, options: Mapping[str, str], default: Sequence[str], help_: str) -> list[str]:
    """Any number of options, in the address bar separated by commas. An address that names none of them is said to."""
    text, key = state.asked(name), f"pick-{name}"
    asked = [part for part in (text or "").split(",") if part]
    wanted = [part for part in dict.fromkeys(asked) if part in options]
    st.session_state[key] = list(default) if text is None else wanted
    if text is not None:
        state.put(name, ",".join(wanted))

    def put() -> None:
        state.put(name, ",".join(st.session_state[key]))

    st.multiselect(label, list(options), key=key, format_func=lambda option: options[option], on_change=put, help=help_)
    unknown = [part for part in asked if part not in options]
    if unknown:
        state.problem(f"{name} = {', '.join(unknown)[:80]!r} names nothing that is here; choose from the list.")
    return [str(option) for option in st.session_state[key]]


def first_choice(found: Sequence[Source]) -> list[str]:
    """What is compared before anything is chosen: a study that has units, else the run of the sidebar, else the first run."""
    studies = [source for source in found if source.kind != "run" and source.units]
    runs = [source for source in found if source.kind == "run"]
    shown = [source for source in runs if source.name == state.asked("run")]
    return [source.key for source in (studies or shown or runs or list(found))[:1]]


def pick_one(label: str, name: str, options: Sequence[str], default: str, width: int) -> str:
    """One option, linked."""
    key = state.linked(name, options, default)
    return str(st.selectbox(label, options, key=key, on_change=state.changed, args=(name,), width=width))


def pick_comparison(comparisons: Sequence[Comparison]) -> Comparison:
    """Which one of several is shown; sources with other settings are never pooled."""
    by_key = {one.key: one for one in comparisons}
    if len(by_key) == 1:
        return comparisons[0]
    key = state.linked("comparison", list(by_key), comparisons[0].key)
    title = lambda name: by_key[name].title  # noqa: E731
    st.segmented_control(
        "Shown below (settings differ, so these are not pooled)",
        list(by_key),
        key=key,
        format_func=title,
        on_change=state.changed,
        args=("comparison",),
        required=True,
    )
    return by_key[str(st.session_state[key])]


def pick_choice(shown: Comparison) -> Choice:
    """Round, test set, the arm to compare with, and metrics."""
    study = shown.evidence
    first = sections.fitting(shown, Choice("plain", "everyday", study.last))
    rounds = study.metrics["round"].unique().sort().to_list()
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        key = state.linked("round", rounds, rounds[-1], state.clamp(rounds))
        if len(rounds) > 1:
            st.select_slider("Round", rounds, key=key, on_change=state.changed, args=("round",), width=320)
        arms = [arm for arm in shown.arms(first.base) if arm in study.done]
        base = pick_one("Compared with", "base", arms, first.base, 180)
        test_set = pick_one("Real text of", "set", study.test_sets, first.test_set, 180) if study.test_sets else ""
    metrics = {name: name for name in sorted(study.metrics["metric"].unique(), key=rank)}
    default = [name for name in CLAIMED if name in metrics]
    words = "Columns of Arms and metrics, and the choice under Robustness. What each means stands in its column's head."
    picked = pick_many("Metrics", "metrics", metrics, default, words)
    return Choice(base, test_set, int(st.session_state[key]), tuple(picked or default))


def rank(metric: str) -> tuple[int, str]:
    """Metrics as the list of titles has them."""
    names = list(TITLE)
    return (names.index(metric) if metric in names else len(names), metric)


def draw(section: Section, name: str, small: bool = False) -> None:
    """A section: what it asks, its table, its charts to the left of it."""
    if small:
        look.show(f'<p class="section">{section.title}</p>')
    else:
        st.subheader(section.title, anchor=False)
    draw_body(section, name)


def draw_body(section: Section, name: str) -> None:
    """A section without its title: one chart stands to the left of the table, several stand above it."""
    look.show(sections.quiet(section.said))
    if len(section.charts) != 1:
        with st.grid(3, min_column_width=260, gap="medium"):
            for chart in section.charts:
                draw_chart(chart, name)
        look.show(section.html, key=f"table-{section.title}")
        return
    left, right = st.columns([3, 6], gap="medium")
    with left:
        draw_chart(section.charts[0], name)
    with right:
        look.show(section.html, key=f"table-{section.title}")


def draw_chart(chart: Chart, name: str) -> None:
    """One chart, whose zoom outlives a change of round."""
    charts.keep_zoom(chart.figure, "compare", name, chart.key)
    st.plotly_chart(chart.figure, key=f"compare-{chart.key}", config=charts.config(f"{name}-{chart.key}"), alt=chart.alt)


def draw_comparison(shown: Comparison, choice: Choice) -> None:
    """Everything about one comparison."""
    st.subheader("The four properties that the method claims", anchor=False)
    for section in sections.properties(shown, choice):
        draw(section, shown.title, small=True)
    draw(sections.arms(shown, choice), shown.title)
    with st.expander("Budgets: what every arm was given"):
        draw(sections.budgets(shown, choice), shown.title, small=True)
    draw(sections.verdicts(shown, choice), shown.title)
    with st.expander("How each definition decides"):
        draw(sections.definitions(), shown.title, small=True)
    draw(sections.ablations(shown, choice), shown.title)


def draw_downloads(name: str, choice: Choice, chapters: Callable[[], list[Chapter]], rows: Callable[[], dict[str, pl.DataFrame]]) -> None:
    """The report and the tables. They are made when they are asked for, in the light theme."""
    st.subheader("Take it with you", anchor=False)
    said = "The report is one HTML file with all of the above for every chosen source: it opens without a network. The tables come as CSV."
    look.show(sections.quiet(said))

    def html() -> bytes:
        with look.on_paper():
            return report.report("DCES Lab: comparison", [report.chosen(choice)], chapters()).encode()

    with st.container(horizontal=True, gap="small"):
        file = f"dces-compare-{name}.html"
        st.download_button("Report", html, file, "text/html", icon=":material/description:", type="primary", key="report")
        for table in sections.FRAMES:
            made = partial(csv_of, rows, table)
            file = f"dces-compare-{name}-{table}.csv"
            st.download_button(table, made, file, "text/csv", icon=":material/download:", key=f"csv-{table}")


def csv_of(rows: Callable[[], dict[str, pl.DataFrame]], table: str) -> bytes:
    """One of the tables."""
    return to_csv(rows()[table]).encode()


def nothing() -> None:
    """There is nothing that could be compared."""
    state.empty(
        "Nothing to compare yet",
        "Finished runs and studies (arms × seeds of one recipe) appear here by themselves. This study of the fake engine takes seconds:",
    )
    st.code(COMMAND, language="console")
    st.page_link("pages/launch.py", label="Or launch a run", icon=":material/rocket_launch:")


def nothing_chosen(chosen: Sequence[Source]) -> None:
    """The sources have no figure, or there are none."""
    if not chosen:
        state.empty("No source chosen", "Choose studies or runs above: any number of them.")
        return
    state.empty("No finished unit yet", "What is chosen has none. The same command goes on where it stopped, on any machine:")
    st.code("\n".join(f"dces study {source.name}" for source in chosen if source.kind == "study") or COMMAND, language="console")


def page() -> None:
    """Draw the page."""
    state.heading("Compare")
    look.show('<p class="quiet">Static ways of picking what a model trains on, against DCES, which adapts to the model in every round.</p>')
    found = sources.find()
    if not found:
        nothing()
        return
    labels = {source.key: source.label for source in found}
    keys = pick_many(
        "Studies and runs", "sources", labels, first_choice(found), "Any number. A run counts as one seed of each of its arms."
    )
    chosen = [source for source in found if source.key in keys]
    measured, problems = sources.read_all(chosen)
    for sentence in problems:
        state.problem(sentence)
    comparisons = sources.compared(chosen, measured)
    if not comparisons:
        nothing_chosen(chosen)
        return
    look.show(comparison_tables.sources_table(measured))
    shown = pick_comparison(comparisons)
    choice = pick_choice(shown)
    look.show(sections.quiet(sections.extent(shown)))
    draw_comparison(shown, choice)
    every = sources.compared(found, sources.read_all(found)[0])
    draw_across(every, measured, choice)
    everywhere = replace(choice, round=sections.LAST) if choice.round == shown.evidence.last else choice
    chapters = partial(report.chapters, comparisons, every, measured, everywhere)
    draw_downloads(
        shown.title.replace(" + ", "-")[:60], everywhere, chapters, partial(sections.frames, comparisons, every, measured, everywhere)
    )


def draw_across(every: Sequence[Comparison], measured: Mapping[str, Measured], choice: Choice) -> None:
    """What goes across all comparisons."""
    st.subheader("Robustness", anchor=False)
    key = state.linked("metric", choice.metrics, choice.metrics[0])
    bare: Any = {"label_visibility": "collapsed", "required": True}
    st.segmented_control("Metric", choice.metrics, key=key, on_change=state.changed, args=("metric",), **bare)
    draw_body(sections.robustness(every, str(st.session_state[key]), choice.test_set), "all")
    draw(sections.configs(measured), "all")


state.run_page(page)
