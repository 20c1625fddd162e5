"""One stage of a round as a directory: read it whole, write it whole. Which directories there are is store.py's business.

A stage exists if and only if its `_done.json` parses and the files that it names are there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from dces_core.reading import MAX_JSON_BYTES, is_size, is_text, parse_json, read_text
from dces_core.records import TABLES, table


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        with temporary.open("w", encoding="utf-8") as handle:
            json.dump(value, handle, indent=1, sort_keys=True, allow_nan=False)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def read_json(path: Path) -> Any | None:
    """A JSON file's value, None where it is absent, torn, or beyond the limits of reading.py."""
    try:
        return parse_json(read_text(path, MAX_JSON_BYTES))
    except (OSError, ValueError):
        return None


def read_table(path: Path) -> pl.DataFrame:
    """A Parquet file. Raises OSError or PolarsError, whatever is wrong with it."""
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        return pl.read_parquet(path, glob=False)
    except pl.exceptions.PanicException as error:
        raise pl.exceptions.ComputeError(f"{path.name} is no Parquet: {error}") from None


def seal_of(value: dict[str, Any]) -> str:
    """sha256 over an object, its own `seal` aside."""
    body = {key: item for key, item in value.items() if key != "seal"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Replace a JSON file atomically; its `seal` shows later damage."""
    write_json(path, {**value, "seal": seal_of(value)})


def unbroken(value: dict[str, Any]) -> bool:
    """Whether an object is as `write_sealed` wrote it; one of an older version has no seal."""
    return "seal" not in value or value["seal"] == seal_of(value)


@dataclass(frozen=True)
class Stage:
    """One directory of a run. `digest` identifies its content; None while it does not exist."""

    path: Path

    @property
    def done(self) -> dict[str, Any] | None:
        """What `_done.json` says, or None."""
        value = read_json(self.path / "_done.json")
        if not isinstance(value, dict) or not is_text(value.get("inputs")) or not isinstance(value.get("files"), dict):
            return None
        return value if unbroken(value) and all(map(_is_entry, value["files"], value["files"].values())) else None

    def valid(self, inputs: str, need: tuple[str, ...] = ()) -> bool:
        """Finished, from these inputs, with every kept file (and every one in `need`) as it was written."""
        done = self.done
        if done is None or done["inputs"] != inputs:
            return False
        return not self.damaged() and all(name in done["files"] and self.intact(name) for name in need)

    def damaged(self) -> list[str]:
        """Names of its files that are not as they were written; deleted weights are. Nothing where there is no directory."""
        done = self.done
        if done is None:
            return ["_done.json"] if self.path.is_dir() else []
        return [name for name, entry in done["files"].items() if not entry.get("pruned") and not _is_as_written(self.file(name), entry)]

    def intact(self, name: str) -> bool:
        """Whether a file is as `_done.json` says; one that it does not mention is."""
        entry = (self.done or {"files": {}})["files"].get(name)
        return entry is None or _is_as_written(self.file(name), entry)

    @property
    def digest(self) -> str:
        """sha256 over the names and hashes of the stage's files; raises if the stage is not done."""
        done = self.done
        assert done is not None, f"{self.path} is not done"
        body = {name: entry["sha256"] for name, entry in done["files"].items()}
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    def file(self, name: str) -> Path:
        """Path of a file of this stage."""
        return self.path / name

    def json(self, name: str) -> Any | None:
        """A JSON file of the stage, None where it is absent or damaged."""
        return read_json(self.path / f"{name}.json") if self.intact(f"{name}.json") else None

    def frame(self, name: str) -> pl.DataFrame:
        """A table of the stage, empty with the right columns where it is absent, damaged or unreadable."""
        try:
            if not self.intact(f"{name}.parquet"):
                raise OSError(f"{name}.parquet is damaged")
            frame = read_table(self.path / f"{name}.parquet")
            return table(name, frame) if name in TABLES else frame
        except (OSError, pl.exceptions.PolarsError):
            return pl.DataFrame(schema=TABLES.get(name, {}))


def _is_as_written(path: Path, entry: dict[str, Any]) -> bool:
    """Whether a file has the size and the hash of its entry."""
    try:
        return path.is_file() and path.stat().st_size == entry["bytes"] and sha256_of(path) == entry["sha256"]
    except OSError:
        return False


def _is_entry(name: str, entry: Any) -> bool:
    """Whether `_done.json` may say this of a file: a name without folders, its size and its hash."""
    plain = name not in ("", ".", "..") and "/" not in name and "\0" not in name
    return plain and isinstance(entry, dict) and is_size(entry.get("bytes")) and is_text(entry.get("sha256"))


class Draft:
    """A stage in the making: a temporary directory beside its target."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, int] = {}

    def table(self, name: str, rows: list[dict[str, object]] | pl.DataFrame) -> None:
        """Write a table; its schema is enforced where records.py has one."""
        frame = table(name, rows) if name in TABLES else rows
        assert isinstance(frame, pl.DataFrame)
        frame.write_parquet(self.path / f"{name}.parquet", compression="zstd")
        self.rows[f"{name}.parquet"] = frame.height

    def json(self, name: str, value: Any) -> None:
        """Write a JSON file."""
        write_json(self.path / f"{name}.json", value)

    def file(self, name: str) -> Path:
        """Path for a file that the caller writes itself."""
        return self.path / name


def entries(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything below a folder and what the system says of it, links not followed; what goes away meanwhile is left out."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with suppress(OSError):
                yield Path(parent, name), os.lstat(os.path.join(parent, name))


def link(source: Path | str, target: Path | str) -> None:
    """A hard link where the file system has them, else a copy: no file of a stage is ever changed in place.

    Raises FileNotFoundError where the source is gone.
    """
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def disk_error(error: Exception) -> str | None:
    """What the system said where an error is one of the disk, also one that a native library met; None where it is another."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    found = re.search(r"([^:]+) \(os error \d+\)", str(error))
    return found[1].strip() if found else None


def leftovers(folder: Path) -> list[Path]:
    """What a killed writer left below a run's directory: stages in the making, and JSON files that were not yet renamed."""
    patterns = ("round-*/*/.tmp-*", "round-*/*/[!.]*/.*", ".status.json.*")
    return [path for pattern in patterns for path in sorted(folder.glob(pattern))]


def sweep(folder: Path) -> None:
    """Remove what a killed writer left."""
    for path in leftovers(folder):
        with suppress(OSError):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def sync(path: Path) -> None:
    """Make a file or directory survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
