from __future__ import annotations

import os
import shutil
from pathlib import Path

import polars as pl
import pytest
from safetensors import SafetensorError
from small import attempt, contents, finished

from dces_core import cli, launch, processes
from dces_core.damage import damage
from dces_core.errors import RunFailed, UserError
from dces_core.events import Events
from dces_core.stage import Stage, leftovers, write_json
from dces_core.store import SHARED, WEIGHTS, Run

GONE = OSError(28, "No space left on device")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished(tmp_path_factory.mktemp("whole"), arms=["dces"])


@pytest.fixture
def run(whole: Run, tmp_path: Path) -> Run:
    shutil.copytree(whole.path, tmp_path / "run")
    return Run(tmp_path / "run")


def flip(path: Path, place: int = -9) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_whole_run_has_no_damage_and_is_not_resumed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert not run.stage(1, "dces", "train").file(WEIGHTS).exists()
    assert damage(run) == []
    assert cli.main(["verify", str(run.path)]) == 0 and capsys.readouterr().out == ""
    with pytest.raises(UserError, match="is done"):
        launch.check_resumable(run)


def test_damage_is_named_read_as_absent_and_mended(whole: Run, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    table, facts, seal = (
        "round-02/dces/select/samples.parquet",
        "round-01/dces/select/controller.json",
        "round-01/shared/generate/_done.json",
    )
    for name in (table, facts, seal):
        path = run.path / name
        flip(path, path.read_bytes().index(b'"seconds": ') + 11 if name == seal else -9)
    shutil.rmtree(run.stage(0, SHARED, "evaluate").path)
    assert set(damage(run)) == {table, facts, seal, "round-00/shared/evaluate"}
    assert cli.main(["verify", str(run.path)]) == 1 and table in capsys.readouterr().out
    assert run.samples("dces", 2).is_empty() and run.controller("dces", 1) == {}
    assert run.metrics()["round"].unique().to_list() == [1, 2]
    launch.check_resumable(run)
    assert attempt(run) == "done"
    assert contents(run) == contents(whole) and damage(run) == []
    notes = [event["text"] for event in run.events()[0] if event["kind"] == "note" and "damaged" in event]
    assert all(any(name in note for note in notes) for name in (table, facts, seal))


def test_damaged_settings_refuse_a_resume(run: Run) -> None:
    text = (run.path / "run.json").read_text(encoding="utf-8")
    (run.path / "run.json").write_text(text.replace('"created": "20', '"created": "30'), encoding="utf-8")
    assert damage(run) == ["run.json"]
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        launch.check_resumable(run)


def test_a_stage_of_an_older_version_needs_no_seal(run: Run) -> None:
    stage = run.stage(1, "dces", "select")
    done = {key: value for key, value in (stage.done or {}).items() if key != "seal"}
    write_json(stage.file("_done.json"), done)
    assert damage(run) == []


def test_weights_marked_as_deleted_go_although_a_kill_came_between(run: Run) -> None:
    stage = run.stage(1, "dces", "train")
    stage.file(WEIGHTS).write_bytes(b"left")
    run.prune(stage)
    assert not stage.file(WEIGHTS).exists()


def test_leftovers_of_a_killed_writer_are_swept(run: Run) -> None:
    stage = run.stage(1, "dces", "train")
    left = [stage.file("._done.json.17"), run.path / ".status.json.17", stage.path.with_name(".tmp-select") / "x"]
    left[2].parent.mkdir()
    for path in left:
        path.write_bytes(b"{")
    (run.path / ".labels.json.17").write_bytes(b"{")  # another process may be writing it
    assert len(leftovers(run.path)) == 3
    run.sweep()
    assert not any(path.exists() for path in left) and (run.path / ".labels.json.17").exists()


def test_a_json_file_that_the_disk_refuses_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise GONE

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError):
        write_json(tmp_path / "x.json", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [pl.exceptions.ComputeError, SafetensorError, OSError])
def test_a_full_disk_met_by_a_library_is_named(run: Run, kind: type[Exception]) -> None:
    with pytest.raises(RunFailed, match="No space left on device; free space"), run.commit(Stage(run.path / "round-09/dces/select"), "in"):
        raise kind("parquet: underlying IO error: No space left on device (os error 28)") if kind is not OSError else GONE
    with pytest.raises(ValueError, match="mine"), run.commit(Stage(run.path / "round-09/dces/select"), "in"):
        raise ValueError("mine")


def test_a_run_whose_end_cannot_be_written_has_failed(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, refused = Run.write_status, {"done"}

    def write(self: Run, value: dict[str, object]) -> None:
        if value["state"] in refused:
            raise GONE
        real(self, value)

    monkeypatch.setattr(Run, "write_status", write)
    assert attempt(run) == "failed"
    assert "No space left on device" in run.status()["error"] and launch.state(run) == "failed"
    refused.add("failed")
    assert attempt(run) == "failed"
    assert "No space left on device" in capsys.readouterr().err and run.status()["state"] != "done"


def test_a_torn_event_is_ended_by_the_next(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with run.events_path.open("a", encoding="utf-8") as file:
        file.write('{"kind": "span", "arm": 3}\n{"kind": "no')
    events = Events(run, {"state": "queued"})
    events.note("whole")
    events.close()
    assert run.events()[0][-1]["text"] == "whole"


def test_a_moved_clock_kills_nobody(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    mine, started = processes.identity(), psutil.Process().create_time()
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: started + 3600)
    assert processes.alive(mine["pid"], mine["pid_started"])
    assert not processes.alive(mine["pid"], mine["pid_started"] + 1)
