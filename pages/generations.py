"""The same prompt through rounds and arms, side by side: the texts themselves."""

from __future__ import annotations

from functools import partial
from html import escape

import polars as pl
import streamlit as st

from dces_core.store import Run
from dces_core.ui import charts, heat, look, read, state, text

RULE = "Degenerate: the answer is empty or ends in a loop (a period of at most 16 units, 3 full repeats, 8 units or more)."


def degenerate(answer: str | None) -> bool:
    """Empty, or ending in a loop."""
    return heat.degeneracy(answer or "") == 1


def first_degenerate(rows: pl.DataFrame, arm: str) -> int | None:
    """First round in which the arm's answer is degenerate."""
    own = rows.filter(pl.col("arm") == arm).sort("round")
    return next((row["round"] for row in own.to_dicts() if degenerate(row["text"])), None)


def badge_of(round_: int | None, last: int) -> str:
    """Says "collapsed at round k", or how far the answer held."""
    if round_ is None:
        return f'<span class="badge good">not degenerate up to round {last}</span>'
    return f'<span class="badge bad">collapsed at round {round_}</span>'


def pick_prompt(table: pl.DataFrame) -> str:
    """The watched prompt; the hand-eye prompt at first."""
    prompts = dict(table.select("prompt_id", "prompt").unique(maintain_order=True).iter_rows())
    default = next((key for key, prompt in prompts.items() if prompt == state.HAND_EYE), next(iter(prompts)))
    key = state.linked("prompt", list(prompts), default)
    label = lambda prompt_id: f"{prompts[prompt_id]}  ({prompt_id})"  # noqa: E731
    st.selectbox("Prompt", list(prompts), key=key, format_func=label, on_change=state.changed, args=("prompt",), width=620)
    return str(st.session_state[key])


def asked_round() -> int | None:
    """The round of the address bar; the scrubber below clamps it, here it only marks."""
    asked = state.asked("round") or ""
    return int(asked[:9]) if asked.isdecimal() else None


def cell_clicked(key: str, prompts: list[str], rounds: list[int]) -> None:
    """Callback of a heat map: the cell's prompt and round go into the address bar, from where the page takes them."""
    found = heat.chosen(st.session_state[key]["selection"]["points"], prompts, rounds)
    if found is not None:
        state.put("prompt", found[0])
        state.put("round", str(found[1]))


def draw_heat(run_id: str, rows: pl.DataFrame, arms: tuple[str, ...], prompt_id: str) -> None:
    """Prompts x rounds, one map per arm with the same rows and columns."""
    grades = heat.graded(rows)
    every, last = heat.worst_prompts(grades), grades["round"].n_unique()
    prompts, rounds = every[: heat.MOST], heat.shown_rounds(grades)
    with st.grid(3, min_column_width=260, gap="small"):
        for arm in arms:
            with st.container(gap="xxsmall"):
                look.show(look.chip(arm))
                key = f"heat-{arm}"
                figure = heat.heat_map(grades.filter(pl.col("arm") == arm), prompts, rounds, (prompt_id, asked_round()))
                alt = f"Degeneracy of {arm}: {len(prompts)} prompts, the worst on top, by {len(rounds)} rounds"
                config = charts.config(f"{run_id}-degeneracy-{arm}")
                click = partial(cell_clicked, key, prompts, rounds)
                st.plotly_chart(figure, key=key, on_select=click, selection_mode="points", config=config, alt=alt)
    cut = f" Showing {len(prompts)} of {len(every)} prompts, {len(rounds)} of {last} rounds."
    words = f"{heat.RULE} × = 1. Worst prompt on top, over the arms shown. Click a cell: its prompt and round are picked."
    more = cut if (len(prompts), len(rounds)) != (len(every), last) else ""
    look.show(f'<p>{heat.legend()} &nbsp; <span class="quiet">{escape(words + more)}</span></p>')


def probe_grid(rows: pl.DataFrame, arms: tuple[str, ...], highlight: bool) -> str:
    """Rows are rounds, columns are arms."""
    answers = {(row["arm"], row["round"]): row["text"] for row in rows.to_dicts()}
    rounds = sorted({round_ for _, round_ in answers})
    head = ['<div class="head"></div>']
    for arm in arms:
        last = max((r for a, r in answers if a == arm), default=0)
        head.append(f'<div class="head">{look.chip(arm)} &nbsp;{badge_of(first_degenerate(rows, arm), last)}</div>')
    cells = list(head)
    for round_ in rounds:
        cells.append(f'<div class="round{" now" if round_ == asked_round() else ""}">{round_}</div>')
        for arm in arms:
            waiting = '<div class="said"><span class="none">not evaluated yet</span></div>'
            cells.append(f"<div>{text.mark(answers[arm, round_], highlight) if (arm, round_) in answers else waiting}</div>")
    columns = f"2.2rem repeat({len(arms)}, minmax(190px, 1fr))"
    return f'<div class="scroll"><div class="pairs" style="grid-template-columns:{columns}">{"".join(cells)}</div></div>'


