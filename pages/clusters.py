"""Where the samples of a round lie: two arms in one frame, real text as ground, every point's text behind it."""

from __future__ import annotations

import json
from functools import partial
from html import escape
from typing import Any

import plotly.graph_objects as go
import polars as pl
import streamlit as st

from dces_core.store import Run
from dces_core.ui import charts, clusters, crowd, hull, look, pace, read, state, text

KEY_SIZE = 14
FACT_NAMES = {"dispersion": "dispersion", "hull_area": "hull area", "core_area": "core", "nearest_reference": "nearest reference"}
#: The feedback loop's state in the order in which it comes about; what is not named here follows.
LOOP = (
    *("signal", "value", "setpoint", "sd", "error", "edge_share", "edit_error", "edit_temperature", "flagged", "changed"),
    *("pool", "gated", "gated because", "clusterer", "noise", "center", "edge", "rejected", "rejected because", "over_quota"),
    *("picked_center", "picked_edge", "picked_other", "reason", "edit_reason", "notes"),
)
COLUMNS = ("id", "role", "fate", "reason", "cluster", "distance", "logprob", "changed", "prompt", "text")


def key_image(body: str) -> str:
    """A legend symbol in the text colour."""
    ink = look.faint(0.85)
    return look.image(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{KEY_SIZE}" height="{KEY_SIZE}" fill="{ink}" stroke="{ink}">{body}</svg>'
    )


def legend() -> str:
    """What the shapes mean."""
    circle = '<circle cx="7" cy="7" r="3.6" {}/>'
    items = [
        (circle.format(""), "center"),
        (circle.format('fill="none" stroke-width="1.6"'), "edge"),
        ('<path d="M7 2.4 11.6 7 7 11.6 2.4 7z"/>', "edited"),
        ('<path d="M3.4 3.4l7.2 7.2M10.6 3.4l-7.2 7.2" stroke-width="1.5"/>', "rejected"),
        ('<g opacity=".42"><circle cx="7" cy="7" r="3.6"/></g>', "over quota"),
        ('<g opacity=".25"><circle cx="7" cy="7" r="3" stroke="none"/></g>', "real text"),
        ('<path d="M2 5.5 8 2l4 5-3 5-6-1.5z" fill="none" stroke-width="1.4" opacity=".6"/>', "core: hull of the center samples"),
    ]
    cells = "".join(f'<span class="chip">{key_image(body)}{name}</span>' for body, name in items)
    return f'<div class="chips">{cells}<span class="quiet">hue = cluster, grey = no cluster</span></div>'


def caption(run: Run) -> str:
    """How the map was made, and what it must not be used for."""
    facts = run.frame_facts()
    parameters = ", ".join(f"{key} {value}" for key, value in (facts.get("parameters") or {}).items())
    made = f"{facts.get('method', 'unknown method')} ({parameters}), fitted once on {facts.get('fit_set', 'an unknown set')}"
    count = f"n = {facts.get('n', '?')}, seed {facts.get('seed', '?')}"
    return f"{made}; {count}. Distances in two dimensions have no direct meaning; center and edge come from the original space."


def fact_line(facts: dict[str, Any], shown: str) -> str:
    """Dispersion, hull area and so on of one map."""
    pairs = []
    for key, label in FACT_NAMES.items():
        value, reason = facts.get(key), facts.get(f"{key}_reason")
        if value is not None or reason:
            pairs.append(
                f"{label} <b>{'undefined' if value is None else f'{value:.4g}'}</b>{f' ({escape(reason)})' if value is None else ''}"
            )
    return f'<p class="quiet num">{" &nbsp; ".join([*pairs, shown])}</p>'


