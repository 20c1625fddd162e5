"""The default model's download, offered where it is missing. It is a job like a run: the page may be closed."""

from __future__ import annotations

import streamlit as st

from dces_core import launch, models
from dces_core.ui import pace, state


def offer_model() -> None:
    """Say that the default model is missing, offer the download, show how far it is."""
    live = bool(models.pull_progress().get("running"))
    with st.container(border=True, key="fetch"):
        pace.timed(_progress, 1.0 if live else None)(live)


def _progress(was_live: bool) -> None:
    facts = models.pull_progress()
    running = bool(facts.get("running"))
    if (was_live and not running) or models.pulled():
        st.rerun(scope="app")
    if running:
        st.progress(float(facts["share"]), text=f"{models.DEFAULT}: {facts['text']}")
        st.caption("Goes on if you close this tab.")
        return
    st.text(f"The default model ({models.DEFAULT}, {models.WHEEL_BYTES / 1e6:.0f} MB) is not on this machine yet.")
    if facts.get("error"):
        state.problem(str(facts["error"]))
    if st.button("Download it", icon=":material/download:", key="pull"):
        launch.pull_model()
        st.rerun(scope="app")
