"""The loop: whole runs of tiny models of four architectures, and every arm, regime and switch with the fake engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
import tiny
from small import attempt, check_metrics, contents, finished, small_run

from dces_core import models
from dces_core.arms import ARMS
from dces_core.config import SHIPPED, ArmName, RunConfig, Train, load_recipe
from dces_core.store import SHARED, WEIGHTS, Run, create

ALL_ARMS = list(get_args(ArmName))
REGIMES = list(get_args(Train.model_fields["regime"].annotation))


def weights_of(run: Run, arm: str) -> list[int]:
    """Rounds whose weights are on the disk."""
    return [r for r in range(1, run.config.rounds + 1) if run.stage(r, arm, "train").file(WEIGHTS).exists()]


def training(run: Run, arm: str, round_: int) -> pl.DataFrame:
    return run.stage(round_, arm, "select").frame("training")


@pytest.mark.slow
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_architecture_goes_through_two_rounds_by_the_same_code(family: str, tmp_path: Path) -> None:
    arms = ["plain", "dces", *(["dces-targets"] if family == "qwen3" else [])]
    run = finished(tmp_path, engine="hf", model=str(tiny.folder(family)), device="cpu", arms=arms, train={"lr": 1e-3, "precision": "fp32"})
    check_metrics(run)
    assert run.finished("dces") == [0, 1, 2]
    loss = {arm: run.metrics().filter(arm=arm, test_set="everyday", metric="loss")["value"].to_list() for arm in run.config.arms}
    assert all(len(set(values)) == 3 for values in loss.values())
    for arm in run.config.arms:
        for round_ in (1, 2):
            samples = run.samples(arm, round_)
            assert (samples.height, (samples["fate"] == "picked").sum()) == (16, 8)
            assert samples["logprob"].is_finite().all() and samples["entropy"].is_finite().all()
    assert (run.samples("dces", 1)["changed"].fill_null(0) > 0).any()
    assert training(run, "dces", 1)["labels"].is_null().all()
    assert len(arms) == 2 or training(run, "dces-targets", 1)["soft"].is_not_null().any()
    assert run.probes().height == len(arms) * 3 * 2 * 2
    assert weights_of(run, "dces") == [2]


# all arms ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All arms, two rounds, every weight kept."""
    return finished(tmp_path_factory.mktemp("rounds"), arms=ALL_ARMS, keep="all")


def test_all_arms(everything: Run) -> None:
    check_metrics(everything)
    generated = {"frozen": 0, "real": 0, "real10": 7}
    for arm in ALL_ARMS:
        assert everything.finished(arm) == [0, 1, 2]
        for round_ in (1, 2):
            samples, rows = everything.samples(arm, round_), training(everything, arm, round_)
            picked = set(samples.filter(fate="picked")["id"])
            assert len(picked) == generated.get(arm, 8) and picked == set(rows.filter(source="generated")["id"])
            assert rows.height == (0 if arm == "frozen" else 8)
            assert rows.filter(source="real").height == everything.controller(arm, round_)["real_pairs"]
            assert (samples["reason"].is_null() == (samples["fate"] == "picked")).all()
        assert weights_of(everything, arm) == ([] if arm == "frozen" else [1, 2])
    steps = {arm: len((everything.stage(2, arm, "train").json("loss") or {"loss": []})["loss"]) for arm in ALL_ARMS if arm != "frozen"}
    assert set(steps.values()) == {1}, "equal optimiser steps"


def test_round_1_has_one_pool_and_later_rounds_have_their_own(everything: Run) -> None:
    first = everything.stage(1, SHARED, "generate").frame("pool")
    for arm in ALL_ARMS:
        shares = ARMS[arm].shares_pool
        assert (everything.stage(1, arm, "generate").done is None) == shares
        assert everything.samples(arm, 1).select("id", "text").equals(first.select("id", "text")) == shares
        assert everything.stage(2, arm, "generate").done is not None
    prompts = [everything.stage(2, arm, "generate").frame("pool")["prompt_id"].to_list() for arm in ALL_ARMS]
    assert all(row == prompts[0] for row in prompts)


