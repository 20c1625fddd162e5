"""Which benches there are, and how `dces bench` measures them: each in a process of its own, so that none inherits another's memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from filelock import FileLock, Timeout

from dces_core import launch
from dces_core.bench.plan import Plan
from dces_core.bench.rows import Row, keep, skipped
from dces_core.errors import UserError

#: Bench -> module of this package and function that measures it.
BENCHES = {
    "generate-topp": "generation.topp",
    "generate-round": "generation.pool",
    "generate-topk": "generation.topk",
    "generate-ct2": "generation.ctranslate2",
    "generate-greedy": "generation.greedy",
    "generate-profile": "profile.decoding",
    "train": "training.tuning",
    "score": "training.scoring",
    "dces-overhead": "runs.overhead",
    "dces-total": "runs.total",
    "select-1m": "selection.large",
    "round": "runs.stages",
    "growth": "growth.growth",
    "ui": "ui.ui",
}


def measure(names: list[str], out: Path | None) -> list[Row]:
    """The rows of these benches (none named: all); `out` gets those of each as soon as it is done.

    Raises UserError for a name that is no bench.
    """
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        raise UserError(f"bench = {unknown[0]!r} is not known; choose from: {', '.join(BENCHES)}.")
    _warn_if_busy()
    chosen = names or list(BENCHES)
    rows = []
    for name in chosen:
        found = one(name, Plan()) if len(chosen) == 1 else _in_a_process(name)
        if out is not None:
            keep(out, found)
        rows += found
    return rows


def one(name: str, plan: Plan) -> list[Row]:
    """The rows of one bench, measured in this process."""
    return function(name)(plan)


def function(name: str) -> Callable[[Plan], list[Row]]:
    """What measures a bench."""
    module, _, function = BENCHES[name].partition(".")
    found: Callable[[Plan], list[Row]] = getattr(import_module(f"dces_core.bench.{module}"), function)
    return found


def _in_a_process(name: str) -> list[Row]:
    """As `one` with the full plan; a bench that fails becomes a row that says so."""
    print(f"dces bench {name} ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "dces_core.cli", "bench", name, "--format", "json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return [skipped(name, f"it failed with exit code {done.returncode}; run it alone to see why: dces bench {name}")]
    return [Row(**row) for row in json.loads(done.stdout)]


def _warn_if_busy() -> None:
    try:
        with FileLock(launch.device_lock("cpu")).acquire(timeout=0):
            pass
    except Timeout:
        print("dces bench: a run is using this machine; every figure will be too low.", file=sys.stderr)
