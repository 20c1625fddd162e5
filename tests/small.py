"""Whole runs on little data: the first pairs of the shipped set, every stage and every metric."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dces_core import launch, store, worker
from dces_core.config import SHIPPED, RunConfig, parse
from dces_core.store import Run

#: Undefined with a reason while round 0 is the base model itself, and where BERTScore is off.
MAY_BE_UNDEFINED = {"gain_kept", "bertscore_p", "bertscore_r", "bertscore_f1", "trained_ref_ppl", "trained_loop_rate"}
FAST: dict[str, Any] = {
    "engine": "fake",
    "rounds": 2,
    "pool": {"n": 8},
    "generate": {"max_new_tokens": 12},
    "encoder": {"name": "hash", "judge": "hash"},
    "cluster": {"clusterer": "kmeans"},
    "eval": {"pairs": 6, "passages": 3, "budget_tokens": 12, "probe_tokens": 6, "bertscore": "off", "block_tokens": 96},
    "map": {"on": False},
}


def small_config(folder: Path, **changes: Any) -> RunConfig:
    """FAST on the first 40 training pairs, with `changes` (sections are merged)."""
    lines = (SHIPPED / "everyday" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    train, probes = folder / "train.jsonl", folder / "probes.jsonl"
    train.write_text("\n".join(lines[:40]) + "\n", encoding="utf-8")
    probes.write_text("".join(json.dumps({"id": f"p{i}", "prompt": f"What is {i}?"}) + "\n" for i in range(2)), encoding="utf-8")
    values = {**FAST, "data": {"train": str(train), "probes": str(probes)}}
    for name, value in changes.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
    return parse(values)


def small_run(folder: Path, name: str = "run", **changes: Any) -> Run:
    """A run directory that waits for its worker."""
    return store.create(small_config(folder, **changes), {}, folder / name)


def finished(folder: Path, name: str = "run", **changes: Any) -> Run:
    """A run, done in this process."""
    run = small_run(folder, name, **changes)
    go_on(run)
    return run


def attempt(run: Run) -> launch.State:
    """Do what is missing in this process. The device's lock lies beside the run: a test waits for no run of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "device_lock", lambda device: run.path.parent / f"{device}.lock")
        return worker.run_foreground(run)


def go_on(run: Run) -> None:
    """As `attempt`; the run must end as done."""
    assert attempt(run) == "done", run.status().get("error")


def check_metrics(run: Run) -> None:
    """Every round of every arm is there with every metric once; what is undefined says why, and only what may be is."""
    config, frame = run.config, run.metrics()
    keys = ["arm", "round", "test_set", "metric"]
    assert frame.height == frame.select(keys).unique().height
    per_round = frame.group_by("arm", "round").len()
    assert per_round.height == len(config.arms) * (config.rounds + 1)
    assert per_round["len"].n_unique() == 1
    undefined = frame.filter(frame["value"].is_null())
    assert set(undefined["metric"]) <= MAY_BE_UNDEFINED, undefined.filter(~undefined["metric"].is_in(list(MAY_BE_UNDEFINED))).rows()
    assert undefined["reason"].is_not_null().all()
    assert frame["value"].drop_nulls().is_finite().all()
    assert set(frame["test_set"]) == {"", *config.data.tests}


def contents(run: Run) -> dict[str, Any]:
    """Hash of every file of every stage: what two equal runs share (times and the run's name are not in it)."""
    found = {}
    for path in sorted(run.path.glob("round-*/*/*/_done.json")):
        done = json.loads(path.read_text(encoding="utf-8"))
        name = str(path.parent.relative_to(run.path))
        found[name] = {file: (entry["sha256"], bool(entry.get("pruned"))) for file, entry in done["files"].items()}
        found[name]["inputs"] = done["inputs"]
        for file, (_, pruned) in ((file, value) for file, value in found[name].items() if file != "inputs"):
            assert (path.parent / file).exists() != pruned, f"{name}/{file}"
    return found
