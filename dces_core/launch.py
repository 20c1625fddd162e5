"""Start, stop, resume and judge a run as a process of its own. Never imports torch: the web process calls this."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from dces_core import machine, models, preflight, processes, store
from dces_core.config import RunConfig
from dces_core.errors import UserError
from dces_core.estimate import estimate as estimate
from dces_core.estimate import likely_device
from dces_core.estimate import refuse_if_too_big as refuse_if_too_big
from dces_core.stage import read_json
from dces_core.store import Run, cache_root

State = Literal["queued", "running", "stopping", "done", "failed", "lost", "stopped"]
FINAL: tuple[State, ...] = ("done", "failed", "stopped")
ALIVE: tuple[State, ...] = ("queued", "running", "stopping")
FRESH_S = 60.0
POLL_S = 0.2
#: What the dashboard alone needs to know (gatekeeper.py).
OURS = ("DCES_SECRET", "DCES_SECRET_FILE")
#: A killed worker gives gigabytes back to the system before its process is gone.
DYING_S = 4.0


def create(config: RunConfig, directory: Path | None = None, **facts: Any) -> Run:
    """Make the run's directory, queued. `facts` go into run.json, over those of this machine.

    Raises UserError when it exists, when data or model cannot be used, or when the run does not fit this machine.
    """
    preflight.check(config)
    refuse_if_too_big(config)
    run = store.create(config, {**machine.describe(), **facts}, directory.absolute() if directory else None)
    queue(run)
    return run


def launch(config: RunConfig, directory: Path | None = None) -> Run:
    """Create a run and start its worker, which outlives this process. Raises UserError as `create` does."""
    return start(create(config, directory))


def start(run: Run) -> Run:
    """Start the worker of a run that has none."""
    queue(run)
    try:
        _spawn(["dces_core.worker", str(run.path)], run.log_path)
    except OSError as error:
        raise UserError(f"run {run.id!r} cannot be started: {error.strerror or error}; free space or fix the disk.") from None
    return run


def queue(run: Run) -> None:
    """Until its worker speaks, a run is queued without a pid. Raises UserError where the disk refuses."""
    blank = dict.fromkeys(("host", "pid", "pid_started", "error", "waiting_for", "queue_position"))
    try:
        run.write_status({**run.status(), **blank, "state": "queued", "heartbeat": time.time()})
    except OSError as error:
        raise UserError(f"run {run.id!r} cannot be queued: {error.strerror or error}; free space or fix the disk.") from None


def resume(run: Run) -> Run:
    """Start a worker that goes on after the last finished stage. Raises UserError when there is nothing to resume."""
    check_resumable(run)
    return start(run)


def check_resumable(run: Run) -> None:
    """Raise UserError unless the run is stopped, failed, lost, or done with damaged files; withdraw an old stop request."""
    if run.recorded:
        raise UserError(f"run {run.id!r} ships with the project and can only be read; launch its recipe to make your own.")
    run.config  # noqa: B018 - raises UserError where the run is unreadable
    run.refuse_links()
    _gone_within(run, DYING_S)
    now = state(run)
    if now in ALIVE:
        raise UserError(f"run {run.id!r} is {now}: watch it, or stop it first (dces stop {run.id}).")
    from dces_core.damage import damage, settings_are_whole

    if not settings_are_whole(run):
        raise UserError(f"run {run.id!r}: run.json is damaged, its settings cannot be trusted; restore the file, or launch again.")
    if now == "done" and not damage(run):
        raise UserError(f"run {run.id!r} is done: there is nothing to resume; launch a new run.")
    run.stop_path.unlink(missing_ok=True)


def state(run: Run) -> State:
    """The run's state: what it said last, checked against its process. A worker that is gone without a word is lost."""
    status = run.status()
    said = status.get("state")
    if said in FINAL:
        return said  # type: ignore[no-any-return]
    if not _worker_alive(status):
        return "done" if run.recorded else "lost"
    if run.stop_path.exists():
        return "stopping"
    return "running" if said == "running" else "queued"


def queue_position(run: Run) -> int | None:
    """A waiting run's place in the queue of its device, 1 being next; None where it does not wait."""
    place = run.status().get("queue_position")
    return place if isinstance(place, int) and state(run) == "queued" else None


