"""How every metric moves over the rounds, arm against arm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import polars as pl
import streamlit as st

from dces_core.metrics.degradation import DIRECTION, TITLE, lead_times
from dces_core.store import Run
from dces_core.ui import charts, delta, look, read, shares, state

GENERATED = "generated text"
GROUPS = {
    "Fit to real text": ("ppl", "loss", "accuracy", "gain_kept", "kl_from_start"),
    "Calibration and entropy": ("ece", "ece_signed", "entropy_real", "effective_vocabulary"),
    "The tail": ("tail_nll_head", "tail_nll_middle", "tail_nll_tail", "topk_mass_1", "topk_mass_10", "topk_mass_100"),
    "Variety": ("entropy_generated", "entropy_unigram", "distinct_1", "distinct_2", "distinct_3", "self_bleu", "vendi"),
    "Repetition, likelihood and length": ("loop_rate", "rep_4", "compression_ratio", "self_ppl", "ref_ppl", "length", "ended_rate"),
    "Against the references": ("bertscore_f1", "bertscore_p", "bertscore_r"),
    "What is left of the real vocabulary": ("tail_coverage", "survival_head", "survival_middle", "survival_tail"),
    "Dispersion (steered, no claim rests on it)": ("dispersion", "dispersion_frozen", "nearest_reference"),
}


def pick_set(run: Run) -> str:
    """Which test set, or the generated text."""
    sets = [name for name, path in run.config.data.tests.items() if path]
    options = [*sets, GENERATED]
    key = state.linked("set", options, options[0])
    return str(st.segmented_control("Measured on", options, key=key, on_change=state.changed, args=("set",), required=True))


def pick_view(every: tuple[str, ...]) -> delta.View:
    """Values, their change since round 0, or their distance to an arm: `shown` and `base` of the address bar."""
    kinds = [kind for kind in delta.LABELS if kind != delta.AGAINST or len(every) > 1]
    key = state.linked("shown", kinds, delta.VALUE)
    label = lambda kind: delta.LABELS[kind]  # noqa: E731
    kind = str(st.segmented_control("Shown", kinds, key=key, format_func=label, on_change=state.changed, args=("shown",), required=True))
    if kind != delta.AGAINST:
        return delta.View(kind)
    key = state.linked("base", every, "plain" if "plain" in every else every[0])
    bare: Any = {"label_visibility": "collapsed", "width": 150}
    return delta.View(kind, str(st.selectbox("Against", every, key=key, on_change=state.changed, args=("base",), **bare)))


def point_clicked(key: str, rounds: list[int]) -> None:
    """Callback of a small multiple: the point's round goes into the address bar, from where every page takes it."""
    found = charts.clicked_round(st.session_state[key]["selection"]["points"], rounds)
    if found is not None:
        state.put("round", str(found))


def draw_panel(run: Run, rows: pl.DataFrame, name: str, arms: tuple[str, ...], view: delta.View, log: bool) -> None:
    """One metric; a click on a point picks its round. `rows`: of `delta.shown`."""
    own, key = rows.filter(pl.col("metric") == name), f"metric-{name}"
    hits = {row["arm"]: row["round"] for row in lead_times(own).to_dicts()}
    figure = delta.trajectory(own, name, arms, run.config.rounds, hits, view, log and name.endswith("ppl"))
    rounds = own["round"].unique().sort().to_list()
    at = state.asked("round")
    if at in map(str, rounds) and own["value"].count():
        charts.mark_round(figure, int(str(at)))
    charts.keep_zoom(figure, run.id, "metric", own["test_set"].first(), name, view.suffix, log)
    figure.update_layout(dragmode="zoom")  # where points can be clicked, Streamlit's own choice is to pan
    st.plotly_chart(
        figure,
        key=key,
        on_select=partial(point_clicked, key, rounds),
        selection_mode="points",
        config=charts.config(f"{run.id}-{name}{view.suffix}"),
        alt=f"{TITLE.get(name, name)} over the rounds for {', '.join(arms)}: {delta.LABELS[view.kind]} {view.base}".rstrip(),
    )


