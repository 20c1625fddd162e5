"""Searches of the fake engine: what may be searched, common random numbers, pruning, going on, the recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl
import pytest
import tomli_w
from small import finished, small_config

from dces_core import branch, cli, launch, tuning
from dces_core.config import load_recipe
from dces_core.errors import UserError
from dces_core.records import table
from dces_core.store import SHARED
from dces_core.tune import Objective, TuneConfig, load_tune
from dces_core.tune_store import Found, Search
from dces_core.tuning import Work, do_tune, importance_of

pytest.importorskip("optuna")
FIELDS = {"controller.gain": {"low": 0.001, "high": 1.0, "log": True}, "edit.share": {"choices": [0.2, 0.9]}}
TRIALS = 5


def write_tune(folder: Path, settings: dict[str, Any] | None = None, **fields: Any) -> str:
    """A TUNE.toml and its recipe: FAST on 40 pairs, two rounds."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {"rounds": 2, "data": {"train": str(folder / "train.jsonl"), "probes": str(folder / "probes.jsonl")}, **(settings or {})}
    (folder / "own.toml").write_text(tomli_w.dumps(small_config(folder, **own).model_dump(mode="json")), encoding="utf-8")
    body = {"name": "small", "recipe": "own.toml", "startup": 2, "fields": FIELDS, **fields}
    (folder / "tune.toml").write_text(tomli_w.dumps(body), encoding="utf-8")
    return str(folder / "tune.toml")


def work_on(path: str, out: Path) -> Work:
    return Work(load_tune(path), Search(out), lambda text: None)


