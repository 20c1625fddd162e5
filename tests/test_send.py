"""Rounds of a run reach a tracker once each, whatever happens to the tracker, and the run does not notice."""

from __future__ import annotations

import importlib
import struct
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest
from small import finished, go_on, small_run

from dces_core import cli, launch, send, trackers, tracks
from dces_core.errors import UserError
from dces_core.store import Run, recorded_root
from dces_core.tracks import Row, Track

UNIT = recorded_root() / "studies" / "chain" / "units" / "seed-0" / "dces"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished(tmp_path_factory.mktemp("runs"), arms=["plain", "dces"])


class Recorder:
    """A tracker that keeps what it is told, and fails as often as `failures` says."""

    rows: ClassVar[list[tuple[str, Row]]] = []
    failures = 0

    def __init__(self, out: Path) -> None:
        pass

    def write(self, track: Track, row: Row) -> None:
        if Recorder.failures:
            Recorder.failures -= 1
            raise ZeroDivisionError("the server is down")
        Recorder.rows.append((track.name, row))

    def close(self) -> None:
        raise RuntimeError("a tracker that cannot even say goodbye")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setattr(Recorder, "rows", [])
    monkeypatch.setattr(Recorder, "failures", 0)
    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", Recorder)  # type: ignore[arg-type]
    return Recorder


def files_of(run: Run) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(run.path.rglob("*"))}


def sent(name: str | Run, out: Path, to: str = "tensorboard", warn: Callable[[str], None] = print) -> send.Sent:
    return send.send(tracks.source_of(name if isinstance(name, str) else str(name.path)), to, out, False, warn)


def expected(frame: pl.DataFrame) -> dict[str, float]:
    rows = frame.filter(pl.col("value").is_not_null()).select("test_set", "metric", "value").iter_rows()
    return {f"{test_set or 'generated'}/{metric}": value for test_set, metric, value in rows}


def test_every_round_is_sent_once_and_says_what_the_records_say(run: Run, recorder: type[Recorder], tmp_path: Path) -> None:
    before = files_of(run)
    assert sent(run, tmp_path) == send.Sent(now=6)
    assert sent(run, tmp_path) == send.Sent(now=0, before=6)
    assert files_of(run) == before
    assert [(name, row.round) for name, row in recorder.rows] == [(f"{run.id}/{arm}", k) for arm in ("plain", "dces") for k in range(3)]
    ends = {(e["arm"], e["round"]): e["t"] for e in run.events()[0] if e["kind"] == "span" and e["stage"] == "evaluate"}
    metrics = run.metrics()
    for name, row in recorder.rows:
        arm = name.rpartition("/")[2]
        wanted = expected(metrics.filter((pl.col("arm") == arm) & (pl.col("round") == row.round)))
        assert wanted and {key: row.values[key] for key in wanted} == wanted
        assert ("loop/edge_share" in row.values) == (row.round > 0 and arm == "dces")
        assert ("train/loss" in row.values) == (row.round > 0) and row.values["seconds/evaluate"] >= 0
        assert row.round == 0 or row.time_s == ends[arm, row.round]


def test_a_tracker_that_fails_is_reported_once_and_served_later(run: Run, recorder: type[Recorder], tmp_path: Path) -> None:
    said: list[str] = []
    recorder.failures = 2
    assert sent(run, tmp_path, warn=said.append).refused == 6
    assert len(said) == 1 and "the server is down" in said[0]
    recorder.failures = 0
    assert sent(run, tmp_path, warn=said.append) == send.Sent(now=6)
    assert len(recorder.rows) == 6 and len(said) == 1


