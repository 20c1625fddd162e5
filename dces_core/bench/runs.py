"""Whole rounds in temporary run directories: what dces costs more than plain, and where the time of a round goes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from dces_core.arms import ARMS
from dces_core.bench import sides
from dces_core.bench.plan import Plan
from dces_core.bench.rows import Row
from dces_core.config import ArmName
from dces_core.lab import Lab
from dces_core.rounds import advance, one_round, round_zero, write_first_pool
from dces_core.stage import Stage
from dces_core.stages.curate import write_reference
from dces_core.stages.project import Frame
from dces_core.store import SHARED

MADE = ("generate", "select", "train")  # what makes a round's model; evaluation and map look at it


def overhead(plan: Plan) -> list[Row]:
    """A dces round / a plain round, from pools of the same size."""
    return _compare("dces-overhead", plan, (), "pools of the same size")


def total(plan: Plan) -> list[Row]:
    """A dces round / a plain round that generates no more than it trains on."""
    return _compare("dces-total", plan, ("pool.factor=1.0",), "plain with pool = N")


def stages(plan: Plan) -> list[Row]:
    """Seconds of every stage of a round of dces as `dces run` does it; medians over the rounds after the first."""
    with sides.open_lab(sides.settings(plan, 'arms=["dces"]', f"rounds={plan.rounds}")) as lab:
        advance(lab.run, lab.events)
        spans = _spans(lab, "dces")
    names = list(dict.fromkeys(name for _, name in spans))
    seconds = {name: median(spans[round_, name] for round_ in range(2, plan.rounds + 1)) for name in names}
    n = plan.rounds - 1
    rows = [Row(f"round-{name}", seconds[name], None, None, "s", n) for name in names]
    return [Row("round", sum(seconds.values()), None, None, "s", n, "one arm, dces: the sum of the medians of its stages"), *rows]


@dataclass(frozen=True)
class _Side:
    """An arm of a run that stands before round 1."""

    lab: Lab
    arm: ArmName
    start: Stage | None
    first: Stage
    pool: Stage
    reference: Stage
    frame: Frame | None

    def advance(self, round_: int) -> None:
        """Do one round."""
        one_round(self.lab, ARMS[self.arm], round_, self.start, self.first, self.pool, self.reference, self.frame)


def _start(lab: Lab, arm: ArmName) -> _Side:
    """What rounds.advance does before round 1."""
    start, first = round_zero(lab)
    pool = write_first_pool(lab, start)
    reference = lab.do(1, SHARED, "reference", [pool], lambda draft, progress: write_reference(lab, pool, draft, progress))
    frame = Frame(lab, pool) if lab.config.map.on else None
    if frame:
        frame.fit()
    return _Side(lab, arm, start, first, pool, reference, frame)


def _compare(name: str, plan: Plan, changes: tuple[str, ...], note: str) -> list[Row]:
    """Rounds of dces and plain in turn, each in a run of its own; the first round, which loads and compiles, is left out."""
    common = f"rounds={plan.rounds}"
    with ExitStack() as stack:
        ours = _start(stack.enter_context(sides.open_lab(sides.settings(plan, common, 'arms=["dces"]'))), "dces")
        peer = _start(stack.enter_context(sides.open_lab(sides.settings(plan, common, *changes, 'arms=["plain"]'))), "plain")
        for round_ in range(1, plan.rounds + 1):
            ours.advance(round_)
            peer.advance(round_)
        spans = [_spans(side.lab, side.arm) for side in (ours, peer)]

    def row(name: str, names: tuple[str, ...] | None, what: str) -> Row:
        own, plain = (_seconds(found, plan.rounds, names) for found in spans)
        return Row(name, own, plain, own / plain, "s", plan.rounds - 1, f"{what}; {note}")

    return [row(name, None, "every stage of a round"), row(f"{name}-made", MADE, f"{', '.join(MADE)} alone")]


def _seconds(spans: dict[tuple[int, str], float], rounds: int, names: tuple[str, ...] | None) -> float:
    """Median seconds of a round after the first: of these stages, or of all."""
    chosen = names or tuple({name for _, name in spans})
    return median(sum(spans[round_, name] for name in chosen) for round_ in range(2, rounds + 1))


def _spans(lab: Lab, arm: str) -> dict[tuple[int, str], float]:
    """Seconds by round and stage of an arm."""
    events = [event for event in lab.run.events()[0] if event.get("kind") == "span" and event["arm"] == arm]
    return {(event["round"], event["stage"]): event["seconds"] for event in events}
