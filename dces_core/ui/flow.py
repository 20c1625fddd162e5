"""The feedback loop drawn: what it knew and did over the rounds, and where the samples of one round went."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go
import polars as pl

from dces_core.config import Controller
from dces_core.ui import charts, look

State = Mapping[str, Any]  # of one arm and round, as `read.loop` gives it
Known = tuple[float | None, str | None]  # a value, or None and why
#: Quantity -> title and what it says, in the order of the page.
PANELS = {
    "value": ("{signal} of the pool", "Band: set-point ± 1 sd."),
    "error": ("Error, sd", "Past the set-point; above 0: collapsing."),
    "edge_share": ("Edge share", "What the loop asks of the picks."),
    "edited_samples": ("Edited samples", "Share of the picks that changed."),
    "changed_tokens": ("Changed tokens", "Share of the edited samples' tokens."),
    "edit_temperature": ("Editing temperature", "At which replacements are drawn."),
    "sampling_temperature": ("Sampling temperature", "Of the next round's pool."),
}
ROWS = {"arm": pl.String, "round": pl.Int32, "quantity": pl.String, "value": pl.Float64, "reason": pl.String}
NO_EDIT = "this arm does not edit"


def quantities(state: State) -> dict[str, Known]:
    """What the panels show of one arm and round: each value, or None and why."""
    changed, tokens, picked = state.get("changed"), state.get("edited_tokens"), state.get("picked_samples")
    unedited = str(state.get("edit_reason") or NO_EDIT)
    known: dict[str, Known] = {
        "value": (state.get("value"), "the signal is undefined in this pool"),
        "error": (state.get("error"), "the signal, its set-point or its sd is undefined"),
        "edge_share": (state.get("edge_share"), state.get("reason")),
        "edited_samples": _share(state.get("edited_samples"), picked, "no sample was picked") if changed is not None else (None, unedited),
        "changed_tokens": _share(changed, tokens, "no token was up for editing") if changed is not None else (None, unedited),
        "edit_temperature": (state.get("edit_temperature"), unedited),
    }
    if "sampling_temperature" in state:
        known["sampling_temperature"] = (state["sampling_temperature"], state.get("sampling_reason"))
    return {name: (value, None if value is not None else reason or "not stored") for name, (value, reason) in known.items()}


def _share(part: int | None, whole: int | None, empty: str) -> Known:
    if part is None or whole is None:
        return None, "not stored"
    return (part / whole, None) if whole else (None, empty)


def loop_rows(states: Mapping[tuple[str, int], State]) -> pl.DataFrame:
    """Every quantity of every (arm, round), one a row; where `value` is null, `reason` says why."""
    rows = [
        {"arm": arm, "round": round_, "quantity": name, "value": value, "reason": reason}
        for (arm, round_), state in states.items()
        for name, (value, reason) in quantities(state).items()
    ]
    return pl.DataFrame(rows, schema=ROWS)


def undefined(rows: pl.DataFrame) -> list[tuple[str, str]]:
    """(arm, words) where a value of one quantity is missing: the reason, and the rounds unless it is all of them."""
    found = []
    for (arm, reason), own in rows.filter(pl.col("value").is_null()).group_by("arm", "reason", maintain_order=True):
        everywhere = own.height == rows.filter(pl.col("arm") == arm).height
        rounds = "" if everywhere else f" in round {', '.join(map(str, own['round'].sort()))}"
        found.append((str(arm), f"undefined{rounds}: {reason}"))
    return found


def guides(name: str, settings: Controller, states: list[State]) -> list[tuple[float, str]]:
    """Levels that a panel is read against, with their names."""
    if name == "value":
        return [(goal, "set-point") for goal in sorted({state["setpoint"] for state in states if state.get("setpoint") is not None})]
    return {
        "error": [(0.0, "")],
        "edge_share": [(settings.a_min, "lower bound"), (settings.a_max, "upper bound")],
        "edit_temperature": [(settings.edit_t_min, "lower bound"), (settings.edit_t_max, "upper bound")],
    }.get(name, [])


def panel(name: str, rows: pl.DataFrame, arms: tuple[str, ...], rounds: int, settings: Controller, states: list[State]) -> go.Figure:
    """One quantity of the loop over the rounds, one line per arm. `rows`: of this quantity; `states`: those behind them."""
    title, said = PANELS[name]
    figure = charts.panel(title.format(signal=settings.signal.capitalize()), charts.wrapped(said))
    for arm in arms:
        charts.line(figure, rows.filter(pl.col("arm") == arm), arm)
    for level, words in guides(name, settings, states):
        side = "bottom left" if words == "lower bound" else "top left"
        ink = {"color": look.faint(0.45), "dash": "dot", "width": 1}
        figure.add_hline(
            level, line=ink, annotation_text=words, annotation_position=side, annotation_font={"size": 10, "color": look.faint(0.6)}
        )
    if name == "value":
        for goal, sd in sorted({(s["setpoint"], s["sd"]) for s in states if s.get("setpoint") is not None and s.get("sd")}):
            figure.add_hrect(goal - sd, goal + sd, fillcolor=look.faint(0.09), line_width=0, layer="below")
    figure.update_xaxes(**charts.round_ticks(rounds))
    charts.why_empty(figure, rows)
    return figure


def controlled(state: State) -> str:
    """In words what the loop set in this round, and why it left the rest alone."""
    keys = {"edge share": ("edge_share", "reason"), "editing temperature": ("edit_temperature", "edit_reason")}
    if "sampling_temperature" in state:
        keys["sampling temperature"] = ("sampling_temperature", "sampling_reason")
    moved, rest = [], []
    for name, (key, why) in keys.items():
        value, reason = state.get(key), state.get(why)
        if value is None:
            rest.append(f"no {name} ({reason or 'not stored'})")
        elif reason:
            rest.append(f"{name} fixed at {value:.4g} ({reason})")
        else:
            moved.append(f"{name} {value:.4g}")
    return "; ".join([f"The loop set: {', '.join(moved)}" if moved else "Nothing is controlled", *rest]) + "."


POOL, CENTER, EDGE, GATED, EDITED, KEPT, TRAINED = "pool", "center", "edge", "rejected by the gate", "edited", "picked as it is", "trained"
#: Column and rank in it; what is not named here was lost, and stands below in the third column.
PLACES = {POOL: (0, 0), CENTER: (1, 0), EDGE: (1, 1), GATED: (1, 2), EDITED: (2, 0), KEPT: (2, 1), TRAINED: (3, 0)}
LOST = ("over quota", "filter", "gate")
COLUMNS = (0.001, 0.31, 0.62, 0.999)  # x of a column, of the drawing's width
POOL_PX, GAP_PX = 250, 28  # height of the pool, the same for every arm; and between two nodes


@dataclass(frozen=True)
class Link:
    """`count` samples that went from one step to the next."""

    source: str
    target: str
    count: int


def links(samples: pl.DataFrame) -> list[Link]:
    """Where the samples of one round went, in the order of the drawing. `samples`: SAMPLES.

    Every sample leaves the pool once and ends once: trained on, or with its reason over quota, at the gate or at the filter.
    A sample without a role was rejected by the gate, also where it was picked after all. No link is empty.
    """
    reason, gated = pl.col("reason").fill_null("no reason stored"), pl.col("role").is_null()
    end = (
        pl.when(pl.col("fate") == "picked")
        .then(pl.when(pl.col("changed").fill_null(0) > 0).then(pl.lit(EDITED)).otherwise(pl.lit(KEPT)))
        .when(pl.col("fate") == "over quota")
        .then(pl.format("over quota: {}", reason))
        .when(gated)
        .then(pl.format("gate: {}", reason))
        .otherwise(pl.format("filter: {}", reason))
    )
    paths = samples.select(pl.when(gated).then(pl.lit(GATED)).otherwise("role").alias("role"), end.alias("end"))
    counts: Counter[tuple[str, str]] = Counter()
    for role, last in paths.iter_rows():
        counts.update({(POOL, role): 1, (role, last): 1})
        if last in (EDITED, KEPT):
            counts[last, TRAINED] += 1
    found = [Link(source, target, count) for (source, target), count in counts.items()]
    return sorted(found, key=lambda link: (place(link.source), place(link.target)))


def place(node: str) -> tuple[int, int, str]:
    """Column, rank in the column, name: the order in which nodes are drawn."""
    column, rank = PLACES.get(node) or (2, 3 + LOST.index(node.split(":")[0]))
    return column, rank, node


def totals(found: list[Link]) -> dict[str, int]:
    """Samples that pass each node, in the order of the drawing."""
    into, out = Counter[str](), Counter[str]()
    for link in found:
        out[link.source] += link.count
        into[link.target] += link.count
    return {node: max(into[node], out[node]) for node in sorted({*into, *out}, key=place)}


def columns_of(passing: dict[str, int]) -> list[list[str]]:
    """The nodes of each column from the top."""
    return [[node for node in passing if place(node)[0] == column] for column in range(len(COLUMNS))]


def height_px(passing: dict[str, int]) -> float:
    """The drawing's height: as much as its fullest column needs at POOL_PX for the pool."""
    unit = POOL_PX / passing[POOL]
    return max(unit * sum(passing[node] for node in nodes) + GAP_PX * (len(nodes) - 1) for nodes in columns_of(passing))


