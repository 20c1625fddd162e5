"""A run on two processes: the same samples, selection and metrics as one; a rank that dies; the shares of each call."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest
import small
import tiny
import tomli_w

from dces_core import cli, launch, store, torchrun
from dces_core.config import Edit, Generate, RunConfig, parse
from dces_core.engines import teacher
from dces_core.engines.base import Example
from dces_core.engines.hf import HFModel
from dces_core.engines.sharded import ShardedModel
from dces_core.errors import UserError
from dces_core.ranks import LOST, Ranks
from dces_core.store import WEIGHTS, Run

ROOT = Path(__file__).resolve().parent.parent
#: Relative, of every metric; docs/devices.md states it. The gradient of a batch is summed in another order.
TOLERANCE = 1e-3
LR = 1e-3  # twenty times the default
MEASURED = ("logprob", "entropy", "distance", "score", "margin")
LIMIT_S = 120.0


def settings(folder: Path) -> RunConfig:
    """Two rounds whose training batches do not divide by two, with a learning rate that changes what is sampled."""
    return small.small_config(
        folder, engine="hf", model=str(tiny.folder("llama")), device="cpu", threads=1, arms=["dces"], pool={"n": 10},
        generate={"max_new_tokens": 12, "batch_size": 4}, train={"precision": "fp32", "batch_size": 3, "lr": LR},
        eval={"pairs": 4, "passages": 2},
    )  # fmt: skip


class Launched:
    """`dces run` or `dces resume` on two processes, whose device's lock lies in a cache of its own."""

    def __init__(self, home: Path, *arguments: str) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DCES_CACHE": str(home / "cache"), "DCES_RUNS": str(home)}
        command = [sys.executable, "-m", "dces_core.cli", *arguments, "--launcher", "torchrun", "--processes", "2"]
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def ranks(self) -> dict[int, psutil.Process]:
        """The processes of the run by rank."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return {int(child.environ()["RANK"]): child for child in children if "RANK" in child.environ()}

    def end(self) -> tuple[int, str]:
        """Exit code and what was said on stderr."""
        _, said = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, said


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_same(one: Run, other: Run) -> None:
    """Samples and selection equal but for measured numbers, which like all metrics lie within the tolerance."""
    for arm in one.config.arms:
        for round_ in (1, 2):
            left, right = one.samples(arm, round_), other.samples(arm, round_)
            assert left.height == 20 and left.columns == right.columns
            for name in left.columns:
                if round_ == 2 and name in MEASURED:
                    np.testing.assert_allclose(left[name].to_numpy(), right[name].to_numpy(), rtol=TOLERANCE)
                else:
                    assert left[name].equals(right[name]), (arm, round_, name)
            losses = [run.loss(arm, round_)["loss"] for run in (one, other)]
            np.testing.assert_allclose(*losses, rtol=TOLERANCE)
    keys = ["arm", "round", "test_set", "metric"]
    both = one.metrics().join(other.metrics(), on=keys, suffix="_other")
    assert both.height == one.metrics().height == other.metrics().height > 0
    assert both["value"].is_null().equals(both["value_other"].is_null())
    first = both.filter(pl.col("round") == 0)
    assert first["value"].equals(first["value_other"]), "nothing was trained yet: the same to the last bit"
    values = both.drop_nulls(["value", "value_other"])
    np.testing.assert_allclose(values["value"].to_numpy(), values["value_other"].to_numpy(), rtol=TOLERANCE, atol=1e-6)


@pytest.mark.slow
def test_two_processes_do_what_one_does_and_a_death_is_a_clean_end(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    config = settings(tmp_path)
    recipe = tmp_path / "two.toml"
    recipe.write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True, exclude_defaults=True)), encoding="utf-8")
    two = Run(tmp_path / "two")
    begun = Launched(tmp_path, "run", str(recipe), "--out", str(two.path))
    wait_for(lambda: bool(two.stage(1, "dces", "train").done))
    ranks = begun.ranks()
    ranks[1].kill()
    code, said = begun.end()
    assert code == 1 and sorted(ranks) == [0, 1]
    assert not [process for process in ranks.values() if process.is_running()], "no rank outlives the run"
    assert launch.state(two) == "failed" and two.finished("dces", "train") == [1]
    assert two.status()["error"] == "rank 1 of 2 was killed by SIGKILL; finished stages are kept: resume."
    assert "rank 1 of 2 was killed by SIGKILL" in said and "Traceback" not in said

    one, alone = store.create(config, {}, tmp_path / "one"), Run(tmp_path / "alone")
    small.go_on(one)
    shutil.copytree(two.path, alone.path)
    assert Launched(tmp_path, "resume", "two").end()[0] == 0
    assert launch.state(two) == "done" and not psutil.Process().children(recursive=True)
    small.go_on(alone)
    for other in (two, alone):
        assert_same(one, other)
    weights = [load_file(run.stage(2, "dces", "train").file(WEIGHTS)) for run in (one, two)]
    assert list(weights[0]) == list(weights[1])
    apart = np.concatenate([(weights[0][name] - weights[1][name]).abs().numpy().ravel() for name in weights[0]])
    assert apart.mean() < 1e-3 * LR
    assert (apart > 0.1 * LR).mean() < 1e-4, "AdamW's first steps know only a gradient's sign, which rounding decides where it is nearly 0"
    notes = [event["sharding"] for event in two.events()[0] if "sharding" in event]
    assert len(notes) >= 2 and all(note == notes[0] for note in notes)
    assert notes[0] == {"kind": "FSDP2", "world": 2, "backend": "gloo", "blocks": 2, "weights": len(weights[0])}
    assert json.loads((two.path / "run.json").read_text(encoding="utf-8"))["launcher"] == {"name": "torchrun", "processes": 2}


class Here(Ranks):
    """All ranks in this process, one after the other."""

    def __init__(self, world: int) -> None:
        self.rank, self.world = 0, world
        self.model: Any = None

    def call(self, name: str, arguments: tuple[Any, ...], work: Callable[[], Any]) -> list[Any]:
        if name == "open":
            return [work()]
        shares = [work()]
        for rank in range(1, self.world):
            self.rank = rank
            shares.append(self.model.answer(name, arguments))
        self.rank = 0
        return shares


def test_shares_put_together_are_what_one_process_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher.batches, "__defaults__", (256,))  # many batches of few tokens
    config = parse({"model": str(tiny.folder("qwen3")), "device": "cpu", "train": {"precision": "fp32"}})
    here = Here(3)
    whole, shared = HFModel(config), ShardedModel(config, here)
    here.model = shared
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 40_000, rng.integers(1, 9)).tolist() for _ in range(23)]
    wanted = Generate(max_new_tokens=10, batch_size=4)
    noise = rng.random((len(prompts), 10))
    limits = [int(n) for n in rng.integers(1, 11, len(prompts))]
    for more in (None, limits):
        left, right = (model.generate(prompts, wanted, noise, limits=more) for model in (whole, shared))
        assert [g.ids for g in left] == [g.ids for g in right]
        assert all(np.array_equal(a.logprob, b.logprob) for a, b in zip(left, right, strict=True))
    lengths = rng.integers(1, 50, 30)
    examples = [Example([5, 6], rng.integers(0, 40_000, n).tolist()) for n in lengths]
    scores = [model.score(examples) for model in (whole, shared)]
    for name in ("example", "target", "logprob", "entropy", "confidence", "correct", "mass"):
        assert np.array_equal(getattr(scores[0], name), getattr(scores[1], name)), name
    assert np.array_equal(whole.divergence(examples[:20]), shared.divergence(examples[:20]))
    draws = [rng.random(n) for n in lengths]
    proposals = [model.resample(examples, Edit(), 1.0, draws) for model in (whole, shared)]
    for a, b in zip(*proposals, strict=True):
        assert np.array_equal(a.drawn, b.drawn) and np.array_equal(a.probability, b.probability)
    assert np.array_equal(whole.embed_hidden(["a", "some text", "b", "more"]), shared.embed_hidden(["a", "some text", "b", "more"]))
    assert shared.generate([], wanted, noise[:0]) == [] and shared.embed_hidden([]).shape == (0, 1)


@pytest.mark.parametrize(
    ("before", "exits", "error"),
    [
        ("running", {0: -9}, "rank 0 of 2 was killed by SIGKILL; finished stages are kept: resume."),
        ("failed", {0: 1, 1: 1}, "rank 1 of 2 failed: RuntimeError: no room; finished stages are kept: resume."),
        ("stopped", {1: -9}, "rank 1 of 2 was killed by SIGKILL; finished stages are kept: resume."),
        ("done", {1: -9}, None),
        ("failed", {0: 1, 1: 3}, f"{LOST}."),
        ("stopped", {0: -15, 1: -15}, None),
    ],
)
def test_the_first_to_die_by_itself_is_named(tmp_path: Path, before: str, exits: dict[int, int], error: str | None) -> None:
    run = small.small_run(tmp_path)
    run.write_status({"state": before, "error": f"{LOST}." if before == "failed" else None})
    failures = {rank: SimpleNamespace(exitcode=code, message="RuntimeError: no room") for rank, code in exits.items()}
    torchrun._judge(run, 2, failures)
    assert (run.status()["state"], run.status()["error"]) == ("failed" if error else before, error)


def test_what_rank_0_said_stands(tmp_path: Path) -> None:
    run = small.small_run(tmp_path)
    run.write_status({"state": "failed", "error": "the disk is full"})
    torchrun._judge(run, 2, {1: SimpleNamespace(exitcode=-9, message="")})
    assert run.status()["error"] == "the disk is full"


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DCES_RUNS", str(tmp_path))
    for arguments, what in (
        (["--processes", "2"], "needs --launcher torchrun"),
        (["--launcher", "torchrun", "--processes", "0"], "must be at least 1"),
        (["--launcher", "torchrun", "--processes", "2"], "needs engine = 'hf'"),
    ):
        assert cli.main(["run", "smoke", *arguments]) == 2
        assert what in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(torchrun, "free_memory_bytes", lambda: 1000)
    with pytest.raises(UserError, match="use fewer"):
        torchrun.check(settings(tmp_path), 2)


def test_threads_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun.machine, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert torchrun.facts_of(settings(tmp_path), 4)["cpu"]["threads"] == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert torchrun.facts_of(settings(tmp_path), 4)["cpu"]["threads"] == 3
    assert torchrun.facts_of(settings(tmp_path), 0) == {}
