"""Prompts, references and texts: the shipped set and one's own files. Imports no torch.

A file has the columns `prompt` and `reference`, or `text` (continuation text; the engine later cuts its first
`data.context_tokens` tokens off as the prompt), and, if it likes, `id` and `topic`. Other columns are ignored; where both
forms are there, prompt and reference win. Rows whose prompt, reference or text is blank are left out and counted. JSONL, CSV
and Parquet are read in this way; a `.txt` file is continuation text, cut into blocks by `blocks_of`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from dces_core.config import RunConfig
from dces_core.errors import UserError
from dces_core.seeds import rng_for
from dces_core.store import SHIPPED

Kind = Literal["pairs", "texts"]
Row = dict[str, Any]

MAX_FILE_BYTES = 512 * 2**20
MAX_TEXT_BYTES = 2**20  # longest line of a file, and longest value of a column
MAX_ROWS = 5_000_000
BLOCK_WORDS = 300  # longest block of a .txt file
BREAK_WORDS = 150  # a paragraph's end closes a block that is at least this long
FORMATS = (".jsonl", ".csv", ".parquet", ".txt")
COLUMNS = ("id", "prompt", "reference", "text", "topic")


@dataclass(frozen=True)
class Pair:
    """A prompt and its real reference. Continuation text has prompt "" and the whole text as its reference."""

    id: str
    prompt: str
    reference: str
    topic: str


@dataclass(frozen=True)
class Corpus:
    """What one file holds. `skipped` counts the blank rows that were left out."""

    name: str
    kind: Kind
    pairs: list[Pair]
    skipped: int = 0


def load_train(config: RunConfig) -> Corpus:
    """The real training split. Raises UserError, as every loader here does, for a file that cannot be used."""
    return _load("train", f"data.train = {config.data.train!r}", config.data.train, "train")


def load_tests(config: RunConfig) -> dict[str, Corpus]:
    """Test sets by name. The shipped sets honour eval.split; one's own file is used as it is for both splits."""
    corpora = {}
    for name, value in config.data.tests.items():
        if value:
            corpora[name] = cap(_load(name, f"data.tests.{name} = {value!r}", value, config.eval.split), config)
    if not corpora:
        raise UserError("data.tests switches every test set off; leave at least one on, such as everyday = 'everyday'.")
    return corpora


def load_probes(config: RunConfig) -> list[Pair]:
    """The prompts to watch, with empty references. A file of probes needs the column `prompt` only."""
    value = config.data.probes
    field = f"data.probes = {value!r}"
    path = _shipped("probes") if value == "everyday" else Path(value)
    if path.suffix.lower() == ".txt":
        raise UserError(f"{field} is a .txt file; probes need JSONL, CSV or Parquet with the column prompt.")
    rows = list(_rows(path, field))
    _require(rows[0][1], ("prompt",), field)
    pairs = [pair for row in rows if (pair := _pair(*row, ("prompt",), field)) is not None]
    return _checked(pairs, field)


def cap(corpus: Corpus, config: RunConfig) -> Corpus:
    """At most eval.pairs pairs or eval.passages texts (0: all).

    They are the first n of one fixed shuffle, put back into file order: mixed in topic, the same for every seed and arm, and a
    smaller cap is a subset of a larger one.
    """
    limit = config.eval.pairs if corpus.kind == "pairs" else config.eval.passages
    if not limit or limit >= len(corpus.pairs):
        return corpus
    order = rng_for(0, 0, "eval-cap").permutation(len(corpus.pairs))
    return Corpus(corpus.name, corpus.kind, [corpus.pairs[i] for i in sorted(order[:limit])], corpus.skipped)


def fingerprint(corpus: Corpus) -> dict[str, Any]:
    """What a set holds, without saying where it lies: rows and a sha256 over their texts."""
    body = json.dumps([[pair.prompt, pair.reference] for pair in corpus.pairs])
    return {"rows": len(corpus.pairs), "sha256": hashlib.sha256(body.encode()).hexdigest()}


