"""Costs: by hand, against the spans of a run, and with every input missing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dces_core import cli, cost, cost_sources, estimate, machine, store
from dces_core.config import RunConfig, load_recipe, parse
from dces_core.cost import WHOLE, Measurement, Timing, costs, lost_costs, needs, rate_of, stage_costs, totals
from dces_core.errors import UserError
from dces_core.records import table
from dces_core.store import SHARED, Run
from dces_core.study_store import Output, Unit

RATE = rate_of(3.6, 1000, "EUR")
STAGES = ("generate", "select", "map", "train", "evaluate")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DCES_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(estimate, "likely_device", lambda config: "cpu")
    monkeypatch.setattr(store, "recorded_root", lambda: tmp_path / "recorded")
    return tmp_path


def config(**changes: Any) -> RunConfig:
    return parse({"rounds": 3, "arms": ["plain", "dces"], **changes})


def timed_run(rounds: int = 3, **changes: Any) -> Run:
    """A run whose stages took other seconds in every round; all of them are in `spent_s`."""
    run = store.create(config(rounds=rounds, **changes), machine.describe())
    events = [{"round": 0, "arm": SHARED, "stage": "evaluate", "seconds": 7.0}]
    events += [{"round": 1, "arm": SHARED, "stage": stage, "seconds": 2.5} for stage in ("generate", "reference", "map")]
    for round_ in range(1, rounds + 1):
        for place, arm in enumerate(run.config.arms):
            stages = STAGES[1:] if round_ == 1 else STAGES
            events += [{"round": round_, "arm": arm, "stage": s, "seconds": 1.0 + i + round_ + 9 * place} for i, s in enumerate(stages)]
    lines = [json.dumps({"t": 0.0, "kind": "span", **event}) + "\n" for event in events]
    run.events_path.write_text("".join(lines), encoding="utf-8")
    return run


def spent_s(run: Run) -> float:
    return math.fsum(event["seconds"] for event in run.events()[0])


def measured(**changes: Any) -> Measurement:
    timings = {(arm, stage): Timing(2.0 if arm == "plain" else 3.0, 3) for arm in ("plain", "dces") for stage in STAGES}
    shared = {(SHARED, stage): Timing(4.0, 1) for stage in ("evaluate", "generate", "reference", "map")}
    given: dict[str, Any] = {"config": config(), "parameters": 134_515_008, "timings": {**timings, **shared}, **changes}
    return Measurement(name="run a", where="measured here on run a", **given)


def metrics(values: dict[tuple[str, int, str], list[float | None]]) -> pl.DataFrame:
    """ppl by (arm, seed, test set), one value a round."""
    rows: list[dict[str, object]] = [
        {"arm": arm, "seed": seed, "test_set": test_set, "metric": "ppl", "round": round_, "value": value}
        for (arm, seed, test_set), series in values.items()
        for round_, value in enumerate(series)
    ]
    return table("metrics", rows)


# one's own inputs -------------------------------------------------------------------------------------------------------


def test_energy_and_money_by_hand() -> None:
    assert RATE.of(7200.0) == {"seconds": 7200.0, "kwh": 2.0, "money": 7.2, "reason": None}
    assert rate_of(0.0, None).of(10.0) == {"seconds": 10.0, "kwh": None, "money": 0.0, "reason": "no watts were given"}
    assert rate_of(None, 0.0).of(10.0)["reason"] == "no price per hour was given"
    assert RATE.of(5.0, "why") == {"seconds": None, "kwh": None, "money": None, "reason": "why"}


@pytest.mark.parametrize(
    ("given", "field"),
    [((-1.0, None), "price_per_hour"), ((math.nan, None), "price_per_hour"), ((None, math.inf), "watts"), ((1.0, 1.0, "<b>"), "currency")],
)
def test_bad_inputs_are_named(given: tuple[Any, ...], field: str) -> None:
    with pytest.raises(UserError, match=field):
        rate_of(*given)


# seconds ----------------------------------------------------------------------------------------------------------------


def test_the_same_settings_cost_what_the_run_took() -> None:
    run = timed_run()
    by = cost_sources.of_run(run)
    stages = stage_costs(run.config, 134_515_008, by, RATE)
    assert set(stages["scale"]) == {1.0} and stages["reason"].null_count() == stages.height
    sums = {row["part"]: row for row in totals(stages, RATE).to_dicts()}
    assert sums["the run"]["seconds"] == pytest.approx(spent_s(run))
    assert sums["the run"]["money"] == pytest.approx(spent_s(run) / 1000)
    assert sums["the run"]["kwh"] == pytest.approx(spent_s(run) / 3600)
    # means: stages 1 to 4 over rounds 1 to 3, but generate over 2 and 3; in round 1 they count from 0
    means = [3.5, *((2 * (1.0 + i) + (1.0 + i - 1) + 6) / 3 for i in range(1, 5))]
    assert sums["a round of plain"]["seconds"] == pytest.approx(sum(means))
    assert sums["a round of all arms"]["seconds"] == pytest.approx(sums["a round of plain"]["seconds"] + sums["a round of dces"]["seconds"])
    assert sums["once, for all arms"]["seconds"] == 7.0 + 3 * 2.5
    generate = stages.filter(part="dces", stage="generate").to_dicts()[0]
    assert (generate["times"], generate["n"]) == (2, 2) and generate["source"] == f"measured here on run {run.id}, n = 2 rounds"


def test_more_rounds_cost_their_rounds_only() -> None:
    by, short, long = measured(), config(), config(rounds=13)
    run_s = [float(totals(stage_costs(c, 134_515_008, by, RATE), RATE)["seconds"][-1]) for c in (short, long)]
    assert run_s[1] - run_s[0] == pytest.approx(10 * 5 * (2.0 + 3.0))
    assert run_s[0] == pytest.approx(4 * 4.0 + (3 * 5 - 1) * (2.0 + 3.0))


def test_what_a_run_needs_is_what_the_rounds_do() -> None:
    found = needs(config(arms=["plain", "frozen"], rounds=1, map={"on": False}, train={"round0": "finetune"}))
    assert [(need.part, need.stage) for need in found] == [
        *(("plain", stage) for stage in ("select", "train", "evaluate")),
        *(("frozen", stage) for stage in ("select", "evaluate")),
        *((SHARED, stage) for stage in ("train", "evaluate", "generate", "reference")),
    ]


def test_another_model_is_scaled_by_its_parameters_and_says_so() -> None:
    by = measured()
    stages = stage_costs(config(model="Qwen/Qwen3-0.6B"), 596_049_920, by, RATE)
    train = stages.filter(part="plain", stage="train").to_dicts()[0]
    own, other = (estimate.stage_seconds(config(), count, "cpu")["train"] for count in (134_515_008, 596_049_920))
    assert train["scale"] == pytest.approx(other / own) and train["seconds"] == pytest.approx(2.0 * other / own)
    assert train["source"].endswith(f"n = 3 rounds, scaled ×{other / own:.3g}")
    assert "scaled" in totals(stages, RATE)["source"][-1]
    unknown = stage_costs(config(model="someone/else"), None, by, RATE)
    assert unknown["seconds"].null_count() == unknown.height and "'someone/else' is unknown" in unknown["reason"][0]


def test_an_arm_that_was_not_measured_leaves_its_sums_empty() -> None:
    stages = stage_costs(config(arms=["plain", "dces-targets"]), 134_515_008, measured(), RATE)
    sums = {row["part"]: row for row in totals(stages, RATE).to_dicts()}
    assert sums["a round of plain"]["seconds"] == 10.0
    for part in ("a round of dces-targets", "a round of all arms", "the run"):
        assert sums[part]["seconds"] is None and sums[part]["reason"] == "stage generate of arm dces-targets was not measured on run a"


# collapse ---------------------------------------------------------------------------------------------------------------


def test_rounds_lost_are_those_after_the_first_degraded_one() -> None:
    series = {
        ("plain", 0, "a"): [10.0, 10.5, 11.0, 14.0], ("plain", 1, "a"): [10.0, 12.0, 9.0, 9.0],
        ("dces", 0, "a"): [10.0, 10.9, 10.9, 10.9], ("dces", 0, "b"): [None, 9.0, 9.0, 9.0], ("dces", 0, "c"): [9.0, None, None, None],
    }  # fmt: skip
    found = {(row["arm"], row["test_set"]): row for row in lost_costs(measured(metrics=metrics(series)), RATE).to_dicts()}
    plain = found["plain", "a"]
    assert (plain["first_degraded"], plain["lost_rounds"], plain["of_rounds"], plain["n"]) == ("2, 1", 1.5, 3, 2)
    assert plain["seconds"] == 1.5 * 10.0 and plain["money"] == pytest.approx(0.015) and plain["source"].endswith("n = 2 seeds")
    assert (found["dces", "a"]["first_degraded"], found["dces", "a"]["money"]) == ("never", 0.0)
    for test_set in "bc":
        assert found["dces", test_set]["seconds"] is None and "undefined" in found["dces", test_set]["reason"]


# dces over plain --------------------------------------------------------------------------------------------------------


def test_both_ways_to_say_what_dces_takes_more(tmp_path: Path) -> None:
    row = {
        "name": "dces-total",
        "ours": 12.0,
        "peer": 8.0,
        "ratio": 1.5,
        "unit": "s",
        "n": 3,
        "note": "a note",
        "measured": "d",
        "machine": "m",
    }
    path = tmp_path / "bench.json"
    path.write_text(json.dumps([row]), encoding="utf-8")
    own, bench = cost.extra_costs(measured(), cost_sources.overhead(path), RATE).to_dicts()
    assert (own["dces_s"], own["plain_s"], own["seconds"], own["ratio"]) == (15.0, 10.0, 5.0, 1.5)
    assert (bench["seconds"], bench["ratio"], bench["n"]) == (4.0, 1.5, 3) and "n = 3 seeds, on m: a note" in bench["source"]
    assert bench["money"] == pytest.approx(0.004)
    path.write_text(json.dumps([{**row, "ours": None}]), encoding="utf-8")
    assert cost.extra_costs(measured(), cost_sources.overhead(path), RATE)["reason"][1] == "dces-total has no figures: a note"
    assert "is not here" in str(cost_sources.overhead(tmp_path / "absent.json"))
    whole = measured(timings={("dces", WHOLE): Timing(1.0, 2)}, whole=True)
    assert "whole units" in cost.extra_costs(whole, "none", RATE)["reason"][0]


def test_the_shipped_figure_is_read() -> None:
    row = cost_sources.overhead()
    assert isinstance(row, dict)
    stored = {entry["name"]: entry for entry in json.loads(cost_sources.BENCH.read_text(encoding="utf-8"))}
    assert cost.extra_costs("x", row, RATE)["ratio"][1] == pytest.approx(stored["dces-total"]["ratio"])


# where seconds come from ------------------------------------------------------------------------------------------------


def test_the_best_measurement() -> None:
    other = timed_run(model="gpt2")
    found = cost_sources.best(config())
    assert isinstance(found, Measurement) and found.name == f"run {other.id}"
    part = timed_run(arms=["plain"])
    found = cost_sources.best(config())
    assert isinstance(found, Measurement) and found.name == f"run {part.id}"  # the model counts before the arms
    whole = timed_run()
    found = cost_sources.best(config())
    assert isinstance(found, Measurement) and found.name == f"run {whole.id}" and "measured here" in found.where
    assert "no run with the engine fake on cpu" in str(cost_sources.best(config(engine="fake", model="fake")))


def test_a_stage_done_again_counts_once_and_hostile_spans_do_not() -> None:
    run = timed_run()
    before = cost_sources.of_run(run).timings
    with run.events_path.open("a", encoding="utf-8") as file:
        for event in ({"round": 3, "arm": "plain", "stage": "train"}, {"round": 1, "arm": "else", "stage": "train"}):
            file.write(json.dumps({"t": 0.0, "kind": "span", **event, "seconds": 100.0}) + "\n")
    after = cost_sources.of_run(run).timings
    assert after.keys() == before.keys() and after["plain", "train"].n == 3
    assert 3 * (after["plain", "train"].seconds - before["plain", "train"].seconds) == pytest.approx(100.0 - (1.0 + 3 + 3))
    with pytest.raises(UserError, match="measures nothing"):
        cost_sources.of_run(store.create(config(), {}))


class Made(Output):
    """A study's output that is not on the disk: two seeds of plain, one of dces."""

    def config(self) -> RunConfig:
        return config(rounds=4)

    def units(self) -> list[Unit]:
        cpu = {"model": "Other", "threads": 2}
        places = [("plain", 0, 40.0), ("plain", 1, 60.0), ("dces", 0, 32.0)]
        return [MadeUnit(self.path, {"arm": arm, "seed": seed, "seconds": s, "cpu": cpu}) for arm, seed, s in places]


