"""Prompts, references and texts: the shipped set and one's own files. Imports no torch.

A file has the columns `prompt` and `reference`, or `text` (continuation text; the engine later cuts its first
`data.context_tokens` tokens off as the prompt), and, if it likes, `id` and `topic`. Other columns are ignored; where both
forms are there, prompt and reference win. Rows whose prompt, reference or text is blank are left out and counted. JSONL, CSV
and Parquet are read in this way; a `.txt` file is continuation text, cut into blocks by `blocks_of`. A folder is all its files.
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

from dces_core import hub
from dces_core.config import RunConfig
from dces_core.errors import UserError, quoted
from dces_core.reading import read_bytes
from dces_core.seeds import rng_for
from dces_core.store import SHIPPED

Kind = Literal["pairs", "texts"]
Row = dict[str, Any]

MAX_FILE_BYTES = 512 * 2**20
MAX_TEXT_BYTES = 2**20  # longest line of a file, and longest value of a column
MAX_ROWS = 5_000_000
MAX_COLUMNS = 10_000  # of a CSV file
MAX_FOOTER_BYTES = 16 * 2**20  # of a Parquet file, where it describes itself
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
    return load("train", f"data.train = {quoted(config.data.train)}", config.data.train, "train")


def load_tests(config: RunConfig) -> dict[str, Corpus]:
    """Test sets by name. The shipped sets honour eval.split; one's own file is used as it is for both splits."""
    corpora = {}
    for name, value in config.data.tests.items():
        if value:
            corpora[name] = cap(load(name, f"data.tests.{name} = {quoted(value)}", value, config.eval.split), config)
    if not corpora:
        raise UserError("data.tests switches every test set off; leave at least one on, such as everyday = 'everyday'.")
    return corpora


def load_probes(config: RunConfig) -> list[Pair]:
    """The prompts to watch, with empty references. A file of probes needs the column `prompt` only."""
    value = config.data.probes
    field = f"data.probes = {quoted(value)}"
    path = _shipped("probes") if value == "everyday" else Path(value)
    if path.suffix.lower() == ".txt":
        raise UserError(f"{field} is a .txt file; probes need JSONL, CSV or Parquet with the column prompt.")
    rows = list(rows_of(path, field))
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


def load(name: str, field: str, value: str, split: str) -> Corpus:
    """Read `value`: the name of a shipped set, of which `split` is taken, a path, or a hub's data set. `field` names it in a UserError."""
    if value == "everyday":
        return corpus_of(name, field, list(rows_of(_shipped(split), field)))
    if value == "passages":
        rows = list(_jsonl(_shipped("passages"), field, (*COLUMNS, "split")))
        return corpus_of(name, field, [row for row in rows if row[1]["split"] == split])
    if value.startswith(hub.PREFIX):
        return corpus_of(name, field, hub.rows_of(value, field, COLUMNS, MAX_ROWS, MAX_FILE_BYTES))
    path = _path(value, field)
    return corpus_of(name, field, rows_of_folder(path, field) if value and _is_folder(path) else list(rows_of(path, field)))


def _path(value: str, field: str) -> Path:
    """A path as it is, or, of "$NAME", what the environment variable NAME says: settings then name no path of one machine."""
    if not value.startswith("$"):
        return Path(value)
    try:
        found = os.environ.get(value[1:])
    except UnicodeEncodeError:
        found = None
    if not found:
        raise UserError(
            f"{field} needs the environment variable {quoted(value[1:])}; set it to the path of a text, or set the field to ''."
        )
    return Path(found)


def corpus_of(name: str, field: str, rows: list[tuple[str, Row]]) -> Corpus:
    """Rows, each with where it stands, as a set: pairs, or texts."""
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
    values = {column: text_in(row, column, where, field) for column in columns}
    given = row.get("id")
    if isinstance(given, bool) or not isinstance(given, str | int | None):
        raise UserError(f"{field}, {where}: id is {_kind_of(given)}; use a string or a whole number, or drop the column.")
    if isinstance(given, str):
        text_in(row, "id", where, field)
    topic = "" if row.get("topic") is None else text_in(row, "topic", where, field)
    if not all(value.strip() for value in values.values()):
        return None
    identity = where.replace(" ", "-") if given in (None, "") else str(given)
    return Pair(identity, values.get("prompt", ""), values.get("reference", values.get("text", "")), topic)


def text_in(row: Row, column: str, where: str, field: str) -> str:
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


