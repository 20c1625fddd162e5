"""Which run, round, arms and prompt a page shows: one place that reads and writes the address bar.

Query parameters are hostile: each is checked against what exists, numbers are clamped, none becomes a path. A value that
the person picks goes into the address bar and is remembered across pages, so every view can be linked to.
"""

from __future__ import annotations

import runpy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import streamlit as st

from dces_core import labels, launch, store
from dces_core.errors import UserError
from dces_core.store import Run
from dces_core.ui import look, pace, read
from dces_core.ui.text import escaped

T = TypeVar("T")
APP = Path(__file__).resolve().parents[2] / "app.py"
HAND_EYE = "What sports require good hand-eye coordination?"
BEAT_S = 1.2  # a round's time on the screen while rounds are played


def _memory() -> dict[str, str]:
    memory: dict[str, str] = st.session_state.setdefault("memory", {})
    return memory


def asked(name: str) -> str | None:
    """The address bar's value of a parameter, else what was picked last in this session."""
    value = st.query_params.get(name)
    return value if value is not None else _memory().get(name)


def put(name: str, value: str) -> None:
    """Write a parameter to the address bar and remember it."""
    _memory()[name] = value
    if st.query_params.get(name) != value:
        st.query_params[name] = value


def forget(*names: str) -> None:
    """Drop parameters, for instance the round when another run is picked."""
    for name in names:
        _memory().pop(name, None)
        st.query_params.pop(name, None)


def linked(name: str, options: Sequence[T], default: T, parse: Callable[[str], T | None] | None = None) -> str:
    """Prepare the widget state of a linked choice; returns the widget's key. Show the widget with `on_change=changed`.

    An address that names no option falls back to `default`; `parse` maps text to an option (clamping a round, say).
    """
    key, text = f"pick-{name}", asked(name)
    by_text = {str(option): option for option in options}
    value = None if text is None else by_text.get(text, parse(text) if parse else None)
    st.session_state[key] = default if value is None else value
    if text is not None:
        put(name, str(st.session_state[key]))
    return key


def changed(name: str) -> None:
    """Callback of a linked widget: its new value goes into the address bar."""
    value = st.session_state[f"pick-{name}"]
    if value is not None:
        put(name, str(value))


def label_of(run: Run) -> str:
    """A run's name with its label and its state."""
    return " · ".join(filter(None, [run.id, labels.read(run).label, "recorded" if run.recorded else launch.state(run)]))


def pick_run() -> None:
    """The run picker of the sidebar."""
    runs = {run.id: run for run in store.discover()}
    text = asked("run")
    if text is None and runs:
        text = default_run(list(runs.values())).id
        _memory()["run"] = text
    st.session_state["pick-run"] = text if text in runs else None
    if text in runs:
        put("run", str(text))
    st.sidebar.selectbox(
        "Run",
        list(runs),
        key="pick-run",
        format_func=lambda run_id: label_of(runs[run_id]),
        placeholder="Choose a run" if runs else "No runs yet",
        disabled=not runs,
        on_change=_other_run,
    )


def default_run(runs: list[Run]) -> Run:
    """What is shown before anything is picked: a live run, else the shipped one, else the newest."""
    alive = [run for run in runs if read.live(run)]
    recorded = [run for run in runs if run.recorded]
    return (alive or recorded or runs)[0]


def _other_run() -> None:
    forget("round", "vs", "arms", "prompt", "sample")
    changed("run")


def find_run() -> Run | None:
    """The picked run; None when there is none at all. Raises UserError for an id that names no run.

    Only ids of discovered runs count: an address never becomes a path.
    """
    text = asked("run")
    if text is None:
        return None
    runs = {run.id: run for run in store.discover()}
    if text not in runs:
        raise UserError(f"run = {text[:80]!r} names no run here; choose one in the sidebar, or open Runs to see them all.")
    return runs[text]


def need_run() -> Run:
    """The picked and readable run; else the page says what is missing and ends."""
    try:
        run = find_run()
        if run is not None:
            run.config  # noqa: B018 - raises UserError where the run is unreadable
            return run
    except UserError as error:
        problem(str(error))
        st.stop()
    empty("Nothing has been run yet", "Launch a run: the first round appears here as soon as it is evaluated.")
    st.page_link("pages/launch.py", label="Launch a run", icon=":material/rocket_launch:")
    st.stop()


def need_rounds(run: Run, name: str = "evaluate") -> tuple[tuple[str, ...], list[int]]:
    """Arms and the rounds that at least one of them has finished; else the page says what is awaited and ends."""
    arms = run.config.arms
    rounds = sorted({r for arm in arms for r in read.finished(run, arm, name)})
    if rounds:
        return arms, rounds
    words = {"evaluate": "Round 0 is not evaluated yet", "map": "No round is mapped yet", "select": "No round has selected its data yet"}
    now = launch.state(run)
    more = "It appears here by itself." if now in launch.ALIVE else f"The run is {now}; Watch says why and can resume it."
    empty(words.get(name, "Nothing is finished yet"), more)
    st.page_link("pages/watch.py", label="Watch this run", icon=":material/monitoring:", query_params={"run": run.id})
    follow(run, name, -1)
    st.stop()