def draw_group(title: str, rows: pl.DataFrame, draw: Callable[[str], None]) -> None:
    """One row of small multiples."""
    known = rows["metric"].unique().to_list()
    names = [name for name in GROUPS.get(title, ()) if name in known] or [name for name in sorted(known) if title == "Others"]
    if not names:
        return
    look.show(f'<p class="section">{title}</p>')
    with st.grid(4, min_column_width=215, gap="small"):
        for name in names:
            draw(name)


def draw_lead_times(rows: pl.DataFrame, arms: tuple[str, ...]) -> None:
    """Which metric moves first: the first round that is 10% worse than round 0."""
    marks = lead_times(rows).filter(
        pl.col("metric").map_elements(lambda name: DIRECTION.get(name, "neutral") != "neutral", return_dtype=pl.Boolean)
    )
    if not marks.height:
        return
    wide = marks.pivot(on="arm", index="metric", values="round", maintain_order=True)
    wide = wide.sort(pl.min_horizontal(*arms), nulls_last=True, maintain_order=True)
    head = "".join(f"<th>{look.chip(arm)}</th>" for arm in arms)
    lines = []
    for row in wide.to_dicts():
        cells = "".join(f'<td class="worse">round {row[arm]}</td>' if row.get(arm) is not None else "<td>–</td>" for arm in arms)
        lines.append(f"<tr><td>{row['metric']}</td>{cells}</tr>")
    look.show(look.table(f"<th>metric</th>{head}", lines))


def draw_reliability(run: Run, arms: tuple[str, ...], round_: int, test_set: str) -> None:
    """The reliability diagram of one round."""
    tables = {arm: run.reliability(arm, round_) for arm in arms if round_ in read.finished(run, arm)}
    tables = {arm: table for arm, table in tables.items() if table.height}
    if not tables:
        state.empty("No reliability table", f"No selected arm has one for round {round_}.")
        return
    alt = f"Reliability diagram of round {round_} on {test_set} for {', '.join(tables)}"
    config, figure = charts.config(f"{run.id}-reliability-{test_set}-{round_}"), charts.reliability(tables, test_set)
    charts.keep_zoom(figure, run.id, "reliability", test_set)
    st.plotly_chart(figure, key="reliability", config=config, alt=alt)
    st.caption(
        "Teacher-forced tokens of the reference text in 15 equal-width bins of the largest probability. Below the diagonal: over-confident."
    )


def draw_survival(run: Run, table: pl.DataFrame, arms: tuple[str, ...]) -> None:
    """Which real words are still used: one chart per arm, on one scale."""
    rows = table.filter(pl.col("metric").is_in(list(shares.SURVIVAL)))
    if not rows["value"].count():
        state.empty("No survival by frequency", "The run was recorded without these metrics.")
        return
    top = shares.top_of(rows, arms)
    with st.grid(3, min_column_width=230, gap="small"):
        for arm in arms:
            with st.container(gap="xxsmall"):
                look.show(look.chip(arm))
                figure = shares.survival(rows, arm, run.config.rounds, top)
                charts.keep_zoom(figure, run.id, "survival", arm)
                config, alt = charts.config(f"{run.id}-survival-{arm}"), f"Survival of real words by frequency over the rounds for {arm}"
                st.plotly_chart(figure, key=f"survival-{arm}", config=config, alt=alt)
    st.caption(shares.SURVIVAL_RULE)


