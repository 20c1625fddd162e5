"""What rounds cost at one's own price: seconds that were measured, energy, money, rounds lost to collapse, DCES over plain. Pure functions.

Every figure goes back to a measurement (cost_sources.py) and to the person's inputs; where one of them is missing it is null with a reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from dces_core import estimate
from dces_core.arms import ARMS
from dces_core.config import RunConfig
from dces_core.errors import UserError, quoted
from dces_core.metrics.degradation import lead_times
from dces_core.store import SHARED

WHOLE = "all stages"  # where a measurement does not tell them apart
WHOLE_NOTE = "{} keeps seconds of whole units; the first unit of a seed also made what its arms share, so arms cannot be compared by them."
MOST = 1e9  # of a price per hour, and of watts
UNIT = re.compile(r"[^\W\d_]{1,5}|[$€£¥₹]")
FORMULAS = {
    "seconds of a stage": "mean measured seconds of this stage and arm × scale",
    "scale": "seconds that the estimate gives this recipe / seconds that it gives the measured settings; the estimate of a stage is "
    "fixed seconds + tokens × parameters / (tokens × parameters per second); 1 for equal settings",
    "a round": "sum over its stages",
    "a run": "sum over arms and stages of seconds × times, and what all arms share",
    "kWh": "watts × seconds / 3,600,000",
    "money": "price per hour × seconds / 3,600",
    "rounds lost": "finished rounds − first round whose perplexity is 10% worse than round 0's, at the measured seconds of a round",
    "extra of dces": "seconds of a round of dces − seconds of a round of plain",
}
COSTS: dict[str, pl.DataType] = {
    "part": pl.String(),  # an arm, or `shared`; of totals: what it sums
    "stage": pl.String(),
    "times": pl.Int64(),  # in the run
    "scale": pl.Float64(),
    "seconds": pl.Float64(),  # once
    "kwh": pl.Float64(),
    "money": pl.Float64(),
    "n": pl.Int64(),  # measured times
    "source": pl.String(),
    "reason": pl.String(),  # why a figure is null
}
LOST: dict[str, pl.DataType] = {
    "arm": pl.String(),
    "test_set": pl.String(),
    "first_degraded": pl.String(),  # by seed: a round, or `never`
    "lost_rounds": pl.Float64(),  # mean over the seeds
    "of_rounds": pl.Int64(),
    **{name: COSTS[name] for name in ("seconds", "kwh", "money", "n", "source", "reason")},
}
EXTRA: dict[str, pl.DataType] = {
    "dces_s": pl.Float64(),
    "plain_s": pl.Float64(),
    "ratio": pl.Float64(),
    **{name: COSTS[name] for name in ("seconds", "kwh", "money", "n", "source", "reason")},
}


@dataclass(frozen=True)
class Rate:
    """What the person knows of the device. None: not given."""

    price_per_hour: float | None = None
    watts: float | None = None
    currency: str = ""

    def of(self, seconds: float | None, reason: str | None = None) -> dict[str, Any]:
        """Seconds, energy and money; a figure that is missing says why. `reason`: why there are no seconds."""
        known = None if reason else seconds
        lacks = ["no watts were given"] * (self.watts is None) + ["no price per hour was given"] * (self.price_per_hour is None)
        kwh = None if known is None or self.watts is None else self.watts * known / 3.6e6
        money = None if known is None or self.price_per_hour is None else self.price_per_hour * known / 3600
        return {"seconds": known, "kwh": kwh, "money": money, "reason": reason or "; ".join(lacks) or None}


def rate_of(price_per_hour: float | None, watts: float | None, currency: str = "") -> Rate:
    """Checked inputs. Raises UserError for a number that is negative, too large or none, and for a currency that is no short word."""
    for name, value in (("price_per_hour", price_per_hour), ("watts", watts)):
        if value is not None and not 0 <= value <= MOST:
            raise UserError(f"{name} = {value!r} must be a number from 0 to {MOST:,.0f}.")
    if currency and not UNIT.fullmatch(currency):
        raise UserError(f"currency = {quoted(currency, 40)} must be one to five letters, such as EUR, or a sign, such as €.")
    return Rate(price_per_hour, watts, currency)


@dataclass(frozen=True)
class Timing:
    """Seconds of a stage, a mean over n."""

    seconds: float
    n: int


@dataclass(frozen=True)
class Measurement:
    """What was measured, where, with which settings."""

    name: str  # "run first"
    where: str  # "measured here on run first"
    config: RunConfig
    parameters: int | None
    timings: Mapping[tuple[str, str], Timing]  # by arm (or `shared`) and stage
    counts: str = "rounds"  # what n counts
    metrics: pl.DataFrame = field(default_factory=pl.DataFrame)  # records.METRICS; empty: nothing was evaluated
    whole: bool = False  # stages were not told apart

    def source(self, *timings: Timing) -> str:
        """Where a figure comes from, and how often it was measured."""
        least, most = min(t.n for t in timings), max(t.n for t in timings)
        n = str(least) if least == most else f"{least} to {most}"
        return f"{self.where}, n = {n} {self.counts if most > 1 else self.counts.removesuffix('s')}"

    def round_of(self, arm: str) -> list[Timing]:
        """The stages of a round of an arm after the first; empty where it was not measured."""
        own = {stage: timing for (name, stage), timing in self.timings.items() if name == arm}
        pool = self.timings.get((SHARED, "generate"))
        if own and not self.whole and "generate" not in own and pool:
            own["generate"] = pool  # of a run of one round
        return list(own.values())


@dataclass(frozen=True)
class Need:
    """A stage that a run consists of, so many times."""

    part: str
    stage: str
    times: int


def needs(config: RunConfig, whole: bool = False) -> list[Need]:
    """Every stage of a run of these settings, in the order of a round; what all arms share last. `whole`: rounds alone."""
    if whole:
        return [Need(arm, WHOLE, config.rounds) for arm in config.arms]
    found, mapped = [], ["map"] * config.map.on
    for name in config.arms:
        arm = ARMS[name]
        generated = config.rounds - 1 if arm.shares_pool else config.rounds
        found += [Need(name, "generate", generated)] * bool(generated)
        stages = ["select", *mapped, *["train"] * arm.trains, "evaluate"]
        found += [Need(name, stage, config.rounds) for stage in stages]
    shared = ["train"] * (config.train.round0 == "finetune")
    return found + [Need(SHARED, stage, 1) for stage in [*shared, "evaluate", "generate", "reference", *mapped]]


def scales(config: RunConfig, parameters: int | None, by: Measurement) -> dict[str, float] | str:
    """Stage -> what its measured seconds are multiplied by, or why that is unknown. Stages that are not in it are taken as measured."""
    counts = [parameters, by.parameters]
    if config.engine != by.config.engine:
        return f"{by.name} has the engine {by.config.engine}, the recipe {config.engine}"
    if config.engine == "fake" or config.model == by.config.model:
        counts = [parameters or estimate.REFERENCE_PARAMETERS] * 2
    if None in counts:
        unknown = config.model if parameters is None else by.config.model
        return f"the number of parameters of {unknown!r} is unknown, so its seconds cannot be told from those of another model"
    same_threads = {"threads": config.threads or by.config.threads}  # without a setting of its own: as where it was measured
    device = estimate.likely_device(by.config)
    wanted = estimate.stage_seconds(config.model_copy(update=same_threads), counts[0] or 1, device)
    known = estimate.stage_seconds(by.config, counts[1] or 1, device)
    return {**{stage: wanted[stage] / known[stage] for stage in known}, WHOLE: sum(wanted.values()) / sum(known.values())}


def stage_costs(config: RunConfig, parameters: int | None, by: Measurement | str, rate: Rate) -> pl.DataFrame:
    """COSTS of every stage, once. `by`: what was measured, or why there is nothing."""
    factors = by if isinstance(by, str) else scales(config, parameters, by)
    rows: list[dict[str, Any]] = []
    for need in needs(config, not isinstance(by, str) and by.whole):
        row: dict[str, Any] = {"part": need.part, "stage": need.stage, "times": need.times}
        if isinstance(by, str) or isinstance(factors, str):
            rows.append({**row, **rate.of(None, str(factors))})
            continue
        timing = by.timings.get((need.part, need.stage))
        if timing is None:
            who = "what all arms share" if need.part == SHARED else f"arm {need.part}"
            rows.append({**row, **rate.of(None, f"stage {need.stage} of {who} was not measured on {by.name}")})
            continue
        scale = factors.get(need.stage, 1.0)
        source = by.source(timing) + ("" if scale == 1 else f", scaled ×{scale:.3g}")
        rows.append({**row, "scale": scale, "n": timing.n, "source": source, **rate.of(timing.seconds * scale)})
    return pl.DataFrame(rows, schema=COSTS)


def totals(stages: pl.DataFrame, rate: Rate) -> pl.DataFrame:
    """COSTS summed: a round of each arm and of all, what is done once, the run. A sum of which a part is unknown is null."""
    arms = [part for part in stages["part"].unique(maintain_order=True) if part != SHARED]
    parts = [(f"a round of {arm}", stages.filter(part=arm), False) for arm in arms]
    parts.append(("a round of all arms", stages.filter(pl.col("part") != SHARED), False))
    shared = stages.filter(part=SHARED)
    parts += [("once, for all arms", shared, False)] * bool(shared.height)
    parts.append(("the run", stages, True))
    rows = []
    for name, own, all_times in parts:
        missing = own.filter(pl.col("seconds").is_null())
        reason = str(missing["reason"][0]) if missing.height else None
        seconds = math.fsum(s * (t if all_times else 1) for s, t in own.select("seconds", "times").iter_rows()) if not missing.height else 0
        source = None if missing.height else _sources(own)
        rows.append({"part": name, "source": source, **rate.of(seconds, reason)})
    return pl.DataFrame(rows, schema=COSTS)


def _sources(own: pl.DataFrame) -> str:
    """Where the parts of a sum come from."""
    first = str(own["source"][0]).split(", n = ")[0]
    counts = sorted(set(own["n"].to_list()))
    scaled = ", scaled" if (own["scale"] != 1).any() else ""
    return f"sum, {first}, n = {' to '.join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))} a stage{scaled}"


# collapse ---------------------------------------------------------------------------------------------------------------


def lost_costs(by: Measurement | str, rate: Rate) -> pl.DataFrame:
    """LOST of every arm and test set: rounds after the first whose perplexity is 10% worse than round 0's, and what they cost."""
    if isinstance(by, str) or by.metrics.is_empty():
        why = by if isinstance(by, str) else f"{by.name} evaluated no rounds"
        return pl.DataFrame([rate.of(None, why)], schema=LOST)
    ppl = by.metrics.filter(metric="ppl")
    leads = lead_times(ppl).partition_by("arm", "test_set", as_dict=True)
    rows = []
    for (arm, test_set), group in sorted(leads.items(), key=lambda item: (by.config.arms.index(item[0][0]), item[0][1])):
        own = ppl.filter(arm=arm, test_set=test_set)
        found = [_lost(own.filter(seed=lead["seed"]), lead) for lead in group.to_dicts()]
        rows.append({"arm": arm, "test_set": test_set, "of_rounds": own["round"].max(), **_priced(str(arm), found, by, rate)})
    return pl.DataFrame(rows, schema=LOST)


