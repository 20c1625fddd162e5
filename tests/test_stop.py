"""A run that is stopped in any stage ends as stopped, and resumed it is the run that was never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small import attempt, contents, finished, go_on

from dces_core import launch, rounds, store
from dces_core.store import SHARED, Run

WHERE = [
    (0, SHARED, "evaluate"), (1, SHARED, "generate"), (1, SHARED, "reference"), (1, SHARED, "map"), (1, "dces", "select"),
    (1, "dces", "map"), (1, "dces", "train"), (1, "dces", "evaluate"), (2, "dces", "generate"),
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that nobody stops."""
    return finished(tmp_path_factory.mktemp("whole"), arms=["dces"], map={"on": True})


def stop_inside(patch: pytest.MonkeyPatch, run: Run, where: tuple[int, str, str]) -> None:
    """Ask for the stop when the stage has begun."""
    real = rounds.Lab.do

    def do(self: Any, round_: int, arm: str, name: str, after: Any, make: Any) -> Any:
        def stopped(draft: Any, progress: Any) -> None:
            run.stop_path.touch()
            make(draft, progress)

        return real(self, round_, arm, name, after, stopped if (round_, arm, name) == where else make)

    patch.setattr(rounds.Lab, "do", do)


@pytest.mark.slow
@pytest.mark.parametrize("where", WHERE, ids=str)
def test_a_stop_in_any_stage(whole: Run, where: tuple[int, str, str], tmp_path: Path) -> None:
    run = store.create(whole.config, {}, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        stop_inside(patch, run, where)
        assert attempt(run) == "stopped"
    done = [(event["round"], event["arm"], event["stage"]) for event in run.events()[0] if event["kind"] == "span"]
    assert where not in done[:-1], "it went on after the stage in which it was stopped"
    assert run.status()["error"] is None and launch.state(run) == "stopped"
    launch.check_resumable(run)
    go_on(run)
    assert contents(run) == contents(whole)
