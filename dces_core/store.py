"""The only module that knows file names: commit a stage, read a run, find runs, follow events. study_store.py adds those of studies.

    runs/NAME-YYYYMMDD-HHMMSS/
      run.json       settings, versions, machine: written once
      status.json    state, pid, heartbeat, progress: replaced atomically
      events.jsonl   spans and notes, append-only
      log.txt        what the worker printed
      actions.jsonl  rules that fired and what was done (dces watch), append-only
      labels.json    label, note and tags that people gave it: replaced atomically
      round-03/dces/select/{samples.parquet, ..., _done.json}
      round-00/shared/...        round 0 and the first pool belong to all arms

A stage exists if and only if its `_done.json` parses and names files that are there. It is written into a
temporary directory, synced, and renamed, so a reader never sees half of one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISLNK, S_ISREG
from typing import Any

import polars as pl

from dces_core import machine, records
from dces_core.config import NAME, RunConfig, parse
from dces_core.config import SHIPPED as SHIPPED
from dces_core.errors import RunFailed, UserError, quoted
from dces_core.reading import fitted, is_file, json_lines, read_bytes
from dces_core.records import FRAME_FACTS, LOOP_STATE, LOSS, MANIFEST, MAP_FACTS, PARENT, SCHEMA_VERSION, STATUS, is_span, table
from dces_core.stage import Draft, Stage, disk_error, entries, link, read_json, sha256_of, sweep, sync, write_json, write_sealed

SHARED = "shared"
WEIGHTS = "model.safetensors"
MAX_EVENTS_BYTES = 256 * 2**20
LOG_BYTES = 64_000
PRIVATE = 0o700  # texts and settings of a run are nobody else's business
STAGES = ("generate", "select", "train", "evaluate", "map")


def runs_root() -> Path:
    """Where runs live: $DCES_RUNS, or runs/ below the working directory."""
    return Path(os.environ.get("DCES_RUNS") or "runs").absolute()


def cache_root() -> Path:
    """Where converted weights live: $DCES_CACHE, or the user's cache directory."""
    base = os.environ.get("DCES_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dces"


def watched(path: Path) -> Path:
    """actions.jsonl of a watched directory that is no run of ours: below the runs, hidden."""
    return runs_root() / ".watch" / f"{path.name[-40:]}-{hashlib.sha256(bytes(path)).hexdigest()[:12]}" / "actions.jsonl"


def recorded_root() -> Path:
    """Runs that ship with the project."""
    return SHIPPED / "recorded"


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
        return fitted(read_json(self.path / "run.json"), MANIFEST)

    @property
    def config(self) -> RunConfig:
        """The run's settings. Raises UserError where the run is unreadable."""
        manifest = self.manifest
        if "config" not in manifest:
            raise UserError(f"run {self.id!r} has no readable run.json; delete the directory or restore the file.")
        records.check_schema(f"run {self.id!r}", manifest.get("schema"))
        return parse(manifest["config"])

    @property
    def parent(self) -> dict[str, Any]:
        """Where its first rounds come from (branch.py): run, kind, round, arms, changed; empty for a run of its own."""
        return fitted(self.manifest.get("parent"), PARENT)

    @property
    def threads(self) -> int:
        """CPU threads of its worker: those it was created with, so that a resumed run gives the same digits."""
        return self.config.threads or int((self.manifest.get("cpu") or {}).get("threads") or machine.threads())

    @property
    def recorded(self) -> bool:
        """Whether the run ships with the project: it can be read only."""
        return self.path.parent == recorded_root()

    @property
    def bytes(self) -> int:
        """Disk use."""
        return sum(facts.st_size for _, facts in entries(self.path) if S_ISREG(facts.st_mode))

    @property
    def status_path(self) -> Path:
        """status.json."""
        return self.path / "status.json"

    @property
    def events_path(self) -> Path:
        """events.jsonl."""
        return self.path / "events.jsonl"

    @property
    def actions_path(self) -> Path:
        """actions.jsonl; of a run that can only be read it lies elsewhere."""
        return watched(self.path) if self.recorded else self.path / "actions.jsonl"

    @property
    def log_path(self) -> Path:
        """log.txt."""
        return self.path / "log.txt"

    @property
    def labels_path(self) -> Path:
        """labels.json."""
        return self.path / "labels.json"

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
        return fitted(read_json(self.status_path), STATUS)

    def refuse_links(self) -> None:
        """Raise UserError where a symbolic link in the directory could lead what is written elsewhere."""
        for path, facts in entries(self.path):
            if S_ISLNK(facts.st_mode):
                where = path.relative_to(self.path)
                raise UserError(f"run {self.id!r} has a symbolic link, {str(where)!r}: it can be read only; put a copy of the file there.")

    def write_status(self, value: dict[str, Any]) -> None:
        """Replace status.json."""
        write_json(self.status_path, value)

    # stages ---------------------------------------------------------------------------------------------------------

    def stage(self, round_: int, arm: str, name: str) -> Stage:
        """The stage of a round of an arm (`shared` for what belongs to all)."""
        return Stage(self.path / f"round-{round_:02d}/{arm}/{name}")

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
                sync(path)
            seconds = round(time.perf_counter() - started, 3)
            write_sealed(temporary / "_done.json", {"inputs": inputs, "files": files, "seconds": seconds, **facts})
            shutil.rmtree(stage.path, ignore_errors=True)
            os.replace(temporary, stage.path)
            sync(stage.path.parent)
        except Exception as error:
            why = disk_error(error)
            if why is None:
                raise
            raise RunFailed(f"cannot write {stage.path}: {why}; free space or fix the disk, then resume.") from error

    def adopt(self, stage: Stage, source: Run, inputs: str) -> None:
        """Take over a finished stage of another run: its files as links, and a `_done.json` that says from where.

        `inputs`: the hash under which this run will look for it. Weights that are gone count as deleted. Raises UserError where anything
        else is gone.
        """
        done = stage.done
        if done is None:
            raise UserError(f"run {source.id!r} has lost {stage.path.relative_to(source.path)}; launch it again.")
        target = self.path / stage.path.relative_to(source.path)
        target.mkdir(parents=True)
        for name, entry in done["files"].items():
            try:
                if not entry.get("pruned"):
                    link(stage.file(name), target / name)
            except FileNotFoundError:
                if name != WEIGHTS:
                    raise UserError(f"run {source.id!r} has lost {stage.file(name).relative_to(source.path)}; launch it again.") from None
                entry["pruned"] = True
        write_sealed(target / "_done.json", {**done, "inputs": inputs, "taken_from": {"run": source.id, "inputs": done["inputs"]}})

    def prune(self, stage: Stage, name: str = WEIGHTS) -> None:
        """Delete a bulky file of a finished stage and say so in its `_done.json`; its hash stays."""
        done = stage.done
        if done is None or name not in done["files"]:
            return
        if not done["files"][name].get("pruned"):
            done["files"][name]["pruned"] = True
            write_sealed(stage.path / "_done.json", done)
        (stage.path / name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what an interrupted worker left."""
        sweep(self.path)

    # what pages and exports read ------------------------------------------------------------------------------------

    def finished(self, arm: str, name: str = "evaluate") -> list[int]:
        """Rounds of an arm whose stage is done, ascending; round 0 is shared."""
        return [r for r in self.rounds_begun() if self.of(r, arm, name).done is not None]

    def rounds_begun(self) -> list[int]:
        """Rounds that have a directory, ascending."""
        found = (path.name.removeprefix("round-") for path in self.path.glob("round-*"))
        return sorted({int(r) for r in found if r.isdecimal() and f"{int(r[:9]):02d}" == r and int(r) <= self.config.rounds})

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
        coords = self.stage(round_, arm, "map").frame("coords").unique("id", keep="first", maintain_order=True)
        return frame.join(coords, on="id", how="left", maintain_order="left")

    def probes(self) -> pl.DataFrame:
        """PROBES of all finished rounds; round 0 repeats under each arm."""
        return self._of_all_rounds("probes")

    def next_tokens(self) -> pl.DataFrame:
        """NEXT_TOKENS of all finished rounds; round 0 repeats under each arm."""
        return self._of_all_rounds("next_tokens")

    def _of_all_rounds(self, name: str) -> pl.DataFrame:
        parts = []
        for arm in self.config.arms:
            for round_ in self.finished(arm):
                parts.append(table(name, self.of(round_, arm, "evaluate").frame(name).with_columns(pl.lit(arm).alias("arm"))))
        return pl.concat([table(name, []), *parts])

    def generations(self, arm: str, round_: int) -> pl.DataFrame:
        """GENERATIONS of one evaluation."""
        return self.of(round_, arm, "evaluate").frame("generations")

    def reliability(self, arm: str, round_: int) -> pl.DataFrame:
        """RELIABILITY of one evaluation."""
        return self.of(round_, arm, "evaluate").frame("reliability")

    def entropy(self, arm: str, round_: int) -> pl.DataFrame:
        """ENTROPY of one evaluation."""
        return self.of(round_, arm, "evaluate").frame("entropy")

    def controller(self, arm: str, round_: int) -> dict[str, Any]:
        """The feedback loop's state in one round: signal, set-point, error, edge share, quotas, counts, reasons."""
        return fitted(self.stage(round_, arm, "select").json("controller"), LOOP_STATE)

    def loss(self, arm: str, round_: int) -> dict[str, Any]:
        """What training says of one round: examples, trained tokens, loss of every step; empty where it is not whole."""
        value = fitted(self.stage(round_, arm, "train").json("loss"), LOSS)
        return value if all(value.get(name) is not None for name in LOSS) else {}

    def map_facts(self, arm: str, round_: int) -> dict[str, Any]:
        """Dispersion, hull area and so on of one round's map."""
        return fitted(self.stage(round_, arm, "map").json("facts"), MAP_FACTS)

    def frame(self) -> pl.DataFrame:
        """FRAME: the real references, the ground of every map."""
        return self.stage(1, SHARED, "map").frame("frame")

    def frame_facts(self) -> dict[str, Any]:
        """How the frame was made: method, parameters, fit set, n, seed, axis ranges `x`, `y`."""
        return fitted(self.stage(1, SHARED, "map").json("frame"), FRAME_FACTS)

    def events(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Events from a byte offset on, and the offset to go on from; a torn last line waits."""
        found, offset = json_lines(self.events_path, MAX_EVENTS_BYTES, offset)
        return [event for event in found if event.get("kind") != "span" or is_span(event)], offset

    def log_tail(self, lines: int = 20) -> list[str]:
        """The last lines of the log."""
        try:
            offset = max(0, self.log_path.stat().st_size - LOG_BYTES)
            return read_bytes(self.log_path, LOG_BYTES, offset).decode("utf-8", "replace").splitlines()[-lines:]
        except OSError:
            return []


KEPT_IN_RECORDS = (
    "samples", "coords", "frame", "facts", "metrics", "reliability", "entropy", "probes", "next_tokens", "generations",
    "controller", "parameters", "loss",
)  # fmt: skip


def record(run: Run, name: str) -> Run:
    """Copy what pages and exports read of a finished run to data/recorded/NAME: tables, no weights, tokens or embeddings.

    Raises UserError when the run is not done or the name is taken.
    """
    target = recorded_root() / name
    if run.status().get("state") != "done":
        raise UserError(f"run {run.id!r} is not done; only finished runs are recorded.")
    if not NAME.fullmatch(name) or target.exists():
        raise UserError(f"name = {name!r} is taken or not a plain name; choose another, or delete data/recorded/{name}.")
    for path in sorted(run.path.glob("round-*/*/*/*")):
        if path.stem in KEPT_IN_RECORDS or path.name == "_done.json":
            copy = target / path.relative_to(run.path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    shutil.copyfile(run.path / "run.json", target / "run.json")
    shutil.copyfile(run.events_path, target / run.events_path.name)
    kept = ("state", "round", "arm", "stage", "device", "error")
    write_json(target / "status.json", {key: run.status().get(key) for key in kept})
    return Run(target)


def create(config: RunConfig, manifest: dict[str, Any], directory: Path | None = None) -> Run:
    """Make a run directory. Raises UserError when it exists already."""
    stamp = datetime.now(UTC)
    base = directory or runs_root() / f"{config.name}-{stamp:%Y%m%d-%H%M%S}"
    for attempt in range(100):
        path = base if attempt == 0 else base.with_name(f"{base.name}-{attempt + 1}")
        try:
            path.mkdir(mode=PRIVATE, parents=True)
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
    try:
        write_sealed(path / "run.json", {**body, "config_hash": config.digest(), **manifest})
    except OSError as error:
        shutil.rmtree(path, ignore_errors=True)
        raise UserError(f"the run directory {path} cannot be written: {error.strerror or error}; free space, or set DCES_RUNS.") from None
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
    if os.sep in run_id and is_file(path / "run.json"):
        return Run(path.absolute())
    known = ", ".join(run.id for run in discover()[:5]) or "none yet"
    raise UserError(f"run = {quoted(run_id)} is not here; the newest runs are: {known}.")