class MadeUnit(Unit):
    def frame(self, name: str) -> pl.DataFrame:
        return metrics({(self.arm, self.seed, "a"): [10.0, 10.0, 12.0, 12.0, 12.0]})


def test_a_study_measures_whole_units() -> None:
    by = cost_sources.of_study(Made(Path("made")))
    assert by.timings == {("plain", WHOLE): Timing(12.5, 2), ("dces", WHOLE): Timing(8.0, 1)}
    assert by.where == "measured on study made (Other, 2 threads)"
    found = costs(config(rounds=4), by, "none", RATE)
    assert found.totals["seconds"].to_list() == [12.5, 8.0, 20.5, 82.0] and "whole units" in found.facts["notes"][0]
    assert found.stages["source"].to_list()[0].endswith("n = 2 seeds") and "whole units" in found.dces_over_plain["reason"][0]
    assert found.collapse.select("arm", "first_degraded", "lost_rounds", "seconds").rows() == [
        ("plain", "2, 2", 2.0, 25.0),
        ("dces", "2", 2.0, 16.0),
    ]


def test_another_processor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    run = timed_run()
    monkeypatch.setattr(machine, "cpu", lambda: {"model": "Other"})
    assert cost_sources.of_run(run).where.startswith(f"measured on run {run.id} (")