def _lost(ppl: pl.DataFrame, lead: Mapping[str, Any]) -> tuple[int | None, int] | str:
    """First degraded round (None: none was) and the rounds after it; or why it cannot be told. `ppl`: one arm, seed and test set."""
    later = ppl.filter(pl.col("round") > 0)
    if lead["round"] is not None:
        return int(lead["round"]), int(later["round"].max()) - int(lead["round"])  # type: ignore[arg-type]
    undefined = later["value"].is_null().all() or lead["start"] is None
    return f"ppl is undefined at round 0 or in every round after it: {lead['reason']}" if undefined else (None, 0)


def _priced(arm: str, found: Sequence[tuple[int | None, int] | str], by: Measurement, rate: Rate) -> dict[str, Any]:
    told = [one for one in found if not isinstance(one, str)]
    if not told:
        return {"n": 0, **rate.of(None, str(found[0]))}
    lost = sum(rounds for _, rounds in told) / len(told)
    firsts = ", ".join("never" if first is None else str(first) for first, _ in told)
    row = {"first_degraded": firsts, "lost_rounds": lost, "n": len(told)}
    a_round = by.round_of(arm)
    if not a_round:
        return {**row, **rate.of(None, f"no round of arm {arm} was timed on {by.name}")}
    seconds = lost * math.fsum(timing.seconds for timing in a_round)
    return {**row, "source": f"{by.where}, n = {len(told)} seed{'s' * (len(told) > 1)}", **rate.of(seconds)}


