"""One identity, one look: an arm is a colour + dash + marker in every chart, chip, table and export.

Colours are Okabe-Ito's, in the dark theme lightened until they read on the ground. Colour is never the only cue.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import streamlit as st


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
}
UNKNOWN = Look("#444444", "#CCCCCC", "solid", "hexagon")
SVG_DASH = {"solid": "", "dash": "6 3", "dot": "2 3", "dashdot": "7 3 2 3", "longdash": "10 3"}
SVG_MARKER = {
    "circle": '<circle cx="14" cy="7" r="3.8"/>',
    "diamond": '<path d="M14 2.2 18.8 7 14 11.8 9.2 7z"/>',
    "square": '<path d="M10.4 3.4h7.2v7.2h-7.2z"/>',
    "triangle-up": '<path d="M14 2.4 18.4 10.6H9.6z"/>',
    "cross": '<path d="M12.6 2.6h2.8v3h3v2.8h-3v3h-2.8v-3h-3V5.6h3z"/>',
    "x": '<path d="M10.6 5.2 12.2 3.6 14 5.4l1.8-1.8 1.6 1.6L15.6 7l1.8 1.8-1.6 1.6L14 8.6l-1.8 1.8-1.6-1.6L12.4 7z"/>',
    "star": '<path d="M14 1.8l1.5 3.4 3.7.4-2.8 2.5.8 3.7-3.2-1.9-3.2 1.9.8-3.7-2.8-2.5 3.7-.4z"/>',
    "hexagon": '<path d="M14 2.4l4 2.3v4.6l-4 2.3-4-2.3V4.7z"/>',
}


def is_dark() -> bool:
    """Whether this session shows the dark theme."""
    return st.context.theme.type == "dark"


def look(arm: str) -> Look:
    """The look of an arm."""
    return LOOKS.get(arm, UNKNOWN)


def faint(alpha: float) -> str:
    """The text colour at this opacity: grid lines, ground, axes."""
    return f"rgba(236,235,231,{alpha})" if is_dark() else f"rgba(33,37,41,{alpha})"


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


def style() -> None:
    """The few rules that Streamlit's theme has no option for."""
    bad, good = ("#F59A66", "#5BD3AE") if is_dark() else ("#B34700", "#00704F")
    st.html(f"<style>:root {{--bad: {bad}; --good: {good};}}{CSS}</style>")


