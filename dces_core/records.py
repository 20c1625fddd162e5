"""Table schemas, and the forms of JSON that pages read. One row of SAMPLES tells a sample's whole life."""

from __future__ import annotations

from typing import Any

import polars as pl

from dces_core.errors import UserError, quoted
from dces_core.reading import Test, all_of, fields_of, is_count, is_number, is_size, is_text

SCHEMA_VERSION = 1
#: Older versions that are still read. What they lack gets its default: fields in config.py, columns in `table`.
READABLE: tuple[int, ...] = ()

EDIT = pl.Struct({"position": pl.Int32, "before": pl.String, "after": pl.String})

#: One generated sample of one round of one arm (stage `select`; `x`, `y` come from stage `map`).
SAMPLES: dict[str, pl.DataType] = {
    "id": pl.String(),  # r03-000017: stable within (arm, round)
    "arm": pl.String(),
    "round": pl.Int32(),
    "prompt_id": pl.String(),
    "topic": pl.String(),
    "prompt": pl.String(),
    "text": pl.String(),  # as generated, prompt stripped
    "tokens": pl.Int32(),
    "ended": pl.Boolean(),  # stopped by itself, not at the token limit
    "logprob": pl.Float64(),  # mean log-probability per token under the generating model, untruncated, T = 1; nats
    "entropy": pl.Float64(),  # mean next-token entropy, nats
    "frozen_logprob": pl.Float64(),  # mean log-probability under the frozen M_0; null where nothing needed it
    "cluster": pl.Int32(),  # -1: noise of hdbscan; null: gated before clustering
    "distance": pl.Float64(),  # cosine distance to the cluster's centroid
    "centrality": pl.Float64(),  # in [0, 1]; the upper share of each cluster is center
    "role": pl.String(),  # center | edge | null (gated)
    "fate": pl.String(),  # picked | over quota | rejected
    "reason": pl.String(),  # why rejected or over quota; null when picked
    "flagged": pl.Int32(),  # tokens considered for editing
    "changed": pl.Int32(),  # tokens that the edit really changed
    "edits": pl.List(EDIT),  # what changed, in token positions of the response
    "trained_text": pl.String(),  # text after editing; null unless picked
}

#: Coordinates in the run's one frame (stage `map`), row by row as SAMPLES.
COORDS: dict[str, pl.DataType] = {"id": pl.String(), "x": pl.Float32(), "y": pl.Float32()}

#: The ground of every map: real training references in the same frame.
FRAME: dict[str, pl.DataType] = {"id": pl.String(), "topic": pl.String(), "text": pl.String(), "x": pl.Float32(), "y": pl.Float32()}

#: `dces show RUN --metrics`: one metric a row. Undefined: value null, reason set.
METRICS: dict[str, pl.DataType] = {
    "arm": pl.String(),
    "seed": pl.Int64(),
    "round": pl.Int32(),
    "test_set": pl.String(),  # empty for metrics of generated text
    "metric": pl.String(),
    "value": pl.Float64(),
    "n": pl.Int64(),
    "low": pl.Float64(),  # 95% over evaluation items where a closed form exists, else null
    "high": pl.Float64(),
    "reason": pl.String(),
}

#: Reliability diagram: 15 equal-width bins of token confidence (Guo et al. 2017).
RELIABILITY: dict[str, pl.DataType] = {
    "test_set": pl.String(),
    "bin": pl.Int32(),
    "n": pl.Int64(),
    "confidence_sum": pl.Float64(),
    "correct_sum": pl.Float64(),
}

#: Answers to the watched prompts. `loop`: ends in a loop (metrics.md, loop_rate).
PROBES: dict[str, pl.DataType] = {
    "arm": pl.String(),
    "round": pl.Int32(),
    "prompt_id": pl.String(),
    "prompt": pl.String(),
    "mode": pl.String(),  # greedy | sampled
    "text": pl.String(),
    "loop": pl.Boolean(),
    "frozen_logprob": pl.Float64(),  # mean log-probability per token under the frozen M_0, nats; null for an empty answer
}

#: What the model would say first to each watched prompt: its likeliest next tokens at temperature 1.
NEXT_TOKENS: dict[str, pl.DataType] = {
    "arm": pl.String(),
    "round": pl.Int32(),
    "prompt_id": pl.String(),
    "rank": pl.Int32(),  # 1: the likeliest
    "token": pl.String(),  # as it is written
    "probability": pl.Float64(),
}

#: Histogram of the next-token entropy: bins of metrics.probability.ENTROPY_BIN nats, the last one open. Empty bins are left out.
ENTROPY: dict[str, pl.DataType] = {
    "test_set": pl.String(),  # empty for the model's own text
    "bin": pl.Int32(),
    "n": pl.Int64(),
}

#: Generations for the evaluation prompts: what the text statistics of a round were computed on.
GENERATIONS: dict[str, pl.DataType] = {
    "prompt_id": pl.String(),
    "topic": pl.String(),
    "prompt": pl.String(),
    "reference": pl.String(),
    "text": pl.String(),
    "tokens": pl.Int32(),
    "ended": pl.Boolean(),
    "logprob": pl.Float64(),
    "frozen_logprob": pl.Float64(),  # under the frozen M_0
    "loop": pl.Boolean(),
    "rep_4": pl.Float64(),
    "bertscore_f1": pl.Float64(),
}

