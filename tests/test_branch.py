"""A continued run is the uninterrupted one; a fork shares its first rounds with its parent and says what it changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from small import contents, finished, go_on, small_config, small_run

from dces_core import branch, launch, store
from dces_core.config import RunConfig, parse
from dces_core.errors import UserError
from dces_core.stage import read_json
from dces_core.store import SHARED, WEIGHTS, Run

ARMS = ["plain", "dces"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DCES_RUNS", str(tmp_path / "runs"))
    return tmp_path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("branch")


@pytest.fixture(scope="module")
def two(place: Path) -> Run:
    """The parent: two rounds, with the newest weights."""
    return finished(place, "two", arms=ARMS)


@pytest.fixture(scope="module")
def kept(place: Path) -> Run:
    """Two rounds with all weights."""
    return finished(place, "kept", arms=ARMS, keep="all")


def other(run: Run, **changes: Any) -> RunConfig:
    """The run's settings with `changes` (sections are merged)."""
    values = run.config.model_dump(mode="json")
    for name, value in changes.items():
        values[name] = {**values[name], **value} if isinstance(value, dict) else value
    return parse(values)


def spans(run: Run) -> list[tuple[int, str, str]]:
    return [(event["round"], event["arm"], event["stage"]) for event in run.events()[0] if event["kind"] == "span"]


# continued --------------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "plain and dces": {"arms": ARMS},
    "keep ends": {"arms": ["dces"], "keep": "ends"},
    "fine-tuned start, accumulated data, restart": {
        "arms": ["dces-targets"],
        "train": {"round0": "finetune", "regime": "accumulate-subsample", "init": "base"},
    },
    "own pools, a controlled sampler, a row that never trains": {"arms": ["plain-t1", "plain-tctl", "frozen"]},
    "smoothed controller": {"arms": ["dces"], "controller": {"ema": 0.5}},
}


FAST = "plain and dces"
NAMES = [name if name == FAST else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]


@pytest.mark.parametrize("name", NAMES)
def test_a_continued_run_is_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    whole = finished(tmp_path, "whole", **VARIANTS[name], rounds=4)
    half = finished(tmp_path, "half", **VARIANTS[name], rounds=2)
    before = contents(half)
    run = branch.continue_run(half, 2, tmp_path / "continued")
    assert launch.state(run) == "queued"
    go_on(run)
    assert contents(run) == contents(whole), "every file of every stage, and the hashes of their inputs"
    assert run.metrics().equals(whole.metrics()) and run.probes().equals(whole.probes())
    assert run.metrics().filter(arm=run.config.arms[0])["round"].unique().sort().to_list() == list(range(run.config.rounds + 1))
    assert contents(half) == before, "the finished run is as it was"
    assert min(round_ for round_, _, _ in spans(run)) == 3, "nothing of the first rounds was done again"
    assert run.manifest["config_hash"] == whole.config.digest()


@pytest.mark.slow
def test_with_maps_too(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"arms": ["dces"], "map": {"on": True}, "pool": {"n": 16}}
    whole, half = finished(tmp_path, "whole", **changes, rounds=3), finished(tmp_path, "half", **changes, rounds=2)
    run = branch.continue_run(half, 1, tmp_path / "continued")
    go_on(run)
    assert contents(run) == contents(whole)


@pytest.mark.slow
def test_a_real_architecture_goes_on_bit_by_bit(tmp_path: Path) -> None:
    model = str(tiny.folder("gpt2"))
    changes: dict[str, Any] = {"engine": "hf", "model": model, "device": "cpu", "arms": ["dces"], "train": {"precision": "fp32"}}
    whole, half = finished(tmp_path, "whole", **changes, rounds=2), finished(tmp_path, "half", **changes, rounds=1)
    run = branch.continue_run(half, 1, tmp_path / "continued")
    go_on(run)
    assert contents(run) == contents(whole)


