from __future__ import annotations

import threading
from pathlib import Path

import pytest
from filelock import FileLock
from kit import fake_rounds_here, make_config

from dces_core import launch, store, worker
from dces_core.errors import RunFailed, UserError
from dces_core.events import Events
from dces_core.store import Run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("DCES_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("DCES_CACHE", str(tmp_path / "cache"))
    return store.create(make_config(tmp_path), {})


def test_done(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def advance(run: Run, events: Events) -> None:
        with events.span(1, "plain", "generate"):
            assert launch.state(run) == "running"
            assert run.status()["device"] == "fake"

    fake_rounds_here(monkeypatch, advance)
    said: list[str] = []
    assert worker.run_foreground(run, said.append) == "done"
    assert launch.state(run) == "done"
    assert len(said) == 1 and "generate" in said[0]
    states = [event["state"] for event in run.events()[0] if event["kind"] == "state"]
    assert states == ["queued", "running", "done"]


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (RunFailed("the loss is NaN in round 3"), "the loss is NaN in round 3"),
        (UserError("model = 'x' is unknown."), "model = 'x' is unknown."),
        (MemoryError(), "out of memory: lower train.batch_size"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory: lower train.batch_size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory: lower train.batch_size"),
        (KeyError("x"), "KeyError: 'x' (the full traceback is in log.txt)"),
    ],
)
def test_failures_have_a_reason(run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, wanted: str) -> None:
    def advance(run: Run, events: Events) -> None:
        raise error

    fake_rounds_here(monkeypatch, advance)
    assert worker.run_foreground(run) == "failed"
    assert run.status()["error"].startswith(wanted)
    assert launch.state(run) == "failed"


def test_what_failed_can_be_done_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: Run, events: Events) -> None:
        raise RunFailed("no")

    fake_rounds_here(monkeypatch, fail)
    worker.run_foreground(run)
    fake_rounds_here(monkeypatch, lambda run, events: None)
    assert worker.run_foreground(run) == "done"
    assert run.status()["error"] is None


def test_ctrl_c_and_the_stop_file_stop(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(run: Run, events: Events) -> None:
        raise KeyboardInterrupt

    fake_rounds_here(monkeypatch, interrupt)
    assert worker.run_foreground(run) == "stopped"
    run.stop_path.touch()
    fake_rounds_here(monkeypatch, lambda run, events: pytest.fail("a stopped run must not start"))
    assert worker.run_foreground(run) == "stopped"


@pytest.mark.slow
def test_a_second_worker_is_refused_and_changes_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.write_status({"state": "running"})
    with FileLock(run.lock_path):
        assert worker.main([str(run.path)]) == 2
    assert "has a worker already" in capsys.readouterr().err
    assert run.status() == {"state": "running"}


def test_locks_are_free_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_rounds_here(monkeypatch, lambda run, events: None)
    worker.run_foreground(run)
    for path in (run.lock_path, launch.device_lock("fake")):
        with FileLock(path, timeout=0):
            pass
    assert not launch.device_lock("fake").with_suffix(".json").exists()


def test_a_queued_run_can_be_stopped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_rounds_here(monkeypatch, lambda run, events: pytest.fail("the device is not free"))
    with FileLock(launch.device_lock("fake")):
        threading.Timer(0.3, run.stop_path.touch).start()
        ended: list[str] = []
        waiting = threading.Thread(target=lambda: ended.append(worker.run_foreground(run)))
        waiting.start()
        waiting.join(10)
    assert ended == ["stopped"]