def rows_of(path: Path, field: str, columns: tuple[str, ...] = COLUMNS) -> Iterator[tuple[str, Row]]:
    """Where each row stands ("line 7", "row 7") and its known `columns`; at least one row. `field` names the file in a UserError."""
    try:
        _refuse(path, field)
        if path.suffix.lower() == ".parquet":
            rows = _frame(pl.scan_parquet(path, glob=False), field, columns)
        elif path.suffix.lower() == ".csv":
            _utf8(path, field)
            rows = _frame(pl.scan_csv(path, infer_schema=False, glob=False).fill_null(""), field, columns)
        elif path.suffix.lower() == ".jsonl":
            rows = list(_jsonl(path, field, columns))
        else:
            blocks = blocks_of(text for _, text in _lines(path, field))
            rows = [(f"block {number:06d}", {"text": block}) for number, block in enumerate(blocks, 1)]
    except OSError as error:
        raise UserError(f"{field} cannot be read: {error.strerror or 'the system refuses'}; check the path and its rights.") from None
    except MemoryError:
        raise UserError(f"{field} does not fit this machine's memory; take a part of it.") from None
    if not rows:
        raise UserError(f"{field} has no rows; give it at least one, or choose another file.")
    yield from rows


def rows_of_folder(path: Path, field: str) -> list[tuple[str, Row]]:
    """The rows of all files of a folder and of its `data/`, by name; where a row stands begins with its file. Hidden files are left out."""
    try:
        inside = [*path.iterdir(), *((path / "data").iterdir() if (path / "data").is_dir() else ())]
    except OSError as error:
        raise UserError(f"{field} cannot be read: {error.strerror or 'the system refuses'}; check the path and its rights.") from None
    files = sorted(file for file in inside if file.suffix.lower() in FORMATS and not file.name.startswith(".") and file.is_file())
    if not files:
        raise UserError(f"{field} is not a file, and no folder with files of the endings {', '.join(FORMATS)}; give the path of one.")
    size = sum(file.stat().st_size for file in files)
    if size > MAX_FILE_BYTES:
        raise UserError(f"{field} has {size / 2**20:,.0f} MiB, over the limit of {MAX_FILE_BYTES // 2**20} MiB; take a part of it.")
    found: list[tuple[str, Row]] = []
    for file in files:
        name = file.relative_to(path).as_posix()
        found += [(f"{name} {where}", row) for where, row in rows_of(file, f"{field}, {name}")]
        if len(found) > MAX_ROWS:
            raise UserError(f"{field} has over {MAX_ROWS:,} rows; take a part of it.")
    return found


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


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
    if path.suffix.lower() == ".parquet":
        end = read_bytes(path, 8, max(0, size - 8))
        if size < 12 or end[4:] != b"PAR1":
            raise UserError(f"{field} cannot be parsed (it does not end as Parquet); write it again as CSV, Parquet or JSONL.")
        if int.from_bytes(end[:4], "little") > min(MAX_FOOTER_BYTES, size - 12):
            raise UserError(f"{field} has a damaged footer, or too many columns; write it again with the columns that are needed.")
    elif b"\0" in read_bytes(path, 8192):
        raise UserError(f"{field} is a binary file (it holds zero bytes); write it as UTF-8 text.")


def _frame(frame: pl.LazyFrame, field: str, wanted: tuple[str, ...]) -> list[tuple[str, Row]]:
    """The known columns of a CSV or Parquet file, row by row."""
    try:
        schema = {column: kind for column, kind in frame.collect_schema().items() if column in wanted}
        columns = list(schema)
        nested = [column for column, kind in schema.items() if kind.is_nested() and column in COLUMNS]
        if nested:
            raise UserError(f"{field}, row 1: {nested[0]} is no text but nested; make it a string, or drop the column.")
        height = frame.select(pl.len()).collect().item()
        if height > MAX_ROWS:
            raise UserError(f"{field} has {height:,} rows, over the limit of {MAX_ROWS:,}; take a part of it.")
        if not columns:
            return [("row 1", {})]
        values = frame.select(columns).collect()
        texts = values.select(pl.col(pl.String, pl.Categorical).cast(pl.String).str.len_bytes().sum().cast(pl.Int64))
        if sum(texts.row(0) if texts.width else ()) > MAX_FILE_BYTES:
            raise UserError(f"{field} holds over {MAX_FILE_BYTES // 2**20} MiB of text; take a part of it.")
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = (str(error).strip().splitlines() or ["no reason is known"])[0][:200]
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
    """Raise UserError where a CSV is no UTF-8, or its first line has more columns than any table of texts."""
    for where, text in _lines(path, field):
        if where == "line 1" and (text.count(",") >= MAX_COLUMNS or text.count('"') % 2):
            raise UserError(f"{field} begins with no line of at most {MAX_COLUMNS:,} column names; keep only the columns that are needed.")
