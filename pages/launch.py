"""A run from a recipe, or from another run's settings: every setting, what it will cost, what it survives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import streamlit as st

from dces_core import branch, launch, models, store
from dces_core import config as settings
from dces_core.config import RunConfig
from dces_core.errors import UserError
from dces_core.store import Run
from dces_core.ui import forms, look, state, text
from dces_core.ui.fetch import offer_model

SURVIVES = (
    "Keeps running if you close this tab or restart the dashboard; resumes from the last finished stage. "
    "Stop it on Watch. A second run on the same device waits in the queue."
)

FORK_ROUNDS = 5  # at least so many rounds after a fork, unless told otherwise


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


@dataclass(frozen=True)
class Basis:
    """What the form starts from: a recipe, or a run; `round_` is the last round that a fork of it takes over."""

    name: str
    config: RunConfig
    run: Run | None = None
    round_: int | None = None

    @property
    def words(self) -> str:
        """Its name in a sentence."""
        return f"run {self.run.id}" if self.run else "the recipe"


def asked_run() -> Run | None:
    """The readable run whose settings are asked for by `from` of the address bar, which no other page remembers."""
    asked = st.query_params.get("from")
    run = next((run for run in store.discover() if run.id == asked), None)
    if asked is not None and run is None:
        state.problem(f"run = {asked[:80]!r} names no run here; the form has a recipe's settings.")
    return run


def basis() -> Basis:
    """The recipe that is picked, or the run that is launched again or forked."""
    run = asked_run()
    if run is None:
        name = pick_recipe()
        return Basis(name or "defaults", settings.load_recipe(name) if name else settings.parse({}))
    forking = "fork" in st.query_params
    title = "Fork of" if forking else "Settings of"
    with st.container(border=True, key="basis"):
        with st.container(horizontal=True, vertical_alignment="center"):
            look.show(f'<p style="margin:0"><b>{title} {text.escaped(run.id)}</b></p>')
            st.space("stretch")
            if st.button("Use a recipe instead", icon=":material/close:", type="tertiary", key="drop"):
                state.forget("from", "fork")
                st.rerun()
        round_ = pick_fork(run) if forking else None
    return Basis(f"{run.id}{' fork' if forking else ''}", run.config, run, round_)


def pick_fork(run: Run) -> int:
    """The last round that the fork takes over. Raises UserError where no round is finished."""
    rounds = branch.forkable(run)
    if not rounds:
        raise UserError(f"run {run.id!r} has no finished round to fork from; launch its settings again instead.")
    key = state.linked("fork", rounds, rounds[-1], state.clamp(rounds))
    if len(rounds) > 1:
        st.select_slider("Take over rounds 0 to", rounds, key=key, on_change=state.changed, args=("fork",), width=420)
    round_ = int(st.session_state[key])
    again = branch.trains_again(run, round_, run.config.arms)
    words = (
        f"The new run takes rounds 0 to {round_} of its arms over and goes on with the settings below. What the finished rounds were "
        "made from and measured with cannot be changed: those fields are grey."
    )
    if again:
        words += (
            f" The weights of round {round_} were deleted for {', '.join(again)}: its rounds are trained again first, to the same digits."
        )
    look.show(f'<p class="quiet" style="margin:0">{text.escaped(words)}</p>')
    return round_


def draw_estimate(config: RunConfig, done: int | None) -> None:
    """Time, disk and memory, before anything starts; `done`: the last round that is there already."""
    cost: dict[str, Any] = launch.estimate(config)
    total = cost["total_s"] if done is None else max(0, config.rounds - done) * cost["round_s"]
    with st.grid(4, min_column_width=130, gap="small"):
        st.metric("Time", duration(total), help="All rounds of all arms that are still to do.")
        st.metric("Per round", duration(cost["round_s"]), help="One round of all arms.")
        st.metric("Disk", size(cost["disk_bytes"]))
        st.metric("Memory", size(cost["memory_bytes"]))
    notes = " ".join([f"On {cost['device']}; {cost['basis']}.", *cost["notes"]])
    look.show(f'<p class="quiet">{text.escaped(notes)}</p>')


def draw_changes(config: RunConfig, base: Basis) -> None:
    """Only what differs from the recipe, or the run."""
    changed = forms.changes(config, base.config)
    if changed:
        look.show(f'<p class="quiet" style="margin:0">Differs from {text.escaped(base.words)}</p>')
        st.code("\n".join(changed), language=None, wrap_lines=True)


def start(config: RunConfig, base: Basis) -> None:
    """Launch, or fork, and go to Watch."""
    if base.run and base.round_ is not None:
        with st.spinner("Checking and taking over the finished stages"):
            run = launch.start(branch.fork_run(base.run, base.round_, config))
    else:
        run = launch.launch(config)
    state.forget("round", "vs", "prompt", "set")
    state.put("run", run.id)
    st.switch_page("pages/watch.py", query_params={"run": run.id})


def refusal(config: RunConfig, base: Basis) -> str | None:
    """Why this cannot be launched here, None where it can."""
    try:
        if base.run and base.round_ is not None:
            branch.check_fork(base.run, base.round_, config)
        launch.refuse_if_too_big(config)
    except UserError as error:
        return str(error)
    return None


def draw_side(config: RunConfig, base: Basis) -> None:
    """The right column: cost, differences, the button."""
    draw_estimate(config, base.round_)
    draw_changes(config, base)
    ready = config.engine == "fake" or config.model != models.DEFAULT or models.pulled(config.model)
    if not ready:
        offer_model()
    problem = refusal(config, base)
    if problem:
        state.problem(problem)
    label, icon = ("Launch", "rocket_launch") if base.round_ is None else (f"Fork from round {base.round_}", "fork_right")
    bare: Any = {"type": "primary", "icon": f":material/{icon}:", "disabled": not ready or problem is not None, "key": "launch"}
    if st.button(label, width="stretch", **bare):
        start(config, base)
    st.caption(SURVIVES)


def draw_form(base: Basis) -> dict[str, Any]:
    """The settings. A fork has some rounds to do, and fields that it cannot change."""
    if base.round_ is None:
        return forms.draw(base.config, base.name)
    rounds = max(base.config.rounds, base.round_ + FORK_ROUNDS)
    return forms.draw(base.config.model_copy(update={"rounds": rounds}), base.name, branch.why_fixed)


def page() -> None:
    """Draw the page."""
    state.heading("Launch")
    base = basis()
    left, right = st.columns([7, 4], gap="large")
    with right, st.container(border=True):
        side = st.container()
    with left:
        values = draw_form(base)
    with side:
        try:
            draw_side(settings.parse(values), base)
        except UserError as error:
            state.problem(str(error))


state.run_page(page)
