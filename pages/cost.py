"""What a run costs at one's own price: from measured seconds, with the source of every figure."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from dces_core import config as settings
from dces_core import cost_sources, estimate, store
from dces_core.config import RunConfig
from dces_core.cost import MOST, Costs, Measurement, costs, rate_of
from dces_core.errors import UserError
from dces_core.study_store import find_output, recorded_studies
from dces_core.ui import charts, look, state
from dces_core.ui import costs as drawn
from dces_core.ui.sections import quiet

LEAD = (
    '<p class="lead">What do rounds cost, what does collapse waste, and what does DCES take on top? Seconds are measured ones; the price '
    "per hour and the watts of the device are yours. Nothing is assumed: what is missing stays empty, and says why.</p>"
)
AUTO = "auto"
MOST_ROUNDS = 10_000
LOST = (
    "Rounds after the first whose perplexity is 10% worse than round 0's, of the measured run, at its measured seconds a round. The "
    "degraded round itself is not counted."
)
EXTRA = (
    "A round of dces beside one of plain: as measured above, and as dces bench did, where plain generates only what it trains on. "
    "Time, energy and money are what dces takes more."
)


# what is asked ----------------------------------------------------------------------------------------------------------


def pick_number(name: str, label: str, words: str) -> float | None:
    """A figure of one's own, in the address bar; None while there is none."""
    asked = state.asked(name)
    value = None if asked is None else number_of(name, asked)
    key = f"pick-{name}"
    st.session_state[key] = value
    if value is not None:
        state.put(name, f"{value:g}")
    bare: Any = {"value": None, "format": "%.6g", "placeholder": "not given", "help": words, "on_change": changed, "args": (name,)}
    return st.number_input(label, 0.0, MOST, key=key, **bare)


def number_of(name: str, asked: str) -> float | None:
    """The figure that the address bar says; else a sentence."""
    try:
        value = float(asked[:30])
    except ValueError:
        value = -1.0
    if 0 <= value <= MOST:
        return value
    state.problem(f"{name} = {asked[:80]!r} must be a number from 0 to {MOST:,.0f}; it counts as not given.")
    return None


def changed(name: str) -> None:
    """A field that was emptied leaves the address bar too."""
    value = st.session_state[f"pick-{name}"]
    if value in (None, ""):
        state.forget(name)
    else:
        state.put(name, f"{value:g}" if isinstance(value, float) else str(value))


def pick_currency() -> str:
    """The unit of the price: a label only."""
    st.session_state["pick-currency"] = (state.asked("currency") or "")[:40]
    bare: Any = {"placeholder": "EUR", "max_chars": 5, "on_change": changed, "args": ("currency",)}
    return st.text_input("Currency", key="pick-currency", help="Of the price; a label only.", **bare).strip()


def pick_recipe() -> RunConfig:
    """A shipped recipe with as many rounds as are asked for."""
    names = settings.recipe_names()
    key = state.linked("recipe", names, "standard")
    st.selectbox("Recipe", names, key=key, on_change=other_recipe)
    config = settings.load_recipe(str(st.session_state[key]))
    asked = state.clamp(range(1, MOST_ROUNDS + 1))(state.asked("rounds") or "")
    st.session_state["pick-rounds"] = asked or config.rounds
    rounds = st.number_input("Rounds", 1, MOST_ROUNDS, key="pick-rounds", on_change=state.changed, args=("rounds",))
    return config.model_copy(update={"rounds": int(rounds)})


def other_recipe() -> None:
    """Another recipe has rounds of its own."""
    state.forget("rounds", "by")
    state.changed("recipe")


