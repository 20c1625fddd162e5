"""The process that owns a run, or a question to one (ask.py): `python -m dces_core.worker DIR`.

It holds the run's lock and its device's lock for its lifetime, keeps status.json and events.jsonl, and turns every way
of ending into a state with a reason. The rounds themselves are in rounds.py.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from dces_core import ask, curation_jobs, diagnosis_jobs, estimate, launch, machine, processes, turns
from dces_core.config import RunConfig
from dces_core.engines import memory
from dces_core.errors import RunFailed, UserError
from dces_core.events import Events, Stopped
from dces_core.redact import guard_streams, redact
from dces_core.store import Run


def run_foreground(run: Run, echo: Callable[[str], None] | None = None) -> launch.State:
    """Do the run in this process and return its final state. `echo` gets a line per finished stage.

    Raises UserError when the run has a worker already, a symbolic link, or a disk that refuses its lock.
    """
    run.refuse_links()
    try:
        held = FileLock(run.lock_path).acquire(timeout=launch.DYING_S)
    except Timeout:
        raise UserError(f"run {run.id!r} has a worker already; watch it, or stop it first (dces stop {run.id}).") from None
    except OSError as error:
        raise UserError(f"run {run.id!r} cannot be locked: {error.strerror or error}; free space or fix the disk, then resume.") from None
    with held, _signals_stop():
        came_s = turns.queued_s(run)
        events = Events(run, _blank_status(), echo)
        try:
            return _conclude(run, events, *_attempt(run, events, came_s))
        finally:
            events.close()


def main(arguments: list[str] | None = None) -> int:
    """Entry point: 0 done or stopped, 1 failed, 2 refused."""
    path = Path((arguments or sys.argv[1:])[0]).absolute()
    guard_streams()
    kinds = {ask.is_job: ask.Job, diagnosis_jobs.is_job: diagnosis_jobs.Job, curation_jobs.is_job: curation_jobs.Job}
    run = next((make(path) for is_one, make in kinds.items() if is_one(path)), Run(path))
    try:
        return 1 if run_foreground(run) == "failed" else 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def _conclude(run: Run, events: Events, state: launch.State, facts: dict[str, Any]) -> launch.State:
    """Say how it ended; a run whose end cannot be written has failed. Where the disk refuses even that, stderr has the reason."""
    for _ in range(2):
        if state == "failed":
            run.sweep()  # a full disk must have room for the reason
        try:
            events.state(state, waiting_for=None, queue_position=None, **facts)
            return state
        except RunFailed as error:
            state, facts = "failed", {"error": facts["error"] or str(error)}
    with suppress(OSError):
        print(facts["error"], file=sys.stderr)
    return state


def _blank_status() -> dict[str, Any]:
    names = ("heartbeat", "round", "arm", "stage", "eta_s", "error", "waiting_for", "queue_position", "device", "rss_bytes")
    nothing = dict.fromkeys(names)
    return {"state": "queued", "done": 0, "total": 0, "host": os.environ.get("DCES_NODE"), **processes.identity(), **nothing}


def _attempt(run: Run, events: Events, came_s: float) -> tuple[launch.State, dict[str, Any]]:
    """Do the rounds; the final state and, where it failed, the reason."""
    try:
        events.state("queued")
        events.check_stop()
        device = _device_of(run.config)
        with turns.turn(launch.device_lock(device), run, events, device, came_s):
            events.state("running", device=device, waiting_for=None, queue_position=None)
            machine.use_threads(run.threads)
            machine.keep_memory(_has_room(run.config))
            _work(run, events)
        return "done", {"error": None}
    except (Stopped, KeyboardInterrupt):
        return "stopped", {"error": None}
    except (UserError, RunFailed) as error:
        return "failed", {"error": str(error)}
    except Exception as error:
        with suppress(OSError), run.log_path.open("a", encoding="utf-8") as log:
            log.write(redact(traceback.format_exc()))
        return "failed", {"error": explain(error)}


def _work(run: Run, events: Events) -> None:
    """The rounds of a run, the answers to a question, a diagnosis, a curation."""
    if isinstance(run, ask.Job):
        from dces_core.answering import answer

        answer(run, events)
    elif isinstance(run, diagnosis_jobs.Job):
        diagnosis_jobs.work(run, events)
    elif isinstance(run, curation_jobs.Job):
        curation_jobs.work(run, events)
    else:
        from dces_core.rounds import advance

        advance(run, events)


def _has_room(config: RunConfig) -> bool:
    """Whether freed memory may be kept for the next use, which is faster and takes up to twice as much."""
    wanted = estimate.estimate(config)["memory_bytes"]
    return wanted is None or estimate.free_memory_bytes() > 2 * wanted


def explain(error: Exception) -> str:
    """One sentence for an error that nothing foresaw; out of memory comes with advice."""
    text = " ".join(redact(str(error)).split())[:300]
    if memory.ran_out(error):
        return f"out of memory: {memory.ADVICE}."
    if isinstance(error, OSError) and error.errno:
        return f"the disk refuses {error.filename or 'a file'}: {error.strerror}; free space or fix the disk, then resume."
    return f"{type(error).__name__}: {text or 'no message'} (the full traceback is in log.txt)"


def _device_of(config: RunConfig) -> str:
    """The device that the run computes on; fake runs share one of their own. Raises UserError where it is not there."""
    if config.engine == "fake":
        return "fake"
    from dces_core.engines.hf import pick_device

    return str(pick_device(config.device))


@contextmanager
def _signals_stop() -> Iterator[None]:
    """SIGTERM ends the run as stopped (in the main thread; others cannot receive signals)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Stopped

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
