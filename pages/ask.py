"""One's own prompt to two checkpoints of a run, answers side by side. Each question is a job with a process of its own."""

from __future__ import annotations

from typing import Any

import polars as pl
import streamlit as st

from dces_core import ask, launch, models
from dces_core.ask import Checkpoint, Job, Question
from dces_core.config import RunConfig
from dces_core.errors import UserError
from dces_core.store import SHARED, Run
from dces_core.ui import look, pace, pairs, read, state, text
from dces_core.ui.fetch import offer_model

NOBODY = "none"
LIMITS = "One question is answered at a time. It goes on if you close this tab; the newest 20 are kept, nothing of the run changes."
LEGEND = '<p class="quiet said"><span class="loop">loop at the end</span> &nbsp; <span class="rep">repeated 4-grams</span></p>'
OVER = {
    "lost": "The process that answered is gone without a word (killed, or a restart). Ask again.",
    "stopped": "Cancelled. What was answered before stays.",
}


# who is asked -----------------------------------------------------------------------------------------------------------


def key_of(place: Checkpoint) -> str:
    """A checkpoint in the address bar."""
    return f"{place.arm}/{place.round}"


def words_of(key: str) -> str:
    """A checkpoint in a list."""
    arm, _, round_ = key.partition("/")
    return {NOBODY: "nobody else", f"{SHARED}/0": "round 0, where all arms begin"}.get(key, f"{arm}, round {round_}")


def pick_checkpoints(run: Run, places: list[Checkpoint]) -> list[Checkpoint]:
    """One or two checkpoints: the newest of the first two arms at first, else round 0 beside the newest."""
    by_key = {key_of(place): place for place in places}
    newest = {place.arm: key_of(place) for place in places}  # the last of each arm wins
    trained = [newest[arm] for arm in run.config.arms if arm in newest]
    defaults = [*trained[:2], *([f"{SHARED}/0"] if f"{SHARED}/0" in by_key else []), NOBODY]
    chosen = []
    with st.container(horizontal=True, gap="medium"):
        for side, default in zip(("left", "right"), defaults, strict=False):
            options = list(by_key) if side == "left" else [*by_key, NOBODY]
            key = state.linked(side, options, default)
            st.selectbox(side.title(), options, key=key, format_func=words_of, on_change=state.changed, args=(side,), width=340)
            chosen.append(str(st.session_state[key]))
    return [by_key[key] for key in dict.fromkeys(chosen) if key != NOBODY]


def span(rounds: list[int]) -> str:
    """Neighbouring rounds in words."""
    return f"round {rounds[0]}" if len(rounds) == 1 else f"rounds {rounds[0]} to {rounds[-1]}"


def draw_missing(run: Run) -> None:
    """Which checkpoints are not offered, and why."""
    groups: dict[tuple[str, str], list[str]] = {}
    for arm, rounds, reason in ask.missing(run):
        groups.setdefault((span(rounds), reason), []).append(arm)
    lines = [f"{', '.join(arms)}, {rounds}: {reason}." for (rounds, reason), arms in groups.items()]
    if any("weights deleted" in reason for _, reason in groups):
        lines.append("A run launched with keep = ends or keep = all keeps more of them.")
    if lines:
        look.show(f'<p class="quiet"><b>Not offered</b><br>{"<br>".join(map(text.escaped, lines))}</p>')


def model_is_here(config: RunConfig) -> bool:
    """Whether the model can be loaded; else the page says what is missing."""
    if config.engine == "fake":
        return True
    try:
        models.check(config.model)
        return True
    except UserError as error:
        if config.model == models.DEFAULT:
            offer_model()
        else:
            state.problem(str(error))
        return False


# the question -----------------------------------------------------------------------------------------------------------


