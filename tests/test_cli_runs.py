from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from small import contents, finished

from dces_core import cli, labels, launch, store
from dces_core.store import Run


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DCES_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("DCES_CACHE", str(tmp_path / "cache"))
    (tmp_path / "runs").mkdir()
    return tmp_path


@pytest.fixture
def run(home: Path) -> Run:
    return finished(home / "runs", "first", arms=["plain"], rounds=1)


def output(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["runs", *arguments]) == 0
    return capfd.readouterr().out


def refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["runs", *arguments]) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_label_note_and_tags(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert output(capfd, "rename", "first", "the baseline") == "the baseline\n"
    assert output(capfd, "note", "first", "why\nso") == "why\nso\n" == output(capfd, "note", "first")
    assert output(capfd, "tag", "first", "good", "seed0") == "good\nseed0\n"
    assert output(capfd, "tag", "first", "new", "--remove", "good") == "seed0\nnew\n" == output(capfd, "tag", "first")
    assert cli.main(["ls", "--format", "json", "--tag", "new"]) == 0
    (row,) = json.loads(capfd.readouterr().out)
    assert (row["id"], row["label"], row["tags"], row["parent"]) == ("first", "the baseline", "seed0,new", None)
    assert cli.main(["ls", "--format", "json", "--tag", "good"]) == 0
    assert json.loads(capfd.readouterr().out) == []
    assert cli.main(["ls"]) == 0
    assert "baseline" in capfd.readouterr().out
    assert cli.main(["show", "first", "--info", "--format", "json"]) == 0
    info = json.loads(capfd.readouterr().out)
    assert (info["label"], info["note"], info["tags"], info["parent"]) == ("the baseline", "why\nso", ["seed0", "new"], None)
    assert "must use letters" in refused(capfd, "tag", "first", "two words")
    assert "one line" in refused(capfd, "rename", "first", "x" * 99)


def test_delete_asks_first(run: Run, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))
    assert "add --yes" in refused(capfd, "delete", "first")
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert cli.main(["runs", "delete", "first"]) == 1 and run.path.exists()
    assert "for good" in capfd.readouterr().err
    monkeypatch.setattr("sys.stdin", Terminal("yes\n"))
    assert output(capfd, "delete", "first") == f"{run.path}\n"
    assert not run.path.exists()


def test_a_run_with_a_worker_is_not_deleted(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    launch.queue(run)
    assert "is queued: stop it" in refused(capfd, "delete", "first", "--yes")
    assert run.path.exists()


def test_continue_and_fork(home: Path, run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    lines = output(capfd, "continue", "first", "--more", "1", "--out", str(home / "runs" / "second")).splitlines()
    second = store.find("second")
    assert lines[-1] == str(second.path) and launch.state(second) == "done" and second.finished("plain") == [0, 1, 2]
    assert "is queued" in refused_after_queue(capfd, second)
    output(capfd, "fork", "second", "--round", "1", "--set", "edit.share=0.2", "--set", "name=third", "--out", str(home / "runs" / "third"))
    third = store.find("third")
    assert third.config.edit.share == 0.2 and third.parent["changed"] == {"edit.share": [0.95, 0.2]}
    same = {name: files for name, files in contents(third).items() if name.startswith("round-01/plain")}
    assert {name: files["metrics.parquet"] for name, files in same.items() if "evaluate" in name} == {
        name: files["metrics.parquet"] for name, files in contents(run).items() if name == "round-01/plain/evaluate"
    }
    assert cli.main(["ls", "--format", "json"]) == 0
    assert {row["id"]: row["parent"] for row in json.loads(capfd.readouterr().out) if row["recorded"] == "no"} == {
        "first": None, "second": "first", "third": "second",
    }  # fmt: skip


def refused_after_queue(capfd: pytest.CaptureFixture[str], run: Run) -> str:
    """What is said while the run seems to be at work."""
    before = run.status()
    launch.queue(run)
    said = refused(capfd, "continue", run.id, "--more", "1")
    run.write_status(before)
    return said


def test_detached(run: Run, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Run] = []
    monkeypatch.setattr(launch, "start", lambda found: started.append(found) or found)
    assert output(capfd, "continue", "first", "--more", "2", "--detach").strip() == str(started[0].path)
    assert launch.state(started[0]) == "queued"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fork", "first", "--round", "1", "--set", "seed=3", "--set", "rounds=3"], "seed cannot change at a fork"),
        (["fork", "first", "--round", "1", "--set", "data.train=absent.jsonl", "--set", "rounds=3"], "data.train cannot change"),
        (["fork", "first", "--round", "7"], "round = 7"),
        (["fork", "first", "--round", "0", "--set", "nonsense"], "section.key=value"),
        (["fork", "first", "--round", "0", "--set", "edit.nope=1"], "edit.nope is not a setting"),
        (["continue", "first", "--more", "0"], "more = 0"),
        (["continue", "standard", "--more", "1"], "as tables only"),
        (["rename", "standard", "x"], "can only be read"),
        (["delete", "standard", "--yes"], "cannot be deleted"),
        (["tag", "nobody", "x"], "is not here"),
    ],
)
def test_bad_input_is_one_line(run: Run, capfd: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert words in refused(capfd, *arguments)
    assert [found.id for found in store.discover(recorded=False)] == ["first"]
    assert labels.read(run) == labels.Labels()
