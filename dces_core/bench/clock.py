"""Timing side by side, and the memory of what runs."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from types import TracebackType

import psutil

from dces_core import machine

POLL_S = 0.005


@dataclass(frozen=True)
class Pair:
    """Median units per second of both sides, and the units that ours did in all repetitions."""

    ours: float
    peer: float
    n: int

    @property
    def ratio(self) -> float:
        """Our throughput / the peer's."""
        return self.ours / self.peer


def alternate(ours: Callable[[int], int], peer: Callable[[int], int], repeats: int, prepare: Callable[[int], object] | None = None) -> Pair:
    """Time both in turn, `repeats` times, after one untimed turn. They get the repetition (0: untimed) and return the units done.

    `prepare` gets the repetition before each turn of the peer; its time does not count. Freed memory is kept in our turns, as a worker
    keeps it, and given back in the peer's, as in its own process.
    """
    turns = []
    for i in range(repeats + 1):
        own = _rate(ours, i, keep=True)
        if prepare:
            prepare(i)
        turns.append((own, _rate(peer, i, keep=False)))
    counted = turns[1:]
    return Pair(median(ours[0] for ours, _ in counted), median(peer[0] for _, peer in counted), sum(ours[1] for ours, _ in counted))


def _rate(work: Callable[[int], int], repetition: int, keep: bool) -> tuple[float, int]:
    machine.keep_memory(keep)
    started = time.perf_counter()
    units = work(repetition)
    return units / (time.perf_counter() - started), units


class PeakMemory:
    """Resident memory inside a `with`, sampled every 5 ms by a thread: `peak_bytes`, and `above_bytes` what was there before."""

    def __enter__(self) -> PeakMemory:
        """Start to sample."""
        gc.collect()
        machine.return_memory()  # free pages would hide new ones
        self._process = psutil.Process()
        self.before_bytes = self.peak_bytes = self._process.memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop."""
        self._done.set()
        self._thread.join()
        self._sample()

    @property
    def above_bytes(self) -> int:
        """Peak above what was resident before."""
        return int(self.peak_bytes - self.before_bytes)

    def _watch(self) -> None:
        while not self._done.wait(POLL_S):
            self._sample()

    def _sample(self) -> None:
        self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss)
