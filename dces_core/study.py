"""Studies: arms x seeds of one recipe. The unit of work is one arm of one seed, an ordinary run that is exported when it is done.

Any machine goes on with the units that the output directory lacks. What all arms of a seed share is made once per machine.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import Field, model_validator

from dces_core import data, estimate, launch, machine
from dces_core.arms import ARMS
from dces_core.compare import Budget
from dces_core.config import NAME, SHIPPED, ArmName, RunConfig, load_recipe
from dces_core.errors import UserError, quoted, reason_of
from dces_core.events import clock
from dces_core.reading import read_toml
from dces_core.section import Section, validate
from dces_core.store import Run
from dces_core.study_store import Output, Unit, Workshop, find_output, recorded_studies

STUDIES = SHIPPED / "studies"
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Place = tuple[int, str]  # (seed, arm)
Say = Callable[[str], None]
#: No figure depends on how many sequences are decoded at once.
NO_DECODING = {"batch_size"}


class StudyConfig(Section):
    """The fields of a STUDY.toml."""

    name: str = Field(description="Name of the study; its runs and its recorded output lie in folders of this name.")
    note: Annotated[str, Field(max_length=2000)] = Field("", description="What the study asks.")
    recipe: str = Field("study", description="A recipe by name or path; a relative path starts at the study's folder.")
    set: dict[str, Any] = Field({}, description="Settings over the recipe, by section: set.train.init = 'base'.")
    arms: Annotated[tuple[ArmName, ...], Field(min_length=1)] = Field(description="Arms, in the order in which they are done.")
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = Field(description="Seeds of every arm.")
    seeds_of: dict[ArmName, tuple[Seed, ...]] = Field({}, description="Arms that have other seeds than `seeds`.")

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name = {self.name!r} must use letters, digits, '.', '_' and '-' only")
        for field, values in (("arms", self.arms), ("seeds", self.seeds), *((f"seeds_of.{a}", s) for a, s in self.seeds_of.items())):
            if len(set(values)) != len(values):
                raise ValueError(f"{field} = {list(values)} names one twice")
        for arm in self.seeds_of:
            if arm not in self.arms:
                raise ValueError(f"seeds_of.{arm}: {arm!r} is not among arms = {list(self.arms)}")
        return self


@dataclass(frozen=True)
class Study:
    """A study with its recipe resolved."""

    config: StudyConfig
    base: RunConfig
    path: Path  # the STUDY.toml

    @property
    def default_out(self) -> Path:
        """Where its units go unless told otherwise: beside the STUDY.toml; a shipped study's to data/recorded/studies/NAME."""
        return recorded_studies() / self.config.name if self.path.parent == STUDIES else self.path.parent

    def places(self, only: Sequence[str] = ()) -> list[Place]:
        """All units, seed by seed over the arms; `only`: patterns ARM/SEED. Raises UserError where a pattern fits none."""
        seeds_of = {arm: self.config.seeds_of.get(arm, self.config.seeds) for arm in self.config.arms}
        seeds = dict.fromkeys([*self.config.seeds, *(seed for own in seeds_of.values() for seed in own)])
        found = [(seed, arm) for seed in seeds for arm in self.config.arms if seed in seeds_of[arm]]
        for pattern in only:
            if not any(_fits(place, pattern) for place in found):
                arms = ", ".join(self.config.arms)
                raise UserError(f"only = {pattern!r} fits no unit of study {self.config.name!r}: ARM/SEED (or */SEED) with arms {arms}.")
        return [place for place in found if not only or any(_fits(place, pattern) for pattern in only)]

    def run_config(self, seed: int, arm: str) -> RunConfig:
        """Settings of one unit's run."""
        return self.base.model_copy(update={"name": self.config.name, "seed": seed, "arms": (arm,)})


def _fits(place: Place, pattern: str) -> bool:
    return fnmatchcase(f"{place[1]}/{place[0]}", pattern)


def load_study(name: str) -> Study:
    """A shipped study by name (data/studies/NAME.toml), or a path. Raises UserError where it cannot be read."""
    path = (Path(name) if name.endswith(".toml") else STUDIES / f"{name}.toml").absolute()
    try:
        values = read_toml(path)
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in STUDIES.glob("*.toml")))
        raise UserError(f"study = {quoted(name)} is neither a TOML file nor one of: {known}.") from None
    except (ValueError, OSError) as error:
        raise UserError(f"study {quoted(str(path))} cannot be read as TOML: {reason_of(error)}.") from None
    config = validate(StudyConfig, values, "docs/study.md")
    beside = path.parent / config.recipe
    recipe = str(beside) if config.recipe.endswith(".toml") else config.recipe
    overrides = [*dotted(config.set), f"arms={json.dumps(config.arms)}", f"seed={config.seeds[0]}"]
    return Study(config, load_recipe(recipe, overrides), path)


