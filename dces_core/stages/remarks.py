"""What is odd about one round's selection, in sentences: the run's log and the Feedback page say the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def sameness(texts: Sequence[str], tokens: Sequence[int | None]) -> list[str]:
    """What a pool of several generations says where nothing in it differs; nothing about any other pool. None: not counted."""
    if len(texts) < 2:
        return []
    if not any(texts):
        return [f"all {len(texts)} generations are empty"]
    found = [f"all {len(texts)} generations are the same text"] if len(set(texts)) == 1 else []
    known = [count for count in tokens if count is not None]
    return found + ([f"none of the {len(texts)} generations is longer than one token"] if known and max(known) <= 1 else [])


def remarks(state: Mapping[str, Any]) -> list[str]:
    """All there is to say about a round. `state`: the controller's, with the flow, as a selection stores it."""
    flow = state.get("flow") or {}
    gated, rejected = (sum((flow.get(name) or {}).values()) for name in ("gated", "rejected"))
    found = list(state.get("notes") or [])
    if gated and gated == flow["pool"]:
        found.append(f"the gate rejected all {gated} samples: no clusters, no center and no edge")
    if rejected and rejected == flow["edge"]:
        found.append(f"all {rejected} edge samples were rejected: no edge to pick")
    if state.get("edge_share") is not None and state.get("error") is None and state.get("reason"):
        found.append(f"edge share fixed at {state['edge_share']:.4g}: {state['reason']}")
    if state.get("edit_temperature") is not None and state.get("edit_value") is None:
        found.append(f"editing temperature fixed at {state['edit_temperature']:.4g}: {state.get('edit_reason')}")
    return found
