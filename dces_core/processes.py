"""Which process is meant: a pid alone is reused, so it always goes with the process's start time."""

from __future__ import annotations

import os
from typing import Any

import psutil

#: The start time is computed from the boot time, which the clock's corrections move a little.
START_TOLERANCE_S = 2.0


def identity() -> dict[str, Any]:
    """`pid` and `pid_started` (seconds since the epoch) of this process."""
    return {"pid": os.getpid(), "pid_started": psutil.Process().create_time()}


def alive(pid: Any, started: Any) -> bool:
    """Whether the process that had this pid and start time still runs; a zombie does not."""
    if not isinstance(pid, int) or not isinstance(started, int | float) or pid <= 0:
        return False
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) <= START_TOLERANCE_S
        return same and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False