def test_the_bench_gives_a_round_of_dces(tmp_path: Path) -> None:
    found = costs(load_recipe("standard"), cost_sources.of_bench(cost_sources.BENCH), "none", RATE)
    sums = {row["part"]: row for row in found.totals.to_dicts()}
    assert sums["a round of dces"]["seconds"] > 0 and "dces bench round" in sums["a round of dces"]["source"]
    assert sums["a round of plain"]["seconds"] is None
    (tmp_path / "empty.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="no rows of the bench round"):
        cost_sources.of_bench(tmp_path / "empty.json")


# the verb ---------------------------------------------------------------------------------------------------------------


def test_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    run = timed_run()
    call = ["cost", "standard", "--set", "rounds=3", "--run", run.id, "--price-per-hour", "3.6"]
    assert cli.main([*call, "--format", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (
        said["inputs"] == {"price_per_hour": 3.6, "watts": None, "currency": None} and said["measured"] == f"measured here on run {run.id}"
    )
    assert all(row["kwh"] is None and row["reason"] == "no watts were given" for row in said["stages"])
    assert said["collapse"][0]["reason"] == f"run {run.id} evaluated no rounds"
    assert set(said["formulas"]) == set(cost.FORMULAS)
    assert cli.main(call) == 0
    shown = capsys.readouterr().out
    assert "price per hour 3.6 (no unit), no watts" in shown and "kwh" not in shown and "money, no unit" in shown
    assert cli.main(["cost", "smoke"]) == 0
    assert "none: no run with the engine fake" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--watts", "-1"], "watts = -1.0"),
        (["--run", "gone"], "run = 'gone'"),
        (["--study", "gone"], "study = 'gone'"),
        (["--bench", "gone.json"], "bench = 'gone.json'"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cost", "standard", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