def draw_map(run: Run, arm: str, round_: int, picked: list[int]) -> tuple[pl.DataFrame, go.Figure | None]:
    """One arm's map, `picked` clusters standing out; returns the selected samples and the figure."""
    frame = read.samples(run, arm, round_).with_row_index("row")
    known = frame.drop_nulls(["x", "y"]) if "x" in frame.columns else frame.head(0)
    look.show(look.chips((arm,)))
    if known.height == 0:
        state.empty(f"No map of round {round_}", "This arm has not finished it.")
        return frame.filter(pl.col("cluster").is_in(picked)), None
    points = charts.stratified(known)
    figure = charts.scatter_map(points, read.ground(run), run.frame_facts(), picked)
    corners = hull.core(known)
    hull.draw(figure, corners, arm)
    if points.height < known.height:
        crowd.shade(figure, known)
    charts.keep_zoom(figure, run.id, "map", arm)
    alt = f"Map of the samples of {arm} in round {round_}, center filled and edge outlined, over the real text"
    modes, config = ("points", "box", "lasso"), charts.config(f"{run.id}-map-{arm}-{round_}", charts.MAP_CONFIG)
    event = st.plotly_chart(figure, key=f"map-{arm}-{round_}", on_select="rerun", selection_mode=modes, config=config, alt=alt)
    lost = charts.outside(points, run.frame_facts())
    beyond = f", {lost} of them beyond the frame" if lost else ""
    facts = {**read.facts(run, arm, round_), "core_area": hull.area(corners), "core_area_reason": "the center samples span no area"}
    whole = "" if points.height == known.height else "; the shade is of all, and a lasso or a box takes all"
    look.show(fact_line(facts, f"showing {points.height:,} of {frame.height:,}{beyond}{whole}"))
    rows = crowd.taken(event["selection"], known)
    return frame.filter(pl.col("row").is_in(list(rows)) | pl.col("cluster").is_in(picked)), figure


def draw_maps(run: Run, arms: tuple[str, ...], round_: int) -> None:
    """Maps, the table of their clusters, and the samples that either selects."""
    look.show(legend())
    above = st.container()  # the table stands under the maps, but its picked rows are drawn into them
    frames = {arm: read.samples(run, arm, round_) for arm in arms}
    tables = [clusters.cluster_rows(frames[arm], run.controller(arm, round_), arm) for arm in arms]
    st.subheader(f"Clusters of round {round_}", anchor=False)
    picked = clusters.draw_table(pl.concat(tables), f"clusters-{round_}-{'-'.join(arms)}")
    drawn = []
    with above:
        for column, arm in zip(st.columns(len(arms), gap="medium"), arms, strict=True):
            with column:
                drawn.append(draw_map(run, arm, round_, picked.get(arm, [])))
        st.caption(caption(run))
        figures = [(look.chip(arm), figure) for arm, (_, figure) in zip(arms, drawn, strict=True) if figure is not None]
        draw_exports(run, round_, list(frames.values()), figures)
    chosen = pl.concat([chosen for chosen, _ in drawn], how="diagonal")
    if chosen.height:
        draw_selection(chosen, run, round_)
    else:
        draw_linked(pl.concat(list(frames.values()), how="diagonal"))


def draw_exports(run: Run, round_: int, frames: list[pl.DataFrame], maps: list[tuple[str, go.Figure]]) -> None:
    """The samples of all arms as Parquet, the maps as one HTML file; both are made on the click."""
    name = f"{run.id}-round{round_}"
    bare: Any = {"icon": ":material/download:", "on_click": "ignore"}
    with st.container(horizontal=True, gap="small"):
        words = "x, y, text, arm, role, cluster and the rest of each sample: opens in Embedding Atlas"
        rows = partial(clusters.as_parquet, frames)
        st.download_button("Samples as Parquet", rows, f"{name}.parquet", "application/vnd.apache.parquet", help=words, **bare)
        if maps:
            title = f"{run.id}, round {round_}"
            made = partial(clusters.as_html, title, caption(run), maps, look.paper(), look.faint(1))
            words = "Both maps in one file that needs no network, about 5 MB"
            st.download_button("Maps as HTML", made, f"{name}-maps.html", "text/html", help=words, **bare)


def fact_table(run: Run, arms: tuple[str, ...], rounds: list[int], now: int) -> None:
    """Dispersion and hull area of every round, both arms."""
    rows = []
    for name, label in FACT_NAMES.items():
        for arm in arms:
            values = {r: read.facts(run, arm, r).get(name) for r in rounds}
            if any(value is not None for value in values.values()):
                cells = "".join(
                    f'<td class="{"now" if r == now else ""}">{"–" if v is None else f"{v:.4g}"}</td>' for r, v in values.items()
                )
                rows.append(f"<tr><td>{label}</td><td>{look.chip(arm)}</td>{cells}</tr>")
    head = "".join(f"<th>round {r}</th>" for r in rounds)
    look.show(look.table(f"<th></th><th></th>{head}", rows))


def draw_selection(chosen: pl.DataFrame, run: Run, round_: int) -> None:
    """The selected samples as a table, then one of them in full."""
    st.subheader(f"{chosen.height} selected", anchor=False)
    columns = ["arm", *COLUMNS]
    wide = {"text": st.column_config.TextColumn(width="large"), "prompt": st.column_config.TextColumn(width="medium")}
    row = look.pick_row(chosen.select(columns), f"table-{round_}", wide)
    st.download_button(
        "Download these as CSV",
        read.csv_of(chosen.select([*columns, "trained_text"])),
        f"{run.id}-round{round_}.csv",
        "text/csv",
        icon=":material/download:",
    )
    sample = chosen.row(row, named=True)
    state.put("sample", f"{sample['arm']}:{sample['id']}")
    st.session_state["selected"] = True
    draw_life(sample)