ICON = str(Path(__file__).with_name("icon.svg"))
CSS = """
.stMainBlockContainer {max-width: 1560px; padding-left: 3rem; padding-right: 3rem;}
@media (max-width: 900px) {.stMainBlockContainer {padding-left: 1.2rem; padding-right: 1.2rem;}}
h1, h2, h3 {letter-spacing: -0.01em;}
.quiet {opacity: .66; font-size: .86rem;}
.lead {font-size: 1.04rem; line-height: 1.6; max-width: 46rem; margin: 0;}
.lead p {margin: 0 0 .55rem 0;}
.section {font-size: .78rem; letter-spacing: .05em; text-transform: uppercase; opacity: .68; font-weight: 600; margin: .35rem 0 0 0;}
.chips {font-size: .92rem; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; align-items: center; min-height: 1.6rem;}
.chip {display: inline-flex; gap: .4rem; align-items: center; font-size: .9rem; white-space: nowrap;}
.chip b {font-weight: 600;}
.named {display: flex; gap: .6rem; align-items: baseline; margin-bottom: .25rem;}
.num {font-variant-numeric: tabular-nums;}
.said {white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.5; font-size: .94rem; tab-size: 4; overflow: hidden; max-height: 24rem; overflow-y: auto;}
.said .loop {background: rgba(213,94,0,.20); box-shadow: inset 0 -2px 0 rgba(213,94,0,.85);}
.said .rep {background: rgba(230,159,0,.17); box-shadow: inset 0 -1px 0 rgba(230,159,0,.8);}
.said .ctl {font-family: "Source Code Pro", monospace; font-size: .78em; opacity: .85; border: 1px solid currentColor; border-radius: 3px; padding: 0 .2em;}
.said .none {opacity: .6; font-style: italic;}
.said del {background: rgba(213,94,0,.16); text-decoration: line-through; text-decoration-thickness: 1px;}
.said ins {background: rgba(0,114,178,.18); text-decoration: underline; text-decoration-thickness: 1px; text-underline-offset: 3px;}
.badge {display: inline-block; font-size: .76rem; font-weight: 600; padding: .06rem .5rem; border-radius: 1rem; border: 1px solid currentColor; white-space: nowrap;}
.badge.bad {color: var(--bad); background: rgba(213,94,0,.10);}
.badge.good {color: var(--good); background: rgba(0,158,115,.10);}
.badge.idle {opacity: .75;}
.pairs {display: grid; border-top: 1px solid rgba(128,128,128,.35);}
.pairs > div {padding: .6rem .9rem .6rem 0; border-bottom: 1px solid rgba(128,128,128,.22); min-width: 0;}
.pairs > .head {padding: .45rem .9rem .45rem 0;}
.pairs > .round {font-variant-numeric: tabular-nums; font-weight: 600; opacity: .72; padding-right: .5rem;}
.facts {border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums;}
.facts td, .facts th {padding: .18rem .9rem .18rem 0; text-align: right; border: none; border-bottom: 1px solid rgba(128,128,128,.2); font-weight: 400; white-space: nowrap;}
.facts td:first-child, .facts th:first-child, .facts td:has(.chip) {text-align: left;}
.key {vertical-align: middle; flex: none;}
.flow {position: relative; min-width: 700px; container-type: inline-size; margin: .3rem 0 .6rem 0;}
.flow img {width: 100%; display: block;}
.flow span {position: absolute; transform: translate(-50%, -50%); text-align: center; line-height: 1.25; white-space: nowrap; font-size: clamp(10px, 1.22cqw, 16px);}
.flow span b {font-weight: 600; font-size: 1.25em; display: block;}
.flow span i {font-style: normal; opacity: .68;}
.facts thead th {color: color-mix(in srgb, currentColor 66%, transparent);}
.facts tbody tr:last-child td {border-bottom: none;}
.facts .worse {color: var(--bad); font-weight: 600;}
.facts .now {background: rgba(128,128,128,.14);}
.scroll {overflow-x: auto;}
.empty {border: 1px dashed rgba(128,128,128,.5); border-radius: .5rem; padding: 2.2rem 1.6rem; text-align: center; margin: .4rem 0;}
.empty b {display: block; font-size: 1.1rem; margin-bottom: .3rem;}
.problem {border-left: 4px solid #D55E00; background: rgba(213,94,0,.09); padding: .7rem 1rem; border-radius: .25rem; overflow-wrap: anywhere; margin: .2rem 0;}
.life {display: grid; grid-template-columns: 9rem 1fr; gap: .3rem 1rem; font-size: .92rem;}
.life dt {opacity: .66;}
.life dd {margin: 0; min-width: 0;}
.stages {display: grid; gap: .3rem .35rem; align-items: center; font-size: .84rem;}
.stages .bar {display: flex; gap: 2px; height: 15px;}
.stages .bar i {flex: 1; border-radius: 2px; border: 1px solid rgba(128,128,128,.45); background: transparent; overflow: hidden;}
.stages .bar i.on {border-color: transparent; background: var(--c);}
.stages .bar i.doing {border-color: var(--c); background: linear-gradient(90deg, var(--c) var(--p), transparent var(--p)); animation: breathe 1.8s ease-in-out infinite;}
@keyframes breathe {50% {opacity: .55;}}
@media (prefers-reduced-motion: reduce) {.stages .bar i.doing {animation: none;}}
@media (max-width: 900px) {.life {grid-template-columns: 1fr; gap: 0 0;} .life dd {margin-bottom: .5rem;}}
"""
