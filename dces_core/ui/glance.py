"""A run at a glance, as Start shows it: the verdict, four curves, the numbers, and one prompt's answers."""

from __future__ import annotations

from typing import Any

import polars as pl
import streamlit as st

from dces_core import store
from dces_core.errors import UserError
from dces_core.metrics.degradation import DIRECTION, TITLE, lead_times
from dces_core.store import Run
from dces_core.ui import curves, look, read, state, text

FACTS = (
    ("ppl", True),
    ("ece", True),
    ("entropy_real", True),
    ("distinct_2", False),
    ("vendi", False),
    ("loop_rate", False),
    ("bertscore_f1", False),
)
ARROWS = {"lower": "↓", "higher": "↑", "neutral": ""}
CURVES = (("ppl", True), ("ece", True), ("entropy_real", True), ("loop_rate", False))


def shown_run() -> Run | None:
    """The run that ships with the project; else the newest readable one with a figure."""
    runs = store.discover()
    for run in [*(run for run in runs if run.recorded), *(run for run in runs if not run.recorded)]:
        try:
            if any(read.finished(run, arm) for arm in run.config.arms):
                return run
        except UserError:
            continue
    return None


def main_set(run: Run) -> str:
    """The first test set."""
    return next((name for name, path in run.config.data.tests.items() if path), "")


def rows_of(table: pl.DataFrame, run: Run, metric: str, real: bool) -> pl.DataFrame:
    """One metric on the main test set, or of generated text."""
    return table.filter((pl.col("metric") == metric) & (pl.col("test_set") == (main_set(run) if real else "")))


def verdict(table: pl.DataFrame, run: Run) -> str:
    """Who crossed 10% on perplexity and when; whether DCES held. Nothing is arranged."""
    rows = rows_of(table, run, "ppl", True)
    marks = {row["arm"]: row for row in lead_times(rows).to_dicts()}
    last: dict[str, list[dict[str, Any]]] = {
        arm: rows.filter(pl.col("arm") == arm).sort("round").drop_nulls("value").tail(1).to_dicts() for arm in run.config.arms
    }
    parts = []
    for arm in run.config.arms:
        if not last[arm] or arm not in marks:
            continue
        at, mark = last[arm][0], marks[arm]
        crossed = (
            f"is 10% worse from round {mark['round']} on" if mark["round"] is not None else f"stays within 10% up to round {at['round']}"
        )
        parts.append(f"{arm} {crossed} ({short(mark['start'] or 0)} → {short(at['value'])})")
    words = f"Perplexity on {main_set(run)}: {'; '.join(parts)}." if parts else "Perplexity is not known yet."
    ended = all(last[arm] and last[arm][0]["round"] == run.config.rounds for arm in run.config.arms)
    return f"{words} {held(last, marks) if ended else 'Not finished, so no verdict yet.'} 1 seed, so no interval."


def held(last: dict[str, list[dict[str, float]]], marks: dict[str, dict[str, object]]) -> str:
    """One sentence on DCES, also when it is bad news."""
    ours = [arm for arm in ("dces", "dces-targets") if last.get(arm) and arm in marks]
    if not ours or not last.get("plain"):
        return ""
    broke = [arm for arm in ours if marks[arm]["round"] is not None]
    lost = [arm for arm in ours if last[arm][0]["value"] >= last["plain"][0]["value"]]
    words = f"{' and '.join(broke)} did not hold it within 10% in this run." if broke else "DCES held it within 10% in this run."
    return f"{words} {' and '.join(lost)} ended no better than plain." if lost else words


def short(value: float) -> str:
    """Three significant digits, zeros kept (3.00, not 3); from a thousand on whole numbers (1,038)."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def number_table(table: pl.DataFrame, run: Run) -> str:
    """Round 0 against the newest round of every arm; 10% worse is marked."""
    arms, lines = run.config.arms, []
    for metric, real in FACTS:
        rows = rows_of(table, run, metric, real).drop_nulls("value")
        start = rows.filter(pl.col("round") == 0)["value"].to_list()[:1]
        if not start:
            continue
        crossed = {row["arm"] for row in lead_times(rows).to_dicts() if row["round"] is not None}
        ends = {arm: rows.filter(pl.col("arm") == arm).sort("round")["value"].to_list()[-1:] for arm in arms}
        cells = "".join(f'<td class="{"worse" if arm in crossed else ""}">{short(ends[arm][0]) if ends[arm] else "–"}</td>' for arm in arms)
        better = DIRECTION.get(metric, "neutral")
        lines.append(f'<tr><td title="{TITLE.get(metric, metric)}">{metric} {ARROWS[better]}</td><td>{short(start[0])}</td>{cells}</tr>')
    head = "".join(f"<th>{look.chip(arm)}</th>" for arm in arms)
    return look.table(f"<th></th><th>round 0</th>{head}", lines)


def case_study(run: Run) -> str:
    """The hand-eye prompt, greedy, in the newest round of every arm."""
    table = read.probes(run, run.config.arms).filter((pl.col("prompt") == state.HAND_EYE) & (pl.col("mode") == "greedy"))
    cells = []
    for arm in run.config.arms:
        own = table.filter(pl.col("arm") == arm).sort("round").tail(1).to_dicts()
        if own:
            name = f'<div class="named">{look.chip(arm)}<span class="quiet">round {own[0]["round"]}</span></div>'
            cells.append(f"<div>{name}{text.mark(own[0]['text'])}</div>")
    if not cells:
        return ""
    return f'<div class="pairs" style="grid-template-columns:repeat(auto-fit,minmax(230px,1fr))">{"".join(cells)}</div>'


def _curve(table: pl.DataFrame, run: Run, name: str, real: bool) -> str:
    rows = rows_of(table, run, name, real)
    hits = {row["arm"]: row["round"] for row in lead_times(rows).to_dicts()}
    return curves.curve(rows, name, run.config.arms, run.config.rounds, hits)


def draw_run(run: Run) -> None:
    """The comparison: the verdict, four curves, the numbers, one prompt's answers."""
    kind = "Recorded comparison" if run.recorded else "Newest run"
    st.subheader(kind, anchor=False)
    table = read.metrics(run)
    model = "fake engine, no model behind these figures" if run.config.engine == "fake" else run.config.model
    look.show(f'<p class="lead" style="max-width:60rem">{text.escaped(verdict(table, run))}</p>')
    look.show(look.chips(run.config.arms, f"{run.id} · {model} · {run.config.eval.split} split"))
    look.show(curves.curves([_curve(table, run, name, real) for name, real in CURVES]))
    left, right = st.columns(2, gap="large")
    with left:
        look.show('<p class="section">round 0 against the newest round</p>')
        look.show(number_table(table, run))
        look.show('<p class="quiet">↓ lower is better, ↑ higher is better. Coloured: at least 10% worse than round 0 in some round.</p>')
    with right:
        look.show(f'<p class="section">{state.HAND_EYE}</p>')
        look.show(case_study(run), key="case") if case_study(run) else st.caption("This run does not watch the prompt.")
    with st.container(horizontal=True):
        for page, label, icon in (
            ("trajectories", "All metrics", "show_chart"),
            ("clusters", "Clusters", "scatter_plot"),
            ("case", "Case study", "menu_book"),
            ("generations", "Read the texts", "notes"),
        ):
            st.page_link(f"pages/{page}.py", label=label, icon=f":material/{icon}:", query_params={"run": run.id})
