"""Where a metric goes next: a random walk with drift on the log scale, its prediction interval, and how often that was right.

The drift is the mean change per round so far, the spread is that of the changes around it (Student, one degree of freedom less
than changes). `backtest` predicts the recorded studies from their own first rounds and counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from dces_core.metrics.verdict import DEFINITIONS, Definition

LEAST_ROUNDS = 4
LEVEL = 0.8
AHEAD = 2
#: Shares that can be 0: a log scale has no place for them.
SHARES = ("loop_rate", "rep_4", "self_bleu", "tail_coverage", "survival_head", "survival_middle", "survival_tail")
#: What the texts of a round tell by themselves, or beside real ones.
TEXT_METRICS = (
    "distinct_1", "distinct_2", "distinct_3", "entropy_unigram", "compression_ratio", "vendi", "dispersion", *SHARES,
)  # fmt: skip
Known = dict[int, float]
FORECASTS: dict[str, pl.DataType] = {
    "metric": pl.String(),
    "round": pl.Int32(),
    "value": pl.Float64(),  # null with a reason
    "low": pl.Float64(),  # LEVEL prediction interval
    "high": pl.Float64(),
    "n": pl.Int64(),  # rounds that it rests on
    "reason": pl.String(),
}
RISKS: dict[str, pl.DataType] = {
    "definition": pl.String(),
    "metric": pl.String(),
    "round": pl.Int32(),
    "probability": pl.Float64(),  # that the definition holds at that round; null with a reason
    "n": pl.Int64(),
    "reason": pl.String(),
}
BACKTEST: dict[str, pl.DataType] = {
    "metric": pl.String(),
    "series": pl.Int64(),  # arms x seeds x studies
    "n": pl.Int64(),  # forecasts
    "coverage": pl.Float64(),  # share of them whose interval held the value
    "nominal": pl.Float64(),
    "better": pl.Float64(),  # share of them nearer to the value than the last round is
    "n_risks": pl.Int64(),  # forecasts of a definition that had not held yet
    "brier": pl.Float64(),  # mean squared error of its probability
    "brier_rate": pl.Float64(),  # of the observed rate, as the probability of all
}


@dataclass(frozen=True)
class Forecast:
    """Student's distribution around `middle` on the scale of the walk."""

    middle: float
    spread: float
    degrees: int
    log: bool
    share: bool

    def interval(self, level: float = LEVEL) -> tuple[float, float, float]:
        """Value, low, high, in the metric's own unit."""
        from scipy.stats import t

        half = float(t.ppf((1 + level) / 2, self.degrees)) * self.spread
        back = [math.exp(min(x, 700.0)) if self.log else x for x in (self.middle, self.middle - half, self.middle + half)]
        value, low, high = (min(1.0, max(0.0, x)) for x in back) if self.share else back
        return value, low, high

    def below(self, limit: float) -> float:
        """Probability that the value is at or below `limit`."""
        from scipy.stats import t

        at = (math.log(limit) if limit > 0 else -math.inf) if self.log else limit
        if not self.spread:
            return float(self.middle <= at)
        return float(t.cdf((at - self.middle) / self.spread, self.degrees))


def forecast(metric: str, known: Known, round_: int) -> Forecast | str:
    """The metric at `round_`, later than all of `known`; or why it cannot be told."""
    rounds = sorted(known)
    if len(rounds) < LEAST_ROUNDS:
        return f"{len(rounds)} rounds with a value; a trend needs {LEAST_ROUNDS}"
    share = metric in SHARES
    if not share and min(known.values()) <= 0:
        return "not above 0 in every round: no log scale"
    values = [known[one] if share else math.log(known[one]) for one in rounds]
    length, ahead = rounds[-1] - rounds[0], round_ - rounds[-1]
    assert ahead > 0, f"round {round_} is not later than {rounds[-1]}"
    drift = (values[-1] - values[0]) / length
    degrees = len(rounds) - 2
    steps = zip(rounds, rounds[1:], values, values[1:], strict=False)
    variance = sum((after - before - (late - early) * drift) ** 2 / (late - early) for early, late, before, after in steps) / degrees
    return Forecast(values[-1] + ahead * drift, math.sqrt(variance * (ahead + ahead**2 / length)), degrees, not share, share)


def known_of(metrics: pl.DataFrame, metric: str) -> Known:
    """Defined values of a metric of generated text by round. `metrics`: records.METRICS of one arm and seed."""
    rows = metrics.filter(pl.col("metric") == metric, pl.col("test_set") == "").drop_nulls("value")
    return dict(rows.select("round", "value").iter_rows())


def forecasts(metrics: pl.DataFrame, ahead: int = AHEAD) -> pl.DataFrame:
    """TEXT_METRICS for the next `ahead` rounds (FORECASTS columns)."""
    last, rows = int(metrics.select(pl.col("round").max()).item() or 0), []
    for metric in TEXT_METRICS:
        known = known_of(metrics, metric)
        for round_ in range(last + 1, last + 1 + ahead):
            found = forecast(metric, known, round_)
            where = {"metric": metric, "round": round_, "n": len(known)}
            if isinstance(found, str):
                rows.append({**where, "reason": found})
            else:
                rows.append({**where, **dict(zip(("value", "low", "high"), found.interval(), strict=True))})
    return pl.DataFrame(rows, schema=FORECASTS)


