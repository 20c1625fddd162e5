"""A run from a recipe: every setting, what it will cost, what it survives."""

from __future__ import annotations

from typing import Any

import streamlit as st

from dces_core import config as settings
from dces_core import launch, models
from dces_core.config import RunConfig
from dces_core.errors import UserError
from dces_core.ui import forms, look, state, text
from dces_core.ui.fetch import offer_model

SURVIVES = (
    "Keeps running if you close this tab or restart the dashboard; resumes from the last finished stage. "
    "Stop it on Watch. A second run on the same device waits in the queue."
)


def duration(seconds: float) -> str:
    """About how long, in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float | None) -> str:
    """Bytes in words."""
    if count is None:
        return "unknown"
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def pick_recipe() -> str | None:
    """The recipe; `quick` at first."""
    names = settings.recipe_names()
    if not names:
        return None
    key = state.linked("recipe", names, "quick" if "quick" in names else names[0])
    st.pills("Recipe", names, key=key, on_change=state.changed, args=("recipe",), required=True)
    return str(st.session_state[key])


def draw_estimate(config: RunConfig) -> None:
    """Time, disk and memory, before anything starts."""
    cost: dict[str, Any] = launch.estimate(config)
    with st.grid(4, min_column_width=130, gap="small"):
        st.metric("Time", duration(cost["total_s"]), help="All rounds of all arms.")
        st.metric("Per round", duration(cost["round_s"]), help="One round of all arms.")
        st.metric("Disk", size(cost["disk_bytes"]))
        st.metric("Memory", size(cost["memory_bytes"]))
    notes = " ".join([f"On {cost['device']}; {cost['basis']}.", *cost["notes"]])
    look.show(f'<p class="quiet">{text.escaped(notes)}</p>')


def draw_changes(config: RunConfig, recipe: RunConfig) -> None:
    """Only what differs from the recipe."""
    changed = forms.changes(config, recipe)
    if changed:
        st.caption("Differs from the recipe")
        st.code("\n".join(changed), language=None, wrap_lines=True)


def start(config: RunConfig) -> None:
    """Launch and go to Watch."""
    run = launch.launch(config)
    state.forget("round", "vs", "prompt", "set")
    state.put("run", run.id)
    st.switch_page("pages/watch.py", query_params={"run": run.id})


def draw_side(config: RunConfig, recipe: RunConfig) -> None:
    """The right column: cost, differences, the button."""
    draw_estimate(config)
    draw_changes(config, recipe)
    ready = config.engine == "fake" or config.model != models.DEFAULT or models.pulled(config.model)
    if not ready:
        offer_model()
    try:
        launch.refuse_if_too_big(config)
    except UserError as error:
        state.problem(str(error))
        ready = False
    if st.button("Launch", type="primary", icon=":material/rocket_launch:", disabled=not ready, key="launch", width="stretch"):
        start(config)
    st.caption(SURVIVES)


def page() -> None:
    """Draw the page."""
    state.heading("Launch")
    name = pick_recipe()
    recipe = settings.load_recipe(name) if name else settings.parse({})
    left, right = st.columns([7, 4], gap="large")
    with right, st.container(border=True):
        side = st.container()
    with left:
        values = forms.draw(recipe, name or "defaults")
    with side:
        try:
            draw_side(settings.parse(values), recipe)
        except UserError as error:
            state.problem(str(error))


state.run_page(page)
