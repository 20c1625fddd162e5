"""How often pages look again: every few seconds for some viewers, less often in a crowd, so that viewers do not slow the run down.

A part that is drawn again by a timer is made with `timed`. What its beats cost is measured; when all of them together would take more
than SHARE of the machine, every timer of the server is stretched by the same power of two.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from functools import wraps
from typing import Any

import streamlit as st
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.runtime.scriptrunner import get_script_run_ctx

from dces_core.machine import cores

SHARE = 0.03  # of the machine that all beats together may take: a run that uses all of it slows down by as much
OVERHEAD = 2.0  # processor time of the server / that of the drawing alone
WEIGHT = 0.3  # of the newest beat in the running mean of its cost
GONE = 2.5  # intervals after which a timer that did not beat belongs to a closed tab


def stretch(load: float, cores: int, now: int = 1) -> int:
    """By how much to stretch every timer: a power of two.

    `load`: processor seconds per second if nothing were stretched; `now`: the present stretch. It grows as soon as the load does not fit
    and shrinks only when half of it would leave half of the room free, so that it does not swing.
    """
    wanted = load / (SHARE * cores)
    while now < wanted:
        now *= 2
    while now > 1 and wanted <= now / 4:
        now //= 2
    return now


class Pace:
    """The timers of all tabs of a server: when each beat last and what a beat costs."""

    def __init__(self, cores: int) -> None:
        self.stretch = 1
        self._cores = cores
        self._lock = threading.Lock()
        self._timers: dict[str, tuple[float, float, float]] = {}  # name -> last beat (monotonic), base interval, mean cost, all in s

    def expect(self, timer: str, base_s: float, now_s: float) -> None:
        """A timer begins; until it beats it costs what the others cost on average, so a crowd that comes at once is felt at once."""
        with self._lock:
            if timer not in self._timers and self._timers:
                cost_s = sum(cost for _, _, cost in self._timers.values()) / len(self._timers)
                self._timers[timer] = (now_s, base_s, cost_s)
                self._stretch(now_s)

    def note(self, timer: str, base_s: float, cost_s: float, now_s: float) -> None:
        """A beat of a timer that cost `cost_s` of processor time ended at `now_s`."""
        with self._lock:
            before = self._timers.get(timer)
            mean = cost_s if before is None else (1 - WEIGHT) * before[2] + WEIGHT * cost_s
            self._timers[timer] = (now_s, base_s, mean)
            self._stretch(now_s)

    def _stretch(self, now_s: float) -> None:
        """Forget closed tabs, and stretch by what the others cost."""
        self._timers = {name: one for name, one in self._timers.items() if now_s - one[0] <= GONE * one[1] * self.stretch}
        load = OVERHEAD * sum(cost / base for _, base, cost in self._timers.values())
        self.stretch = stretch(load, self._cores, self.stretch)

    def add(self, timer: str, cost_s: float) -> None:
        """The beat of a timer made its page be drawn anew, which cost that much."""
        with self._lock:
            if timer in self._timers:
                last_s, base_s, mean = self._timers[timer]
                self._timers[timer] = (last_s, base_s, mean + WEIGHT * cost_s)


PACE = Pace(cores())


def timed(draw: Callable[..., None], base_s: float | None) -> Callable[..., None]:
    """`draw` as a part of the page that is drawn again every `base_s` seconds, less often in a crowd; None: once, with the page."""
    if base_s is None:
        return part(draw)
    timer = f"{st.session_state.setdefault('tab id', uuid.uuid4().hex)}/{draw.__module__}.{draw.__qualname__}"
    PACE.expect(timer, base_s, time.monotonic())
    every_s = base_s * PACE.stretch
    sent = [every_s]

    @wraps(draw)
    def beat(*arguments: Any) -> None:
        started, redraws = time.thread_time(), True
        try:
            draw(*arguments)
            redraws = False
        finally:
            PACE.note(timer, base_s, time.thread_time() - started, time.monotonic())
            if redraws:
                st.session_state["beat that redraws"] = timer
        wanted_s = base_s * PACE.stretch
        if wanted_s != sent[0] and _beat_every(wanted_s):
            sent[0] = wanted_s

    return part(beat, every_s)


def part(draw: Callable[..., None], every_s: float | None = None) -> Callable[..., None]:
    """`draw` as a fragment in a box of its own.

    When a timer beats while its page is being drawn, Streamlit holds back what the page drew of the fragment, takes what was there off
    the page, and draws it anew at its old place. Without a box what follows has moved up there, or the page ends before, and breaks.
    """
    fragment = st.fragment(draw, run_every=every_s)

    def boxed(*arguments: Any) -> None:
        with st.container():
            fragment(*arguments)

    return boxed


def drawn(cost_s: float) -> None:
    """The whole page was drawn, which cost that much: the beat that asked for it pays."""
    timer = st.session_state.pop("beat that redraws", None)
    if timer is not None:
        PACE.add(timer, cost_s)


def _beat_every(interval_s: float) -> bool:
    """Give the fragment that is at work another interval, which no public call does; False while the whole page is drawn."""
    context = get_script_run_ctx()
    drawing = (context.fragment_ids_this_run if context else None) or []
    if context is None or len(drawing) != 1:
        return False
    message = ForwardMsg()
    message.auto_rerun.interval = interval_s
    message.auto_rerun.fragment_id = drawing[0]
    context.enqueue(message)
    return True