def risks(metrics: pl.DataFrame, ahead: int = AHEAD) -> pl.DataFrame:
    """Probability that each definition of collapse on text metrics holds in the next `ahead` rounds (RISKS columns)."""
    last, rows = int(metrics.select(pl.col("round").max()).item() or 0), []
    for rule in _rules():
        known = known_of(metrics, rule.metric)
        for round_ in range(last + 1, last + 1 + ahead):
            found = risk(rule, known, round_)
            said = {"reason": found} if isinstance(found, str) else {"probability": found}
            rows.append({"definition": rule.name, "metric": rule.metric, "round": round_, "n": len(known), **said})
    return pl.DataFrame(rows, schema=RISKS)


def risk(rule: Definition, known: Known, round_: int) -> float | str:
    """Probability that the definition holds at a later round; or why it cannot be told. The first known round is the start."""
    if not known:
        return f"{rule.metric} is undefined"
    start = known[min(known)]
    if rule.change == "ratio" and start <= 0:
        return f"{rule.metric} is {start:g} at the first round: no ratio"
    held = next((one for one in sorted(known)[1:] if rule.holds(_change(rule, known[one], start))), None)
    if held is not None:
        return f"reached at round {held}"
    found = forecast(rule.metric, known, round_)
    if isinstance(found, str):
        return found
    below = found.below(start * rule.threshold if rule.change == "ratio" else start + rule.threshold)
    return below if rule.falls else 1 - below


def _change(rule: Definition, value: float, start: float) -> float:
    return value / start if rule.change == "ratio" else value - start


def _rules() -> Iterator[Definition]:
    """Definitions on one metric of the texts."""
    return (rule for rule in DEFINITIONS.values() if rule.metric in TEXT_METRICS and not rule.beyond)


# back-test --------------------------------------------------------------------------------------------------------------


def backtest(metrics: pl.DataFrame, ahead: int = AHEAD) -> pl.DataFrame:
    """From the rounds up to r, predict r + `ahead`, for every r with LEAST_ROUNDS behind it (BACKTEST columns; "all" first).

    `metrics` has the columns of records.METRICS and `study`. Forecasts of one series share rounds: n is not a count of independent cases.
    """
    keys = ["study", "arm", "seed", "metric"]
    of_text = metrics.filter(pl.col("test_set") == "", pl.col("metric").is_in(TEXT_METRICS)).drop_nulls("value").sort("round")
    cases: list[dict[str, object]] = []
    for number, (key, group) in enumerate(of_text.group_by(keys, maintain_order=True)):
        known = dict(group.select("round", "value").iter_rows())
        cases += [{"metric": str(key[3]), "series": number, **case} for case in _cases(str(key[3]), known, ahead)]
    schema = {"metric": pl.String, "series": pl.Int64, "held": pl.Boolean, "better": pl.Boolean, "risk": pl.Float64, "came": pl.Boolean}
    frame = pl.DataFrame(cases, schema=schema)
    order = [metric for metric in TEXT_METRICS if metric in set(frame["metric"])]
    parts = [("all", frame), *((metric, frame.filter(metric=metric)) for metric in order)]
    return pl.DataFrame([{"metric": name, **_scored(part)} for name, part in parts], schema=BACKTEST)


def _cases(metric: str, known: Known, ahead: int) -> Iterator[dict[str, object]]:
    rules = [rule for rule in _rules() if rule.metric == metric]
    for last in sorted(known):
        past = {one: value for one, value in known.items() if one <= last}
        truth = known.get(last + ahead)
        found = forecast(metric, past, last + ahead) if truth is not None else ""
        if truth is None or isinstance(found, str):
            continue
        value, low, high = found.interval()
        case: dict[str, object] = {"held": low <= truth <= high, "better": abs(truth - value) < abs(truth - past[last])}
        chance = risk(rules[0], past, last + ahead) if rules else ""
        if isinstance(chance, float):
            came = rules[0].holds(_change(rules[0], truth, known[min(known)]))
            case |= {"risk": chance, "came": came}
        yield case


def _scored(cases: pl.DataFrame) -> dict[str, object]:
    risky = cases.drop_nulls("risk")
    came = risky["came"].cast(pl.Float64)
    rate = came.mean()
    return {
        "series": cases["series"].n_unique(),
        "n": cases.height,
        "coverage": cases["held"].mean(),
        "nominal": LEVEL,
        "better": cases["better"].mean(),
        "n_risks": risky.height,
        "brier": ((risky["risk"] - came) ** 2).mean(),
        "brier_rate": ((rate - came) ** 2).mean() if isinstance(rate, float) else None,
    }
