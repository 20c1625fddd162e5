"""Zoom that outlives the rebuilding of a chart: see zoom.js, and `charts.keep_zoom` for which charts share one."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

SCRIPT = Path(__file__).with_name("zoom.js").read_text(encoding="utf-8")
HIDDEN = '<style>[data-testid="stLayoutWrapper"]:has(> .st-key-zoom) {display: none;}</style>'


def keep() -> None:
    """Put the script on the page; it shows nothing."""
    component = st.components.v2.component("zoom", js=SCRIPT, isolate_styles=False)
    with st.container(key="zoom"):
        component(key="zoom-script")
    st.html(HIDDEN)
