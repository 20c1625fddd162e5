"""A small coverage-guided fuzzer: an input that reaches a new line of dces_core is kept, and others are made from it."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

PIECES = (
    b"\0",
    b"\n",
    b"\r\n",
    b",",
    b'"',
    b"'",
    b"[",
    b"]",
    b"{",
    b"}",
    b"=",
    b".",
    b":",
    b"#",
    b"\\",
    b"\\ud800",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"NaN",
    b"Infinity",
    b"-1",
    b"1e999",
    b"0x",
    b"9" * 5000,
    b"[" * 1100,
    b'{"a":' * 40,
    b"null",
    b"true",
    b'""',
    b"''",
    b"../",
    b"/dev/zero",
    b"text",
    b"prompt",
    b"reference",
    b"a" * 300,
    "é漢😀\u202e".encode(),
    b"1979-05-27",
    b"PAR1",
    b"\x7f\xff\xff\xff",
)
LONGEST = 20_000


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: a piece put in, a stretch cut, doubled or turned, a byte flipped, the end torn off."""
    body = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(body) + 1)
        end = min(len(body), at + rng.choice((1, 2, 8, 64)))
        match rng.randrange(6):
            case 0 | 1:
                body[at:at] = rng.choice(PIECES)
            case 2:
                del body[at:end]
            case 3:
                body[at:at] = body[at:end] * rng.choice((1, 3, 40))
            case 4 if at < len(body):
                body[at] ^= 1 << rng.randrange(8)
            case _:
                del body[at if rng.random() < 0.3 else len(body) :]
    return bytes(body[:LONGEST])


class Lines:
    """Lines of dces_core that ran inside the block. Another tracer of this thread, such as a coverage tool, rests meanwhile."""

    def __init__(self) -> None:
        self.reached: set[tuple[str, int]] = set()

    def __enter__(self) -> Lines:
        self._before = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _called(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        return self._line if "/dces_core/" in frame.f_code.co_filename else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        self.reached.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line


def fuzz(try_one: Callable[[bytes], None], seeds: list[bytes], count: int, rng: random.Random) -> int:
    """Try the seeds and `count` inputs made from what was kept; how many lines were reached."""
    kept, reached = [], set()
    for index in range(len(seeds) + count):
        data = seeds[index] if index < len(seeds) else mutated(rng.choice(kept), rng)
        with Lines() as lines:
            try_one(data)
        if index < len(seeds) or not lines.reached <= reached:
            kept.append(data)
        reached |= lines.reached
    return len(reached)
