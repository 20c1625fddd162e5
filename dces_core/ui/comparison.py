"""What the Compare page says: figures by arm, each over seeds, with the reason where there is none.

Pure functions on what sources.py read. Statistics are those of compare.py and evidence.py: nothing is estimated anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import polars as pl

from dces_core.compare import COMPARISON, LOG_METRICS, compare
from dces_core.config import load_recipe, recipe_names
from dces_core.evidence import Evidence, Seeds, estimate
from dces_core.goals import ABLATIONS
from dces_core.metrics.degradation import DIRECTION, lead_times
from dces_core.ui.sources import Comparison, Measured

#: The state of the model that selection can follow: of the text which it selects from.
ENTROPY = "entropy_generated"
QUANTITIES = {"edge_share": "edge share", "edit_temperature": "editing temperature", "sampling_temperature": "sampling temperature"}
#: A rank correlation over fewer rounds says nothing.
LEAST_ROUNDS = 4
KEPT = ("vendi", "survival_head", "survival_middle", "survival_tail")
TRAINED = ("trained_loop_rate", "trained_ref_ppl")
SUSTAINED = ("ppl", "ece", "entropy_real", "distinct_2", "vendi", "tail_coverage")
#: What claims rest on (docs/method.md), and what the controller steers.
CLAIMED = ("ppl", "gain_kept", "accuracy", "ece", "entropy_real", "vendi", "tail_coverage", "loop_rate")
#: Models of the published description; the recipes' own are added.
PUBLISHED = ("facebook/opt-125m", "openai-community/gpt2", "Qwen/Qwen3-0.6B", "facebook/opt-6.7b")
FAKE = "fake engine"

MEASURED: dict[str, Any] = {
    "comparison": pl.String,
    "property": pl.String,
    "arm": pl.String,
    "measure": pl.String,
    "test_set": pl.String,
    "round": pl.Int32,
    "value": pl.Float64,  # over seeds: mean (geometric for compare.LOG_METRICS), or median of first rounds
    "low": pl.Float64,  # 95% t interval; null under compare.LEAST_SEEDS
    "high": pl.Float64,
    "n_seeds": pl.Int64,  # seeds where it is defined
    "degraded": pl.Int64,  # of those, the seeds that are 10% worse at some round; null elsewhere
    "reason": pl.String,  # why there is no value
    "points": pl.List(pl.Float64),  # by seed
}
MATRIX: dict[str, Any] = {
    "model": pl.String,
    "comparison": pl.String,  # null: no source has the model
    "arm": pl.String,
    "metric": pl.String,
    "test_set": pl.String,
    "round": pl.Int32,
    "value": pl.Float64,  # over round 0's for compare.LOG_METRICS, else minus it
    "low": pl.Float64,
    "high": pl.Float64,
    "n_seeds": pl.Int64,
    "state": pl.String,  # measured | not run | undefined
    "reason": pl.String,
}
Mark = Literal["better", "worse", "leans better", "leans worse", "level", ""]


@dataclass(frozen=True)
class Choice:
    """What of a comparison is shown."""

    base: str  # the arm that the others are compared with
    test_set: str
    round: int
    metrics: tuple[str, ...] = CLAIMED


def measured(rows: Iterable[dict[str, Any]]) -> pl.DataFrame:
    """MEASURED."""
    return pl.DataFrame(list(rows), schema=MEASURED)


def _row(where: dict[str, Any], values: Seeds, reason: str, log: bool = False) -> dict[str, Any]:
    found = estimate(values, log)
    row = {**where, "points": list(values.values()), "n_seeds": len(values)}
    if found is None:
        return {**row, "reason": reason}
    return {**row, "value": found.mean, **({"low": found.low, "high": found.high} if found.interval else {})}


def lacking(study: Evidence, arm: str, metric: str, test_set: str, round_: int, since: int | None = None) -> str:
    """Why no seed of an arm has a value of a metric at a round (or its ratio to that of round `since`)."""
    if arm not in study.done:
        return "no finished unit yet"
    own = study.metrics.filter(arm=arm, metric=metric, test_set=test_set)
    if own.is_empty():
        return "not kept when this was recorded; computed again it is there"
    at = own.filter(pl.col("round").is_in([round_] if since is None else [round_, since])).sort("round")
    if round_ not in at["round"]:
        return f"not measured in round {round_}"
    reasons = at.filter(pl.col("value").is_null())["reason"].drop_nulls().unique(maintain_order=True).to_list()
    if not reasons and since is not None and round_ != since:
        return f"0 in round {since}: no ratio"
    return "; ".join(reasons) or "not finite"


# the four properties ----------------------------------------------------------------------------------------------------


def awareness(comparison: Comparison) -> pl.DataFrame:
    """How far each controlled quantity moved over the rounds, and its rank correlation with the entropy of the model it reacts to."""
    rows = []
    steered = comparison.loop.filter(pl.col("value").is_not_null())["quantity"].unique().to_list()
    for arm in comparison.arms():
        own = comparison.loop.filter(arm=arm)
        for quantity in (name for name in QUANTITIES if name in steered):
            seeds = _responses(comparison, own.filter(quantity=quantity))
            why = _uncontrolled(own.filter(quantity=quantity), arm in comparison.evidence.done)
            where = {"comparison": comparison.title, "property": "model awareness", "arm": arm}
            moved = {seed: float(found["moved"]) for seed, found in seeds.items()}
            rows.append(_row({**where, "measure": f"{quantity} moved"}, moved, why))
            follows = {seed: float(found["follows"]) for seed, found in seeds.items() if found["follows"] is not None}
            rows.append(_row({**where, "measure": f"{quantity} follows entropy"}, follows, _unfollowed(seeds) or why))
    return measured(rows)


def response(comparison: Comparison, quantity: str) -> pl.DataFrame:
    """LOOP rows of a quantity that have a value, with `entropy`: that of the model which wrote the round's pool."""
    rows = comparison.loop.filter(pl.col("value").is_not_null(), quantity=quantity)
    before = comparison.evidence.metrics.filter(pl.col("value").is_not_null(), metric=ENTROPY)
    before = before.select("arm", "seed", pl.col("round") + 1, pl.col("value").alias("entropy"))
    return rows.join(before, on=["arm", "seed", "round"], how="left", maintain_order="left").sort("arm", "seed", "round")


