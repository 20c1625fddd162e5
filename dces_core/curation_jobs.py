"""Curations that the page starts. A curation is a job like a question (ask.py): a folder, a process of its own, the device's lock.

    runs/.jobs/curation-YYYYMMDD-HHMMSS-microseconds/
      curate.json      the options
      pool.*, reference.*, before.json   what was uploaded; gone when the job is over
      selected.jsonl, table.parquet, state.json, report.json   the result; report.json is written last
      status.json, events.jsonl, log.txt, stop: as a run's

One curation is made at a time, the newest KEPT stay. The work is in curation.py; this module is what the page needs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import polars as pl
from filelock import FileLock
from pydantic import Field

from dces_core import data, launch, machine, models, pool_file
from dces_core.ask import jobs_root
from dces_core.config import ArmName, RunConfig, parse
from dces_core.errors import UserError
from dces_core.events import Events
from dces_core.section import Section, validate
from dces_core.stage import read_json, write_json
from dces_core.store import Run

KEPT = 20
UPLOADS = {"pool": pool_file.FORMATS, "reference": data.FORMATS, "before": (".json",)}


class Options(Section):
    """What a curation is asked for. `model`: "" for none; `reference`: "", `everyday`, or "upload"."""

    n: Annotated[int, Field(ge=1, le=data.MAX_ROWS)]
    arm: ArmName = "dces"
    model: Annotated[str, Field(max_length=500)] = ""
    reference: Annotated[str, Field(pattern="^(|everyday|upload)$")] = ""
    encoder: Annotated[str, Field(max_length=500)] = "minilm"
    label: Annotated[str, Field(max_length=300)] = ""


class Job(Run):
    """A curation's folder. As a run it has a state, a log and a stop request."""

    @property
    def facts(self) -> dict[str, Any]:
        """What curate.json says; empty where it is unreadable."""
        value = read_json(self.path / "curate.json")
        return value if isinstance(value, dict) else {}

    @property
    def options(self) -> Options:
        """What was asked for. Raises UserError where the folder is damaged."""
        return options_of(self.facts.get("options") or {})

    @property
    def config(self) -> RunConfig:
        """Settings that say which device the work needs: none where neither an encoder nor a model is loaded."""
        asked = self.options
        encoder = {"encoder": {"name": asked.encoder}}
        if asked.model in ("", "fake"):
            return parse({**encoder, "engine": "fake"})
        return parse({**encoder, "model": asked.model})

    @property
    def threads(self) -> int:
        """CPU threads of its worker."""
        found = self.facts.get("threads")
        return found if isinstance(found, int) and found > 0 else 1

    @property
    def report(self) -> dict[str, Any] | None:
        """The round in figures; None until the result is there."""
        value = read_json(self.path / "report.json")
        return value if isinstance(value, dict) and isinstance(value.get("undefined"), dict) else None

    @property
    def table(self) -> pl.DataFrame:
        """Every row of the pool with its fate; empty where it is unreadable."""
        try:
            return pl.read_parquet(self.path / "table.parquet")
        except (OSError, pl.exceptions.PolarsError):
            return pl.DataFrame()

    def result(self, name: str) -> bytes:
        """selected.jsonl or state.json, to be downloaded; empty where it is gone."""
        path = self.path / name
        return path.read_bytes() if path.is_file() else b""

    def upload(self, name: str) -> Path | None:
        """An uploaded file by what it is: pool, reference or before."""
        return next((self.path / f"{name}{ending}" for ending in UPLOADS[name] if (self.path / f"{name}{ending}").is_file()), None)

    def clear(self) -> None:
        """Remove the uploads; the result stays."""
        for name in UPLOADS:
            if path := self.upload(name):
                path.unlink()


def options_of(values: Mapping[str, Any]) -> Options:
    """Options; raises UserError with a sentence per wrong field."""
    return validate(Options, dict(values), "docs/curate.md")