def test_plain_and_random_differ_by_the_draw_alone(everything: Run) -> None:
    plain, other = everything.samples("plain", 1), everything.samples("random", 1)
    same = [name for name in plain.columns if name not in ("arm", "fate", "reason", "trained_text")]
    assert plain.select(same).equals(other.select(same))
    assert plain["fate"].to_list() != other["fate"].to_list()
    ids = set(training(everything, "plain", 1)["id"]), set(training(everything, "random", 1)["id"])
    assert ids[0] != ids[1]
    for table in ("plain", "random"):
        rows, pool = training(everything, table, 1), everything.stage(1, SHARED, "generate").frame("pool")
        texts = {row["id"]: row["ids"] for row in pool.to_dicts()}
        assert all(row["response"][: len(texts[row["id"]])] == texts[row["id"]] for row in rows.to_dicts())


def test_frozen_repeats_round_0(everything: Run) -> None:
    frame = everything.metrics().filter(arm="frozen").drop("arm")
    start = frame.filter(round=0).drop("round")
    for round_ in (1, 2):
        assert frame.filter(round=round_).drop("round").equals(start)
    answers = everything.probes().filter(arm="frozen")
    assert answers.filter(round=2)["text"].to_list() == answers.filter(round=0)["text"].to_list()
    assert everything.generations("frozen", 2).equals(everything.generations("frozen", 0))


def test_what_the_arms_do(everything: Run) -> None:
    state = {arm: everything.controller(arm, 2) for arm in ALL_ARMS}
    assert state["dces"]["edge_share"] is not None and state["plain"]["edge_share"] is None
    assert state["dces-static"]["edge_share"] == everything.config.controller.a0
    assert state["dces-static"]["edit_temperature"] == everything.config.edit.temperature
    assert state["dces-no-edit"]["changed"] is None
    edited = everything.samples("dces", 1).filter(pl.col("changed") > 0)
    assert edited.height and (edited["text"] != edited["trained_text"]).all() and (edited["role"] == "center").all()
    targets = training(everything, "dces-targets", 1).filter(pl.col("soft").is_not_null())
    assert targets.height and (targets["temperature"] == everything.controller("dces-targets", 1)["edit_temperature"]).all()
    assert targets["labels"].is_null().all() and training(everything, "dces", 1)["soft"].is_null().all()
    assert training(everything, "dces", 1)["id"].to_list() == training(everything, "dces-no-edit", 1)["id"].to_list()


def test_arms_that_pick_at_random_are_paired(everything: Run) -> None:
    plain = training(everything, "plain", 1)
    for arm in ("toedit", "tce", "plain-tctl", "real10"):
        ids = training(everything, arm, 1).filter(source="generated")["id"].to_list()
        assert ids == plain["id"].to_list()[: len(ids)], arm
    assert training(everything, "plain-t1", 1)["id"].to_list() == plain["id"].to_list(), "the same places of another pool"
    assert training(everything, "plain", 1).equals(training(everything, "tce", 1))
    weights = [everything.stage(1, arm, "train").file(WEIGHTS).read_bytes() for arm in ("plain", "tce", "plain-tctl")]
    assert weights[0] == weights[2], "its first round is plain's"


def test_arms_with_editing_edit_what_they_say(everything: Run) -> None:
    toedit, random_ = everything.samples("toedit", 1), everything.samples("edit-random", 1)
    as_dces = round((1 - everything.config.controller.a0) * 8)
    assert toedit["flagged"].is_not_null().sum() == 8 and random_["flagged"].is_not_null().sum() == as_dces < 8
    soft = training(everything, "edit-random", 1).filter(pl.col("soft").is_not_null())
    assert set(soft["id"]) == set(random_.filter(pl.col("flagged") > 0)["id"])
    assert training(everything, "toedit", 1)["labels"].is_null().all()
    assert everything.controller("toedit", 2)["edit_temperature"] == 1.0


def test_real_rows_are_fresh_every_round(everything: Run) -> None:
    for arm, count in (("real", 8), ("real10", 1)):
        ids = [training(everything, arm, r).filter(source="real")["id"].to_list() for r in (1, 2)]
        assert [len(set(row)) for row in ids] == [count, count] and ids[0] != ids[1]
    real = training(everything, "real", 1)["id"].to_list()
    assert real[0] == training(everything, "real10", 1).filter(source="real")["id"].item(), "the same stream"