# dces over plain --------------------------------------------------------------------------------------------------------


def extra_costs(by: Measurement | str, bench: Mapping[str, Any] | str, rate: Rate) -> pl.DataFrame:
    """EXTRA of a round: as measured in one's own run, and as `dces bench dces-total` did. `bench`: its row, or why there is none."""
    rows = [_own_extra(by, rate), _bench_extra(bench, rate)]
    return pl.DataFrame(rows, schema=EXTRA)


def _own_extra(by: Measurement | str, rate: Rate) -> dict[str, Any]:
    if isinstance(by, str):
        return rate.of(None, by)
    if by.whole:
        return rate.of(None, WHOLE_NOTE.format(by.name).rstrip("."))
    sides = {arm: by.round_of(arm) for arm in ("dces", "plain")}
    missing = [arm for arm, timings in sides.items() if not timings]
    if missing:
        return rate.of(None, f"{by.name} has no measured round of {' and '.join(missing)}")
    ours, plain = (math.fsum(timing.seconds for timing in timings) for timings in sides.values())
    timings = [timing for side in sides.values() for timing in side]
    source = f"{by.source(*timings)}; both arms generate {by.config.pool.size} and train on {by.config.pool.n}"
    return {**_sides(ours, plain, rate), "n": min(timing.n for timing in timings), "source": source}


