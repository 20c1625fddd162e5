"""Has the model collapsed? Several named definitions, each with its formula: a verdict always names the one that it uses.

Every definition compares one quantity, measured against round 0 of the same arm and seed, with one threshold. The sources say what
collapse is; none gives a number, so the thresholds are this project's. docs/metrics.md has the same table for people.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import polars as pl

TEN_PERCENT_NATS = math.log(1.1)
Known = dict[int, float]


@dataclass(frozen=True)
class Definition:
    """The quantity `change(value at round t, value at round 0)` of a metric reaches `threshold`."""

    name: str
    metric: str
    change: Literal["ratio", "difference"]
    threshold: float
    falls: bool  # reached from above (at or below the threshold), else from below
    beyond: str | None = None  # a second metric; what it rose by is taken off first
    source: str = "this project"

    def holds(self, quantity: float) -> bool:
        """Whether the quantity is at or beyond the threshold."""
        return quantity <= self.threshold if self.falls else quantity >= self.threshold

    @property
    def formula(self) -> str:
        """The definition as one line; 0 is round 0, t a later round."""
        joint = " / " if self.change == "ratio" else " − "
        off = f" − max(0, {self.beyond}_t{joint}{self.beyond}_0)" if self.beyond else ""
        return f"{self.metric}_t{joint}{self.metric}_0{off} {'≤' if self.falls else '≥'} {self.threshold:.4g}"


DEFINITIONS: dict[str, Definition] = {
    rule.name: rule
    for rule in (
        Definition(
            "early", "tail_nll_tail", "difference", TEN_PERCENT_NATS, False, "tail_nll_head", "Shumailov et al. 2024, early collapse"
        ),
        Definition("perplexity", "ppl", "ratio", 1.1, False, source="Shumailov et al. 2024"),
        Definition("calibration", "ece", "difference", 0.02, False, source="Guo et al. 2017 for the measure"),
        Definition("entropy-real", "entropy_real", "ratio", 0.9, True, source="Shumailov et al. 2024, late collapse"),
        Definition("entropy", "entropy_generated", "ratio", 0.9, True, source="Shumailov et al. 2024, late collapse"),
        Definition("variance", "dispersion", "ratio", 0.9, True, source="Shumailov et al. 2024, late collapse; Alemohammad et al. 2024"),
        Definition("lexical", "distinct_2", "ratio", 0.9, True, source="Guo et al. 2024; Li et al. 2016 for the measure"),
        Definition("semantic", "vendi", "ratio", 0.9, True, source="Guo et al. 2024; Friedman and Dieng 2023 for the measure"),
        Definition("loops", "loop_rate", "difference", 0.01, False, source="Holtzman et al. 2020 for the symptom"),
    )
}

VERDICTS: dict[str, pl.DataType] = {
    "arm": pl.String(),
    "seed": pl.Int64(),
    "definition": pl.String(),
    "test_set": pl.String(),  # empty for metrics of generated text
    "round": pl.Int32(),  # first round at which the definition holds; null: it never does, or cannot be told
    "value": pl.Float64(),  # the quantity at that round, else at the last round where it is defined; null: never defined
    "threshold": pl.Float64(),
    "reason": pl.String(),  # why there is no such round
}
COLLAPSES: dict[str, pl.DataType] = {
    "arm": pl.String(),
    "definition": pl.String(),
    "test_set": pl.String(),
    "n_seeds": pl.Int64(),  # seeds where the definition can be told
    "collapsed": pl.Int64(),
    "share": pl.Float64(),  # null without such seeds
    "median_round": pl.Float64(),  # of the first rounds of the seeds that collapsed; null where none did
    "undefined": pl.Int64(),  # seeds where it cannot be told
}


def verdicts(metrics: pl.DataFrame) -> pl.DataFrame:
    """First round at which each definition holds, per arm, seed and test set (VERDICTS columns).

    `metrics` has the columns of records.METRICS. Undefined values decide nothing: a definition without round 0, or without any later
    value, has no verdict and says why.
    """
    found = []
    for (arm, seed), group in metrics.group_by("arm", "seed", maintain_order=True):
        for rule in DEFINITIONS.values():
            sets = group.filter(pl.col("metric") == rule.metric)["test_set"].unique(maintain_order=True).to_list()
            for test_set in sets or [""]:
                part = group.filter(pl.col("test_set") == test_set)
                where = {"arm": arm, "seed": seed, "definition": rule.name, "test_set": test_set, "threshold": rule.threshold}
                found.append({**where, **_verdict(rule, part)})
    return pl.DataFrame(found, schema=VERDICTS).sort("arm", "seed", maintain_order=True)


def collapses(found: pl.DataFrame) -> pl.DataFrame:
    """Share of seeds that collapse and the median of their first rounds, by arm and definition (COLLAPSES columns)."""
    told = pl.col("value").is_not_null()
    by = found.group_by("arm", "definition", "test_set", maintain_order=True).agg(
        n_seeds=told.sum().cast(pl.Int64),
        collapsed=pl.col("round").is_not_null().sum().cast(pl.Int64),
        median_round=pl.col("round").cast(pl.Float64).median(),
        undefined=told.not_().sum().cast(pl.Int64),
    )
    share = pl.when(pl.col("n_seeds") > 0).then(pl.col("collapsed") / pl.col("n_seeds"))
    return by.with_columns(share=share).select([pl.col(name).cast(kind) for name, kind in COLLAPSES.items()])


def _verdict(rule: Definition, part: pl.DataFrame) -> dict[str, object]:
    """`part`: one arm, seed and test set."""
    main, why = _changes(rule, part, rule.metric)
    if why is not None:
        return {"reason": why}
    if rule.beyond:
        other, why = _changes(rule, part, rule.beyond)
        if why is not None:
            return {"reason": why}
        main = {round_: value - max(0.0, other[round_]) for round_, value in main.items() if round_ in other}
    rounds = sorted(main)
    if not rounds:
        return {"reason": "undefined in every round after 0"}
    for round_ in rounds:
        if rule.holds(main[round_]):
            return {"round": round_, "value": main[round_]}
    missing = part.filter(pl.col("metric") == rule.metric, pl.col("round") > 0)["round"].n_unique() - len(rounds)
    return {
        "value": main[rounds[-1]],
        "reason": f"not reached up to round {rounds[-1]}" + (f"; undefined in {missing} round{'s' * (missing > 1)}" if missing else ""),
    }


def _changes(rule: Definition, part: pl.DataFrame, metric: str) -> tuple[Known, str | None]:
    """Change since round 0 by round, where it is defined; or why there is none."""
    values = part.filter(pl.col("metric") == metric)
    if values.is_empty():
        return {}, f"{metric} was not measured"
    known = {r: v for r, v in values.select("round", "value").iter_rows() if v is not None and math.isfinite(v)}
    start = known.pop(0, None)
    if start is None:
        return {}, f"{metric} is undefined at round 0"
    if rule.change == "ratio" and start <= 0:
        return {}, f"{metric} is {start:g} at round 0: no ratio"
    change: Callable[[float], float] = (lambda v: v / start) if rule.change == "ratio" else (lambda v: v - start)
    return {round_: change(value) for round_, value in known.items()}, None