def test_the_controller_moves_the_next_pool_of_plain_tctl(tmp_path: Path) -> None:
    gains = {"edit_kp": 5.0, "edit_t_max": 4.0}
    run = finished(tmp_path, "on", arms=["plain", "plain-tctl"], rounds=3, controller=gains, train={"lr": 1e-2})
    held = finished(tmp_path, "off", arms=["plain", "plain-tctl"], rounds=3, controller=gains, train={"lr": 1e-2}, dynamic=False)
    states = [run.controller("plain-tctl", r) for r in (1, 2, 3)]
    assert states[0]["sampling_temperature"] == run.config.generate.temperature, "the first pool is the set-point"
    assert states[1]["sampling_temperature"] != run.config.generate.temperature
    texts = {arm: [run.samples(arm, r)["text"].to_list() for r in (1, 2, 3)] for arm in run.config.arms}
    assert texts["plain"][:2] == texts["plain-tctl"][:2] and texts["plain"][2] != texts["plain-tctl"][2]
    assert {held.controller("plain-tctl", r)["sampling_temperature"] for r in (1, 2, 3)} == {held.config.generate.temperature}
    for round_ in (1, 2, 3):
        assert held.samples("plain", round_)["text"].equals(held.samples("plain-tctl", round_)["text"])


def test_the_end_token_is_only_where_a_text_ended(everything: Run) -> None:
    from dces_core.engines.fake import END

    pool = everything.stage(1, SHARED, "generate").frame("pool")
    ended = dict(zip(pool["id"], pool["ended"], strict=True))
    assert set(ended.values()) == {True, False}
    for arm in ("plain", "dces", "dces-targets"):
        rewritten = set(everything.samples(arm, 1).filter(pl.col("changed") > 0)["id"]) if arm == "dces" else set()
        for row in training(everything, arm, 1).to_dicts():
            assert row["id"] in rewritten or (row["response"][-1] == END) == ended[row["id"]]
            assert END not in row["response"][:-1]
            assert len(row["response"]) <= everything.config.generate.max_new_tokens
    written = everything.generations("plain", 1)
    scored = everything.metrics().filter(arm="plain", round=1, metric="self_ppl")["n"].item()
    assert 0 < written["ended"].sum() < written.height
    assert scored == written["tokens"].sum()


# switches ---------------------------------------------------------------------------------------------------------------

