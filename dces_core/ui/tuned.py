"""A search of settings drawn: its trials in their order, what the fields matter, and a table. Words of others are escaped."""

from __future__ import annotations

from html import escape
from typing import Any

import plotly.graph_objects as go

from dces_core.tune_store import Found, Trial
from dces_core.ui import charts, look
from dces_core.ui.comparison_tables import head, wide
from dces_core.ui.text import escaped

MOST_ROWS = 200
BAR_PX, FRAME_PX = 34, 60
#: State -> marker, and whether it is faint.
MARKS = {
    "done": ("circle", False),
    "pruned": ("x-thin-open", True),
    "running": ("circle-open", False),
    "interrupted": ("circle-open", True),
}


def number(value: float | None) -> str:
    """Four significant digits; a dash where there is no figure."""
    return "–" if value is None else f"{value:.4g}".replace("-", "−")


def cell(value: Any) -> str:
    """A field's value in words."""
    return number(value) if isinstance(value, float) else str(value)


def words(trial: Trial) -> str:
    """The values of a trial, a line each."""
    return "<br>".join(f"{escape(path)} {escape(cell(value))}" for path, value in trial.values.items())


def best_so_far(found: Found) -> list[tuple[int, float]]:
    """The best objective of the trials that did all rounds, at each of them."""
    line: list[tuple[int, float]] = []
    for trial in found.trials:
        if trial.state == "done" and trial.value is not None:
            best = line[-1][1] if line else trial.value
            line.append((trial.number, max(best, trial.value) if found.higher else min(best, trial.value)))
    return line


def history(found: Found) -> go.Figure:
    """Objective by trial: done ones, pruned ones at their last round, the best so far, the recipe's own settings."""
    figure, colour = charts.base(320), look.look(found.arm).colour
    last = max((trial.number for trial in found.trials), default=0)
    start = found.baseline.value if found.baseline else None
    if start is not None:
        style = {"color": look.faint(0.6), "width": 1.4, "dash": "dot"}
        figure.add_scatter(x=[-0.6, last + 0.6], y=[start, start], mode="lines", line=style, name="recipe as it is", hoverinfo="skip")
    steps = best_so_far(found)
    line = {"color": colour, "width": 1.6, "shape": "hv"}
    figure.add_scatter(
        x=[step[0] for step in steps], y=[step[1] for step in steps], mode="lines", line=line, name="best so far", hoverinfo="skip"
    )  # fmt: skip
    for state, (marker, faint) in MARKS.items():
        own = [trial for trial in found.trials if trial.state == state and trial.value is not None]
        if own:
            tint = look.faint(0.62) if faint else colour
            figure.add_scatter(
                x=[trial.number for trial in own],
                y=[trial.value for trial in own],
                mode="markers",
                name=state,
                marker={"symbol": marker, "size": 8, "color": tint, "line": {"width": 1.8, "color": tint}},
                customdata=[f"{len(trial.by_round)} of {found.rounds} rounds<br>{words(trial)}" for trial in own],
                hovertemplate=f"trial %{{x}}, {state}<br>%{{y:.4g}}<br>%{{customdata}}<extra></extra>",
            )
    legend = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "traceorder": "normal", "font": {"size": 12}}
    figure.update_layout(showlegend=True, hovermode="closest", legend=legend, margin={"l": 56, "t": 40, "b": 44})
    last = max((trial.number for trial in found.trials), default=0)
    figure.update_xaxes(
        title={"text": "trial", "font": {"size": 12}}, range=[-0.6, last + 0.6], tick0=0, dtick=max(1, -(-(last + 1) // 10))
    )
    return figure


def importance(found: Found) -> go.Figure:
    """The share of each field, the largest on top."""
    shares = sorted((found.importance or {}).items(), key=lambda pair: pair[1])
    figure = charts.base(FRAME_PX + BAR_PX * len(shares), bargap=0.42)
    figure.add_bar(
        x=[share for _, share in shares],
        y=[escape(path) for path, _ in shares],
        orientation="h",
        marker={"color": look.look(found.arm).colour},
        text=[f"{share:.0%}" for _, share in shares],
        textposition="outside",
        cliponaxis=False,
        hoverinfo="skip",
    )
    figure.update_layout(margin={"l": 10, "r": 44, "t": 10, "b": 34}, hovermode=False)
    figure.update_yaxes(automargin=True, showgrid=False)
    figure.update_xaxes(range=[0, 1], tickformat=".0%", showgrid=True, gridcolor=look.faint(0.1), nticks=6)
    return figure


def table(found: Found) -> str:
    """The trials, the best first, those without a figure last; at most MOST_ROWS."""
    best = found.best

    def order(trial: Trial) -> tuple[bool, bool, float, int]:
        value = trial.value or 0.0
        return trial.value is None, trial.state != "done", -value if found.higher else value, trial.number

    lines = []
    for trial in sorted(found.trials, key=order)[:MOST_ROWS]:
        values = "".join(f"<td>{escaped(cell(trial.values[path])) if path in trial.values else '–'}</td>" for path in found.fields)
        kind = ' class="better"' if trial == best else ""
        why = f'<td class="what">{escaped((trial.reason or "")[:300])}</td>'
        cells = f"<td{kind}>{number(trial.value)}</td><td>{trial.state}</td><td>{len(trial.by_round)}/{found.rounds}</td>"
        lines.append(f"<tr><td>{trial.number}{' (best)' * (trial == best)}</td>{cells}{values}{why}</tr>")
    return wide(head("trial", "objective", "state", "rounds", *(escaped(path) for path in found.fields)) + '<th class="what"></th>', lines)


def tally(found: Found) -> str:
    """How many trials are in which state."""
    states = [trial.state for trial in found.trials]
    return ", ".join(
        f"{states.count(state)} {state}" for state in ("done", "pruned", "failed", "running", "interrupted") if state in states
    )
