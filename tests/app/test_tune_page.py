"""The page Tune: nothing there, a search in every state, hostile words, what can be taken away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from page_kit import shown
from streamlit.testing.v1 import AppTest

from dces_core import processes
from dces_core.stage import write_json
from dces_core.store import Run
from dces_core.tune_store import Search

Open = Callable[..., AppTest]
HOSTILE = "<script>alert(1)</script>"
DEFINITION = {
    "name": "own", "note": "Which gain?", "arm": "dces", "objective_words": "ppl over round 0", "higher": False, "rounds": 2,
    "fields": {"controller.gain": {}, "split.scorer": {}},
}  # fmt: skip


def trial(number: int, state: str, *values: float, **more: Any) -> dict[str, Any]:
    own = {"controller.gain": 0.01 * (number + 1), "split.scorer": "frozen"}
    by_round = [[round_, value] for round_, value in enumerate(values, 1)]
    return {"number": number, "state": state, "values": own, "by_round": by_round, "reason": None, **more}


def make_search(runs: Path, name: str = "own", trials: list[dict[str, Any]] | None = None, **more: Any) -> Search:
    search = Search(runs / "tune" / name)
    search.path.mkdir(parents=True)
    own = [
        trial(0, "done", 1.1, 1.5), trial(1, "done", 1.05, 1.2), trial(2, "pruned", 1.4), trial(3, "failed", reason=f"no {HOSTILE}"),
        trial(4, "running"),
    ]  # fmt: skip
    facts = {"definition": DEFINITION, "trials": own if trials is None else trials, "importance": None, "importance_reason": "too few"}
    search.write({**facts, "baseline": trial(-1, "done", 1.1, 1.3), **more})
    search.write_recipe('name = "own"\nrounds = 2\n')
    return search


def figures(app: AppTest) -> list[dict[str, Any]]:
    return [json.loads(chart.proto.spec) for chart in app.get("plotly_chart")]


def test_without_a_search_the_command_is_explained(runs: Path, open_page: Open) -> None:
    words = shown(open_page("tune"))
    assert "No search yet" in words and "dces tune gain.toml --trials 30" in words and "[fields]" in words


def test_a_search_is_drawn(runs: Path, open_page: Open) -> None:
    make_search(runs, importance={"controller.gain": 0.75, "split.scorer": 0.25})
    app = open_page("tune")
    said = {metric.label: metric.value for metric in app.metric}
    assert said == {"Best": "1.2", "The recipe's own settings": "1.3", "Trials": "5"}
    history, shares = figures(app)
    drawn = {trace["name"]: (trace["x"], trace["y"]) for trace in history["data"]}
    assert drawn.pop("recipe as it is")[1] == [1.3, 1.3]
    assert drawn == {"best so far": ([0, 1], [1.5, 1.2]), "done": ([0, 1], [1.5, 1.2]), "pruned": ([2], [1.4])}
    assert shares["data"][0]["y"] == ["split.scorer", "controller.gain"] and shares["data"][0]["x"] == [0.25, 0.75]
    words = shown(app)
    assert "2 done, 1 pruned, 1 failed, 1 interrupted" in words and "1 (best)" in words and "Which gain?" in words
    assert HOSTILE not in words and "&lt;script&gt;" in words and not app.markdown
    assert 'name = "own"\nrounds = 2' in words and app.get("download_button")


def test_a_running_trial_and_few_trials(runs: Path, open_page: Open) -> None:
    search = make_search(runs, trials=[trial(0, "done", 1.1, 1.5), trial(1, "running", 1.2)])
    search.run_path(1).mkdir()
    Run(search.run_path(1)).write_status({"state": "running", **processes.identity()})
    words = shown(open_page("tune"))
    assert "1 done, 1 running" in words and "Not said: too few." in words


def test_before_the_first_round(runs: Path, open_page: Open) -> None:
    search = make_search(runs, trials=[], baseline=None)
    search.recipe_path.unlink()
    assert "No trial has finished a round yet" in shown(open_page("tune"))


def test_a_search_can_be_linked(runs: Path, open_page: Open) -> None:
    make_search(runs, "first")
    make_search(runs, "second", trials=[trial(0, "pruned", 1.9)])
    app = open_page("tune", search="first")
    assert app.selectbox(key="pick-search").value == "first" and app.query_params["search"] in ("first", ["first"])
    words = shown(open_page("tune", search=HOSTILE))
    assert "is not here; the newest one is shown" in words and HOSTILE not in words


@pytest.mark.parametrize(
    "facts",
    [
        [], {}, {"schema": 1}, {"schema": 1, "definition": {"name": 3}}, {"schema": 9, "definition": DEFINITION},
        {"schema": 1, "definition": {**DEFINITION, "rounds": "x"}},
    ],
)  # fmt: skip
def test_a_damaged_search_is_none(runs: Path, open_page: Open, facts: Any) -> None:
    search = Search(runs / "tune" / "own")
    search.path.mkdir(parents=True)
    write_json(search.path / "tune.json", facts)
    assert "No search yet" in shown(open_page("tune"))


def test_damaged_trials_are_left_out(runs: Path, open_page: Open) -> None:
    broken = [trial(0, HOSTILE), trial(1, "done", 1.0, values={"a": []}), {"number": 2}, {**trial(3, "done"), "by_round": [[1]]}]
    definition = {**DEFINITION, "name": HOSTILE, "note": HOSTILE, "arm": HOSTILE, "fields": {HOSTILE: 1}}
    make_search(runs, trials=[*broken, trial(4, "done", 1.0)], definition=definition, importance={"a": "x"}, importance_reason=7)
    app = open_page("tune")
    assert {metric.label: metric.value for metric in app.metric}["Trials"] == "1" and HOSTILE not in shown(app)
