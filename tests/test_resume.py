"""An interrupted run, gone on with, is the uninterrupted run: same metrics, samples and weights to the last bit, nothing twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
from small import attempt, check_metrics, contents, finished, go_on, small_config, small_run

from dces_core import rounds
from dces_core.errors import RunFailed
from dces_core.machine import threads
from dces_core.store import SHARED, WEIGHTS, Run

ARMS = ["plain", "dces"]
COMMAND = [sys.executable, "-m", "dces_core.cli"]
STEPS = [
    (0, SHARED, "evaluate"), (1, SHARED, "generate"), (1, SHARED, "reference"), (1, "plain", "select"), (1, "dces", "select"),
    (1, "dces", "train"), (1, "dces", "evaluate"), (2, "plain", "generate"), (2, "plain", "train"), (2, "dces", "generate"),
    (2, "dces", "select"), (2, "dces", "evaluate"),
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The uninterrupted run."""
    return finished(tmp_path_factory.mktemp("whole"), arms=ARMS)


def equals(run: Run, other: Run) -> None:
    """Every file of every stage, the metrics, and no stage done twice at the end."""
    check_metrics(run)
    assert run.metrics().equals(other.metrics())
    assert run.probes().equals(other.probes())
    for arm in other.config.arms:
        for round_ in (1, 2):
            assert run.samples(arm, round_).equals(other.samples(arm, round_))
    assert contents(run) == contents(other)
    assert not list(run.path.glob("round-*/*/.tmp-*"))


def spans(run: Run) -> list[tuple[int, str, str]]:
    return [(event["round"], event["arm"], event["stage"]) for event in run.events()[0] if event["kind"] == "span"]


def copied(whole: Run, folder: Path) -> Run:
    """The same settings in another place: the data files are those of `whole`, so that nothing but the interruption differs."""
    from dces_core import store

    return store.create(whole.config, {}, folder / "run")


def copied_done(whole: Run, folder: Path) -> Run:
    """The finished run in another place."""
    shutil.copytree(whole.path, folder / "run")
    return Run(folder / "run")


def interrupt(patch: pytest.MonkeyPatch, where: tuple[int, str, str], early: bool) -> None:
    """Fail before a stage writes anything, or when it has written all but its `_done.json`."""
    real = rounds.Lab.do

    def do(self: Any, round_: int, arm: str, name: str, after: Any, make: Any) -> Any:
        def broken(draft: Any, progress: Any) -> None:
            if not early:
                make(draft, progress)
            raise RunFailed("cut")

        return real(self, round_, arm, name, after, broken if (round_, arm, name) == where else make)

    patch.setattr(rounds.Lab, "do", do)


@pytest.mark.slow
@pytest.mark.parametrize("where", STEPS, ids=str)
def test_an_interruption_in_any_stage(whole: Run, where: tuple[int, str, str], tmp_path: Path) -> None:
    run = copied(whole, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, where, early=STEPS.index(where) % 2 == 0)
        assert attempt(run) == "failed"
    assert run.stage(*where).done is None
    go_on(run)
    equals(run, whole)
    assert len(spans(run)) == len(set(spans(run))) == len(spans(whole))


def cut_and_go_on(run: Run, other: Run, places: list[tuple[int, str, str]]) -> None:
    """A run that fails at each of these places in turn equals one that never failed."""
    for where in places:
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, where, early=False)
            assert attempt(run) == "failed"
    go_on(run)
    equals(run, other)


def test_many_interruptions_one_after_the_other(whole: Run, tmp_path: Path) -> None:
    cut_and_go_on(copied(whole, tmp_path), whole, STEPS)