SWITCHES: list[dict[str, Any]] = [
    {"train": {"init": "base"}},
    {"train": {"round0": "finetune"}},
    {"train": {"round0": "finetune", "init": "base", "regime": "accumulate"}},
    {"train": {"schedule": "linear", "epochs": 2}},
    {"generate": {"decoding": "greedy"}},
    {"generate": {"decoding": "beam", "beams": 3}},
    {"train": {"loss": "truncated", "tce_gamma": 0.5}},
    {"generate": {"top_k": 5, "top_p": 1.0, "temperature": 1.5}},
    {"cluster": {"clusterer": "hdbscan"}},
    {"cluster": {"clusterer": "kmeans", "k": 3}},
    {"controller": {"per_cluster": True, "gain": 1.0}},
    {"controller": {"signal": "entropy", "setpoint": "real", "ema": 0.5, "sign": -1}},
    {"controller": {"signal": "logprob", "edit_signal": "off"}},
    {"controller": {"edit_signal": "logprob"}},
    {"dynamic": False},
    {"gate": {"on": False}, "filter": {"on": False}},
    {"split": {"scorer": "frozen", "weight": 1.0}},
    {"edit": {"unit": "token", "labels": "draw", "threshold": 0.5, "top_k": 8, "exclude_original": True, "whole_words": False}},
    {"edit": {"labels": "draw", "model": "current", "top_k": 8, "share": 0.5}},
    {"edit": {"threshold": 0.5, "top_k": 8}},
    {"pool": {"n": 16, "factor": 1.0}},
    {"eval": {"split": "test", "vendi_n": 30}},
    {"data": {"template": "plain", "instruction": "Be brief."}},
    *({"train": {"regime": regime, "real_share": 0.5}} for regime in REGIMES),
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_every_switch_runs(changes: dict[str, Any], tmp_path: Path) -> None:
    run = finished(tmp_path, arms=["plain", "dces", *(["dces-targets"] if "edit" in changes else [])], **changes)
    check_metrics(run)
    if "regime" in changes.get("train", {}):
        check_regime(run)
    if changes.get("dynamic") is False:
        assert run.controller("dces", 2)["edge_share"] == run.config.controller.a0
        assert run.controller("dces", 2)["edit_temperature"] == run.config.edit.temperature


def check_regime(run: Run) -> None:
    settings, n = run.config.train, run.config.pool.n
    counts = [run.stage(r, "plain", "train").json("loss") for r in (1, 2)]
    sources = [training(run, "plain", r).filter(source="real")["id"].to_list() for r in (1, 2)]
    start = 40 if settings.round0 == "finetune" else 0
    grows = [start + n, start + 2 * n] if settings.regime == "accumulate" else [n, n]
    assert [facts["examples"] for facts in counts if facts] == grows
    assert [len(ids) for ids in sources] == ([4, 4] if "real" in settings.regime else [0, 0])
    if "real" in settings.regime:
        assert (sources[0] == sources[1]) == (settings.regime == "fixed-real")


STARTS = [(init, round0) for init in ("previous", "base") for round0 in ("asis", "finetune")]


@pytest.mark.slow
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(("init", "round0"), STARTS)
def test_every_regime_from_every_start(regime: str, init: str, round0: str, tmp_path: Path) -> None:
    train = {"regime": regime, "init": init, "round0": round0, "real_share": 0.5}
    run = finished(tmp_path, arms=["plain", "dces-targets", "real10"], train=train)
    check_metrics(run)
    check_regime(run)
    assert run.stage(0, SHARED, "train").file(WEIGHTS).exists() == (round0 == "finetune")
    examples = {arm: (run.stage(2, arm, "train").json("loss") or {})["examples"] for arm in run.config.arms}
    assert len(set(examples.values())) == 1, "every arm trains on as many"


@pytest.mark.slow
@pytest.mark.parametrize("decoding", ["sample", "beam"])
@pytest.mark.parametrize(("init", "round0"), STARTS)
def test_a_network_from_every_start_and_by_beam_search(init: str, round0: str, decoding: str, tmp_path: Path) -> None:
    regime = {"sample": "accumulate-subsample", "beam": "fresh-real"}[decoding]
    run = finished(
        tmp_path, engine="hf", model=str(tiny.folder("llama")), device="cpu", arms=["plain", "tce"], pool={"n": 4},
        generate={"decoding": decoding, "beams": 2, "max_new_tokens": 6}, data={"train": str(few(tmp_path))},
        train={"lr": 1e-3, "precision": "fp32", "init": init, "round0": round0, "regime": regime, "tce_gamma": 0.5},
    )  # fmt: skip
    check_metrics(run)
    counts = [(run.stage(r, "plain", "train").json("loss") or {})["examples"] for r in (1, 2)]
    assert counts == [4, 4]


def few(folder: Path) -> Path:
    """The first eight training pairs."""
    lines = (SHIPPED / "everyday" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:8]
    (folder / "few.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "few.jsonl"


def test_round_0_fine_tuned_gains_and_keeps_its_weights(tmp_path: Path) -> None:
    run = finished(tmp_path, arms=["plain", "frozen"], train={"round0": "finetune"})
    metrics = run.metrics()
    kept = metrics.filter(metric="gain_kept", arm="frozen")["value"]
    assert kept.len() == 6 and np.allclose(kept.drop_nulls(), 1)
    assert run.stage(0, SHARED, "train").file(WEIGHTS).exists()
    assert metrics.filter(metric="kl_from_start", arm="frozen")["value"].abs().max() == 0


@pytest.mark.parametrize(("keep", "kept"), [("newest", [4]), ("all", [1, 2, 3, 4]), ("ends", [1, 4])])
def test_weights_that_are_kept(keep: str, kept: list[int], tmp_path: Path) -> None:
    run = finished(tmp_path, arms=["plain", "dces"], rounds=4, keep=keep)
    for arm in run.config.arms:
        assert weights_of(run, arm) == kept
        assert run.finished(arm) == [0, 1, 2, 3, 4]
    before = contents(run)
    assert attempt(run) == "done"
    assert contents(run) == before


@pytest.mark.slow
def test_arms_do_not_influence_each_other(everything: Run, tmp_path: Path) -> None:
    alone = finished(tmp_path, arms=["dces"], keep="all")
    columns = ["round", "test_set", "metric", "value"]
    assert alone.metrics().select(columns).equals(everything.metrics().filter(arm="dces").select(columns))


def test_the_same_seed_repeats_a_run_and_another_does_not(tmp_path: Path) -> None:
    arms = ["dces-targets"]
    one, again, other = (finished(tmp_path, name, arms=arms, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert contents(one) == contents(again)
    assert not one.metrics().select("value").equals(other.metrics().select("value"))


@pytest.mark.slow
def test_a_model_that_says_nothing_gets_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Total collapse: every response is empty, or every response the same."""
    from dces_core.engines.base import Generation
    from dces_core.engines.fake import FakeModel

    for name, ids in (("empty", []), ("same", [7, 8, 9, 7, 8, 9])):
        facts = np.full(len(ids), -0.5, np.float32)
        monkeypatch.setattr(
            FakeModel,
            "generate",
            lambda self, prompts, *_, ids=ids, facts=facts, **__: [Generation(list(ids), True, facts, -facts) for _ in prompts],
        )
        run = finished(tmp_path, name, arms=["plain", "dces", "dces-targets"], map={"on": True})
        frame = run.metrics()
        assert run.finished("dces") == [0, 1, 2]
        assert frame.filter(pl.col("value").is_null())["reason"].is_not_null().all()
        assert frame["value"].drop_nulls().is_finite().all()
        assert (run.samples("dces", 1)["fate"] == "picked").sum() == 8


def test_a_loss_that_is_not_a_number_ends_the_run_and_earlier_rounds_stay(tmp_path: Path) -> None:
    model = str(tiny.folder("llama"))
    run = small_run(tmp_path, engine="hf", model=model, device="cpu", arms=["plain"], train={"precision": "fp32"})
    from dces_core.engines import trainer

    calls: list[int] = []
    real = trainer.response_loss

    def broken(*arguments: Any) -> Any:
        calls.append(1)
        loss, count = real(*arguments)
        return (loss * float("nan") if len(calls) > 1 else loss), count

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "response_loss", broken)
        assert attempt(run) == "failed"
    assert run.status()["error"].startswith("round 2 of arm plain, train: the training loss is nan at step 1 of 1; lower train.lr")
    assert run.finished("plain") == [0, 1]
    assert attempt(run) == "done"
    assert run.finished("plain") == [0, 1, 2]


# the real model ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_real_round(tmp_path: Path) -> None:
    if not models.pulled():
        pytest.skip("the default model is not on this machine: dces models pull")
    config: RunConfig = load_recipe(
        "quick", ["rounds=1", "pool.n=8", "eval.pairs=6", "eval.passages=3", "generate.max_new_tokens=16", "cluster.clusterer=kmeans",
                  "map.on=false", "eval.probe_tokens=4", "eval.budget_tokens=16", "eval.block_tokens=128"]
    )  # fmt: skip
    run = create(config, {}, tmp_path / "real")
    assert attempt(run) == "done", run.status()
    frame = run.metrics()
    sizes = frame.group_by("arm", "round", "test_set").len()
    assert sizes.filter(pl.col("test_set") != "").height == 2 * 2 * 2
    undefined = frame.filter(pl.col("value").is_null())
    assert set(undefined["metric"]) <= {"gain_kept", "trained_ref_ppl", "trained_loop_rate"}, undefined.rows()
    assert set(undefined.filter(round=1)["metric"]) <= {"gain_kept"}, undefined.rows()
    assert frame["value"].drop_nulls().is_finite().all()
    assert frame.filter(metric="bertscore_f1")["value"].is_between(0, 1).all()
    assert frame.filter(test_set="everyday", metric="ppl", round=0)["value"].max() < 200  # a working model: noise would have 49,152
