"""What the Compare page can compare: studies and finished runs. Sources with the same settings are pooled, any others stay apart.

A study's unit and an arm of a run are the same thing here: one arm of one seed. What is read is kept by (path, stamp), bounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import polars as pl
import streamlit as st

from dces_core import launch, store
from dces_core.arms import ARMS
from dces_core.compare import Budget, ordered, refuse_unequal, remarks
from dces_core.config import NAME, RunConfig
from dces_core.errors import UserError
from dces_core.evidence import Evidence
from dces_core.metrics.verdict import collapses, verdicts
from dces_core.reading import parse_json
from dces_core.records import PROBES, table
from dces_core.section import validate
from dces_core.store import Run
from dces_core.study import NO_DECODING, StudyConfig, budget_of, mixed_cpus
from dces_core.study_store import Output, Unit, recorded_studies

Kind = Literal["study", "out", "run"]
KINDS: dict[Kind, str] = {"study": "recorded study", "out": "study output", "run": "run"}
#: Controlled quantity -> where the loop says why it has no value.
CONTROLLED = {"edge_share": "reason", "edit_temperature": "edit_reason", "sampling_temperature": "sampling_reason"}
#: What the feedback loop asked for, one figure a row; `reason` where it has no value.
LOOP: dict[str, Any] = {
    "arm": pl.String,
    "seed": pl.Int64,
    "round": pl.Int32,
    "quantity": pl.String,
    "value": pl.Float64,
    "reason": pl.String,
}


@dataclass(frozen=True)
class Source:
    """A study or a run on the disk."""

    kind: Kind
    name: str
    path: Path

    @property
    def key(self) -> str:
        """What the address bar says."""
        return f"{self.kind}:{self.name}"

    @property
    def stamp(self) -> tuple[int, ...]:
        """When its files were written, ns: part of every cache key."""
        names = ["run.json", "status.json"] if self.kind == "run" else ["study.json", "units/seed-*/*/unit.json"]
        return tuple(path.stat().st_mtime_ns for name in names for path in sorted(self.path.glob(name)))

    @property
    def units(self) -> int:
        """Finished units, unread; 1 for a run."""
        return 1 if self.kind == "run" else len(self.stamp) - 1

    @property
    def said(self) -> str:
        """What it is."""
        return "recorded run" if self.kind == "run" and Run(self.path).recorded else KINDS[self.kind]

    @property
    def label(self) -> str:
        """Its name and what it is."""
        return f"{self.name} · {self.said}"


@dataclass(frozen=True)
class Measured:
    """What a source says."""

    name: str
    kind: str
    note: str
    config: RunConfig
    texts: str  # what the test sets hold whose path does not say it
    planned: dict[str, tuple[int, ...]]  # seeds by arm
    metrics: pl.DataFrame  # records.METRICS
    loop: pl.DataFrame  # LOOP
    budgets: tuple[Budget, ...]
    remarks: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that can change a figure but for arm and seed."""
        return self.config.model_dump(mode="json", exclude={"name", "note", "keep", "device", "threads", "arms", "seed"})

    @property
    def done(self) -> list[tuple[str, int]]:
        """Its finished (arm, seed)."""
        return sorted(self.metrics.select("arm", "seed").unique().rows())


@dataclass(frozen=True)
class Comparison:
    """Sources of the same settings, as one study."""

    key: str  # of its first source
    config: RunConfig
    evidence: Evidence
    loop: pl.DataFrame  # LOOP
    budgets: tuple[Budget, ...]

    @property
    def title(self) -> str:
        """Names of its sources."""
        return self.evidence.name

    def arms(self, base: str = "") -> list[str]:
        """Planned arms: the noise floor, `base`, the others, reference rows."""
        return ordered(list(self.evidence.planned), base)

    @cached_property
    def collapses(self) -> pl.DataFrame:
        """Seeds that collapse, by definition: metrics.verdict.COLLAPSES."""
        return collapses(self.verdicts)

    @cached_property
    def verdicts(self) -> pl.DataFrame:
        """metrics.verdict.VERDICTS."""
        return verdicts(self.evidence.metrics)

    def refusal(self) -> str:
        """Why budgets forbid a comparison; empty where they are equal."""
        try:
            refuse_unequal(self.budgets)
        except UserError as error:
            return str(error)
        return ""

    def remarks(self, base: str) -> list[str]:
        """What must be said of budgets, processors and double units."""
        return [*remarks(self.budgets, base), *self.evidence.remarks]


