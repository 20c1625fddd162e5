"""How every metric moves over the rounds, arm against arm."""

from __future__ import annotations

import polars as pl
import streamlit as st

from dces_core.metrics.degradation import DIRECTION, TITLE, lead_times
from dces_core.store import Run
from dces_core.ui import charts, look, read, state

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


def draw_group(title: str, rows: pl.DataFrame, arms: tuple[str, ...], rounds: int, log: bool) -> None:
    """One row of small multiples."""
    known = rows["metric"].unique().to_list()
    names = [name for name in GROUPS.get(title, ()) if name in known] or [name for name in sorted(known) if title == "Others"]
    if not names:
        return
    look.show(f'<p class="section">{title}</p>')
    marks = lead_times(rows)
    with st.grid(4, min_column_width=215, gap="small"):
        for name in names:
            own = rows.filter(pl.col("metric") == name)
            hits = {row["arm"]: row["round"] for row in marks.filter(pl.col("metric") == name).to_dicts()}
            figure = charts.trajectory(own, name, arms, rounds, hits, log and name.endswith("ppl"))
            alt = f"{TITLE.get(name, name)} over the rounds for {', '.join(arms)}"
            st.plotly_chart(figure, key=f"metric-{name}", config=charts.CONFIG, alt=alt)


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


def draw_reliability(run: Run, arms: tuple[str, ...], rounds: list[int], test_set: str) -> None:
    """The reliability diagram of one round."""
    picked = state.pick_round(run, rounds, "evaluate")
    tables = {arm: run.reliability(arm, picked) for arm in arms if picked in read.finished(run, arm)}
    tables = {arm: table for arm, table in tables.items() if table.height}
    if not tables:
        state.empty("No reliability table", f"No selected arm has one for round {picked}.")
        return
    alt = f"Reliability diagram of round {picked} on {test_set} for {', '.join(tables)}"
    st.plotly_chart(charts.reliability(tables, test_set), key="reliability", config=charts.CONFIG, alt=alt)
    st.caption(
        "Teacher-forced tokens of the reference text in 15 equal-width bins of the largest probability. Below the diagonal: over-confident."
    )


def page() -> None:
    """Draw the page."""
    run = state.need_run()
    state.heading("Trajectories", run)
    every, rounds = state.need_rounds(run)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        test_set = pick_set(run)
        arms = state.pick_arms(every)
        log = st.toggle("Log perplexity", key="log")
    table = read.metrics(run)
    rows = table.filter((pl.col("test_set") == ("" if test_set == GENERATED else test_set)) & pl.col("arm").is_in(arms))
    if not arms:
        state.empty("No arm selected", "Choose at least one arm above.")
        return
    look.show(look.chips(arms, "A ring marks the first round that is 10% worse than round 0. 1 seed: points, no interval."))
    for title in GROUPS:
        draw_group(title, rows, arms, run.config.rounds, log)
    named = {name for group in GROUPS.values() for name in group}
    draw_group("Others", rows.filter(~pl.col("metric").is_in(named)), arms, run.config.rounds, log)
    left, right = st.columns([2, 3], gap="large")
    with left:
        st.subheader("What moves first", anchor=False)
        draw_lead_times(rows, arms)
    with right:
        if test_set != GENERATED:
            st.subheader("Calibration", anchor=False)
            draw_reliability(run, arms, rounds, test_set)
    data = read.csv_of(table.filter(pl.col("arm").is_in(arms)))
    st.download_button("Download all metrics as CSV", data, f"{run.id}-metrics.csv", "text/csv", icon=":material/download:")


state.run_page(page)
