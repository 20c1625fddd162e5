"""Studies with the fake engine: units, what they share, interruption, another machine, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from small import FAST, contents, finished, small_config

from dces_core import cli, launch, rounds, study
from dces_core.compare import COMPARISON
from dces_core.config import Train
from dces_core.errors import RunFailed, UserError
from dces_core.events import Stopped
from dces_core.records import METRICS
from dces_core.section import validate
from dces_core.store import SHARED
from dces_core.study import STUDIES, StudyConfig, Work, do_study, eta, load_study
from dces_core.study_store import TABLES, Output, Unit, Workshop

ARMS = ["plain", "random", "dces"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs and device locks of the test's own."""
    monkeypatch.setenv("DCES_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(launch, "device_lock", lambda device: tmp_path / f"{device}.lock")
    return tmp_path


def write_study(folder: Path, settings: dict[str, Any] | None = None, **fields: Any) -> str:
    """A STUDY.toml and its recipe: FAST on 40 pairs."""
    import tomli_w

    folder.mkdir(parents=True, exist_ok=True)
    config = small_config(folder, **(settings or {})).model_dump(mode="json")
    (folder / "own.toml").write_text(tomli_w.dumps(config), encoding="utf-8")
    body = {"name": "small", "recipe": "own.toml", "arms": ARMS, "seeds": [0, 1], "seeds_of": {"random": [1]}, **fields}
    (folder / "study.toml").write_text(tomli_w.dumps(body), encoding="utf-8")
    return str(folder / "study.toml")


def work_on(path: str, out: Path | None = None, **options: bool) -> tuple[Work, list[str]]:
    found, said = load_study(path), []
    work = Work(found, Output(out or found.default_out), options.get("mixed_cpus", False), options.get("keep_runs", False), said.append)
    return work, said


def do(path: str, out: Path | None = None, *only: str, **options: bool) -> Output:
    work, said = work_on(path, out, **options)
    assert do_study(work, list(only)) == "done", said
    return work.output


def hashes(output: Output) -> dict[tuple[int, str], dict[str, str]]:
    return {(unit.seed, unit.arm): {name: entry["sha256"] for name, entry in unit.facts["files"].items()} for unit in output.units()}


def cut(patch: pytest.MonkeyPatch, where: tuple[int, str, str], error: type[Exception]) -> None:
    """Fail when a stage has written everything but its `_done.json`."""
    real = rounds.Lab.do

    def broken_do(self: Any, round_: int, arm: str, name: str, after: Any, make: Any) -> Any:
        def broken(draft: Any, progress: Any) -> None:
            make(draft, progress)
            raise error("cut")

        return real(self, round_, arm, name, after, broken if (round_, arm, name) == where else make)

    patch.setattr(rounds.Lab, "do", broken_do)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Output]]:
    """A study that was never interrupted, its runs kept."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCES_RUNS", str(folder / "runs"))
        patch.setattr(launch, "device_lock", lambda device: folder / f"{device}.lock")
        path = write_study(folder / "study")
        yield path, do(path, keep_runs=True)


# the definition ---------------------------------------------------------------------------------------------------------


def test_units_go_seed_by_seed_over_the_arms(whole: tuple[str, Output]) -> None:
    found = load_study(whole[0])
    assert found.places() == [(0, "plain"), (0, "dces"), (1, "plain"), (1, "random"), (1, "dces")]
    assert found.places(["*/1"]) == [(1, "plain"), (1, "random"), (1, "dces")]
    assert found.places(["plain/0", "random/*"]) == [(0, "plain"), (1, "random")]
    with pytest.raises(UserError, match="only = 'random/0' fits no unit"):
        found.places(["random/0"])
    assert found.default_out == Path(whole[0]).parent


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"colour": 1}, "colour is not a setting; docs/study.md"),
        ({"arms": ["plain", "other"]}, "arms.1 = 'other' is not allowed"),
        ({"seeds": [1, 1]}, "seeds = [1, 1] names one twice"),
        ({"seeds_of": {"frozen": [1]}}, "'frozen' is not among arms"),
        ({"name": "../x"}, "name = '../x'"),
        ({"recipe": "absent"}, "recipe = 'absent'"),
        ({"set": {"pool": {"m": 3}}}, "pool.m is not a setting"),
        ({"seeds": []}, "seeds = []"),
    ],
)
def test_a_wrong_study_is_one_sentence(home: Path, fields: dict[str, Any], wanted: str) -> None:
    with pytest.raises(UserError) as caught:
        load_study(write_study(home, **fields))
    assert wanted in str(caught.value)


def test_settings_of_a_study_lie_over_its_recipe(home: Path) -> None:
    more = {"train": {"init": "base"}, "pool": {"n": 6}, "data": {"tests": {"passages": ""}}}
    found = load_study(write_study(home, set=more))
    assert (found.base.train.init, found.base.pool.n, found.base.data.tests["passages"]) == ("base", 6, "")
    assert found.base.generate.max_new_tokens == FAST["generate"]["max_new_tokens"]
    assert found.run_config(4, "dces").arms == ("dces",) and found.run_config(4, "dces").seed == 4


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_studies_are_valid(path: Path) -> None:
    found = load_study(path.stem)
    assert found.config.name == path.stem and found.default_out.name == path.stem
    assert "plain" in found.config.arms


def test_the_shipped_studies_ask_what_they_say() -> None:
    chain, inherit = load_study("chain"), load_study("inherit")
    assert (chain.base.train.init, chain.base.train.round0, chain.base.pool.size, chain.base.pool.n) == ("previous", "asis", 96, 48)
    assert (inherit.base.train.init, inherit.base.train.round0, inherit.base.eval.split) == ("base", "finetune", "test")
    five = {arm for arm in chain.config.arms if len([place for place in chain.places() if place[1] == arm]) == 5}
    assert five == {"plain", "random", "ppl-high", "semdedup", "edit-random", "real10", "dces", "dces-targets"}
    assert {arm for _, arm in inherit.places()} >= {"frozen", "real", "random", "ppl-high", "semdedup"}
    for family in ("opt", "gpt2", "qwen3"):
        assert len(load_study(f"tiny-{family}").places()) == 48


def test_the_study_on_the_page_is_valid_and_its_fields_are_all_there() -> None:
    text = (STUDIES.parents[1] / "docs" / "study.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```toml study\n(.*?)^```$", text, re.M | re.S)
    validate(StudyConfig, tomllib.loads(block), "docs/study.md")
    assert re.findall(r"^\| `(\w+)` \| ", text, re.M)[: len(StudyConfig.model_fields)] == list(StudyConfig.model_fields)


def test_the_digest_of_a_run_does_not_depend_on_its_arms(tmp_path: Path) -> None:
    one = small_config(tmp_path, arms=["plain"])
    assert (
        one.digest() == small_config(tmp_path, arms=["dces", "plain"]).digest() != small_config(tmp_path, arms=["plain"], seed=1).digest()
    )


def test_round_0_may_have_its_own_epochs_and_learning_rate() -> None:
    assert Train(epochs=2, lr=1e-4).at_round0() == Train(epochs=2, lr=1e-4)
    both = Train(epochs=2, lr=1e-4, round0_epochs=30, round0_lr=1e-3).at_round0()
    assert (both.epochs, both.lr) == (30, 1e-3)


# units ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_unit_has_the_figures_of_an_ordinary_run(whole: tuple[str, Output], tmp_path: Path) -> None:
    base = load_study(whole[0]).base.model_dump(mode="json")
    run = finished(tmp_path, **{**base, "arms": ARMS, "seed": 1})
    for unit in whole[1].units():
        if unit.seed == 1:
            assert unit.frame("metrics").equals(run.metrics().filter(arm=unit.arm))
            assert unit.frame("metrics").schema == pl.Schema(METRICS)


def test_unit_json_says_what_it_was_made_with(whole: tuple[str, Output]) -> None:
    unit = next(unit for unit in whole[1].units() if (unit.seed, unit.arm) == (1, "dces"))
    assert set(unit.facts["files"]) == {f"{name}.parquet" for name in TABLES}
    assert {"digest", "config", "versions", "cpu", "seconds", "budget", "mixed_cpus"} <= set(unit.facts)
    assert {"model", "flags", "threads"} <= set(unit.facts["cpu"])
    budget = unit.facts["budget"]
    assert (budget["pool"], budget["n"], budget["planned_steps"]) == (16, 8, [1, 1])
    assert len(budget["trained_tokens"]) == 2 and min(budget["trained_tokens"]) > 0
    assert budget["decoding"]["temperature"] == 0.8 and unit.facts["seconds"] > 0
    controller = unit.frame("controller").filter(pl.col("quantity") == "edge_share")
    assert controller["round"].to_list() == [1, 2] and controller["value"].is_finite().all()
    texts = unit.frame("texts")
    assert sorted(texts["round"].unique()) == [0, 1, 2] and texts["text"].is_not_null().all()
    metrics = unit.frame("metrics")
    assert unit.facts["tests"].keys() == set(metrics["test_set"]) - {""} and all(facts["rows"] for facts in unit.facts["tests"].values())
    tokens = metrics.filter(metric="loss").select("round", "test_set", pl.col("n").cast(pl.Int64)).sort("round", "test_set")
    counted = (
        unit.frame("entropy")
        .filter(pl.col("test_set") != "")
        .group_by("round", "test_set")
        .agg(pl.col("n").sum())
        .sort("round", "test_set")
    )
    assert counted.equals(tokens), "every scored token is in one bin of the entropy histogram"
    trained = metrics.filter(pl.col("metric").str.starts_with("trained_")).sort("round", "metric")
    assert trained["value"].is_not_null().to_list() == [False, False, True, True, True, True]
    assert set(trained.filter(round=0)["reason"]) == {"no generated text was trained on"}
    first = unit.frame("next_tokens").filter(round=1).group_by("prompt_id", maintain_order=True).agg("rank", "probability")
    assert all(ranks == sorted(ranks) for ranks in first["rank"].to_list())
    assert all(mass == sorted(mass, reverse=True) and sum(mass) <= 1 for mass in first["probability"].to_list())
    for name in TABLES:
        assert set(unit.frame(name)["arm"]) == {"dces"} and set(unit.frame(name)["seed"]) == {1}


def test_the_first_stages_of_a_seed_are_made_once(whole: tuple[str, Output], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCES_RUNS", str(Path(whole[0]).parents[1] / "runs"))
    workshop = Workshop("small")
    runs = [workshop.run(1, arm) for arm in ARMS]
    shared = [(0, "evaluate"), (1, "generate"), (1, "reference")]
    made = [[(e["round"], e["stage"]) for e in run.events()[0] if e["kind"] == "span" and e["arm"] == SHARED] for run in runs if run]
    assert made == [shared, [], []]
    files = [{k: v for k, v in contents(run).items() if f"/{SHARED}/" in k} for run in runs if run]
    assert files[0] and files[0] == files[1] == files[2]
    paths = [run.stage(1, SHARED, "generate").file("pool.parquet") for run in runs if run]
    assert len({path.stat().st_ino for path in paths}) == 1, "hard links"
    assert not list(workshop.path.glob("seed-*/.shared")), "the seed is complete"


@pytest.mark.slow
def test_runs_are_deleted_when_their_unit_is_written(home: Path, whole: tuple[str, Output]) -> None:
    output = do(whole[0], home / "out", "*/0")
    workshop = Workshop("small")
    assert hashes(output) == {place: files for place, files in hashes(whole[1]).items() if place[0] == 0}
    assert [path.name for path in workshop.path.iterdir()] == ["worker.lock"]
    do(whole[0], home / "out", "plain/1")
    assert [path.name for path in (workshop.path / "seed-1").iterdir()] == [".shared"], "the next arm of the seed takes it"


# interruption -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("where", [(0, SHARED, "evaluate"), (1, "dces", "train"), (2, "dces", "evaluate")], ids=str)
def test_a_stopped_unit_goes_on(home: Path, whole: tuple[str, Output], where: tuple[int, str, str]) -> None:
    work, said = work_on(whole[0], home / "out")
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, where, Stopped)
        assert do_study(work) == "stopped"
    begun = [row["arm"] for row in study.status(work) if row["state"] == "begun"]
    assert begun == [where[1].replace(SHARED, "plain")]
    run = Workshop("small").run(0, begun[0])
    assert run is not None
    before = len(run.events()[0])
    assert do_study(work, ["*/0"]) == "done" and before
    assert hashes(work.output) == {place: files for place, files in hashes(whole[1]).items() if place[0] == 0}
    assert len(said) == 2 if where[1] == "dces" else said


@pytest.mark.slow
def test_a_failed_unit_does_not_keep_the_others_from_being_made(home: Path, whole: tuple[str, Output]) -> None:
    work, said = work_on(whole[0], home / "out")
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, (1, "plain", "train"), RunFailed)
        assert do_study(work, ["*/0"]) == "failed"
    assert [row["state"] for row in study.status(work)][:2] == ["begun", "done"]
    assert "plain" in said[0] and "failed: cut" in said[0]
    assert do_study(work, ["*/0"]) == "done"
    assert hashes(work.output) == {place: files for place, files in hashes(whole[1]).items() if place[0] == 0}


def test_a_text_of_ones_own_is_named_by_an_environment_variable_and_must_stay_the_same(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_study(home / "study", set={"data": {"tests": {"text": "$DCES_TEST_TEXT"}}}, seeds=[0], seeds_of={"random": [0]})
    work, _ = work_on(path)
    monkeypatch.delenv("DCES_TEST_TEXT", raising=False)
    with pytest.raises(UserError, match=r"data.tests.text = '\$DCES_TEST_TEXT' needs the environment variable 'DCES_TEST_TEXT'"):
        do_study(work)
    monkeypatch.setenv("DCES_TEST_TEXT", str(home / "text.txt"))
    (home / "text.txt").write_text("The wind turned. " * 60, encoding="utf-8")
    assert do_study(work, ["plain/0"]) == "done"
    (unit,) = work.output.units()
    assert "text" in set(unit.frame("metrics")["test_set"]) and "text.txt" not in (unit.path / "unit.json").read_text(encoding="utf-8")
    (home / "text.txt").write_text("The tide went out. " * 60, encoding="utf-8")
    with pytest.raises(UserError, match=r"data\.tests\.text = .* holds other text here than for the unit plain/0"):
        do_study(work)


def test_killed_between_the_run_and_its_unit(home: Path, whole: tuple[str, Output], monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    work, _ = work_on(whole[0], home / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "unit_facts", killed)
        with pytest.raises(Killed):
            do_study(work, ["plain/0"])
    assert not list((home / "out").glob("units/*/*"))
    monkeypatch.setattr("dces_core.progress.follow", killed)
    assert do_study(work, ["plain/0"]) == "done", "the run was done already"


def test_a_directory_that_was_never_a_run_is_replaced(home: Path, whole: tuple[str, Output]) -> None:
    Workshop("small").run_path(0, "plain").mkdir(parents=True)
    (home / "out" / "units" / "seed-0" / ".tmp-plain").mkdir(parents=True)
    output = do(whole[0], home / "out", "plain/0")
    assert hashes(output)[0, "plain"] == hashes(whole[1])[0, "plain"]
    assert [path.name for path in (home / "out" / "units" / "seed-0").iterdir()] == ["plain"]


@pytest.mark.slow
def test_another_machine_makes_only_what_is_missing(home: Path, whole: tuple[str, Output], monkeypatch: pytest.MonkeyPatch) -> None:
    first = do(whole[0], home / "out", "plain/0", "*/1")
    times = {unit.path: (unit.path / "unit.json").stat().st_mtime_ns for unit in first.units()}
    shutil.copytree(home / "out", home / "clone")
    monkeypatch.setenv("DCES_RUNS", str(home / "elsewhere"))
    made: list[Any] = []
    real = study.make_unit
    monkeypatch.setattr(study, "make_unit", lambda work, workshop, seed, arm: made.append((seed, arm)) or real(work, workshop, seed, arm))
    output = do(whole[0], home / "clone")
    assert made == [(0, "dces")]
    assert hashes(output) == hashes(whole[1])
    assert len(times) == 4
    do(whole[0], home / "clone")
    assert made == [(0, "dces")]


# what is refused --------------------------------------------------------------------------------------------------------


def test_units_with_other_settings_are_refused(home: Path, whole: tuple[str, Output]) -> None:
    shutil.copytree(whole[1].path, home / "out")
    changed = write_study(home / "changed", {"train": {"lr": 1e-3}, "data": small_data(whole[0])})
    work, _ = work_on(changed, home / "out")
    with pytest.raises(UserError, match=r"made with other settings than the study now has \(train.lr\)"):
        do_study(work)
    assert {row["state"][:4] for row in study.status(work)} == {"unit"}
    assert work.output.facts() == whole[1].facts()
    other, _ = work_on(write_study(home / "other", name="other", arms=["frozen"], seeds_of={}), home / "out")
    with pytest.raises(UserError, match="belongs to study 'small', not 'other'"):
        do_study(other)


def small_data(path: str) -> dict[str, Any]:
    """The data of another study, so that only the named settings differ."""
    found: dict[str, Any] = load_study(path).base.model_dump(mode="json")["data"]
    return found


def test_an_interrupted_run_with_other_settings_is_refused(home: Path, whole: tuple[str, Output]) -> None:
    work, _ = work_on(whole[0], home / "out")
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, (1, "plain", "train"), Stopped)
        assert do_study(work) == "stopped"
    changed = write_study(home / "changed", {"train": {"lr": 1e-3}, "data": small_data(whole[0])})
    with pytest.raises(UserError, match="begun with other settings"):
        do_study(work_on(changed, home / "out")[0])


def test_a_damaged_unit_is_refused(home: Path, whole: tuple[str, Output]) -> None:
    shutil.copytree(whole[1].path, home / "out")
    path = home / "out/units/seed-0/plain/metrics.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="damaged: metrics"):
        do_study(work_on(whole[0], home / "out")[0])
    (path.parent / "unit.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="no readable unit"):
        Output(home / "out").units()


@pytest.mark.slow
def test_one_seed_is_made_on_one_type_of_processor(home: Path, whole: tuple[str, Output], monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = whole[0], home / "out"
    do(path, out, "plain/0")
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, (1, "plain", "train"), Stopped)
        assert do_study(work_on(path, out)[0], ["plain/1"]) == "stopped"
    here = study.machine.cpu()
    monkeypatch.setattr(study.machine, "cpu", lambda: {**here, "model": "another", "flags": []})
    for only in ("dces/0", "plain/1"):
        with pytest.raises(UserError, match=f"seed {only[-1]} was begun on another type of processor .*another, .*--mixed-cpus"):
            do_study(work_on(path, out)[0], [only])
    output = do(path, out, "dces/0", mixed_cpus=True)
    assert [unit.facts["mixed_cpus"] for unit in output.units()] == [True, False]
    monkeypatch.setattr(study.machine, "cpu", lambda: here)
    monkeypatch.setattr(study.machine, "threads", lambda: 77)
    with pytest.raises(UserError, match="77 threads"):
        do_study(work_on(path, out)[0], ["*/1"])


def test_one_worker_at_a_time(home: Path, whole: tuple[str, Output]) -> None:
    from filelock import FileLock

    with FileLock(Workshop("small").lock_path), pytest.raises(UserError, match="has a worker on this machine already"):
        do_study(work_on(whole[0], home / "out")[0])


def test_eta_is_by_arm_where_it_is_known() -> None:
    done = [Unit(Path(), {"arm": arm, "seed": 0, "seconds": seconds}) for arm, seconds in (("plain", 10.0), ("dces", 30.0))]
    assert eta(done, [(1, "plain"), (1, "dces"), (1, "random")]) == 10 + 30 + 20
    assert eta([], [(1, "plain")]) is None


# the command line -------------------------------------------------------------------------------------------------------


def said_by(capfd: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert cli.main(list(arguments)) == code
    captured = capfd.readouterr()
    return captured.err if code else captured.out


def test_study_and_compare(home: Path, whole: tuple[str, Output], capfd: pytest.CaptureFixture[str]) -> None:
    path, out = whole[0], str(home / "out")
    assert said_by(capfd, "study", path, "--out", out, "--only", "*/0").splitlines()[-1] == out
    assert "missing" in said_by(capfd, "study", path, "--out", out, "--status")
    shutil.copytree(whole[1].path, out, dirs_exist_ok=True)
    rows = list(csv.DictReader(io.StringIO(said_by(capfd, "compare", out, "--format", "csv"))))
    assert list(rows[0]) == list(COMPARISON) and rows[0]["arm"] == "random"
    (row,) = [r for r in rows if (r["arm"], r["metric"], r["test_set"], r["round"]) == ("dces", "loss", "everyday", "2")]
    values = [
        unit.frame("metrics").filter(metric="loss", test_set="everyday", round=2)["value"].item()
        for arm in ("dces", "plain")
        for unit in whole[1].units()
        if unit.arm == arm
    ]
    assert float(row["diff"]) == pytest.approx((values[0] - values[2] + values[1] - values[3]) / 2)
    assert (row["vs"], row["n_seeds"], row["diff_low"]) == ("plain", "2", "")
    assert json.loads(said_by(capfd, "compare", path, "--vs", "dces", "--format", "json"))[0]["vs"] == "dces"
    assert "loops" in said_by(capfd, "compare", out, "--verdicts", "--format", "csv")
    assert "vs = 'real'" in said_by(capfd, "compare", out, "--vs", "real", code=2)
    assert "study = 'absent'" in said_by(capfd, "compare", "absent", code=2)


def test_verdicts_of_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = finished(tmp_path, arms=["plain"])
    rows = list(csv.DictReader(io.StringIO(said_by(capfd, "show", str(run.path), "--verdicts", "--format", "csv"))))
    assert list(rows[0]) == ["arm", "seed", "definition", "test_set", "round", "value", "threshold", "reason"]
    assert {row["arm"] for row in rows} == {"plain"} and len({row["definition"] for row in rows}) >= 5
    assert all(row["round"] or row["reason"] for row in rows)


def test_a_study_of_another_place_needs_its_output(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "has no output here" in said_by(capfd, "compare", write_study(home / "new"), code=2)
    Output(home / "new").write_study({"name": "small", "arms": ["plain"]}, load_study(str(home / "new/study.toml")).base)
    assert "has no finished unit yet" in said_by(capfd, "compare", str(home / "new"), code=2)
