"""The process that owns a run, or a question to one (ask.py): `python -m dces_core.worker DIR`.

It holds the run's lock and its device's lock for its lifetime, keeps status.json and events.jsonl, and turns every way
of ending into a state with a reason. The rounds themselves are in rounds.py.
"""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from dces_core import ask, estimate, launch, machine, processes
from dces_core.config import RunConfig
from dces_core.errors import RunFailed, UserError
from dces_core.events import Events, Stopped
from dces_core.stage import read_json, write_json
from dces_core.store import Run

WAIT_S = 0.5
OUT_OF_MEMORY = (
    "out of memory",  # CUDA, MPS
    "DefaultCPUAllocator",
    "can't allocate memory",
)
ADVICE = "lower train.batch_size, generate.batch_size or generate.max_new_tokens, or use a smaller model, then resume or launch again"


def run_foreground(run: Run, echo: Callable[[str], None] | None = None) -> launch.State:
    """Do the run in this process and return its final state. `echo` gets a line per finished stage.

    Raises UserError when the run has a worker already.
    """
    try:
        held = FileLock(run.lock_path).acquire(timeout=launch.DYING_S)
    except Timeout:
        raise UserError(f"run {run.id!r} has a worker already; watch it, or stop it first (dces stop {run.id}).") from None
    with held, _signals_stop():
        events = Events(run, _blank_status(), echo)
        try:
            state, facts = _attempt(run, events)
            if state == "failed":
                run.sweep()  # a full disk must have room for the reason
            events.state(state, waiting_for=None, **facts)
        finally:
            events.close()
    return state


def main(arguments: list[str] | None = None) -> int:
    """Entry point: 0 done or stopped, 1 failed, 2 refused."""
    path = Path((arguments or sys.argv[1:])[0]).absolute()
    run = ask.Job(path) if ask.is_job(path) else Run(path)
    try:
        return 1 if run_foreground(run) == "failed" else 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def _blank_status() -> dict[str, Any]:
    nothing = dict.fromkeys(("heartbeat", "round", "arm", "stage", "eta_s", "error", "waiting_for", "device", "rss_bytes"))
    return {"state": "queued", "done": 0, "total": 0, **processes.identity(), **nothing}


def _attempt(run: Run, events: Events) -> tuple[launch.State, dict[str, Any]]:
    """Do the rounds; the final state and, where it failed, the reason."""
    try:
        events.state("queued")
        events.check_stop()
        device = _device_of(run.config)
        with _holding(device, run, events):
            events.state("running", device=device, waiting_for=None)
            machine.use_threads(run.threads)
            machine.keep_memory(_has_room(run.config))
            _work(run, events)
        return "done", {"error": None}
    except (Stopped, KeyboardInterrupt):
        return "stopped", {"error": None}
    except (UserError, RunFailed) as error:
        return "failed", {"error": str(error)}
    except Exception as error:
        with run.log_path.open("a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
        return "failed", {"error": explain(error)}


def _work(run: Run, events: Events) -> None:
    """The rounds of a run, the answers to a question."""
    if isinstance(run, ask.Job):
        from dces_core.answering import answer

        answer(run, events)
    else:
        from dces_core.rounds import advance

        advance(run, events)


def _has_room(config: RunConfig) -> bool:
    """Whether freed memory may be kept for the next use, which is faster and takes up to twice as much."""
    wanted = estimate.estimate(config)["memory_bytes"]
    return wanted is None or estimate.free_memory_bytes() > 2 * wanted


def explain(error: Exception) -> str:
    """One sentence for an error that nothing foresaw; out of memory comes with advice."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError) or any(mark in text for mark in OUT_OF_MEMORY):
        return f"out of memory: {ADVICE}."
    return f"{type(error).__name__}: {text or 'no message'} (the full traceback is in log.txt)"


def _device_of(config: RunConfig) -> str:
    """The device that the run computes on; fake runs share one of their own. Raises UserError where it is not there."""
    if config.engine == "fake":
        return "fake"
    from dces_core.engines.hf import pick_device

    return str(pick_device(config.device))


@contextmanager
def _holding(device: str, run: Run, events: Events) -> Iterator[None]:
    """Hold the device's lock; while another run has it, stay queued and say behind which."""
    path = launch.device_lock(device)
    holder = path.with_suffix(".json")
    lock = FileLock(path)
    behind: str | None = None
    while True:
        try:
            held = lock.acquire(timeout=WAIT_S)
            break
        except Timeout:
            events.check_stop()
            now = str((read_json(holder) or {}).get("run", "another run"))
            if now != behind:
                behind = now
                events.state("queued", device=device, waiting_for=behind)
    with held:
        write_json(holder, {"run": run.id, **processes.identity()})
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)


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
