"""What collapse is, how the method answers it, and what happened in a real run.

Its words are on their way before anything is loaded that reads runs: the first visitor of a new server waits for that.
"""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dces_core.ui import look, picture

COLLAPSE = (
    "A language model that is trained again and again on its own output collapses.",
    "First it loses rare words and unusual turns, because each round samples them too seldom to learn them again.",
    "Then its frequent phrases feed on themselves, until many prompts get the same answer and some answers are only a loop: 1.1.1.1.1.",
    "DCES (dynamic center-edge sampling) curates what each round trains on: it clusters the generated text, edits tokens of the typical "
    "center samples, filters the unusual edge samples, and mixes the two by how far the clusters have shrunk in this very round.",
    "Here you launch both on a real model, watch them round by round, and read what they write.",
)


def opening() -> DeltaGenerator:
    """The heading, the words and the picture; returns the place beside the words."""
    st.title("Model collapse, and a loop against it", anchor=False)
    left, right = st.columns([8, 3], gap="large")
    with left:
        look.show(f'<div class="lead"><p>{" ".join(COLLAPSE[:3])}</p><p>{" ".join(COLLAPSE[3:])}</p></div>')
    look.show(picture.flow())
    return right


def launcher() -> None:
    """The way to a run of one's own, and to one that is on."""
    from dces_core import launch, models, store
    from dces_core.ui.fetch import offer_model

    if st.button("Launch a run", type="primary", icon=":material/rocket_launch:", key="to-launch", width="stretch"):
        st.switch_page("pages/launch.py")
    if models.pulled():
        st.caption("The quick recipe takes some minutes on two cores and keeps running when you close this tab.")
    else:
        offer_model()
    alive = [run for run in store.discover(recorded=False) if launch.state(run) in launch.ALIVE]
    if alive:
        st.page_link("pages/watch.py", label="A run is on: watch it", icon=":material/monitoring:", query_params={"run": alive[0].id})


def page() -> None:
    """Draw the page: what needs no run first."""
    beside = opening() if "inside app" in st.session_state else None
    from dces_core.ui import state

    state.run_page(lambda: rest(beside))


def rest(beside: DeltaGenerator | None) -> None:
    """What reads runs; `beside`: the place for the launcher."""
    from dces_core.ui import glance, state

    assert beside is not None, "run_page runs app.py where it was not"
    state.pick_run()
    with beside:
        launcher()
    run = glance.shown_run()
    if run is None:
        state.empty("No comparison to show yet", "Launch a run: plain self-training and DCES are compared here from its first round on.")
        return
    glance.draw_run(run)


page()