def test_a_chain_of_continuations_after_the_first_run_was_deleted(tmp_path: Path) -> None:
    whole, first = finished(tmp_path, "whole", arms=["dces"], rounds=3), finished(tmp_path, "first", arms=["dces"], rounds=1)
    second = branch.continue_run(first, 1, tmp_path / "second")
    launch.delete(first)
    go_on(second)
    third = branch.continue_run(second, 1, tmp_path / "third")
    go_on(third)
    assert contents(third) == contents(whole)
    assert third.manifest["parent"]["run"] == "second"


def test_what_is_taken_over_is_linked_and_says_from_where(two: Run, tmp_path: Path) -> None:
    run = branch.continue_run(two, 3, tmp_path / "more")
    for stage, inputs in branch.walk(two, ARMS, 2):
        taken = store.Run(run.path).path / stage.path.relative_to(two.path)
        done = read_json(taken / "_done.json")
        assert done["inputs"] == inputs(run.config) != inputs(two.config) == done["taken_from"]["inputs"]
        assert done["taken_from"]["run"] == "two"
        for name in done["files"]:
            assert not stage.file(name).exists() or os.path.samefile(stage.file(name), taken / name)
    assert run.finished("dces") == [0, 1, 2]
    parent = run.manifest["parent"]
    assert (parent["kind"], parent["run"], parent["round"], parent["arms"]) == ("continued", "two", 2, ARMS)
    assert parent["changed"] == {"rounds": [2, 5]} and parent["config_hash"] == two.config.digest()


