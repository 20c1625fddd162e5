"""What the pages say of a run whose numbers went bad."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from page_kit import shown
from streamlit.testing.v1 import AppTest
from torture import numbers

Open = Callable[..., AppTest]
CASES = {case.name: case for case in numbers.FAKE}


def ended(name: str, runs: Path, tmp_path: Path) -> None:
    shutil.move(numbers.ended(CASES[name], "fake", tmp_path).path, runs / "bad")


@pytest.mark.slow
def test_the_reason_of_a_failed_run_is_on_watch_and_on_runs(runs: Path, tmp_path: Path, open_page: Open) -> None:
    ended("loss is NaN", runs, tmp_path)
    for name in ("watch", "runs"):
        assert CASES["loss is NaN"].said in shown(open_page(name, run="bad")), name


@pytest.mark.slow
def test_a_collapsed_pool_is_said_on_watch_and_on_feedback(runs: Path, tmp_path: Path, open_page: Open) -> None:
    ended("all empty", runs, tmp_path)
    assert CASES["all empty"].said in shown(open_page("watch", run="bad"))
    said = shown(open_page("feedback", run="bad", round="1", arm="dces"))
    assert "all 16 generations are empty." in said, said
    assert "the gate rejected all 16 samples" in said