def centres(passing: dict[str, int]) -> dict[str, tuple[float, float]]:
    """Where each node's centre lies, in (0, 1) from the top left: columns filled from the top, so that no round reorders them."""
    unit, height, found = POOL_PX / passing[POOL], height_px(passing), {}
    for x, nodes in zip(COLUMNS, columns_of(passing), strict=True):
        top = 0.0
        for node in nodes:
            size = unit * passing[node]
            found[node] = (x, (top + size / 2) / height)
            top += size + GAP_PX
    return found


def label(node: str, count: int) -> str:
    """A node's name with its count, in short lines."""
    width = 12 if node in PLACES else 22
    return f"{'<br>'.join(map(escape, textwrap.wrap(node, width)))} {count:,}"


def sankey(found: list[Link], arm: str) -> go.Figure:
    """One round of one arm as a flow; what is trained on wears the arm's colour, what was lost is grey. `found`: `links`."""
    passing = totals(found)
    names, points = list(passing), centres(passing)
    lost = {node for node in names if node not in PLACES} | {GATED}
    colour = look.look(arm).colour
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    figure = charts.base(round(height_px(passing)) + 30)
    figure.update_layout(hovermode="closest", margin={"l": 6, "r": 6, "t": 12, "b": 18})
    figure.add_sankey(
        arrangement="fixed",
        valueformat=",d",
        textfont={"size": 12, "color": look.faint(0.95), "shadow": "none"},
        node={
            "label": [label(node, count) for node, count in passing.items()],
            "x": [points[node][0] for node in names],
            "y": [points[node][1] for node in names],
            "pad": GAP_PX,
            "align": "left",
            "thickness": 13,
            "color": [look.faint(0.35) if node in lost else look.faint(0.06) if node == EDGE else colour for node in names],
            "line": {"color": look.faint(0.5), "width": 1},
            "hoverinfo": "skip",
        },
        link={
            "source": [names.index(link.source) for link in found],
            "target": [names.index(link.target) for link in found],
            "value": [link.count for link in found],
            "color": [look.faint(0.13) if link.target in lost else f"rgba({red},{green},{blue},.34)" for link in found],
            "customdata": [escape(f"{link.source} → {link.target}: {link.count:,}") for link in found],
            "hovertemplate": "%{customdata}<extra></extra>",
        },
    )
    return figure


def told(found: list[Link]) -> str:
    """The flow in words, for the alternative text."""
    return "; ".join(f"{link.source} to {link.target}: {link.count}" for link in found)
