"""What finished units of a study say: values by seed, changes and differences, and estimates over seeds.

Pure functions on frames; goals.py judges with them, results.py prints them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import polars as pl

from dces_core.compare import LEAST_SEEDS, LOG_METRICS, t_interval

Seeds = dict[int, float]  # value by seed


@dataclass(frozen=True)
class Evidence:
    """The finished units of one study."""

    name: str
    note: str
    planned: Mapping[str, tuple[int, ...]]  # seeds by arm, arms in the study's order
    metrics: pl.DataFrame  # records.METRICS of all finished units
    probes: pl.DataFrame  # records.PROBES of the same, and `seed`
    cpus: tuple[str, ...] = ()  # types of processor, in words
    remarks: tuple[str, ...] = ()  # what must be said of budgets and processors
    plausible: Mapping[int, float] = field(default_factory=dict)  # by seed: mean log-probability under M_0 that real references reach

    @cached_property
    def done(self) -> dict[str, list[int]]:
        """Seeds with a finished unit by arm; arms without any are absent."""
        pairs = self.metrics.select("arm", "seed").unique().sort("arm", "seed").rows()
        return {arm: [seed for other, seed in pairs if other == arm] for arm in dict.fromkeys(arm for arm, _ in pairs)}

    @cached_property
    def last(self) -> int:
        """The last round."""
        return int(self.metrics["round"].max() or 0)  # type: ignore[arg-type]

    @cached_property
    def test_sets(self) -> list[str]:
        """Names of the test sets."""
        return sorted(set(self.metrics["test_set"]) - {""})

    @cached_property
    def _values(self) -> dict[tuple[str, str, str, int], Seeds]:
        found: dict[tuple[str, str, str, int], Seeds] = {}
        rows = self.metrics.filter(pl.col("value").is_finite()).select("arm", "metric", "test_set", "round", "seed", "value").sort("seed")
        for arm, metric, test_set, round_, seed, value in rows.iter_rows():
            found.setdefault((arm, metric, test_set, round_), {})[seed] = value
        return found

    def values(self, arm: str, metric: str, test_set: str = "", round_: int | None = None) -> Seeds:
        """Defined values of an arm at a round (the last one unless said), by seed."""
        return self._values.get((arm, metric, test_set, self.last if round_ is None else round_), {})

    def start(self, metric: str, test_set: str = "") -> Seeds:
        """Values of round 0, which all arms of a seed share."""
        found: Seeds = {}
        for arm in self.done:
            found |= self.values(arm, metric, test_set, 0)
        return dict(sorted(found.items()))

    def change(self, arm: str, metric: str, test_set: str = "", round_: int | None = None, ratio: bool = True) -> Seeds:
        """A round's value (the last one's) over that of round 0, or minus it, by seed."""
        return _apart(self.values(arm, metric, test_set, round_), self.values(arm, metric, test_set, 0), ratio)

    def against(self, arm: str, other: str, metric: str, test_set: str = "") -> Seeds:
        """The arm's value over the other's (LOG_METRICS), or minus it, at the last round, over the seeds of both."""
        return _apart(self.values(arm, metric, test_set), self.values(other, metric, test_set), metric in LOG_METRICS)

    def lack(self, arms: Iterable[str], found: Seeds) -> str:
        """Why `found`, paired over `arms`, is not all that the study plans; empty where it is."""
        arms = list(arms)
        for arm in arms:
            if arm not in self.planned:
                return f"{arm} is not in study {self.name}"
            if arm not in self.done:
                return f"{arm} missing"
        common = [seed for seed in self.planned[arms[0]] if all(seed in self.planned[arm] for arm in arms)]
        done = [seed for seed in common if all(seed in self.done[arm] for arm in arms)]
        who = " and ".join(arms)
        if len(done) < len(common):
            return f"not measured yet: {len(done)} of {len(common)} seeds of {who}"
        undefined = [seed for seed in done if seed not in found]
        if undefined:
            return f"undefined in {len(undefined)} of {len(done)} seeds of {who}"
        return "" if common else f"no seed in common: {who}"


def _apart(values: Seeds, base: Seeds, ratio: bool) -> Seeds:
    common = [seed for seed in values if seed in base and (base[seed] or not ratio)]
    return {seed: values[seed] / base[seed] if ratio else values[seed] - base[seed] for seed in common}


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds. From LEAST_SEEDS on `low` and `high` are its 95% t interval; below, the least and the largest point."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def interval(self) -> bool:
        """Whether `low` and `high` are an interval."""
        return self.n >= LEAST_SEEDS


def estimate(values: Seeds, log: bool = False) -> Estimate | None:
    """Mean over seeds; `log`: taken on the log scale, so the mean is geometric. None without values."""
    points = sorted(map(math.log, values.values()) if log else values.values())
    mean, low, high = t_interval(points)
    if mean is None:
        return None
    ends = (mean, points[0] if low is None else low, points[-1] if high is None else high)
    mean, low, high = (math.exp(value) for value in ends) if log else ends
    return Estimate(mean, low, high, len(points))


# words ------------------------------------------------------------------------------------------------------------------


def number(value: float, signed: bool = False) -> str:
    """Three decimals below 10, one below 100, else none."""
    size = abs(value)
    text = f"{size:.3f}" if size < 10 else f"{size:.1f}" if size < 100 else f"{size:,.0f}"
    sign = "-" if value < 0 else "+" if signed else ""
    return text if float(text.replace(",", "")) == 0 else sign + text


def words(found: Estimate, sign: str = "", signed: bool = False) -> str:
    """`×1.23 [1.10, 1.40], n = 5`, or below LEAST_SEEDS `×1.23 (point only, n = 2: 1.10 to 1.40)`."""
    mean, low, high = (number(value, signed) for value in (found.mean, found.low, found.high))
    if found.interval:
        return f"{sign}{mean} [{low}, {high}], n = {found.n}"
    return f"{sign}{mean} (point only, n = {found.n}{f': {low} to {high}' if found.n > 1 else ''})"