def read(work: Work) -> Found:
    found = work.search.read()
    assert found is not None
    return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs and device locks of the test's own."""
    monkeypatch.setenv("DCES_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(launch, "device_lock", lambda device: tmp_path / f"{device}.lock")
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Work]]:
    """A search that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCES_RUNS", str(folder / "runs"))
        patch.setattr(launch, "device_lock", lambda device: folder / f"{device}.lock")
        path = write_tune(folder / "tune")
        work = work_on(path, folder / "out")
        assert do_tune(work, TRIALS) == "done"
        yield path, work


# the definition ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"set": {"eval": {"split": "test"}}}, "eval.split = 'test' is not for tuning"),
        ({"fields": {"edit.shares": {"low": 0, "high": 1}}}, "'edit.shares' is not a setting; docs/settings.md"),
        ({"fields": {"edit": {"shares": {"low": 0, "high": 1}}}}, "'edit.shares' is not a setting"),
        ({"fields": {"": {"low": 0, "high": 1}}}, "'' is not a setting"),
        ({"fields": {"generate.temperature": {"low": 0.5, "high": 1.0}}}, "generate.temperature cannot be searched"),
        ({"fields": {"rounds": {"low": 1, "high": 3}}}, "rounds cannot be searched"),
        ({"fields": {"edit.share": {"low": 0.5, "high": 1.5}}}, "edit.share = 1.5 is not allowed: input should be less than"),
        ({"fields": {"train.epochs": {"choices": [1, 1.5]}}}, "train.epochs = 1.5 is not allowed"),
        ({"fields": {"filter.on": {"low": 0, "high": 1}}}, "filter.on is no number; give it choices"),
        ({"fields": {"edit.share": {"low": 0.9, "high": 0.5}}}, "low = 0.9 and high = 0.5"),
        ({"fields": {"edit.share": {"low": 0, "high": 0.5, "log": True}}}, "low = 0 must be greater than 0"),
        ({"fields": {"edit.share": {"choices": [0.5]}}}, "at least two values"),
        ({"fields": {"edit.share": {"low": 0, "choices": [0.5, 0.6]}}}, "either choices, or low and high"),
        ({"fields": {}}, "fields = {}"),
        ({"objective": {"metric": "perplexity"}}, "objective.metric = 'perplexity' is not a metric"),
        ({"objective": {"metric": "ref_ppl"}}, "has no better direction of its own"),
        ({"objective": {"test_set": "other"}}, "objective.test_set = 'other' is not among data.tests: everyday, passages"),
        ({"name": "../x"}, "name = '../x'"),
        ({"colour": 1}, "colour is not a setting; docs/tune.md"),
    ],
)  # fmt: skip
def test_a_wrong_search_is_one_sentence(tmp_path: Path, fields: dict[str, Any], wanted: str) -> None:
    with pytest.raises(UserError) as caught:
        load_tune(write_tune(tmp_path, **fields))
    assert wanted in str(caught.value)


def test_the_documented_searches_are_valid(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parent.parent
    (block,) = re.findall(r"^```toml tune\n(.*?)^```$", (root / "docs/tune.md").read_text(encoding="utf-8"), re.M | re.S)
    (tmp_path / "own.toml").write_text(block, encoding="utf-8")
    found = load_tune(str(tmp_path / "own.toml"))
    own = {"recipe", "set", "note", "name", "fields"}
    assert found.config.model_dump(exclude=own) == TuneConfig(name="x", fields=FIELDS).model_dump(exclude=own)
    assert list(found.config.fields) == list(load_tune(str(root / "examples/tune.toml")).config.fields)


def metrics(**values: list[float | None]) -> pl.DataFrame:
    """Perplexity by round, of test sets."""
    rows = [
        {"arm": "dces", "seed": 0, "round": round_, "test_set": name, "metric": "ppl", "value": value, "reason": None if value else "why"}
        for name, own in values.items()
        for round_, value in enumerate(own)
    ]
    return table("metrics", rows)


def test_the_objective_is_the_worst_of_the_test_sets() -> None:
    frame = metrics(a=[10.0, 20.0], b=[100.0, 150.0])
    assert Objective().value(frame, 1) == (2.0, None)
    assert Objective(direction="higher").value(frame, 1) == (1.5, None)
    assert Objective(over_round0=False).value(frame, 1) == (150.0, None)
    assert Objective(test_set="b").value(frame, 1) == (1.5, None)
    assert Objective().value(metrics(a=[10.0, None]), 1) == (None, "why")
    assert Objective().value(frame, 2) == (None, "ppl is not measured")
    assert "over_round0 = false" in str(Objective().value(metrics(a=[None, 5.0]), 1)[1])
    assert Objective(metric="vendi").higher and not Objective().higher


# the search -------------------------------------------------------------------------------------------------------------


def test_trials_share_seed_round_0_and_first_pool(whole: tuple[str, Work]) -> None:
    work = whole[1]
    baseline = work.search.run(None)
    assert baseline is not None
    shared = [(0, "evaluate"), (1, "generate"), (1, "reference")]
    for trial in read(work).trials:
        run = work.search.run(trial.number)
        assert run is not None and run.config.seed == baseline.config.seed and run.config.arms == ("dces",)
        assert branch.changed(baseline.config, run.config).keys() <= FIELDS.keys()
        assert run.parent["run"] == "baseline"
        for round_, name in shared:
            ours, theirs = run.stage(round_, SHARED, name), baseline.stage(round_, SHARED, name)
            assert ours.digest == theirs.digest and (ours.done or {})["taken_from"]["run"] == "baseline"
        assert list(run.path.glob("round-*/dces/train/model.safetensors")) == []


def test_the_recipe_is_the_best_trial_and_gives_its_figure(whole: tuple[str, Work], home: Path) -> None:
    work = whole[1]
    found = read(work)
    best = found.best
    assert best is not None and best.value == min(trial.value or 9e9 for trial in found.trials if trial.state == "done")
    config = load_recipe(str(work.search.recipe_path))
    assert config == work.tune.with_values(best.values)
    run = work.search.run(best.number)
    assert run is not None and config == run.config
    again = finished(home, **config.model_dump(mode="json"))
    assert work.tune.config.objective.value(again.metrics(), config.rounds) == (best.value, None)


def test_a_bad_trial_is_pruned_and_stops(whole: tuple[str, Work]) -> None:
    work = whole[1]
    pruned = [trial for trial in read(work).trials if trial.state == "pruned"]
    assert pruned
    for trial in pruned:
        run = work.search.run(trial.number)
        assert run is not None and trial.number >= 2 and len(trial.by_round) == 1
        assert run.finished("dces")[-1] == len(trial.by_round) and run.status()["state"] == "stopped"
        at = trial.by_round[-1][0]
        done = [one for one in read(work).trials[: trial.number] if one.state == "done"]
        assert min(value for _, value in trial.by_round) > median(dict(one.by_round)[at] for one in done)


def cut_at(patch: pytest.MonkeyPatch, when: Callable[[int, int], bool], kill: bool) -> None:
    """Die, as by kill -9, where Optuna has heard of a round of a trial; or ask the run to stop."""
    real = tuning._Reports.look

    def look(self: Any, line: str = "") -> None:
        real(self, line)
        if when(self.drawn.number, self.last):
            if kill:
                raise SystemExit("killed")
            self.run.stop_path.touch()

    patch.setattr(tuning._Reports, "look", look)


@pytest.mark.parametrize(("trial", "round_", "kill"), [(1, 1, False), (3, 1, True)])
def test_a_cut_search_ends_as_one_that_was_not(whole: tuple[str, Work], home: Path, trial: int, round_: int, kill: bool) -> None:
    path, uncut = whole
    work = work_on(path, home / "out")
    with pytest.MonkeyPatch.context() as patch:
        cut_at(patch, lambda number, last: (number, last) == (trial, round_), kill)
        with pytest.raises(SystemExit) if kill else nullcontext():
            assert do_tune(work, TRIALS) == "stopped"
    with work.search.journal_path.open("ab") as journal:
        journal.write(b'{"op_code": 6, "wor')  # a torn line
    begun = read(work).trials[-1]
    assert begun.number == trial and begun.state in ("interrupted", "running")
    again = work_on(path, home / "out")
    assert do_tune(again, TRIALS) == "done"
    assert read(again).trials == read(uncut).trials
    assert again.search.recipe_path.read_bytes() == uncut.search.recipe_path.read_bytes()


def test_more_trials_go_on_from_those_that_are_there(whole: tuple[str, Work], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, uncut = whole
    for trials in (0, 1, 2):
        assert do_tune(work_on(path, home / "out"), trials) == "done"
    found = read(work_on(path, home / "out"))
    assert found.trials == read(uncut).trials[:2]
    monkeypatch.setattr(tuning, "do_trial", lambda *_: pytest.fail("there are two already"))
    assert do_tune(work_on(path, home / "out"), 2) == "done"


def test_another_search_keeps_out(whole: tuple[str, Work], home: Path) -> None:
    other = write_tune(home / "other", fields={"edit.share": {"low": 0.1, "high": 0.9}})
    with pytest.raises(UserError, match="holds a search with another fields"):
        do_tune(work_on(other, whole[1].search.path), 9)
    work = work_on(other, home / "out")
    work.search.begin(work.definition)
    work.search.journal_path.write_text("[]\n{}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"journal.log is damaged"):
        tuning.open_study(work)


def test_values_that_contradict_each_other_fail_with_the_reason(home: Path) -> None:
    fields = {"controller.a0": {"choices": [0.9, 0.95]}}
    work = work_on(write_tune(home / "tune", {"rounds": 1}, fields=fields), home / "out")
    assert do_tune(work, 2) == "done"
    found = read(work)
    assert [trial.state for trial in found.trials] == ["failed", "failed"] and found.best is None
    assert "must lie between a_min" in str(found.trials[0].reason) and not work.search.recipe_path.exists()


def test_an_objective_that_is_undefined_ends_it_at_once(home: Path) -> None:
    work = work_on(write_tune(home / "tune", {"rounds": 1}, objective={"metric": "bertscore_f1"}), home / "out")
    with pytest.raises(UserError, match="is undefined with the recipe's own settings"):
        do_tune(work, 1)


def test_importance_needs_enough_trials() -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: trial.suggest_float("a", 0, 1) + 0 * trial.suggest_float("b", 0, 1), tuning.LEAST_TRIALS - 1)
    assert importance_of(study) == (None, "needs 20 trials that did all rounds; there are 19")
    study.optimize(lambda trial: trial.suggest_float("a", 0, 1) + 0 * trial.suggest_float("b", 0, 1), 31)
    found, reason = importance_of(study)
    assert found is not None and reason is None and found["a"] > 0.8 and sum(found.values()) == pytest.approx(1)


def test_the_command_lists_what_there_is(whole: tuple[str, Work], capsys: pytest.CaptureFixture[str]) -> None:
    path, work = whole
    assert cli.main(["tune", path, "--out", str(work.search.path), "--format", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [trial["number"] for trial in said["trials"]] == list(range(TRIALS)) and said["importance"] is None
    assert said["trials"][said["best"]]["fields"] == read(work).trials[said["best"]].values
    assert cli.main(["tune", path, "--out", str(work.search.path)]) == 0
    assert "gain" in capsys.readouterr().out
    assert cli.main(["tune", path, "--out", str(work.search.path / "no")]) == 2
    assert "begin it with --trials K" in capsys.readouterr().err


def test_without_optuna_it_is_a_sentence(whole: tuple[str, Work], monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "optuna":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert read(whole[1]).trials
    with pytest.raises(UserError, match="needs the package optuna"):
        do_tune(whole[1], TRIALS + 1)
