"""What a model would say first: how the next-token distribution of a prompt closes on one token, two arms side by side."""

from __future__ import annotations

from functools import partial

import polars as pl
import streamlit as st

from dces_core.store import Run
from dces_core.ui import charts, heat, look, point, read, state, text


def cell_clicked(key: str, names: list[str], rounds: list[int]) -> None:
    """Callback of the maps: the cell's round goes into the address bar."""
    found = heat.chosen(st.session_state[key]["selection"]["points"], names, rounds)
    if found is not None:
        state.put("round", str(found[1]))


def pick_distributions(run: Run, arms: tuple[str, ...]) -> pl.DataFrame | None:
    """NEXT_TOKENS of the prompt that is picked; None where there is nothing to pick from, which the page then says."""
    prompts = dict(read.probes(run, arms).select("prompt_id", "prompt").unique(maintain_order=True).iter_rows())
    table = read.next_tokens(run, arms)
    if not prompts:
        state.empty("No watched prompts", "This run watches none: data.probes is empty.")
        return None
    if not table.height:
        state.empty(
            "No next-token distributions in this run",
            "It was recorded before evaluations kept them, and they cannot be computed afterwards without the weights of every round. "
            "A new run has them from round 0 on.",
        )
        return None
    return table.filter(pl.col("prompt_id") == state.pick_prompt(prompts))


def draw_round(run: Run, found: point.Masses, arms: tuple[str, ...], round_: int, finished: point.Rounds) -> None:
    """The distributions of one round."""
    st.subheader(f"The first token in round {round_}", anchor=False)
    said = [point.told(found, arm, round_, finished) for arm in arms]
    if not any((arm, round_) in found for arm in arms):
        state.empty(f"No distribution in round {round_}", text.escaped(" ".join(said)))
        return
    figure, config = point.bars(found, arms, round_, finished), charts.config(f"{run.id}-first-token-{round_}")
    st.plotly_chart(figure, key="bars", config=config, alt=" ".join(said))
    shared = " Round 0 is shared by all arms: both columns show the same model." if round_ == 0 and len(arms) > 1 else ""
    words = (
        f"Probability of each token as the first one of the answer, at temperature 1, before anything is drawn. The {point.TOP} likeliest "
        "tokens of each arm, the highest on top. Where a bar is missing, the token is not among that arm's: at most the figure given, "
        f"and counts in all others. ␣ is a space, ↵ a line end; tokens that are written alike are one row.{shared}"
    )
    st.caption(words)


def draw_rounds(run: Run, found: point.Masses, arms: tuple[str, ...], round_: int) -> None:
    """Tokens by rounds."""
    st.subheader("Round by round", anchor=False)
    rounds = heat.shown_rounds(pl.DataFrame({"round": [r for _, r in found]}))
    names = [*point.rows_of(found), point.REST]
    alt = f"Probability of {len(names)} tokens over {len(rounds)} rounds for {', '.join(arms)}"
    figure, config = point.heat_maps(found, arms, rounds, round_), charts.config(f"{run.id}-first-token")
    click = partial(cell_clicked, "maps", names, rounds)
    st.plotly_chart(figure, key="maps", on_select=click, selection_mode="points", config=config, alt=alt)
    words = "Per cent. Towards one point: one row darkens, all others empty. Click a cell to pick its round. Empty cell: not stored."
    look.show(f'<p>{heat.legend()} &nbsp; <span class="quiet">{words}</span></p>')


def draw_readings(run: Run, readings: pl.DataFrame, arms: tuple[str, ...], round_: int) -> None:
    """What of it is a number."""
    with st.grid(3, min_column_width=260, gap="small"):
        for name, (title, _) in point.PANELS.items():
            figure = point.panel(name, readings.filter(pl.col("quantity") == name), arms, run.config.rounds, round_)
            charts.keep_zoom(figure, run.id, "point", name)
            config = charts.config(f"{run.id}-first-token-{name}")
            st.plotly_chart(figure, key=f"point-{name}", config=config, alt=f"{title} over the rounds for {', '.join(arms)}")


def page() -> None:
    """Draw the page."""
    run = state.need_run()
    state.heading("Towards one point", run)
    arms, round_, _ = state.need_pair(run, "evaluate")
    table = pick_distributions(run, arms)
    if table is None:
        return
    found = point.masses(table)
    finished = {arm: read.finished(run, arm) for arm in arms}
    look.show(look.chips(arms))
    said = "<br>".join(text.escaped(point.told(found, arm, round_, finished)) for arm in arms)
    look.show(f'<p class="num">{said}</p>', key="said")
    draw_readings(run, point.readings(found, finished), arms, round_)
    st.caption(f"Collapse moves all probability onto one token: the first two go to 1, the third too. {point.RULE}")
    draw_round(run, found, arms, round_, finished)
    draw_rounds(run, found, arms, round_)
    words = "What was written after these first tokens"
    query = {"run": run.id, "prompt": str(st.session_state["pick-prompt"]), "round": str(round_), "vs": ",".join(arms)}
    st.page_link("pages/generations.py", label=words, icon=":material/notes:", query_params=query)
    data, file = read.csv_of(table), f"{run.id}-next-tokens.csv"
    st.download_button("Download these distributions as CSV", data, file, "text/csv", icon=":material/download:")


state.run_page(page)