def draw_probes(run: Run, arms: tuple[str, ...]) -> None:
    """One watched prompt through all rounds."""
    table = read.probes(run, arms)
    if not table.height:
        state.empty("No watched prompts", "This run watches none: data.probes is empty.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        prompt_id = pick_prompt(table)
        modes = table["mode"].unique().sort().to_list()
        key = state.linked("mode", modes, modes[0])
        mode = st.segmented_control("Decoding", modes, key=key, on_change=state.changed, args=("mode",), required=True)
        highlight = st.toggle("Highlight loops and repeats", value=True, key="highlight")
    rows = table.filter(pl.col("mode") == mode)
    draw_heat(run.id, rows, arms, prompt_id)
    look.show(probe_grid(rows.filter(pl.col("prompt_id") == prompt_id), arms, highlight), key="probes")
    keys = '<span class="said"><span class="loop">loop at the end</span> &nbsp; <span class="rep">repeated 4-grams</span></span>'
    look.show(f'<p class="quiet">{keys} &nbsp; {RULE} Round 0 is shared by all arms.</p>')


def worst_first(run: Run, arms: tuple[str, ...], round_: int) -> pl.DataFrame:
    """One row per evaluation prompt, the worst answer of any arm first; no arm is favoured."""
    wide: pl.DataFrame | None = None
    for arm in arms:
        own = run.generations(arm, round_).select("prompt_id", "topic", "prompt", "reference", "loop", "rep_4", "bertscore_f1", "text")
        badness = (
            pl.col("loop").fill_null(False).cast(pl.Float64) + pl.col("rep_4").fill_null(0) + (1 - pl.col("bertscore_f1").fill_null(0))
        )
        own = own.with_columns(badness.alias("badness")).rename(
            {name: f"{arm} {name}" for name in ("loop", "rep_4", "bertscore_f1", "text", "badness")}
        )
        shared = ["prompt_id", "topic", "prompt", "reference"]
        wide = (
            own
            if wide is None
            else wide.join(own.drop("topic", "prompt", "reference"), on="prompt_id", how="full", coalesce=True).select(
                *shared, pl.exclude(shared)
            )
        )
    assert wide is not None
    return wide.sort(pl.max_horizontal(*(f"{arm} badness" for arm in arms)), descending=True, nulls_last=True)


def draw_evaluation(run: Run, arms: tuple[str, ...], rounds: list[int]) -> None:
    """The answers that the text statistics of a round were computed on."""
    round_ = state.pick_round(run, rounds, "evaluate")
    ready = tuple(arm for arm in arms if round_ in read.finished(run, arm))
    table = worst_first(run, ready, round_) if ready else pl.DataFrame()
    if not table.height:
        state.empty(f"No evaluation answers in round {round_}", "The selected arms have not finished it.")
        return
    shown = ["prompt", "topic", *(f"{arm} {name}" for arm in ready for name in ("loop", "rep_4", "bertscore_f1"))]
    digits = {name: st.column_config.NumberColumn(format="%.3f") for name in shown if name.endswith(("rep_4", "f1"))}
    row = table.row(look.pick_row(table.select(shown), f"worst-{round_}", digits), named=True)
    head = (
        "".join(f'<div class="head">{look.chip(arm)}</div>' for arm in ready)
        + '<div class="head"><span class="chip"><b>reference</b></span></div>'
    )
    cells = (
        "".join(f"<div>{text.mark(row[f'{arm} text'])}</div>" for arm in ready)
        + f"<div>{text.mark(row['reference'], highlight=False)}</div>"
    )
    columns = f"repeat({len(ready) + 1}, minmax(190px, 1fr))"
    look.show(f'<p class="quiet">{escape(row["prompt_id"])}</p>{text.mark(row["prompt"], highlight=False)}')
    look.show(f'<div class="scroll"><div class="pairs" style="grid-template-columns:{columns}">{head}{cells}</div></div>', key="pair")
    data = read.csv_of(table.drop([f"{arm} badness" for arm in ready]))
    st.download_button(
        "Download this round's answers as CSV", data, f"{run.id}-answers-{round_}.csv", "text/csv", icon=":material/download:"
    )


def page() -> None:
    """Draw the page."""
    run = state.need_run()
    state.heading("Generations", run)
    every, rounds = state.need_rounds(run)
    arms = state.pick_arms(every)
    if not arms:
        state.empty("No arm selected", "Choose at least one arm above.")
        return
    draw_probes(run, arms)
    st.subheader("Evaluation answers, worst first", anchor=False)
    draw_evaluation(run, arms, rounds)


state.run_page(page)
