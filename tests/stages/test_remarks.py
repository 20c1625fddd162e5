from __future__ import annotations

from typing import Any

import pytest

from dces_core.stages.remarks import remarks, sameness


@pytest.mark.parametrize(
    ("texts", "tokens", "said"),
    [
        (["", ""], [0, 0], ["all 2 generations are empty"]),
        (["a b", "a b"], [2, 2], ["all 2 generations are the same text"]),
        (["a", "a"], [1, 1], ["all 2 generations are the same text", "none of the 2 generations is longer than one token"]),
        (["a", "b"], [1, 1], ["none of the 2 generations is longer than one token"]),
        (["a", ""], [2, 0], []),
        (["a b"], [2], []),
    ],
)
def test_sameness(texts: list[str], tokens: list[int], said: list[str]) -> None:
    assert sameness(texts, tokens) == said


def state(**changes: Any) -> dict[str, Any]:
    flow = {"pool": 8, "gated": {}, "edge": 2, "rejected": {}}
    ordinary = {"notes": [], "flow": flow, "edge_share": 0.1, "error": 0.0, "reason": None, "edit_temperature": 1.0, "edit_value": 2.0}
    return {**ordinary, **changes, "flow": {**flow, **changes.get("flow", {})}}


def test_an_ordinary_round_says_nothing() -> None:
    assert remarks(state()) == [] and remarks({}) == []
    assert remarks(state(reason="dynamic is off")) == []


def test_what_is_odd_is_said() -> None:
    assert remarks(state(notes=["x"], flow={"gated": {"empty": 5, "ends in a loop": 3}}))[1].startswith("the gate rejected all 8 samples")
    assert remarks(state(flow={"rejected": {"implausible": 2}})) == ["all 2 edge samples were rejected: no edge to pick"]
    assert remarks(state(flow={"rejected": {"implausible": 1}})) == []
    undefined = state(error=None, reason="dispersion is undefined in this pool", edit_value=None, edit_reason="no signal")
    assert remarks(undefined) == [
        "edge share fixed at 0.1: dispersion is undefined in this pool",
        "editing temperature fixed at 1: no signal",
    ]