def pick_measurement(config: RunConfig) -> Measurement | str:
    """What fits the recipe best, a run, or a recorded study."""
    runs = {f"run/{run.id}": run for run in store.discover()[: cost_sources.MOST_RUNS] if fits(run, config)}
    studies = [f"study/{path.parent.name}" for path in sorted(recorded_studies().glob("*/study.json"))] * (config.engine == "hf")
    options = [AUTO, *runs, *studies]
    asked = state.asked("by")
    if asked is not None and asked not in options:
        state.problem(f"by = {asked[:80]!r} measured nothing for this recipe here; what fits it best is used.")
    words = {AUTO: "what fits the recipe best", **{key: state.label_of(run) for key, run in runs.items()}}
    key = state.linked("by", options, AUTO)
    label = lambda option: words.get(option, f"{option.removeprefix('study/')} · recorded study, whole rounds")  # noqa: E731
    st.selectbox("Measured by", options, key=key, format_func=label, on_change=state.changed, args=("by",))
    chosen = str(st.session_state[key])
    try:
        if chosen in runs:
            return cost_sources.of_run(runs[chosen])
        return cost_sources.best(config) if chosen == AUTO else cost_sources.of_study(find_output(chosen.removeprefix("study/")))
    except UserError as error:
        return str(error)


def fits(run: store.Run, config: RunConfig) -> bool:
    """Whether a run can measure a recipe: the same engine on the same kind of device."""
    try:
        other = run.config
    except UserError:
        return False
    return other.engine == config.engine and estimate.likely_device(other) == estimate.likely_device(config)


# what is said -----------------------------------------------------------------------------------------------------------


def draw_head(found: Costs) -> None:
    """The run and a round at a glance, and what they rest on."""
    sums = {row["part"]: row for row in found.totals.to_dicts()}
    run, a_round, currency = sums["the run"], sums["a round of all arms"], found.facts["inputs"]["currency"] or ""
    with st.grid(4, min_column_width=140, gap="small"):
        st.metric("The run", drawn.time_of(run["seconds"]))
        st.metric("A round, all arms", drawn.time_of(a_round["seconds"]))
        st.metric("Energy of the run", "–" if run["kwh"] is None else f"{drawn.number(run['kwh'])} kWh", help=run["reason"])
        st.metric("Money, the run", drawn.money(run["money"], currency), help=run["reason"])
    facts = found.facts
    model = lambda name, count: f"{name}, {count:,} parameters" if count else str(name)  # noqa: E731
    words = f"{facts['recipe']}: {model(facts['model'], facts['parameters'])}."
    if facts["measured"]:
        other = facts["measured_model"] != facts["model"]
        by = f", {model(facts['measured_model'], facts['measured_parameters'])}" if other else ""
        words += f" Seconds: {facts['measured']}{by}."
    look.show(quiet(" ".join([words, *facts["notes"]])))


def draw(found: Costs) -> None:
    """Breakdown, sums, collapse, DCES over plain, formulas."""
    draw_head(found)
    if found.stages["seconds"].count():
        figure = drawn.breakdown(found)
        charts.keep_zoom(figure, "cost", found.facts["recipe"])
        st.plotly_chart(figure, key="cost-breakdown", config=charts.config(f"cost-{found.facts['recipe']}"), alt=drawn.words_of(found))
    else:
        state.empty(
            "Nothing was measured for this recipe", "Do a run with it, or choose what measured it; the sums below say what is missing."
        )
    look.show(drawn.totals(found))
    with st.expander("Every stage and its source"):
        look.show(drawn.stages(found))
    for title, words, table in (
        ("Rounds lost to collapse", LOST, drawn.collapse(found)),
        ("DCES over plain", EXTRA, drawn.extra(found)),
    ):
        st.subheader(title, anchor=False)
        look.show(quiet(words))
        look.show(table)
    with st.expander("Formulas"):
        look.show(drawn.formulas())
    body = json.dumps(found.as_json(), indent=1, ensure_ascii=False, allow_nan=False)
    st.download_button("JSON", body, f"cost-{found.facts['recipe']}.json", "application/json", icon=":material/download:", key="cost-json")


def page() -> None:
    """Draw the page."""
    state.heading("Cost")
    look.show(LEAD)
    with st.container(border=True), st.grid(3, min_column_width=210, gap="small"):
        config = pick_recipe()
        by = pick_measurement(config)
        price = pick_number("price", "Price per hour", "Of the device that you pay for, or would.")
        currency = pick_currency()
        watts = pick_number("watts", "Watts", "What the device draws while it works.")
    draw(costs(config, by, cost_sources.overhead(), rate_of(price, watts, currency)))


state.run_page(page)
