"""The page Curate in every state; curations are made in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from make_run import HOSTILE
from page_kit import shown
from streamlit.testing.v1 import AppTest

from dces_core import curation_jobs, launch, processes, worker
from dces_core.curation_jobs import Job
from dces_core.errors import UserError
from dces_core.store import Run
from dces_core.ui.text import escaped

Open = Callable[..., AppTest]


def pool(count: int = 20, **more: Any) -> bytes:
    rows = [
        {"prompt": f"Say {i}.", "text": f"A thing of {i % 5} and {i} more words stands here.", "logprob": -1.0, **more}
        for i in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def options(**changes: Any) -> curation_jobs.Options:
    return curation_jobs.options_of({"n": 8, "encoder": "hash", "label": "mine <b>.jsonl", **changes})


def done(job: Job) -> Job:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "device_lock", lambda device: job.path.parent / f"{device}.lock")
        worker.run_foreground(job)
    return job


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    found: list[Run] = []
    monkeypatch.setattr(launch, "start", lambda job: found.append(job) or job)
    return found


def test_from_the_upload_to_the_files(runs: Path, open_page: Open, started: list[Run]) -> None:
    app = open_page("curate")
    assert "Give a pool of texts" in shown(app) and "Results" not in shown(app)
    app.file_uploader(key="pool").set_value(("mine.jsonl", pool(), "application/jsonl")).run()
    assert not app.exception and "Columns: prompt, text, logprob." in shown(app)
    app.number_input(key="n").set_value(7)
    app.text_input(key="encoder").set_value("hash")
    app.button(key="curate").click().run()
    assert not app.exception, [e.value for e in app.exception]
    (job,) = curation_jobs.jobs()
    assert [one.path for one in started] == [job.path]
    assert (job.options.n, job.options.arm, job.options.model, job.options.label) == (7, "dces", "", "mine.jsonl")
    assert launch.state(done(job)) == "done"
    assert sorted(path.name for path in job.path.glob("*.*") if "lock" not in path.name) == [
        "curate.json", "events.jsonl", "report.json", "selected.jsonl", "state.json", "status.json", "table.parquet",
    ]  # fmt: skip
    assert job.result("selected.jsonl").count(b"\n") == 7 and json.loads(job.result("state.json"))["round"] == 1
    app.run()
    words = shown(app)
    assert "no model was given" in words and len(app.dataframe[0].value) == 20
    assert {metric.label: metric.value for metric in app.metric}["Chosen"] == "7"
    app.button(key="curation-delete").click().run()
    assert curation_jobs.jobs() == []


def test_hostile_texts_and_names_are_inert(runs: Path, open_page: Open) -> None:
    rows = b"".join(json.dumps({"prompt": text, "text": text}).encode() + b"\n" for text in HOSTILE)
    done(curation_jobs.create(options(n=5), {"pool": ("../../<script>.jsonl", rows)}))
    app = open_page("curate")
    app.file_uploader(key="pool").set_value(("a.jsonl", rows, "application/jsonl")).run()
    words = shown(app)
    assert not app.markdown and "<script>" not in words and "<b>.jsonl" not in words
    for text in HOSTILE[2:4]:
        assert escaped(text) in words


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [("a.jsonl", b'{"prompt": "x"}', "has no column text"), ("a.jsonl", b"", "is empty"), ("a.parquet", b"x" * 40, "cannot be parsed")],
)
def test_a_pool_that_cannot_be_used(runs: Path, open_page: Open, name: str, body: bytes, words: str) -> None:
    app = open_page("curate")
    app.file_uploader(key="pool").set_value((name, body, "")).run()
    assert not app.exception and words in shown(app)
    assert "/tmp" not in shown(app) and not app.button


def test_state_goes_from_round_to_round_and_what_is_refused_is_said(runs: Path, open_page: Open) -> None:
    first = done(curation_jobs.create(options(), {"pool": ("a.jsonl", pool())}))
    before = ("state.json", first.result("state.json"))
    second = done(curation_jobs.create(options(), {"pool": ("b.jsonl", pool(16)), "before": before}))
    assert second.report is not None and second.report["round"] == 2
    again = done(curation_jobs.create(options(), {"pool": ("a.jsonl", pool()), "before": before}))
    assert launch.state(again) == "failed"
    assert "is the one of the state" in shown(open_page("curate"))
    app = open_page("curate", curation=second.id)
    assert app.selectbox(key="pick-curation").value == second.id
    with pytest.raises(UserError, match="has an ending"):
        curation_jobs.create(options(), {"pool": ("a.exe", b"")})


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"state": "failed", "error": "pool <b>"}, "pool &lt;b&gt;"),
        ({"state": "stopped"}, "Cancelled."),
        ({"state": "running", "pid": 2**22 + 1, "pid_started": 0.0}, "gone without a word"),
        ({"state": "queued", "waiting_for": "other-1"}, "Queued behind other-1"),
    ],
)
def test_every_state_of_a_curation(runs: Path, open_page: Open, status: dict[str, Any], words: str) -> None:
    job = curation_jobs.create(options(), {"pool": ("a.jsonl", pool())})
    alive = processes.identity() if status["state"] == "queued" else {}
    job.write_status({**job.status(), **alive, **status})
    app = open_page("curate")
    assert words in shown(app)
    assert ("curation-cancel" in {button.key for button in app.button}) == (status["state"] == "queued")
