from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from kit import fake_rounds_here, fake_rounds_in_workers, make_config, wait_for

from dces_core import cli, config, damage, doctor, launch, models, processes, store
from dces_core.errors import RunFailed
from dces_core.events import Events
from dces_core.records import METRICS
from dces_core.store import Run

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "umap", "numba", "sklearn", "hdbscan", "sentence_transformers")
METRIC_HEADER = ["arm", "seed", "round", "test_set", "metric", "value", "n", "low", "high", "reason"]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    import tomli_w

    monkeypatch.setenv("DCES_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("DCES_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "own.toml"
    path.write_text(tomli_w.dumps(make_config(tmp_path).model_dump(mode="json")), encoding="utf-8")
    return str(path)


def write_rounds(run: Run, events: Events) -> None:
    """One evaluation for all, one selection of arm dces."""
    with events.span(0, "shared", "evaluate"), run.commit(run.stage(0, store.SHARED, "evaluate"), "a") as draft:
        rows = [
            {"seed": 0, "round": 0, "test_set": "own", "metric": "ppl", "value": 6.5, "n": 40, "low": 6.0, "high": 7.0},
            {"seed": 0, "round": 0, "test_set": "", "metric": "vendi", "value": None, "n": 0, "reason": "-no texts"},
        ]
        draft.table("metrics", rows)
        draft.table("probes", [{"round": 0, "prompt_id": "p", "prompt": "Say\n=1", "mode": "greedy", "text": "=1+1", "loop": False}])
    with events.span(1, "dces", "select"), run.commit(run.stage(1, "dces", "select"), "a") as draft:
        edits = [{"position": 2, "before": " a", "after": " b"}]
        draft.table("samples", [{"id": "r01-000000", "arm": "dces", "round": 1, "text": "@you", "logprob": -1.5, "edits": edits}])


@pytest.fixture
def made(recipe: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    fake_rounds_here(monkeypatch, write_rounds)
    assert cli.main(["run", recipe, "--set", "seed=7"]) == 0
    return Run(Path(capfd.readouterr().out.splitlines()[-1]))


def output(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == 0
    return capfd.readouterr().out


def refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_run_ends_with_its_directory(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fake_rounds_here(monkeypatch, write_rounds)
    assert cli.main(["run", recipe, "--set", "seed=7", "--set", "pool.n=3", "--out", str(tmp_path / "here")]) == 0
    captured = capfd.readouterr()
    assert captured.out == f"{tmp_path / 'here'}\n"
    assert "select" in captured.err and "ETA" in captured.err
    settings = Run(tmp_path / "here").config
    assert (settings.seed, settings.pool.n) == (7, 3)
    assert "exists already" in refused(capfd, "run", recipe, "--out", str(tmp_path / "here"))


def test_a_failed_run_exits_1_with_the_reason(recipe: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def advance(run: Run, events: Events) -> None:
        raise RunFailed("the loss is NaN in round 1")

    fake_rounds_here(monkeypatch, advance)
    assert cli.main(["run", recipe]) == 1
    captured = capfd.readouterr()
    assert "the loss is NaN in round 1" in captured.err
    run = Run(Path(captured.out.splitlines()[-1]))
    assert launch.state(run) == "failed"
    fake_rounds_here(monkeypatch, write_rounds)
    assert cli.main(["resume", run.id]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == str(run.path)
    monkeypatch.setattr(damage, "damage", lambda run: [])  # its rounds wrote nothing
    assert "nothing to resume" in refused(capfd, "resume", run.id)


@pytest.mark.slow
def test_launch_ls_stop_resume(recipe: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fake_rounds_in_workers(monkeypatch, tmp_path, "sleep")
    run = Run(Path(output(capfd, "launch", recipe).strip()))
    wait_for(lambda: launch.state(run) == "running")
    (row,) = [row for row in json.loads(output(capfd, "ls", "--format", "json")) if row["id"] == run.id]
    assert (row["state"], row["arms"], row["engine"]) == ("running", "plain,dces", "fake")
    assert "is running" in refused(capfd, "resume", run.id)
    assert output(capfd, "stop", run.id) == "stopped\n"
    monkeypatch.setenv("FAKE_ROUNDS", "done")
    output(capfd, "resume", run.id, "--detach")
    wait_for(lambda: launch.state(run) == "done")


def test_metrics_repeat_round_0_and_keep_undefined_rows(made: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert list(METRICS) == METRIC_HEADER
    rows = list(csv.DictReader(io.StringIO(output(capfd, "show", made.id, "--metrics", "--format", "csv"))))
    assert list(rows[0]) == METRIC_HEADER
    assert [(row["arm"], row["metric"], row["value"]) for row in rows] == [
        ("dces", "vendi", ""),
        ("dces", "ppl", "6.5"),
        ("plain", "vendi", ""),
        ("plain", "ppl", "6.5"),
    ]
    assert rows[0]["reason"] == "'-no texts"
    values = json.loads(output(capfd, "show", made.id, "--metrics", "--format", "json"))
    assert values[0]["value"] is None and values[0]["reason"] == "-no texts" and values[0]["test_set"] == ""
    assert "vendi" in output(capfd, "show", made.id, "--metrics")


def test_info(made: Run, capfd: pytest.CaptureFixture[str]) -> None:
    info = json.loads(output(capfd, "show", made.id, "--info", "--format", "json"))
    assert {"engine", "model", "arms", "seeds", "rounds", "state", "config_hash", "versions", "cpu", "device", "pool"} <= set(info)
    assert (info["engine"], info["arms"], info["seeds"], info["rounds"], info["state"]) == ("fake", ["plain", "dces"], [7], 1, "done")
    assert info["config_hash"] == made.config.digest() and info["versions"]["polars"] and info["cpu"]["cores"] >= 1
    for kind in ("table", "csv"):
        assert "config_hash" in output(capfd, "show", made.id, "--info", "--format", kind)


def test_samples(made: Run, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (row,) = csv.DictReader(io.StringIO(output(capfd, "samples", made.id, "--arm", "dces", "--round", "1", "--format", "csv")))
    assert row["text"] == "'@you" and row["logprob"] == "-1.5" and row["x"] == ""
    assert json.loads(row["edits"]) == [{"position": 2, "before": " a", "after": " b"}]
    output(capfd, "samples", made.id, "--arm", "dces", "--round", "1", "--format", "parquet", "--out", str(tmp_path / "s.parquet"))
    assert pl.read_parquet(tmp_path / "s.parquet")["text"].to_list() == ["@you"]
    assert "it has: plain, dces" in refused(capfd, "samples", made.id, "--arm", "random", "--round", "1")
    assert "rounds that have: 1" in refused(capfd, "samples", made.id, "--arm", "dces", "--round", "2")


def test_samples_as_parquet_on_stdout(made: Run) -> None:
    command = [sys.executable, "-m", "dces_core.cli", "samples", str(made.path), "--arm", "dces", "--round", "1", "--format", "parquet"]
    done = subprocess.run(command, capture_output=True, check=True, cwd=ROOT)
    assert pl.read_parquet(io.BytesIO(done.stdout)).height == 1


def test_probes(made: Run, capfd: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(output(capfd, "probes", made.id, "--format", "csv"))))
    assert list(rows[0]) == ["arm", "round", "prompt", "mode", "text", "loop"]
    assert [(row["arm"], row["prompt"], row["text"]) for row in rows] == [("plain", "Say\n=1", "'=1+1"), ("dces", "Say\n=1", "'=1+1")]
    assert json.loads(output(capfd, "probes", made.id, "--format", "json"))[0]["text"] == "=1+1"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["run", "no-such-recipe"], "recipe = 'no-such-recipe'"),
        (["run", "OWN", "--set", "pool.m=3"], "pool.m is not a setting"),
        (["run", "OWN", "--set", "pool.n=1"], "pool.n = 1 is not allowed"),
        (["run", "OWN", "--set", "pool"], "section.key=value"),
        (["run", "OWN", "--set", "data.train=absent.jsonl"], "data.train"),
        (["launch", "OWN", "--set", "engine=hf", "--set", "model=./absent"], "model = './absent'"),
        (["show", "../../etc", "--info"], "run = '../../etc' is not here"),
        (["stop", "none"], "run = 'none' is not here"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(recipe: str, capfd: pytest.CaptureFixture[str], arguments: list[str], wanted: str) -> None:
    assert wanted in refused(capfd, *[recipe if word == "OWN" else word for word in arguments])
    assert store.discover(recorded=False) == []


def test_an_unreadable_run_keeps_its_line(made: Run, capfd: pytest.CaptureFixture[str]) -> None:
    (made.path / "run.json").write_text("{", encoding="utf-8")
    (row,) = [row for row in json.loads(output(capfd, "ls", "--format", "json")) if row["id"] == made.id]
    assert row["state"] == "unreadable"
    assert "no readable run.json" in refused(capfd, "show", made.id, "--metrics")


def test_shipped_recipes_are_valid() -> None:
    for name in config.recipe_names():
        config.load_recipe(name)
    assert config.load_recipe("smoke", ["arms=plain"]).arms == ("plain",), "one name alone is a list of one"
    assert config.load_recipe("smoke", ["arms=plain,dces"]).arms == ("plain", "dces")


def test_models(recipe: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (row,) = json.loads(output(capfd, "models", "ls", "--format", "json"))
    assert row["name"] == models.DEFAULT and row["pulled"] is False
    monkeypatch.setattr(models, "pull", lambda report: report(0.5, "downloading") or tmp_path)
    assert cli.main(["models", "pull"]) == 0
    captured = capfd.readouterr()
    assert captured.out == f"{tmp_path}\n" and "50%  downloading" in captured.err


def test_doctor_reports_what_the_sub_process_says(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "_devices", lambda: [{"name": "a cpu", "kind": "cpu", "memory_bytes": 1, "bf16": False}])
    facts = json.loads(output(capfd, "doctor", "--format", "json"))
    assert {"devices", "memory", "disk", "versions", "models", "cpu"} <= set(facts)
    assert "a cpu" in output(capfd, "doctor")
    done = subprocess.CompletedProcess([], 0, stdout=json.dumps(facts).encode())
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: done)
    doctor.cached_doctor.cache_clear()
    assert doctor.cached_doctor() == facts
    doctor.cached_doctor.cache_clear()
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: (_ for _ in ()).throw(subprocess.TimeoutExpired("dces", 1)))
    assert doctor.cached_doctor() == {"error": "dces doctor did not answer: TimeoutExpired"}
    doctor.cached_doctor.cache_clear()


def test_the_web_process_side_imports_nothing_heavy() -> None:
    code = "import sys; from dces_core import launch, models, doctor, export, cli, worker, progress;"
    code += f"print([n for n in {HEAVY} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_process_identity_is_more_than_a_pid() -> None:
    mine = processes.identity()
    assert processes.alive(**{"pid": mine["pid"], "started": mine["pid_started"]})
    others = [(mine["pid"], mine["pid_started"] - 10), (None, 0.0), (0, 0.0), (-1, 0.0), (2**22 + 1, 0.0), ("1", 0.0), (1, None)]
    for pid, started in others:
        assert not processes.alive(pid, started)
