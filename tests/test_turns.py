"""The queue of a device: first come, first served, and the dead do not wait."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock
from kit import fake_rounds_here, fake_rounds_in_workers, make_config, wait_for

from dces_core import launch, processes, store, turns, worker
from dces_core.cli import main
from dces_core.events import Events
from dces_core.stage import write_json
from dces_core.store import Run


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DCES_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("DCES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(turns, "WAIT_S", 0.02)
    return tmp_path


def queued(home: Path, name: str, at_s: float) -> Run:
    run = store.create(make_config(home), {}, home / "runs" / name)
    launch.queue(run)
    run.write_status({**run.status(), "heartbeat": at_s})
    return run


def test_runs_and_questions_are_served_in_the_order_in_which_they_came(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[str] = []
    fake_rounds_here(monkeypatch, lambda run, events: served.append(run.id))
    names = ["third", "first", "fourth", "second"]  # in which order the workers begin
    came_s = {"first": 1e9, "second": 1e9 + 1, "third": 1e9 + 2, "fourth": 1e9 + 3}
    runs = {name: queued(home, name, came_s[name]) for name in names}
    with FileLock(launch.device_lock("fake")):
        write_json(launch.device_lock("fake").with_suffix(".json"), {"run": "other-1", **processes.identity()})
        workers = [threading.Thread(target=worker.run_foreground, args=(runs[name],)) for name in names]
        for one in workers:
            one.start()
        wanted = {"first": 1, "second": 2, "third": 3, "fourth": 4}
        wait_for(lambda: {name: launch.queue_position(run) for name, run in runs.items()} == wanted)
        assert {run.status()["waiting_for"] for run in runs.values()} == {"other-1"}
        (runs["second"].stop_path).touch()
        wait_for(lambda: launch.queue_position(runs["fourth"]) == 3)
        assert launch.state(runs["second"]) == "stopped" and launch.queue_position(runs["second"]) is None
    for one in workers:
        one.join(20)
    assert served == ["first", "third", "fourth"]
    assert list(turns.tickets_of(launch.device_lock("fake")).iterdir()) == []


def test_tickets_of_dead_processes_are_skipped_and_removed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_rounds_here(monkeypatch, lambda run, events: None)
    folder = turns.tickets_of(launch.device_lock("fake"))
    folder.mkdir(parents=True)
    me = processes.identity()
    write_json(folder / f"{1:020d}-1-1.json", {"run": "killed", "pid": 2**22 + 1, "pid_started": 0.0})
    write_json(folder / f"{2:020d}-1-1.json", {"run": "pid taken over", **me, "pid_started": me["pid_started"] - 100})
    (folder / f"{3:020d}-1-1.json").write_text("torn {")
    assert worker.run_foreground(queued(home, "mine", time.time())) == "done"
    assert list(folder.iterdir()) == []


def test_a_living_ticket_goes_first_also_while_the_device_is_free(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_rounds_here(monkeypatch, lambda run, events: None)
    folder = turns.tickets_of(launch.device_lock("fake"))
    folder.mkdir(parents=True)
    ticket = folder / f"{1:020d}-1-1.json"
    write_json(ticket, {"run": "earlier", **processes.identity()})
    run = queued(home, "mine", time.time())
    waiting = threading.Thread(target=worker.run_foreground, args=(run,))
    waiting.start()
    wait_for(lambda: launch.queue_position(run) == 2)
    assert run.status()["waiting_for"] == "earlier"
    ticket.unlink()
    waiting.join(20)
    assert launch.state(run) == "done" and run.status()["queue_position"] is None


def test_what_begins_without_a_launch_comes_last(home: Path) -> None:
    run = queued(home, "old", 1e9)
    assert turns.queued_s(run) == 1e9
    run.write_status({**run.status(), "state": "stopped"})
    assert turns.queued_s(run) == pytest.approx(time.time(), abs=5)


def test_two_resumes_at_once_make_one_worker(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[str] = []
    gate = threading.Event()

    def advance(run: Run, events: Events) -> None:
        entered.append(run.id)
        gate.wait(20)

    fake_rounds_here(monkeypatch, advance)
    monkeypatch.setattr(launch, "DYING_S", 0.05)
    run = queued(home, "one", time.time())
    ended: list[str] = []

    def work() -> None:
        try:
            ended.append(worker.run_foreground(run))
        except Exception as error:
            ended.append(str(error))
            gate.set()

    workers = [threading.Thread(target=work) for _ in range(2)]
    for one in workers:
        one.start()
    for one in workers:
        one.join(30)
    assert len(entered) == 1 and len(ended) == 2
    assert "has a worker already" in ended[0] and ended[1] == "done"


@pytest.mark.slow
def test_workers_of_their_own_queue_and_a_killed_one_is_passed_over(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_rounds_in_workers(monkeypatch, home, "sleep")
    runs = []
    for _ in range(3):
        runs.append(launch.launch(make_config(home)))
        wait_for(lambda: launch.state(runs[-1]) == "running" or launch.queue_position(runs[-1]) is not None)
    first, second, third = runs
    wait_for(lambda: (launch.queue_position(second), launch.queue_position(third)) == (1, 2))
    assert main(["ls", "--format", "json"]) == 0
    listed = {row["id"]: row["queue"] for row in json.loads(capsys.readouterr().out)}
    assert listed | {first.id: None, second.id: 1, third.id: 2} == listed
    os.kill(second.status()["pid"], signal.SIGKILL)
    wait_for(lambda: launch.queue_position(third) == 1)
    launch.stop(first)
    wait_for(lambda: launch.state(third) == "running")
    launch.stop(third)
