"""Which process is meant: a pid alone is reused, so it always goes with the process's start time."""

from __future__ import annotations

import os
import platform
from typing import Any

import psutil

#: The start time since the epoch is computed from the boot time, which the clock's corrections move.
START_TOLERANCE_S = 2.0
TICK_S = 0.02
#: No machine is up for thirty years, none has a clock before 2001.
SINCE_EPOCH_S = 1e9


def identity() -> dict[str, Any]:
    """`pid` and `pid_started` of this process: seconds since boot, which no clock moves, or since the epoch."""
    since_boot = _since_boot_s(os.getpid())
    return {"pid": os.getpid(), "pid_started": psutil.Process().create_time() if since_boot is None else since_boot}


def here(said: dict[str, Any]) -> bool:
    """Whether the process that said this is one of this machine; only a node of a cluster says its host."""
    return said.get("host") in (None, platform.node())


def alive(pid: Any, started: Any) -> bool:
    """Whether the process that had this pid and start time still runs; a zombie does not."""
    if not isinstance(pid, int) or not isinstance(started, int | float) or pid <= 0:
        return False
    try:
        process = psutil.Process(pid)
        since_boot = _since_boot_s(pid) if started < SINCE_EPOCH_S else None
        if since_boot is None:
            same = abs(process.create_time() - started) <= START_TOLERANCE_S
        else:
            same = abs(since_boot - started) <= TICK_S
        return same and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False


def _since_boot_s(pid: int) -> float | None:
    """When a process started, in seconds since boot; None where the system does not say."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as handle:
            ticks = int(handle.read().rpartition(b")")[2].split()[19])
        return ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