def _responses(comparison: Comparison, own: pl.DataFrame) -> dict[int, dict[str, Any]]:
    """Of one arm and quantity, by seed: rounds, how far it moved, how far the entropy did, and their rank correlation."""
    if own.is_empty():
        return {}
    rows = response(comparison, own["quantity"][0]).filter(arm=own["arm"][0])
    found = {}
    for (seed,), group in rows.group_by("seed", maintain_order=True):
        both = group.drop_nulls("entropy")
        moved, entropy = _range(group["value"]), _range(both["entropy"])
        enough = both.height >= LEAST_ROUNDS and moved > 0 and entropy > 0
        follows = both.select(pl.corr("value", "entropy", method="spearman")).item() if enough else None
        found[int(str(seed))] = {"rounds": both.height, "moved": moved, "entropy": entropy, "follows": follows}
    return found


def _range(values: pl.Series) -> float:
    numbers = values.to_list()
    return max(numbers) - min(numbers) if numbers else 0.0


def _uncontrolled(own: pl.DataFrame, done: bool) -> str:
    if not done:
        return "no finished unit yet"
    return "; ".join(own["reason"].drop_nulls().unique(maintain_order=True).to_list()) or "nothing is controlled"


def _unfollowed(seeds: Mapping[int, dict[str, Any]]) -> str:
    """Why a quantity that has values has no correlation; empty where it has none."""
    if not seeds:
        return ""
    if all(found["moved"] == 0 for found in seeds.values()):
        return "held constant"
    if max(found["rounds"] for found in seeds.values()) < LEAST_ROUNDS:
        return f"fewer than {LEAST_ROUNDS} rounds"
    return "the entropy does not move"


def diversity(comparison: Comparison, round_: int) -> pl.DataFrame:
    """KEPT at a round over round 0's."""
    study = comparison.evidence
    where = {"comparison": comparison.title, "property": "diversity mitigation", "test_set": "", "round": round_}
    return measured(
        _row({**where, "arm": arm, "measure": metric}, study.change(arm, metric, "", round_), lacking(study, arm, metric, "", round_, 0))
        for arm in comparison.arms()
        for metric in KEPT
    )