# damage -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["delete", "truncate", "flip", "done"])
@pytest.mark.parametrize(
    ("where", "file"),
    [
        ((1, SHARED, "generate"), "pool.parquet"),
        ((1, "dces", "select"), "training.parquet"),
        ((2, "dces", "train"), WEIGHTS),
        ((0, SHARED, "evaluate"), "metrics.parquet"),
    ],
    ids=str,
)
def test_a_damaged_stage_is_done_again(whole: Run, where: tuple[int, str, str], file: str, damage: str, tmp_path: Path) -> None:
    run = copied_done(whole, tmp_path)
    stage = run.stage(*where)
    path = stage.file("_done.json" if damage == "done" else file)
    data = path.read_bytes()
    if damage == "delete":
        path.unlink()
    elif damage == "flip":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :])
    else:
        path.write_bytes(data[: len(data) // 2])
    before = len(spans(run))
    go_on(run)
    equals(run, whole)
    assert spans(run)[before:].count(where) == 1


def test_weights_that_were_pruned_are_trained_again(whole: Run, tmp_path: Path) -> None:
    run = copied_done(whole, tmp_path)
    assert not run.stage(1, "dces", "train").file(WEIGHTS).exists()
    for name in ("generate", "train"):
        run.stage(2, "dces", name).file("_done.json").unlink()
    go_on(run)
    equals(run, whole)
    assert any("weights of dces" in event.get("text", "") for event in run.events()[0])


def test_a_long_chain_of_pruned_weights(tmp_path: Path) -> None:
    run = finished(tmp_path, arms=["dces"], rounds=4)
    before = contents(run)
    for name in ("generate", "train"):
        run.stage(4, "dces", name).file("_done.json").unlink()
    go_on(run)
    assert contents(run) == before


def test_fine_tuned_start_and_accumulated_data_go_on_too(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"arms": ["dces"], "train": {"round0": "finetune", "regime": "accumulate-subsample", "init": "base"}}
    one, two = finished(tmp_path, "one", **changes), small_run(tmp_path, "two", **changes)
    cut_and_go_on(two, one, [(0, SHARED, "train"), (2, "dces", "select"), (2, "dces", "train")])


@pytest.mark.slow
def test_a_real_architecture_goes_on_bit_by_bit(tmp_path: Path) -> None:
    """gpt2 has dropout: the noise of training must not depend on what ran before in the process."""
    model = str(tiny.folder("gpt2"))
    changes: dict[str, Any] = {"engine": "hf", "model": model, "device": "cpu", "arms": ["dces"], "train": {"precision": "fp32"}}
    one, two = finished(tmp_path, "one", **changes), small_run(tmp_path, "two", **changes)
    cut_and_go_on(two, one, [(1, "dces", "train"), (2, "dces", "train")])


@pytest.mark.slow
def test_maps_are_the_same_after_an_interruption_and_leave_torch_its_threads(tmp_path: Path) -> None:
    import torch

    threads = torch.get_num_threads()
    changes: dict[str, Any] = {"arms": ["dces"], "map": {"on": True}, "cluster": {"clusterer": "hdbscan"}, "pool": {"n": 24}}
    one = finished(tmp_path, "one", **changes)
    two = small_run(tmp_path, "two", **changes)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, (2, "dces", "map"), early=True)
        assert attempt(two) == "failed"
    go_on(two)
    equals(two, one)
    assert torch.get_num_threads() == threads


# processes --------------------------------------------------------------------------------------------------------------


def environment(folder: Path) -> dict[str, str]:
    """The command as a user runs it, with its own runs and locks, and slower stages so that a kill meets one at work."""
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, time\n"
        "if os.environ.get('SLOW'):\n"
        "    import dces_core.store as store\n"
        "    real = store.Run.commit\n"
        "    from contextlib import contextmanager\n"
        "    @contextmanager\n"
        "    def commit(self, stage, inputs, **facts):\n"
        "        with real(self, stage, inputs, **facts) as draft:\n"
        "            yield draft\n"
        "            (self.path / 'inside').write_text(str(stage.path.relative_to(self.path)))\n"
        "            time.sleep(0.3)\n"
        "    store.Run.commit = commit\n",
        encoding="utf-8",
    )
    root = Path(__file__).resolve().parent.parent
    return {
        **os.environ,
        "DCES_RUNS": str(folder / "runs"),
        "DCES_CACHE": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join([str(site), str(root)]),
        "OMP_NUM_THREADS": str(threads()),
    }


def kill_in(process: subprocess.Popen[bytes], run: Run, where: tuple[int, str, str]) -> None:
    """SIGKILL when the files of this stage are written and not yet committed."""
    wanted, deadline = "round-{:02d}/{}/{}".format(*where), time.monotonic() + 60
    inside = run.path / "inside"
    while not (inside.exists() and inside.read_text() == wanted):
        assert process.poll() is None, f"the run ended before {wanted}"
        assert time.monotonic() < deadline, f"{wanted} did not come"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_kill_9_at_several_moments_and_dces_resume(whole: Run, tmp_path: Path) -> None:
    environ, directory, recipe = environment(tmp_path), tmp_path / "runs" / "killed", tmp_path / "recipe.toml"
    recipe.write_text(toml(whole.config.model_dump(mode="json")), encoding="utf-8")
    run, command = Run(directory), [*COMMAND, "run", str(recipe), "--out", str(directory)]
    moments = [(1, SHARED, "generate"), (1, "dces", "train"), (2, "plain", "evaluate"), (2, "dces", "select")]
    for where in moments:
        process = subprocess.Popen(command, env={**environ, "SLOW": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        kill_in(process, run, where)
        assert run.stage(*where).done is None
        assert list(run.path.glob("round-*/*/.tmp-*"))
        command = [*COMMAND, "resume", str(directory)]
        environ["OMP_NUM_THREADS"] = "1"  # a resumed run keeps the threads it began with
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(directory)
    equals(run, whole)
    assert len(spans(run)) == len(set(spans(run))), "a finished stage was done twice"
    again = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert again.returncode == 2 and "done" in again.stderr


def toml(values: dict[str, Any], path: str = "") -> str:
    """Plain settings as TOML: strings, numbers, booleans, lists and sections."""
    import json

    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, dict)]
    parts = [toml(value, f"{path}.{key}" if path else key) for key, value in values.items() if isinstance(value, dict)]
    return "\n".join([f"[{path}]" if path else "", *lines, *parts]) + "\n"


def test_the_settings_survive_the_recipe(whole: Run, tmp_path: Path) -> None:
    from dces_core.config import load_recipe

    path = tmp_path / "r.toml"
    path.write_text(toml(whole.config.model_dump(mode="json")), encoding="utf-8")
    assert load_recipe(str(path)) == whole.config
    assert small_config(tmp_path).digest() != whole.config.digest()
