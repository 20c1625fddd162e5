"""Where the seconds of cost.py come from: spans of a run, units of a study, rows of `dces bench round`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from dces_core import estimate, machine, store
from dces_core.config import SHIPPED, RunConfig, load_recipe
from dces_core.cost import WHOLE, Measurement, Timing
from dces_core.errors import UserError
from dces_core.records import table
from dces_core.store import SHARED, STAGES, Run
from dces_core.study_store import Output

BENCH = SHIPPED.parent / "docs" / "performance.json"
MOST_RUNS = 200  # newest ones that are looked at for a measurement


def of_run(run: Run) -> Measurement:
    """Seconds of every stage of a run, and what it evaluated. Raises UserError for a run that finished no stage of a round."""
    return replace(_timed(run), metrics=run.metrics())


def _timed(run: Run) -> Measurement:
    config = run.config
    seconds: dict[tuple[str, str], dict[int, float]] = {}
    for event in run.events()[0]:
        known = event.get("kind") == "span" and event["arm"] in (*config.arms, SHARED) and event["stage"] in (*STAGES, "reference")
        if known and (event["round"] > 0 or event["arm"] == SHARED):
            # what a resumed run did again counts as it was done last
            seconds.setdefault((event["arm"], event["stage"]), {})[event["round"]] = float(event["seconds"])
    if not any(arm != SHARED for arm, _ in seconds):
        raise UserError(f"run = {run.id!r} has finished no stage of a round, so it measures nothing; choose another.")
    timings = {key: Timing(math.fsum(rounds.values()) / len(rounds), len(rounds)) for key, rounds in seconds.items()}
    said = f"run {run.id}"
    cpu = (run.manifest.get("cpu") or {}).get("model")
    where = _where(said, cpu, run.threads, config, recorded=run.recorded)
    settings = config.model_copy(update={"threads": run.threads})
    return Measurement(said, where, settings, _parameters(config), timings)


def of_study(output: Output) -> Measurement:
    """Seconds of a round of every arm: a unit's, over its rounds. Raises UserError where no unit is finished."""
    config, units = output.config(), output.units()
    if not units:
        raise UserError(f"study = {output.path.name!r} has no finished unit yet; run dces study first.")
    seconds: dict[str, list[float]] = {}
    for unit in units:
        seconds.setdefault(unit.arm, []).append(float(unit.facts["seconds"]) / config.rounds)
    timings = {(arm, WHOLE): Timing(math.fsum(values) / len(values), len(values)) for arm, values in seconds.items()}
    said = f"study {output.path.name}"
    cpus = {(str(unit.facts["cpu"]["model"]), int(unit.facts["cpu"]["threads"])) for unit in units}
    model, threads = cpus.pop() if len(cpus) == 1 else (f"{len(cpus)} types of processor", 0)
    recorded = output.path.parent == store.recorded_root() / "studies"
    where = _where(said, model, threads, config, recorded=recorded)
    metrics = pl.concat([table("metrics", []), *(unit.frame("metrics") for unit in units)])
    settings = config.model_copy(update={"threads": threads, "arms": tuple(seconds)})
    return Measurement(said, where, settings, _parameters(config), timings, "seeds", metrics, whole=True)


def of_bench(path: Path) -> Measurement:
    """A round of dces as `dces bench round` timed it. Raises UserError where the file has no such rows."""
    from dces_core.bench.plan import Plan

    entries = {entry["name"]: entry for entry in _stored(path)}
    rows = {stage: entries.get(f"round-{stage}", {}) for stage in STAGES}
    found = {stage: row for stage, row in rows.items() if isinstance(row.get("ours"), int | float) and isinstance(row.get("n"), int)}
    if not found:
        raise UserError(f"bench = {path.name!r} has no rows of the bench round; measure: dces bench round --out {path.name}.")
    plan = Plan()
    config = load_recipe(plan.recipe, [f'model="{plan.model}"', 'device="cpu"', f'train.precision="{plan.precision}"', 'arms=["dces"]'])
    first = next(iter(found.values()))
    where = f"measured by dces bench round, {first.get('measured')}, on {first.get('machine')}"
    timings = {("dces", stage): Timing(float(row["ours"]), row["n"]) for stage, row in found.items()}
    return Measurement(f"bench {path.name}", where, config, _parameters(config), timings)


def overhead(path: Path = BENCH) -> dict[str, Any] | str:
    """The row `dces-total` of a file of bench results, or why there is none."""
    if not path.is_file():
        return f"{path.name} is not here; measure: dces bench dces-total --out FILE, and give it as --bench FILE"
    found = [entry for entry in _stored(path) if entry["name"] == "dces-total"]
    return found[-1] if found else f"{path.name} has no row dces-total; measure: dces bench dces-total --out {path.name}"


def best(config: RunConfig) -> Measurement | str:
    """What fits a recipe best, or why nothing does.

    Same engine and device; the same model before another, then one that timed every arm, then this machine's runs, the newest first.
    """
    ranked: list[tuple[tuple[int, int, int], Run]] = []
    for run in _finished(config):
        try:
            found = _timed(run)
        except UserError:
            continue
        arms = {arm for arm, _ in found.timings}
        order = (int(found.config.model != config.model), len(set(config.arms) - arms), int(run.recorded))
        ranked.append((order, run))
        if order == (0, 0, 0):
            break
    if not ranked:
        device = estimate.likely_device(config)
        return f"no run with the engine {config.engine} on {device} is here; do one, or name another measurement"
    return of_run(min(ranked, key=lambda pair: pair[0])[1])


def _finished(config: RunConfig) -> Iterable[Run]:
    """Runs of the same engine and device, newest first, then recorded ones."""
    for run in store.discover()[:MOST_RUNS]:
        try:
            other = run.config
        except UserError:
            continue
        if other.engine == config.engine and estimate.likely_device(other) == estimate.likely_device(config):
            yield run


def _where(what: str, cpu: str | None, threads: int, config: RunConfig, recorded: bool) -> str:
    """`measured here on run X`, or where else; what was recorded elsewhere names its processor."""
    here = (machine.cpu()["model"], config.threads or machine.threads())
    if not recorded and (cpu, threads) == here:
        return f"measured here on {what}"
    words = [cpu or "an unnamed processor", *[f"{threads} thread{'s' * (threads > 1)}"] * bool(threads)]
    return f"measured on {'recorded ' if recorded else ''}{what} ({', '.join(words)})"


def _parameters(config: RunConfig) -> int | None:
    return None if config.engine == "fake" else estimate.count_parameters(config.model)


def _stored(path: Path) -> list[dict[str, Any]]:
    from dces_core.bench.rows import stored

    if not path.is_file():
        raise UserError(f"bench = {str(path)!r} is not a file; write one with dces bench round --out FILE.")
    return stored(path)