# finding ----------------------------------------------------------------------------------------------------------------


def find() -> list[Source]:
    """Recorded studies, study outputs below the runs directory, recorded and finished runs. Only plain names: they go into addresses."""
    found = [Source("study", path.parent.name, path.parent) for path in sorted(recorded_studies().glob("*/study.json"))]
    found += [Source("out", path.parent.name, path.parent) for path in sorted(store.runs_root().glob("*/study.json"))]
    runs = [run for run in store.discover() if run.recorded or launch.state(run) == "done"]
    found += [Source("run", run.id, run.path) for run in sorted(runs, key=lambda run: not run.recorded)]
    return [source for source in {one.key: one for one in reversed(found)}.values() if NAME.fullmatch(source.name)][::-1]


def read(source: Source) -> Measured:
    """A source's tables. Raises UserError where it is damaged or unreadable."""
    found = (_run if source.kind == "run" else _study)(str(source.path), source.stamp)
    return replace(found, kind=source.said)


def read_all(sources: Iterable[Source]) -> tuple[dict[str, Measured], list[str]]:
    """What the sources say, by key; and a sentence for each that cannot be read."""
    found, problems = {}, []
    for source in sources:
        try:
            found[source.key] = read(source)
        except UserError as error:
            problems.append(str(error))
    return found, problems


@st.cache_resource(max_entries=64, show_spinner=False)
def _study(path: str, stamp: tuple[int, ...]) -> Measured:
    output = Output(Path(path))
    config, study = output.config(), validate(StudyConfig, output.facts().get("study") or {}, "docs/study.md")
    units = output.units()
    names = {name for name, value in config.data.tests.items() if value.startswith("$")}
    texts = [{name: unit.facts["tests"].get(name) for name in sorted(names)} for unit in units[:1]]
    return Measured(
        name=Path(path).name,
        kind="study",
        note=study.note,
        config=config,
        texts=json.dumps(texts) if names else "",
        planned={arm: study.seeds_of.get(arm, study.seeds) for arm in study.arms},
        metrics=pl.concat([table("metrics", []), *(unit.frame("metrics") for unit in units)]),
        loop=_loop(row for unit in units for row in _unit_loop(unit)),
        budgets=tuple(budget_of(unit) for unit in units),
        remarks=tuple(mixed_cpus(units)),
    )


@st.cache_resource(max_entries=128, show_spinner=False)
def _run(path: str, stamp: tuple[int, ...]) -> Measured:
    run = Run(Path(path))
    config = run.config
    return Measured(
        name=run.id,
        kind="run",
        note=config.note,
        config=config,
        texts=path if any(value.startswith("$") for value in config.data.tests.values()) else "",
        planned=dict.fromkeys(config.arms, (config.seed,)),
        metrics=run.metrics(),
        loop=_loop(row for arm in config.arms for row in _run_loop(run, arm)),
        budgets=tuple(_run_budget(run, arm) for arm in config.arms),
    )


