"""File names of a study, beside store.py's of a run: finished units as Parquet, and where unfinished ones are made.

    OUT/                          goes from machine to machine: tables only
      study.json                  the study and its recipe, resolved
      units/seed-0/plain/         TABLES as .parquet; unit.json, written last
    runs/studies/NAME/            stays on one machine
      worker.lock                 one `dces study` at a time
      seed-0/plain/               an ordinary run, deleted once its unit is written
      seed-0/.shared/             what all arms of the seed share: round 0, the first pool, the reference

A unit is one arm of one seed. It is written whole or not at all, and its files are checked against their hashes when it is read.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from dces_core.config import NAME, RunConfig, parse
from dces_core.errors import UserError, quoted
from dces_core.reading import all_of, is_count, is_file, is_size, is_text
from dces_core.records import table
from dces_core.stage import link, read_json, read_table, sha256_of, sync, write_json
from dces_core.store import SHARED, Run, recorded_root, runs_root

SCHEMA_VERSION = 1
SEED = re.compile("[0-9]{1,10}")
BUDGET = {"pool", "n", "regime", "planned_steps", "optimiser_steps", "trained_tokens", "decoding"}
TABLES = ("metrics", "reliability", "entropy", "probes", "next_tokens", "controller", "texts")


@dataclass(frozen=True)
class Unit:
    """One finished arm of one seed."""

    path: Path
    facts: dict[str, Any]  # unit.json

    @property
    def arm(self) -> str:
        """Its arm."""
        return str(self.facts["arm"])

    @property
    def seed(self) -> int:
        """Its seed."""
        return int(self.facts["seed"])

    def frame(self, name: str) -> pl.DataFrame:
        """One of TABLES. Raises UserError where its columns are not those of that table."""
        try:
            frame = read_table(self.path / f"{name}.parquet")
            known = table(name, frame)
        except (OSError, pl.exceptions.PolarsError):
            raise UserError(f"unit {self.path} is damaged: {name}.parquet cannot be read; restore it, or delete the unit.") from None
        return known.with_columns(frame.select(pl.exclude(known.columns)).get_columns())


class Output:
    """A study's output directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def facts(self) -> dict[str, Any]:
        """What study.json says; empty where there is none yet."""
        value = read_json(self.path / "study.json")
        return value if isinstance(value, dict) else {}

    def config(self) -> RunConfig:
        """The settings that all units share but for arm and seed. Raises UserError where study.json is unreadable."""
        facts = self.facts()
        if facts.get("schema") != SCHEMA_VERSION or "config" not in facts:
            raise UserError(f"study {str(self.path)!r} has no readable study.json of schema {SCHEMA_VERSION}; run dces study first.")
        return parse(facts["config"])

    def write_study(self, study: dict[str, Any], config: RunConfig) -> None:
        """Say what the study is. Raises UserError where the directory belongs to another study or cannot be written."""
        said = self.facts().get("study")
        name = said.get("name", study["name"]) if isinstance(said, dict) else study["name"]
        if name != study["name"]:
            raise UserError(f"out = {str(self.path)!r} belongs to study {name!r}, not {study['name']!r}; choose another --out.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            body = {"schema": SCHEMA_VERSION, "study": study, "config": config.model_dump(mode="json")}
            write_json(self.path / "study.json", body)
        except OSError as error:
            raise UserError(f"out = {str(self.path)!r} cannot be written: {error.strerror}; choose another --out.") from None

    def unit(self, seed: int, arm: str, config: RunConfig) -> Unit | None:
        """The finished unit, None where there is none.

        Raises UserError where it is damaged, or was made with other settings than `config`.
        """
        path = self._unit_path(seed, arm)
        if not path.exists():
            return None
        facts = read_json(path / "unit.json")
        if not isinstance(facts, dict) or facts.get("schema") != SCHEMA_VERSION or not _whole(facts):
            raise UserError(f"unit {path} has no readable unit.json of schema {SCHEMA_VERSION}; restore it, or delete the unit.")
        if facts.get("digest") != config.digest():
            raise UserError(
                f"unit {path} was made with other settings than the study now has ({_changes(facts.get('config') or {}, config)}); "
                "choose another --out, restore the study's settings, or delete the unit to compute it again."
            )
        for name, entry in facts["files"].items():
            if "/" in name or not (path / name).is_file() or sha256_of(path / name) != entry["sha256"]:
                raise UserError(f"unit {path} is damaged: {name} is not as it was written; restore it, or delete the unit.")
        return Unit(path, facts)

    def units(self) -> list[Unit]:
        """All finished units of the study, by seed and arm. Raises UserError as `unit` does."""
        config, found = self.config(), []
        for path in sorted(self.path.glob("units/seed-*/*")):
            seed = path.parent.name.removeprefix("seed-")
            if SEED.fullmatch(seed) and path.is_dir() and not path.name.startswith("."):
                unit = self.unit(int(seed), path.name, config.model_copy(update={"seed": int(seed)}))
                found += [unit] if unit else []
        return sorted(found, key=lambda unit: (unit.seed, unit.arm))

    def write_unit(self, run: Run, facts: dict[str, Any]) -> None:
        """Write a finished one-arm run as a unit. Raises UserError when the disk refuses."""
        (arm,), seed = run.config.arms, run.config.seed
        target = self._unit_path(seed, arm)
        temporary = target.with_name(f".tmp-{arm}")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            files = {}
            for name, frame in unit_tables(run).items():
                path = temporary / f"{name}.parquet"
                frame.write_parquet(path, compression="zstd")
                files[path.name] = {"rows": frame.height, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
                sync(path)
            write_json(temporary / "unit.json", {"schema": SCHEMA_VERSION, "arm": arm, "seed": seed, "files": files, **facts})
            os.replace(temporary, target)
            sync(target.parent)
        except OSError as error:
            raise UserError(f"unit {target} cannot be written: {error.strerror or error}; its run is kept, start again.") from None

    def take(self, unit: Unit) -> None:
        """Copy a finished unit of another output in. Raises UserError when the disk refuses."""
        target = self._unit_path(unit.seed, unit.arm)
        temporary = target.with_name(f".tmp-{unit.arm}")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(unit.path, temporary)
            for path in temporary.iterdir():
                sync(path)
            os.replace(temporary, target)
            sync(target.parent)
        except OSError as error:
            raise UserError(f"unit {target} cannot be written: {error.strerror or error}; {unit.path} is kept, start again.") from None

    def _unit_path(self, seed: int, arm: str) -> Path:
        return self.path / "units" / f"seed-{seed}" / arm


def unit_at(path: Path) -> Unit | None:
    """The finished unit in a directory, None where there is none. Raises UserError as `Output.unit` does."""
    seed = path.parent.name.removeprefix("seed-")
    if not is_file(path / "unit.json") or not SEED.fullmatch(seed):
        return None
    output = Output(path.parents[2])
    return output.unit(int(seed), path.name, output.config().model_copy(update={"seed": int(seed)}))


def _whole(facts: dict[str, Any]) -> bool:
    """Whether unit.json has what readers take for granted."""
    files, cpu = facts.get("files"), facts.get("cpu")
    named = isinstance(files, dict) and all(isinstance(entry, dict) and "sha256" in entry for entry in files.values())
    here = (
        isinstance(cpu, dict)
        and {"model", "threads", "flags", "device"} <= cpu.keys()
        and (cpu["flags"] is None or all_of(is_text)(cpu["flags"]))
    )
    objects = all(isinstance(facts.get(name), dict) for name in ("tests", "budget"))
    counts = is_text(facts.get("arm")) and is_count(facts.get("seed")) and is_size(facts.get("seconds"))
    return named and here and objects and counts and facts["budget"].keys() == BUDGET


def unit_tables(run: Run) -> dict[str, pl.DataFrame]:
    """TABLES of a finished one-arm run; all have the columns arm and seed."""
    (arm,), config = run.config.arms, run.config
    seed = pl.lit(config.seed, dtype=pl.Int64).alias("seed")

    def every(of: Callable[[str, int], pl.DataFrame]) -> pl.DataFrame:
        own = pl.lit(arm).alias("arm")
        return pl.concat([of(arm, r).with_columns(own, seed, pl.lit(r, dtype=pl.Int32).alias("round")) for r in run.finished(arm)])

    return {
        "metrics": run.metrics(),
        "reliability": every(run.reliability),
        "entropy": every(run.entropy),
        "probes": run.probes().with_columns(seed),
        "next_tokens": run.next_tokens().with_columns(seed),
        "controller": table("controller", _controller_rows(run, arm)),
        "texts": table("texts", every(run.generations)),
    }


def _controller_rows(run: Run, arm: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for round_ in run.finished(arm, "select"):
        for quantity, value in run.controller(arm, round_).items():
            number = isinstance(value, bool | int | float)
            text = None if number or value is None else json.dumps(value, ensure_ascii=False)
            row = {"arm": arm, "seed": run.config.seed, "round": round_, "quantity": quantity}
            rows.append({**row, "value": float(value) if number else None, "text": text})
    return rows


def _changes(theirs: dict[str, Any], config: RunConfig) -> str:
    """Settings in which a unit differs from the wanted ones, as far as that can be told."""
    ours, found = config.model_dump(mode="json", exclude={"name", "note", "keep", "device", "threads", "arms"}), []
    for key, value in ours.items():
        other = theirs.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            found += [f"{key}.{name}" for name in sorted({*value, *other}) if value.get(name) != other.get(name)]
        elif value != other:
            found.append(key)
    return ", ".join(found[:5]) or "a setting is gone"


# where units are made ---------------------------------------------------------------------------------------------------


class Workshop:
    """A study's runs on this machine."""

    def __init__(self, study: str) -> None:
        self.path = runs_root() / "studies" / study

    @property
    def lock_path(self) -> Path:
        """Held by the one process that works on the study."""
        self.path.mkdir(parents=True, exist_ok=True)
        return self.path / "worker.lock"

    def run_path(self, seed: int, arm: str) -> Path:
        """Where the unit's run is made."""
        return self._seed_path(seed) / arm

    def run(self, seed: int, arm: str) -> Run | None:
        """The unit's run, None where it was not begun."""
        path = self.run_path(seed, arm)
        return Run(path) if (path / "run.json").exists() else None

    def lend(self, run: Run) -> None:
        """Put what the seed's arms share, where it was made before, into a fresh run. A stage from other inputs is made again."""
        kept = self._seed_path(run.config.seed) / ".shared"
        if kept.is_dir():
            shutil.copytree(kept, run.path, copy_function=link, dirs_exist_ok=True)

    def keep(self, run: Run) -> None:
        """Keep what the seed's arms share, for the next of them; nothing is written where all of it is kept already."""
        kept = self._seed_path(run.config.seed) / ".shared"
        stages = [path.parent.relative_to(run.path) for path in run.path.glob(f"round-*/{SHARED}/*/_done.json")]
        if stages and all((kept / stage / "_done.json").is_file() for stage in stages):
            return
        temporary = kept.with_name(".shared-new")
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in sorted(run.path.glob(f"round-*/{SHARED}")):
            ignored = shutil.ignore_patterns(".tmp-*")
            shutil.copytree(folder, temporary / folder.relative_to(run.path), copy_function=link, ignore=ignored)
        shutil.rmtree(kept, ignore_errors=True)
        if temporary.is_dir():
            os.replace(temporary, kept)

    def lends(self, seed: int) -> bool:
        """Whether what the seed's arms share was made before."""
        return (self._seed_path(seed) / ".shared").is_dir()

    def forget(self, seed: int, arm: str) -> None:
        """Delete the unit's run."""
        shutil.rmtree(self.run_path(seed, arm), ignore_errors=True)

    def close(self, seed: int, keep_runs: bool) -> None:
        """The seed is complete: delete what its arms shared, and its runs unless they are wanted."""
        shutil.rmtree(self._seed_path(seed) / ".shared" if keep_runs else self._seed_path(seed), ignore_errors=True)

    def _seed_path(self, seed: int) -> Path:
        return self.path / f"seed-{seed}"


class SharedWorkshop(Workshop):
    """A study's runs on many machines: ordinary runs of one shared root, so that every page shows them.

    ROOT/NAME-s0-plain/ is a run; ROOT/studies/NAME/ holds what arms share, and `finished`, where units wait to be fetched.
    """

    def __init__(self, study: str, root: Path) -> None:
        self.root, self.study = root, study
        self.path = root / "studies" / study

    @property
    def finished(self) -> Output:
        """Units that no one fetched yet."""
        return Output(self.path / "finished")

    def run_path(self, seed: int, arm: str) -> Path:
        """Where the unit's run is made."""
        return self.root / f"{self.study}-s{seed}-{arm}"

    def fetched(self, unit: Unit) -> None:
        """The unit is where it belongs: delete the copy that waited."""
        shutil.rmtree(unit.path, ignore_errors=True)


def recorded_studies() -> Path:
    """Outputs of studies that ship with the project."""
    return recorded_root() / "studies"


def find_output(name: str) -> Output:
    """A study's output by directory, or by the name of a recorded study. Raises UserError when there is none."""
    candidates = [recorded_studies() / name] if NAME.fullmatch(name) else []
    for path in [*candidates, Path(name)]:
        if is_file(path / "study.json"):
            return Output(path.absolute())
    known = sorted(path.parent.name for path in recorded_studies().glob("*/study.json"))
    raise UserError(
        f"study = {quoted(name)} has no output here; give the directory of one (with study.json), or a recorded one of: "
        f"{', '.join(known) or 'none yet'}."
    )
