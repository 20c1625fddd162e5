"""Pools of one's own: JSONL, CSV or Parquet, a table, or rows, with `prompt` and `text`. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from dces_core.data import Row, rows_of, text_in
from dces_core.errors import UserError

Source = str | Path | pl.DataFrame | Iterable[Mapping[str, Any]]
Parse = Callable[[Any], Any]

NEEDED = ("prompt", "text")
FORMATS = (".jsonl", ".csv", ".parquet")
IDS = pl.List(pl.Int32)
#: Columns that a pool may have besides those that it needs. The last two are its tokens, from a run of this program.
OPTIONAL: dict[str, pl.DataType | type[pl.DataType]] = {
    "id": pl.String, "round": pl.Int32, "logprob": pl.Float64, "entropy": pl.Float64, "ended": pl.Boolean,
    "prompt_id": pl.String, "topic": pl.String, "prompt_ids": IDS, "ids": IDS,
}  # fmt: skip
COLUMNS = (*NEEDED, *OPTIONAL)
SLACK = 1e-6  # a mean log-probability may be above 0 by rounding


def read_pool(source: Source) -> pl.DataFrame:
    """A pool with all COLUMNS; what it does not have is null, ids excepted (`row-000001`, ...).

    A text may be empty, a prompt too; both must be there. Raises UserError for what cannot be used, naming the row.
    """
    field, rows = _rows(source)
    missing = [name for name in NEEDED if name not in rows[0][1]]
    if missing:
        have = ", ".join(rows[0][1]) or "none that is known"
        raise UserError(f"{field} has no column {' and no column '.join(missing)}; rename its columns (known ones it has: {have}).")
    values: dict[str, list[Any]] = {name: [text_in(row, name, where, field) for where, row in rows] for name in NEEDED}
    for name, parse in PARSERS.items():
        values[name] = [_value(row, name, parse, where, field) for where, row in rows]
    frame = pl.DataFrame(values, schema={**dict.fromkeys(NEEDED, pl.String), **OPTIONAL})
    made = pl.Series([f"row-{number:06d}" for number in range(1, frame.height + 1)])
    frame = frame.with_columns(pl.col("id").fill_null(made), tokens=pl.lit(None, pl.Int32))
    twice = frame.filter(frame["id"].is_duplicated())
    if twice.height:
        raise UserError(f"{field}: id {twice['id'][0][:80]!r} occurs twice; make ids unique, or drop the column.")
    return frame


def fingerprint(pool: pl.DataFrame) -> str:
    """sha256 over the prompts and texts."""
    body = json.dumps([pool["prompt"].to_list(), pool["text"].to_list()])
    return hashlib.sha256(body.encode()).hexdigest()


def recognised(pool: pl.DataFrame) -> list[str]:
    """The columns that hold anything."""
    made = pool["id"].str.contains(r"^row-\d{6,}$").all()
    return [name for name in COLUMNS if name in NEEDED or (pool[name].is_not_null().any() and not (name == "id" and made))]


def _rows(source: Source) -> tuple[str, list[tuple[str, Row]]]:
    """What to call the pool, and its rows, each with where it stands; at least one."""
    if isinstance(source, str | Path):
        field = f"pool = {str(source)!r}"
        suffix = Path(source).suffix.lower()
        if suffix == ".txt":
            raise UserError(f"{field} has the ending '.txt'; use one of {', '.join(FORMATS)}.")
        return field, list(rows_of(Path(source), field, COLUMNS))
    given = source.iter_rows(named=True) if isinstance(source, pl.DataFrame) else source
    rows = [(f"row {number}", {name: row[name] for name in COLUMNS if name in row}) for number, row in enumerate(given, 1)]
    if not rows:
        raise UserError("pool has no rows; give it at least one.")
    return "pool", rows


def _value(row: Row, name: str, parse: Parse, where: str, field: str) -> Any:
    """An optional value; null where it is absent, null or, as in CSV, blank."""
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        return parse(value)
    except UnicodeEncodeError:
        raise UserError(f"{field}, {where}: {name} has half a surrogate pair; write the file as UTF-8.") from None
    except ValueError as error:
        shown = repr(value)[:60]
        raise UserError(f"{field}, {where}: {name} = {shown} is not {error}; correct it, or drop the column.") from None


def _label(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError("a string or a whole number")
    str(value).encode()  # a ValueError for half a surrogate pair
    return str(value)


def _number(value: Any, words: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (ValueError, TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(words)
    return number


def _logprob(value: Any) -> float:
    words = "a mean log-probability per token in nats, at most 0"
    number = _number(value, words)
    if number > SLACK:
        raise ValueError(words)
    return number


def _entropy(value: Any) -> float:
    words = "a mean entropy per token in nats, at least 0"
    number = _number(value, words)
    if number < -SLACK:
        raise ValueError(words)
    return number


def _round(value: Any) -> int:
    number = _number(value, "a whole number from 1 on")
    if not number.is_integer() or not 1 <= number <= 2**31 - 1:
        raise ValueError("a whole number from 1 on")
    return int(number)


def _flag(value: Any) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    if str(value).lower() not in known:
        raise ValueError("true or false")
    return known[str(value).lower()]


def _ids(value: Any) -> list[int]:
    if not isinstance(value, list) or any(type(item) is not int or not 0 <= item < 2**31 for item in value):
        raise ValueError("a list of token ids")
    return value


PARSERS: dict[str, Parse] = {
    "id": _label, "round": _round, "logprob": _logprob, "entropy": _entropy, "ended": _flag,
    "prompt_id": _label, "topic": _label, "prompt_ids": _ids, "ids": _ids,
}  # fmt: skip
