"""Curation of one's own pools. The oracle is a run: its pools, fed back, give its selections and its controller."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from small import FAST, finished

import dces_core
from dces_core import curation
from dces_core.arms import ARMS
from dces_core.config import RunConfig, parse
from dces_core.engines.fake import FakeModel
from dces_core.errors import UserError
from dces_core.store import WEIGHTS, Run

ARMS_HERE = ["dces", "ppl-high", "dces-targets", "plain-tctl"]
HASH = parse({"encoder": {"name": "hash"}, "engine": "fake"})
HOSTILE = (
    "1. 1. 1. 1. 1. 1. 1. 1.", "---\n# not a heading", "<img src=x onerror=alert(1)><script>alert(2)</script>", "$x$ :red[no] `code`",
    "bell\x07 escape\x1b[31m null\x00 rtl\u202eesrever\u202c \ufeffbom\u2028line", '=HYPERLINK("http://127.0.0.1:9","x")', "", " \r\n\t",
    "\U0001f600 e\u0301 \u4e2d\u6587", '"quoted", and {"json": [1]}',
)  # fmt: skip
WORDS = ["red", "blue", "green", "small", "large", "quick", "slow", "old", "new", "warm", "cold", "bright"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("oracle")
    return finished(
        folder, arms=ARMS_HERE, rounds=3, keep="all", seed=5, edit={"labels": "draw"}, eval={"pairs": 2, "passages": 1, "vendi_n": 0}
    )


def pool_of(run: Run, arm: str, round_: int) -> pl.DataFrame:
    return run.of(round_, arm, "generate").frame("pool")


def model_of(run: Run, arm: str, round_: int) -> FakeModel:
    """M_0, and M_{t-1} as the current model."""
    model = FakeModel()
    if round_ > 1:
        model.load(run.stage(round_ - 1, arm, "train").file(WEIGHTS))
    return model


def rows(count: int = 24, **more: Any) -> list[dict[str, Any]]:
    """Texts of a few themes."""
    return [
        {"prompt": f"Say {i}.", "text": f"The {WORDS[i % 12]} {WORDS[i % 5]} thing number {i} stood near a {WORDS[i % 7]} house.", **more}
        for i in range(count)
    ]


def scored(count: int = 24) -> list[dict[str, Any]]:
    return [{**row, "logprob": -1.0 - i % 9 / 10, "entropy": 1.5} for i, row in enumerate(rows(count))]


@pytest.mark.parametrize("arm", ARMS_HERE)
def test_a_runs_pools_give_the_runs_selections_and_controller(run: Run, arm: str) -> None:
    state: dict[str, Any] | None = None
    for round_ in (1, 2, 3):
        stage = run.stage(round_, arm, "select")
        shared = {"model": model_of(run, arm, round_), "reference": run.config.data.train, "settings": run.config}
        found = dces_core.curate(pool_of(run, arm, round_), run.config.pool.n, arm=arm, state=state, **shared)
        state = json.loads(json.dumps(found.state))  # as a file carries it
        assert found.table.equals(stage.frame("samples"), null_equal=True)
        assert {**found.state["controller"], "real_pairs": 0} == stage.json("controller")
        training = stage.frame("training")
        assert found.selected["id"].to_list() == training["id"].to_list()
        if "labels" in found.selected.columns:
            wanted = [p + r for p, r in training.select("prompt", "response").iter_rows()]
            labels = [[-100] * len(p) + (given or r) for p, r, given in training.select("prompt", "response", "labels").iter_rows()]
            assert (found.selected["input_ids"].to_list(), found.selected["labels"].to_list()) == (wanted, labels)
        assert ("labels" in found.selected.columns) == (ARMS[arm].edit == "targets")
        assert found.state["reference"] == run.stage(1, "shared", "reference").json("reference")


def test_the_sample_table_of_a_run_is_a_pool(run: Run) -> None:
    """Without tokens and model: the same picks of an arm that needs none."""
    stage = run.stage(1, "ppl-high", "select")
    samples = stage.frame("samples")
    found = dces_core.curate(samples, run.config.pool.n, arm="ppl-high", settings=run.config)
    assert found.selected["id"].to_list() == stage.frame("training")["id"].to_list()
    assert found.table.select("cluster", "distance", "role", "fate", "reason").equals(
        samples.select("cluster", "distance", "role", "fate", "reason"), null_equal=True
    )


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_every_format_and_current_weights(run: Run, tmp_path: Path, suffix: str) -> None:
    pool, path = pool_of(run, "dces", 2), tmp_path / f"pool{suffix}"
    if suffix == ".csv":
        pool = pool.drop("prompt_ids", "ids")
        pool.write_csv(path)
    else:
        pool.write_ndjson(path) if suffix == ".jsonl" else pool.write_parquet(path)
    weights = run.stage(1, "dces", "train").file(WEIGHTS)
    call: dict[str, Any] = {"reference": run.config.data.train, "settings": run.config}
    found = dces_core.curate(str(path), 8, model="fake", current=weights, **call)
    other = dces_core.curate(pool, 8, model=model_of(run, "dces", 2), **call)
    assert found.table.equals(other.table, null_equal=True) and found.state == other.state
    assert found.report["edit_value"] != dces_core.curate(pool, 8, model="fake", **call).report["edit_value"]


def test_without_a_model_nothing_is_edited_and_it_says_so() -> None:
    found = dces_core.curate(scored(), 9, settings=HASH)
    assert found.selected.height == 9 == found.selected["id"].n_unique()
    assert found.selected["text"].to_list() == found.selected["pool_text"].to_list()
    assert found.selected["changed"].is_null().all()
    why = found.report["undefined"]
    assert why["edits"] == why["quality_limit"] == curation.NO_MODEL
    assert "first round's own values" in why["setpoint_of_real_text"] and "logprob" not in why
    assert found.report["edge_share"] is not None and found.report["sd"] > 0
    assert set(found.table["fate"]) == {"picked", "over quota"} and found.table.height == 24
    picked = found.table.filter(pl.col("fate") == "picked")
    assert picked["reason"].is_null().all() and found.table.filter(pl.col("fate") != "picked")["reason"].is_not_null().all()


def test_without_log_probabilities_the_distance_alone_decides() -> None:
    found = dces_core.curate(rows(), 9, settings=HASH)
    assert "distance alone" in found.report["undefined"]["logprob"]
    for _, group in found.table.group_by("cluster"):
        ordered = group.sort("distance", maintain_order=True)
        assert ordered["centrality"].to_list() == sorted(group["centrality"], reverse=True)
    with pytest.raises(UserError, match="picks by perplexity; give the pool a column logprob, or give a model"):
        dces_core.curate(rows(), 9, arm="ppl-high", settings=HASH)
    assert "current model's" in dces_core.curate(rows(), 9, arm="ppl-high", model="fake", settings=HASH).report["notes"][-1]


def test_perplexity_decides_where_it_is_given() -> None:
    found = dces_core.curate(scored(), 5, arm="ppl-high", settings=HASH)
    logprob = found.table["logprob"].sort().to_list()
    assert sorted(found.selected["logprob"]) == logprob[:5]


def test_set_points_stay_those_of_the_first_round(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    first = dces_core.curate(scored(), 9, state=path, settings=HASH)
    assert json.loads(path.read_text(encoding="utf-8")) == first.state and first.state["round"] == 1
    assert first.report["setpoint"] == first.report["value"] and first.report["edge_share"] == 0.1
    narrow = [{**row, "prompt": "Again.", "text": f"The same old thing {i % 2}, once more."} for i, row in enumerate(scored())]
    second = dces_core.curate(narrow, 9, state=path, settings=HASH)
    assert second.state["round"] == 2 and second.report["setpoint"] == first.report["setpoint"]
    assert second.report["error"] > 1 and second.report["edge_share"] > 0.1
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_real_text_without_a_model_gives_set_points_of_dispersion() -> None:
    real = [{"prompt": "?", "reference": row["text"]} for row in rows(40)]
    found = dces_core.curate(scored(), 9, reference=real, settings=HASH)
    assert found.state["reference"]["real"]["dispersion"]["mean"] > 0
    assert "setpoint_of_real_text" not in found.report["undefined"] and found.report["undefined"]["quality_limit"] == curation.NO_MODEL


def test_hostile_texts_come_out_as_they_went_in(tmp_path: Path) -> None:
    given = [{"prompt": text, "text": text, "logprob": -1.0} for text in HOSTILE] + scored(8)
    for call in ({"arm": "random"}, {"arm": "dces"}, {"arm": "dces-targets", "model": "fake"}, {"arm": "semdedup"}):
        found = dces_core.curate(given, len(given) if call["arm"] == "random" else 9, settings=HASH, **call)
        assert found.table["text"].to_list() == [row["text"] for row in given]
        path = tmp_path / "out.jsonl"
        curation.write_jsonl(found.selected, path)
        back = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        by_id = dict(found.table.select("id", "text").iter_rows())
        assert [row["pool_text"] for row in back] == [by_id[row["id"]] for row in back] and len(back) == found.selected.height
    empty = dces_core.curate(given, 5, settings=HASH).table.filter(pl.col("text") == "")
    assert empty["fate"][0] == "rejected" and empty["reason"][0]


def test_all_rows_and_one_row_can_be_chosen() -> None:
    for n in (1, 24):
        assert dces_core.curate(scored(), n, settings=HASH).selected.height == n
    assert dces_core.curate(scored(1), 1, settings=HASH).report["undefined"]["edge_share"].startswith("constant: ")


def test_long_texts_are_cut_only_for_the_model() -> None:
    long = [{**row, "text": row["text"] * 60} for row in scored()]
    found = dces_core.curate(long, 9, arm="edit-random", model="fake", settings=HASH)
    assert "24 texts were cut" in found.report["notes"][-1]
    assert max(map(len, found.selected["input_ids"])) <= HASH.eval.block_tokens


BAD: list[tuple[dict[str, Any], str]] = [
    ({"n": 25}, "n = 25 must be a whole number from 1 to the pool's 24 rows"),
    ({"n": 0}, "n = 0"),
    ({"n": True}, "n = True"),
    ({"seed": -1}, "seed = -1 is not allowed"),
    ({"arm": "nope"}, "arm = 'nope' is no arm; use one of: plain, random"),
    ({"arm": "real10"}, "arm = 'real10' draws no sample from a pool alone"),
    ({"arm": "frozen"}, "draws no sample from a pool alone"),
    ({"arm": "dces-targets"}, "arm = 'dces-targets' edits what it picks and needs a model"),
    ({"arm": "toedit"}, "needs a model"),
    ({"arm": "edit-random"}, "needs a model"),
    ({"settings": RunConfig.model_validate({**FAST, "split": {"scorer": "frozen"}})}, "split.scorer = 'frozen' scores the pool by a model"),
    ({"current": "x.safetensors"}, "current gives weights without a model"),
    ({"current": "x.safetensors", "model": "fake"}, "is neither a safetensors file nor a folder"),
    ({"model": "./absent"}, "model = './absent' is neither a folder"),
    ({"reference": "absent.jsonl"}, "reference = 'absent.jsonl' is not there"),
    ({"reference": [{"prompt": "x"}]}, "reference has no column reference"),
    ({"pool": "absent.jsonl"}, "pool = 'absent.jsonl' is not there"),
    ({"pool": []}, "pool has no rows"),
    ({"state": {"round": 1}}, "state is no state that curate wrote"),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_what_cannot_be_done_is_one_sentence(call: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"pool": scored(), "n": 9, "settings": HASH, **call}
    with pytest.raises(UserError) as error:
        dces_core.curate(given.pop("pool"), given.pop("n"), **given)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arm": "random"}, "the state is of arm 'dces'"),
        ({"seed": 3}, "seed = 3 is not the state's seed 0"),
        (
            {"settings": parse({"encoder": {"name": "hash"}, "controller": {"gain": 0.5}})},
            "controller.gain = 0.5, but the state was made with 0.02",
        ),
        ({"pool": scored()}, "pool is the one of the state's round 4"),
        ({"pool": rows(9, round=4)}, "round = 4 in the pool, but the state is of round 4"),
        ({"pool": [*rows(9, round=5), *rows(9, round=6)]}, "round has several values"),
    ],
)
def test_a_state_is_not_mixed_with_something_else(change: dict[str, Any], words: str) -> None:
    state = dces_core.curate([{**row, "round": 4} for row in scored()], 9, settings=HASH).state
    given: dict[str, Any] = {"pool": rows(20), "settings": HASH, "state": state, **change}
    with pytest.raises(UserError, match=r"the|round") as error:
        dces_core.curate(given.pop("pool"), 9, **given)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "damage",
    [
        {"controller": {"error": "x"}}, {"controller": {"error": float("nan")}}, {"round": 0}, {"reference": {"round0": {}, "real": {}}},
        {"reference": None}, {"schema_version": 2}, {"surplus": 1}, {"max_tokens": -1}, {"settings": []},
    ],
)  # fmt: skip
def test_a_damaged_state_is_refused(tmp_path: Path, damage: dict[str, Any]) -> None:
    path = tmp_path / "state.json"
    state = dces_core.curate(scored(), 9, settings=HASH).state
    path.write_text(json.dumps({**state, **damage}), encoding="utf-8")
    with pytest.raises(UserError, match="state"):
        dces_core.curate(rows(), 9, state=path, settings=HASH)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="is no state file"):
        dces_core.curate(rows(), 9, state=path, settings=HASH)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(UserError, match="does not fit model 'fake'"):
        dces_core.curate(scored(), 9, model="fake", current=tmp_path, settings=HASH)
