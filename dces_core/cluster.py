"""A unit of a study on a node of a cluster: what is asked of the node, and how it takes a dead node's run over.

Nothing here knows which scheduler sends the units; cluster_ray.py is one.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dces_core import machine, processes
from dces_core.config import parse
from dces_core.errors import UserError
from dces_core.events import HEARTBEAT_S
from dces_core.section import validate
from dces_core.store import Run
from dces_core.study import Place, Study, StudyConfig, Work, make_unit, refuse_mixed_cpus, refuse_other_tests
from dces_core.study_store import SharedWorkshop

#: A worker on another node whose heart stands still for so long is dead.
STILL_S = 5 * HEARTBEAT_S
#: How long a unit waits for a dead node: a shared file system frees the locks of a machine that is gone after about 90 s.
PATIENCE_S = 180.0
POLL_S = 0.5


@dataclass(frozen=True)
class Job:
    """One unit, as it is sent to a node."""

    study: dict[str, Any]
    base: dict[str, Any]
    path: str  # the STUDY.toml
    root: str
    place: Place
    threads: int
    versions: dict[str, str | None]
    mixed_cpus: bool
    keep_runs: bool


@dataclass(frozen=True)
class Answer:
    """How a unit ended, and where."""

    state: str
    error: str | None
    host: str


def job_of(work: Work, root: Path, place: Place, threads: int) -> Job:
    """A unit of this call of `dces study`."""
    study = work.study
    bodies = study.config.model_dump(mode="json"), study.base.model_dump(mode="json")
    return Job(*bodies, str(study.path), str(root), place, threads, machine.versions(), work.mixed_cpus, work.keep_runs)


def do_job(job: Job) -> Answer:
    """Make the unit in this process, or go on with it. A refusal is an answer too: it must not be tried on other nodes."""
    host = platform.node()
    locks = tempfile.mkdtemp(prefix="dces-locks-")  # who uses a device here is the scheduler's business
    os.environ.update(DCES_RUNS=job.root, DCES_NODE=host, DCES_LOCKS=locks, OMP_NUM_THREADS=str(job.threads))
    try:
        state, error = _make(job)
    except UserError as refusal:
        state, error = "failed", str(refusal)
    return Answer(state, error, host)


def _make(job: Job) -> tuple[str, str | None]:
    study = Study(validate(StudyConfig, job.study, "docs/study.md"), parse(job.base), Path(job.path))
    workshop, (seed, arm) = SharedWorkshop(study.config.name, Path(job.root)), job.place
    work = Work(study, workshop.finished, job.mixed_cpus, job.keep_runs, lambda text: None)
    if work.finished([job.place]):
        return "done", None  # the node died right after it
    refuse_other_versions(job.versions)
    if not job.mixed_cpus:
        refuse_mixed_cpus(study, [], [job.place], workshop)
    refuse_other_tests(study, [])
    run = workshop.run(seed, arm)
    if run:
        take_over(run)
    return make_unit(work, workshop, seed, arm)


def refuse_other_versions(wanted: dict[str, str | None]) -> None:
    """Raise UserError where a package differs from the one that the study was begun with: so may the figures."""
    for name, version in machine.versions().items():
        if version != wanted.get(name):
            raise UserError(
                f"{name} is {version} on node {platform.node()} and {wanted.get(name)} where the study was started; make them equal."
            )


def take_over(run: Run, still_s: float = STILL_S, patience_s: float = PATIENCE_S) -> None:
    """Wait until nobody works on the run. Raises UserError where somebody still does after `patience_s`.

    The lock alone would do where the file system knows locks. The heart is looked at for those that do not: a node that was cut off and
    lives writes on until its scheduler ends it. Clocks are never compared, only whether the heart beats.
    """
    deadline = time.monotonic() + patience_s
    beat, since = _beat(run), time.monotonic()
    while _may_live(run) and time.monotonic() - since < still_s:
        time.sleep(POLL_S)
        if _beat(run) != beat:
            beat, since = _beat(run), time.monotonic()
        if time.monotonic() > deadline:
            raise UserError(f"run {run.id!r} is still worked on by node {run.status().get('host')}; stop it there (dces stop {run.id}).")
    try:
        with FileLock(run.lock_path, timeout=max(0.0, deadline - time.monotonic())):
            return
    except Timeout:
        raise UserError(f"run {run.id!r} is still locked by another node; stop it there (dces stop {run.id}).") from None


def _beat(run: Run) -> Any:
    return run.status().get("heartbeat")


def _may_live(run: Run) -> bool:
    """Whether the worker that spoke last may still be there; of this machine's own it is known."""
    status = run.status()
    if status.get("state") not in ("queued", "running") or status.get("pid") is None:
        return False
    return not processes.here(status) or processes.alive(status["pid"], status.get("pid_started"))


def fetch(work: Work, workshop: SharedWorkshop, place: Place) -> bool:
    """Bring a finished unit from the shared root to the study's output; whether there was one."""
    config = work.study.run_config(*place)
    unit = workshop.finished.unit(*place, config)
    if unit is None:
        return False
    if work.output.unit(*place, config) is None:
        work.output.take(unit)
    workshop.fetched(unit)
    return True


def root_of(text: str | None, default: Path) -> Path:
    """The shared root as a folder. Raises UserError for an address that no file system of this machine has."""
    if text is None:
        return default
    if "://" in text:
        scheme, _, rest = text.partition("://")
        if scheme != "file" or not rest.startswith("/"):
            raise UserError(
                f"root = {text!r}: only a folder that all nodes see, or file:///FOLDER, can be shared; mount the store and name its folder."
            )
        return Path(rest)
    return Path(text).absolute()
