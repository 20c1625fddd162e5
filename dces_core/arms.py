"""One table: what each arm selects, edits, filters and trains on. To add an arm, add a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dces_core.config import ArmName


@dataclass(frozen=True)
class Arm:
    """A rule for turning a round's pool into N training samples. The defaults are plain self-training."""

    name: ArmName
    title: str
    source: str  # where the rule comes from: [page] or [ours]
    gate: bool = False  # reject empty, looping and letterless samples before clustering
    select: Literal["random", "center-edge", "none"] = "random"
    edit: Literal["none", "text", "targets"] = "none"  # what token-level editing of center samples changes
    filter: bool = False  # quality filter of edge samples
    dynamic: bool = True  # False: every controlled quantity stays at its constant
    trains: bool = True
    draw: str = "pick"  # label of the random stream of the pick
    shares_pool: bool = True  # decodes as the others do, so that round 1's pool is the shared one


def _table(*arms: Arm) -> dict[str, Arm]:
    return {arm.name: arm for arm in arms}


ARMS: dict[str, Arm] = _table(
    Arm("plain", "Plain self-training: the pool cut to N at random.", "[page]"),
    Arm("random", "The same distribution as plain by another draw: the noise floor.", "[page]", draw="pick-again"),
    Arm("dces", "Center samples edited in the text, edge samples filtered, their ratio controlled.", "[page]",
        gate=True, select="center-edge", edit="text", filter=True),
    Arm("dces-targets", "As dces, but editing changes only the training labels.", "[ours]",
        gate=True, select="center-edge", edit="targets", filter=True),
    Arm("dces-no-edit", "As dces, without token-level editing.", "[page]",
        gate=True, select="center-edge", filter=True),
    Arm("dces-static", "As dces, with every controlled quantity at its constant.", "[page]",
        gate=True, select="center-edge", edit="text", filter=True, dynamic=False),
    Arm("frozen", "M_0 untouched: a reference row, never ranked.", "[ours]", select="none", trains=False),
)  # fmt: skip
