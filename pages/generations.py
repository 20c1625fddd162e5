"""The same prompt through rounds and arms, side by side: the texts themselves."""

from __future__ import annotations

from functools import partial
from html import escape
from typing import Any

import polars as pl
import streamlit as st

from dces_core.store import Run
from dces_core.ui import charts, comparator, heat, look, pairs, read, state, text
from dces_core.ui.pairs import Answers, View


def cell_clicked(key: str, prompts: list[str], rounds: list[int]) -> None:
    """Callback of a heat map: the cell's prompt and round go into the address bar, from where the page takes them."""
    found = heat.chosen(st.session_state[key]["selection"]["points"], prompts, rounds)
    if found is not None:
        state.put("prompt", found[0])
        state.put("round", str(found[1]))


def draw_heat(run_id: str, rows: pl.DataFrame, arms: tuple[str, ...], here: tuple[str, int], find: str) -> None:
    """Prompts x rounds, one map per arm with the same rows and columns; `find` leaves prompts out."""
    grades = heat.graded(rows)
    found = set(rows.filter(pairs.matches(find, ["prompt", "text"]))["prompt_id"].to_list())
    total, last = grades["prompt_id"].n_unique(), grades["round"].n_unique()
    prompts = [prompt_id for prompt_id in heat.worst_prompts(grades) if prompt_id in found][: heat.MOST]
    rounds = heat.shown_rounds(grades)
    if not prompts:
        state.empty("No watched prompt matches the search", "It reads the prompts and what the arms above answer in any round.")
        return
    with st.grid(3, min_column_width=260, gap="small"):
        for arm in arms:
            with st.container(gap="xxsmall"):
                look.show(look.chip(arm))
                key = f"heat-{arm}"
                figure = heat.heat_map(grades.filter(pl.col("arm") == arm), prompts, rounds, here)
                alt = f"Degeneracy of {arm}: {len(prompts)} prompts, the worst on top, by {len(rounds)} rounds"
                config = charts.config(f"{run_id}-degeneracy-{arm}")
                click = partial(cell_clicked, key, prompts, rounds)
                st.plotly_chart(figure, key=key, on_select=click, selection_mode="points", config=config, alt=alt)
    cut = f" Showing {len(prompts)} of {total} prompts, {len(rounds)} of {last} rounds."
    words = f"{heat.RULE} × = 1. Worst prompt on top, over the arms shown. Click a cell: its prompt and round are picked."
    more = cut if (len(prompts), len(rounds)) != (total, last) else ""
    look.show(f'<p>{heat.legend()} &nbsp; <span class="quiet">{escape(words + more)}</span></p>')