def stop(run: Run, grace_s: float = 30.0, wait: bool = True) -> None:
    """Ask the run to stop; SIGTERM to its process group when it still runs after `grace_s`.

    `wait = False` returns at once and leaves the rest to a thread of this process. Raises UserError when nothing runs.
    """
    now = state(run)
    if run.recorded or now not in ALIVE:
        raise UserError(f"run {run.id!r} is {now}: there is nothing to stop.")
    run.refuse_links()
    run.stop_path.touch()
    if wait:
        _insist(run, grace_s)
    else:
        threading.Thread(target=_insist, args=(run, grace_s), daemon=True).start()


def delete(run: Run) -> None:
    """Delete a run's directory. Raises UserError when it ships with the project or its worker is alive."""
    if run.recorded:
        raise UserError(f"run {run.id!r} ships with the project and cannot be deleted.")
    now = state(run)
    if now in ALIVE:
        raise UserError(f"run {run.id!r} is {now}: stop it before you delete it (dces stop {run.id}).")
    try:
        with nullcontext() if run.lock_path.is_symlink() else FileLock(run.lock_path, timeout=0):
            grave = run.path.with_name(f".deleted-{run.id}-{os.getpid()}")
            os.replace(run.path, grave)
            (grave / "run.json").unlink(missing_ok=True)
    except Timeout:
        raise UserError(f"run {run.id!r} has a worker that is just starting; stop it before you delete it.") from None
    except OSError as error:
        raise UserError(f"run {run.id!r} cannot be deleted: {error.strerror}; check the rights on {run.path.parent}.") from None
    shutil.rmtree(grave, ignore_errors=True)


def device_lock(device: str) -> Path:
    """The lock that a worker holds while it uses a device; `<lock>.json` beside it names the run that holds it."""
    folder = Path(os.environ.get("DCES_LOCKS") or cache_root() / "locks")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"device-{re.sub(r'[^A-Za-z0-9]', '-', device)}.lock"


def device_user(config: RunConfig) -> str | None:
    """The run (or question) that computes now on the device that these settings most probably mean, None where it is free."""
    device = "fake" if config.engine == "fake" else likely_device(config)
    holder = read_json(device_lock(device).with_suffix(".json"))
    if not isinstance(holder, dict) or not processes.alive(holder.get("pid"), holder.get("pid_started")):
        return None
    return str(holder.get("run", "another run"))


def pull_model() -> None:
    """Fetch the default model in a process of its own; `models.pull_progress()` says how far it is."""
    models.models_root().mkdir(parents=True, exist_ok=True)
    _spawn(["dces_core.cli", "models", "pull"], models.models_root() / "pull.log")


def _spawn(arguments: list[str], log_path: Path) -> None:
    """A detached Python process in a session of its own; a thread collects its exit status, so no zombie stays."""
    command, env = [sys.executable, "-m", *arguments], {name: value for name, value in os.environ.items() if name not in OURS}
    with log_path.open("ab") as log:
        process = subprocess.Popen(command, env=env, start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    threading.Thread(target=process.wait, daemon=True).start()


def _worker_alive(status: dict[str, Any]) -> bool:
    """Whether the worker runs; one that has not spoken yet has FRESH_S to do so."""
    if status.get("pid") is None or not processes.here(status):
        return abs(time.time() - float(status.get("heartbeat") or 0)) < FRESH_S  # later than now: the clock was set back
    return processes.alive(status["pid"], status.get("pid_started"))


def _insist(run: Run, grace_s: float) -> None:
    """Wait until the worker has gone; after `grace_s` send SIGTERM to it, and wait as long again."""
    if not _gone_within(run, grace_s):
        _terminate(run.status())
        _gone_within(run, grace_s)


def _gone_within(run: Run, limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while state(run) in ALIVE:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _terminate(status: dict[str, Any]) -> None:
    """SIGTERM to exactly the process that wrote the status: to its group where it leads one, else to it alone."""
    pid = status.get("pid")
    if not processes.here(status) or not processes.alive(pid, status.get("pid_started")):
        return
    assert isinstance(pid, int)
    try:
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGTERM)
        else:
            os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return
