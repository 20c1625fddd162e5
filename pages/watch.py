"""What the run is doing now: bars per arm and round, the controller, the first curves, the log."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import polars as pl
import streamlit as st

from dces_core import launch
from dces_core.config import RunConfig
from dces_core.errors import UserError
from dces_core.store import SHARED, Run
from dces_core.ui import actions, charts, look, pace, read, state, text

WORDS = {
    "queued": "Queued. The worker is starting, or waits until the device is free.",
    "stopping": "Stopping: the worker ends at the next safe point. Finished stages stay.",
    "stopped": "Stopped on request. Finished stages are kept; Resume goes on after the last of them.",
    "lost": "Lost: the worker is gone without a word (killed, or a restart). Finished stages are safe; Resume goes on after them.",
    "failed": "Failed. Finished rounds stay readable; mend the cause, then Resume.",
}
WORD_OF = {"on": "done", "doing": "at work", "skip": "not needed", "": "to do"}
STAGES = ("generate", "select", "map", "train", "evaluate")  # in the order in which a round does them
Done = dict[tuple[str, int], dict[str, bool]]  # (arm, round) -> stage -> whether it is done
CURVES = (("ppl", True), ("entropy_real", True), ("distinct_2", False), ("loop_rate", False))


def clock(seconds: float | None) -> str:
    """H:MM:SS, or a dash."""
    return "–" if seconds is None else str(timedelta(seconds=round(seconds)))


def stages_of(run: Run) -> tuple[str, ...]:
    """The stages of a round, without those that this run does not have."""
    return tuple(name for name in STAGES if name != "map" or run.config.map.on)


def finished_stages(run: Run) -> Done:
    """Which stages of every round of every arm are done: all that a tick has to look up."""
    config, names = run.config, stages_of(run)
    return {
        (arm, round_): {name: read.stamp(read.stage_of(run, arm, round_, name)) > 0 for name in (names if round_ else ("evaluate",))}
        for arm in config.arms
        for round_ in range(config.rounds + 1)
    }


def cell(stages: dict[str, bool], arm: str, round_: int, status: dict[str, Any], alive: bool) -> str:
    """One round of one arm as a bar: a box per stage."""
    names, done = list(stages), list(stages.values())
    boxes = []
    for index, name in enumerate(names):
        here = alive and status.get("round") == round_ and status.get("arm") in (arm, SHARED) and status.get("stage") == name
        share = 100 * (status.get("done") or 0) / (status.get("total") or 1)
        kind = "on" if done[index] else "doing" if here else "skip" if done[-1] else ""
        boxes.append(f'<i class="{kind}" style="--p:{share:.0f}%" title="round {round_} {arm} {name}: {WORD_OF[kind]}"></i>')
    return f'<div class="bar" style="--c:{look.look(arm).colour}">{"".join(boxes)}</div>'


def stage_grid(done: Done, config: RunConfig, status: dict[str, Any], alive: bool) -> str:
    """Arms x rounds; a box per stage."""
    rounds = range(config.rounds + 1)
    head = "<span></span>" + "".join(f'<span class="quiet num">{r}</span>' for r in rounds)
    rows = "".join(
        f"<span>{look.chip(arm)}</span>" + "".join(cell(done[arm, r], arm, r, status, alive) for r in rounds) for arm in config.arms
    )
    columns = f"max-content minmax(22px, .3fr) repeat({config.rounds}, minmax(46px, 1fr))"
    return look.scroll(f'<div class="stages" style="grid-template-columns:{columns}">{head}{rows}</div>')


def facts_of(run: Run, status: dict[str, Any], alive: bool) -> list[tuple[str, str]]:
    """What is worth a number."""
    manifest = run.manifest
    cpu = manifest.get("cpu")
    where = status.get("device") or manifest.get("device") or run.config.device
    memory = status.get("rss_bytes")
    place = f"{cpu.get('model')}, {cpu.get('cores')} cores" if isinstance(cpu, dict) else str(cpu or "")
    facts = [("device", f"{where} · {place}" if place else str(where))]
    if status.get("host"):
        facts.append(("node", str(status["host"])))
    if alive:
        facts.append(("memory", f"{memory / 1e9:.2f} GB" if isinstance(memory, int | float) else "–"))
        facts.append(("time left", clock(status.get("eta_s"))))
        started = status.get("stage_started")
        facts.append(("this stage since", clock(time.time() - started) if started else "–"))
    return facts


def now_line(status: dict[str, Any]) -> None:
    """The stage that is at work, with its own bar."""
    total, done = int(status.get("total") or 0), int(status.get("done") or 0)
    arm, stage = status.get("arm"), status.get("stage")
    if not stage:
        st.text("The worker is loading the model.")
        return
    share = min(1.0, done / total) if total else 0.0
    count = f"{done} of {total}" if total else "starting"
    st.progress(share, text=f"round {status.get('round')}, {'all arms' if arm == SHARED else arm}, {stage}: {count}")


def buttons(run: Run, now: str) -> None:
    """Stop or resume."""
    if run.recorded:
        st.caption("This run ships with the project: it can only be read.")
        return
    try:
        if now in ("queued", "running") and st.button("Stop", icon=":material/stop_circle:", key="stop"):
            launch.stop(run, wait=False)
            st.rerun(scope="app")
        if now in ("stopped", "failed", "lost") and st.button("Resume", icon=":material/play_circle:", type="primary", key="resume"):
            launch.resume(run)
            st.rerun(scope="app")
    except UserError as error:
        state.problem(str(error))


def controller_table(run: Run) -> str:
    """The newest state of every arm's feedback loop."""
    names = (
        "signal",
        "value",
        "setpoint",
        "error",
        "edge_share",
        "edit_temperature",
        "sampling_temperature",
        "changed",
        "picked_center",
        "picked_edge",
        "gated",
        "rejected",
    )
    newest = {arm: max((r for r in read.finished(run, arm, "select") if r > 0), default=0) for arm in run.config.arms}
    facts = {arm: read.controller(run, arm, round_) for arm, round_ in newest.items() if round_}
    if not facts:
        return '<p class="quiet">No round has selected its data yet.</p>'
    shown = [name for name in names if any(state.get(name) is not None for state in facts.values())]
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in ("round", *shown))
    rows = [
        f"<tr><td>{look.chip(arm)}</td><td>{newest[arm]}</td>{''.join(f'<td>{figure(state.get(name))}</td>' for name in shown)}</tr>"
        for arm, state in facts.items()
    ]
    return look.table(f"<th></th>{head}", rows)


