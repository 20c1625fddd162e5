"""A live run that many tabs watch: by how much it slows down, what the server takes, and whether a tab sees an error.

The same work is done alone and before viewers, in turns. A viewer speaks Streamlit's protocol as a tab does and keeps to the intervals
that the server gives it. They are on the page before the work begins; round 0 does not count.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from dces_core import launch, machine
from dces_core.bench.rows import Row
from dces_core.bench.ui_server import APP, Server, Visitor, serve
from dces_core.config import load_recipe
from dces_core.store import Run

FEW, MANY, PAIRS, ROUNDS = 10, 100, 3, 16
OPENERS = 4  # tabs that open at the same time
POLL_S = 0.2
PATIENCE_S = 600.0


@dataclass(frozen=True)
class Watched:
    """What one piece of work took. `share`: of the machine, by the server; `interval_s`: the longest of the viewers' timers at the end."""

    seconds: float
    share: float = 0.0
    memory_bytes: int = 0
    interval_s: float = 0.0
    beats: int = 0
    errors: tuple[str, ...] = ()


class Viewer:
    """A tab on Watch that beats as its timers want until it is closed."""

    def __init__(self, port: int, run: Run) -> None:
        self.beats = 0
        self.errors: list[str] = []
        self._over = threading.Event()
        self.visitor = Visitor(port, "watch", f"run={run.id}")
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the tab."""
        self._over.set()
        self._thread.join(PATIENCE_S)
        self.visitor.close()

    def _watch(self) -> None:
        last = dict.fromkeys(self.visitor.beats, time.monotonic())
        while not self._over.wait(POLL_S):
            now = time.monotonic()
            for timer, every_s in list(self.visitor.beats.items()):
                if now - last.setdefault(timer, now) >= every_s and timer in self.visitor.beats:
                    last[timer] = now
                    self._beat(timer)

    def _beat(self, timer: str) -> None:
        try:
            self.visitor.tick(timer)
            self.beats += 1
        except Exception as error:  # whatever a tab would have shown
            self.errors.append(f"{type(error).__name__}: {error}")
            self._over.set()


def measure(scale: float) -> list[Row]:
    """Rows of this section."""
    few, many = (max(2, round(number * min(1.0, scale))) for number in (FEW, MANY))
    rounds, pairs = max(1, round(ROUNDS * min(1.0, scale))), max(1, round(PAIRS * scale))
    with tempfile.TemporaryDirectory(prefix="dces-crowd-") as folder, _home(Path(folder)):
        turns = [(work(rounds, 0), work(rounds, few)) for _ in range(pairs)]
        crowd = work(rounds, many)
    alone_s = median(alone.seconds for alone, _ in turns)
    rows = _rows(FEW, [slow for _, slow in turns], median(_slowdown(alone.seconds, slow.seconds) for alone, slow in turns))
    return rows + _rows(MANY, [crowd], _slowdown(alone_s, crowd.seconds))


def work(rounds: int, viewers: int) -> Watched:
    """Do the work, watched by so many viewers."""
    run = launch.create(load_recipe("smoke", [f"rounds={rounds}", "pool.n=96", "map.on=false"]))
    if not viewers:
        launch.start(run)
        began = _wait(run)
        return Watched(_end(run) - began)
    with serve(APP, run.path.parent) as server, ExitStack() as tabs:
        server.wait()
        found = _open(server, run, viewers)
        for viewer in found:
            tabs.callback(viewer.close)
        launch.start(run)
        began, cpu_s, peak = _wait(run), server.cpu_s, server.memory_bytes
        while launch.state(run) in launch.ALIVE:
            peak = max(peak, server.memory_bytes)
            time.sleep(POLL_S)
        seconds = _end(run) - began
        share = (server.cpu_s - cpu_s) / seconds / machine.cores()
        longest = max((every_s for viewer in found for every_s in viewer.visitor.beats.values()), default=0.0)
        beats = sum(viewer.beats for viewer in found)
        errors = tuple(error for viewer in found for error in viewer.errors)
    return Watched(seconds, share, peak, longest, beats, errors)


def _open(server: Server, run: Run, count: int) -> list[Viewer]:
    """Tabs on the run while it waits for its worker, some at a time."""
    found: list[Viewer] = []
    gate, turn = threading.Semaphore(OPENERS), threading.Lock()

    def one() -> None:
        with gate:
            with turn:
                launch.queue(run)  # a run whose worker never speaks is lost after a minute
            found.append(Viewer(server.port, run))

    openers = [threading.Thread(target=one) for _ in range(count)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join(PATIENCE_S)
    assert len(found) == count, f"{count - len(found)} of {count} tabs did not open"
    return found


def _wait(run: Run) -> float:
    """When the first stage was finished, which is round 0."""
    deadline = time.monotonic() + PATIENCE_S
    while not (ended := _spans(run)):
        assert time.monotonic() < deadline and launch.state(run) in launch.ALIVE, run.status().get("error")
        time.sleep(POLL_S)
    return ended[0]


def _end(run: Run) -> float:
    """When the last stage was finished."""
    while launch.state(run) in launch.ALIVE:
        time.sleep(POLL_S)
    assert launch.state(run) == "done", run.status().get("error")
    return _spans(run)[-1]


def _spans(run: Run) -> list[float]:
    return [float(event["t"]) for event in run.events()[0] if event.get("kind") == "span"]


def _slowdown(alone_s: float, watched_s: float) -> float:
    return 100 * (watched_s / alone_s - 1)


def _rows(viewers: int, found: list[Watched], slowdown: float) -> list[Row]:
    errors = [error for one in found for error in one.errors]
    beats = sum(one.beats for one in found)
    seconds = median(one.seconds for one in found)
    every = f"{beats} beats in all, a timer every {max(one.interval_s for one in found):g} s at the end"
    return [
        Row(f"crowd-slowdown-{viewers}", slowdown, None, None, "%", len(found), f"{seconds:.1f} s of work before viewers; {every}"),
        Row(f"crowd-errors-{viewers}", float(len(errors)), None, None, "", beats, errors[0] if errors else "exceptions and lost tabs"),
        Row(f"crowd-share-{viewers}", 100 * max(one.share for one in found), None, None, "%", beats, "of all cores, by the web process"),
        Row(f"crowd-memory-{viewers}", max(one.memory_bytes for one in found) / 1e6, None, None, "MB", len(found), "the server's peak"),
    ]


@contextmanager
def _home(folder: Path) -> Iterator[None]:
    """Runs, cache and locks of this section's own."""
    mine = {"DCES_RUNS": str(folder / "runs"), "DCES_CACHE": str(folder / "cache")}
    before = {name: os.environ.get(name) for name in mine}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
