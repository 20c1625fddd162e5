"""One stage of a round as a directory: read it whole, write it whole. Which directories there are is store.py's business.

A stage exists if and only if its `_done.json` parses and the files that it names are there.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from dces_core.records import TABLES, table


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as handle:
        json.dump(value, handle, indent=1, sort_keys=True, allow_nan=False)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> Any | None:
    """A JSON file's value, None where it is absent or torn."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class Stage:
    """One directory of a run. `digest` identifies its content; None while it does not exist."""

    path: Path

    @property
    def done(self) -> dict[str, Any] | None:
        """What `_done.json` says, or None."""
        value = read_json(self.path / "_done.json")
        return value if isinstance(value, dict) and "files" in value else None

    def valid(self, inputs: str, need: tuple[str, ...] = ()) -> bool:
        """Finished, from these inputs, with every kept file (and every one in `need`) as it was written."""
        done = self.done
        if done is None or done["inputs"] != inputs:
            return False
        for name, entry in done["files"].items():
            path = self.path / name
            if entry.get("pruned") and name not in need:
                continue
            if not path.is_file() or path.stat().st_size != entry["bytes"] or sha256_of(path) != entry["sha256"]:
                return False
        return all(name in done["files"] for name in need)

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
        """A JSON file of the stage, None where absent."""
        return read_json(self.path / f"{name}.json")

    def frame(self, name: str) -> pl.DataFrame:
        """A table of the stage, empty with the right columns where it is absent or unreadable."""
        path = self.path / f"{name}.parquet"
        schema = TABLES.get(name, {})
        try:
            return pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError):
            return pl.DataFrame(schema=schema)


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


def sync(path: Path) -> None:
    """Make a file or directory survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
