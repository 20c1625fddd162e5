"""Finding and reading what can be compared."""

from __future__ import annotations

import shutil
from pathlib import Path

from make_run import make_run

from dces_core import store
from dces_core.study_store import Output, recorded_studies
from dces_core.ui import sources


def test_recorded_first_then_outputs_then_finished_runs(runs: Path, study: Output) -> None:
    shutil.copytree(study.path, recorded_studies() / "chain")
    shutil.copytree(study.path, runs / "mine")
    make_run(store.recorded_root(), "shipped")
    make_run(runs, "done-1")
    make_run(runs, "broken-1", state="failed")
    (runs / "bad,name").mkdir()
    shutil.copy(study.path / "study.json", runs / "bad,name")
    found = sources.find()
    assert [source.key for source in found] == ["study:chain", "out:mine", "run:shipped", "run:done-1"]
    assert [source.said for source in found] == ["recorded study", "study output", "recorded run", "run"]
    assert [source.units for source in found] == [5, 5, 1, 1]


def test_a_study_and_a_run_say_the_same_kind_of_thing(runs: Path, study: Output) -> None:
    make_run(runs, "done-1", seed=3)
    shutil.copytree(study.path, runs / "mine")
    found, problems = sources.read_all(sources.find())
    assert problems == []
    mine, run = found["out:mine"], found["run:done-1"]
    assert mine.done == [("dces", 0), ("dces", 1), ("plain", 0), ("plain", 1), ("random", 1)] and mine.planned["random"] == (1,)
    assert run.planned == {"plain": (3,), "dces": (3,), "dces-targets": (3,)}
    for one, shares in ((mine, 4), (run, 6)):
        assert one.loop.filter(quantity="edge_share").drop_nulls("value").height == shares
        assert one.loop.filter(arm="plain", quantity="edge_share")["reason"].unique().to_list() == ["this arm picks at random"]
    assert {budget.seed for budget in mine.budgets} == {0, 1} and all(sum(budget.trained_tokens) for budget in mine.budgets)
    assert [list(budget.trained_tokens) for budget in run.budgets] == [[], [], []], "a run that did not store them"


def test_a_damaged_unit_is_a_sentence_and_the_others_are_read(runs: Path, study: Output) -> None:
    shutil.copytree(study.path, runs / "mine")
    (runs / "mine/units/seed-0/plain/metrics.parquet").write_bytes(b"")
    shutil.copytree(study.path, runs / "whole")
    (runs / "odd").mkdir()
    (runs / "odd/study.json").write_text('{"schema": 1, "config": {}, "study": {"name": 3}}')
    found, problems = sources.read_all(sources.find())
    assert list(found) == ["out:whole"]
    assert any("is damaged: metrics.parquet" in sentence for sentence in problems) and len(problems) == 2


def test_reading_again_costs_nothing_until_a_unit_comes(runs: Path, study: Output) -> None:
    shutil.copytree(study.path, runs / "mine")
    shutil.rmtree(runs / "mine/units/seed-1")
    (source,) = sources.find()
    first = sources.read(source)
    assert first.metrics is sources.read(source).metrics
    one = sources.compared([source], {source.key: first})
    assert one[0] is sources.compared([source], {source.key: first})[0]
    shutil.copytree(study.path / "units/seed-1/plain", runs / "mine/units/seed-1/plain")
    assert ("plain", 1) in sources.read(source).done and ("plain", 1) not in first.done


def test_two_copies_of_a_study_are_one_comparison(runs: Path, study: Output) -> None:
    for name in ("one", "two"):
        shutil.copytree(study.path, runs / name)
    found = sources.find()
    (one,) = sources.compared(found, sources.read_all(found)[0])
    assert one.title == "one + two" and one.evidence.done == {"dces": [0, 1], "plain": [0, 1], "random": [1]}
    assert one.evidence.remarks[-1].startswith("5 units of two (dces/0, dces/1, plain/0, plain/1 and 1 more) also in one")
