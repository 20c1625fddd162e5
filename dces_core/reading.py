"""Read files that anybody may have made: regular ones only, bounded, strict; and keep of a JSON value what has the wanted form."""

from __future__ import annotations

import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 64 * 2**20
MAX_TOML_BYTES = 2**16
MAX_DOTS = 500
MAX_DEPTH = 32
#: Larger figures than anything that a run counts: bytes, seconds since the epoch.
MAX_NUMBER = 1e13

Test = Callable[[Any], bool]


def is_file(path: Path) -> bool:
    """Whether there is a regular file; also False where no file can have the name."""
    try:
        return path.is_file()
    except OSError:
        return False


def read_bytes(path: Path, limit: int, offset: int = 0) -> bytes:
    """At most `limit` bytes of a regular file. Raises OSError for anything else: a pipe or a device would never end."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except ValueError:
        raise OSError(f"no file can have the name {str(path)[:80]!r}") from None
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(f"{path} is not a regular file")
        file.seek(offset)
        return file.read(limit)


def read_text(path: Path, limit: int) -> str:
    """A UTF-8 file of at most `limit` bytes, with or without a byte order mark. Raises OSError, or ValueError where it is longer."""
    data = read_bytes(path, limit + 1)
    if len(data) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return data.decode("utf-8-sig")


def parse_json(text: str | bytes) -> Any:
    """A JSON value; a number that is not finite is null, half a surrogate pair "?". Raises ValueError, also beyond MAX_DEPTH levels."""
    try:
        value = json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    openers = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if openers > MAX_DEPTH and _deeper(value):
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    if re.search(rb"\\u[dD]", text) if isinstance(text, bytes) else re.search(r"\\u[dD]", text):
        value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    return value


def json_lines(path: Path, limit: int, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Objects of a JSONL file from a byte offset on, and the offset to go on from; a torn last line waits, a damaged one is left out."""
    try:
        data = read_bytes(path, limit, offset)
    except OSError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    found = []
    for line in whole.splitlines():
        try:
            value = parse_json(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found, offset + len(whole)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file. Raises OSError, or ValueError where it is no TOML, longer than MAX_TOML_BYTES or nested beyond MAX_DEPTH."""
    return _parse_toml(read_text(path, MAX_TOML_BYTES))


def toml_value(text: str) -> Any:
    """A TOML value where the text is one, the text itself otherwise; `a,b` is a list. Raises ValueError where it is beyond the limits."""
    if len(text) > MAX_TOML_BYTES:
        raise ValueError(f"it has more than {MAX_TOML_BYTES:,} characters")
    try:
        return _parse_toml(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return [part.strip() for part in text.split(",")] if "," in text else text


def _parse_toml(text: str) -> dict[str, Any]:
    if max(part.count(".") for part in re.split("[=\n]", text)) > MAX_DOTS:  # the parser needs the square of a dotted key's length
        raise ValueError(f"it has more than {MAX_DOTS} dots in a row")
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if _deeper(values):
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    return values


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _deeper(value: Any) -> bool:
    """Whether a value has more than MAX_DEPTH levels of lists and objects."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = [item for one in level for item in (one.values() if isinstance(one, dict) else one)]
        level = [item for item in inner if isinstance(item, dict | list)]
        if not level:
            return False
    return True


# forms ------------------------------------------------------------------------------------------------------------------


def fitted(value: Any, form: Mapping[str, Test]) -> dict[str, Any]:
    """An object whose fields of another form than `form` asks for are null; empty where it is no object."""
    found = value if isinstance(value, dict) else {}
    return {key: None if key in form and item is not None and not form[key](item) else item for key, item in found.items()}


def is_text(value: Any) -> bool:
    """A string."""
    return isinstance(value, str)


def is_number(value: Any) -> bool:
    """A number of a size that runs have."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -MAX_NUMBER <= value <= MAX_NUMBER


def is_share(value: Any) -> bool:
    """A number from 0 to 1."""
    return is_number(value) and 0 <= value <= 1


def is_size(value: Any) -> bool:
    """A number that is not negative."""
    return is_number(value) and value >= 0


def is_count(value: Any) -> bool:
    """A whole number that is not negative and fits a table."""
    return is_size(value) and isinstance(value, int) and value < 2**31


def all_of(test: Test) -> Test:
    """A list of such values."""
    return lambda value: isinstance(value, list) and all(map(test, value))


def fields_of(test: Test) -> Test:
    """An object of such values."""
    return lambda value: isinstance(value, dict) and all(map(test, value.values()))