def dotted(values: dict[str, Any], prefix: str = "") -> list[str]:
    """A table as `section.key=value`."""
    found = []
    for key, value in values.items():
        found += dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}={_toml(value)}"]
    return found


def _toml(value: Any) -> str:
    """A value of a TOML file as --set takes it. Raises UserError for a date, which no setting is."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise UserError(f"set: {quoted(value)} is the value of no setting; docs/settings.md lists them all.") from None


def output_of(name: str) -> Output:
    """What `dces compare` reads: a STUDY.toml's default output, a directory, or a recorded study. Raises UserError."""
    return find_output(str(load_study(name).default_out) if name.endswith(".toml") else name)


# work -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """One call of `dces study`."""

    study: Study
    output: Output
    mixed_cpus: bool
    keep_runs: bool
    say: Say

    def finished(self, places: Iterable[Place]) -> dict[Place, Unit]:
        """Units that are there. Raises UserError for one that is damaged or has other settings."""
        found = {}
        for seed, arm in places:
            unit = self.output.unit(seed, arm, self.study.run_config(seed, arm))
            if unit:
                found[seed, arm] = unit
        return found


def do_study(work: Work, only: Sequence[str] = ()) -> launch.State:
    """Make the missing units: `done`, or `stopped`, or `failed` where a unit failed (the others are made nevertheless).

    Raises UserError before anything starts: other settings, another study's directory, mixed processors, another worker.
    """
    study, workshop = work.study, Workshop(work.study.config.name)
    done = work.finished(study.places())
    missing = [place for place in study.places(only) if place not in done]
    refuse_other_tests(study, done.values())
    if not work.mixed_cpus:
        refuse_mixed_cpus(study, done.values(), missing, workshop)
    work.output.write_study(study.config.model_dump(mode="json"), study.base)
    failed = 0
    with alone(study, workshop):
        for count, (seed, arm) in enumerate(missing, 1):
            state, error = make_unit(work, workshop, seed, arm)
            if state == "stopped":
                return "stopped"
            if state == "failed":
                failed += 1
                work.say(f"unit {count}/{len(missing)}  seed {seed}  {arm}  failed: {error}")
                continue
            done = work.finished(study.places())
            eta_s = eta(done.values(), [place for place in missing[count:] if place not in done])
            work.say(f"unit {count}/{len(missing)}  seed {seed}  {arm:<14} {done[seed, arm].facts['seconds']:9.1f} s   ETA {clock(eta_s)}")
            if all(place in done for place in study.places() if place[0] == seed):
                workshop.close(seed, work.keep_runs)
    return "failed" if failed else "done"


def alone(study: Study, workshop: Workshop) -> AbstractContextManager[object]:
    """Hold the study's lock. Raises UserError where another process works on it."""
    try:
        return FileLock(workshop.lock_path).acquire(timeout=0)
    except Timeout:
        raise UserError(f"study {study.config.name!r} has a worker on this machine already ({workshop.path}).") from None


def make_unit(work: Work, workshop: Workshop, seed: int, arm: str) -> tuple[launch.State, str | None]:
    """Do a unit's run, or go on with it, and write the unit; its run's state and error."""
    from dces_core.progress import follow

    config = work.study.run_config(seed, arm)
    run = workshop.run(seed, arm)
    if run is None:
        workshop.forget(seed, arm)  # a directory that was never whole
        run = launch.create(config, workshop.run_path(seed, arm))
        workshop.lend(run)
    elif run.config.digest() != config.digest():
        raise UserError(f"run {run.path} was begun with other settings than the study now has; delete it, or restore the settings.")
    if run.status().get("state") != "done":
        run.stop_path.unlink(missing_ok=True)
        state = follow(run, lines=False)
        gc.collect()  # a finished run refers to itself, and its model is large
        if state != "done":
            return state, run.status().get("error")
    workshop.keep(run)
    work.output.write_unit(run, unit_facts(run, work.mixed_cpus))
    if not work.keep_runs:
        workshop.forget(seed, arm)
    return "done", None


def eta(done: Iterable[Unit], missing: Sequence[Place]) -> float | None:
    """Seconds that the missing units will take: each as its arm did on average, or as all did; None before any is done."""
    seconds: dict[str, list[float]] = {}
    for unit in done:
        seconds.setdefault(unit.arm, []).append(float(unit.facts["seconds"]))
    every = [value for values in seconds.values() for value in values]
    if not every:
        return None
    return sum(sum(values) / len(values) for values in (seconds.get(arm, every) for _, arm in missing))


def status(work: Work) -> list[dict[str, Any]]:
    """One row per unit: seed, arm, state (done, begun or missing; a sentence where it cannot be used), seconds, cpu."""
    rows = []
    workshop = Workshop(work.study.config.name)
    for seed, arm in work.study.places():
        row: dict[str, Any] = {"seed": seed, "arm": arm, "state": "begun" if workshop.run(seed, arm) else "missing"}
        try:
            unit = work.finished([(seed, arm)]).get((seed, arm))
        except UserError as error:
            row["state"], unit = str(error), None
        if unit:
            cpu = unit.facts["cpu"]
            row |= {"state": "done", "seconds": unit.facts["seconds"], "cpu": f"{cpu['model']}, {cpu['threads']} threads"}
        rows.append(row)
    return rows