def empty(title: str, more: str) -> None:
    """A designed empty state. Both texts are this project's own."""
    look.show(f'<div class="empty"><b>{title}</b><span class="quiet">{more}</span></div>')


def problem(sentence: str) -> None:
    """A sentence about bad input or a failed run. It quotes what was given, so it is escaped, never markdown."""
    look.show(f'<div class="problem" role="alert">{escaped(sentence)}</div>')


def clamp(rounds: Sequence[int]) -> Callable[[str], int | None]:
    """Text to the nearest of these rounds; None where it is no number."""

    def parse(text: str) -> int | None:
        try:
            wanted = int(text[:9])
        except ValueError:
            return None
        return min(rounds, key=lambda r: abs(r - wanted))

    return parse


def pick_round(run: Run, rounds: list[int], name: str) -> int:
    """The round scrubber: play, slider, arrow keys, and a word when a newer round is ready. Follows the latest until touched."""
    key = linked("round", rounds, rounds[-1], clamp(rounds))
    at = rounds.index(st.session_state[key])
    with st.container(horizontal=True, wrap=False, vertical_alignment="bottom", gap="small", width=600, key="scrubber"):
        _player(run, rounds, at)
        _arrow("Previous round", "left", rounds, at - 1)
        if len(rounds) > 1:
            st.select_slider("Round", rounds, key=key, on_change=changed, args=("round",), width="stretch")
        else:
            look.show(f'<p class="num">Round <b>{rounds[0]}</b>, the only one so far</p>')
        _arrow("Next round", "right", rounds, at + 1)
        words = "Latest round, and the newer ones as they come: no round is picked"
        bare: Any = {"disabled": asked("round") is None, "type": "tertiary", "help": words, "key": "round-latest"}
        st.button("", icon=":material/last_page:", on_click=forget, args=("round",), **bare)
        follow(run, name, rounds[-1])
    return int(st.session_state[key])


def _player(run: Run, rounds: list[int], at: int) -> None:
    """Play or pause. `play` holds the run and the round that playing has reached: any other round was set by hand, which ends it."""
    playing = st.session_state.get("play") == (run.id, rounds[at]) and at < len(rounds) - 1
    if not playing:
        st.session_state.pop("play", None)
    label, icon = ("Pause", ":material/pause:") if playing else ("Play the rounds", ":material/play_arrow:")
    bare: Any = {"type": "tertiary", "help": label, "disabled": len(rounds) < 2, "key": "round-play"}
    st.button("", icon=icon, on_click=_pause if playing else _play, args=() if playing else (run.id, rounds, at), **bare)
    drawn: list[bool] = []

    def beat() -> None:
        if drawn and st.session_state.get("play") == (run.id, rounds[at]):
            _play_to(run.id, rounds, at + 1)
            st.rerun(scope="app")
        drawn.append(True)  # once with the page, from then on at each beat

    pace.part(beat, BEAT_S if playing else None)()


def _play(run_id: str, rounds: list[int], at: int) -> None:
    """Play from here; from the beginning where this is the end."""
    _play_to(run_id, rounds, at if at < len(rounds) - 1 else 0)


def _play_to(run_id: str, rounds: list[int], at: int) -> None:
    put("round", str(rounds[at]))
    st.session_state["play"] = (run_id, rounds[at])


def _pause() -> None:
    st.session_state.pop("play", None)


def _arrow(label: str, side: str, rounds: list[int], index: int) -> None:
    """One step of the scrubber, by mouse or arrow key."""
    icon = f":material/chevron_{side}:"
    off = not 0 <= index < len(rounds)
    bare: Any = {"type": "tertiary", "help": label, "shortcut": side.title(), "key": f"round-{side}"}
    st.button("", icon=icon, disabled=off, on_click=_step, args=(rounds, index), **bare)


def _step(rounds: list[int], index: int) -> None:
    put("round", str(rounds[max(0, min(index, len(rounds) - 1))]))


def follow(run: Run, name: str, shown: int) -> None:
    """While the run lives, look every 3 s (less often in a crowd) for a newer round: go there while following, else offer it as a chip.

    An arm that reaches the round that is shown is drawn at once.
    """

    def standing() -> list[list[int]]:
        return [read.finished(run, arm, name) for arm in run.config.arms]

    before = standing()

    def poll() -> None:
        now = standing()
        latest = max((max(rounds, default=-1) for rounds in now), default=-1)
        if now != before and (latest <= shown or asked("round") is None):
            st.rerun(scope="app")
        if latest <= shown:
            return
        if st.button(f"Round {latest} is ready", icon=":material/fiber_new:", key="round-new"):
            forget("round")
            st.rerun(scope="app")

    pace.timed(poll, 3.0 if read.live(run) else None)()


