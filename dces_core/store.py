"""The only module that knows file names: commit a stage, read a run, find runs, follow events.

    runs/NAME-YYYYMMDD-HHMMSS/
      run.json       settings, versions, machine: written once
      status.json    state, pid, heartbeat, progress: replaced atomically
      events.jsonl   spans and notes, append-only
      log.txt        what the worker printed
      round-03/dces/select/{samples.parquet, ..., _done.json}
      round-00/shared/...        round 0 and the first pool belong to all arms

A stage exists if and only if its `_done.json` parses and names files that are there. It is written into a
temporary directory, synced, and renamed, so a reader never sees half of one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from dces_core.config import NAME, RunConfig, parse
from dces_core.config import SHIPPED as SHIPPED
from dces_core.errors import RunFailed, UserError
from dces_core.records import SCHEMA_VERSION, TABLES, table

SHARED = "shared"
WEIGHTS = "model.safetensors"
STAGES = ("generate", "select", "train", "evaluate", "map")


def runs_root() -> Path:
    """Where runs live: $DCES_RUNS, or runs/ below the working directory."""
    return Path(os.environ.get("DCES_RUNS") or "runs").absolute()


def cache_root() -> Path:
    """Where converted weights live: $DCES_CACHE, or the user's cache directory."""
    base = os.environ.get("DCES_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dces"


def recorded_root() -> Path:
    """Runs that ship with the project."""
    return SHIPPED / "recorded"


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as handle:
        json.dump(value, handle, indent=1, sort_keys=True, allow_nan=False)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> Any | None:
    """A JSON file's value, None where it is absent or torn."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class Stage:
    """One directory of a run. `digest` identifies its content; None while it does not exist."""

    path: Path

    @property
    def done(self) -> dict[str, Any] | None:
        """What `_done.json` says, or None."""
        value = read_json(self.path / "_done.json")
        return value if isinstance(value, dict) and "files" in value else None

    def valid(self, inputs: str, need: tuple[str, ...] = ()) -> bool:
        """Finished, from these inputs, with every kept file (and every one in `need`) at its recorded size."""
        done = self.done
        if done is None or done["inputs"] != inputs:
            return False
        for name, entry in done["files"].items():
            path = self.path / name
            if (name not in need and entry.get("pruned")) or (path.is_file() and path.stat().st_size == entry["bytes"]):
                continue
            return False
        return all(name in done["files"] for name in need)

    @property
    def digest(self) -> str:
        """sha256 over the names and hashes of the stage's files; raises if the stage is not done."""
        done = self.done
        assert done is not None, f"{self.path} is not done"
        body = {name: entry["sha256"] for name, entry in done["files"].items()}
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    def file(self, name: str) -> Path:
        """Path of a file of this stage."""
        return self.path / name

    def json(self, name: str) -> Any | None:
        """A JSON file of the stage, None where absent."""
        return read_json(self.path / f"{name}.json")

    def frame(self, name: str) -> pl.DataFrame:
        """A table of the stage, empty with the right columns where it is absent or unreadable."""
        path = self.path / f"{name}.parquet"
        schema = TABLES.get(name, {})
        try:
            return pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError):
            return pl.DataFrame(schema=schema)


