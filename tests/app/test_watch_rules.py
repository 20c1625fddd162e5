"""The section Rules of the Watch page: what fired and what was done, escaped; a damaged log hides nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from make_run import HOSTILE, make_run
from page_kit import shown
from streamlit.testing.v1 import AppTest

from dces_core import actions, store
from dces_core.actions import Log
from dces_core.ui import actions as section

Open = Callable[..., AppTest]


def test_without_a_log_it_says_how_to_get_one(runs: Path, open_page: Open) -> None:
    make_run(runs)
    words = shown(open_page("watch", run="synthetic-1"))
    assert "No rule has fired. dces watch synthetic-1 follows the run" in words


def test_what_fired_and_what_was_done(runs: Path, open_page: Open) -> None:
    run = make_run(runs)
    log = actions.of_run(run)
    log.add("loops", 1, "fired", "fired", "loop_rate of plain is 0.5", planned=["stop", "webhook"])
    log.add("loops", 1, "stop", "begun", "")
    log.add("loops", 1, "stop", "done", "the run is stopped")
    log.add("loops", 1, "webhook", "begun", "")
    for text in HOSTILE:
        log.add(f"hostile {len(text)}", 2, "command", "failed", text)
    with log.path.open("ab") as file:
        file.write(b'{"rule": "half\n{"t": "x"}\n[1]\n\xff\xfe\n')
    words = shown(open_page("watch", run="synthetic-1"))
    assert "<td>stop</td><td>done</td>" in words and "the run is stopped" in words and "begun, no word of its end" in words
    assert words.count("<td>stop</td>") == 1, "the newest entry of an action counts"
    assert "<script>alert(2)" not in words and "<img src=x" not in words and "No rule has fired" not in words


def test_folders_of_others_are_below(runs: Path, open_page: Open) -> None:
    make_run(runs)
    other = Log(store.watched(runs.parent / "theirs"), "theirs")
    with other.held():
        other.add("loops", 3, "fired", "fired", "loop_rate of own is 0.5")
    app = open_page("watch", run="synthetic-1")
    assert [one.label for one in app.expander] == ["Other directories that are watched"]
    assert "<td>theirs</td><td>loops</td><td>3</td>" in shown(app)
    many = [{**entry, "round": i, "t": i} for entry in other.entries() for i in range(100)]
    assert [entry["round"] for entry in section.rows(many)] == list(range(99, 99 - section.SHOWN, -1))


def test_logs_of_others_are_read_again_only_when_one_has_changed(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    whole = actions.of_others
    monkeypatch.setattr(actions, "of_others", lambda: reads.append(1) or whole())
    assert section.entries_of_others() == [] and not reads
    other = Log(store.watched(runs.parent / "theirs"), "theirs")
    with other.held():
        for round_ in (1, 2):
            other.add("loops", round_, "fired", "fired", "loop_rate of own is 0.5")
            assert [[entry["round"] for entry in section.entries_of_others()] for _ in range(3)] == [list(range(1, round_ + 1))] * 3
    assert len(reads) == 2
