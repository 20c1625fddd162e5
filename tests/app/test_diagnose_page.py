"""The page Diagnose in every state; diagnoses are made in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from make_run import make_run
from page_kit import shown
from streamlit.testing.v1 import AppTest
from test_diagnose import HOSTILE, rounds_file

from dces_core import diagnosis_jobs, launch, processes, worker
from dces_core.diagnose import Options
from dces_core.diagnosis_jobs import Job
from dces_core.store import Run

Open = Callable[..., AppTest]
HASH = Options(encoder="hash", sample=40)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """What the page starts; no process is made."""
    found: list[Run] = []
    monkeypatch.setattr(launch, "start", lambda job: found.append(job) or job)
    return found


def job_of(folder: Path) -> Job:
    return diagnosis_jobs.create_of_files({"own.jsonl": rounds_file(folder, rounds=5, texts=20).read_bytes()}, {}, HASH)


def start(app: AppTest) -> AppTest:
    next(button for button in app.button if button.form_id == "diagnose").click().run()
    assert not app.exception, [e.value for e in app.exception]
    return app


def test_a_run_from_the_button_to_the_result(runs: Path, open_page: Open, started: list[Run]) -> None:
    run = make_run(runs)
    app = open_page("diagnose", run=run.id, what="run", arm="dces")
    app.selectbox(key="encoder").select("hash")
    start(app)
    (job,) = diagnosis_jobs.jobs()
    assert [one.path for one in started] == [job.path] and (job.facts["run"], job.facts["arm"]) == (run.id, "dces")
    assert "Starting." in shown(app)
    assert next(button for button in app.button if button.form_id == "diagnose").disabled
    assert worker.run_foreground(job) == "done", job.status().get("error")
    words = shown(open_page("diagnose"))
    for title in ("Collapse verdicts", "Susceptibility", "Round by round", "Clusters on a map", "Most degenerate texts"):
        assert title in words


def test_files_are_needed(runs: Path, open_page: Open, started: list[Run]) -> None:
    app = start(open_page("diagnose"))
    assert "no file was given" in shown(app) and not started and not diagnosis_jobs.jobs()


def test_wrong_options_are_a_sentence(runs: Path, open_page: Open, started: list[Run]) -> None:
    run = make_run(runs)
    app = open_page("diagnose", run=run.id, what="run")
    app.selectbox(key="encoder").select("hash")
    app.text_input(key="model").set_value("x" * 10)
    start(app)
    assert len(started) == 1 and diagnosis_jobs.jobs()[0].options.model == "x" * 10


def test_a_finished_job_can_be_linked_and_texts_are_escaped(runs: Path, tmp_path: Path, open_page: Open) -> None:
    first = job_of(tmp_path)
    assert worker.run_foreground(first) == "done"
    second = job_of(tmp_path)
    assert worker.run_foreground(second) == "done"
    app = open_page("diagnose", diagnosis=first.id, round="4")
    assert app.query_params["diagnosis"] in (first.id, [first.id]) and app.selectbox(key="pick-diagnosis").value == first.id
    words = shown(app)
    assert "Most degenerate texts of round 4" in words and "<script>" not in words and "&lt;script&gt;" in words
    assert not app.markdown and HOSTILE not in words
    newest = open_page("diagnose")
    assert newest.query_params["diagnosis"] in (second.id, [second.id])


@pytest.mark.parametrize("value", ["../../etc/passwd", "<script>alert(2)", "diagnosis-gone"])
def test_an_address_that_names_nothing(runs: Path, tmp_path: Path, open_page: Open, value: str) -> None:
    assert worker.run_foreground(job_of(tmp_path)) == "done"
    words = shown(open_page("diagnose", diagnosis=value, round="x", what="y", arm="z"))
    assert "is not kept here any more" in words and "<script>" not in words


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"state": "failed", "error": "one round only <b>"}, "one round only &lt;b&gt;"),
        ({"state": "stopped"}, "Cancelled."),
        ({"state": "running", "pid": 2**22 + 1, "pid_started": 0.0}, "gone without a word"),
        ({"state": "queued", "waiting_for": "other-1"}, "Queued behind other-1"),
        ({"state": "done"}, "Delete"),
    ],
)
def test_every_state(runs: Path, tmp_path: Path, open_page: Open, status: dict[str, Any], words: str) -> None:
    job = job_of(tmp_path)
    alive = processes.identity() if status["state"] == "queued" else {}
    job.write_status({**job.status(), **alive, **status})
    app = open_page("diagnose")
    keys = {button.key for button in app.button}
    assert words in shown(app) or (status["state"] == "done" and "diagnose-delete" in keys)
    assert ("diagnose-cancel" in keys) == (status["state"] == "queued") != ("diagnose-delete" in keys)


def test_progress_cancel_and_delete(runs: Path, tmp_path: Path, open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(tmp_path)
    at = {"state": "running", **processes.identity(), "arm": "own", "round": 3, "stage": "texts", "done": 1, "total": 4}
    job.write_status({**job.status(), **at})
    app = open_page("diagnose")
    assert [bar.proto.value for bar in app.get("progress")] == [25]
    asked: list[Run] = []
    monkeypatch.setattr(launch, "stop", lambda one, grace_s, wait: asked.append(one))
    app.button(key="diagnose-cancel").click().run()
    assert [one.path for one in asked] == [job.path]
    job.write_status({**job.status(), "state": "stopped"})
    app.run()
    app.button(key="diagnose-delete").click().run()
    assert diagnosis_jobs.jobs() == []