def blocks_of(lines: Iterable[str]) -> Iterator[str]:
    """Cut running text into blocks of at most BLOCK_WORDS words, in order, nothing left out.

    A block ends at the first blank line after BREAK_WORDS words; without one, before the line that would make it too long; a line
    that is too long by itself is cut between words. The last block may be short.
    """
    block: list[str] = []
    count = 0
    for line in lines:
        words = line.split()
        if not words and count >= BREAK_WORDS:
            yield "\n".join(block).strip()
            block, count = [], 0
        elif not words and block and block[-1]:
            block.append("")
        while words:
            if count + len(words) > BLOCK_WORDS and count >= BREAK_WORDS:
                yield "\n".join(block).strip()
                block, count = [], 0
                continue
            taken, words = words[: BLOCK_WORDS - count], words[BLOCK_WORDS - count :]
            block.append(" ".join(taken))
            count += len(taken)
    if count:
        yield "\n".join(block).strip()


# one file ---------------------------------------------------------------------------------------------------------------


def _shipped(name: str) -> Path:
    path = SHIPPED / "everyday" / f"{name}.jsonl"
    if not path.is_file():
        raise UserError(f"the shipped file {path.name} is missing: install the project again.")
    return path


def _load(name: str, field: str, value: str, split: str) -> Corpus:
    """Read `value`: the name of a shipped set, of which `split` is taken, or a path."""
    if value == "everyday":
        return _corpus(name, field, list(_rows(_shipped(split), field)))
    if value == "passages":
        rows = list(_jsonl(_shipped("passages"), field, (*COLUMNS, "split")))
        return _corpus(name, field, [row for row in rows if row[1]["split"] == split])
    return _corpus(name, field, list(_rows(_path(value, field), field)))


def _path(value: str, field: str) -> Path:
    """A path as it is, or, of "$NAME", what the environment variable NAME says: settings then name no path of one machine."""
    if not value.startswith("$"):
        return Path(value)
    found = os.environ.get(value[1:])
    if not found:
        raise UserError(f"{field} needs the environment variable {value[1:]}; set it to the path of a text, or set the field to ''.")
    return Path(found)


def _corpus(name: str, field: str, rows: list[tuple[str, Row]]) -> Corpus:
    if not rows:
        raise UserError(f"{field} has no rows; give it at least one, or choose another set.")
    first = rows[0][1]
    kind: Kind = "texts" if "text" in first and not {"prompt", "reference"} <= first.keys() else "pairs"
    columns = ("prompt", "reference") if kind == "pairs" else ("text",)
    if kind == "pairs":
        _require(first, columns, field)
    pairs = [pair for row in rows if (pair := _pair(*row, columns, field)) is not None]
    return Corpus(name, kind, _checked(pairs, field), skipped=len(rows) - len(pairs))


def _require(row: Row, columns: tuple[str, ...], field: str) -> None:
    missing = [column for column in columns if column not in row]
    if missing:
        way_out = "give it prompt and reference, or text" if len(columns) > 1 else "rename the column that holds the prompts"
        raise UserError(f"{field} has no column {' and no column '.join(missing)}: {way_out}.")


def _pair(where: str, row: Row, columns: tuple[str, ...], field: str) -> Pair | None:
    """A row as a Pair; None where one of `columns` is blank."""
    values = {column: _text(row, column, where, field) for column in columns}
    given = row.get("id")
    if isinstance(given, bool) or not isinstance(given, str | int | None):
        raise UserError(f"{field}, {where}: id is {_kind_of(given)}; use a string or a whole number, or drop the column.")
    topic = "" if row.get("topic") is None else _text(row, "topic", where, field)
    if not all(value.strip() for value in values.values()):
        return None
    identity = where.replace(" ", "-") if given in (None, "") else str(given)
    return Pair(identity, values.get("prompt", ""), values.get("reference", values.get("text", "")), topic)


def _text(row: Row, column: str, where: str, field: str) -> str:
    """The string in a column. Raises UserError where it is absent, no string, too long, or no Unicode text."""
    if column not in row:
        raise UserError(f"{field}, {where}: {column} is missing; give every row one, or leave the row out.")
    value = row[column]
    if not isinstance(value, str):
        raise UserError(f"{field}, {where}: {column} is {_kind_of(value)}; make it a string, or leave the row out.")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise UserError(f"{field}, {where}: {column} has half a surrogate pair; write the file as UTF-8.") from None
    if size > MAX_TEXT_BYTES:
        raise UserError(f"{field}, {where}: {column} is over {MAX_TEXT_BYTES // 2**20} MiB long; cut it into several rows.")
    return value


def _kind_of(value: object) -> str:
    names = {"NoneType": "null", "bool": "true or false", "int": "a number", "float": "a fraction", "list": "a list", "dict": "an object"}
    return names.get(type(value).__name__, "not text")


