"""One identity, one look: an arm is a colour + dash + marker in every chart, chip, table and export.

Colours are Okabe-Ito's, in the dark theme lightened until they read on the ground. Colour is never the only cue.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

if TYPE_CHECKING:
    import polars as pl

ICON = str(Path(__file__).with_name("icon.svg"))
CSS = Path(__file__).with_name("style.css").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Look:
    """How one arm is drawn; `dash` and `marker` are plotly's names."""

    light: str
    dark: str
    dash: str
    marker: str

    @property
    def colour(self) -> str:
        """The colour in the theme of this session."""
        return self.dark if is_dark() else self.light


LOOKS = {
    "plain": Look("#D55E00", "#F0803C", "solid", "circle"),
    "dces": Look("#0072B2", "#4FA8E0", "solid", "diamond"),
    "dces-targets": Look("#009E73", "#2DC39A", "dash", "square"),
    "random": Look("#B07C00", "#E6AA2B", "dot", "triangle-up"),
    "dces-no-edit": Look("#B0578A", "#DE93BC", "dashdot", "cross"),
    "dces-static": Look("#3D8FC4", "#86CBF2", "longdash", "x"),
    "frozen": Look("#6F6F6F", "#A8A8A8", "dot", "star"),
    "ppl-low": Look("#8A5A2B", "#CB9A66", "dash", "triangle-down"),
    "ppl-high": Look("#7A3B1E", "#C98866", "dashdot", "triangle-down"),
    "ppl-band": Look("#6E6A1F", "#B9B45A", "longdash", "triangle-down"),
    "semdedup": Look("#5C7A1F", "#A3C45C", "solid", "pentagon"),
    "toedit": Look("#7A4FB5", "#B497E6", "solid", "square"),
    "dces-no-filter": Look("#2F5FA8", "#86A9E8", "dot", "diamond"),
    "dces-no-gate": Look("#00788A", "#4CBCCB", "dashdot", "diamond"),
    "edit-random": Look("#4B7F52", "#8CC295", "dot", "square"),
    "plain-t1": Look("#C23B4A", "#F28A94", "dash", "circle"),
    "plain-tctl": Look("#9E2F6B", "#E58BBB", "longdash", "circle"),
    "tce": Look("#5A4FCF", "#9D95F5", "dashdot", "bowtie"),
    "real10": Look("#3F7D20", "#86C563", "dash", "star"),
    "real": Look("#4A4A4A", "#C9C9C9", "longdash", "star"),
}
UNKNOWN = Look("#444444", "#CCCCCC", "solid", "hexagon")
SVG_DASH = {"solid": "", "dash": "6 3", "dot": "2 3", "dashdot": "7 3 2 3", "longdash": "10 3"}
SVG_MARKER = {
    "circle": '<circle cx="14" cy="7" r="3.8"/>',
    "diamond": '<path d="M14 2.2 18.8 7 14 11.8 9.2 7z"/>',
    "square": '<path d="M10.4 3.4h7.2v7.2h-7.2z"/>',
    "triangle-up": '<path d="M14 2.4 18.4 10.6H9.6z"/>',
    "triangle-down": '<path d="M14 11.6 18.4 3.4H9.6z"/>',
    "pentagon": '<path d="M14 2.6l4.2 3.1-1.6 4.9h-5.2L9.8 5.7z"/>',
    "bowtie": '<path d="M9.8 3.2 18.2 10.8V3.2L9.8 10.8z"/>',
    "cross": '<path d="M12.6 2.6h2.8v3h3v2.8h-3v3h-2.8v-3h-3V5.6h3z"/>',
    "x": '<path d="M10.6 5.2 12.2 3.6 14 5.4l1.8-1.8 1.6 1.6L15.6 7l1.8 1.8-1.6 1.6L14 8.6l-1.8 1.8-1.6-1.6L12.4 7z"/>',
    "star": '<path d="M14 1.8l1.5 3.4 3.7.4-2.8 2.5.8 3.7-3.2-1.9-3.2 1.9.8-3.7-2.8-2.5 3.7-.4z"/>',
    "hexagon": '<path d="M14 2.4l4 2.3v4.6l-4 2.3-4-2.3V4.7z"/>',
}


