"""LLM Comparator's input: the fields that its README calls required, the types that its types.ts allows, no invented score."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
from make_run import HOSTILE

from dces_core.records import table
from dces_core.ui import comparator

#: README of PAIR-code/llm-comparator, "Minimal Example": all of these are required.
TOP = {"metadata": dict, "models": list, "examples": list}
METADATA = {"source_path": str, "custom_fields_schema": list}
EXAMPLE = {
    "input_text": str,
    "tags": list,
    "output_text_a": str,
    "output_text_b": str,
    "score": (int, float, type(None)),  # types.ts: number | null
    "individual_rater_scores": list,
    "custom_fields": dict,
}
ONE = {"string": str, "text": str, "category": str, "number": (int, float)}
EACH = {"per_model_boolean": bool, "per_model_number": (int, float), "per_model_category": str, "per_model_text": str}


def fits(value: dict[str, Any], schema: dict[str, Any]) -> bool:
    return all(name in value and isinstance(value[name], kind) for name, kind in schema.items())


def generations(**texts: str | None) -> pl.DataFrame:
    rows = [
        {
            "prompt_id": key,
            "topic": "tea" if key != "b" else None,
            "prompt": f"Ask {key}",
            "reference": "r",
            "text": text,
            "tokens": 3,
            "rep_4": float("nan") if key == "b" else 0.25,
            "bertscore_f1": None,
        }
        for key, text in texts.items()
    ]
    return table("generations", rows)


def document() -> dict[str, Any]:
    left = generations(c="one two", a="1.1.1.1.1.1.1.1.", b=HOSTILE[8], lost="x", none=None)
    right = generations(a="Tea.", b="", c="three", none="y", more="z")
    made = comparator.to_bytes(comparator.side_by_side(left, right, ("plain", "dces"), "run-1, round 2"))
    value = json.loads(made, parse_constant=lambda word: (_ for _ in ()).throw(ValueError(word)))
    assert isinstance(value, dict)
    return value


def test_every_required_field_has_its_type() -> None:
    made = document()
    assert fits(made, TOP) and fits(made["metadata"], METADATA)
    assert made["models"] == [{"name": "plain"}, {"name": "dces"}]
    schema = {field["name"]: field["type"] for field in made["metadata"]["custom_fields_schema"]}
    assert set(schema.values()) <= {*ONE, *EACH}
    for example in made["examples"]:
        assert fits(example, EXAMPLE) and all(isinstance(tag, str) for tag in example["tags"])
        assert set(example["custom_fields"]) == set(schema)
        for name, kind in schema.items():
            value = example["custom_fields"][name]
            if kind in EACH:
                assert len(value) == 2 and all(part is None or isinstance(part, EACH[kind]) for part in value)
            else:
                assert value is None or isinstance(value, ONE[kind])


def test_only_prompts_that_both_answered_in_the_order_of_the_first() -> None:
    made = document()
    assert [example["custom_fields"]["prompt_id"] for example in made["examples"]] == ["c", "a", "b"]
    assert [(example["output_text_a"], example["output_text_b"]) for example in made["examples"]] == [
        ("one two", "three"),
        ("1.1.1.1.1.1.1.1.", "Tea."),
        (HOSTILE[8], ""),
    ]


def test_nothing_is_judged_and_what_is_measured_says_so() -> None:
    made = document()
    assert all(example["score"] is None and not example["individual_rater_scores"] for example in made["examples"])
    assert made["metadata"]["source_path"] == "run-1, round 2; no judge, so every score is null"
    _, looping, empty = (example["custom_fields"] for example in made["examples"])
    assert (looping["degenerate"], looping["degeneracy"]) == ([True, False], [1.0, 0.0])
    assert empty["degenerate"][1] is True
    assert (empty["rep_4"], empty["bertscore_f1"]) == ([None, None], [None, None]), "undefined is null, not a number"
    assert [example["tags"] for example in made["examples"]] == [["tea"], ["tea"], []]


def test_no_pair_at_all_is_a_valid_document() -> None:
    made = comparator.side_by_side(generations(), generations(a="x"), ("plain", "dces"), "run-1, round 2")
    assert fits(made, TOP) and made["examples"] == []