def _bench_extra(bench: Mapping[str, Any] | str, rate: Rate) -> dict[str, Any]:
    if isinstance(bench, str):
        return rate.of(None, bench)
    ours, plain = bench.get("ours"), bench.get("peer")
    if not all(isinstance(value, int | float) and value > 0 for value in (ours, plain)):
        return rate.of(None, f"dces-total has no figures: {bench.get('note')}")
    day, machine = (" ".join(str(bench.get(key)).split())[:200] for key in ("measured", "machine"))
    source = f"dces bench dces-total, {day}, n = {bench.get('n')} seeds, on {machine}: {bench.get('note')}"
    return {**_sides(float(ours), float(plain), rate), "n": bench.get("n"), "source": source}  # type: ignore[arg-type]


def _sides(ours: float, plain: float, rate: Rate) -> dict[str, Any]:
    ratio = {"ratio": ours / plain} if plain else {}
    return {"dces_s": ours, "plain_s": plain, **ratio, **rate.of(ours - plain)}


# all of it --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Costs:
    """What `dces cost` says."""

    facts: dict[str, Any]
    stages: pl.DataFrame
    totals: pl.DataFrame
    collapse: pl.DataFrame
    dces_over_plain: pl.DataFrame

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values; undefined is null."""
        tables = ("totals", "stages", "collapse", "dces_over_plain")
        return {**self.facts, **{name: getattr(self, name).to_dicts() for name in tables}, "formulas": FORMULAS}


def costs(config: RunConfig, by: Measurement | str, bench: Mapping[str, Any] | str, rate: Rate) -> Costs:
    """Costs of a run of these settings. `by`: a measurement, or why there is none."""
    parameters = None if config.engine == "fake" else estimate.count_parameters(config.model)
    stages = stage_costs(config, parameters, by, rate)
    measured = None if isinstance(by, str) else by
    facts = {
        "recipe": config.name,
        "model": config.model,
        "parameters": parameters,
        "arms": list(config.arms),
        "rounds": config.rounds,
        "inputs": {"price_per_hour": rate.price_per_hour, "watts": rate.watts, "currency": rate.currency or None},
        "measured": measured.where if measured else None,
        "measured_model": measured.config.model if measured else None,
        "measured_parameters": measured.parameters if measured else None,
        "notes": [WHOLE_NOTE.format(measured.name)] if measured and measured.whole else [],
    }
    return Costs(facts, stages, totals(stages, rate), lost_costs(by, rate), extra_costs(by, bench, rate))