# facts ------------------------------------------------------------------------------------------------------------------


def unit_facts(run: Run, mixed_cpus: bool) -> dict[str, Any]:
    """What unit.json says beside the files: settings, machine, seconds, budget."""
    config, manifest = run.config, run.manifest
    spans = [event["seconds"] for event in run.events()[0] if event.get("kind") == "span"]
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "digest": config.digest(),
        "config": config.model_dump(mode="json"),
        "versions": manifest.get("versions"),
        "python": manifest.get("python"),
        "platform": manifest.get("platform"),
        "cpu": cpu_type(manifest.get("cpu") or {}, run.threads, config),
        "device": run.status().get("device"),
        "mixed_cpus": mixed_cpus,
        "tests": tests_of(config),
        "seconds": round(sum(spans), 3),
        "budget": _budget(run),
    }


def tests_of(config: RunConfig) -> dict[str, Any]:
    """What the test sets hold: a path or an environment variable does not say it."""
    return {name: data.fingerprint(corpus) for name, corpus in data.load_tests(config).items()}


def refuse_other_tests(study: Study, done: Iterable[Unit]) -> None:
    """Raise UserError where a finished unit was measured on other texts than this machine has."""
    here = tests_of(study.base)
    for unit in done:
        for name, facts in unit.facts["tests"].items():
            if facts != here[name]:
                raise UserError(
                    f"data.tests.{name} = {study.base.data.tests[name]!r} holds other text here than for the unit {unit.arm}/{unit.seed}, "
                    f"which had {facts['rows']} rows with sha256 {facts['sha256'][:12]}...; give it the same file."
                )


def _budget(run: Run) -> dict[str, Any]:
    (arm,), config = run.config.arms, run.config
    losses = [run.loss(arm, round_) for round_ in range(1, config.rounds + 1)]
    losses = [loss for loss in losses if loss]
    return {
        "pool": config.pool.size,
        "n": config.pool.n,
        "regime": config.train.regime,
        "planned_steps": [-(-loss["examples"] // config.train.batch_size) * config.train.epochs for loss in losses],
        "optimiser_steps": [len(loss["loss"]) for loss in losses],
        "trained_tokens": [loss["trained_tokens"] for loss in losses],
        "decoding": ARMS[arm].decoding(config.generate, None).model_dump(mode="json", exclude=NO_DECODING),
    }


def budget_of(unit: Unit) -> Budget:
    """A unit's budget as compare.py reads it."""
    return Budget(unit.arm, unit.seed, **unit.facts["budget"])


def cpu_type(cpu: dict[str, Any], threads: int, config: RunConfig) -> dict[str, Any]:
    """What decides the last digits of a result: processor, instructions, threads, and the kind of device."""
    return {"model": cpu.get("model"), "flags": cpu.get("flags"), "threads": threads, "device": estimate.likely_device(config)}


def cpu_words(cpu: dict[str, Any]) -> str:
    """A processor type in words."""
    return f"{cpu['model']}, {cpu['threads']} thread{'s' * (cpu['threads'] != 1)}, {' '.join(cpu['flags'] or [])}, {cpu['device']}"


def mixed_cpus(units: Iterable[Unit]) -> list[str]:
    """A sentence per seed whose units come from several types of processor: its last digits differ for that reason too."""
    types: dict[int, set[str]] = {}
    for unit in units:
        types.setdefault(unit.seed, set()).add(str(unit.facts["cpu"]))
    return [f"seed {seed} was computed on {len(found)} types of processor." for seed, found in types.items() if len(found) > 1]


def refuse_mixed_cpus(study: Study, done: Iterable[Unit], missing: Sequence[Place], workshop: Workshop) -> None:
    """Raise UserError where a missing unit would stand beside units of its seed from another type of processor."""
    here = cpu_type(machine.cpu(), study.base.threads or machine.threads(), study.base)
    types = [(unit.seed, unit.facts["cpu"]) for unit in done]
    for seed, arm in missing:
        run = workshop.run(seed, arm)
        if run:
            types.append((seed, cpu_type(run.manifest.get("cpu") or {}, run.threads, study.base)))
    seeds = {seed for seed, _ in missing}
    for seed, found in types:
        if seed in seeds and found != here:
            raise UserError(
                f"seed {seed} was begun on another type of processor ({cpu_words(found)}) than this machine ({cpu_words(here)}): "
                f"give this machine other seeds (--only '*/SEED'), set OMP_NUM_THREADS where only threads differ, or add --mixed-cpus."
            )
