"""What the Compare page says, on frames small enough to judge by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl
import pytest
from make_run import config_for

from dces_core.compare import Budget
from dces_core.errors import UserError
from dces_core.records import table
from dces_core.ui import comparison as page
from dces_core.ui import comparison_tables as tables
from dces_core.ui import sections
from dces_core.ui.comparison import Choice, mark
from dces_core.ui.sources import LOOP, Comparison, Measured, pooled

T_4 = 2.7764451051977987  # 97.5% point of Student's t with 4 degrees of freedom
Values = Mapping[tuple[str, str, int], Sequence[float | None]]  # (arm, metric, seed) -> by round
REAL = ("ppl", "ece", "entropy_real", "accuracy", "gain_kept", "loss")


def rows_of(values: Values, reason: str | None = None) -> pl.DataFrame:
    rows: list[dict[str, object]] = [
        {
            "arm": arm,
            "seed": seed,
            "round": round_,
            "test_set": "everyday" if metric in REAL else "",
            "metric": metric,
            "value": value,
            "n": 9,
            "reason": reason if value is None else None,
        }
        for (arm, metric, seed), series in values.items()
        for round_, value in enumerate(series)
    ]
    return table("metrics", rows)


def loop_of(
    values: Mapping[tuple[str, int], Sequence[float | None]], quantity: str = "edge_share", reason: str | None = None
) -> pl.DataFrame:
    """`values`: from round 1 on."""
    rows = [
        {"arm": arm, "seed": seed, "round": round_, "quantity": quantity, "value": value, "reason": reason if value is None else None}
        for (arm, seed), series in values.items()
        for round_, value in enumerate(series, 1)
    ]
    return pl.DataFrame(rows, schema=LOOP)


def measured(values: Values, name: str = "one", loop: pl.DataFrame | None = None, **changes: Any) -> Measured:
    frame = rows_of(values)
    arms = tuple(dict.fromkeys(arm for arm, _, _ in values))
    planned = {arm: tuple(sorted({seed for other, _, seed in values if other == arm})) for arm in arms}
    found = Measured(name, "study", "", config_for(), "", planned, frame, loop_of({}) if loop is None else loop, ())
    return replace(found, **changes)


def compared(*sources: Measured) -> Comparison:
    (found,) = pooled([(f"out:{one.name}", one) for one in sources])
    return found


def only(frame: pl.DataFrame, **where: Any) -> dict[str, Any]:
    (found,) = frame.filter(**where).to_dicts()
    return found


# pooling ----------------------------------------------------------------------------------------------------------------


def test_runs_of_the_same_settings_are_seeds_of_one_comparison() -> None:
    one = measured({("plain", "ppl", 0): [1.0, 2.0]}, "one")
    other = measured({("plain", "ppl", 1): [1.0, 8.0]}, "two", config=config_for(seed=1, name="other", arms=("plain",)))
    found = compared(one, other)
    assert (found.title, found.key, found.evidence.done) == ("one + two", "out:one", {"plain": [0, 1]})
    assert found.evidence.values("plain", "ppl", "everyday") == {0: 2.0, 1: 8.0}
    assert not found.evidence.remarks


def test_other_settings_stay_apart_and_so_do_other_texts_behind_the_same_name() -> None:
    one = measured({("plain", "ppl", 0): [1.0]}, "one")
    hot = replace(one, name="hot", config=config_for(generate={"temperature": 1.3}))
    texts = replace(one, name="texts", texts="another file")
    assert [found.title for found in pooled([(x.name, x) for x in (one, hot, texts)])] == ["one", "hot", "texts"]
    assert pooled([("empty", replace(one, metrics=one.metrics.clear()))]) == []


def test_a_unit_that_two_sources_have_counts_once() -> None:
    one = measured({("plain", "ppl", 0): [1.0, 2.0]}, "one", budgets=(BASE,))
    other = measured({("plain", "ppl", 0): [1.0, 9.0], ("dces", "ppl", 0): [1.0, 3.0]}, "two", budgets=(BASE, replace(BASE, arm="dces")))
    found = compared(one, other)
    assert found.evidence.values("plain", "ppl", "everyday") == {0: 2.0} and found.evidence.values("dces", "ppl", "everyday") == {0: 3.0}
    assert [(budget.arm, budget.seed) for budget in found.budgets] == [("plain", 0), ("dces", 0)]
    assert found.evidence.remarks == ("1 unit of two (plain/0) also in one: counted once.",)


# the four properties ----------------------------------------------------------------------------------------------------


def test_awareness_pairs_a_round_with_the_model_that_wrote_its_pool() -> None:
    entropy = [5.0, 1.0, 4.0, 2.0, 3.0, 9.0]  # of M_0 ... M_5; M_5 wrote no pool yet
    loop = loop_of({("dces", 0): [0.5, 0.1, 0.4, 0.2, 0.3], ("dces", 1): [0.1, 0.5, 0.2, 0.4, 0.3]})
    found = compared(measured({("dces", page.ENTROPY, seed): entropy for seed in (0, 1)}, loop=loop))
    follows = only(page.awareness(found), measure="edge_share follows entropy")
    assert follows["points"] == pytest.approx([1.0, -1.0]) and (follows["value"], follows["n_seeds"]) == (pytest.approx(0.0), 2)
    moved = only(page.awareness(found), measure="edge_share moved")
    assert moved["value"] == pytest.approx(0.4) and moved["low"] is None
    assert page.response(found, "edge_share")["entropy"].to_list() == [*entropy[:5], *entropy[:5]]


def test_what_is_not_controlled_or_does_not_move_says_so() -> None:
    arms = ("plain", "dces", "dces-static", "semdedup")
    entropy = {(arm, page.ENTROPY, 0): [3.0, 2.0, 1.0, 0.5, 0.2, 0.1] for arm in arms}
    shares = {("plain", 0): [None] * 5, ("dces", 0): [0.1, 0.2, 0.3, 0.4, 0.5], ("dces-static", 0): [0.1] * 5}
    frame = page.awareness(compared(measured(entropy, loop=loop_of(shares, reason="this arm picks at random"))))
    by = {(row["arm"], row["measure"]): row for row in frame.to_dicts()}
    assert by["plain", "edge_share moved"]["reason"] == "this arm picks at random"
    assert by["semdedup", "edge_share follows entropy"]["reason"] == "nothing is controlled"
    assert (
        by["dces-static", "edge_share moved"]["value"] == 0 and by["dces-static", "edge_share follows entropy"]["reason"] == "held constant"
    )
    assert by["dces", "edge_share follows entropy"]["value"] == pytest.approx(-1.0)
    assert set(frame["measure"]) == {"edge_share moved", "edge_share follows entropy"}, "no editing anywhere: no column"


def test_few_rounds_and_a_still_entropy_have_no_correlation() -> None:
    few = measured({("dces", page.ENTROPY, 0): [3.0, 2.0, 1.0, 0.5]}, loop=loop_of({("dces", 0): [0.1, 0.2, 0.3]}))
    still = measured({("dces", page.ENTROPY, 0): [3.0] * 6}, loop=loop_of({("dces", 0): [0.1, 0.2, 0.3, 0.4, 0.5]}))
    reasons = [only(page.awareness(compared(one)), measure="edge_share follows entropy")["reason"] for one in (few, still)]
    assert reasons == ["fewer than 4 rounds", "the entropy does not move"]
    assert page.awareness(compared(measured({("plain", "ppl", 0): [1.0]}))).is_empty()


def test_diversity_is_the_share_of_round_0_with_the_t_interval_of_five_seeds() -> None:
    kept = [0.1, 0.2, 0.3, 0.4, 0.5]
    values = {("dces", "vendi", seed): [20.0, 20.0 * share] for seed, share in enumerate(kept)}
    row = only(page.diversity(compared(measured(values)), 1), measure="vendi")
    half = T_4 * math.sqrt(0.025) / math.sqrt(5)
    assert (row["value"], row["low"], row["high"]) == (pytest.approx(0.3), pytest.approx(0.3 - half), pytest.approx(0.3 + half))
    assert row["points"] == pytest.approx(kept) and row["n_seeds"] == 5


def test_four_seeds_have_no_interval_and_zero_at_round_0_no_ratio() -> None:
    values = {("dces", "vendi", seed): [10.0, 5.0] for seed in range(4)} | {("dces", "survival_tail", 0): [0.0, 0.0]}
    frame = page.diversity(compared(measured(values)), 1)
    row = only(frame, measure="vendi")
    assert (row["value"], row["low"], row["high"]) == (0.5, None, None)
    assert only(frame, measure="survival_tail")["reason"] == "0 in round 0: no ratio"
    assert only(frame, measure="survival_head")["reason"].startswith("not kept when this was recorded")


def test_quality_is_geometric_for_perplexity_and_quotes_the_reason() -> None:
    values: Values = {
        ("dces", "trained_ref_ppl", 0): [None, 2.0],
        ("dces", "trained_ref_ppl", 1): [None, 8.0],
        ("dces", "trained_loop_rate", 0): [None, 0.25],
        ("dces", "trained_loop_rate", 1): [None, 0.75],
    }
    found = compared(replace(measured(values), metrics=rows_of(values, "no generated text was trained on")))
    frame = page.quality(found, 1)
    assert only(frame, measure="trained_ref_ppl")["value"] == pytest.approx(4.0)
    assert only(frame, measure="trained_loop_rate")["value"] == pytest.approx(0.5)
    assert set(page.quality(found, 0)["reason"]) == {"no generated text was trained on"}
    assert page.trend(found.evidence, "dces", "trained_ref_ppl").rows() == [(1, pytest.approx(4.0), None, None)]


def test_sustainability_is_the_median_first_round_of_the_seeds_that_get_there() -> None:
    crossing: dict[int, list[float | None]] = {
        0: [100.0, 105.0, 111.0, 112.0],
        1: [100.0, 111.0, 111.0, 112.0],
        2: [100.0, 101.0, 102.0, 103.0],
    }
    values: dict[tuple[str, str, int], Sequence[float | None]] = {("plain", "ppl", seed): series for seed, series in crossing.items()}
    values |= {("dces", "ppl", 0): [100.0] * 4, ("dces", "vendi", 0): [None, 3.0, 2.0, 1.0]}
    frame = page.sustainability(compared(measured(values)), "everyday")
    plain = only(frame, arm="plain", measure="ppl")
    assert (plain["value"], plain["degraded"], plain["n_seeds"], sorted(plain["points"])) == (1.5, 2, 3, [1.0, 2.0])
    dces = only(frame, arm="dces", measure="ppl")
    assert (dces["value"], dces["degraded"], dces["reason"]) == (None, 0, "not crossed up to round 3")
    assert only(frame, arm="dces", measure="vendi")["degraded"] is None, "undefined at round 0 is not: never worse"
    html = tables.measured_table(compared(measured(values)), frame, {"ppl": "ppl", "vendi": "vendi"}, tables.first_round_cell)
    assert html.count("&gt; 3") == 1 and '1.5</span> <i class="range">(2 of 3)</i>' in html


def test_never_worse_in_any_arm_is_a_figure_and_undefined_in_every_arm_is_a_sentence() -> None:
    found = compared(measured({(arm, metric, 0): [3.0, 3.0] for arm in ("plain", "dces") for metric in ("vendi", "distinct_2")}))
    frame = page.sustainability(found, "everyday")
    html = tables.measured_table(found, frame, {"vendi": "Vendi score", "ece": "ECE", "ppl": "ppl"}, tables.first_round_cell)
    assert html.count("&gt; 1") == 2 and "ECE, ppl: undefined in every arm, not kept when this was recorded" in html


def test_lacking_says_what_is_missing() -> None:
    found = compared(measured({("plain", "ppl", 0): [1.0, None]}, planned={"plain": (0,), "dces": (0,)})).evidence
    assert page.lacking(found, "dces", "ppl", "everyday", 1) == "no finished unit yet"
    assert page.lacking(found, "plain", "ppl", "everyday", 7) == "not measured in round 7"
    assert page.lacking(found, "plain", "ppl", "everyday", 1) == "not finite"


# against an arm ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "diff", "low", "high", "wanted"),
    [
        ("ppl", -0.1, -0.2, -0.05, "better"),
        ("ppl", 0.1, 0.05, 0.2, "worse"),
        ("ppl", 0.1, -0.05, 0.2, "level"),
        ("vendi", 0.1, 0.05, 0.2, "better"),
        ("vendi", -0.1, -0.2, -0.05, "worse"),
        ("vendi", -0.1, None, None, "leans worse"),
        ("ece", -0.1, None, None, "leans better"),
        ("ece", 0.0, None, None, "level"),
        ("trained_ref_ppl", 9.0, 8.0, 10.0, ""),
        ("ppl", None, None, None, ""),
    ],
)
def test_marks_know_which_way_is_better(metric: str, diff: float | None, low: float | None, high: float | None, wanted: str) -> None:
    assert mark(metric, diff, low, high) == wanted


def test_differences_are_those_of_compare_at_the_round() -> None:
    values = {("plain", "ppl", 0): [1.0, 2.0, 4.0], ("dces", "ppl", 0): [1.0, 2.0, 2.0], ("plain", "vendi", 0): [9.0, 8.0, 7.0]}
    found = compared(measured(values))
    frame = page.differences(found, Choice("plain", "everyday", 2, ("ppl", "vendi")))
    row = only(frame, arm="dces", metric="ppl")
    assert row["diff"] == pytest.approx(math.log(0.5)) and row["comparison"] == "one" and set(frame["round"]) == {2}
    with pytest.raises(UserError, match="vs = 'random'"):
        page.differences(found, Choice("random", "everyday", 2, ("ppl",)))
    assert page.differences(found, Choice("plain", "everyday", 2, ("trained_loop_rate",))).is_empty()


BASE = Budget("plain", 0, 96, 48, "replace", (6, 6), (6, 6), (1000, 1000), {"decoding": "sample", "temperature": 0.8, "beams": 5})


def test_budgets_compare_tokens_over_the_same_seeds() -> None:
    budgets = (BASE, replace(BASE, seed=1, trained_tokens=(9000, 9000)), replace(BASE, arm="dces", trained_tokens=(1000, 1500)))
    found = compared(measured({("plain", "ppl", 0): [1.0], ("plain", "ppl", 1): [1.0], ("dces", "ppl", 0): [1.0]}, budgets=budgets))
    frame = page.budgets_table(found, "plain")
    assert only(frame, arm="dces")["over_base"] == pytest.approx(1.25) and only(frame, arm="plain")["over_base"] is None
    assert (only(frame, arm="plain")["tokens"], only(frame, arm="plain")["steps"]) == (10_000.0, 12.0)
    assert only(frame, arm="dces")["decoding"] == "decoding sample, temperature 0.8"
    assert found.refusal() == "" and "+25%" in found.remarks("plain")[0]


def test_unequal_budgets_are_refused_in_words() -> None:
    found = compared(measured({("plain", "ppl", 0): [1.0], ("dces", "ppl", 0): [1.0]}, budgets=(BASE, replace(BASE, arm="dces", n=47))))
    choice = Choice("plain", "everyday", 0, ("ppl",))
    for section in (sections.arms(found, choice), sections.ablations(found, choice)):
        assert "unequal budgets, so they are not compared: n 48 against 47" in section.html and "<table" not in section.html


def test_ablations_are_all_named_and_those_of_this_study_too() -> None:
    found = compared(measured({("dces", "ppl", 0): [1.0], ("dces-targets", "ppl", 0): [1.0]}))
    assert page.ablations(found)[:2] == ["dces-no-edit", "dces-static"] and page.ablations(found)[-1] == "dces-targets"
    html = sections.ablations(found, Choice("dces", "everyday", 0, ("ppl",))).html
    assert html.count("not run") == 5 and "no clusters, no center or edge" in html
    without = compared(measured({("plain", "ppl", 0): [1.0]}))
    assert "no finished unit of dces" in sections.ablations(without, Choice("plain", "everyday", 0)).html


# across -----------------------------------------------------------------------------------------------------------------


def test_the_matrix_has_changes_since_round_0_and_says_what_was_not_run() -> None:
    values: Values = {
        ("plain", "ppl", 0): [10.0, 20.0],
        ("plain", "ppl", 1): [10.0, 80.0],
        ("plain", "vendi", 0): [9.0, 7.0],
        ("dces", "ppl", 0): [10.0, None],
    }
    real = config_for(engine="hf", model="facebook/opt-125m")
    found = compared(measured(values, config=real, planned={"plain": (0, 1), "dces": (0,), "random": (0,)}))
    ppl = page.matrix([found], "ppl", "everyday")
    assert only(ppl, model="facebook/opt-125m", arm="plain")["value"] == pytest.approx(4.0), "geometric mean of 2 and 8"
    assert only(page.matrix([found], "vendi", "everyday"), model="facebook/opt-125m", arm="plain")["value"] == -2.0
    states = {arm: only(ppl, model="facebook/opt-125m", arm=arm)["state"] for arm in ("plain", "dces", "random")}
    assert states == {"plain": "measured", "dces": "undefined", "random": "not run"}
    assert {"Qwen/Qwen3-0.6B", "openai-community/gpt2", "facebook/opt-6.7b", "smollm2-135m-instruct"} <= set(ppl["model"])
    assert set(ppl.filter(pl.col("comparison").is_null())["state"]) == {"not run"}
    assert ppl.height == 3 * ppl["model"].n_unique() and "fake" not in set(ppl["model"])


def test_only_settings_that_differ_are_listed() -> None:
    one = measured({("plain", "ppl", 0): [1.0]})
    hot = replace(one, config=config_for(generate={"temperature": 1.3}, data={"instruction": "Be brief."}), planned={"plain": (0, 2)})
    frame = page.differing({"a": one, "b": hot})
    assert frame.rows() == [("seeds", "0", "0, 2"), ("data.instruction", "empty", "Be brief."), ("generate.temperature", "0.8", "1.3")]
    assert page.differing({"a": one, "b": one}).is_empty()


def test_a_choice_falls_back_to_what_a_comparison_has() -> None:
    found = compared(measured({("dces", "ppl", 0): [1.0, 2.0]}))
    assert sections.fitting(found, Choice("plain", "passages", 9, ("ppl",))) == Choice("dces", "everyday", 1, ("ppl",))


def test_the_extent_names_what_is_missing() -> None:
    found = compared(measured({("plain", "ppl", 0): [1.0]}, planned={"plain": (0, 1), "dces": (0, 1)}, note="Asks."))
    assert sections.extent(found) == (
        "Asks. 1 of 4 units (one arm, one seed) are finished; seeds are missing of plain 1 of 2; nothing yet of dces; "
        "no arm has 5 seeds, so no figure has an interval."
    )


def test_every_row_of_every_table_has_a_value_or_a_reason() -> None:
    values = {(arm, metric, 0): [2.0, 1.0] for arm in ("plain", "dces") for metric in ("ppl", "vendi")}
    found = compared(measured(values, planned={"plain": (0,), "dces": (0,), "random": (0,)}))
    frames = sections.frames([found], [found], {"out:one": measured(values)}, Choice("plain", "everyday", 1, ("ppl", "vendi")))
    assert tuple(frames) == sections.FRAMES
    again = sections.frames([found], [found], {"out:one": measured(values)}, Choice("plain", "everyday", 1, ("ppl", "vendi")))
    assert all(frame.equals(again[name]) for name, frame in frames.items()), "what is kept of a comparison is not changed by reading it"
    rows = frames["properties"]
    assert rows.filter(pl.col("value").is_null() & pl.col("reason").is_null()).is_empty()
    assert rows.filter(pl.col("value").is_not_null() & pl.col("reason").is_not_null()).is_empty()
    undefined = frames["robustness"].filter(state="undefined")
    assert undefined["reason"].null_count() == 0
