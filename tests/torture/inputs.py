"""Input that lies: data files, recipes, studies, query parameters and run directories, made by hand, by strategy and by the fuzzer.

A loader may answer with a UserError of one sentence, a reader with nothing at all; neither may raise anything else, take 2 s of processor
time, or write outside the runs directory.
"""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from dces_core.bench.rows import Row
from dces_core.errors import UserError
from torture import fuzz, inputs_hostile, inputs_runs

HANG_S = 2.0
LONGEST_SENTENCE = 3000
#: Share of the full amount: cases made by the fuzzer for each parser, by strategies for each reader.
FUZZED, DRAWN = 1200, 500


@dataclass
class Tally:
    """What was tried and what went wrong, each with its first words."""

    cases: int = 0
    lines: int = 0
    tracebacks: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)

    def attempt(self, name: str, call: Callable[[], object], refuses: bool = True) -> None:
        """Count a case. `refuses`: a UserError of one sentence is a right answer."""
        self.cases += 1
        begun = time.process_time()
        try:
            call()
        except UserError as error:
            if not refuses or "\n" in str(error) or len(str(error)) > LONGEST_SENTENCE:
                self.tracebacks.append(f"{name}: {str(error)[:200]!r}")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # also polars' PanicException
            self.tracebacks.append(f"{name}: {''.join(traceback.format_exception(error)[-3:])}")
        spent_s = time.process_time() - begun
        if spent_s > HANG_S:
            self.hangs.append(f"{name}: {spent_s:.1f} s")


def measure(scale: float) -> list[Row]:
    """The rows of this section; what went wrong is printed."""
    with tempfile.TemporaryDirectory() as folder:
        root, before = Path(folder), {name: os.environ.get(name) for name in ("DCES_RUNS", "DCES_CACHE")}
        for name in ("runs", "bait", "data", "cache"):
            (root / name).mkdir()
        (root / "bait" / "bait.txt").write_text("as it was\n", encoding="utf-8")
        os.environ |= {"DCES_RUNS": str(root / "runs"), "DCES_CACHE": str(root / "cache")}
        try:
            tally, outside = tortured(root, scale)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
    for trouble in (*tally.tracebacks[:20], *tally.hangs[:20], *outside[:20]):
        print(trouble)
    count, note = tally.cases, "data files, recipes, studies, addresses, run directories"
    figures = {
        "cases": count,
        "tracebacks": len(tally.tracebacks),
        "hangs": len(tally.hangs),
        "outside": len(outside),
        "fuzz-lines": tally.lines,
    }
    notes = {
        "cases": note,
        "hangs": f"over {HANG_S:.0f} s of processor time",
        "outside": "files made or changed outside the runs directory",
    }
    unit = {"fuzz-lines": "lines"}
    return [
        Row(f"inputs-{name}", float(value), None, None, unit.get(name, "count"), count, notes.get(name, ""))
        for name, value in figures.items()
    ]


def tortured(root: Path, scale: float) -> tuple[Tally, list[str]]:
    """Everything once; the tally and what changed outside the runs directory."""
    tally, rng, here = Tally(), random.Random(0), Path.cwd()
    before = contents(root)
    os.chdir(root / "bait")
    try:
        inputs_hostile.try_all(tally.attempt, root / "data", scale)
        fuzzed(tally, root / "data", max(10, round(FUZZED * scale)), rng)
        inputs_runs.try_all(tally.attempt, root, max(5, round(DRAWN * scale)), rng)
    finally:
        os.chdir(here)
    after = contents(root)
    return tally, sorted(name for name in before | after if before.get(name) != after.get(name))


def contents(root: Path) -> dict[str, str]:
    """Hash of every file outside the runs directory, the cache and the folder of the cases themselves."""
    own = {root / name for name in ("runs", "cache", "data")}
    paths = [path for path in root.rglob("*") if path.is_file() and not own & set(path.parents)]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def fuzzed(tally: Tally, folder: Path, count: int, rng: random.Random) -> None:
    """The fuzzer on every parser of files, and on --set."""
    for name, seeds, call in parsers(folder):
        path = folder / f"fuzz{name}"

        def try_one(data: bytes, path: Path = path, name: str = name, call: Callable[[Path, bytes], object] = call) -> None:
            path.write_bytes(data)
            tally.attempt(f"{name} {data[:60]!r}", lambda: call(path, data))

        tally.lines += fuzz.fuzz(try_one, seeds, count, rng)


def parsers(folder: Path) -> list[tuple[str, list[bytes], Callable[[Path, bytes], object]]]:
    """Ending, first inputs, and what reads them."""
    from dces_core import config, data, study
    from dces_core.config import SHIPPED, parse

    frame = pl.DataFrame({"id": ["a", "b"], "prompt": ["Why?", "How?"], "reference": ["It rains.", "Slowly."], "topic": ["x", "y"]})
    frame.write_parquet(folder / "seed.parquet")
    packed = (folder / "seed.parquet").read_bytes()
    (folder / "seed.parquet").unlink()
    train = lambda path, _: data.load_train(parse({"data": {"train": str(path)}}))  # noqa: E731
    return [
        (".jsonl", [b'{"prompt": "Why?", "reference": "Rain.", "id": 1, "topic": "x"}\n{"text": "One."}\n', b'{"text": "x"}\n'], train),
        (".csv", [frame.write_csv().encode(), b'text\n"a, b"\n'], train),
        (".parquet", [packed], train),
        (".txt", [b"One two.\n\nThree.\n"], train),
        (".toml", [path.read_bytes() for path in sorted((SHIPPED / "recipes").glob("*.toml"))], lambda p, _: config.load_recipe(str(p))),
        (
            "-study.toml",
            [path.read_bytes() for path in sorted((SHIPPED / "studies").glob("*.toml"))[:3]],
            lambda p, _: study.load_study(str(p)),
        ),
        ("-set", [b"train.lr=1e-4", b"arms=plain,dces", b'data.tests={a="b"}'], lambda _, d: config.load_recipe("study", [os.fsdecode(d)])),
    ]
