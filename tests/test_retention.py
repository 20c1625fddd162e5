"""Weights by policy, garbage that is collected, and what never is; runs of other schema versions."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from small import finished

from dces_core import ask, branch, cli, launch, models, records, retention, store
from dces_core.errors import UserError
from dces_core.stage import read_json
from dces_core.store import WEIGHTS, Run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Six rounds of one arm, all weights."""
    folder = tmp_path_factory.mktemp("made")
    evaluated = {"pairs": 3, "passages": 2, "budget_tokens": 8, "probe_tokens": 4, "bertscore": "off", "vendi_n": 0, "block_tokens": 32}
    return finished(folder, "first", arms=["plain"], rounds=6, keep="all", pool={"n": 4}, eval=evaluated)


@pytest.fixture
def run(made: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("DCES_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("DCES_CACHE", str(tmp_path / "cache"))
    shutil.copytree(made.path, tmp_path / "runs" / "first")
    return Run(tmp_path / "runs" / "first")


def kept(run: Run, arm: str = "plain") -> list[int]:
    return [r for r in range(1, run.config.rounds + 1) if run.stage(r, arm, "train").file(WEIGHTS).is_file()]


def ppl(run: Run) -> dict[int, float]:
    rows = run.metrics().filter(metric="ppl", test_set="everyday", arm="plain")
    return {row["round"]: row["value"] for row in rows.to_dicts() if row["round"]}


def test_policies(run: Run) -> None:
    best = min(ppl(run), key=lambda round_: ppl(run)[round_])
    assert retention.best_round(run, "plain", 6) == best
    wanted = {"newest": {6}, "ends": {1, 6}, "best": {best, 6}, "every-5": {5, 6}, "all": {1, 2, 3, 4, 5, 6}}
    assert {keep: retention.kept_rounds(run, "plain", keep, 6) for keep in wanted} == wanted  # type: ignore[arg-type]
    assert retention.kept_rounds(run, "plain", "every-5", 3) == {3}


def test_best_is_the_lowest_perplexity_of_the_first_test_set(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import polars as pl

    from dces_core.stage import Stage

    values = {"1": 5.0, "2": None, "3": 2.0, "4": 2.0, "5": 1.0}

    def frame(stage: Stage, name: str) -> pl.DataFrame:
        round_ = stage.path.parts[-3].removeprefix("round-0")
        rows = [("everyday", values.get(round_)), ("passages", 0.1)]
        return pl.DataFrame(
            [{"metric": "ppl", "test_set": name, "value": value} for name, value in rows], schema_overrides={"value": pl.Float64}
        )

    monkeypatch.setattr(Stage, "frame", frame)
    assert [retention.best_round(run, "plain", newest) for newest in (1, 2, 3, 4, 5)] == [1, 1, 3, 3, 5]
    assert retention.kept_rounds(run, "plain", "best", 4) == {3, 4}
    values.clear()
    assert retention.kept_rounds(run, "plain", "best", 4) == {4}


@pytest.mark.parametrize("keep", ["best", "every-5"])
def test_a_run_keeps_what_its_policy_says(made: Run, tmp_path: Path, keep: str) -> None:
    evaluated = made.config.eval.model_dump()
    own = finished(tmp_path, arms=["plain"], rounds=6, keep=keep, pool={"n": 4}, eval=evaluated)
    assert kept(own) == sorted(retention.kept_rounds(made, "plain", keep, 6))  # type: ignore[arg-type]
    assert own.config.digest() == made.config.model_copy(update={"data": own.config.data}).digest(), "keep changes no hash"


def gc(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[dict[str, object]], str]:
    assert cli.main(["gc", "--format", "json", *arguments]) == 0
    captured = capfd.readouterr()
    return json.loads(captured.out), captured.err


def test_gc_is_dry_unless_told(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert gc(capfd) == ([], "dces: nothing was deleted; --yes would free 0.0 MB, 0 items\n")
    rows, said = gc(capfd, "--keep", "ends", "first")
    sizes = [run.stage(r, "plain", "train").file(WEIGHTS).stat().st_size for r in (2, 3, 4, 5)]
    assert [row["bytes"] for row in rows] == sizes and "nothing was deleted" in said and kept(run) == [1, 2, 3, 4, 5, 6]
    before = run.bytes
    assert gc(capfd, "--keep", "ends", "--yes")[0] == rows
    assert kept(run) == [1, 6] and before - run.bytes == pytest.approx(sum(sizes), abs=2000)
    assert ask.absent(run, "plain", 2) is not None
    assert gc(capfd, "--keep", "ends")[0] == []
    with pytest.raises(SystemExit):
        cli.main(["gc", "--yes", "--dry-run"])


def test_gc_spares_runs_at_work_and_recorded_ones(run: Run, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    items = retention.garbage(keep="newest")
    assert len(items) == 5
    launch.queue(run)
    assert retention.garbage(keep="newest") == []
    retention.collect(items)
    assert kept(run) == [1, 2, 3, 4, 5, 6], "a worker that came after the look is left alone"
    run.write_status({"state": "done"})
    monkeypatch.setattr(store, "recorded_root", lambda: run.path.parent)
    assert gc(capfd, "--keep", "newest", "--yes", "first")[0] == []


def test_gc_spares_what_a_question_reads(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ask.question(run, prompt="Why?", checkpoints=[{"arm": "plain", "round": 2}])
    job = ask.create(run, asked)
    assert retention.garbage(keep="newest") == []
    job.write_status({"state": "done"})
    found = retention.garbage(keep="newest")
    assert len(found) == 6 and retention.freed_bytes(found) == sum(size for item in found[:5] for _, size, _ in item.files())
    retention.collect(found)
    assert kept(run) == [6] and job.linked_weights() == [] and job.question.prompt == "Why?"


def test_a_fork_keeps_its_links(run: Run) -> None:
    fork = branch.fork_run(run, 2, run.config.model_copy(update={"rounds": 3}), run.path.parent / "fork")
    link = fork.stage(2, "plain", "train").file(WEIGHTS)
    shared = [item for item in retention.garbage([run], "newest") if "round-02" in str(item.path)]
    assert len(shared) == 1 and retention.freed_bytes(shared) == 0
    before = link.read_bytes()
    retention.collect(shared)
    assert link.read_bytes() == before and not shared[0].path.exists()


def test_what_killed_processes_left(run: Run) -> None:
    root, cache = run.path.parent, models.models_root()
    old = [root / ".deleted-x-1", run.path / "round-02/plain/.tmp-select", cache / ".pull-abc", ask.jobs_root() / "question-0"]
    young = cache / ".convert-new"
    for folder in [*old, young]:
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"12345")
        if folder is not young:
            os.utime(folder, (time.time() - 7200,) * 2)
    found = retention.garbage()
    assert {item.path for item in found} == set(old) and retention.freed_bytes(found) == 20
    retention.collect(found)
    assert not any(folder.exists() for folder in old) and young.exists()


def test_ls_says_how_much_a_run_takes(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ls", "--format", "json"]) == 0
    row = next(row for row in json.loads(capfd.readouterr().out) if row["id"] == "first")
    assert row["bytes"] == run.bytes > 1000
    assert cli.main(["ls"]) == 0 and "MB" in capfd.readouterr().out


# schema versions --------------------------------------------------------------------------------------------------------


def with_schema(run: Run, schema: object, drop: str = "") -> Run:
    path = run.path / "run.json"
    body = {name: value for name, value in json.loads(path.read_text()).items() if name != "seal"}
    body["config"].pop(drop, None)
    path.write_text(json.dumps({**body, "schema": schema}))
    return run


def test_a_newer_run_asks_for_a_newer_program(run: Run) -> None:
    with pytest.raises(UserError, match=r"run 'first' has schema 2, this program reads up to 1: update the program\."):
        with_schema(run, 2).config  # noqa: B018


@pytest.mark.parametrize("schema", [0, None, "1", -1, {"x": "y" * 10_000}])
def test_an_unknown_schema_says_what_is_read(run: Run, schema: object) -> None:
    with pytest.raises(UserError, match="this program reads 1: open it with the program that made it, or make it again") as caught:
        with_schema(run, schema).config  # noqa: B018
    assert len(str(caught.value)) < 200


def test_an_older_schema_opens_with_defaults(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "SCHEMA_VERSION", 2)
    monkeypatch.setattr(records, "READABLE", (1,))
    config = with_schema(run, 1, drop="keep").config
    assert config.keep == "newest" and config.rounds == 6
    assert run.finished("plain") == [0, 1, 2, 3, 4, 5, 6] and run.metrics().height > 0


def test_recorded_runs_open() -> None:
    found = [path for path in sorted(store.recorded_root().iterdir()) if (path / "run.json").is_file()]
    assert found
    for path in found:
        own = Run(path)
        assert own.config.rounds >= 1 and own.metrics().height > 0 and read_json(path / "run.json")["schema"] == 1
