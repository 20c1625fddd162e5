"""Secrets of the environment never reach a run directory: what a worker says goes through here."""

from __future__ import annotations

import os
import re
import sys
from typing import Any, TextIO

#: Variables whose values are secrets. One that ends in FILE or PATH holds a path.
NAMES = re.compile(r"(?:^|_)(?:SECRET|TOKEN|KEY|PASSWORD|CREDENTIALS)S?$", re.IGNORECASE)
SHORTEST = 8  # a shorter value is an ordinary word more often than a secret


def secrets() -> dict[str, str]:
    """Value -> name of every secret in the environment, the longest first."""
    found = {value: name for name, value in os.environ.items() if NAMES.search(name) and len(value) >= SHORTEST}
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def redact(text: str) -> str:
    """The text with `[NAME]` in place of every secret."""
    for value, name in secrets().items():
        text = text.replace(value, f"[{name}]")
    return text


def redacted(value: Any) -> Any:
    """As `redact`, for all texts inside lists and dicts."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: redacted(item) for key, item in value.items()}
    return [redacted(item) for item in value] if isinstance(value, list | tuple) else value


class Stream:
    """A text stream that redacts what is written to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text without its secrets; returns its length."""
        self._stream.write(redact(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_streams() -> None:
    """Redact what this process prints from now on."""
    for name in ("stdout", "stderr"):
        setattr(sys, name, Stream(getattr(sys, name)))