def quality(comparison: Comparison, round_: int) -> pl.DataFrame:
    """TRAINED at a round."""
    study = comparison.evidence
    where = {"comparison": comparison.title, "property": "quality control", "test_set": "", "round": round_}
    return measured(
        _row(
            {**where, "arm": arm, "measure": metric},
            study.values(arm, metric, "", round_),
            lacking(study, arm, metric, "", round_),
            metric in LOG_METRICS,
        )
        for arm in comparison.arms()
        for metric in TRAINED
    )


def sustainability(comparison: Comparison, test_set: str) -> pl.DataFrame:
    """First round at which each of SUSTAINED is 10% worse than at round 0: the median over the seeds that get there."""
    study = comparison.evidence
    wanted = pl.col("metric").is_in(SUSTAINED) & pl.col("test_set").is_in(["", test_set])
    found = lead_times(study.metrics.filter(wanted))
    rows = []
    for arm in comparison.arms():
        for metric in SUSTAINED:
            own = found.filter(pl.col("start").is_not_null(), arm=arm, metric=metric)
            on = study.metrics.filter(metric=metric)["test_set"].unique().to_list()
            where = {"arm": arm, "measure": metric, "test_set": "" if "" in on else test_set, "round": study.last}
            why = "" if own.height else lacking(study, arm, metric, str(where["test_set"]), 0)
            reason = why or own.filter(pl.col("round").is_null())["reason"].first()
            value = own["round"].cast(pl.Float64).median()
            counts = {"n_seeds": own.height, "degraded": own["round"].count() if own.height else None}
            points = own["round"].drop_nulls().cast(pl.Float64).to_list()
            body = {"value": value, "reason": None if value is not None else reason, "points": points}
            rows.append({"comparison": comparison.title, "property": "sustainability", **where, **counts, **body})
    return measured(rows)


def trend(study: Evidence, arm: str, metric: str) -> pl.DataFrame:
    """Mean over seeds by round, `low` and `high` where there is an interval."""
    found = [(round_, estimate(study.values(arm, metric, "", round_), metric in LOG_METRICS)) for round_ in range(study.last + 1)]
    rows = [(r, one.mean, *((one.low, one.high) if one.interval else (None, None))) for r, one in found if one]
    return pl.DataFrame(rows, schema={"round": pl.Int32, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64}, orient="row")


# arms against an arm ----------------------------------------------------------------------------------------------------


def differences(comparison: Comparison, choice: Choice) -> pl.DataFrame:
    """compare.COMPARISON at the round, and `comparison`. Raises UserError where `base` has no finished unit."""
    wanted = pl.col("metric").is_in(choice.metrics) & pl.col("test_set").is_in(["", choice.test_set]) & (pl.col("round") == choice.round)
    rows = comparison.evidence.metrics.filter(wanted)
    if choice.base in comparison.evidence.done and choice.base not in rows["arm"]:
        frame = pl.DataFrame(schema=COMPARISON)  # an older recording, which has none of these metrics
    else:
        frame = compare(rows, choice.base, list(comparison.evidence.planned))
    return frame.select(pl.lit(comparison.title).alias("comparison"), pl.all())


def mark(metric: str, diff: float | None, low: float | None, high: float | None) -> Mark:
    """Whether a difference is for the better: by its interval, or, where there are too few seeds for one, by where its mean leans."""
    direction = DIRECTION.get(metric, "neutral")
    if diff is None or direction == "neutral":
        return ""
    good = (diff < 0) == (direction == "lower")
    if low is None or high is None:
        return "level" if diff == 0 else "leans better" if good else "leans worse"
    if low <= 0 <= high:
        return "level"
    return "better" if good else "worse"


def ablations(comparison: Comparison) -> list[str]:
    """Arms that take one thing away from dces, or put another in its place."""
    others = [arm for arm in comparison.evidence.planned if arm.startswith("dces-")]
    return list(dict.fromkeys([*ABLATIONS, *others]))


# across comparisons -----------------------------------------------------------------------------------------------------


def model_of(comparison: Comparison) -> str:
    """The model; the fake engine has none."""
    return FAKE if comparison.config.engine == "fake" else comparison.config.model


