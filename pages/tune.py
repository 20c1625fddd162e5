"""Searches of settings (`dces tune`): their trials, what the fields matter, the best settings as a recipe. Reads tables only."""

from __future__ import annotations

from typing import Any

import streamlit as st

from dces_core import tune_store
from dces_core.tune_store import Found, Search
from dces_core.ui import charts, look, pace, state, tuned
from dces_core.ui.sections import quiet

LEAD = (
    '<p class="lead">Which settings slow collapse most? A search tries values of the fields that you name, for one arm, on the validation '
    "split; all trials share seed, round 0 and first pool, and bad ones end early.</p>"
)
CAUTION = (
    "Chosen on the validation split with one seed: the best figure of many is too good by chance. Confirm it with a study of several "
    "other seeds on the test split."
)
EXAMPLE = """\
name = "gain"
recipe = "quick"
arm = "dces"

[fields]
controller.gain = { low = 0.005, high = 0.5, log = true }
edit.temperature = { low = 0.9, high = 1.6 }
split.scorer = { choices = ["current", "frozen"] }
"""
COMMAND = "dces tune gain.toml --trials 30"
PRUNED = "A pruned trial stands at the figure of its last round, which does not compare with that of all rounds."
SHARES = (
    "The share of each field in what tells the best quarter of the trials that did all rounds from all of them (PED-ANOVA). It says what "
    "mattered within these ranges, not which way."
)
EVERY_S = 3.0


def pick(found: dict[str, Found]) -> str:
    """The newest search, or another one."""
    asked = state.asked("search")
    if asked is not None and asked not in found:
        state.problem(f"search = {asked[:80]!r} is not here; the newest one is shown.")
    names = list(found)
    key = state.linked("search", names, names[0])
    st.selectbox("Search", names, key=key, on_change=state.changed, args=("search",), width=420)
    return str(st.session_state[key])


def draw(name: str) -> None:
    """All of one search as it stands now."""
    found = Search(tune_store.searches_root() / name).read()
    if found is None:
        state.problem(f"search {name!r} cannot be read any more.")
        return
    if found.note:
        look.show(quiet(found.note))
    draw_head(found)
    if not any(trial.value is not None for trial in found.trials):
        state.empty("No trial has finished a round yet", "The recipe's own settings come first; then each trial appears here.")
        return
    figure = tuned.history(found)
    charts.keep_zoom(figure, "tune", name)
    alt = f"Objective of {len(found.trials)} trials: {tuned.tally(found)}"
    st.plotly_chart(figure, key="tune-history", config=charts.config(f"tune-{name}"), alt=alt)
    look.show(quiet(PRUNED))
    st.subheader("What mattered", anchor=False)
    if found.importance:
        look.show(quiet(SHARES))
        st.plotly_chart(
            tuned.importance(found), key="tune-importance", config=charts.config(f"tune-{name}-fields"), alt="Share of each field"
        )
    else:
        look.show(quiet(f"Not said: {found.importance_reason or 'no reason is given'}."))
    draw_recipe(found, name)
    st.subheader("Trials", anchor=False)
    more = len(found.trials) - tuned.MOST_ROWS
    look.show(tuned.table(found) + quiet(f"{more} more are in the output of dces tune --format json." if more > 0 else ""))


def draw_head(found: Found) -> None:
    """Best, the recipe's own, and how many there are."""
    best, own = found.best, found.baseline
    with st.grid(3, min_column_width=150, gap="small"):
        st.metric("Best", tuned.number(best.value if best else None), help="Of the trials that did all rounds.")
        st.metric("The recipe's own settings", tuned.number(own.value if own else None))
        st.metric("Trials", len(found.trials))
    look.show(quiet(f"{found.arm}, {found.rounds} rounds. {found.objective}. Trials: {tuned.tally(found) or 'none yet'}."))


def draw_recipe(found: Found, name: str) -> None:
    """The best settings, to be taken away."""
    st.subheader("The best settings as a recipe", anchor=False)
    if not found.recipe:
        look.show(quiet("There is none before a trial has done all rounds."))
        return
    look.show(quiet(CAUTION))
    bare: Any = {"icon": ":material/download:", "key": "tune-recipe", "type": "primary"}
    st.download_button("Recipe", found.recipe, f"{name}-best.toml", "application/toml", **bare)
    with st.expander("Show it"):
        st.code(found.recipe, language=None)


def page() -> None:
    """Draw the page."""
    state.heading("Tune")
    look.show(LEAD)
    found = tune_store.searches()
    if not found:
        state.empty("No search yet", "Write what is to be searched into a file, gain.toml say, and start it in a terminal:")
        st.code(EXAMPLE, language=None)
        st.code(COMMAND, language=None)
        look.show(quiet("It goes on where it stopped, and appears here while it works."))
        return
    name = pick(found)
    busy = any(trial.state == "running" for trial in found[name].trials) or not found[name].trials
    pace.part(draw, EVERY_S if busy else None)(name)


state.run_page(page)