#: Study: every figure of the feedback loop, one a row; `value` where it is a number, `text` (JSON) otherwise.
CONTROLLER: dict[str, pl.DataType] = {
    "arm": pl.String(),
    "seed": pl.Int64(),
    "round": pl.Int32(),
    "quantity": pl.String(),
    "value": pl.Float64(),
    "text": pl.String(),
}

#: Study: what the model of every round wrote for the evaluation prompts.
TEXTS: dict[str, pl.DataType] = {
    "arm": pl.String(),
    "seed": pl.Int64(),
    "round": pl.Int32(),
    "prompt_id": pl.String(),
    "text": pl.String(),
    "tokens": pl.Int32(),
    "ended": pl.Boolean(),
    "logprob": pl.Float64(),
    "frozen_logprob": pl.Float64(),
    "loop": pl.Boolean(),
    "bertscore_f1": pl.Float64(),
}

TABLES = {
    "samples": SAMPLES,
    "coords": COORDS,
    "frame": FRAME,
    "metrics": METRICS,
    "reliability": RELIABILITY,
    "probes": PROBES,
    "next_tokens": NEXT_TOKENS,
    "entropy": ENTROPY,
    "generations": GENERATIONS,
    "controller": CONTROLLER,
    "texts": TEXTS,
}


#: Forms of JSON in a run's directory; other fields may have any.
STATUS: dict[str, Test] = {
    **dict.fromkeys(("round", "pid"), is_count),
    **dict.fromkeys(("done", "total", "heartbeat", "stage_started", "eta_s", "rss_bytes", "pid_started"), is_size),
    **dict.fromkeys(("state", "arm", "stage", "device", "waiting_for", "error", "host"), is_text),
}
SPAN: dict[str, Test] = {"round": is_count, "arm": is_text, "stage": is_text, "seconds": is_size}
MANIFEST: dict[str, Test] = {
    "parent": lambda value: isinstance(value, dict),
    "cpu": lambda value: isinstance(value, dict) and (value.get("threads") is None or is_count(value["threads"])),
    **dict.fromkeys(("created", "config_hash", "device"), is_text),
}
PARENT: dict[str, Test] = {"run": is_text, "kind": is_text, "round": is_count, "changed": fields_of(lambda pair: isinstance(pair, list))}
LOOP_STATE: dict[str, Test] = {
    **dict.fromkeys(("value", "setpoint", "sd", "error", "edge_share", "edit_error", "quality_limit"), is_number),
    **dict.fromkeys(("edit_temperature", "sampling_temperature", "flagged", "changed", "edited_tokens"), is_number),
    **dict.fromkeys(("signal", "reason", "edit_reason", "sampling_reason", "clusterer"), is_text),
    "real_pairs": is_count,
    "notes": all_of(is_text),
    "clusters": all_of(lambda one: isinstance(one, dict) and is_cluster(one)),
    "flow": fields_of(lambda one: is_count(one) or fields_of(is_count)(one)),
}
LOSS: dict[str, Test] = {"examples": is_count, "trained_tokens": is_count, "loss": all_of(lambda one: one is None or is_number(one))}
FRAME_FACTS: dict[str, Test] = {
    **dict.fromkeys(("method", "fit_set"), is_text),
    "parameters": lambda value: isinstance(value, dict),
    **dict.fromkeys(("x", "y"), lambda value: all_of(is_number)(value) and len(value) == 2),
}
MAP_FACTS: dict[str, Test] = {
    **dict.fromkeys(("dispersion", "hull_area", "nearest_reference"), is_number),
    **dict.fromkeys(("dispersion_reason", "hull_area_reason", "nearest_reference_reason"), is_text),
}


def is_cluster(one: dict[str, object]) -> bool:
    """Whether an entry of the loop's clusters has the numbers that pages join by."""
    share, dispersion, number = one.get("edge_share"), one.get("dispersion"), one.get("cluster")
    known = isinstance(number, int) and not isinstance(number, bool) and -1 <= number < 2**31
    return known and all(value is None or is_number(value) for value in (share, dispersion))


def is_span(event: dict[str, object]) -> bool:
    """Whether an event has what its readers need of a finished stage."""
    return all(test(event.get(name)) for name, test in SPAN.items())


def table(name: str, rows: list[dict[str, object]] | pl.DataFrame) -> pl.DataFrame:
    """Rows as the named table: its columns, its order, its types; absent columns are null."""
    schema = TABLES[name]
    frame = rows if isinstance(rows, pl.DataFrame) else pl.DataFrame(rows, schema_overrides=schema, infer_schema_length=None)
    absent = [pl.lit(None, dtype=kind).alias(column) for column, kind in schema.items() if column not in frame.columns]
    return frame.with_columns(absent).select([pl.col(column).cast(kind) for column, kind in schema.items()])


def check_schema(what: str, version: Any) -> None:
    """Raise UserError unless this program reads what was written with this schema version; `what` names the thing."""
    if version == SCHEMA_VERSION or version in READABLE:
        return
    shown = quoted(version, 40)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UserError(f"{what} has schema {shown}, this program reads up to {SCHEMA_VERSION}: update the program.")
    known = ", ".join(map(str, (*READABLE, SCHEMA_VERSION)))
    raise UserError(f"{what} has schema {shown}, this program reads {known}: open it with the program that made it, or make it again.")
