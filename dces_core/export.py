"""Tables as text and bytes: terminal table, CSV that no spreadsheet executes, strict JSON, Parquet."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import polars as pl

from dces_core.errors import UserError
from dces_core.store import Run

#: A spreadsheet reads a cell that starts with one of these as a formula.
FORMULA = r"^[=+\-@\t\r]"
TEXT_TYPES = (pl.String, pl.Categorical, pl.Enum)
#: What Embedding Atlas is asked to draw comes first.
ATLAS = ("x", "y", "text", "arm", "round", "role", "cluster", "fate", "topic", "prompt")


def to_csv(frame: pl.DataFrame) -> str:
    """CSV with a header; undefined cells are empty, nested cells are JSON, texts that look like formulas get a leading '."""
    flat = frame.with_columns([_as_json(frame[name]) for name, kind in frame.schema.items() if kind.is_nested()])
    texts = [name for name, kind in flat.schema.items() if isinstance(kind, TEXT_TYPES)]
    safe = [pl.col(name).cast(pl.String).str.replace(f"({FORMULA})", "'${1}") for name in texts]
    return flat.with_columns(safe).fill_nan(None).write_csv()


def to_json(frame: pl.DataFrame) -> str:
    """A JSON array of rows; undefined is null."""
    return json.dumps(frame.fill_nan(None).to_dicts(), ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def to_parquet(frame: pl.DataFrame) -> bytes:
    """Parquet, compressed with zstd."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd")
    return buffer.getvalue()


def to_table(frame: pl.DataFrame, width: int | None = None) -> str:
    """A table for the terminal; control characters are shown, not obeyed."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD)
    for name, kind in frame.schema.items():
        table.add_column(Text(name), justify="right" if kind.is_numeric() else "left", overflow="fold")
    for row in frame.iter_rows():
        table.add_row(*[Text(_cell(value)) for value in row])
    console = Console(file=io.StringIO(), width=width, no_color=True)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def emit(frame: pl.DataFrame, kind: str, out: Path | None = None) -> int:
    """Write a table (`kind`: table, csv, json or parquet) to stdout, or to a file, whose name is then printed.

    Returns exit code 0. Raises UserError where the file cannot be written.
    """
    if kind == "parquet":
        data = to_parquet(frame)
    else:
        data = {"csv": to_csv, "json": to_json, "table": to_table}[kind](frame).encode()
    if out is None:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
        return 0
    try:
        out.write_bytes(data)
    except OSError as error:
        raise UserError(f"out = {str(out)!r} cannot be written: {error.strerror}.") from None
    print(out)
    return 0


def for_atlas(run: Run, arms: list[str]) -> pl.DataFrame:
    """The samples of all finished rounds as a table that Embedding Atlas opens: flat columns, `x` and `y` of the run's one frame.

    Samples that the map has not placed yet are left out; without a map the two columns are, and Embedding Atlas makes its own.
    Raises UserError where there is no sample.
    """
    unknown = [arm for arm in arms if arm not in run.config.arms]
    if unknown:
        raise UserError(f"arm = {unknown[0]!r} is not in run {run.id!r}; it has: {', '.join(run.config.arms)}.")
    frames = [run.samples(arm, round_) for arm in arms or run.config.arms for round_ in run.finished(arm, "select")]
    if not frames:
        raise UserError(f"run {run.id!r} has no samples yet; wait for its first selection.")
    found = pl.concat(frames).drop("edits")
    placed = found.filter(pl.col("x").is_not_null())
    if placed.is_empty():
        return found.select(*ATLAS[2:], pl.exclude(*ATLAS))
    return placed.select(*ATLAS, pl.exclude(*ATLAS))


def _as_json(column: pl.Series) -> pl.Series:
    cells = [None if value is None else json.dumps(value, ensure_ascii=False) for value in column.to_list()]
    return pl.Series(column.name, cells, dtype=pl.String)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
