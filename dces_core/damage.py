"""Files of a run that are not as they were written, found by their hashes; a resumed run does their stages again."""

from __future__ import annotations

from pathlib import Path

from dces_core.rounds import planned
from dces_core.stage import Stage, unbroken
from dces_core.store import Run


def damage(run: Run) -> list[str]:
    """Paths below the run's directory: run.json, files of stages, and whole stages that a done run lacks.

    Weights that `keep` deleted are none, nor what a recorded run left out. Raises UserError where run.json is unreadable.
    """
    found = [] if settings_are_whole(run) else ["run.json"]
    for folder in sorted(run.path.glob("round-*/*/*")):
        if not folder.name.startswith("."):
            found += [str(path.relative_to(run.path)) for path in _damaged(run, Stage(folder))]
    if run.status().get("state") == "done" and not run.recorded:
        stages = [run.stage(*where) for where in planned(run.config)]
        found += [str(stage.path.relative_to(run.path)) for stage in stages if not stage.path.is_dir()]
    return found


def settings_are_whole(run: Run) -> bool:
    """Whether run.json is as it was written."""
    return unbroken(run.manifest) and run.manifest.get("config_hash") in (None, run.config.digest())


def _damaged(run: Run, stage: Stage) -> list[Path]:
    paths = [stage.file(name) for name in stage.damaged()]
    return [path for path in paths if path.exists() or not run.recorded]
