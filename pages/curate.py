"""One step of DCES, or of another arm, on a pool of one's own: upload, look, choose, download. Each curation is a job of its own."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import streamlit as st

from dces_core import curation_jobs, launch, models, pool_file
from dces_core.arms import ARMS
from dces_core.curation_jobs import Job
from dces_core.errors import UserError
from dces_core.export import to_csv
from dces_core.ui import look, pace, pairs, state, text
from dces_core.ui.fetch import offer_model

NO_MODEL, NO_REFERENCE = "no model: nothing is edited", "no real texts"
SHIPPED = "the shipped everyday texts"
UPLOADED = "a file of your own"
USABLE = tuple(arm.name for arm in ARMS.values() if not arm.real and arm.select != "none")
SHOWN = ("id", "role", "cluster", "distance", "fate", "reason", "prompt", "text", "trained_text", "logprob")
FIRST_ROWS = 4
LEAD = (
    "Give a pool of texts that a model wrote, with the prompts; get back the N that an arm would train on, edited where you give a "
    "model. Keep state.json for the next round: the feedback loop goes on from there."
)
LIMITS = (
    "One curation is made at a time. It goes on if you close this tab; the newest 20 are kept. The uploads are deleted when it is done."
)
OVER = {
    "lost": "The process that curated is gone without a word (killed, or a restart). Curate again.",
    "stopped": "Cancelled.",
}
Upload = tuple[str, bytes]


# the pool ---------------------------------------------------------------------------------------------------------------


def uploaded(label: str, endings: tuple[str, ...], key: str, **more: Any) -> Upload | None:
    """An uploaded file: its name, of which only the ending counts, and its bytes."""
    found = st.file_uploader(label, type=[ending[1:] for ending in endings], key=key, **more)
    return (found.name, found.getvalue()) if found else None


def read(upload: Upload) -> pl.DataFrame:
    """The uploaded pool. Raises UserError, which calls it by no path of this machine."""
    name, body = upload
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"pool{Path(name).suffix.lower()}"
        path.write_bytes(body)
        try:
            return pool_file.read_pool(path)
        except UserError as error:
            raise UserError(str(error).replace(f"{folder}/", "")) from None


def draw_preview(pool: pl.DataFrame) -> None:
    """Counts, the columns that are known, the first rows."""
    known = pool_file.recognised(pool)
    with st.grid(3, min_column_width=130, gap="small"):
        st.metric("Rows", f"{pool.height:,}")
        st.metric("Prompts", f"{pool['prompt'].n_unique():,}")
        st.metric("Empty texts", f"{int((pool['text'].str.strip_chars() == '').sum()):,}")
    words = f"Columns: {', '.join(known)}."
    if "logprob" not in known:
        words += " No logprob: without a model, center and edge are told apart by distance alone, and no arm picks by perplexity."
    look.show(f'<p class="quiet">{text.escaped(words)}</p>')
    cells = []
    for prompt, body in pool.head(FIRST_ROWS).select("prompt", "text").iter_rows():
        cells += [f"<div>{text.mark(cut(prompt), False)}</div>", f"<div>{text.mark(cut(body))}</div>"]
    look.show(pairs.grid("minmax(160px, 1fr) minmax(220px, 2fr)", ["prompt", "text"], cells), key="preview")


def cut(words: str, most: int = 600) -> str:
    """The beginning of a long text."""
    return words if len(words) <= most else f"{words[:most]} …"


# what to do with it -----------------------------------------------------------------------------------------------------


def draw_form(pool: pl.DataFrame, upload: Upload) -> None:
    """Arm, N, model, reference, state, the button."""
    values, files = choices(pool), {"pool": upload}
    ready = True
    with st.container(horizontal=True, vertical_alignment="top", gap="large"):
        if values["reference"] == "upload":
            real = uploaded("Real texts", curation_jobs.UPLOADS["reference"], "reference", width=420)
            ready = real is not None
            files |= {"reference": real} if real else {}
        before = uploaded("state.json of the round before (not in the first)", (".json",), "before", width=420)
        files |= {"before": before} if before else {}
    if values["model"] == models.DEFAULT and not models.pulled():
        offer_model()
        ready = False
    at_work = curation_jobs.busy()
    if st.button("Curate", type="primary", icon=":material/filter_alt:", disabled=at_work is not None or not ready, key="curate"):
        launch.start(curation_jobs.create(curation_jobs.options_of({**values, "label": upload[0][:300]}), files))
        state.forget("curation")
        st.rerun()


def choices(pool: pl.DataFrame) -> dict[str, Any]:
    """The options of a curation."""
    references = {NO_REFERENCE: "", SHIPPED: "everyday", UPLOADED: "upload"}
    with st.grid(4, min_column_width=200, gap="small"):
        arm = st.selectbox("Arm", USABLE, index=USABLE.index("dces"), key="arm", help="The rule that chooses.")
        n = st.number_input("N: texts to choose", 1, pool.height, value=max(1, pool.height // 2), key="n")
        bare: Any = {"accept_new_options": True, "key": "model", "help": "M_0: edits, and judges edges. A name, a folder, or a hub id."}
        model = st.selectbox("Model", (NO_MODEL, models.DEFAULT), **bare)
        reference = st.selectbox(
            "Real texts", tuple(references), key="real", help="Set-points of the feedback loop, and the quality limit."
        )
    look.show(f'<p class="quiet">{look.chip(arm)} &nbsp;{text.escaped(ARMS[arm].title)}</p>')
    with st.expander("Encoder"):
        encoder = st.text_input("encoder.name", value="minilm", key="encoder", help="minilm (shipped), hash (no weights) or a folder.")
    return {
        "arm": arm, "n": int(n), "model": "" if model in (None, NO_MODEL) else str(model), "reference": references[reference],
        "encoder": encoder,
    }  # fmt: skip


# results ----------------------------------------------------------------------------------------------------------------


def pick_job(jobs: list[Job]) -> Job:
    """The newest curation, or an earlier one."""
    by_id = {job.id: job for job in jobs}
    key = state.linked("curation", list(by_id), jobs[0].id)
    if len(jobs) > 1:
        bare: Any = {"on_change": state.changed, "args": ("curation",), "width": 620}
        st.selectbox("Curation", list(by_id), key=key, format_func=lambda job_id: words_of(by_id[job_id]), **bare)
    return by_id[str(st.session_state[key])]


def words_of(job: Job) -> str:
    """A curation in a list."""
    when = str(job.facts.get("asked", ""))[:16].replace("T", " ")
    given = job.facts.get("options")
    asked = given if isinstance(given, dict) else {}
    return f"{when}  {asked.get('arm', '')}, {asked.get('n', '')} of {str(asked.get('label', ''))[:60]}"


def draw_job(job: Job, was_alive: bool) -> None:
    """How far the curation is, or what came of it."""
    now, status = launch.state(job), job.status()
    if was_alive and now not in launch.ALIVE:
        st.rerun(scope="app")
    look.show(f'<p class="quiet">{text.escaped(words_of(job))}</p>')
    if now in launch.ALIVE:
        draw_progress(job, now, status)
        return
    if now in OVER or now == "failed":
        state.problem(OVER.get(now) or str(status.get("error")))
    report = job.report
    if report:
        draw_report(report)
        draw_table(job)
    if st.button("Delete this curation", icon=":material/delete:", key="curation-delete"):
        curation_jobs.forget(job)
        state.forget("curation")
        st.rerun(scope="app")


def draw_progress(job: Job, now: str, status: dict[str, Any]) -> None:
    """The bar, or whom the curation waits for."""
    with st.container(horizontal=True, vertical_alignment="center"):
        total = int(status.get("total") or 0)
        if now == "queued" and status.get("waiting_for"):
            st.text(f"Queued behind {status['waiting_for']}: it begins when the device is free.")
        elif now == "stopping" or not total:
            st.text("Cancelling." if now == "stopping" else "Loading what it needs.")
        else:
            st.progress(min(1.0, int(status.get("done") or 0) / total), text="Embedding, selecting, editing")
        if now != "stopping" and st.button("Cancel", icon=":material/stop_circle:", key="curation-cancel"):
            launch.stop(job, grace_s=5.0, wait=False)
            st.rerun(scope="app")


def draw_report(report: dict[str, Any]) -> None:
    """Counts, the feedback loop, and what was not possible."""
    number = lambda name: report.get(name) if isinstance(report.get(name), int | float) else None  # noqa: E731
    share, temperature = number("edge_share"), number("edit_temperature")
    with st.grid(5, min_column_width=120, gap="small"):
        st.metric("Chosen", f"{number('n') or 0:,}", help=f"Of {number('pool') or 0:,} rows, in round {report.get('round')}.")
        st.metric("Center", f"{number('picked_center') or 0:,}")
        st.metric("Edge", f"{number('picked_edge') or 0:,}")
        st.metric("Edge share", "–" if share is None else f"{share:.0%}", help="What the feedback loop asked for.")
        st.metric("Editing temperature", "–" if temperature is None else f"{temperature:.2f}")
    lines = [f"<b>{text.escaped(str(name))}</b>: {text.escaped(str(reason))}" for name, reason in report["undefined"].items()]
    notes = report.get("notes")
    lines += [text.escaped(str(note)) for note in notes] if isinstance(notes, list) else []
    if lines:
        look.show(f'<p class="quiet"><b>Not possible, and notes</b><br>{"<br>".join(lines)}</p>')


def draw_table(job: Job) -> None:
    """Every row with its fate, and the files."""
    table = job.table
    with st.container(horizontal=True):
        for name, kind in (("selected.jsonl", "application/jsonl"), ("state.json", "application/json")):
            st.download_button(name, job.result(name), name, kind, icon=":material/download:", key=f"get-{name}")
        if table.width:
            st.download_button("Every row as CSV", to_csv(table), "table.csv", "text/csv", icon=":material/download:", key="get-table")
    fates = ["picked", "over quota", "rejected"]
    shown = st.pills("Rows", fates, selection_mode="multi", default=fates, key="fates")
    if table.width:
        frame = table.filter(pl.col("fate").is_in(list(shown))).select(name for name in SHOWN if name in table.columns)
        numbers = {name: st.column_config.NumberColumn(name, format="%.3f") for name in ("distance", "logprob")}
        st.dataframe(frame, hide_index=True, height=420, column_config=numbers, placeholder="–", key="curated")


def page() -> None:
    """Draw the page."""
    state.heading("Curate")
    look.show(f'<p class="lead">{LEAD}</p>')
    upload = uploaded("Pool: JSONL, CSV or Parquet with prompt and text; logprob and round if there are any", pool_file.FORMATS, "pool")
    if upload:
        try:
            pool = read(upload)
            draw_preview(pool)
            draw_form(pool, upload)
        except UserError as error:
            state.problem(str(error))
    st.caption(LIMITS)
    jobs = curation_jobs.jobs()
    if jobs:
        st.subheader("Results", anchor=False)
        job = pick_job(jobs)
        alive = launch.state(job) in launch.ALIVE
        pace.part(draw_job, 1.0 if alive else None)(job, alive)


state.run_page(page)
