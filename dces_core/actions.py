"""What `dces watch` did: an append-only log. Before an action begins the log says so, so that no restart repeats it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dces_core.errors import UserError, reason_of
from dces_core.reading import all_of, fitted, is_count, is_file, is_number, is_text, json_lines
from dces_core.redact import redacted
from dces_core.store import Run, runs_root

MAX_BYTES = 64 * 2**20
FORM = {
    "t": is_number, "source": is_text, "rule": is_text, "round": is_count, "action": is_text, "state": is_text, "text": is_text,
    "planned": all_of(is_text), "run": is_text,
}  # fmt: skip
NEEDED = ("t", "rule", "round", "action", "state", "text")
FIRED = "fired"


class Log:
    """One actions.jsonl. An entry: t, source, rule, round, action (`fired`, or one of the rule's), state (begun, done, failed), text."""

    def __init__(self, path: Path, source: str) -> None:
        self.path, self.source = path, source

    def entries(self) -> list[dict[str, Any]]:
        """All whole entries, oldest first."""
        found = (fitted(value, FORM) for value in json_lines(self.path, MAX_BYTES)[0]) if is_file(self.path) else iter(())
        return [entry for entry in found if all(entry.get(name) is not None for name in NEEDED)]

    def add(self, rule: str, round_: int, action: str, state: str, text: str, **facts: Any) -> None:
        """Append an entry, without the secrets of the environment. Raises UserError where the disk refuses."""
        entry = {"t": round(time.time(), 3), "source": self.source, "rule": rule, "round": round_, "action": action, "state": state}
        line = json.dumps(redacted({**entry, "text": text, **facts}))
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" * self._torn() + line + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            why = "an action that is not logged is not taken: free space or fix the disk"
            raise UserError(f"the log {self.path} cannot be written: {reason_of(error)}; {why}, then watch again.") from None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Only one process acts on what is watched. Raises UserError where there is one, or the log has no place."""
        lock = FileLock(self.path.with_suffix(".lock"))
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"{self.source} is watched by another process already; end that one first.") from None
        except OSError as error:
            raise UserError(f"the log {self.path} has no place: {reason_of(error)}; fix the disk, or set DCES_RUNS.") from None
        try:
            yield
        finally:
            lock.release()

    def _torn(self) -> bool:
        """Whether a watcher that was killed left half a line."""
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            return file.read(1) not in (b"", b"\n")


def of_run(run: Run) -> Log:
    """The log of a run."""
    return Log(run.actions_path, run.id)


def logs_of_others() -> list[Path]:
    """The logs of everything else that is or was watched."""
    return sorted(runs_root().glob(".watch/*/actions.jsonl"))


def of_others() -> list[dict[str, Any]]:
    """Entries of everything else that is or was watched."""
    return [entry for path in logs_of_others() for entry in Log(path, path.parent.name).entries()]
