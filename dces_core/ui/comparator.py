"""Two arms' answers of one round as the JSON that LLM Comparator opens (PAIR-code/llm-comparator, its README and types.ts).

Its `score` says how much better A is according to a judge. Nothing here is judged, so every score is null, which its types
allow and its viewer leaves out of win rates and histograms. What was measured travels as custom fields.
"""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from dces_core.ui import heat

#: Name and LLM Comparator's type of each custom field; a `per_model_*` value is a pair, A's first.
FIELDS = {
    "prompt_id": "string",
    "reference": "text",
    "degenerate": "per_model_boolean",  # empty, or ends in a loop
    "degeneracy": "per_model_number",  # heat.RULE
    "rep_4": "per_model_number",
    "bertscore_f1": "per_model_number",
    "tokens": "per_model_number",
}


def side_by_side(left: pl.DataFrame, right: pl.DataFrame, arms: tuple[str, str], source: str) -> dict[str, Any]:
    """LLM Comparator's input for two GENERATIONS tables, in the order of `left`; only prompts that both have answered.

    `source`: where the answers come from, in words. Text is passed on as it is.
    """
    others = {row["prompt_id"]: row for row in right.fill_nan(None).to_dicts()}
    pairs = [(row, others.get(row["prompt_id"])) for row in left.fill_nan(None).to_dicts()]
    examples = [example(a, b) for a, b in pairs if b is not None and a["text"] is not None and b["text"] is not None]
    return {
        "metadata": {
            "source_path": f"{source}; no judge, so every score is null",
            "custom_fields_schema": [{"name": name, "type": kind} for name, kind in FIELDS.items()],
        },
        "models": [{"name": arm} for arm in arms],
        "examples": examples,
    }


def example(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """One prompt with both answers; `a` and `b` are GENERATIONS rows."""
    grades = [heat.degeneracy(row["text"]) for row in (a, b)]
    measured = {name: [a[name], b[name]] for name in ("rep_4", "bertscore_f1", "tokens")}
    fields = {"prompt_id": a["prompt_id"], "reference": a["reference"]}
    return {
        "input_text": a["prompt"],
        "tags": [a["topic"]] if a["topic"] else [],
        "output_text_a": a["text"],
        "output_text_b": b["text"],
        "score": None,
        "individual_rater_scores": [],
        "custom_fields": {**fields, "degenerate": [grade == 1 for grade in grades], "degeneracy": grades, **measured},
    }


def to_bytes(document: dict[str, Any]) -> bytes:
    """The document as a file."""
    return json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False).encode()