def draw_form(run: Run, chosen: list[Checkpoint], busy: Job | None) -> None:
    """Prompt, decoding, the button."""
    config = run.config
    with st.form("ask", border=True):
        prompt = st.text_area("Prompt", value=state.HAND_EYE, max_chars=4000, height=90, key=f"{run.id}/prompt")
        with st.grid(5, min_column_width=140, gap="small"):
            values = decoding(run)
        if config.data.instruction:
            look.show(f'<p class="quiet">Behind the prompt, as in the run: {text.escaped(config.data.instruction)}</p>')
        ready = busy is None and bool(chosen)
        pressed = st.form_submit_button("Ask", type="primary", icon=":material/send:", disabled=not ready, key="ask-send")
    user = launch.device_user(config)
    if user and (busy is None or user != busy.id):
        look.show(f'<p class="quiet">The device is used by {text.escaped(user)}: a question waits until that is done.</p>')
    if not pressed:
        return
    try:
        places = [place.model_dump() for place in chosen]
        launch.start(ask.create(run, ask.question(run, prompt=prompt, checkpoints=places, **values)))
    except UserError as error:
        state.problem(str(error))
        return
    state.forget("question")
    st.rerun()


def decoding(run: Run) -> dict[str, Any]:
    """The numbers beside the prompt; the run's own at first."""
    own = ask.question(run, prompt="-", checkpoints=[{"arm": SHARED, "round": 0}])
    number = lambda label, name, low, high, **more: st.number_input(  # noqa: E731
        label, low, high, value=max(low, getattr(own, name)), key=f"{run.id}/{name}", **more
    )
    return {
        "samples": number("Sampled answers", "samples", 0, 8, help="Beside the greedy one, which takes the likeliest token every time."),
        "temperature": number("Temperature", "temperature", 0.01, 5.0, step=0.1, help="Of the sampled answers."),
        "top_p": number("Nucleus (top-p)", "top_p", 0.01, 1.0, step=0.05, help="Tokens outside this mass are never sampled."),
        "max_new_tokens": number("Longest answer, tokens", "max_new_tokens", 1, 1024),
        "seed": number("Seed", "seed", 0, 2**31 - 1, help="The same noise for both checkpoints."),
    }


# answers ----------------------------------------------------------------------------------------------------------------


def pick_job(jobs: list[Job]) -> Job:
    """The newest question, or an earlier one."""
    by_id = {job.id: job for job in jobs}
    words = {job.id: f"{str(job.facts.get('asked', ''))[:16].replace('T', ' ')}  {job.question.prompt[:70]}" for job in jobs}
    key = state.linked("question", list(by_id), jobs[0].id)
    if len(jobs) > 1:
        bare: Any = {"on_change": state.changed, "args": ("question",), "width": 620}
        st.selectbox("Question", list(by_id), key=key, format_func=lambda job_id: words[job_id], **bare)
    return by_id[str(st.session_state[key])]


def draw_job(job: Job, was_alive: bool) -> None:
    """How far the question is, and its answers so far; looked at every second while it is at work."""
    now = launch.state(job)
    if was_alive and now not in launch.ALIVE:
        st.rerun(scope="app")
    status, asked = job.status(), job.question
    look.show(f"{text.mark(asked.prompt, highlight=False)}<p class='quiet'>{text.escaped(settings_of(asked))}</p>")
    if now in launch.ALIVE:
        draw_progress(job, now, status)
    elif now == "failed":
        state.problem(str(status.get("error")))
    elif now in OVER:
        state.problem(OVER[now])
    rows = job.answers
    if rows or now in launch.ALIVE:
        highlight = st.toggle("Highlight loops and repeats", value=True, key="highlight") if rows else True
        look.show(grid(asked, rows, now, highlight), key="answers")
    if rows and highlight:
        look.show(LEGEND)
    if now in launch.ALIVE:
        return
    with st.container(horizontal=True):
        if rows:
            frame = pl.DataFrame([{"prompt": asked.prompt, **row} for row in rows], infer_schema_length=None)
            st.download_button("Answers as CSV", read.csv_of(frame), f"{job.id}.csv", "text/csv", icon=":material/download:")
        if st.button("Delete this question", icon=":material/delete:", key="ask-delete"):
            ask.forget(job)
            state.forget("question")
            st.rerun(scope="app")


def settings_of(asked: Question) -> str:
    """How the answers were decoded."""
    words = f"at most {asked.max_new_tokens} tokens"
    if asked.samples:
        words += f"; sampled at temperature {asked.temperature:g}, top-p {asked.top_p:g}, seed {asked.seed}"
        words += f", top-k {asked.top_k}" if asked.top_k else ""
    return words.capitalize()


