"""The clusters of a round as a table, and what leaves the Clusters page: Parquet and one HTML file."""

from __future__ import annotations

import re
from html import escape
from typing import Any

import plotly.graph_objects as go
import polars as pl
import streamlit as st

from dces_core import export
from dces_core.ui import charts

HELP = {
    "cluster": "Clusters of two arms have nothing to do with each other. -1: noise of the clusterer.",
    "edited": "Samples of which the edit changed at least one token.",
    "rejected": "Samples of this cluster that the filter rejected.",
    "dispersion": "Mean cosine distance to the centroid.",
    "edge share": "The share of edge samples that the loop asked for: the cluster's own, else the arm's. Empty: nothing steers it.",
    "center text": "The center sample that is nearest to the centroid.",
    "edge text": "The edge sample that is farthest from the centroid, rejected ones left out.",
}
TABLE_ALT = "One row per cluster and arm, with its sizes, its dispersion, its most central text and its farthest text on the edge"
FIRST = ("x", "y", "text", "arm", "round", "role", "cluster", "fate")


def cluster_rows(samples: pl.DataFrame, state: dict[str, Any], arm: str) -> pl.DataFrame:
    """One row per cluster of one arm, noise last. `samples`: SAMPLES of the round; `state`: what `Run.controller` gives."""
    role, text = pl.col("role"), pl.col("text")
    center, edge = role == "center", (role == "edge") & (pl.col("fate") != "rejected")
    counts = (
        samples.drop_nulls("cluster")
        .sort("distance", nulls_last=True, maintain_order=True)
        .group_by("cluster")
        .agg(
            size=pl.len(),
            center=center.sum(),
            edge=(role == "edge").sum(),
            edited=(pl.col("changed").fill_null(0) > 0).sum(),
            rejected=(pl.col("fate") == "rejected").sum(),
            near=text.filter(center).first(),
            far=text.filter(edge & pl.col("distance").is_not_null()).last(),
        )
    )
    schema = {"cluster": pl.Int32, "dispersion": pl.Float64, "edge_share": pl.Float64}
    known = pl.DataFrame(state.get("clusters") or [], schema=schema, strict=False)
    share = pl.col("edge_share").fill_null(pl.lit(state.get("edge_share"), dtype=pl.Float64))
    joined = counts.join(known, on="cluster", how="left").with_columns(share.alias("edge share"), pl.lit(arm).alias("arm"))
    ordered = joined.sort(pl.col("cluster") < 0, "cluster").rename({"near": "center text", "far": "edge text"})
    columns = ("arm", "cluster", "size", "center", "edge", "edited", "rejected", "dispersion", "edge share", "center text", "edge text")
    return ordered.select(columns)


def draw_table(rows: pl.DataFrame, key: str) -> dict[str, list[int]]:
    """The table of all arms; the clusters whose rows are picked, by arm."""
    columns: dict[str, Any] = {}
    for name in rows.columns:
        if name.endswith("text"):
            columns[name] = st.column_config.TextColumn(width=240 if name == "center text" else None, help=HELP[name])
        elif rows.schema[name].is_numeric():
            digits = "%.3f" if rows.schema[name].is_float() else "%d"
            columns[name] = st.column_config.NumberColumn(width=84 if len(name) > 8 else 66, help=HELP.get(name), format=digits)
    height = min(338, 38 + 35 * max(1, rows.height))
    bare: Any = {"hide_index": True, "height": height, "column_config": columns, "placeholder": "–", "alt": TABLE_ALT}
    event = st.dataframe(rows, key=key, on_select="rerun", selection_mode="multi-row", **bare)
    picked: dict[str, list[int]] = {}
    for index in event["selection"]["rows"]:
        if index < rows.height:
            row = rows.row(index, named=True)
            picked.setdefault(row["arm"], []).append(row["cluster"])
    return picked


def as_parquet(frames: list[pl.DataFrame]) -> bytes:
    """SAMPLES with x and y of several arms as one table, what Embedding Atlas asks for first. The list of edits is left out."""
    table = pl.concat(frames, how="diagonal")
    first = [name for name in FIRST if name in table.columns]
    return export.to_parquet(table.select(*first, pl.exclude(*first, "edits")))


def as_html(title: str, caption: str, maps: list[tuple[str, go.Figure]], paper: str, ink: str) -> bytes:
    """One file that needs nothing else: the maps side by side. `maps`: legend and figure of each."""
    style = (
        f"body{{background:{paper};color:{ink};font:15px/1.5 system-ui,sans-serif;margin:2rem}}h1{{font-size:1.3rem}}"
        ".maps{display:flex;flex-wrap:wrap;gap:1.5rem}.maps>section{flex:1 1 440px;min-width:0}"
        ".chip{display:inline-flex;gap:.4rem;align-items:center}p{opacity:.7;font-size:.86rem}"
    )
    parts, name = [], re.sub(r"[^\w.-]+", "-", title)  # the name goes into a script as it is
    for index, (legend, figure) in enumerate(maps):
        settings = charts.config(f"{name}-{index + 1}", charts.MAP_CONFIG)
        drawn = figure.to_html(config=settings, include_plotlyjs=index == 0, full_html=False)
        parts.append(f"<section>{legend}{drawn}</section>")
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{style}</style>'
    body = f'<h1>{escape(title)}</h1><div class="maps">{"".join(parts)}</div><p>{escape(caption)}</p>'
    return f"<!doctype html><html><head>{head}</head><body>{body}</body></html>".encode()
