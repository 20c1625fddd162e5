"""The texts of one's own rounds, or of a run, diagnosed. Each diagnosis is a job with a process of its own."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from dces_core import diagnosis_jobs, launch
from dces_core.diagnose import MOST_SAMPLED, Diagnosis, Options
from dces_core.diagnosis_jobs import Job
from dces_core.errors import UserError
from dces_core.export import to_csv
from dces_core.own_rounds import FORMATS
from dces_core.store import Run
from dces_core.ui import charts, diagnosis, look, pace, state, text
from dces_core.ui.sections import Section, quiet

LEAD = (
    '<p class="lead">Give it what your model wrote in each round, and it says whether the texts collapse: diversity, repetition, loops, '
    "what survives, verdicts with their definitions, the worst texts, and what the next rounds may bring.</p>"
)
FORM = (
    "JSONL, CSV or Parquet with the columns round and text; or several files, one per round, with its number at the end of the name. "
    "At most 20 MB a file here; larger ones in a terminal: dces diagnose FILES --report report.html"
)
LIMITS = "One diagnosis is made at a time. It goes on if you close this tab; the newest 20 are kept, the uploaded texts are not."
SOURCES = ("files", "run")
ENCODERS = {"minilm": "minilm, knows meanings", "hash": "hash, knows words only, quick"}
OVER = {
    "lost": "The process that worked on it is gone without a word (killed, or a restart). Start it again.",
    "stopped": "Cancelled.",
}


# what is diagnosed ------------------------------------------------------------------------------------------------------


def pick_source() -> str:
    """Files, or the run of the sidebar."""
    key = state.linked("what", SOURCES, SOURCES[0])
    words = {"files": "Your files", "run": "The run in the sidebar"}
    bare: Any = {"label_visibility": "collapsed", "required": True}
    st.segmented_control("What", SOURCES, key=key, format_func=words.__getitem__, on_change=state.changed, args=("what",), **bare)
    return str(st.session_state[key])


def pick_arm(run: Run) -> str:
    """An arm of the run."""
    key = state.linked("arm", run.config.arms, run.config.arms[0])
    st.selectbox("Arm", run.config.arms, key=key, on_change=state.changed, args=("arm",), width=220)
    return str(st.session_state[key])


def draw_form(source: str, busy: Job | None) -> None:
    """Texts, settings, the button."""
    run = state.need_run() if source == "run" else None
    arm = pick_arm(run) if run else ""
    with st.form("diagnose", border=True):
        files, reference = ([], None) if run else uploads()
        if run:
            look.show(quiet("What the models of this arm wrote for the evaluation prompts, beside the real references of these prompts."))
        values = settings(bool(run))
        bare: Any = {"type": "primary", "icon": ":material/stethoscope:", "disabled": busy is not None, "key": "diagnose-start"}
        pressed = st.form_submit_button("Diagnose", **bare)
    if not pressed:
        return
    try:
        options = diagnosis_jobs.options_of(values)
        if run:
            job = diagnosis_jobs.create_of_run(run, arm, options)
        else:
            if not files:
                raise UserError("no file was given; choose the texts of your rounds.")
            given = {file.name: file.getvalue() for file in files}
            job = diagnosis_jobs.create_of_files(given, {reference.name: reference.getvalue()} if reference else {}, options)
        launch.start(job)
    except UserError as error:
        state.problem(str(error))
        return
    state.forget("diagnosis", "round")
    st.rerun()


def uploads() -> tuple[list[Any], Any]:
    """The rounds' files and, if there is one, the real reference."""
    kinds = [kind.removeprefix(".") for kind in FORMATS]
    with st.grid(2, min_column_width=300, gap="medium"):
        files = st.file_uploader("Texts by round", kinds, accept_multiple_files=True, key="texts", help=FORM)
        words = "Real text to compare with: columns text, or prompt and reference. Survival of words and the distance to real text need it."
        reference = st.file_uploader("Real reference (optional)", [*kinds, "txt"], key="reference", help=words)
    look.show(quiet(FORM))
    return list(files or []), reference


def settings(of_run: bool) -> dict[str, Any]:
    """Options of the diagnosis."""
    own = Options()
    with st.grid(3, min_column_width=170, gap="small"):
        values: dict[str, Any] = {
            "encoder": st.selectbox("Encoder", list(ENCODERS), format_func=ENCODERS.__getitem__, key="encoder"),
            "sample": st.number_input("Embedded texts a round", 10, MOST_SAMPLED, own.sample, 500, key="sample", help="A seeded draw."),
            "map": st.selectbox("Map", ["pca", "umap", "off"], key="map", help="pca takes seconds; umap shows neighbours, takes a minute."),
        }
        if not of_run:
            values["round_column"] = st.text_input("Column of the round", own.round_column, key="round-column", max_chars=200)
            values["text_column"] = st.text_input("Column of the text", own.text_column, key="text-column", max_chars=200)
        words = "Optional: a hub id or folder. Its perplexity of each round's texts falls as they get typical."
        values["model"] = st.text_input("Model to score with", "", key="model", placeholder="none", max_chars=500, help=words)
    return {name: value.strip() if isinstance(value, str) else value for name, value in values.items()}


# a diagnosis ------------------------------------------------------------------------------------------------------------


