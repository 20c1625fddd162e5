"""`dces send`: a follower of a run's event log that passes finished rounds on to a tracker, each once.

It is a process of its own and only reads the run: whatever happens here, the run does not notice. What was sent is remembered
beside it, in OUT/sent-TRACKER.json, so the same command sends what is new. A tracker that fails is reported once and tried again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dces_core.errors import UserError, reason_of
from dces_core.stage import read_json, write_json
from dces_core.trackers import TRACKERS, Tracker
from dces_core.tracks import Source, Track

POLL_S = 1.0
FORM = {"identity", "rounds"}


@dataclass
class Sent:
    """Rows that were sent now, that had been sent before, and that the tracker did not take."""

    now: int = 0
    before: int = 0
    refused: int = 0


class Memory:
    """Which rounds of which tracks a tracker has."""

    def __init__(self, path: Path) -> None:
        self.path = path
        value = read_json(path)
        known = value if isinstance(value, dict) else {}
        self.tracks: dict[str, Any] = {name: one for name, one in known.items() if isinstance(one, dict) and one.keys() >= FORM}

    def rounds(self, track: Track) -> list[int]:
        """Rounds that were sent. Raises UserError where another run of this name was."""
        known = self.tracks.setdefault(track.name, {"identity": track.identity, "rounds": []})
        if known["identity"] != track.identity:
            raise UserError(f"out = {str(self.path.parent)!r} has another run of the name {track.name!r}; choose another --out.")
        rounds: list[int] = known["rounds"]
        return rounds

    def add(self, track: Track, round_: int) -> None:
        """Remember a round."""
        self.rounds(track).append(round_)
        write_json(self.path, self.tracks)


def send(source: Source, name: str, out: Path, follow: bool, warn: Callable[[str], None]) -> Sent:
    """Send what `out` has not got yet; with `follow`, until the run has ended. `warn` hears of the first failure.

    Raises UserError where the tracker's package is missing, the folder cannot be used, or another process sends to it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / f"sent-{name}.lock", timeout=0):
            memory = Memory(out / f"sent-{name}.json")
            before = sum(len(memory.rounds(track)) for track in source.tracks)
            tracker = TRACKERS[name](out)
            try:
                sent = _follow(source, tracker, memory, follow, _once(warn))
            finally:
                with suppress(Exception):  # what was sent was sent
                    tracker.close()
            sent.before = before
            return sent
    except Timeout:
        raise UserError(f"another dces send writes to out = {str(out)!r}; wait for it, or choose another --out.") from None
    except OSError as error:
        raise UserError(f"out = {str(out)!r} cannot be used: {error.strerror or error}; choose another --out.") from None


def _follow(source: Source, tracker: Tracker, memory: Memory, follow: bool, warn: Callable[[str], None]) -> Sent:
    sent, due = Sent(), True
    while True:
        alive = follow and source.alive()  # before the records are read: what ends now is still read below
        due = source.look() or due
        if due or not alive:
            sent.refused = _pass(source, tracker, memory, sent, warn)
            due = sent.refused > 0
        if not alive:
            return sent
        time.sleep(POLL_S)


def _pass(source: Source, tracker: Tracker, memory: Memory, sent: Sent, warn: Callable[[str], None]) -> int:
    """Send what is new, round by round; how many rows the tracker did not take."""
    refused = 0
    for track in source.tracks:
        known = set(memory.rounds(track))
        todo = [round_ for round_ in track.finished() if round_ not in known]
        for done, round_ in enumerate(todo):
            try:
                tracker.write(track, track.row(round_))
                memory.add(track, round_)
            except Exception as error:  # whatever another package raises
                warn(f"the tracker refuses round {round_} of {track.name}: {reason_of(error) or type(error).__name__}")
                refused += len(todo) - done
                break
            sent.now += 1
    return refused


def _once(warn: Callable[[str], None]) -> Callable[[str], None]:
    said: list[str] = []

    def first(text: str) -> None:
        if not said:
            said.append(text)
            warn(text)

    return first
