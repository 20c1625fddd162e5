"""What an experiment tracker is told of a run: a track per arm, a row per finished round, from records and the event log.

Rows are made from whole stages only, so a row never changes. Nothing is written, no lock is taken: a run does not notice.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from dces_core import launch, store
from dces_core.config import RunConfig
from dces_core.errors import UserError
from dces_core.reading import is_size
from dces_core.redact import redacted
from dces_core.store import STAGES, Run
from dces_core.study_store import Output, Unit, find_output, unit_at


@dataclass(frozen=True)
class Row:
    """One finished round of one arm. Undefined values are left out."""

    round: int
    time_s: float  # when it was finished, since the epoch
    values: dict[str, float]


@dataclass(frozen=True)
class Track:
    """One arm of one run. `identity` tells it from another run that has taken its name."""

    group: str
    name: str
    identity: str
    settings: dict[str, str]
    finished: Callable[[], list[int]]
    row: Callable[[int], Row]


@dataclass
class Source:
    """What is sent. `run` is None where nothing more will come."""

    name: str
    tracks: list[Track]
    run: Run | None = None
    times: dict[tuple[str, int], float] = field(default_factory=dict)  # end of a round, from the event log
    offset: int = 0

    def alive(self) -> bool:
        """Whether more rounds may come."""
        return self.run is not None and launch.state(self.run) in launch.ALIVE

    def look(self) -> bool:
        """Read on in the event log; whether a round has ended since the last look."""
        if self.run is None:
            return False
        events, self.offset = self.run.events(self.offset)
        ended = [event for event in events if event.get("kind") == "span" and event["stage"] == "evaluate" and is_size(event.get("t"))]
        self.times.update({(event["arm"], event["round"]): float(event["t"]) for event in ended})
        return bool(ended)


def source_of(name: str) -> Source:
    """A run by name or path, a unit of a study by path, or all units of a study. Raises UserError when there is none."""
    unit = unit_at(Path(name).absolute())
    if unit:
        study = Output(unit.path.parents[2])
        return Source(f"{study.path.name}-seed-{unit.seed}-{unit.arm}", [_unit_track(study, unit)])
    try:
        run = store.find(name)
    except UserError as error:
        try:
            study = find_output(name)
        except UserError:
            raise error from None
        return Source(study.path.name, [_unit_track(study, one) for one in study.units()])
    source = Source(run.id, [], run)
    source.tracks = [_run_track(source, run, arm) for arm in run.config.arms]
    return source


def settings_of(config: RunConfig) -> dict[str, str]:
    """All settings, `section.key` -> text, without secrets of the environment."""
    found: dict[str, str] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                add(f"{prefix}.{key}" if prefix else key, item)
        else:
            found[prefix] = value if isinstance(value, str) else json.dumps(value)

    add("", redacted(config.model_dump(mode="json")))
    return found


# runs -------------------------------------------------------------------------------------------------------------------


def _run_track(source: Source, run: Run, arm: str) -> Track:
    manifest = run.manifest
    identity = _identity(run.id, manifest.get("created"), manifest.get("config_hash"), arm)
    return Track(
        run.id, f"{run.id}/{arm}", identity, settings_of(run.config), partial(run.finished, arm), partial(_run_row, source, run, arm)
    )


def _run_row(source: Source, run: Run, arm: str, round_: int) -> Row:
    stage = run.of(round_, arm, "evaluate")
    values = _metrics(stage.frame("metrics"))
    values |= {f"loop/{name}": float(value) for name, value in run.controller(arm, round_).items() if isinstance(value, int | float)}
    loss = run.loss(arm, round_)
    steps = [value for value in loss.get("loss", []) if value is not None]
    if steps:
        values |= {"train/loss": sum(steps) / len(steps), "train/steps": float(len(steps)), "train/tokens": float(loss["trained_tokens"])}
    for name in STAGES:
        seconds = (run.of(round_, arm, name).done or {}).get("seconds")
        if seconds is not None and is_size(seconds):
            values[f"seconds/{name}"] = float(seconds)
    time_s = source.times.get((arm, round_)) or stage.path.stat().st_mtime
    return Row(round_, time_s, _finite(values))


# units ------------------------------------------------------------------------------------------------------------------


def _unit_track(study: Output, unit: Unit) -> Track:
    metrics, loop = unit.frame("metrics"), unit.frame("controller")
    time_s = datetime.fromisoformat(unit.facts["finished"]).timestamp() if unit.facts.get("finished") else unit.path.stat().st_mtime
    config = study.config().model_copy(update={"seed": unit.seed, "arms": (unit.arm,)})

    def row(round_: int) -> Row:
        values = _metrics(metrics.filter(pl.col("round") == round_))
        steered = loop.filter((pl.col("round") == round_) & pl.col("value").is_not_null())
        values |= {f"loop/{name}": float(value) for name, value in steered.select("quantity", "value").iter_rows()}
        return Row(round_, time_s, _finite(values))

    identity = _identity(study.path.name, unit.facts["digest"], unit.facts.get("finished"), unit.arm)
    name = f"{study.path.name}/seed-{unit.seed}/{unit.arm}"
    return Track(study.path.name, name, identity, settings_of(config), lambda: metrics["round"].unique().sort().to_list(), row)


def _metrics(frame: pl.DataFrame) -> dict[str, float]:
    """`test_set/metric` -> value; metrics of generated text have `generated` for their test set."""
    rows = frame.filter(pl.col("value").is_not_null()).select("test_set", "metric", "value").iter_rows()
    return {f"{test_set or 'generated'}/{metric}": float(value) for test_set, metric, value in rows}


def _finite(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _identity(*parts: object) -> str:
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:12]
