"""TensorBoard, Trackio, Weights & Biases (offline) and MLflow (a local SQLite file) as places that rows are written to.

All of them write below one folder of this machine and send nothing anywhere. Each package is optional and imported on use.
A row is with its tracker when `write` returns. One row written twice is one row: TensorBoard gets a file per round, MLflow
keys a value by its step and time, and send.py remembers for all.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from dces_core.errors import UserError
from dces_core.tracks import Row, Track

INSTALL = 'pip install "dces-lab[trackers]"'
PROJECT = "dces"
MOST_VALUES = 100  # parameters that MLflow takes at once
MOST_CHARACTERS = 500  # of a parameter's value


class Tracker(Protocol):
    """Where rows go. Any exception of `write` means that the row was not taken."""

    def write(self, track: Track, row: Row) -> None:
        """Take one row; rows of a track come in the order of their rounds."""

    def close(self) -> None:
        """No more rows come."""


def needed(tracker: str, module: str) -> Any:
    """A module of an optional package. Raises UserError, with the command that installs it, where it is missing."""
    try:
        with quiet():
            return importlib.import_module(module)
    except ImportError:
        raise UserError(f"to = {tracker!r} needs a package that is not installed; run: {INSTALL}.") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the greetings and deprecations of other packages."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


class TensorBoard:
    """OUT/RUN/ARM/events.out.tfevents.ROUND.dces: a whole file per round, by rename."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.event = needed("tensorboard", "tensorboard.compat.proto.event_pb2").Event
        self.summary = needed("tensorboard", "tensorboard.compat.proto.summary_pb2").Summary
        self.records = needed("tensorboard", "tensorboard.summary.writer.record_writer").RecordWriter

    def write(self, track: Track, row: Row) -> None:
        """See Tracker."""
        folder = self.out / track.name
        folder.mkdir(parents=True, exist_ok=True)
        values = [self.summary.Value(tag=name, simple_value=value) for name, value in row.values.items()]
        temporary = folder / f".round-{row.round}.tmp"
        with temporary.open("wb") as file:
            records = self.records(file)
            records.write(self.event(wall_time=row.time_s, file_version="brain.Event:2").SerializeToString())
            records.write(self.event(wall_time=row.time_s, step=row.round, summary=self.summary(value=values)).SerializeToString())
            records.flush()
        os.replace(temporary, folder / f"events.out.tfevents.{row.round:010d}.dces")

    def close(self) -> None:
        """See Tracker."""


class Trackio:
    """OUT/dces.db: project `dces`, a Trackio run per arm."""

    def __init__(self, out: Path) -> None:
        os.environ["TRACKIO_DIR"] = str(out)  # read when the package is imported
        self.trackio = needed("trackio", "trackio")

    def write(self, track: Track, row: Row) -> None:
        """See Tracker."""
        own: dict[str, Any] = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False, "resume": "allow"}
        with quiet():
            run = self.trackio.init(project=PROJECT, name=track.name, group=track.group, config=track.settings, **own)
            try:
                run.log({**row.values, "round": row.round}, step=row.round)
            finally:
                run.finish()

    def close(self) -> None:
        """See Tracker."""


class WandB:
    """OUT/wandb/offline-run-*: project `dces`, a run per arm; `wandb sync` uploads them where that is wanted."""

    def __init__(self, out: Path) -> None:
        self.out = out
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self.wandb = needed("wandb", "wandb")
        self.runs: dict[str, Any] = {}

    def write(self, track: Track, row: Row) -> None:
        """See Tracker."""
        with quiet():
            if track.name not in self.runs:
                self.runs[track.name] = self._open(track)
            self.runs[track.name].log({**row.values, "round": row.round}, step=row.round)

    def _open(self, track: Track) -> Any:
        settings = self.wandb.Settings(
            mode="offline", silent=True, console="off", disable_git=True, disable_code=True,
            x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False,
        )  # fmt: skip
        where = {"project": PROJECT, "group": track.group, "name": track.name, "id": track.identity, "dir": str(self.out)}
        return self.wandb.init(**where, config=track.settings, settings=settings, reinit="create_new")

    def close(self) -> None:
        """See Tracker."""
        with quiet():
            for run in self.runs.values():
                run.finish()


class MLflow:
    """OUT/mlflow.db: an experiment per run, a run per arm."""

    def __init__(self, out: Path) -> None:
        self.out = out
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        for package in ("sqlalchemy", "alembic"):
            needed("mlflow", package)
        self.entities = needed("mlflow", "mlflow.entities")
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        with quiet():
            self.client = needed("mlflow", "mlflow").MlflowClient(tracking_uri=f"sqlite:///{out.absolute()}/mlflow.db")
        self.runs: dict[str, str] = {}

    def write(self, track: Track, row: Row) -> None:
        """See Tracker."""
        values = [self.entities.Metric(name, value, round(row.time_s * 1000), row.round) for name, value in row.values.items()]
        with quiet():
            if track.name not in self.runs:
                self.runs[track.name] = self._open(track)
            self.client.log_batch(self.runs[track.name], metrics=values)

    def _open(self, track: Track) -> str:
        """The run of a track, made where it is not there."""
        found = self.client.get_experiment_by_name(track.group)
        place = (self.out.absolute() / "artifacts").as_uri()
        experiment = found.experiment_id if found else self.client.create_experiment(track.group, artifact_location=place)
        known = self.client.search_runs([experiment], f"tags.`dces.track` = '{track.identity}'")
        if known:
            return str(known[0].info.run_id)
        run = str(self.client.create_run(experiment, run_name=track.name, tags={"dces.track": track.identity}).info.run_id)
        parameters = [self.entities.Param(name, text[:MOST_CHARACTERS]) for name, text in track.settings.items()]
        for first in range(0, len(parameters), MOST_VALUES):
            self.client.log_batch(run, params=parameters[first : first + MOST_VALUES])
        return run

    def close(self) -> None:
        """See Tracker."""
        with quiet():
            for run in self.runs.values():
                self.client.set_terminated(run)


TRACKERS: dict[str, type[TensorBoard | Trackio | WandB | MLflow]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WandB,
    "mlflow": MLflow,
}
#: How what was written is looked at; {out} is the folder.
LOOK = {
    "tensorboard": "tensorboard --logdir {out}",
    "trackio": "TRACKIO_DIR={out} trackio show --project dces",
    "wandb": "wandb sync {out}/wandb/offline-run-*",
    "mlflow": "mlflow ui --backend-store-uri sqlite:///{out}/mlflow.db",
}