def pick_job(jobs: list[Job]) -> Job:
    """The newest diagnosis, or an earlier one."""
    by_id = {job.id: job for job in jobs}
    words = {job.id: f"{str(job.facts.get('asked', ''))[:16].replace('T', ' ')}  {job.label[:70]}" for job in jobs}
    wanted = state.asked("diagnosis")
    if wanted is not None and wanted not in by_id:
        state.problem(f"diagnosis = {wanted[:80]!r} is not kept here any more; the newest one is shown.")
    key = state.linked("diagnosis", list(by_id), jobs[0].id)
    if len(jobs) > 1:
        bare: Any = {"on_change": state.changed, "args": ("diagnosis",), "width": 620}
        st.selectbox("Diagnosis", list(by_id), key=key, format_func=lambda job_id: words[job_id], **bare)
    state.put("diagnosis", str(st.session_state[key]))  # every diagnosis can be linked to
    return by_id[str(st.session_state[key])]


def draw_progress(job: Job) -> None:
    """How far it is; looked at every second."""
    now = launch.state(job)
    if now not in launch.ALIVE:
        st.rerun(scope="app")
    status = job.status()
    behind = status.get("waiting_for")
    with st.container(horizontal=True, vertical_alignment="center"):
        if now == "queued" and behind:
            st.text(f"Queued behind {behind}: it begins when the device is free.")
        elif now == "stopping":
            st.text("Cancelling.")
        elif now == "queued" or not status.get("stage"):
            st.text("Starting.")
        else:
            total = int(status.get("total") or 0)
            share = min(1.0, int(status.get("done") or 0) / total) if total else 0.0
            where = f"Round {status.get('round')}: " if status.get("arm") else ""
            st.progress(share, text=f"{where}{status.get('stage')}")
        if now != "stopping" and st.button("Cancel", icon=":material/stop_circle:", key="diagnose-cancel"):
            launch.stop(job, grace_s=5.0, wait=False)
            st.rerun(scope="app")


def draw_job(job: Job) -> None:
    """A diagnosis: its progress, why there is none, or what it says."""
    look.show(f'<p class="quiet"><b>{text.escaped(job.label)}</b></p>')
    now = launch.state(job)
    if now in launch.ALIVE:
        pace.part(draw_progress, 1.0)(job)
        return
    if now == "failed":
        state.problem(str(job.status().get("error")))
    elif now in OVER:
        state.problem(OVER[now])
    found = job.result if now == "done" else None
    if found:
        draw_result(job, found)
    if st.button("Delete this diagnosis", icon=":material/delete:", key="diagnose-delete"):
        diagnosis_jobs.forget(job)
        state.forget("diagnosis", "round")
        st.rerun()


def draw_result(job: Job, found: Diagnosis) -> None:
    """Everything that it says, and what can be taken away."""
    look.show(quiet(diagnosis.extent(found)))
    draw_downloads(job, found)
    for section in (diagnosis.verdicts(found), diagnosis.coming(found), diagnosis.rounds(found)):
        draw(section)
    key = state.linked("round", found.rounds, found.rounds[-1], state.clamp(found.rounds))
    st.select_slider("Round of the map and the examples", found.rounds, key=key, on_change=state.changed, args=("round",), width=420)
    round_ = int(st.session_state[key])
    for section in (diagnosis.clusters(found, round_), diagnosis.examples(found, round_)):
        draw(section)
    with st.expander("All metrics, and those that are not there"):
        draw(diagnosis.figures(found))


def draw(section: Section) -> None:
    """A section: what it asks, its charts, its table."""
    st.subheader(section.title, anchor=False)
    look.show(quiet(section.said))
    if section.charts:
        with st.grid(3 if len(section.charts) > 1 else 1, min_column_width=280, gap="medium"):
            for chart in section.charts:
                charts.keep_zoom(chart.figure, "diagnose", chart.key)
                st.plotly_chart(chart.figure, key=f"diagnose-{chart.key}", config=charts.config(f"diagnosis-{chart.key}"), alt=chart.alt)
    if section.html:
        look.show(section.html)


def draw_downloads(job: Job, found: Diagnosis) -> None:
    """The report as HTML, everything as JSON, the metrics as CSV."""
    report = lambda: diagnosis.report_of(found).encode()  # noqa: E731
    whole = lambda: json.dumps(found.as_json(), ensure_ascii=False, indent=1, allow_nan=False).encode()  # noqa: E731
    rows = lambda: to_csv(found.tables["metrics"]).encode()  # noqa: E731
    with st.container(horizontal=True, gap="small"):
        icon = ":material/download:"
        st.download_button("Report", report, f"{job.id}.html", "text/html", icon=":material/description:", type="primary", key="report")
        st.download_button("JSON", whole, f"{job.id}.json", "application/json", icon=icon, key="json")
        st.download_button("Metrics as CSV", rows, f"{job.id}.csv", "text/csv", icon=icon, key="csv")


def page() -> None:
    """Draw the page."""
    state.heading("Diagnose")
    look.show(LEAD)
    jobs = diagnosis_jobs.jobs()
    busy = next((job for job in jobs if launch.state(job) in launch.ALIVE), None)
    draw_form(pick_source(), busy)
    st.caption(LIMITS)
    if jobs:
        st.subheader("Diagnoses", anchor=False)
        draw_job(pick_job(jobs))


state.run_page(page)
