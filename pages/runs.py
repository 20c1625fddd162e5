"""All runs: open, name and tag them, stop, resume, launch again, continue, fork, delete."""

from __future__ import annotations

from typing import Any

import streamlit as st

from dces_core import branch, labels, launch, store
from dces_core.errors import UserError
from dces_core.store import Run
from dces_core.ui import look, read, state
from dces_core.ui.text import escaped

ORDER = ("run", "label", "tags", "state", "queue", "progress", "rounds", "arms", "MB", "created", "model", "split", "note")
MOST_MORE = 1000


def row_of(run: Run) -> dict[str, Any]:
    """One line of the table; an unreadable run says so."""
    given = labels.read(run)
    row: dict[str, Any] = {"run": run.id, "state": "recorded" if run.recorded else launch.state(run), "MB": run.bytes / 1e6}
    row |= {"label": given.label, "tags": ", ".join(given.tags), "queue": None if run.recorded else launch.queue_position(run)}
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
        "note": labels.note_of(run),
    }


# dialogs ----------------------------------------------------------------------------------------------------------------


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


@st.dialog("Label, note and tags")
def describe(run: Run) -> None:
    """Change what people call the run; its directory and its settings stay as they are."""
    given = labels.read(run)
    with st.form("describe", border=False):
        label = st.text_input("Label", value=given.label, max_chars=labels.LABEL_LENGTH, key="label")
        note = st.text_area("Note", value=_note(run), max_chars=labels.NOTE_LENGTH, height=110, key="note")
        known = sorted({*labels.all_tags(store.discover()), *given.tags})
        words = "Letters, digits, dot, underscore and hyphen. Type a new one, or choose one that another run has."
        chosen = st.multiselect("Tags", known, default=list(given.tags), accept_new_options=True, help=words, key="tags")
        saved = st.form_submit_button("Save", type="primary", key="describe-save")
    if saved:
        try:
            labels.set_tags(run, chosen)
            labels.rename(run, label)
            if note != _note(run):
                labels.set_note(run, note)
        except UserError as error:
            state.problem(str(error))
            return
        st.rerun()


@st.dialog("Continue with more rounds")
def further(run: Run) -> None:
    """How many rounds, and what becomes of the finished ones."""
    last = run.config.rounds
    more = int(st.number_input("Further rounds", 1, MOST_MORE, value=min(last, 5), key="more"))
    st.text(
        f"A new run of {last + more} rounds takes rounds 0 to {last} over from {run.id} and does the others. Its figures are those of "
        "a run that was launched with so many rounds. The finished run stays as it is; what both share lies on the disk once."
    )
    again = branch.trains_again(run, last, run.config.arms)
    if again:
        st.text(f"The weights of round {last} were deleted for {', '.join(again)}: its rounds are trained again first.")
    if st.button("Continue", type="primary", icon=":material/fast_forward:", key="continue-yes"):
        try:
            with st.spinner("Checking and taking over the finished stages"):
                made = branch.continue_run(run, more)
        except UserError as error:
            state.problem(str(error))
            return
        watch(launch.start(made))


def _note(run: Run) -> str:
    try:
        return labels.note_of(run)
    except UserError:  # unreadable settings do not keep anybody from a label
        return labels.read(run).note or ""


# actions ----------------------------------------------------------------------------------------------------------------


def watch(run: Run) -> None:
    """Go to the run."""
    state.forget("round", "vs", "prompt", "set")
    state.put("run", run.id)
    st.switch_page("pages/watch.py", query_params={"run": run.id})


def actions(run: Run, readable: bool) -> None:
    """What can be done with the selected run."""
    now = launch.state(run)
    mine = not run.recorded
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if st.button("Open", icon=":material/open_in_new:", type="primary", key="open"):
            watch(run)
        stoppable = mine and now in ("queued", "running")
        if st.button("Stop", icon=":material/stop_circle:", disabled=not stoppable, key="stop"):
            launch.stop(run, wait=False)
            st.rerun()
        resumable = mine and readable and now in ("stopped", "failed", "lost")
        if st.button("Resume", icon=":material/play_circle:", disabled=not resumable, key="resume"):
            launch.resume(run)
            st.rerun()
        begin(run, readable and mine, now, readable)
        if st.button("Label and tags", icon=":material/sell:", disabled=not mine, key="describe"):
            describe(run)
        if st.button("Delete", icon=":material/delete:", disabled=not mine or now in launch.ALIVE, key="delete"):
            confirm(run)


