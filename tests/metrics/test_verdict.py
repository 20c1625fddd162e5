"""Collapse verdicts: closed-form series, one definition at a time, and their shares over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest

from dces_core.metrics.degradation import DIRECTION
from dces_core.metrics.verdict import COLLAPSES, DEFINITIONS, VERDICTS, collapses, verdicts
from dces_core.records import table

ROOT = Path(__file__).resolve().parents[2]
Values = Sequence[float | None]


def series(metric: str, values: Values, arm: str = "plain", seed: int = 0, test_set: str = "") -> list[dict[str, object]]:
    return [
        {"arm": arm, "seed": seed, "round": r, "test_set": test_set, "metric": metric, "value": v, "n": 1} for r, v in enumerate(values)
    ]


def one(definition: str, *parts: list[dict[str, object]]) -> dict[str, object]:
    """The verdict by one definition; the rows come in reverse."""
    rows = [row for part in parts for row in part][::-1]
    (found,) = verdicts(table("metrics", rows)).filter(definition=definition).to_dicts()
    return found


@pytest.mark.parametrize(
    ("definition", "metric", "values", "round_", "value"),
    [
        ("perplexity", "ppl", [10.0, 10.9, 11.5, 9.0], 2, 1.15),
        ("perplexity", "ppl", [10.0, 5.0, 1.0], None, 0.1),
        ("entropy", "entropy_generated", [2.0, 1.9, 1.5], 2, 0.75),
        ("entropy-real", "entropy_real", [2.0, 1.0], 1, 0.5),
        ("lexical", "distinct_2", [0.8, 0.79, 0.6], 2, 0.75),
        ("semantic", "vendi", [10.0, 9.5, 9.1], None, 0.91),
        ("variance", "dispersion", [1.0, 0.5], 1, 0.5),
        ("calibration", "ece", [0.25, 0.26, 0.5], 2, 0.25),
        ("loops", "loop_rate", [0.25, 0.25, 0.5], 2, 0.25),
        ("loops", "loop_rate", [0.5, 0.0], None, -0.5),
    ],
)
def test_first_round(definition: str, metric: str, values: Values, round_: int | None, value: float) -> None:
    found = one(definition, series(metric, values))
    assert found["round"] == round_ and found["value"] == pytest.approx(value)
    assert found["reason"] == (None if round_ is not None else f"not reached up to round {len(values) - 1}")


def test_early_collapse_is_what_the_tail_loses_beyond_the_head() -> None:
    tail = series("tail_nll_tail", [8.0, 8.05, 8.2, 8.3])
    assert one("early", tail, series("tail_nll_head", [2.0, 2.0, 2.0, 2.0]))["round"] == 2
    assert one("early", tail, series("tail_nll_head", [2.0, 2.0, 2.15, 2.0]))["round"] == 3
    assert one("early", tail, series("tail_nll_head", [2.0, 2.3, 2.3, 2.3]))["round"] is None
    falls = one("early", series("tail_nll_tail", [8.0, 8.0]), series("tail_nll_head", [2.0, 1.0]))
    assert (falls["round"], falls["value"]) == (None, 0.0), "a head that improves loses no tail"
    assert one("early", tail)["reason"] == "tail_nll_head was not measured"
    assert one("early", tail, series("tail_nll_head", [2.0, None, None, 2.0]))["round"] == 3


def test_undefined_decides_nothing() -> None:
    assert one("perplexity", series("ppl", [None, 20.0])) | {"value": None} == one("perplexity", series("ppl", [math.inf, 20.0]))
    assert one("perplexity", series("ppl", [None, 20.0]))["reason"] == "ppl is undefined at round 0"
    assert one("perplexity", series("ppl", [10.0, None]))["reason"] == "undefined in every round after 0"
    assert one("perplexity", series("ppl", [10.0, None, 10.0]))["reason"] == "not reached up to round 2; undefined in 1 round"
    assert one("perplexity", series("ppl", [10.0, None, 12.0]))["round"] == 2
    assert one("entropy", series("entropy_generated", [0.0, 0.0]))["reason"] == "entropy_generated is 0 at round 0: no ratio"
    missing = one("loops", series("ppl", [1.0, 1.0]))
    assert (missing["round"], missing["value"], missing["reason"]) == (None, None, "loop_rate was not measured")


def test_arms_seeds_and_test_sets_are_kept_apart() -> None:
    rows = [
        row
        for arm in ("plain", "dces")
        for seed in (1, 2)
        for test_set in ("a", "b")
        for row in series("ppl", [10.0, 12.0 if (arm, test_set) == ("plain", "b") else 10.0], arm, seed, test_set)
    ]
    found = verdicts(table("metrics", rows)).filter(definition="perplexity")
    assert found.height == 8 and found.schema == pl.Schema(VERDICTS)
    assert found.filter(pl.col("round").is_not_null()).select("arm", "seed", "test_set").rows() == [("plain", 1, "b"), ("plain", 2, "b")]
    assert verdicts(table("metrics", [])).schema == pl.Schema(VERDICTS)


def test_share_of_seeds_and_median_of_first_rounds() -> None:
    series_of = {0: [10.0, 12.0, 12.0, 12.0], 1: [10.0, 10.0, 10.0, 12.0], 2: [10.0, 10.0, 10.0, 10.0], 3: [None, 1.0, 1.0, 1.0]}
    rows = [row for seed, values in series_of.items() for row in series("ppl", values, seed=seed)]
    found = collapses(verdicts(table("metrics", rows)))
    assert found.schema == pl.Schema(COLLAPSES)
    (row,) = found.filter(definition="perplexity").to_dicts()
    assert row == {
        "arm": "plain", "definition": "perplexity", "test_set": "", "n_seeds": 3, "collapsed": 2, "share": pytest.approx(2 / 3),
        "median_round": 2.0, "undefined": 1,
    }  # fmt: skip
    (row,) = found.filter(definition="lexical").to_dicts()
    assert (row["n_seeds"], row["share"], row["median_round"], row["undefined"]) == (0, None, None, 4)


def test_definitions_use_real_metrics_and_are_on_the_metrics_page() -> None:
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    assert len(DEFINITIONS) >= 5
    for rule in DEFINITIONS.values():
        assert rule.metric in DIRECTION and (rule.beyond is None or rule.beyond in DIRECTION)
        assert rule.falls == (DIRECTION[rule.metric] == "higher")
        assert f"| {rule.name} | {rule.formula} | {rule.source} |" in text, f"| {rule.name} | {rule.formula} | {rule.source} |"
