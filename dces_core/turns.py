"""Whose turn it is on a device: first come, first served.

Beside the device's lock lies a folder of tickets, one per waiting worker, named by the time at which its run was queued. Only the worker
whose ticket comes first among those of living processes tries to take the lock; tickets of dead processes are removed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dces_core import processes
from dces_core.events import Events
from dces_core.stage import read_json, write_json
from dces_core.store import Run

WAIT_S = 0.5


def tickets_of(lock: Path) -> Path:
    """The folder of a device's tickets."""
    return lock.with_suffix(".queue")


def waiting(lock: Path) -> list[Path]:
    """Tickets of living processes, first come first; the others are removed."""
    found = []
    for path in sorted(tickets_of(lock).glob("*.json")):
        owner = read_json(path)
        if isinstance(owner, dict) and processes.alive(owner.get("pid"), owner.get("pid_started")):
            found.append(path)
        else:
            path.unlink(missing_ok=True)
    return found


def queued_s(run: Run) -> float:
    """When a run was queued, seconds since the epoch: at its launch, or now where it begins without one."""
    status = run.status()
    launched = status.get("state") == "queued" and status.get("pid") is None and status.get("heartbeat") is not None
    return float(status["heartbeat"]) if launched else time.time()


@contextmanager
def turn(lock: Path, run: Run, events: Events, device: str, came_s: float) -> Iterator[None]:
    """Hold the device's lock; until it is this run's turn, stay queued and say behind which run and at which place.

    Raises Stopped where the run is stopped before.
    """
    holder = lock.with_suffix(".json")
    ticket = _draw(lock, run, came_s)
    try:
        held = _wait(lock, ticket, events, device)
    finally:
        ticket.unlink(missing_ok=True)
    with held:
        write_json(holder, {"run": run.id, **processes.identity()})
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)


def _draw(lock: Path, run: Run, came_s: float) -> Path:
    """Take a ticket."""
    folder = tickets_of(lock)
    folder.mkdir(parents=True, exist_ok=True)
    ticket = folder / f"{int(1e6 * came_s):020d}-{os.getpid()}-{threading.get_ident()}.json"
    write_json(ticket, {"run": run.id, **processes.identity()})
    return ticket


def _wait(lock: Path, ticket: Path, events: Events, device: str) -> AbstractContextManager[object]:
    """The lock, as soon as the ticket is the first and the lock is free."""
    said: dict[str, object] = {}
    while True:
        line = waiting(lock)
        place = line.index(ticket) if ticket in line else 0
        try:
            if place == 0:
                return FileLock(lock).acquire(timeout=WAIT_S)
            time.sleep(WAIT_S)
        except Timeout:
            pass
        events.check_stop()
        owner = read_json(lock.with_suffix(".json")) or (read_json(line[0]) if place else None) or {}
        now = {"waiting_for": str(owner.get("run", "another run")), "queue_position": place + 1}
        if now != said:
            said = now
            events.state("queued", device=device, **now)
