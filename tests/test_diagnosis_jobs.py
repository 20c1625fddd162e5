"""Diagnoses as jobs: made, done by the worker, kept, cancelled, forgotten; uploads do not stay."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_diagnose import rounds_file

from dces_core import diagnosis_jobs, launch, processes, store, worker
from dces_core.diagnose import Options
from dces_core.diagnosis_jobs import Job
from dces_core.errors import UserError

HASH = Options(encoder="hash", sample=40, map="pca")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCES_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("DCES_CACHE", str(tmp_path / "cache"))


def of_files(tmp_path: Path, **files: bytes) -> Job:
    given = files or {"own.jsonl": rounds_file(tmp_path, rounds=4, texts=20).read_bytes()}
    return diagnosis_jobs.create_of_files(given, {}, HASH)


def test_a_job_from_files_to_its_result(tmp_path: Path) -> None:
    job = of_files(tmp_path)
    assert launch.state(job) == "queued" and job.result is None and job.label == "own.jsonl"
    assert os.stat(job.path).st_mode & 0o077 == 0
    assert worker.run_foreground(job) == "done"
    found = job.result
    assert found is not None and len(found.rounds) == 4 and found.facts["source"] == "own.jsonl"
    assert not job.uploads.exists() and not job.texts.exists()
    assert [one.id for one in diagnosis_jobs.jobs()] == [job.id]
    assert store.discover(recorded=False) == [], "a job is no run"


def test_a_job_of_a_recorded_run(tmp_path: Path) -> None:
    run = store.Run(store.recorded_root() / "standard")
    job = diagnosis_jobs.create_of_run(run, "dces", HASH)
    assert worker.run_foreground(job) == "done"
    assert job.result is not None and job.result.facts["references"] == 138
    with pytest.raises(UserError, match="arm = 'x' is not in run"):
        diagnosis_jobs.create_of_run(run, "x", HASH)


def test_texts_that_cannot_be_used_fail_with_the_sentence(tmp_path: Path) -> None:
    job = of_files(tmp_path, **{"a.jsonl": b'{"round": 1, "text": "x"}'})
    assert worker.run_foreground(job) == "failed"
    assert "one round only (1)" in job.status()["error"] and job.result is None and not job.uploads.exists()


def test_names_of_uploads_are_harmless_and_keep_the_round(tmp_path: Path) -> None:
    odd = {"../../etc/r 7.jsonl": b'{"text": "a b"}', "/x/..\\" + "y" * 300 + "-9.JSONL": b'{"text": "c d"}'}
    job = of_files(tmp_path, **odd)
    assert {path.parent for path in job.path.rglob("*.jsonl")} == {job.uploads}
    assert worker.run_foreground(job) == "done", job.status().get("error")
    assert job.result is not None and job.result.rounds == [7, 9]


def test_one_at_a_time_then_forgotten(tmp_path: Path) -> None:
    job = of_files(tmp_path)
    with pytest.raises(UserError, match="one diagnosis is made at a time"):
        of_files(tmp_path)
    with pytest.raises(UserError, match="cancel it before you delete it"):
        diagnosis_jobs.forget(job)
    job.stop_path.touch()
    assert worker.run_foreground(job) == "stopped"
    diagnosis_jobs.forget(job)
    assert diagnosis_jobs.jobs() == []


def test_only_the_newest_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis_jobs, "KEPT", 2)
    ids = []
    for _ in range(3):
        job = of_files(tmp_path)
        ids.append(job.id)
        job.write_status({**job.status(), "state": "failed"})
    assert [one.id for one in diagnosis_jobs.jobs()] == ids[:0:-1]
    assert not Job(diagnosis_jobs.jobs()[1].path).uploads.exists(), "what a killed worker left goes with the next job"


@pytest.mark.parametrize("files", [{}, {"a.txt": b"x"}, {"a": b"x"}])
def test_files_of_another_kind_are_refused(files: dict[str, bytes]) -> None:
    with pytest.raises(UserError):
        diagnosis_jobs.create_of_files(files, {}, HASH)
    assert diagnosis_jobs.jobs() == []


def test_damaged_folders_are_said_to_be(tmp_path: Path) -> None:
    job = of_files(tmp_path)
    (job.path / "diagnosis.json").write_text('{"schema": 1}')
    with pytest.raises(UserError, match="cannot be read"):
        _ = job.result
    (job.path / "diagnose.json").write_text("[")
    assert job.facts == {} and job.label == "" and job.threads == 1
    assert processes.identity()["pid"] == os.getpid()