_PAPER: ContextVar[bool] = ContextVar("paper", default=False)


def is_dark() -> bool:
    """Whether this session shows the dark theme."""
    return not _PAPER.get() and st.context.theme.type == "dark"


@contextmanager
def on_paper() -> Iterator[None]:
    """Draw for the light theme, whatever the session shows: for files that are kept or printed, also outside a session."""
    token = _PAPER.set(True)
    try:
        yield
    finally:
        _PAPER.reset(token)


def look(arm: str) -> Look:
    """The look of an arm."""
    return LOOKS.get(arm, UNKNOWN)


def faint(alpha: float) -> str:
    """The text colour at this opacity: grid lines, ground, axes."""
    return f"rgba(236,235,231,{alpha})" if is_dark() else f"rgba(33,37,41,{alpha})"


def paper() -> str:
    """The ground of the page (as in .streamlit/config.toml): a saved picture is readable wherever it is put."""
    return "#15171A" if is_dark() else "#FFFFFF"


def chip(arm: str) -> str:
    """An arm's key as HTML: its line, its marker, its name."""
    style = look(arm)
    dash = SVG_DASH[style.dash]
    line = f'<path d="M1 7h26" stroke="{style.colour}" stroke-width="2" stroke-dasharray="{dash}" fill="none"/>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="28" height="14" fill="{style.colour}">{line}{SVG_MARKER[style.marker]}</svg>'
    return f'<span class="chip">{image(svg)}<b>{escape(arm)}</b></span>'


def image(svg: str, alt: str = "", kind: str = "key") -> str:
    """An SVG as an <img>: Streamlit's sanitizer drops inline SVG, and an image cannot run or load anything."""
    return f'<img class="{kind}" alt="{escape(alt)}" src="data:image/svg+xml;base64,{b64encode(svg.encode()).decode()}">'


def chips(arms: tuple[str, ...], note: str = "") -> str:
    """A legend row."""
    return f'<div class="chips">{"".join(chip(arm) for arm in arms)}<span class="quiet">{escape(note)}</span></div>'


def table(head: str, rows: list[str]) -> str:
    """A table of numbers: `head` holds <th> cells, each of `rows` is a <tr>."""
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return scroll(f'<table class="facts">{body}</table>')


def scroll(html: str) -> str:
    """What may be wider than the page, in a box that scrolls sideways, with the arrow keys as well."""
    return f'<div class="scroll" tabindex="0">{html}</div>'


def hue(index: int | None) -> str:
    """A restrained colour of a cluster: neighbours differ, none shouts."""
    if index is None or index < 0:
        return "hsl(0,0%,62%)" if is_dark() else "hsl(0,0%,52%)"
    angle = round(205 + index * 137.508) % 360
    return f"hsl({angle},38%,66%)" if is_dark() else f"hsl({angle},42%,42%)"


def show(html: str, key: str | None = None) -> Any:
    """Put HTML that this project wrote on the page (model text comes through `text.mark`)."""
    if key is None:
        return st.html(html)
    return st.container(key=key).html(html)


def rules() -> str:
    """The stylesheet in the colours of the theme. Better is blue, worse is vermilion: both eyes and printers tell them apart."""
    dark = ("#F59A66", "#5BD3AE", "#6FB8EE", "#ECEBE7")
    bad, good, better, ink = dark if is_dark() else ("#B34700", "#00704F", "#0063A0", "#212529")
    return f":root {{--bad: {bad}; --good: {good}; --better: {better}; --ink: {ink}; --paper: {paper()};}}{CSS}"


def style() -> None:
    """The few rules that Streamlit's theme has no option for."""
    st.html(f"<style>{rules()}</style>")


def pick_row(frame: pl.DataFrame, key: str, columns: dict[str, Any]) -> int:
    """Draw a table whose rows can be selected; the selected row, the first one until a row is."""
    bare: Any = {"hide_index": True, "height": 280, "column_config": columns, "placeholder": "–"}
    event = st.dataframe(frame, key=key, on_select="rerun", selection_mode="single-row", **bare)
    rows = event["selection"]["rows"]
    return int(rows[0]) if rows and rows[0] < frame.height else 0
