"""Spans and notes in one append-only JSONL, progress in status.json, and the stop request."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from dces_core.errors import RunFailed
from dces_core.records import is_span
from dces_core.redact import redacted
from dces_core.store import Run

#: Called with (done, total) from inside a stage.
Progress = Callable[[int, int], None]
#: Called with a sentence that a reader of the run should know.
Note = Callable[[str], None]

HEARTBEAT_S = 2.0


class Stopped(Exception):
    """The run was asked to stop."""


class Events:
    """What a worker tells the world. One writer per run."""

    def __init__(self, run: Run, status: dict[str, Any], echo: Callable[[str], None] | None = None) -> None:
        self.run = run
        self.status = status
        self.echo = echo
        self._torn = True  # a killed worker, or a full disk, may have left half a line
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._remaining: dict[str, int] = {}
        for event in run.events()[0]:
            if event.get("kind") == "span" and is_span(event):
                self._seconds[f"{event['arm']}/{event['stage']}"].append(event["seconds"])
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def plan(self, remaining: dict[str, int]) -> None:
        """How many times each `arm/stage` is still to come: the basis of the ETA."""
        self._remaining = remaining

    def note(self, text: str, **facts: Any) -> None:
        """Say something that a reader of the run should know."""
        self._write({"kind": "note", "text": text, **facts})
        if self.echo:
            self.echo(text)

    @contextmanager
    def span(self, round_: int, arm: str, stage: str) -> Iterator[Progress]:
        """Time a stage; yields the function that reports its progress."""
        self.check_stop()
        started = time.perf_counter()
        self._update(round=round_, arm=arm, stage=stage, done=0, total=0, stage_started=time.time())

        def progress(done: int, total: int) -> None:
            self.check_stop()
            with self._lock:
                self.status.update(done=done, total=total)

        yield progress
        seconds = round(time.perf_counter() - started, 3)
        key = f"{arm}/{stage}"
        self._seconds[key].append(seconds)
        self._remaining[key] = max(0, self._remaining.get(key, 0) - 1)
        self._write({"kind": "span", "round": round_, "arm": arm, "stage": stage, "seconds": seconds})
        if self.echo:
            self.echo(f"round {round_}  {arm:<14} {stage:<9} {seconds:7.1f} s   ETA {clock(self.eta_s())}")

    def eta_s(self) -> float | None:
        """Seconds until the run ends, from the mean of each stage so far; None before anything is known."""
        by_stage: dict[str, list[float]] = defaultdict(list)
        for key, values in list(self._seconds.items()):
            by_stage[key.split("/")[1]] += values
        if not by_stage:
            return None
        total = 0.0
        for key, count in list(self._remaining.items()):
            seen = self._seconds.get(key) or by_stage.get(key.split("/")[1]) or [0.0]
            total += count * sum(seen[-5:]) / len(seen[-5:])
        return total

    def state(self, state: str, **facts: Any) -> None:
        """Change the run's state and say so: the status last, for it is what counts."""
        self._write({"kind": "state", "state": state, **facts})
        self._update(state=state, **facts)

    def check_stop(self) -> None:
        """Raise Stopped when the stop file is there."""
        if self.run.stop_path.exists():
            raise Stopped

    def close(self) -> None:
        """Stop the heartbeat; the last status stays."""
        self._closing.set()
        self._heart.join()

    def _update(self, **facts: Any) -> None:
        with self._lock:
            self.status.update(facts, heartbeat=time.time(), eta_s=self.eta_s(), rss_bytes=psutil.Process().memory_info().rss)
            try:
                self.run.write_status(redacted(self.status))
            except OSError as error:
                raise _refused(self.run.status_path, error) from error

    def _beat(self) -> None:
        while not self._closing.wait(HEARTBEAT_S):
            try:
                self._update()
            except RunFailed:
                continue  # a full disk is reported by the stage that meets it

    def _write(self, event: dict[str, Any]) -> None:
        line = json.dumps({"t": round(time.time(), 3), **redacted(event)}) + "\n"
        try:
            with self.run.events_path.open("a", encoding="utf-8") as file:
                file.write("\n" * self._torn + line)
            self._torn = False
        except OSError as error:
            self._torn = True
            raise _refused(self.run.events_path, error) from error


def _refused(path: Path, error: OSError) -> RunFailed:
    return RunFailed(f"cannot write {path}: {error.strerror or error}; free space or fix the disk, then resume.")


def clock(seconds: float | None) -> str:
    """Seconds as h:mm:ss; a dash where unknown."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