def _checked(pairs: list[Pair], field: str) -> list[Pair]:
    """The pairs. Raises UserError where there is none or two share an id."""
    if not pairs:
        raise UserError(f"{field} has no usable row, all are blank; give it at least one with text, or choose another file.")
    seen: set[str] = set()
    for pair in pairs:
        if pair.id in seen:
            raise UserError(f"{field}: id {pair.id[:80]!r} occurs twice; make ids unique, or drop the column.")
        seen.add(pair.id)
    return pairs


# formats ----------------------------------------------------------------------------------------------------------------


def _rows(path: Path, field: str) -> Iterator[tuple[str, Row]]:
    """Where each row stands ("line 7", "row 7") and its known columns; at least one row."""
    try:
        _refuse(path, field)
        if path.suffix.lower() == ".parquet":
            rows = _frame(pl.scan_parquet(path, glob=False), field)
        elif path.suffix.lower() == ".csv":
            _utf8(path, field)
            rows = _frame(pl.scan_csv(path, infer_schema=False, glob=False).fill_null(""), field)
        elif path.suffix.lower() == ".jsonl":
            rows = list(_jsonl(path, field, COLUMNS))
        else:
            blocks = blocks_of(text for _, text in _lines(path, field))
            rows = [(f"block {number:06d}", {"text": block}) for number, block in enumerate(blocks, 1)]
    except OSError as error:
        raise UserError(f"{field} cannot be read: {error.strerror or 'the system refuses'}; check the path and its rights.") from None
    if not rows:
        raise UserError(f"{field} has no rows; give it at least one, or choose another file.")
    yield from rows


def _refuse(path: Path, field: str) -> None:
    """Raise UserError where a look at the file's name, size and first bytes is enough."""
    if not path.exists():
        raise UserError(f"{field} is not there; give the path of a file, or 'everyday' for the shipped set.")
    if not path.is_file():
        raise UserError(f"{field} is not a file; give the path of one file.")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise UserError(f"{field} has {size / 2**20:,.0f} MiB, over the limit of {MAX_FILE_BYTES // 2**20} MiB; take a part of it.")
    if size == 0:
        raise UserError(f"{field} is empty; give a file with at least one row.")
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{field} has the ending {path.suffix!r}; use one of {', '.join(FORMATS)}.")
    with path.open("rb") as handle:
        if path.suffix.lower() != ".parquet" and b"\0" in handle.read(8192):
            raise UserError(f"{field} is a binary file (it holds zero bytes); write it as UTF-8 text.")


def _frame(frame: pl.LazyFrame, field: str) -> list[tuple[str, Row]]:
    """The known columns of a CSV or Parquet file, row by row."""
    try:
        columns = [column for column in frame.collect_schema().names() if column in COLUMNS]
        height = frame.select(pl.len()).collect().item()
        if height > MAX_ROWS:
            raise UserError(f"{field} has {height:,} rows, over the limit of {MAX_ROWS:,}; take a part of it.")
        if not columns:
            raise UserError(f"{field} has no column prompt and no column reference: give it prompt and reference, or text.")
        values = frame.select(columns).collect()
    except pl.exceptions.PolarsError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"{field} cannot be parsed ({reason}); write it again as CSV, Parquet or JSONL.") from None
    return [(f"row {number}", row) for number, row in enumerate(values.iter_rows(named=True), 1)]


def _jsonl(path: Path, field: str, columns: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
    for where, text in _lines(path, field):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply or a number too long"
            raise UserError(f"{field}, {where} is not JSON ({reason}); mend the line or leave it out.") from None
        if not isinstance(row, dict):
            raise UserError(f"{field}, {where} is {_kind_of(row)}; make every line a JSON object.")
        yield where, {column: row[column] for column in columns if column in row}


def _lines(path: Path, field: str) -> Iterator[tuple[str, str]]:
    """Lines of a UTF-8 file. A line over MAX_TEXT_BYTES is refused before it is read whole."""
    with path.open("rb") as handle:
        number = 0
        while raw := handle.readline(MAX_TEXT_BYTES + 1):
            number += 1
            if len(raw) > MAX_TEXT_BYTES:
                raise UserError(f"{field}, line {number} is over {MAX_TEXT_BYTES // 2**20} MiB long; break it into several lines.")
            try:
                yield f"line {number}", raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise UserError(f"{field}, line {number} is not UTF-8 text; save the file as UTF-8.") from None


def _utf8(path: Path, field: str) -> None:
    for _ in _lines(path, field):
        pass
