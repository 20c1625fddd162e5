"""Arms compared over seeds: paired differences with Student's t, and the refusal to compare unequal budgets.

Pure functions on frames and plain facts; study_store.py reads them from a study's directory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import polars as pl

from dces_core.arms import ARMS
from dces_core.errors import UserError

#: Compared as ratios: their logarithm is averaged, so the mean is geometric and the difference a log ratio.
LOG_METRICS = frozenset({"ppl", "self_ppl", "ref_ppl", "trained_ref_ppl"})
#: With fewer seeds an interval promises more than it can hold: the points stand alone.
LEAST_SEEDS = 5
#: The same distribution as plain by another draw: its differences are the noise floor, so it comes first.
NOISE_FLOOR = "random"
#: Shown beside the others, exempt from equal budgets, never ranked.
REFERENCE_ROWS = tuple(arm.name for arm in ARMS.values() if not arm.ranked)
#: Arms that are about the decoding itself.
OWN_DECODING = tuple(arm.name for arm in ARMS.values() if arm.decode != "recipe")
TOKEN_TOLERANCE = 0.1

COMPARISON: dict[str, pl.DataType] = {
    "arm": pl.String(),
    "vs": pl.String(),
    "metric": pl.String(),
    "test_set": pl.String(),
    "round": pl.Int32(),
    "mean": pl.Float64(),  # over the arm's seeds; geometric for LOG_METRICS
    "low": pl.Float64(),  # 95% t interval, n - 1 degrees of freedom; null under LEAST_SEEDS
    "high": pl.Float64(),
    "diff": pl.Float64(),  # arm minus vs, mean over the seeds that both have; log ratio for LOG_METRICS
    "diff_low": pl.Float64(),
    "diff_high": pl.Float64(),
    "n_seeds": pl.Int64(),  # seeds of `arm` where the value is defined
}


@dataclass(frozen=True)
class Budget:
    """What one unit (arm x seed) was given. Lists have one entry per round of training."""

    arm: str
    seed: int
    pool: int
    n: int
    regime: str
    planned_steps: Sequence[int]  # before responses without tokens are left out
    optimiser_steps: Sequence[int]
    trained_tokens: Sequence[int]
    decoding: Mapping[str, Any]

    @property
    def reference(self) -> bool:
        """Whether the arm is a reference row."""
        return self.arm in REFERENCE_ROWS


def compare(metrics: pl.DataFrame, vs: str, arms: Sequence[str]) -> pl.DataFrame:
    """COMPARISON of every arm with `vs`. `metrics`: records.METRICS of all seeds; `arms`: the study's order.

    Seeds are paired: all arms of a seed share prompts, noise and batch order. Values that are undefined or not finite are left out.
    Raises UserError where `vs` was not measured.
    """
    present = metrics["arm"].unique().to_list()
    if vs not in present:
        raise UserError(f"vs = {vs!r} has no finished unit in this study; arms that have: {', '.join(sorted(present)) or 'none yet'}.")
    keys = ["metric", "test_set", "round"]
    log = pl.col("metric").is_in(list(LOG_METRICS))
    value = pl.when(pl.col("value").is_finite()).then(pl.when(log).then(pl.col("value").log()).otherwise(pl.col("value")))
    points = metrics.select("arm", "seed", *keys, value.fill_nan(None).alias("value"))
    base = points.filter(arm=vs).select("seed", *keys, pl.col("value").alias("base"))
    paired = points.join(base, on=["seed", *keys], how="left").with_columns(diff=pl.col("value") - pl.col("base"))
    lists = paired.group_by("arm", *keys).agg(pl.col("value").drop_nulls().sort(), pl.col("diff").drop_nulls().sort())
    order = {arm: place for place, arm in enumerate(ordered(arms, vs))}
    rows = [_row(row, vs) for row in lists.to_dicts()]
    rows.sort(key=lambda row: (order.get(row["arm"], len(order)), row["metric"], row["test_set"], row["round"]))
    return pl.DataFrame(rows, schema=COMPARISON)


def ordered(arms: Sequence[str], vs: str) -> list[str]:
    """The A/A check first, then `vs`, the others as the study lists them, the reference rows last."""
    first = [arm for arm in (NOISE_FLOOR, vs) if arm in arms]
    last = [arm for arm in arms if arm in REFERENCE_ROWS and arm not in first]
    return list(dict.fromkeys([*first, *(arm for arm in arms if arm not in last), *last]))


def t_interval(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Mean and 95% Student interval with n - 1 degrees of freedom; no interval under LEAST_SEEDS, nothing without values."""
    n = len(values)
    if n == 0:
        return None, None, None
    mean = math.fsum(values) / n
    if n < LEAST_SEEDS:
        return mean, None, None
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_975(n - 1) * sd / math.sqrt(n)
    return mean, mean - half, mean + half


