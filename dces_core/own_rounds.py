"""Texts of one's own rounds: read once, checked, and kept by round as Parquet in a folder, so that any round is read in batches.

One JSONL, CSV or Parquet file with the columns `round` and `text`, or one file per round with `text` and the round's number in its
name. Other columns are ignored. The limits are those of data.py. Imports no torch.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import polars as pl

from dces_core import data
from dces_core.errors import UserError
from dces_core.events import Progress
from dces_core.store import Run

FORMATS = (".jsonl", ".csv", ".parquet")
BATCH = 8_192  # texts that are read at once
MOST_ROUNDS = 200
LAST_ROUND = 100_000
NUMBER = re.compile(r"\d+")


@dataclass
class OwnRounds:
    """Texts by round below `folder`. `source` says where they are from, in words."""

    folder: Path
    source: str
    arm: str = "own"
    counts: dict[int, int] = field(default_factory=dict)  # texts by round
    references: list[str] = field(default_factory=list)  # real texts that came with them

    def batches(self, round_: int) -> Iterator[list[str]]:
        """The texts of a round in their order, BATCH at a time."""
        for path in self._parts(round_):
            yield from (batch["text"].to_list() for batch in pl.read_parquet(path).iter_slices(BATCH))

    def scan(self, round_: int) -> pl.LazyFrame:
        """The same as a lazy frame with the column `text`."""
        return pl.scan_parquet(self._parts(round_), glob=False)

    def add(self, frame: pl.DataFrame) -> None:
        """Keep more rows of `round` and `text`."""
        for (round_,), part in frame.group_by("round", maintain_order=True):
            number = int(round_)
            folder = self._of(number)
            folder.mkdir(parents=True, exist_ok=True)
            part.select("text").write_parquet(folder / f"{self.counts.get(number, 0):09d}.parquet")
            self.counts[number] = self.counts.get(number, 0) + part.height
        if len(self.counts) > MOST_ROUNDS:
            raise UserError(f"{self.source} has over {MOST_ROUNDS} rounds; take some of them.")
        if sum(self.counts.values()) > data.MAX_ROWS:
            raise UserError(f"{self.source}: over the limit of {data.MAX_ROWS:,} rows; take a part of them.")

    @property
    def rounds(self) -> list[int]:
        """Their numbers, ascending."""
        return sorted(self.counts)

    def _of(self, round_: int) -> Path:
        return self.folder / f"{round_:06d}"

    def _parts(self, round_: int) -> list[Path]:
        return sorted(self._of(round_).glob("*.parquet"))


def read_files(paths: Sequence[Path], folder: Path, names: tuple[str, str], progress: Progress) -> OwnRounds:
    """Files, or one directory of them, as rounds kept below `folder`. `names`: the columns of the round and the text.

    Raises UserError, one sentence, for anything that cannot be used.
    """
    files = [file for path in paths for file in files_of(path)]
    found = OwnRounds(folder, files[0].name if len(files) == 1 else f"{len(files)} files")
    total = sum(file.stat().st_size for file in files)
    done, named = 0, dict[int, str]()
    for file in files:
        add_file(found, file, names, len(files) > 1, named, partial(progress, done, total))
        done += file.stat().st_size
        progress(done, total)
    return checked(found)


def add_file(found: OwnRounds, file: Path, names: tuple[str, str], several: bool, named: dict[int, str], beat: Callable[[], None]) -> None:
    """The rounds of one more file. `several`: its name may say the round; `named`: files by the round that their name says, so far.

    `beat` is called after every batch. Raises UserError as `read_files` does.
    """
    for frame in _frames(file, names, several, named):
        found.add(frame)
        beat()


def read_run(run: Run, arm: str, folder: Path, progress: Progress) -> OwnRounds:
    """What the models of an arm wrote for the evaluation prompts, round by round, with the real references of these prompts."""
    if arm not in run.config.arms:
        raise UserError(f"arm = {arm!r} is not in run {run.id!r}; it has: {', '.join(run.config.arms)}.")
    found = OwnRounds(folder, f"run {run.id}, arm {arm}", arm)
    rounds = run.finished(arm)
    for done, round_ in enumerate(rounds, 1):
        frame = run.generations(arm, round_)
        found.add(frame.select(pl.lit(round_, pl.Int64).alias("round"), pl.col("text").fill_null("")))
        found.references = found.references or frame["reference"].drop_nulls().to_list()
        progress(done, len(rounds))
    return checked(found)


def checked(found: OwnRounds) -> OwnRounds:
    """The rounds. Raises UserError where there are fewer than two, or nothing but empty texts."""
    if len(found.counts) < 2:
        said = f"one round only ({found.rounds[0]})" if found.counts else "no row"
        raise UserError(f"{found.source} has {said}; a diagnosis compares rounds: give at least two.")
    blank = pl.col("text").str.strip_chars().str.len_bytes() == 0
    if all(found.scan(round_).select(blank.all()).collect().item() for round_ in found.rounds):
        raise UserError(f"{found.source}: all {sum(found.counts.values()):,} texts are empty; give texts.")
    return found


# files ------------------------------------------------------------------------------------------------------------------


def files_of(path: Path) -> list[Path]:
    """A file, or those of a directory, sorted. Raises UserError where there is none that can be used."""
    if not path.exists():
        raise UserError(f"{str(path)!r} is not there; give files or a directory of texts by round, or the name of a run.")
    if not path.is_dir():
        data._refuse(path, repr(str(path)))
        if path.suffix.lower() not in FORMATS:
            raise UserError(f"{str(path)!r} has the ending {path.suffix!r}; use one of {', '.join(FORMATS)}.")
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in FORMATS and file.is_file() and not file.name.startswith("."))
    if not found:
        raise UserError(f"{str(path)!r} has no file with the ending {', '.join(FORMATS)}; give it the texts of the rounds.")
    return [file for one in found for file in files_of(one)]


def _frames(path: Path, names: tuple[str, str], several: bool, named: dict[int, str]) -> Iterator[pl.DataFrame]:
    """Batches of `round` (Int64) and `text` of one file. `named`: files by the round that their name says, so far."""
    said = repr(path.name)
    try:
        source = _jsonl(path, names, said) if path.suffix.lower() == ".jsonl" else _columns(path, names, said)
        number: int | None = None
        for first, frame in source:
            if "text" not in frame.columns:
                raise UserError(f"{said} has no column {names[1]!r}; rename the column that holds the texts, or name it (--text-column).")
            if "round" not in frame.columns:
                number = _number(path, names[0], several) if number is None else number
                if named.setdefault(number, path.name) != path.name:
                    raise UserError(f"{path.name!r} and {named[number]!r} both say round {number}; give one file per round.")
                frame = frame.with_columns(pl.lit(number, pl.Int64).alias("round"))
            yield _valid(frame, first, names, said)
    except OSError as error:
        raise UserError(f"{said} cannot be read: {error.strerror or 'the system refuses'}; check the path and its rights.") from None
    except pl.exceptions.PolarsError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"{said} cannot be parsed ({reason}); write it again as CSV, Parquet or JSONL.") from None


def _number(path: Path, column: str, several: bool) -> int:
    """The round that a file's name says."""
    found = NUMBER.findall(path.stem)
    if not found or not several:
        what = "give it one (or name yours: --round-column)"
        raise UserError(f"{path.name!r} has no column {column!r}; {what}, or give one file per round with the round's number in its name.")
    return int(found[-1][:9])