@cache
def models_wanted() -> tuple[str, ...]:
    """Models that the published description or a shipped recipe names."""
    recipes = [load_recipe(name) for name in recipe_names()]
    return tuple(dict.fromkeys([*(one.model for one in recipes if one.engine != "fake"), *PUBLISHED]))


def matrix(comparisons: Sequence[Comparison], metric: str, test_set: str) -> pl.DataFrame:
    """MATRIX: change of a metric since round 0 at the last round, for every comparison and arm; also of models that nothing has run."""
    arms = list(dict.fromkeys(arm for one in comparisons for arm in one.arms("plain")))
    rows = [_cell(one, arm, metric, test_set) for one in comparisons for arm in arms]
    missing = [model for model in models_wanted() if model not in map(model_of, comparisons)]
    rows += [{"model": model, "arm": arm, "metric": metric, "state": "not run"} for model in missing for arm in arms]
    return pl.DataFrame(rows, schema=MATRIX)


def _cell(comparison: Comparison, arm: str, metric: str, test_set: str) -> dict[str, Any]:
    study = comparison.evidence
    where = {"model": model_of(comparison), "comparison": comparison.title, "arm": arm, "metric": metric, "round": study.last}
    if arm not in study.done:
        return {**where, "state": "not run"}
    on = "" if study.values(arm, metric, "", 0) or study.values(arm, metric, "") else test_set
    ratio = metric in LOG_METRICS
    row = _row({**where, "test_set": on}, study.change(arm, metric, on, ratio=ratio), lacking(study, arm, metric, on, study.last, 0), ratio)
    del row["points"]
    return {**row, "state": "measured" if "value" in row else "undefined"}


def settings_of(source: Measured) -> dict[str, str]:
    """Settings of a source by dotted name, arms and seeds as they are planned."""
    seeds = sorted({seed for own in source.planned.values() for seed in own})
    return {"arms": ", ".join(source.planned), "seeds": ", ".join(map(str, seeds)), **dict(_flat(source.settings))}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "empty" if value in ("", [], {}) else str(value)


def differing(sources: Mapping[str, Measured]) -> pl.DataFrame:
    """`setting`, and a column per source: only settings in which they differ. A setting that a source does not have is null."""
    known = {key: settings_of(source) for key, source in sources.items()}
    names = dict.fromkeys(name for settings in known.values() for name in settings)
    rows = [{"setting": name, **{key: settings.get(name) for key, settings in known.items()}} for name in names]
    rows = [row for row in rows if len({row[key] for key in known}) > 1]
    return pl.DataFrame(rows, schema={"setting": pl.String, **dict.fromkeys(known, pl.String)})


def budgets_table(comparison: Comparison, base: str) -> pl.DataFrame:
    """What each arm was given: `steps` and `tokens` of a whole run, means over seeds; `over_base`: of tokens, paired by seed."""
    rows = []
    tokens = {(one.arm, one.seed): sum(one.trained_tokens) for one in comparison.budgets if sum(one.trained_tokens)}
    for arm in comparison.arms(base):
        own = [one for one in comparison.budgets if one.arm == arm]
        if own:
            decoding = ", ".join(f"{key} {value}" for key, value in own[0].decoding.items() if key != "beams")
            given = {"n_seeds": len(own), "pool": own[0].pool, "n": own[0].n, "regime": own[0].regime, "decoding": decoding}
            both = [one.seed for one in own if (arm, one.seed) in tokens and (base, one.seed) in tokens and arm != base]
            over = sum(tokens[arm, seed] for seed in both) / sum(tokens[base, seed] for seed in both) if both else None
            trained = {"steps": _mean([sum(one.optimiser_steps) for one in own]), "tokens": _mean([sum(one.trained_tokens) for one in own])}
            rows.append({"comparison": comparison.title, "arm": arm, **given, **trained, "over_base": over})
    text, whole, number = pl.String, pl.Int64, pl.Float64
    schema = {"comparison": text, "arm": text, "n_seeds": whole, "pool": whole, "n": whole, "regime": text, "decoding": text}
    return pl.DataFrame(rows, schema={**schema, "steps": number, "tokens": number, "over_base": number})


def _mean(values: Sequence[int]) -> float | None:
    """Null where nothing was trained, or where it was not stored."""
    return sum(values) / len(values) if any(values) else None
