"""Whole rounds in temporary run directories: what dces costs more than plain, and where the time of a round goes."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from dces_core.bench import sides
from dces_core.bench.plan import Plan
from dces_core.bench.rows import Row
from dces_core.lab import Lab
from dces_core.rounds import advance
from dces_core.store import SHARED

Spans = dict[str, dict[str, float]]  # seconds by arm and stage
MADE = ("generate", "select", "train")  # what makes a round's model; evaluation and map look at it


def overhead(plan: Plan) -> list[Row]:
    """A dces round / a plain round, both from the same pool; then stage by stage, which says where the difference lies."""
    both = [_first_rounds(plan, seed) for seed in range(plan.seeds)]
    stages = [
        _row(f"dces-overhead-{s}", both, both, [s], "this stage alone; the pool is shared") for s in both[0]["plain"] if s != "generate"
    ]
    return [*_rows("dces-overhead", both, both, "the same pool"), *stages]


def total(plan: Plan) -> list[Row]:
    """A dces round / a plain round that generates no more than it trains on."""
    ours, plain = zip(
        *((_first_rounds(plan, seed, "dces"), _first_rounds(plan, seed, "plain", 1.0)) for seed in range(plan.seeds)), strict=True
    )
    return _rows("dces-total", ours, plain, "plain with pool = N")


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


def _first_rounds(plan: Plan, seed: int, arm: str = "", factor: float | None = None) -> Spans:
    """Seconds of every stage of round 1, of this arm or of both; the pool that they share counts for each."""
    arms = f'["{arm}"]' if arm else '["plain", "dces"]'
    changes = [f"arms={arms}", "rounds=1", f"seed={seed}", *([] if factor is None else [f"pool.factor={factor}"])]
    with sides.open_lab(sides.settings(plan, *changes)) as lab:
        advance(lab.run, lab.events)
        pool = _spans(lab, SHARED)[1, "generate"]
        return {name: {"generate": pool, **_stages(lab, name)} for name in lab.config.arms}


def _stages(lab: Lab, arm: str) -> dict[str, float]:
    return {stage: seconds for (_, stage), seconds in _spans(lab, arm).items()}


def _rows(name: str, ours: Sequence[Spans], peer: Sequence[Spans], note: str) -> list[Row]:
    """Medians over the seeds: of whole rounds, and of what makes a round's model."""
    whole = list(peer[0]["plain"])
    every = _row(name, ours, peer, whole, f"every stage of a round; {note}")
    return [every, _row(f"{name}-made", ours, peer, [s for s in whole if s in MADE], f"{', '.join(MADE)} alone; {note}")]


def _row(name: str, ours: Sequence[Spans], peer: Sequence[Spans], stages: Sequence[str], note: str) -> Row:
    own, plain = (median(sum(spans[arm][s] for s in stages) for spans in found) for found, arm in ((ours, "dces"), (peer, "plain")))
    return Row(name, own, plain, own / plain, "s", len(ours), note)


def _spans(lab: Lab, arm: str) -> dict[tuple[int, str], float]:
    """Seconds by round and stage of an arm."""
    events = [event for event in lab.run.events()[0] if event.get("kind") == "span" and event["arm"] == arm]
    return {(event["round"], event["stage"]): event["seconds"] for event in events}