def figure(value: Any) -> str:
    """A cell: a number in four digits, a word, or a dash."""
    return "–" if value is None else text.escaped(value) if isinstance(value, str) else f"{value:.4g}"


def curves(run: Run) -> None:
    """Four curves that grow in place."""
    table = read.metrics(run)
    sets = [name for name, path in run.config.data.tests.items() if path]
    if not table.height:
        state.empty("The first figures come with round 0", "As soon as it is evaluated, the curves start here.")
        return
    with st.grid(4, min_column_width=215, gap="small"):
        for name, real in CURVES:
            rows = table.filter((pl.col("metric") == name) & (pl.col("test_set") == (sets[0] if real and sets else "")))
            option = charts.live_lines(rows.drop_nulls("value"), name, run.config.arms, run.config.rounds)
            st.echarts_chart(option, key=f"live-{name}", height=210, alt=f"{name} over the rounds so far")


def event_lines(run: Run) -> list[str]:
    """Finished stages and notes as lines: a run in the foreground prints to its terminal, not to the log."""
    lines = []
    for event in run.events()[0]:
        if event.get("kind") == "span":
            lines.append(f"round {event['round']}  {event['arm']:<14} {event['stage']:<9} {event['seconds']:7.1f} s")
        elif event.get("kind") in ("note", "state"):
            lines.append(event.get("text") or ": ".join(filter(None, (event.get("state"), event.get("error")))))
    return lines


def say(run: Run, now: str, status: dict[str, Any]) -> None:
    """The state in a sentence, where it needs one."""
    if run.recorded or now not in WORDS:
        return
    if now == "queued" and status.get("waiting_for"):
        place = status.get("queue_position") or 1
        st.text(f"Queued behind run {status['waiting_for']}: one run at a time uses the device. Position {place} in the queue.")
    elif now in ("failed", "lost"):
        reason = f" Reason: {status['error']}" if status.get("error") else ""
        state.problem(WORDS[now] + reason)
    else:
        st.text(WORDS[now])


def tick(run: Run, was_live: bool, before: Done) -> None:
    """What moves between two stages. When one has landed, or the run has ended, the whole page is drawn anew."""
    now, status, done = launch.state(run), run.status(), finished_stages(run)
    alive = now in launch.ALIVE
    if (was_live and not alive) or done != before:
        st.rerun(scope="app")
    say(run, now, status)
    facts = "".join(
        f'<span><span class="quiet">{name}</span> &nbsp;<b class="num">{text.escaped(value)}</b></span>'
        for name, value in facts_of(run, status, alive)
    )
    look.show(f'<div class="chips">{facts}</div>')
    if alive:
        now_line(status)
    look.show(stage_grid(done, run.config, status, alive))
    look.show(
        f'<p class="quiet">A column is a round, a box a finished stage: {", ".join(stages_of(run))}. Round 0 is shared by all arms.</p>'
    )


def told(run: Run) -> None:
    """Rules that fired; the newest lines that the process printed, then what it told."""
    st.subheader("Rules", anchor=False)
    actions.section(run)
    st.subheader("Log", anchor=False)
    st.code("\n".join([*run.log_tail(12), *event_lines(run)[-12:]]) or "nothing yet", language=None, wrap_lines=True)


def page() -> None:
    """Draw the page."""
    run = state.need_run()
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        with st.container(width=900):
            state.heading("Watch", run)
        buttons(run, launch.state(run))
    live = read.live(run)
    every_s = 2.0 if live else None
    pace.timed(tick, every_s)(run, live, finished_stages(run))
    curves(run)
    st.subheader("Feedback loop", anchor=False)
    look.show(controller_table(run))
    pace.timed(told, every_s)(run)


state.run_page(page)