def test_following_ends_with_the_run_and_misses_nothing(recorder: type[Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = small_run(tmp_path, arms=["plain"])
    recorder.failures = 1
    said: list[str] = []
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            with monkeypatch.context() as patch:
                patch.setattr(send.time, "sleep", lambda _: None)
                go_on(live)

    monkeypatch.setattr(launch, "state", lambda one: "running" if len(naps) < 4 else "done")
    monkeypatch.setattr(send.time, "sleep", sleep)
    found = send.send(tracks.source_of(str(live.path)), "tensorboard", tmp_path / "out", True, said.append)
    assert (found.now, found.refused, len(said), len(naps)) == (3, 0, 1, 4)
    assert [row.round for _, row in recorder.rows] == [0, 1, 2]


def test_units_and_studies_are_sent_as_they_were_recorded(recorder: type[Recorder], tmp_path: Path) -> None:
    assert sent(str(UNIT), tmp_path).now == 11
    metrics = pl.read_parquet(UNIT / "metrics.parquet")
    for name, row in recorder.rows:
        assert name == "chain/seed-0/dces"
        wanted = expected(metrics.filter(pl.col("round") == row.round))
        assert wanted and {key: row.values[key] for key in wanted} == wanted
    assert len({row.time_s for _, row in recorder.rows}) == 1 and "loop/edge_share" in recorder.rows[3][1].values
    whole = tracks.source_of("chain")
    assert len(whole.tracks) > 5 and not whole.alive() and len({track.identity for track in whole.tracks}) == len(whole.tracks)
    assert sent("chain", tmp_path).before == 11


def test_one_folder_one_sender_one_run_of_a_name(run: Run, recorder: type[Recorder], tmp_path: Path) -> None:
    with send.FileLock(tmp_path / "sent-tensorboard.lock"), pytest.raises(UserError, match="another dces send"):
        sent(run, tmp_path)
    sent(run, tmp_path)
    memory = send.read_json(tmp_path / "sent-tensorboard.json")
    memory[f"{run.id}/plain"]["identity"] = "other"
    send.write_json(tmp_path / "sent-tensorboard.json", memory)
    with pytest.raises(UserError, match="has another run of the name"):
        sent(run, tmp_path)


@pytest.mark.parametrize("name", list(trackers.TRACKERS))
def test_a_missing_package_is_one_sentence(
    run: Run, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def absent(module: str) -> types.ModuleType:
        raise ModuleNotFoundError(module)

    monkeypatch.setattr(trackers.importlib, "import_module", absent)
    monkeypatch.setenv("TRACKIO_DIR", "")
    assert cli.main(["send", str(run.path), "--to", name, "--out", str(tmp_path / "out")]) == 2
    error = capfd.readouterr().err
    assert error == f"dces: to = {name!r} needs a package that is not installed; run: {trackers.INSTALL}.\n"


# the trackers themselves ------------------------------------------------------------------------------------------------


def test_tensorboard_reads_every_value_at_its_step(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="an extra: dces-lab[trackers]")
    for _ in range(2):
        sent(run, tmp_path)
    (tmp_path / "sent-tensorboard.json").unlink()
    sent(run, tmp_path)  # also without memory: the same files again
    with trackers.quiet():
        found = importlib.import_module("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(
            str(tmp_path / run.id / "dces")
        )
        found.Reload()
    metrics = run.metrics().filter((pl.col("arm") == "dces") & pl.col("value").is_not_null())
    for (test_set, metric), rows in metrics.group_by("test_set", "metric"):
        events = found.Scalars(f"{test_set or 'generated'}/{metric}")
        assert [event.step for event in events] == rows.sort("round")["round"].to_list()
        assert [event.value for event in events] == pytest.approx(rows.sort("round")["value"].to_list(), rel=1e-6)


@pytest.mark.slow
def test_mlflow_has_every_value_once(run: Run, tmp_path: Path) -> None:
    for package in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(package, reason="an extra: dces-lab[trackers]")
    sent(run, tmp_path, "mlflow")
    (tmp_path / "sent-mlflow.json").unlink()
    sent(run, tmp_path, "mlflow")  # also without memory
    client = trackers.MLflow(tmp_path).client
    with trackers.quiet():
        runs = client.search_runs([client.get_experiment_by_name(run.id).experiment_id])
        assert sorted(one.info.run_name for one in runs) == [f"{run.id}/dces", f"{run.id}/plain"]
        one = next(one for one in runs if one.info.run_name.endswith("dces"))
        assert one.data.params["pool.n"] == "8" and one.info.status == "FINISHED"
        history = client.get_metric_history(one.info.run_id, "everyday/ppl")
    metrics = run.metrics().filter((pl.col("arm") == "dces") & (pl.col("test_set") == "everyday") & (pl.col("metric") == "ppl"))
    assert len(history) == 3 and [(point.step, point.value) for point in history] == list(metrics.select("round", "value").iter_rows())


def records_of(path: Path) -> bytes:
    """The payload of a W&B log: blocks of 32 KiB behind a header, records behind checksum, length and type."""
    data, at, found = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        (length,) = struct.unpack("<H", data[at + 4 : at + 6])
        found += data[at + 7 : at + 7 + length]
        at += 7 + length
    return found


@pytest.mark.slow
def test_wandb_keeps_runs_offline(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="an extra: dces-lab[trackers]")
    monkeypatch.setenv("WANDB_MODE", "online")  # nothing is uploaded even then
    sent(run, tmp_path, "wandb")
    assert sent(run, tmp_path, "wandb") == send.Sent(before=6)
    logs = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(logs) == 2
    text = b"".join(map(records_of, logs))
    values = run.metrics().filter(pl.col("metric") == "ppl")["value"]
    assert len(values) >= 6 and all(repr(value).encode() in text for value in values)
    assert f"{run.id}/dces".encode() in text and b"everyday/ppl" in text


def test_trackio_is_told_in_its_own_words(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[str, int, dict[str, Any]]] = []
    open_runs: list[str] = []

    class TrackioRun:
        def __init__(self, name: str) -> None:
            open_runs.append(name)

        def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
            assert step is not None
            logged.append((open_runs[-1], step, metrics))

        def finish(self) -> None:
            open_runs.pop()

    def init(project: str, name: str, group: str, config: dict[str, Any], resume: str, **flags: bool) -> TrackioRun:
        assert not open_runs, "Trackio has one open run"
        assert (project, group, resume) == ("dces", run.id, "allow") and not any(flags.values()) and config["pool.n"] == "8"
        return TrackioRun(name)

    double = types.ModuleType("trackio")
    double.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", double)
    monkeypatch.setenv("TRACKIO_DIR", "")
    for _ in range(2):
        sent(run, tmp_path, "trackio")
    assert [(name, step) for name, step, _ in logged] == [(f"{run.id}/{arm}", k) for arm in ("plain", "dces") for k in range(3)]
    assert all(metrics["round"] == step for _, step, metrics in logged) and not open_runs
