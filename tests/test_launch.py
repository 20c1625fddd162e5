from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from kit import fake_rounds_in_workers, make_config, wait_for

from dces_core import damage, launch, models, processes, store
from dces_core.errors import UserError
from dces_core.store import Run


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DCES_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("DCES_CACHE", str(tmp_path / "cache"))
    return tmp_path


def made(home: Path, **status: object) -> Run:
    run = store.create(make_config(home), {})
    run.write_status({"state": "running", "pid": None, "pid_started": None, "heartbeat": time.time(), **status})
    return run


def test_a_run_is_started_done_and_not_resumed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_rounds_in_workers(monkeypatch, home, "done")
    run = launch.launch(make_config(home))
    assert launch.state(run) in ("queued", "running")
    wait_for(lambda: launch.state(run) == "done")
    assert "advance done" in run.log_tail()
    assert {"versions", "python", "cpu", "platform"} <= set(run.manifest)
    status = run.status()
    wanted = {"state", "pid", "pid_started", "heartbeat", "round", "arm", "stage", "done", "total", "eta_s", "error", "waiting_for"}
    assert wanted | {"device", "rss_bytes"} <= set(status)
    assert status["rss_bytes"] > 1_000_000
    monkeypatch.setattr(damage, "damage", lambda run: [])  # its rounds wrote nothing
    with pytest.raises(UserError, match="is done"):
        launch.resume(run)
    launch.delete(run)
    assert not run.path.exists() and store.discover(recorded=False) == []


@pytest.mark.slow
def test_stop_and_resume(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_rounds_in_workers(monkeypatch, home, "sleep")
    run = launch.launch(make_config(home))
    wait_for(lambda: launch.state(run) == "running")
    pid = run.status()["pid"]
    assert os.getsid(pid) == pid, "the worker leads a session of its own"
    for refused in (launch.resume, launch.delete):
        with pytest.raises(UserError, match="is running"):
            refused(run)
    launch.stop(run, wait=False)
    assert launch.state(run) in ("stopping", "stopped")
    wait_for(lambda: launch.state(run) == "stopped")
    with pytest.raises(UserError, match="nothing to stop"):
        launch.stop(run)
    monkeypatch.setenv("FAKE_ROUNDS", "done")
    launch.resume(run)
    wait_for(lambda: launch.state(run) == "done")


@pytest.mark.slow
def test_a_worker_that_ignores_the_stop_file_gets_sigterm(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_rounds_in_workers(monkeypatch, home, "deaf")
    run = launch.launch(make_config(home))
    wait_for(lambda: launch.state(run) == "running" and run.status().get("stage") == "generate")
    started = time.monotonic()
    launch.stop(run, grace_s=0.5)
    assert launch.state(run) == "stopped"
    assert 0.5 <= time.monotonic() - started < 10


def test_a_killed_worker_is_lost_and_resumes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_rounds_in_workers(monkeypatch, home, "sleep")
    run = launch.launch(make_config(home))
    wait_for(lambda: launch.state(run) == "running")
    os.kill(run.status()["pid"], signal.SIGKILL)
    wait_for(lambda: launch.state(run) == "lost")
    monkeypatch.setenv("FAKE_ROUNDS", "done")
    launch.resume(run)
    wait_for(lambda: launch.state(run) == "done")


@pytest.mark.slow
def test_a_second_launch_queues_behind_the_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_rounds_in_workers(monkeypatch, home, "sleep")
    first = launch.launch(make_config(home))
    wait_for(lambda: launch.state(first) == "running")
    second = launch.launch(make_config(home))
    wait_for(lambda: second.status().get("waiting_for") == first.id)
    assert launch.state(second) == "queued"
    launch.stop(first)
    wait_for(lambda: launch.state(second) == "running")
    assert second.status()["waiting_for"] is None
    launch.stop(second)


def test_a_crash_is_failed_with_the_traceback_in_the_log_only(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_rounds_in_workers(monkeypatch, home, "crash")
    run = launch.launch(make_config(home))
    wait_for(lambda: launch.state(run) == "failed")
    assert run.status()["error"] == "ZeroDivisionError: seven over nothing (the full traceback is in log.txt)"
    assert any("Traceback" in line for line in run.log_tail(50))


def test_a_pid_that_belongs_to_another_process_is_lost(home: Path) -> None:
    started = psutil.Process().create_time()
    assert launch.state(made(home, pid=os.getpid(), pid_started=started)) == "running"
    stale = made(home, pid=os.getpid(), pid_started=started - 100, heartbeat=time.time())
    assert launch.state(stale) == "lost"


def test_stop_never_signals_a_process_that_has_taken_over_the_pid(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append(pid))
    monkeypatch.setattr(os, "killpg", lambda pid, number: sent.append(pid))
    launch._terminate({"pid": os.getpid(), "pid_started": psutil.Process().create_time() - 100})
    assert sent == []
    launch._terminate({**processes.identity()})
    assert sent == [os.getpid()]


def test_a_zombie_is_lost(home: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    run = made(home, pid=child.pid, pid_started=psutil.Process(child.pid).create_time())
    assert launch.state(run) == "running"
    assert child.stdin is not None
    child.stdin.close()
    wait_for(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    assert launch.state(run) == "lost"
    child.wait()
    assert launch.state(run) == "lost"


def test_an_old_heartbeat_alone_is_not_lost(home: Path) -> None:
    assert launch.state(made(home, heartbeat=time.time() - 3600, **processes.identity())) == "running"


def test_a_run_whose_worker_never_spoke_is_queued_for_a_minute(home: Path) -> None:
    assert launch.state(made(home, state="queued")) == "queued"
    assert launch.state(made(home, state="queued", heartbeat=time.time() - 61)) == "lost"


def test_recorded_runs_are_read_only(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(home, state="failed")
    monkeypatch.setattr(store, "recorded_root", lambda: run.path.parent)
    for refused in (launch.resume, launch.delete, launch.stop):
        with pytest.raises(UserError):
            refused(run)
    assert (run.path / "run.json").is_file()
    run.status_path.unlink()
    assert launch.state(run) == "done"


def test_a_run_with_a_starting_worker_is_not_deleted(home: Path) -> None:
    run = made(home, state="failed")
    with FileLock(run.lock_path), pytest.raises(UserError, match="just starting"):
        launch.delete(run)
    assert run.path.is_dir()


def test_bad_input_makes_no_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = make_config(home).model_copy(update={"data": make_config(home).data.model_copy(update={"train": str(home / "no.jsonl")})})
    with pytest.raises(UserError, match=r"data\.train"):
        launch.launch(absent)
    with pytest.raises(UserError, match="dces models pull"):
        launch.launch(make_config(home, engine="hf"))
    assert not models.pulled()
    assert store.discover(recorded=False) == []


def test_a_used_directory_is_refused(home: Path) -> None:
    (home / "used").mkdir()
    with pytest.raises(UserError, match="exists already"):
        launch.create(make_config(home), home / "used")


def test_device_locks_have_safe_names(home: Path) -> None:
    path = launch.device_lock("cuda:0/../x")
    assert path.parent == home / "cache" / "locks"
    assert path.name == "device-cuda-0----x.lock"