def test_without_hard_links_files_are_copied(two: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    run = branch.continue_run(two, 1, tmp_path / "more")
    assert contents(run).keys() == contents(two).keys()


def test_the_threads_are_those_of_the_parent(two: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.machine, "threads", lambda: 97)
    assert branch.continue_run(two, 1, tmp_path / "more").threads == two.threads


def test_only_a_finished_run_is_continued(two: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="more = 0"):
        branch.continue_run(two, 0)
    with pytest.raises(UserError, match="rounds = 10001 is not allowed"):
        branch.continue_run(two, 9999)
    waiting = small_run(tmp_path, "waiting")
    with pytest.raises(UserError, match=r"is lost: only a finished run .* resume it first"):
        branch.continue_run(waiting, 1)
    launch.queue(waiting)
    with pytest.raises(UserError, match=r"is queued: .* wait until it is done"):
        branch.continue_run(waiting, 1)
    monkeypatch.setattr(store, "recorded_root", lambda: two.path.parent)
    with pytest.raises(UserError, match="as tables only"):
        branch.continue_run(two, 1)
    assert store.discover(recorded=False) == []


# walking ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_walk_finds_every_stage_with_its_hash(name: str, tmp_path: Path) -> None:
    run = finished(tmp_path, "run", **VARIANTS[name])
    found = {str(stage.path.relative_to(run.path)): inputs(run.config) for stage, inputs in branch.walk(run, run.config.arms, 2)}
    assert found == {name: files["inputs"] for name, files in contents(run).items()}


@pytest.mark.parametrize("damage", ["flip", "inputs", "delete"])
def test_damaged_stages_are_not_taken_over(two: Run, tmp_path: Path, damage: str) -> None:
    shutil.copytree(two.path, tmp_path / "damaged")
    run = Run(tmp_path / "damaged")
    stage = run.stage(1, "dces", "select")
    if damage == "flip":
        data = bytearray(stage.file("samples.parquet").read_bytes())
        data[len(data) // 2] ^= 255
        stage.file("samples.parquet").write_bytes(data)
    elif damage == "inputs":
        text = stage.file("_done.json").read_text(encoding="utf-8")
        stage.file("_done.json").write_text(text.replace('"inputs": "', '"inputs": "0'), encoding="utf-8")
    else:
        stage.file("_done.json").unlink()
    with pytest.raises(UserError, match=r"round-01/dces/select is damaged|stage select of dces is missing"):
        branch.continue_run(run, 1)
    assert store.discover(recorded=False) == []


@pytest.mark.parametrize("name", ["_done.json", "samples.parquet"])
def test_a_parent_that_is_deleted_meanwhile_leaves_nothing_behind(
    two: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shutil.copytree(two.path, tmp_path / "gone")
    run, real = Run(tmp_path / "gone"), launch.create

    def create(*arguments: Any, **facts: Any) -> Run:
        run.stage(2, "dces", "select").file(name).unlink()
        return real(*arguments, **facts)

    monkeypatch.setattr(launch, "create", create)
    with pytest.raises(UserError, match="has lost round-02/dces/select"):
        branch.continue_run(run, 1)
    assert store.discover(recorded=False) == []


def test_a_disk_that_refuses_leaves_nothing_behind(two: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "link", full)
    with pytest.raises(UserError, match="cannot be taken over: No space left"):
        branch.continue_run(two, 1)
    assert store.discover(recorded=False) == [] and contents(two)


# forks ------------------------------------------------------------------------------------------------------------------


def test_a_fork_shares_the_first_rounds_and_differs_after(kept: Run, tmp_path: Path) -> None:
    config = other(kept, edit={"temperature": 1.5}, train={"lr": 3e-4}, rounds=3, name="hotter", arms=["dces"])
    run = branch.fork_run(kept, 1, config, tmp_path / "fork")
    go_on(run)
    assert run.metrics().filter(arm=run.config.arms[0])["round"].unique().sort().to_list() == list(range(run.config.rounds + 1))
    old, new = contents(kept), contents(run)
    first = {name for name in new if name.startswith(("round-00", "round-01"))}
    for name in first:
        files = {file: value for file, value in new[name].items() if file != "inputs"}
        assert {file: old[name][file][0] for file in files} == {file: value[0] for file, value in files.items()}, name
    assert not any("plain" in name for name in new)
    assert new["round-02/dces/train"][WEIGHTS] != old["round-02/dces/train"][WEIGHTS]
    assert {span[0] for span in spans(run)} == {2, 3}
    parent = run.manifest["parent"]
    assert (parent["kind"], parent["run"], parent["round"], parent["arms"]) == ("forked", "kept", 1, ["dces"])
    assert parent["changed"] == {
        "rounds": [2, 3], "arms": [ARMS, ["dces"]], "edit.temperature": [1.05, 1.5], "train.lr": [5e-5, 3e-4],
    }  # fmt: skip


def test_a_fork_that_changes_nothing_is_its_parent(two: Run, kept: Run, tmp_path: Path) -> None:
    """Also from a round whose weights were deleted: they are trained again, to the same bits."""
    for name, parent in (("from-two", two), ("from-kept", kept)):
        run = branch.fork_run(parent, 1, parent.config, tmp_path / name)
        go_on(run)
        assert contents(run) == contents(parent)


def test_a_fork_from_round_0_may_have_other_arms(two: Run, tmp_path: Path) -> None:
    run = branch.fork_run(two, 0, other(two, arms=["dces-targets", "plain"]), tmp_path / "fork")
    go_on(run)
    whole = store.create(run.config, {}, tmp_path / "whole")
    go_on(whole)
    assert contents(run) == contents(whole)
    assert spans(whole)[0] == (0, SHARED, "evaluate") not in spans(run)


def test_deleted_weights_bind_the_settings_that_made_them(two: Run, kept: Run, tmp_path: Path) -> None:
    assert branch.trains_again(two, 1, ARMS) == ARMS and branch.trains_again(two, 2, ARMS) == []
    config = other(two, train={"lr": 3e-4}, rounds=3)
    with pytest.raises(UserError, match=r"train\.lr cannot change at round 1: the weights of arm 'plain' were deleted"):
        branch.check_fork(two, 1, config)
    branch.check_fork(two, 2, config)
    branch.check_fork(two, 0, config)
    branch.check_fork(kept, 1, other(kept, train={"lr": 3e-4}))
    branch.check_fork(two, 1, other(two, edit={"temperature": 1.5}))
    with pytest.raises(UserError, match=r"edit\.top_k cannot change"):
        branch.check_fork(two, 1, other(two, edit={"top_k": 8}))


def test_weights_that_vanish_on_the_way_are_noticed(kept: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent may be running, and delete them between the check and the link."""
    shutil.copytree(kept.path, tmp_path / "alive")
    run, real = Run(tmp_path / "alive"), launch.create

    def create(*arguments: Any, **facts: Any) -> Run:
        run.prune(run.stage(1, "dces", "train"))
        return real(*arguments, **facts)

    monkeypatch.setattr(launch, "create", create)
    with pytest.raises(UserError, match="the weights of arm 'dces' were deleted"):
        branch.fork_run(run, 1, other(run, train={"lr": 3e-4}))
    assert store.discover(recorded=False) == []


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"engine": "hf"}, "engine"),
        ({"model": "gpt2"}, "model"),
        ({"seed": 1}, "seed"),
        ({"data": {"instruction": "Be brief."}}, "data.instruction"),
        ({"generate": {"temperature": 1.0}}, "generate.temperature"),
        ({"pool": {"n": 4}}, "pool.n"),
        ({"eval": {"split": "test"}}, "eval.split"),
        ({"map": {"on": True}}, "map.on"),
        ({"controller": {"watched": 3}}, "controller.watched"),
        ({"filter": {"percentile": 95.0}}, "filter.percentile"),
        ({"train": {"round0": "finetune"}}, "train.round0"),
    ],
)
def test_what_the_first_rounds_were_made_from_is_fixed(kept: Run, changes: dict[str, Any], path: str) -> None:
    with pytest.raises(UserError, match=rf"^{path.replace('.', chr(92) + '.')} cannot change at a fork, it is .*launch a run of its own"):
        branch.check_fork(kept, 1, other(kept, rounds=3, **changes))
    assert branch.why_fixed(path)


def test_what_may_change(kept: Run) -> None:
    branch.check_fork(
        kept, 2,
        other(
            kept, rounds=9, name="x", note="y", keep="newest", device="cpu", threads=1, dynamic=False, generate={"batch_size": 7},
            controller={"gain": 0.5, "signal": "entropy"}, gate={"on": False}, cluster={"k": 3}, split={"weight": 1.0},
            filter={"on": False},
            train={"epochs": 2, "regime": "fresh-real"},
            edit={"model": "current", "labels": "draw"},
        ),
    )  # fmt: skip
    assert branch.why_fixed("generate.batch_size") is None and branch.why_fixed("rounds") is None


def test_rounds_and_arms_must_be_there(kept: Run, tmp_path: Path) -> None:
    for round_, changes, words in (
        (2, {}, "rounds = 2 leaves nothing to do after round 2"),
        (3, {"rounds": 9}, "round = 3 of arm 'plain' is not finished .* finished rounds: 0 to 2"),
        (-1, {}, "round = -1"),
        (1, {"arms": ["plain", "random"]}, "arms: 'random' has no round 1"),
    ):
        with pytest.raises(UserError, match=words):
            branch.check_fork(kept, round_, other(kept, **changes))
    empty = store.create(small_config(tmp_path), {}, tmp_path / "empty")
    with pytest.raises(UserError, match="finished rounds: none yet"):
        branch.check_fork(empty, 0, empty.config)
    assert branch.forkable(empty) == [] and branch.forkable(kept) == [0, 1, 2]


def test_a_run_at_work_can_be_forked(kept: Run, tmp_path: Path) -> None:
    """Every fixed field named in the table exists, and a parent that is not done serves too."""
    fields = branch.flat(kept.config.model_dump(mode="json"))
    assert {path for path in branch.FIXED if path not in fields and not any(key.startswith(f"{path}.") for key in fields)} == set()
    shutil.copytree(kept.path, tmp_path / "alive")
    run = Run(tmp_path / "alive")
    shutil.rmtree(run.path / "round-02")
    run.write_status({**run.status(), "state": "failed"})
    fork = branch.fork_run(run, 1, other(run, edit={"share": 0.5}), tmp_path / "fork")
    go_on(fork)
    assert fork.finished("dces") == [0, 1, 2]