def draw_probes(run: Run, arms: tuple[str, ...], round_: int, view: View) -> None:
    """The watched prompts as maps, then one of them: in the picked round, and through all rounds."""
    table = read.probes(run, arms)
    if not table.height:
        state.empty("No watched prompts", "This run watches none: data.probes is empty.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        prompts = dict(table.select("prompt_id", "prompt").unique(maintain_order=True).iter_rows())
        prompt_id = state.pick_prompt(prompts)
        modes = table["mode"].unique().sort().to_list()
        key = state.linked("mode", modes, modes[0])
        mode = st.segmented_control("Decoding", modes, key=key, on_change=state.changed, args=("mode",), required=True)
    rows = table.filter(pl.col("mode") == mode)
    draw_heat(run.id, rows, arms, (prompt_id, round_), view.find)
    own = rows.filter(pl.col("prompt_id") == prompt_id)
    answers: Answers = {(row["arm"], row["round"]): row["text"] for row in own.to_dicts()}
    st.subheader(f"The picked prompt in round {round_}", anchor=False)
    look.show(f'<div class="ask">{text.escaped(prompts[prompt_id])}</div>{pairs.beside(answers, arms, round_, view)}', key="probe-pair")
    look.show(f'<p class="quiet">{pairs.legend(view)}{pairs.RULE} {pairs.WORDS}</p>')
    query = {"run": run.id, "prompt": prompt_id}
    st.page_link("pages/case.py", label="Read it as a case study", icon=":material/menu_book:", query_params=query)
    st.subheader("The same prompt in every round", anchor=False)
    look.show(pairs.through(answers, arms, round_, view), key="probes")
    look.show('<p class="quiet">Round 0 is shared by all arms.</p>')


def draw_evaluation(run: Run, arms: tuple[str, ...], round_: int, view: View) -> None:
    """The answers that the text statistics of a round were computed on: a list, the worst first, and one of them in full."""
    frames = {arm: read.generations(run, arm, round_) for arm in arms if round_ in read.finished(run, arm)}
    frames = {arm: frame for arm, frame in frames.items() if frame.height}
    if not frames:
        state.empty(f"No evaluation answers in round {round_}", "The selected arms have not finished it.")
        return
    ready = tuple(frames)
    table = pairs.evaluation_table(frames)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        by = pairs.pick_one("sort", "Worst first under", ready, "any arm shown")
        topic = pairs.pick_one("topic", "Topic", table["topic"].drop_nulls().unique().sort().to_list(), "all topics")
    shown = pairs.chosen_answers(pairs.worst_first(table, [by] if by else ready), topic, view.find)
    words = "Most degenerate first, among equals the farthest from its reference (lowest bertscore_f1). rep_4: share of repeated 4-grams."
    st.caption(f"{shown.height} of {table.height} prompts; the search field above counts here too. {words} A row picks its prompt.")
    if not shown.height:
        state.empty("No evaluation prompt matches", "Choose another topic, or change the search above.")
        return
    row = pairs.pick_row(shown, ready, f"{run.id} {round_} {by} {topic} {view.find} {ready}")
    draw_answer(run, row, ready, round_, view)
    draw_exports(run, shown, frames, round_)


def draw_answer(run: Run, row: dict[str, Any], arms: tuple[str, ...], round_: int, view: View) -> None:
    """One evaluation prompt: what each arm answers, and the reference."""
    answers: Answers = {(arm, round_): row[f"{arm} text"] for arm in arms}
    for arm in arms:
        for earlier in [at for at in read.finished(run, arm) if at < round_][-1:]:
            before = read.generations(run, arm, earlier).filter(pl.col("prompt_id") == row["prompt_id"])
            answers[arm, earlier] = next(iter(before["text"]), None)
    head = f'<p class="quiet">{text.escaped(row["prompt_id"])} in round {round_}</p><div class="ask">{text.escaped(row["prompt"])}</div>'
    reference = ('<span class="chip"><b>reference</b></span>', text.mark(row["reference"], highlight=False))
    look.show(head + pairs.beside(answers, arms, round_, view, [reference]), key="pair")
    if pairs.legend(view):
        look.show(f'<p class="quiet">{pairs.legend(view)}</p>')


def draw_exports(run: Run, shown: pl.DataFrame, frames: dict[str, pl.DataFrame], round_: int) -> None:
    """The answers of the list as CSV, and two arms of it as LLM Comparator's JSON; both are made on the click."""
    bare: Any = {"icon": ":material/download:", "on_click": "ignore"}
    with st.container(horizontal=True, gap="small"):
        st.download_button("Answers of the list as CSV", partial(read.csv_of, shown), f"{run.id}-answers-{round_}.csv", "text/csv", **bare)
        if len(frames) < 2:
            return
        with st.popover("LLM Comparator", icon=":material/compare:"):
            a = str(st.selectbox("Model A", list(frames), key="comparator-a"))
            b = str(st.selectbox("Model B", [arm for arm in frames if arm != a], key="comparator-b"))
            words = "No judge has read them, so every score is null; what was measured stands in custom fields."
            st.caption(f"{shown.height} prompts of round {round_}. {words}")
            left = shown.select("prompt_id").join(frames[a], on="prompt_id", maintain_order="left")
            made = partial(comparator_file, left, frames[b], (a, b), f"{run.id}, round {round_}")
            st.download_button("Pairs as JSON", made, f"{run.id}-{a}-{b}-round{round_}.json", "application/json", **bare)


def comparator_file(left: pl.DataFrame, right: pl.DataFrame, arms: tuple[str, str], source: str) -> bytes:
    """What the JSON button hands out."""
    return comparator.to_bytes(comparator.side_by_side(left, right, arms, source))


def page() -> None:
    """Draw the page."""
    run = state.need_run()
    state.heading("Generations", run)
    every, rounds = state.need_rounds(run)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="large"):
        arms = state.pick_arms(every)
        round_ = state.pick_round(run, rounds, "evaluate")
    if not arms:
        state.empty("No arm selected", "Choose at least one arm above.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        view = pairs.pick_view(arms)
    st.subheader("Watched prompts", anchor=False)
    draw_probes(run, arms, round_, view)
    st.subheader("Evaluation answers, worst first", anchor=False)
    draw_evaluation(run, arms, round_, view)


state.run_page(page)