def draw_entropy(run: Run, arms: tuple[str, ...], round_: int) -> None:
    """How sure the model is, token by token: every test set and its own text."""
    tables = {arm: read.entropy(run, arm, round_) for arm in arms if round_ in read.finished(run, arm)}
    tables = {arm: table for arm, table in tables.items() if table.height}
    if not tables:
        more = "The run was recorded before evaluations kept one, or no selected arm has finished the round."
        state.empty(f"No entropy histogram of round {round_}", more)
        return
    look.show(look.chips(tuple(tables)))
    ground = read.entropy(run, arms[0], 0)
    with st.grid(3, min_column_width=260, gap="small"):
        for name in [*(name for name, path in run.config.data.tests.items() if path), ""]:
            figure = shares.entropy(tables, ground, name)
            said = name or "own-text"
            charts.keep_zoom(figure, run.id, "entropy", said)
            config, alt = (
                charts.config(f"{run.id}-entropy-{said}-{round_}"),
                f"Next-token entropy in round {round_}, {said}, against round 0",
            )
            st.plotly_chart(figure, key=f"entropy-{said}", config=config, alt=alt)
    st.caption(shares.ENTROPY_RULE)


def draw_multiples(run: Run, rows: pl.DataFrame, arms: tuple[str, ...], view: delta.View, log: bool) -> None:
    """All small multiples. `rows`: of `delta.shown`, of the arms that are drawn."""
    if not arms:
        state.empty(f"{view.base} against itself", "Choose another arm above.")
        return
    zero = "" if view.kind == delta.VALUE else f" The zero line is {view.origin}."
    note = (
        f"A ring marks the first round that is 10% worse than round 0. 1 seed: points, no interval.{zero} Click a point to pick its round."
    )
    look.show(look.chips(arms, note))
    draw = partial(draw_panel, run, rows, arms=arms, view=view, log=log)
    for title in GROUPS:
        draw_group(title, rows, draw)
    named = {name for group in GROUPS.values() for name in group}
    draw_group("Others", rows.filter(~pl.col("metric").is_in(named)), draw)


def draw_downloads(run: Run, table: pl.DataFrame, rows: pl.DataFrame, name: str) -> None:
    """What is shown, and everything, as CSV."""
    with st.container(horizontal=True, gap="small"):
        for label, data, file in (
            ("Download the rows shown as CSV", rows, f"{run.id}-{name}.csv"),
            ("Download all metrics as CSV", table, f"{run.id}-metrics.csv"),
        ):
            st.download_button(label, read.csv_of(data), file, "text/csv", icon=":material/download:")


def page() -> None:
    """Draw the page."""
    run = state.need_run()
    state.heading("Trajectories", run)
    every, rounds = state.need_rounds(run)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        test_set = pick_set(run)
        view = pick_view(every)
        log = st.toggle("Log perplexity", key="log", disabled=view.kind != delta.VALUE)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="large"):
        arms = state.pick_arms(every)
        round_ = state.pick_round(run, rounds, "evaluate")
    if not arms:
        state.empty("No arm selected", "Choose at least one arm above.")
        return
    table = read.metrics(run)
    of_set = table.filter(pl.col("test_set") == ("" if test_set == GENERATED else test_set))
    rows = delta.shown(of_set, view).filter(pl.col("arm").is_in(arms))
    others = tuple(arm for arm in arms if view.kind != delta.AGAINST or arm != view.base)
    draw_multiples(run, rows.filter(pl.col("arm").is_in(others)), others, view, log)
    left, right = st.columns([2, 3], gap="large")
    with left:
        st.subheader("What moves first", anchor=False)
        draw_lead_times(rows, arms)
    with right:
        if test_set == GENERATED:
            st.subheader("Survival by frequency", anchor=False)
            draw_survival(run, of_set, arms)
        else:
            st.subheader(f"Calibration in round {round_}", anchor=False)
            draw_reliability(run, arms, round_, test_set)
    st.subheader(f"Entropy in round {round_}", anchor=False)
    draw_entropy(run, arms, round_)
    name = f"{'generated' if test_set == GENERATED else test_set}{view.suffix}"
    draw_downloads(run, table.filter(pl.col("arm").is_in(arms)), rows, name)


state.run_page(page)
