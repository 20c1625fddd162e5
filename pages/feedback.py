"""The feedback loop: what it knew and did in every round, and where the samples of one round went."""

from __future__ import annotations

import polars as pl
import streamlit as st

from dces_core.stages.remarks import remarks
from dces_core.store import Run
from dces_core.ui import charts, flow, look, read, state, text


def states_of(run: Run, arms: tuple[str, ...]) -> dict[tuple[str, int], flow.State]:
    """The loop's state by arm and round, for every round in which an arm has selected its data."""
    return {(arm, round_): read.loop(run, arm, round_) for arm in arms for round_ in read.finished(run, arm, "select")}


def draw_loop(run: Run, arms: tuple[str, ...], states: dict[tuple[str, int], flow.State], rows: pl.DataFrame) -> None:
    """Small multiples over the rounds; under each, which arm has no value there and why."""
    with st.grid(3, min_column_width=260, gap="small"):
        for name, (title, _) in flow.PANELS.items():
            own = rows.filter(pl.col("quantity") == name)
            if not own.height:
                continue
            with st.container(gap="xsmall"):
                figure = flow.panel(name, own, arms, run.config.rounds, run.config.controller, list(states.values()))
                charts.keep_zoom(figure, run.id, "loop", name)
                alt = f"{title.format(signal=run.config.controller.signal)} over the rounds for {', '.join(arms)}"
                st.plotly_chart(figure, key=f"loop-{name}", config=charts.config(f"{run.id}-loop-{name}"), alt=alt)
                words = [f"{look.chip(arm)} {text.escaped(why)}" for arm, why in flow.undefined(own)]
                if words:
                    look.show(f'<p class="quiet">{"<br>".join(words)}</p>', key=f"undefined-{name}")


def draw_flow(run: Run, arm: str, round_: int) -> list[flow.Link]:
    """Where one arm's samples of a round went; returns the links."""
    look.show(look.chips((arm,)))
    if round_ not in read.finished(run, arm, "select"):
        state.empty(f"No selection in round {round_}", "This arm has not finished it.")
        return []
    known, found = read.loop(run, arm, round_), flow.links(read.samples(run, arm, round_))
    if not found:
        state.empty("No samples", "The sample table of this round is empty or unreadable.")
        return []
    alt = f"Flow of {arm} in round {round_}. {flow.told(found)}"
    st.plotly_chart(flow.sankey(found, arm), key=f"flow-{arm}", config=charts.config(f"{run.id}-flow-{arm}-{round_}"), alt=alt)
    words = said_of(known, flow.totals(found), remarks(run.controller(arm, round_)))
    look.show(f'<p class="quiet num">{text.escaped(" ".join(words))}</p>', key=f"said-{arm}")
    return found


def said_of(known: flow.State, passing: dict[str, int], odd: list[str]) -> list[str]:
    """Sentences under a flow: what was trained on, what the loop set, what the selection noted."""
    trained = f"{passing.get(flow.TRAINED, 0):,} of the pool's {passing[flow.POOL]:,} samples trained on"
    real = known.get("real_pairs")
    return [
        f"{trained}, and {real:,} real pairs." if real else f"{trained}.",
        flow.controlled(known),
        *(f"{remark}." for remark in odd),
    ]


def draw_round(run: Run, arms: tuple[str, ...], round_: int) -> None:
    """The arms' flows side by side."""
    rows = []
    for column, arm in zip(st.columns(len(arms), gap="medium"), arms, strict=True):
        with column:
            found = draw_flow(run, arm, round_)
        rows += [{"arm": arm, "round": round_, "from": link.source, "to": link.target, "samples": link.count} for link in found]
    later = run.config.train.regime.startswith("accumulate")
    more = f" The regime {run.config.train.regime} also trains on earlier rounds, which are not drawn." if later else ""
    st.caption(
        "Every sample of the pool leaves it once. Grey: not trained on, with the reason. Edge is outlined, center filled. "
        f"Edited: at least one token, or its target, was changed.{more}"
    )
    if rows:
        data = read.csv_of(pl.DataFrame(rows))
        st.download_button("Download this flow as CSV", data, f"{run.id}-flow-{round_}.csv", "text/csv", icon=":material/download:")


def page() -> None:
    """Draw the page."""
    run = state.need_run()
    state.heading("Feedback", run)
    arms, round_, _ = state.need_pair(run, "select")
    st.subheader(f"Where the samples of round {round_} went", anchor=False)
    draw_round(run, arms, round_)
    st.subheader("What the loop knew and did", anchor=False)
    states = states_of(run, arms)
    table = flow.loop_rows(states)
    look.show(look.chips(arms, "Every pool is measured, also of arms that nothing steers. The loop begins with round 1."))
    draw_loop(run, arms, states, table)
    st.download_button("Download the loop as CSV", read.csv_of(table), f"{run.id}-feedback.csv", "text/csv", icon=":material/download:")


state.run_page(page)
