"""A diagnosis: tables of one's own rounds, and what follows from them: lead times, verdicts, the next rounds. Reads no text and no file.

diagnosing.py computes the tables; the page, the report and the command line read a Diagnosis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import Field

from dces_core.errors import UserError
from dces_core.metrics.degradation import LEAD_TIMES, TITLE, lead_times
from dces_core.metrics.trend import FORECASTS, RISKS, forecasts, risks
from dces_core.metrics.verdict import DEFINITIONS, VERDICTS, verdicts
from dces_core.records import METRICS, table
from dces_core.section import Section

SCHEMA_VERSION = 1
MOST_SAMPLED = 20_000


class Options(Section):
    """What a diagnosis is asked for."""

    encoder: Annotated[str, Field(min_length=1, max_length=500)] = "minilm"
    sample: Annotated[int, Field(ge=10, le=MOST_SAMPLED)] = 1_000
    map: Literal["pca", "umap", "off"] = "pca"
    reference: Annotated[str, Field(max_length=4_000)] = ""
    model: Annotated[str, Field(max_length=500)] = ""
    round_column: Annotated[str, Field(min_length=1, max_length=200)] = "round"
    text_column: Annotated[str, Field(min_length=1, max_length=200)] = "text"


ROUNDS: dict[str, pl.DataType] = {
    "round": pl.Int32(),
    "texts": pl.Int64(),
    "empty": pl.Int64(),  # without units
    "copies": pl.Int64(),  # equal to another text of the round, but for the first
    "units": pl.Int64(),
    "mean_units": pl.Float64(),
}
CLUSTERS: dict[str, pl.DataType] = {
    "round": pl.Int32(),
    "cluster": pl.Int32(),  # k-means of the first round
    "texts": pl.Int64(),
    "share": pl.Float64(),
    "central": pl.String(),  # the text nearest to the centroid; null without any
}
POINTS: dict[str, pl.DataType] = {"round": pl.Int32(), "x": pl.Float64(), "y": pl.Float64(), "cluster": pl.Int32()}
WORST: dict[str, pl.DataType] = {
    "round": pl.Int32(),
    "text": pl.String(),
    "units": pl.Int64(),
    "loop_units": pl.Int64(),
    "rep_4": pl.Float64(),
    "score": pl.Float64(),  # share of the text that only repeats
}
REPEATED: dict[str, pl.DataType] = {"round": pl.Int32(), "text": pl.String(), "copies": pl.Int64()}
TABLES: dict[str, dict[str, pl.DataType]] = {
    "rounds": ROUNDS, "metrics": METRICS, "lead_times": LEAD_TIMES, "verdicts": VERDICTS, "forecasts": FORECASTS, "risks": RISKS,
    "clusters": CLUSTERS, "points": POINTS, "worst": WORST, "repeated": REPEATED,
}  # fmt: skip

NEEDS_MODELS = "needs the model of each round"
NEEDS_REFERENCE = "no real reference was given"
#: Why a metric of a run is not there unless something was given for it.
ABSENT: dict[str, str] = {
    **dict.fromkeys(TITLE, "needs the model of each round and held-out real text"),
    **dict.fromkeys(("entropy_generated", "self_ppl", "length", "ended_rate"), NEEDS_MODELS),
    **dict.fromkeys(("trained_ref_ppl", "trained_loop_rate"), "needs what each round was trained on"),
    **dict.fromkeys(("bertscore_p", "bertscore_r", "bertscore_f1"), "needs a real reference for every text"),
    **dict.fromkeys(("tail_coverage", "survival_head", "survival_middle", "survival_tail", "nearest_reference"), NEEDS_REFERENCE),
    "ref_ppl": "no model to score with was given",
}


@dataclass(frozen=True)
class Diagnosis:
    """`facts`: source, counts and how it was computed; `tables` by the names of TABLES."""

    facts: dict[str, Any]
    tables: dict[str, pl.DataFrame]

    @property
    def rounds(self) -> list[int]:
        """Their numbers, ascending; the first is what the others are compared with."""
        return self.tables["rounds"]["round"].to_list()

    def as_json(self) -> dict[str, Any]:
        """Strict JSON: facts and rows."""
        frames = {name: self.tables[name].fill_nan(None).to_dicts() for name in TABLES}
        return {"schema": SCHEMA_VERSION, "facts": self.facts, **frames}


def from_json(value: Any) -> Diagnosis:
    """What `as_json` gave. Raises UserError where it is anything else."""
    try:
        if value["schema"] != SCHEMA_VERSION or not isinstance(value["facts"], dict):
            raise ValueError
        frames = {name: pl.DataFrame(value[name], schema=schema) for name, schema in TABLES.items()}
        if frames["rounds"].is_empty():
            raise ValueError
        return Diagnosis(value["facts"], frames)
    except (KeyError, TypeError, ValueError, pl.exceptions.PolarsError):
        raise UserError(f"the diagnosis cannot be read: it is damaged, or not of schema {SCHEMA_VERSION}; make it again.") from None


def assemble(facts: dict[str, Any], tables: dict[str, pl.DataFrame]) -> Diagnosis:
    """Add what follows from the metrics. Verdicts and lead times compare with the first round that is given, whatever its number."""
    metrics = tables["metrics"]
    first = int(metrics.select(pl.col("round").min()).item() or 0)
    from_zero = metrics.with_columns(pl.col("round") - first)
    back = pl.col("round") + first
    found = {
        "lead_times": _said(lead_times(from_zero).with_columns(back), metrics, LEAD_TIMES),
        "verdicts": _said(verdicts(from_zero).with_columns(back), metrics, VERDICTS),
        "forecasts": forecasts(metrics),
        "risks": risks(metrics),
    }
    every = {**tables, **found, "metrics": table("metrics", metrics)}
    said = {"first": first, "rounds": tables["rounds"].height}
    return Diagnosis({**facts, **said}, {name: every[name] for name in TABLES})


SUMMARY: dict[str, pl.DataType] = {
    "metric": pl.String(),
    "first": pl.Float64(),
    "last": pl.Float64(),
    "n": pl.Int64(),  # items behind the last value
    "worse_at": pl.Int32(),  # first round 10% worse; null: none, or no better direction
    "next": pl.Int32(),  # the round that is predicted
    "low": pl.Float64(),
    "high": pl.Float64(),
    "reason": pl.String(),  # why there is no value
}


def summary(found: Diagnosis) -> pl.DataFrame:
    """A line for every metric (SUMMARY columns), those without a value last."""
    metrics, forecast = found.tables["metrics"], found.tables["forecasts"].filter(pl.col("round") == pl.col("round").max())
    first, last = (metrics.filter(pl.col("round") == found.rounds[place]) for place in (0, -1))
    frame = (
        last.select("metric", "n", "reason", last="value")
        .join(first.select("metric", first="value"), on="metric", how="left")
        .join(found.tables["lead_times"].select("metric", worse_at="round"), on="metric", how="left")
        .join(forecast.select("metric", "low", "high", next="round"), on="metric", how="left")
    )
    order = {metric: place for place, metric in enumerate(TITLE)}
    ranks = frame["metric"].replace_strict(order, default=len(order), return_dtype=pl.Int64)
    return frame.with_columns(rank=ranks).sort(pl.col("last").is_null(), "rank").select([pl.col(k).cast(v) for k, v in SUMMARY.items()])


def _said(frame: pl.DataFrame, metrics: pl.DataFrame, schema: dict[str, pl.DataType]) -> pl.DataFrame:
    """Reasons in the terms of a diagnosis: a metric that no round has is explained, rounds are counted from the first."""
    never = metrics.group_by("metric").agg(pl.col("value").count(), pl.col("reason").first()).filter(pl.col("value") == 0)
    why = dict(never.select("metric", "reason").iter_rows())
    name = {rule.name: rule.metric for rule in DEFINITIONS.values()}
    measured = frame["metric"] if "metric" in frame.columns else frame["definition"].replace_strict(name)
    first = frame["reason"].str.replace("round 0", "the first round").str.replace(r"up to round \d+", "up to the last round")
    reasons = [f"{metric}: {why[metric]}" if metric in why else said for metric, said in zip(measured, first, strict=True)]
    return frame.with_columns(pl.Series("reason", reasons, pl.String)).select([pl.col(name).cast(kind) for name, kind in schema.items()])
