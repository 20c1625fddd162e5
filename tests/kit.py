"""A run with tiny data whose rounds are replaced: what launch, worker and cli need to be tested without an engine."""

from __future__ import annotations

import os
import sys
import textwrap
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from dces_core.config import RunConfig, parse
from dces_core.events import Events
from dces_core.store import Run

FAKE_ROUNDS = """
    import os, time
    def advance(run, events):
        what = os.environ.get("FAKE_ROUNDS", "done")
        print("advance", what, flush=True)
        with events.span(1, "plain", "generate") as progress:
            for step in range(600 if what in ("sleep", "deaf") else 1):
                if what == "sleep":
                    progress(step, 600)
                if what in ("sleep", "deaf"):
                    time.sleep(0.05)
        if what == "crash":
            raise ZeroDivisionError("seven over nothing")
"""


def make_config(folder: Path, **changes: object) -> RunConfig:
    """A fake-engine run on four pairs."""
    rows = "".join(f'{{"id": "{i}", "prompt": "Say number {i}.", "reference": "Number {i} it is."}}\n' for i in range(4))
    path = folder / "pairs.jsonl"
    path.write_text(rows, encoding="utf-8")
    data = {"train": str(path), "tests": {"own": str(path), "everyday": "", "passages": ""}, "probes": str(path)}
    base: dict[str, object] = {"engine": "fake", "rounds": 1, "arms": ["plain", "dces"], "pool": {"n": 2}, "data": data}
    return parse({**base, **changes})


def fake_rounds_here(monkeypatch: pytest.MonkeyPatch, advance: Callable[[Run, Events], None]) -> None:
    """Replace rounds.advance in this process."""
    module = types.ModuleType("dces_core.rounds")
    module.advance = advance  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dces_core.rounds", module)


def fake_rounds_in_workers(monkeypatch: pytest.MonkeyPatch, folder: Path, what: str) -> None:
    """Replace rounds.advance in the processes that this one starts: done | sleep | deaf (never asks for a stop) | crash."""
    site = folder / "site"
    site.mkdir(exist_ok=True)
    code = textwrap.dedent(FAKE_ROUNDS)
    (site / "sitecustomize.py").write_text(
        f"import sys, types\nmodule = types.ModuleType('dces_core.rounds')\nexec({code!r}, module.__dict__)\n"
        "sys.modules['dces_core.rounds'] = module\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("FAKE_ROUNDS", what)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(Path(__file__).resolve().parent.parent)]))


def wait_for(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Poll until the condition holds; fails after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)
