"""All runs: open, stop, resume, delete."""

from __future__ import annotations

from typing import Any

import streamlit as st

from dces_core import launch, store
from dces_core.errors import UserError
from dces_core.store import Run
from dces_core.ui import read, state


def row_of(run: Run) -> dict[str, Any]:
    """One line of the table; an unreadable run says so."""
    row: dict[str, Any] = {"run": run.id, "state": "recorded" if run.recorded else launch.state(run), "MB": run.bytes / 1e6}
    try:
        config = run.config
    except UserError as error:
        return {**row, "state": "unreadable", "note": str(error)}
    done = min((max(read.finished(run, arm), default=-1) for arm in config.arms), default=-1)
    share = (done + 1) / (config.rounds + 1)
    return {
        **row,
        "progress": share,
        "rounds": config.rounds,
        "arms": ", ".join(config.arms),
        "model": config.model,
        "split": config.eval.split,
        "created": str(run.manifest.get("created", ""))[:16].replace("T", " "),
        "note": config.note,
    }


@st.dialog("Delete this run?")
def confirm(run: Run) -> None:
    """Ask before anything is lost."""
    st.text(f"{run.id}: {run.bytes / 1e6:.1f} MB. Its rounds, texts and weights are removed for good.")
    with st.container(horizontal=True):
        if st.button("Delete for good", type="primary", icon=":material/delete_forever:", key="delete-yes"):
            try:
                launch.delete(run)
            except UserError as error:
                state.problem(str(error))
                return
            if state.asked("run") == run.id:
                state.forget("run", "round", "vs", "prompt")
            st.rerun()
        if st.button("Keep it", key="delete-no"):
            st.rerun()


def actions(run: Run) -> None:
    """What can be done with the selected run."""
    now = launch.state(run)
    mine = not run.recorded
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if st.button("Open", icon=":material/open_in_new:", type="primary", key="open"):
            state.forget("round", "vs", "prompt", "set")
            state.put("run", run.id)
            st.switch_page("pages/watch.py", query_params={"run": run.id})
        stoppable = mine and now in ("queued", "running")
        if st.button("Stop", icon=":material/stop_circle:", disabled=not stoppable, key="stop"):
            launch.stop(run, wait=False)
            st.rerun()
        resumable = mine and now in ("stopped", "failed", "lost")
        if st.button("Resume", icon=":material/play_circle:", disabled=not resumable, key="resume"):
            launch.resume(run)
            st.rerun()
        if st.button("Delete", icon=":material/delete:", disabled=not mine or now in launch.ALIVE, key="delete"):
            confirm(run)
        st.text(run.id + ("  (ships with the project: read only)" if run.recorded else ""))


def page() -> None:
    """Draw the page."""
    state.heading("Runs")
    runs = store.discover()
    if not runs:
        state.empty("No runs yet", "A launched run appears here and stays until you delete it.")
        st.page_link("pages/launch.py", label="Launch a run", icon=":material/rocket_launch:")
        return
    columns = {
        "progress": st.column_config.ProgressColumn("evaluated", format="percent", min_value=0, max_value=1, width="small"),
        "MB": st.column_config.NumberColumn("MB", format="%.1f", width="small"),
        "run": st.column_config.TextColumn(width="medium"),
        "note": st.column_config.TextColumn(width="large"),
    }
    order = ("run", "state", "progress", "rounds", "arms", "model", "split", "MB", "created", "note")
    ids = [run.id for run in runs]
    asked = state.asked("run")
    first = ids.index(asked) if asked in ids else 0
    event = st.dataframe(
        [row_of(run) for run in runs],
        column_order=order,
        column_config=columns,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row-required",
        selection_default={"selection": {"rows": [first]}},
        key="runs",
    )
    picked = event["selection"]["rows"]
    actions(runs[picked[0] if picked and picked[0] < len(runs) else first])
    st.caption("Select a row to act on it. A run is one directory; runs that ship with the project are read only.")


state.run_page(page)
