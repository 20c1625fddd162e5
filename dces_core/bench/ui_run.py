"""The run that the dashboard is measured on: two arms' first round by the fake engine, told again for all arms and rounds."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl

from dces_core import machine, processes, store
from dces_core.bench.plan import Plan
from dces_core.config import RunConfig, load_recipe
from dces_core.events import Events
from dces_core.rounds import advance
from dces_core.stage import Stage
from dces_core.store import KEPT_IN_RECORDS, SHARED, Run

NAME = "ui-bench"
ARMS = (
    "plain", "dces", "random", "dces-targets", "ppl-low", "dces-no-edit", "ppl-high", "dces-static", "semdedup", "dces-no-filter",
)  # fmt: skip
MADE = ARMS[:2]  # by the fake engine; the others take turns to repeat them
STAGES = ("select", "map", "train", "evaluate")


def make(plan: Plan, folder: Path) -> Run:
    """A run in folder/runs that this process seems to work at, so that pages tick; all its rounds are there, no weights."""
    first = store.create(settings(plan, MADE, 1), {}, folder / "first")
    events = Events(first, {})
    try:
        advance(first, events)
    finally:
        events.close()
    arms = ARMS[: plan.ui_arms]
    run = store.create(settings(plan, arms, plan.ui_rounds), machine.describe(), folder / "runs" / NAME)
    with run.log_path.open("w", encoding="utf-8") as log:
        events = Events(run, {"state": "running", "done": 7, "total": 20, **processes.identity()}, lambda line: print(line, file=log))
        try:
            _tell(first, run, events)
        finally:
            events.close()
    shutil.rmtree(first.path)
    return run


def settings(plan: Plan, arms: tuple[str, ...], rounds: int) -> RunConfig:
    """The smoke recipe with the plan's samples in each pool, half of which are picked."""
    listed = ", ".join(f'"{arm}"' for arm in arms)
    sizes = [f"arms=[{listed}]", f"rounds={rounds}", "pool.factor=2.0", f"pool.n={plan.ui_samples // 2}"]
    return load_recipe("smoke", [*sizes, "generate.max_new_tokens=64", "cluster.clusterer=kmeans"])


def _tell(first: Run, run: Run, events: Events) -> None:
    for round_, name in ((0, "evaluate"), (1, "generate"), (1, "map")):
        _copy(first.stage(round_, SHARED, name), run, round_, SHARED, events)
    for round_ in range(1, run.config.rounds + 1):
        for index, arm in enumerate(run.config.arms):
            for name in STAGES:
                _copy(first.stage(1, MADE[index % 2], name), run, round_, arm, events)


def _copy(source: Stage, run: Run, round_: int, arm: str, events: Events) -> None:
    """A stage of another round or arm: the tables and facts that a recorded run keeps, with this round and arm in every row."""
    name = source.path.name
    told = {"arm": pl.lit(arm), "round": pl.lit(round_), "id": pl.col("id").cast(pl.String).str.replace("^r01", f"r{round_:02d}")}
    with events.span(round_, arm, name), run.commit(run.stage(round_, arm, name), "bench") as draft:
        for path in sorted(source.path.iterdir()):
            if path.stem in KEPT_IN_RECORDS and path.suffix == ".parquet":
                table = source.frame(path.stem)
                draft.table(path.stem, table.with_columns(**{key: told[key] for key in told if key in table.columns}))
            elif path.stem in KEPT_IN_RECORDS:
                shutil.copyfile(path, draft.file(path.name))