def is_job(path: Path) -> bool:
    """Whether a folder is a curation's."""
    return (path / "curate.json").is_file()


def jobs() -> list[Job]:
    """All curations, newest first."""
    return [Job(path.parent) for path in sorted(jobs_root().glob("curation-*/curate.json"), reverse=True)]


def busy() -> Job | None:
    """The curation at work."""
    return next((job for job in jobs() if launch.state(job) in launch.ALIVE), None)


def create(options: Options, files: Mapping[str, tuple[str, bytes]]) -> Job:
    """Make a curation's folder, queued. `files`: pool, reference and before, each a name, of which only the ending counts, and its bytes.

    Raises UserError for an ending that cannot be used, where the model is not there, or another curation is at work.
    """
    named = {what: f"{what}{_ending(what, name)}" for what, (name, _) in files.items()}
    if options.model not in ("", "fake"):
        models.check(options.model)
    jobs_root().mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(jobs_root() / "lock"):
        _sweep()
        at_work = busy()
        if at_work:
            raise UserError(f"{at_work.id} is {launch.state(at_work)} and one curation is made at a time; wait for it, or cancel it.")
        job = Job(jobs_root() / f"curation-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}")
        job.path.mkdir(mode=0o700)
        for what, (_, content) in files.items():
            (job.path / named[what]).write_bytes(content)
        body = {"options": options.model_dump(mode="json"), "threads": machine.threads()}
        write_json(job.path / "curate.json", {**body, "asked": datetime.now(UTC).isoformat(timespec="seconds")})
        launch.queue(job)
    return job


def work(job: Job, events: Events) -> None:
    """What the job's process does. Raises UserError for files that cannot be used."""
    from dces_core import curation

    asked, pool = job.options, job.upload("pool")
    if pool is None:
        raise UserError(f"{job.id} has lost its pool; upload it again.")
    reference = job.upload("reference") if asked.reference == "upload" else asked.reference or None
    before = job.upload("before")
    try:
        with events.span(1, asked.arm, "select") as progress:
            found = curation.curate(
                pool, asked.n, arm=asked.arm, model=asked.model or None, reference=reference, progress=progress,
                state=_state(before) if before else None, settings=parse({"encoder": {"name": asked.encoder}}),
            )  # fmt: skip
        curation.write_jsonl(found.selected, job.path / "selected.jsonl")
        found.table.write_parquet(job.path / "table.parquet", compression="zstd")
        write_json(job.path / "state.json", found.state)
        write_json(job.path / "report.json", found.report)
    except UserError as error:
        raise UserError(str(error).replace(f"{job.path}/", "")) from None
    finally:
        job.clear()


def forget(job: Job) -> None:
    """Delete a curation. Raises UserError while it is at work."""
    if launch.state(job) in launch.ALIVE:
        raise UserError(f"{job.id} is {launch.state(job)}; cancel it before you delete it.")
    shutil.rmtree(job.path, ignore_errors=True)


def _state(path: Path) -> dict[str, Any]:
    """An uploaded state: nothing means nothing here, where the terminal's path may not be there yet."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError("state is no state file; give one that curate wrote, or none.")
    return value


def _ending(what: str, name: str) -> str:
    ending = Path(name).suffix.lower()
    if ending not in UPLOADS[what]:
        raise UserError(f"{name[:80]!r} has an ending that cannot be used; give {', '.join(UPLOADS[what])}.")
    return ending


def _sweep() -> None:
    """Delete all but the newest curations, and what killed processes left."""
    for path in jobs_root().glob("curation-*"):
        if not is_job(path):
            shutil.rmtree(path, ignore_errors=True)
    over = [job for job in jobs() if launch.state(job) not in launch.ALIVE]
    for job in over[KEPT - 1 :]:
        shutil.rmtree(job.path, ignore_errors=True)
    for job in over[: KEPT - 1]:
        job.clear()