class Draft:
    """A stage in the making: a temporary directory beside its target."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, int] = {}

    def table(self, name: str, rows: list[dict[str, object]] | pl.DataFrame) -> None:
        """Write a table; its schema is enforced where records.py has one."""
        frame = table(name, rows) if name in TABLES else rows
        assert isinstance(frame, pl.DataFrame)
        frame.write_parquet(self.path / f"{name}.parquet", compression="zstd")
        self.rows[f"{name}.parquet"] = frame.height

    def json(self, name: str, value: Any) -> None:
        """Write a JSON file."""
        write_json(self.path / f"{name}.json", value)

    def file(self, name: str) -> Path:
        """Path for a file that the caller writes itself."""
        return self.path / name


class Run:
    """One run directory. Readers take no lock; only the worker writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def id(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def manifest(self) -> dict[str, Any]:
        """What run.json says; empty where it is unreadable."""
        value = read_json(self.path / "run.json")
        return value if isinstance(value, dict) else {}

    @property
    def config(self) -> RunConfig:
        """The run's settings. Raises UserError where the run is unreadable."""
        manifest = self.manifest
        if "config" not in manifest:
            raise UserError(f"run {self.id!r} has no readable run.json; delete the directory or restore the file.")
        if manifest.get("schema") != SCHEMA_VERSION:
            raise UserError(f"run {self.id!r} has schema {manifest.get('schema')}, this program reads {SCHEMA_VERSION}.")
        return parse(manifest["config"])

    @property
    def recorded(self) -> bool:
        """Whether the run ships with the project: it can be read only."""
        return self.path.parent == recorded_root()

    @property
    def bytes(self) -> int:
        """Disk use."""
        return sum(entry.stat().st_size for entry in self.path.rglob("*") if entry.is_file())

    @property
    def status_path(self) -> Path:
        """status.json."""
        return self.path / "status.json"

    @property
    def events_path(self) -> Path:
        """events.jsonl."""
        return self.path / "events.jsonl"

    @property
    def log_path(self) -> Path:
        """log.txt."""
        return self.path / "log.txt"

    @property
    def lock_path(self) -> Path:
        """Held by the worker for its lifetime."""
        return self.path / "worker.lock"

    @property
    def stop_path(self) -> Path:
        """Its presence asks the worker to stop."""
        return self.path / "stop"

    def status(self) -> dict[str, Any]:
        """What status.json says; empty where absent."""
        value = read_json(self.status_path)
        return value if isinstance(value, dict) else {}

    def write_status(self, value: dict[str, Any]) -> None:
        """Replace status.json."""
        write_json(self.status_path, value)

    # stages ---------------------------------------------------------------------------------------------------------

    def stage(self, round_: int, arm: str, name: str) -> Stage:
        """The stage of a round of an arm (`shared` for what belongs to all)."""
        return Stage(self.path / f"round-{round_:02d}" / arm / name)

    @contextmanager
    def commit(self, stage: Stage, inputs: str, **facts: Any) -> Iterator[Draft]:
        """Write a stage whole or not at all. `facts` go into `_done.json`. Raises RunFailed when the disk refuses."""
        temporary = stage.path.with_name(f".tmp-{stage.path.name}")
        started = time.perf_counter()
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            draft = Draft(temporary)
            yield draft
            files = {}
            for path in sorted(temporary.iterdir()):
                entry: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
                if path.name in draft.rows:
                    entry["rows"] = draft.rows[path.name]
                files[path.name] = entry
                _sync(path)
            seconds = round(time.perf_counter() - started, 3)
            write_json(temporary / "_done.json", {"inputs": inputs, "files": files, "seconds": seconds, **facts})
            shutil.rmtree(stage.path, ignore_errors=True)
            os.replace(temporary, stage.path)
            _sync(stage.path.parent)
        except OSError as error:
            raise RunFailed(f"cannot write {stage.path}: {error.strerror or error}; free space or fix the disk, then resume.") from error

    def prune(self, stage: Stage, name: str = WEIGHTS) -> None:
        """Delete a bulky file of a finished stage and say so in its `_done.json`; its hash stays."""
        done = stage.done
        if done is None or name not in done["files"] or done["files"][name].get("pruned"):
            return
        done["files"][name]["pruned"] = True
        write_json(stage.path / "_done.json", done)
        (stage.path / name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what an interrupted worker left."""
        for leftover in self.path.glob("round-*/*/.tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    # what pages and exports read ------------------------------------------------------------------------------------

    def finished(self, arm: str, name: str = "evaluate") -> list[int]:
        """Rounds of an arm whose stage is done, ascending; round 0 is shared."""
        return [r for r in range(self.config.rounds + 1) if self.of(r, arm, name).done is not None]

    def of(self, round_: int, arm: str, name: str) -> Stage:
        """Like `stage`, but finds what all arms share."""
        own = self.stage(round_, arm, name)
        return own if own.done is not None else self.stage(round_, SHARED, name)

    def metrics(self) -> pl.DataFrame:
        """All metrics so far, METRICS columns; round 0 repeats under each arm."""
        config, parts = self.config, []
        for arm in config.arms:
            for round_ in self.finished(arm):
                frame = self.of(round_, arm, "evaluate").frame("metrics")
                parts.append(frame.with_columns(pl.lit(arm).alias("arm")))
        return pl.concat([table("metrics", []), *parts]).sort("arm", "round", "test_set", "metric", maintain_order=True)

    def samples(self, arm: str, round_: int) -> pl.DataFrame:
        """SAMPLES of one round of one arm, with `x`, `y` where the map is done."""
        frame = self.stage(round_, arm, "select").frame("samples")
        return frame.join(self.stage(round_, arm, "map").frame("coords"), on="id", how="left", maintain_order="left")

    def probes(self) -> pl.DataFrame:
        """PROBES of all finished rounds; round 0 repeats under each arm."""
        parts = []
        for arm in self.config.arms:
            for round_ in self.finished(arm):
                parts.append(self.of(round_, arm, "evaluate").frame("probes").with_columns(pl.lit(arm).alias("arm")))
        return pl.concat([table("probes", []), *parts])

    def generations(self, arm: str, round_: int) -> pl.DataFrame:
        """GENERATIONS of one evaluation."""
        return self.of(round_, arm, "evaluate").frame("generations")

    def reliability(self, arm: str, round_: int) -> pl.DataFrame:
        """RELIABILITY of one evaluation."""
        return self.of(round_, arm, "evaluate").frame("reliability")

    def controller(self, arm: str, round_: int) -> dict[str, Any]:
        """The feedback loop's state in one round: signal, set-point, error, edge share, quotas, counts, reasons."""
        value = self.stage(round_, arm, "select").json("controller")
        return value if isinstance(value, dict) else {}

    def frame(self) -> pl.DataFrame:
        """FRAME: the real references, the ground of every map."""
        return self.stage(1, SHARED, "map").frame("frame")

    def frame_facts(self) -> dict[str, Any]:
        """How the frame was made: method, parameters, fit set, n, seed, axis ranges `x`, `y`."""
        value = self.stage(1, SHARED, "map").json("frame")
        return value if isinstance(value, dict) else {}

    def events(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Events from a byte offset on, and the offset to go on from; a torn last line waits."""
        try:
            with self.events_path.open("rb") as handle:
                handle.seek(offset)
                data = handle.read()
        except OSError:
            return [], offset
        whole = data[: data.rfind(b"\n") + 1]
        events = []
        for line in whole.splitlines():
            try:
                events.append(json.loads(line))
            except ValueError:
                continue
        return events, offset + len(whole)

    def log_tail(self, lines: int = 20) -> list[str]:
        """The last lines of the log."""
        try:
            with self.log_path.open("rb") as handle:
                handle.seek(max(0, self.log_path.stat().st_size - 64_000))
                return handle.read().decode("utf-8", "replace").splitlines()[-lines:]
        except OSError:
            return []


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def create(config: RunConfig, manifest: dict[str, Any], directory: Path | None = None) -> Run:
    """Make a run directory. Raises UserError when it exists already."""
    stamp = datetime.now(UTC)
    base = directory or runs_root() / f"{config.name}-{stamp:%Y%m%d-%H%M%S}"
    for attempt in range(100):
        path = base if attempt == 0 else base.with_name(f"{base.name}-{attempt + 1}")
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            if directory is not None:
                raise UserError(
                    f"out = {str(directory)!r} exists already: resume it (dces resume), choose another --out, or delete it."
                ) from None
        except OSError as error:
            raise UserError(f"the run directory {path} cannot be made: {error.strerror}; choose another --out or DCES_RUNS.") from None
    else:
        raise UserError(f"no free name for a run directory near {base}; choose --out.")
    body = {"schema": SCHEMA_VERSION, "created": stamp.isoformat(timespec="seconds"), "config": config.model_dump(mode="json")}
    write_json(path / "run.json", {**body, "config_hash": config.digest(), **manifest})
    return Run(path)


def discover(recorded: bool = True) -> list[Run]:
    """All runs, newest first, then those that ship with the project."""
    found = []
    for root in [runs_root(), *([recorded_root()] if recorded else [])]:
        paths = [path for path in root.iterdir() if (path / "run.json").is_file()] if root.is_dir() else []
        found += [Run(path) for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)]
    return found


def find(run_id: str) -> Run:
    """A run by id (or by path, on the command line). Raises UserError when there is none."""
    for root in (runs_root(), recorded_root()):
        if NAME.fullmatch(run_id) and (root / run_id / "run.json").is_file():
            return Run(root / run_id)
    path = Path(run_id)
    if os.sep in run_id and (path / "run.json").is_file():
        return Run(path.absolute())
    known = ", ".join(run.id for run in discover()[:5]) or "none yet"
    raise UserError(f"run = {run_id!r} is not here; the newest runs are: {known}.")
