from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from dces_core import estimate, models, processes, store
from dces_core.config import RunConfig, parse
from dces_core.errors import UserError
from dces_core.events import Events


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DCES_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(estimate, "likely_device", lambda config: "cpu")
    return tmp_path


def config(**changes: object) -> RunConfig:
    return parse({"rounds": 4, "threads": 2, "arms": ["plain", "dces", "frozen"], **changes})


@pytest.mark.parametrize(("keep", "copies"), [("newest", 2 * 1 + 1), ("ends", 2 * 2 + 1), ("all", 2 * 4 + 1)])
def test_weights_on_disk_follow_keep(keep: str, copies: int) -> None:
    size = estimate.estimate(config(keep=keep))["disk_bytes"]
    weights = 4 * 134_515_008 * copies
    assert weights < size < weights + 50e6


def test_a_fine_tuned_round_0_is_one_more_copy() -> None:
    extra = estimate.estimate(config(train={"round0": "finetune"}))["disk_bytes"] - estimate.estimate(config())["disk_bytes"]
    assert extra == 4 * 134_515_008


def test_the_default_model_takes_minutes_and_gigabytes() -> None:
    wanted = estimate.estimate(config())
    assert wanted["parameters"] == 134_515_008
    assert 30 < wanted["round_s"] < 600
    assert wanted["total_s"] > 4 * wanted["round_s"]
    assert 4e9 < wanted["memory_bytes"] < 8e9
    assert wanted["basis"] == "assumed" and wanted["notes"] == []


def test_time_grows_with_parameters_and_tokens() -> None:
    base = estimate.stage_seconds(config(), 134_515_008, "cpu")
    larger = estimate.stage_seconds(config(), 2 * 134_515_008, "cpu")
    longer = estimate.stage_seconds(config(pool={"n": 160}), 134_515_008, "cpu")
    fixed = estimate.FIXED_S["generate"]
    assert larger["generate"] - fixed == pytest.approx(2 * (base["generate"] - fixed))
    assert longer["generate"] - fixed == pytest.approx(2 * (base["generate"] - fixed))


def test_measured_stages_of_earlier_runs_win() -> None:
    earlier = config()
    run = store.create(earlier, {})
    events = Events(run, {})
    expected = estimate.stage_seconds(earlier, 134_515_008, "cpu")
    for stage, seconds in expected.items():
        events._write({"kind": "span", "round": 1, "arm": "dces", "stage": stage, "seconds": 3 * seconds})
    events._write({"kind": "span", "round": 1, "arm": "shared", "stage": "generate", "seconds": 9999})
    events.close()
    wanted = estimate.estimate(config(pool={"n": 300}))
    assert wanted["basis"] == "measured on 1 earlier run"
    arm_s = sum(estimate.stage_seconds(config(pool={"n": 300}), 134_515_008, "cpu").values())
    assert wanted["round_s"] == pytest.approx(3 * 3 * arm_s, abs=0.1)
    assert estimate.estimate(config(model="gpt2"))["basis"] == "assumed"


def test_an_unknown_model_is_said_not_guessed() -> None:
    wanted = estimate.estimate(config(model="someone/something"))
    assert wanted["parameters"] is None and wanted["memory_bytes"] is None
    assert "someone/something" in wanted["notes"][0]
    estimate.refuse_if_too_big(config(model="someone/something"))


def test_a_local_folder_is_counted_from_its_header(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {}, "w": {"dtype": "F16", "shape": [3, 5], "data_offsets": [0, 30]}, "b": {"shape": [5]}}).encode()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(40))
    assert estimate.count_parameters(str(tmp_path)) == 20
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    assert estimate.count_parameters(str(tmp_path)) is None


def test_known_models_are_counted() -> None:
    assert estimate.count_parameters(models.DEFAULT) == 134_515_008
    assert estimate.count_parameters("facebook/opt-6.7b") == pytest.approx(6.7e9, rel=0.01)


def test_a_full_disk_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1e9))
    with pytest.raises(UserError, match="on disk"):
        estimate.refuse_if_too_big(config())


def test_little_memory_refuses_but_not_a_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1e9))
    with pytest.raises(UserError, match="of memory"):
        estimate.refuse_if_too_big(config())
    run = store.create(config(), {})
    run.write_status({"state": "running", "rss_bytes": int(20e9), **processes.identity()})
    estimate.refuse_if_too_big(config())
    run.write_status({"state": "running", "rss_bytes": int(20e9), "pid": 2**22, "pid_started": 0.0})
    with pytest.raises(UserError, match="of memory"):
        estimate.refuse_if_too_big(config())


def test_a_fake_run_fits_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = estimate.estimate(config(engine="fake"))
    assert wanted["parameters"] == 0 and wanted["total_s"] < 30 and wanted["disk_bytes"] < 50e6
