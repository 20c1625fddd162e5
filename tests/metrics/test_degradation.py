"""Lead times: the first round at which a metric is 10% worse than at round 0."""

from __future__ import annotations

import subprocess
import sys

import polars as pl
import pytest

from dces_core.metrics.degradation import DIRECTION, LEAD_TIMES, TITLE, lead_times
from dces_core.records import table


def crossing(metric: str, values: list[float | None]) -> tuple[int | None, str | None]:
    rows: list[dict[str, object]] = [
        {"arm": "plain", "seed": 0, "round": round_, "test_set": "", "metric": metric, "value": value, "n": 1}
        for round_, value in enumerate(values)
    ]
    found = lead_times(table("metrics", rows[::-1]))
    return found["round"].item(), found["reason"].item()


@pytest.mark.parametrize(
    ("metric", "values", "round_"),
    [
        ("ppl", [10.0, 10.9, 11.2, 9.0], 2),
        ("ppl", [10.0, 5.0, 1.0], None),
        ("distinct_2", [0.7, 0.65, 0.64, 0.5], 3),
        ("distinct_2", [0.7, 0.9], None),
        ("loop_rate", [0.0, 0.05, 0.1], 2),
        ("loop_rate", [0.0, None, 0.4], 2),
        ("entropy_real", [-1.0, -1.05, -1.1], 2),
    ],
)
def test_first_crossing(metric: str, values: list[float | None], round_: int | None) -> None:
    found, reason = crossing(metric, values)
    assert found == round_
    assert (reason is None) == (round_ is not None)


def test_reasons() -> None:
    assert crossing("ppl", [None, 3.0])[1] == "undefined at round 0"
    assert crossing("ppl", [float("nan"), 3.0])[1] == "undefined at round 0"
    assert crossing("length", [30.0, 3.0])[1] == "no better or worse direction"
    assert crossing("ppl", [10.0, 10.0, None])[1] == "not crossed up to round 1"


def test_groups_are_kept_apart() -> None:
    rows: list[dict[str, object]] = [
        {
            "arm": arm,
            "seed": seed,
            "round": round_,
            "test_set": test_set,
            "metric": "ppl",
            "value": 10.0 + round_ * (arm == "plain") * seed,
            "n": 1,
        }
        for arm in ("plain", "dces")
        for seed in (1, 2)
        for test_set in ("everyday", "passages")
        for round_ in range(3)
    ]
    found = lead_times(table("metrics", rows))
    assert found.height == 8
    assert found.filter(pl.col("round").is_not_null())["arm"].unique().to_list() == ["plain"]
    assert found.columns == list(LEAD_TIMES)


def test_no_metrics() -> None:
    assert lead_times(table("metrics", [])).schema == pl.Schema(LEAD_TIMES)


def test_every_metric_has_a_direction_and_one_line() -> None:
    assert set(DIRECTION) == set(TITLE)
    assert all("\n" not in title and title for title in TITLE.values())


@pytest.mark.parametrize("module", ["text", "degradation", "value", "assemble", "semantic"])
def test_imports_are_light(module: str) -> None:
    heavy = "torch transformers bert_score sacrebleu vendi_score sklearn scipy umap numba sentence_transformers matplotlib"
    code = f"import sys, dces_core.metrics.{module}; print(sorted(set({heavy.split()!r}) & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