def draw_progress(job: Job, now: str, status: dict[str, Any]) -> None:
    """The bar, or whom the question waits for."""
    behind = status.get("waiting_for")
    with st.container(horizontal=True, vertical_alignment="center"):
        if now == "queued" and behind:
            st.text(f"Queued behind {behind}, position {status.get('queue_position') or 1}: it is answered when the device is free.")
        elif now == "stopping":
            st.text("Cancelling.")
        elif now == "queued" or not status.get("stage"):
            st.text("The model is loading.")
        else:
            total = int(status.get("total") or 0)
            share = min(1.0, int(status.get("done") or 0) / total) if total else 0.0
            who = words_of(f"{status.get('arm')}/{status.get('round')}")
            st.progress(share, text=f"{who}: {status.get('stage')}")
        if now != "stopping" and st.button("Cancel", icon=":material/stop_circle:", key="ask-cancel"):
            launch.stop(job, grace_s=5.0, wait=False)
            st.rerun(scope="app")


def grid(asked: Question, rows: list[dict[str, Any]], now: str, highlight: bool) -> str:
    """Answers: a column per checkpoint, a row per draw."""
    found = {(row["arm"], row["round"], row["mode"], row["draw"]): row for row in rows}
    cells = []
    for mode, draw in [("greedy", 1), *(("sampled", draw) for draw in range(1, asked.samples + 1))]:
        cells.append(f'<div class="round">{mode}{f" {draw}" if mode == "sampled" else ""}</div>')
        for place in asked.checkpoints:
            row = found.get((place.arm, place.round, mode, draw))
            cells.append(f"<div>{cell(row, highlight) if row else awaited(now)}</div>")
    return pairs.grid(f"6rem repeat({len(asked.checkpoints)}, minmax(190px, 1fr))", ["", *map(head, asked.checkpoints)], cells)


def head(place: Checkpoint) -> str:
    """A checkpoint above its answers."""
    name, more = ("<b>round 0</b>", "where all arms begin") if place.round == 0 else (look.chip(place.arm), f"round {place.round}")
    return f'<div class="named" style="margin:0">{name}<span class="quiet">{more}</span></div>'


def cell(row: dict[str, Any], highlight: bool) -> str:
    """One answer and what is known about it."""
    plural = "" if row["tokens"] == 1 else "s"
    bits = [f"{row['tokens']} token{plural}", "ended by itself" if row["ended"] else "cut at the limit"]
    if row["logprob"] is not None:
        bits.append(f"{row['logprob']:.2f} nats per token".replace("-", "−"))
    return f'{text.mark(row["text"], highlight)}<div class="quiet">{text.escaped(" · ".join(bits))}</div>'


def awaited(now: str) -> str:
    """In place of an answer that is not there."""
    return f'<div class="said"><span class="none">{"not answered yet" if now in launch.ALIVE else "not answered"}</span></div>'


def page() -> None:
    """Draw the page."""
    run = state.need_run()
    state.heading("Ask", run)
    look.show(
        '<p class="lead">Put a prompt of your own to two checkpoints: the models that an arm had after a round. Greedy takes the likeliest '
        "token at every step; sampled draws, with the same noise for both.</p>"
    )
    places = ask.checkpoints(run)
    if not places:
        state.empty("No checkpoint of this run can be asked", "Its weights are not there, or not yet.")
        draw_missing(run)
        return
    chosen = pick_checkpoints(run, places)
    draw_missing(run)
    if run.recorded:
        st.page_link("pages/launch.py", label="Launch its settings", icon=":material/replay:", query_params={"from": run.id})
    busy = next((job for job in ask.jobs() if launch.state(job) in launch.ALIVE), None)
    if model_is_here(run.config):
        draw_form(run, chosen, busy)
    st.caption(LIMITS)
    if busy and busy.run_id != run.id:
        state.problem(f"A question to run {busy.run_id} is being answered; wait for it, or cancel it there.")
    jobs = ask.jobs(run)
    if jobs:
        st.subheader("Answers", anchor=False)
        job = pick_job(jobs)
        alive = launch.state(job) in launch.ALIVE
        pace.timed(draw_job, 1.0 if alive else None)(job, alive)


state.run_page(page)