def pick_arms(arms: tuple[str, ...], most: int | None = None) -> tuple[str, ...]:
    """Arms to show, in the run's order; `vs` of the address bar, separated by commas. All (or the first `most`) at first."""
    text = asked("vs")
    wanted = [arm for arm in dict.fromkeys((text or "").split(",")) if arm in arms][:most]
    key = "pick-vs"
    st.session_state[key] = wanted or list(arms[:most])
    if text is not None:
        put("vs", ",".join(st.session_state[key]))
    st.pills("Arms", arms, selection_mode="multi", key=key, on_change=_arms_changed, args=(arms,))
    return tuple(arm for arm in arms if arm in st.session_state[key])


def _arms_changed(arms: tuple[str, ...]) -> None:
    put("vs", ",".join(arm for arm in arms if arm in st.session_state["pick-vs"]))


def pick_pair(arms: tuple[str, ...]) -> tuple[str, ...]:
    """Two arms, left and right; `vs=left,right` in the address bar. One arm when the run has one."""
    if len(arms) == 1:
        return arms
    wanted = [arm for arm in (asked("vs") or "").split(",") if arm in arms]
    left = wanted[0] if wanted else arms[0]
    right = wanted[1] if len(wanted) > 1 and wanted[1] != left else next(arm for arm in arms if arm != left)
    st.session_state["pair-left"], st.session_state["pair-right"] = left, right
    with st.container(horizontal=True, gap="small"):
        st.selectbox("Left", arms, key="pair-left", on_change=_pair_changed, width=180)
        st.selectbox("Right", arms, key="pair-right", on_change=_pair_changed, width=180)
    return left, right


def pick_prompt(prompts: dict[str, str]) -> str:
    """A watched prompt, by id: `prompt` of the address bar; the hand-eye prompt at first. `prompts`: id -> prompt."""
    default = next((key for key, prompt in prompts.items() if prompt == HAND_EYE), next(iter(prompts)))
    key = linked("prompt", list(prompts), default)
    label = lambda prompt_id: f"{prompts[prompt_id]}  ({prompt_id})"  # noqa: E731
    st.selectbox("Prompt", list(prompts), key=key, format_func=label, on_change=changed, args=("prompt",), width=620)
    return str(st.session_state[key])


def need_pair(run: Run, stage: str) -> tuple[tuple[str, ...], int, list[int]]:
    """Two arms that finished a stage, the round to look at, and the rounds there are; stops as `need_rounds` does."""
    every, rounds = need_rounds(run, stage)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="large"):
        arms = pick_pair(every)
        round_ = pick_round(run, rounds, stage)
    return arms, round_, rounds


def _pair_changed() -> None:
    put("vs", f"{st.session_state['pair-left']},{st.session_state['pair-right']}")


def run_page(draw: Callable[[], None]) -> None:
    """Draw a page inside app.py; a UserError becomes a sentence. Another page than before ends playing.

    Until `st.navigation` was called once in a server, Streamlit takes pages/ for its old page directory and runs a file of
    it without app.py: then the first visitor of a deep link goes through app.py here.
    """
    name = st.session_state.pop("inside app", None)
    if name is None:
        runpy.run_path(str(APP))
        st.stop()
    if st.session_state.get("page") != name:
        st.session_state["page"] = name
        _pause()
    started = time.thread_time()
    try:
        draw()
    except UserError as error:
        problem(str(error))
    pace.drawn(time.thread_time() - started)


def heading(title: str, run: Run | None = None, note: str = "") -> None:
    """A page's title line: what it is, which run, in which state."""
    st.title(title, anchor=False)
    if run is None:
        return
    config = run.config
    bits = [
        "fake engine, no model behind these figures" if config.engine == "fake" else config.model,
        f"{config.rounds} rounds",
        f"seed {config.seed} (1 seed)",
        f"{config.eval.split} split",
    ]
    if run.parent:
        bits.append(f"{run.parent.get('kind')} from {run.parent.get('run')} at round {run.parent.get('round')}")
    if note:
        bits.append(note)
    label = labels.read(run).label
    rest = escaped(" · ".join([label, *bits] if label else bits))
    look.show(f'<p class="quiet">{badge(run)} &nbsp;<b>{escaped(run.id)}</b> · {rest}</p>')


def badge(run: Run) -> str:
    """The run's state as a pill."""
    now = "recorded" if run.recorded else launch.state(run)
    tone = {"failed": "bad", "lost": "bad", "done": "good", "recorded": "good"}.get(now, "idle")
    return f'<span class="badge {tone}">{now}</span>'