def draw_linked(samples: pl.DataFrame) -> None:
    """Nothing is selected: the sample that the address names as `arm:id` (or `id`, of the left arm), until a selection is cleared."""
    if st.session_state.pop("selected", False):
        state.forget("sample")
    name = state.asked("sample") or ""
    found = samples.filter((pl.col("id") == name) | (pl.col("arm") + ":" + pl.col("id") == name))
    if found.height:
        st.subheader("The linked sample", anchor=False)
        draw_life(found.row(0, named=True))
    st.caption(
        "Select points with the lasso, a box or a click, or rows of the table: their texts appear here. A double-click clears a map."
    )


def draw_life(row: dict[str, Any]) -> None:
    """One sample's whole life."""
    changed = row["trained_text"] is not None and row["trained_text"] != row["text"]
    number = lambda name: "–" if row[name] is None else f"{row[name]:.4g}"  # noqa: E731
    entries = [
        ("sample", f"{escape(row['id'])} of {look.chip(row['arm'])}"),
        ("prompt", text.mark(row["prompt"], highlight=False)),
        ("generated", text.mark(row["text"])),
        ("place", f"{cluster_of(row)}, distance to its centroid {number('distance')}, centrality {number('centrality')}"),
        ("likelihood", f"mean log-probability {number('logprob')} nats, entropy {number('entropy')} nats, {row['tokens']} tokens"),
        ("role", f"{row['role'] or 'none: gated before clustering'}"),
        ("fate", f"{row['fate']}{'' if row['reason'] is None else ': ' + escape(row['reason'])}"),
    ]
    if changed:
        entries.append(("trained on", text.diff(row["text"], row["trained_text"])))
    if row["edits"]:
        entries.append((f"{row['changed']} of {row['flagged']} tokens edited", edit_list(row["edits"])))
    elif row["changed"]:
        entries.append(("trained towards", f"the distribution of M_0 at {row['changed']} tokens; the text stays"))
    body = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in entries)
    look.show(f'<dl class="life">{body}</dl>', key="life")


def cluster_of(row: dict[str, Any]) -> str:
    """The sample's cluster in words."""
    if row["cluster"] is None:
        return "no cluster: gated before"
    return "noise of the clusterer" if row["cluster"] < 0 else f"cluster {row['cluster']}"


def edit_list(edits: list[dict[str, Any]]) -> str:
    """Token edits: where, what stood there, what came in its place."""
    parts = [
        f"{edit['position']}: <del>{text.escaped(edit['before'] or '')}</del> <ins>{text.escaped(edit['after'] or '')}</ins>"
        for edit in edits[:60]
    ]
    more = f" and {len(edits) - 60} more" if len(edits) > 60 else ""
    return f'<div class="said">{" &nbsp; ".join(parts)}{more}</div>'


def draw_controller(run: Run, arms: tuple[str, ...], round_: int) -> None:
    """What the feedback loop knew and did in this round."""
    states = {arm: read.controller(run, arm, round_) for arm in arms}
    names = list(dict.fromkeys([*LOOP, *(key for value in states.values() for key in value)]))
    rows = []
    for name in names:
        cells = [states[arm].get(name) for arm in arms]
        if any(cell is not None and cell != [] for cell in cells):
            shown = "".join(f'<td style="white-space:normal">{text.escaped(words(cell))}</td>' for cell in cells)
            rows.append(f"<tr><td>{escape(name.replace('_', ' '))}</td>{shown}</tr>")
    head = "".join(f"<th>{look.chip(arm)}</th>" for arm in arms)
    look.show(look.table(f"<th></th>{head}", rows))


def words(value: Any) -> str:
    """A controller field as a reader wants it."""
    if value is None or value == []:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int | float):
        return f"{value:.4g}"
    return "; ".join(map(str, value)) if isinstance(value, list) else json.dumps(value)


def page() -> None:
    """Draw the page."""
    run = state.need_run()
    state.heading("Clusters", run)
    arms, round_, rounds = state.need_pair(run, "map")

    pace.part(draw_maps)(run, arms, round_)
    st.subheader("Every round in numbers", anchor=False)
    fact_table(run, arms, rounds, round_)
    with st.expander(f"The feedback loop in round {round_}"):
        draw_controller(run, arms, round_)


state.run_page(page)