def _jsonl(path: Path, names: tuple[str, str], said: str) -> Iterator[tuple[int, pl.DataFrame]]:
    """Batches and the number of their first row. A row without the text is refused; the round is there in all rows or in none."""
    rows: list[dict[str, object]] = []
    number, has_round = 0, False
    for where, row in data._jsonl(path, said, names):
        if not number:
            has_round = names[0] in row
            if names[1] not in row:
                yield 1, pl.DataFrame({"round": [0]})
        if has_round and names[0] not in row:
            raise UserError(f"{said}, {where}: {names[0]} is missing; give every row one.")
        text = "" if row.get(names[1], 0) is None else data.text_in(row, names[1], where, said)
        rows.append({"text": text, **({"round": _whole(row[names[0]], where, names[0], said)} if has_round else {})})
        number += 1
        if len(rows) == BATCH:
            yield number - BATCH + 1, pl.DataFrame(rows)
            rows = []
    if rows:
        yield number - len(rows) + 1, pl.DataFrame(rows)


def _whole(value: object, where: str, column: str, said: str) -> int:
    """A round's number; text and fractions that say a whole number count."""
    try:
        if isinstance(value, int | str | float) and not isinstance(value, bool) and float(value) == int(float(value)):
            return int(float(value))
    except (ValueError, OverflowError):
        pass
    raise UserError(f"{said}, {where}: {column} = {str(value)[:40]!r} is no whole number; number the rounds 0, 1, 2 and so on.")


def _columns(path: Path, names: tuple[str, str], said: str) -> Iterator[tuple[int, pl.DataFrame]]:
    """As `_jsonl`, of CSV and Parquet."""
    if path.suffix.lower() == ".csv":
        data._utf8(path, said)
        lazy = pl.scan_csv(path, infer_schema=False, glob=False)
    else:
        lazy = pl.scan_parquet(path, glob=False)
    kinds = lazy.collect_schema()
    picked = [pl.col(column).alias(name) for name, column in zip(("round", "text"), names, strict=True) if column in kinds]
    if not picked:
        yield 1, pl.DataFrame()
    if names[1] in kinds and kinds[names[1]] not in (pl.String, pl.Categorical):
        raise UserError(f"{said}: {names[1]} holds {kinds[names[1]]}; make it text.")
    first = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # polars calls the batches a feature that may change
        batches = lazy.select(picked).collect_batches(chunk_size=BATCH, maintain_order=True)
        for frame in batches:
            yield first, frame
            first += frame.height


def _valid(frame: pl.DataFrame, first: int, names: tuple[str, str], said: str) -> pl.DataFrame:
    """The batch with whole, sane rounds and texts that are not too long; `first`: the number of its first row."""
    text = pl.col("text").cast(pl.String).fill_null("")
    kind = frame.schema["round"]
    given = pl.col("round").str.strip_chars() if kind == pl.String else pl.col("round")
    valid = frame.select(given.cast(pl.Int64, strict=False).alias("round"), text.alias("text"))
    wrong = valid["round"].is_null() | ~valid["round"].is_between(0, LAST_ROUND)
    if kind.is_float():
        wrong = wrong | (valid["round"].cast(pl.Float64) != frame["round"]).fill_null(True)
    if wrong.any():
        at = int(wrong.arg_max() or 0)
        what = str(frame["round"][at])[:40]
        where = f"{said}, row {first + at}: {names[0]} = {what!r}"
        raise UserError(f"{where} is no whole number from 0 to {LAST_ROUND:,}; number the rounds 0, 1, 2 and so on.")
    long = valid["text"].str.len_bytes() > data.MAX_TEXT_BYTES
    if long.any():
        row = first + int(long.arg_max() or 0)
        raise UserError(f"{said}, row {row}: {names[1]} is over {data.MAX_TEXT_BYTES // 2**20} MiB long; cut it into several rows.")
    return valid