@cache
def t_975(df: int) -> float:
    """97.5% point of Student's t with `df` degrees of freedom, without scipy, which is too heavy for the dashboard.

    For a whole `df` the probability of |t| < sqrt(df) tan(angle) is a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4); bisected.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        cos, odd = math.cos(angle), df % 2
        term, total = (cos, cos) if odd else (1.0, 1.0)
        for k in range(2 + odd, df, 2):
            term *= (k - 1) / k * cos * cos
            total += term
        inside = 2 / math.pi * (angle + math.sin(angle) * total * (df > 1)) if odd else math.sin(angle) * total
        low, high = (angle, high) if inside < 0.95 else (low, angle)
    return math.sqrt(df) * math.tan(low)


def _row(row: dict[str, Any], vs: str) -> dict[str, Any]:
    mean, low, high = t_interval(row["value"])
    if row["metric"] in LOG_METRICS:
        mean, low, high = (None if value is None else math.exp(value) for value in (mean, low, high))
    diff, diff_low, diff_high = (None, None, None) if row["arm"] == vs else t_interval(row["diff"])
    where = {name: row[name] for name in ("arm", "metric", "test_set", "round")}
    found = {"mean": mean, "low": low, "high": high, "diff": diff, "diff_low": diff_low, "diff_high": diff_high}
    return {**where, "vs": vs, **found, "n_seeds": len(row["value"])}


# budgets ----------------------------------------------------------------------------------------------------------------


def refuse_unequal(budgets: Sequence[Budget]) -> None:
    """Raise UserError unless pool, N, optimiser steps, regime and decoding are equal; reference rows are exempt.

    Arms that are about the decoding (OWN_DECODING) may have their own. An accumulating regime compares with itself alone.
    """
    ranked = [budget for budget in budgets if not budget.reference]
    for one in ranked[1:]:
        first = ranked[0]
        for name in ("regime", "pool", "n", "planned_steps"):
            _same(name, first, one, getattr(first, name), getattr(one, name))
    decoding = [budget for budget in ranked if budget.arm not in OWN_DECODING]
    for one in decoding[1:]:
        _same("decoding", decoding[0], one, dict(decoding[0].decoding), dict(one.decoding))


def remarks(budgets: Sequence[Budget], vs: str) -> list[str]:
    """Sentences on what is allowed but must be said: trained tokens over +-10% of those of `vs`, and steps that were left out."""
    found = []
    base = {budget.seed: sum(budget.trained_tokens) for budget in budgets if budget.arm == vs}
    for budget in budgets:
        tokens, other = sum(budget.trained_tokens), base.get(budget.seed, 0)
        if not budget.reference and other and abs(tokens / other - 1) > TOKEN_TOLERANCE:
            found.append(f"{_where(budget)} trained on {tokens} tokens, {vs} on {other} ({tokens / other - 1:+.0%}).")
        missing = sum(budget.planned_steps) - sum(budget.optimiser_steps)
        if missing:
            steps = f"{missing} optimiser step{'s' * (missing > 1)}"
            found.append(f"{_where(budget)} took {steps} less: responses without tokens teach nothing.")
    return found


def _same(what: str, first: Budget, one: Budget, left: Any, right: Any) -> None:
    left, right = (list(value) if isinstance(value, tuple) else value for value in (left, right))
    if left != right:
        name = "optimiser steps" if what == "planned_steps" else what
        raise UserError(
            f"{_where(first)} and {_where(one)} have unequal budgets, so they are not compared: {name} {left} against {right}; "
            "compute one of them again with the other's settings."
        )


def _where(budget: Budget) -> str:
    return f"{budget.arm}, seed {budget.seed},"
