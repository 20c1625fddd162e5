"""Diagnoses that the page starts. A diagnosis is a job like a question (ask.py): a folder, a process of its own, the device's lock.

    runs/.jobs/diagnosis-YYYYMMDD-HHMMSS-microseconds/
      diagnose.json    the options, and what is diagnosed: uploaded files, or a run and an arm
      uploads/         the files as they came; gone when the job is over
      diagnosis.json   the result, written once
      status.json, events.jsonl, log.txt, stop: as a run's

One diagnosis is made at a time, the newest KEPT stay. The work is in diagnosing.py; this module is what the page needs.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from dces_core import launch, machine
from dces_core.ask import jobs_root
from dces_core.config import RunConfig, parse
from dces_core.diagnose import Diagnosis, Options, from_json
from dces_core.errors import UserError
from dces_core.events import Events
from dces_core.own_rounds import FORMATS
from dces_core.section import validate
from dces_core.stage import read_json, write_json
from dces_core.store import Run, find

KEPT = 20
MOST_FILES = 200
ODD = re.compile(r"[^\w.-]+")


class Job(Run):
    """A diagnosis' folder. As a run it has a state, a log and a stop request."""

    @property
    def facts(self) -> dict[str, Any]:
        """What diagnose.json says; empty where it is unreadable."""
        value = read_json(self.path / "diagnose.json")
        return value if isinstance(value, dict) else {}

    @property
    def options(self) -> Options:
        """What was asked for. Raises UserError where the folder is damaged."""
        return options_of(self.facts.get("options") or {})

    @property
    def config(self) -> RunConfig:
        """Settings that say which device the work needs: none where neither an encoder nor a model is loaded."""
        asked = self.options
        light = asked.encoder == "hash" and asked.model in ("", "fake")
        return parse({"engine": "fake"} if light else {"model": asked.model} if asked.model not in ("", "fake") else {})

    @property
    def threads(self) -> int:
        """CPU threads of its worker."""
        found = self.facts.get("threads")
        return found if isinstance(found, int) and found > 0 else 1

    @property
    def uploads(self) -> Path:
        """The folder of the files that are diagnosed."""
        return self.path / "uploads"

    @property
    def reference(self) -> Path:
        """The folder of the real reference."""
        return self.path / "reference"

    @property
    def texts(self) -> Path:
        """Where the texts lie by round while the work goes on."""
        return self.path / "texts"

    @property
    def label(self) -> str:
        """What is diagnosed, in words of whoever gave it."""
        return str(self.facts.get("label") or "")

    @property
    def result(self) -> Diagnosis | None:
        """The diagnosis; None until it is there. Raises UserError where it is damaged."""
        value = read_json(self.path / "diagnosis.json")
        return None if value is None else from_json(value)


def options_of(values: Mapping[str, Any]) -> Options:
    """Options; raises UserError with a sentence per wrong field."""
    return validate(Options, dict(values), "docs/diagnose.md")


def is_job(path: Path) -> bool:
    """Whether a folder is a diagnosis'."""
    return (path / "diagnose.json").is_file()


def jobs() -> list[Job]:
    """All diagnoses, newest first."""
    return [Job(path.parent) for path in sorted(jobs_root().glob("diagnosis-*/diagnose.json"), reverse=True)]


def create_of_run(run: Run, arm: str, options: Options) -> Job:
    """Make the folder of a diagnosis of a run's generations, queued. Raises UserError where the arm is not there, or one is at work."""
    if arm not in run.config.arms:
        raise UserError(f"arm = {arm!r} is not in run {run.id!r}; it has: {', '.join(run.config.arms)}.")
    return _create({"run": run.id, "arm": arm, "label": f"{run.id}, {arm}"}, options, {}, {})


def create_of_files(files: Mapping[str, bytes], reference: Mapping[str, bytes], options: Options) -> Job:
    """The same of uploaded files, by name. Raises UserError for a name or a number of files that cannot be used."""
    if not 0 < len(files) <= MOST_FILES:
        raise UserError(f"{len(files)} files: give one to {MOST_FILES}.")
    for name in files:
        if Path(name).suffix.lower() not in FORMATS:
            raise UserError(f"{name[:80]!r} has an ending that cannot be used; give {', '.join(FORMATS)}.")
    names = list(files)
    label = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)} files)"
    return _create({"label": label[:200]}, options, files, reference)


def _create(facts: dict[str, Any], options: Options, files: Mapping[str, bytes], reference: Mapping[str, bytes]) -> Job:
    jobs_root().mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(jobs_root() / "lock"):
        _sweep()
        busy = next((job for job in jobs() if launch.state(job) in launch.ALIVE), None)
        if busy:
            raise UserError(f"{busy.id} is {launch.state(busy)} and one diagnosis is made at a time; wait for it, or cancel it.")
        job = Job(jobs_root() / f"diagnosis-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}")
        job.path.mkdir(mode=0o700)
        for folder, given in ((job.uploads, files), (job.reference, reference)):
            folder.mkdir()
            for number, (name, data) in enumerate(given.items()):
                plain = ODD.sub("_", Path(name).stem)[-60:]  # the round's number stands at the end
                (folder / f"{number:03d}-{plain}{Path(name).suffix.lower()}").write_bytes(data)
        body = {"options": options.model_dump(mode="json"), "threads": machine.threads()}
        write_json(job.path / "diagnose.json", {**body, **facts, "asked": datetime.now(UTC).isoformat(timespec="seconds")})
        launch.queue(job)
    return job


def work(job: Job, events: Events) -> None:
    """What the job's process does. Raises UserError for texts that cannot be used."""
    from dces_core import own_rounds
    from dces_core.diagnosing import diagnose

    facts, options = job.facts, job.options
    given = sorted(job.reference.glob("*"))
    options = options.model_copy(update={"reference": str(given[0])}) if given else options
    try:
        with events.span(0, "", "reading") as progress:
            if "run" in facts:
                rounds = own_rounds.read_run(find(str(facts["run"])), str(facts["arm"]), job.texts, progress)
            else:
                columns = (options.round_column, options.text_column)
                rounds = own_rounds.read_files(sorted(job.uploads.glob("*")), job.texts, columns, progress)
                rounds.source = job.label
        write_json(job.path / "diagnosis.json", diagnose(rounds, options, events).as_json())
    finally:
        _clear(job)


def forget(job: Job) -> None:
    """Delete a diagnosis. Raises UserError while it is at work."""
    if launch.state(job) in launch.ALIVE:
        raise UserError(f"{job.id} is {launch.state(job)}; cancel it before you delete it.")
    shutil.rmtree(job.path, ignore_errors=True)


def _clear(job: Job) -> None:
    """Remove the texts; the result stays."""
    for folder in (job.uploads, job.reference, job.texts):
        shutil.rmtree(folder, ignore_errors=True)


def _sweep() -> None:
    """Delete all but the newest diagnoses, and what killed processes left."""
    for path in jobs_root().glob("diagnosis-*"):
        if not is_job(path):
            shutil.rmtree(path, ignore_errors=True)
    over = [job for job in jobs() if launch.state(job) not in launch.ALIVE]
    for job in over[KEPT - 1 :]:
        shutil.rmtree(job.path, ignore_errors=True)
    for job in over[: KEPT - 1]:
        _clear(job)