def begin(run: Run, mine: bool, now: str, readable: bool) -> None:
    """The three ways from this run to a new one."""
    words = "Opens Launch with these settings in the form."
    if st.button("Launch again", icon=":material/replay:", disabled=not readable, help=words, key="again"):
        st.switch_page("pages/launch.py", query_params={"from": run.id})
    words = "A finished run with more rounds, as a new run that takes the finished ones over."
    if st.button("Continue", icon=":material/fast_forward:", disabled=not mine or now != "done", help=words, key="continue"):
        further(run)
    rounds = branch.forkable(run) if mine else []
    words = "A new run that takes rounds 0 to k over and goes on with other settings."
    if st.button("Fork", icon=":material/fork_right:", disabled=not rounds, help=words, key="fork"):
        st.switch_page("pages/launch.py", query_params={"from": run.id, "fork": str(rounds[-1])})


def describe_selected(run: Run) -> None:
    """Name, note and where the run comes from."""
    given = labels.read(run)
    bits = [run.id, given.label, "ships with the project: read only" if run.recorded else ""]
    st.text("  ·  ".join(filter(None, bits)))
    reason = run.status().get("error")
    if reason and launch.state(run) == "failed":
        st.text(f"Failed: {reason}")
    note = _note(run)
    if note:
        look.show(f'<p class="quiet" style="white-space:pre-wrap;max-width:60rem">{escaped(note)}</p>')
    lineage = branch.lineage(run)
    if lineage:
        look.show(f'<p class="quiet">{escaped(lineage)}</p>')


def by_tag(runs: list[Run]) -> list[Run]:
    """The runs that have every chosen tag; all of them while none is chosen. `tag` of the address bar, separated by commas."""
    known = labels.all_tags(runs)
    if not known:
        return runs
    text = state.asked("tag")
    st.session_state["pick-tag"] = [name for name in dict.fromkeys((text or "").split(",")) if name in known]
    st.multiselect("Only with these tags", known, key="pick-tag", on_change=_tags_changed, width=460, placeholder="All runs")
    wanted = set(st.session_state["pick-tag"])
    return [run for run in runs if wanted <= set(labels.read(run).tags)]


def _tags_changed() -> None:
    chosen = st.session_state["pick-tag"]
    if chosen:
        state.put("tag", ",".join(chosen))
    else:
        state.forget("tag")


def table(runs: list[Run], rows: list[dict[str, Any]]) -> int:
    """Draw the runs; the selected row, that of the address bar at first."""
    columns = {
        "progress": st.column_config.ProgressColumn("evaluated", format="percent", min_value=0, max_value=1, width="small"),
        "MB": st.column_config.NumberColumn("MB", format="%.1f", width="small"),
        "rounds": st.column_config.NumberColumn(width="small"),
        "queue": st.column_config.NumberColumn(width="small", help="Place in the queue of its device; 1 is next."),
        "note": st.column_config.TextColumn(width="large"),
    }
    ids = [run.id for run in runs]
    asked = state.asked("run")
    first = ids.index(asked) if asked in ids else 0
    used = [name for name in ORDER if name not in ("label", "tags", "queue") or any(row[name] for row in rows)]
    event = st.dataframe(
        rows,
        column_order=used,
        column_config=columns,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row-required",
        selection_default={"selection": {"rows": [first]}},
        key="runs",
    )
    picked = event["selection"]["rows"]
    return int(picked[0]) if picked and picked[0] < len(runs) else first


def page() -> None:
    """Draw the page."""
    state.heading("Runs")
    every = store.discover()
    if not every:
        state.empty("No runs yet", "A launched run appears here and stays until you delete it.")
        st.page_link("pages/launch.py", label="Launch a run", icon=":material/rocket_launch:")
        return
    runs = by_tag(every)
    if not runs:
        state.empty("No run has all of these tags", "Take one of them away above.")
        return
    rows = [row_of(run) for run in runs]
    row = table(runs, rows)
    actions(runs[row], rows[row]["state"] != "unreadable")
    describe_selected(runs[row])
    used = sum(row["MB"] for run, row in zip(runs, rows, strict=True) if not run.recorded)
    st.caption(f"Your runs above take {used:,.1f} MB. `dces gc` says what of it can go.")
    st.caption("Select a row to act on it. A run is one directory; runs that ship with the project are read only.")


state.run_page(page)