def _loop(rows: Iterable[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=LOOP, strict=False)


def _unit_loop(unit: Unit) -> list[dict[str, Any]]:
    """LOOP rows of a unit, from its records.CONTROLLER."""
    rows = unit.frame("controller").select("round", "quantity", "value", "text").rows()
    known = {(round_, name): value if text is None else _parsed(text) for round_, name, value, text in rows}
    return [
        {
            "arm": unit.arm,
            "seed": unit.seed,
            "round": round_,
            "quantity": name,
            "value": value,
            "reason": known.get((round_, CONTROLLED[name])),
        }
        for (round_, name), value in known.items()
        if name in CONTROLLED
    ]


def _parsed(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return None


def _run_loop(run: Run, arm: str) -> list[dict[str, Any]]:
    """LOOP rows of an arm of a run."""
    states = {round_: run.controller(arm, round_) for round_ in run.finished(arm, "select")}
    return [
        {"arm": arm, "seed": run.config.seed, "round": round_, "quantity": name, "value": state[name], "reason": state.get(why)}
        for round_, state in states.items()
        for name, why in CONTROLLED.items()
        if name in state
    ]


def _run_budget(run: Run, arm: str) -> Budget:
    """What an arm of a run was given, as study.py stores it of a unit; steps and tokens are empty where the run did not store them."""
    config = run.config
    losses = [run.loss(arm, round_) for round_ in range(1, config.rounds + 1)]
    losses = [loss for loss in losses if loss]
    return Budget(
        arm=arm,
        seed=config.seed,
        pool=config.pool.size,
        n=config.pool.n,
        regime=config.train.regime,
        planned_steps=[-(-loss["examples"] // config.train.batch_size) * config.train.epochs for loss in losses],
        optimiser_steps=[len(loss["loss"]) for loss in losses],
        trained_tokens=[loss["trained_tokens"] for loss in losses],
        decoding=ARMS[arm].decoding(config.generate, None).model_dump(mode="json", exclude=NO_DECODING),
    )


# pooling ----------------------------------------------------------------------------------------------------------------


def compared(sources: Sequence[Source], measured: dict[str, Measured]) -> list[Comparison]:
    """`pooled`, kept while none of the sources changes, and with it what a comparison works out once."""
    known = [source for source in sources if source.key in measured]
    return _compared(tuple((source.key, source.stamp) for source in known), [(source.key, measured[source.key]) for source in known])


@st.cache_resource(max_entries=16, show_spinner=False)
def _compared(stamps: tuple[Any, ...], _sources: list[tuple[str, Measured]]) -> list[Comparison]:
    return pooled(_sources)


def pooled(sources: Sequence[tuple[str, Measured]]) -> list[Comparison]:
    """One comparison per settings, in the order of the sources (key, what it says). Sources without a figure are left out."""
    groups: dict[str, list[tuple[str, Measured]]] = {}
    for key, one in sources:
        if one.metrics.height:
            groups.setdefault(json.dumps([one.settings, one.texts]), []).append((key, one))
    return [_pool([key for key, _ in group], [one for _, one in group]) for group in groups.values()]


def _pool(keys: list[str], group: list[Measured]) -> Comparison:
    """Units of all sources, each (arm, seed) once: the first source that has it counts."""
    owner: dict[tuple[str, int], str] = {}
    kept, notes = [], [remark for one in group for remark in one.remarks]
    for one in group:
        double = [unit for unit in one.done if unit in owner]
        new = [unit for unit in one.done if unit not in owner]
        own = pl.DataFrame(new, schema={"arm": pl.String, "seed": pl.Int64}, orient="row")
        metrics, loop = (frame.join(own, on=["arm", "seed"], how="semi", maintain_order="left") for frame in (one.metrics, one.loop))
        budgets = tuple(budget for budget in one.budgets if (budget.arm, budget.seed) in new)
        kept.append(replace(one, metrics=metrics, loop=loop, budgets=budgets))
        if double:
            units = f"{len(double)} unit{'s' * (len(double) > 1)}"
            notes.append(f"{units} of {one.name} ({_listed(double)}) also in {owner[double[0]]}: counted once.")
        owner |= dict.fromkeys(new, one.name)
    planned: dict[str, tuple[int, ...]] = {}
    for one in group:
        for arm, seeds in one.planned.items():
            planned[arm] = tuple(sorted({*planned.get(arm, ()), *seeds}))
    evidence = Evidence(
        name=" + ".join(one.name for one in group),
        note=" ".join(dict.fromkeys(one.note for one in group if one.note)),
        planned=planned,
        metrics=pl.concat([one.metrics for one in kept]),
        probes=pl.DataFrame(schema={**PROBES, "seed": pl.Int64()}),
        remarks=tuple(notes),
    )
    loop = pl.concat([one.loop for one in kept])
    return Comparison(keys[0], group[0].config, evidence, loop, tuple(budget for one in kept for budget in one.budgets))


def _listed(units: Sequence[tuple[str, int]]) -> str:
    words = [f"{arm}/{seed}" for arm, seed in units]
    return ", ".join(words[:4]) + (f" and {len(words) - 4} more" if len(words) > 4 else "")
