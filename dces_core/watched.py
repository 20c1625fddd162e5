"""What can be watched: a run, a finished unit of a study, or a folder of anybody's texts by round. Each gives METRICS rows as they come."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from dces_core import launch, own_rounds, store, study_store
from dces_core.actions import Log, of_run
from dces_core.diagnose import Options
from dces_core.engines.base import silent
from dces_core.errors import UserError, quoted
from dces_core.events import Progress
from dces_core.own_rounds import OwnRounds
from dces_core.reading import is_file
from dces_core.records import METRICS, table
from dces_core.rules import Rule
from dces_core.store import Run
from dces_core.study_store import Unit

#: Metrics of texts that need an encoder.
EMBEDDED = ("vendi", "dispersion", "dispersion_frozen", "nearest_reference")
SETTLED_S = 2.0  # a file of others that was written to later may not be whole
Say = Callable[[str], None]
Mark = tuple[int, int]  # size and time of a file


class Watched(Protocol):
    """Something with figures by round. `first`: the first round that rules look at."""

    name: str
    log: Log
    arms: tuple[str, ...]
    test_sets: tuple[str, ...]
    run: Run | None  # where it can be stopped and rolled back
    first: int

    def news(self, once: bool) -> pl.DataFrame:
        """Rows of records.METRICS that were not given before. `once`: nothing will be asked again."""

    def over(self) -> bool:
        """Whether no round will come any more."""


class WatchedRun:
    """One of our runs. Rounds that it took over from another run were that run's."""

    def __init__(self, run: Run, past: bool = False) -> None:
        config = run.config
        self.name, self.log = run.id, of_run(run)
        self.arms: tuple[str, ...] = config.arms
        self.test_sets = tuple(name for name, path in config.data.tests.items() if path)
        self.run = None if run.recorded else run
        taken = run.parent.get("round")
        self.first = 0 if past or taken is None else int(taken) + 1
        self._run, self._seen = run, set[tuple[str, int]]()

    def news(self, once: bool) -> pl.DataFrame:
        """Metrics of newly evaluated rounds."""
        parts = [table("metrics", [])]
        begun = self._run.rounds_begun()
        for arm in self.arms:
            for round_ in (one for one in begun if (arm, one) not in self._seen):
                stage = self._run.of(round_, arm, "evaluate")
                if stage.done is not None:
                    self._seen.add((arm, round_))
                    parts.append(stage.frame("metrics").with_columns(pl.lit(arm).alias("arm")))
        return pl.concat(parts)

    def over(self) -> bool:
        """Whether its process is gone."""
        return launch.state(self._run) not in launch.ALIVE


class WatchedUnit:
    """A finished unit of a study."""

    def __init__(self, unit: Unit, path: Path) -> None:
        self._unit: Unit | None = unit
        self.name = f"{path.parents[2].name}/{path.parent.name}/{path.name}"
        self.log, self.first = Log(store.watched(path), self.name), 0
        self.arms: tuple[str, ...] = (unit.arm,)
        self.run: Run | None = None
        self.test_sets = tuple(unit.frame("metrics").filter(pl.col("test_set") != "")["test_set"].unique().sort())

    def news(self, once: bool) -> pl.DataFrame:
        """All its metrics, the first time."""
        unit, self._unit = self._unit, None
        return table("metrics", [] if unit is None else unit.frame("metrics"))

    def over(self) -> bool:
        """It is finished."""
        return True


class _Quiet:
    """Nobody is told how far the work is."""

    @contextmanager
    def span(self, round_: int, arm: str, stage: str) -> Iterator[Progress]:
        yield silent


class WatchedFolder:
    """A folder of texts by round that somebody else fills. Only new rounds are computed; texts are kept in `spool`, an empty folder.

    All is computed anew where equal budgets ask for it: a round came with fewer texts than all before, or before the first; a file changed.
    """

    def __init__(self, path: Path, spool: Path, options: Options, rules: Sequence[Rule], warn: Say) -> None:
        self.name, self.log, self.first = path.name, Log(store.watched(path), path.name), 0
        self.arms: tuple[str, ...] = ("own",)
        self.test_sets: tuple[str, ...] = ()
        self.run: Run | None = None
        embedded = any(rule.condition.metric in EMBEDDED for rule in rules)
        light = options if embedded else options.model_copy(update={"encoder": "hash"})
        self._path, self._spool, self._options, self._warn = path, spool, light.model_copy(update={"map": "off"}), warn
        self._bad: dict[Path, Mark] = {}
        self._begin()

    def _begin(self) -> None:
        shutil.rmtree(self._spool / "rounds", ignore_errors=True)
        self._rounds = OwnRounds(self._spool / "rounds", self.name)
        self._named: dict[int, str] = {}
        self._read: dict[Path, Mark] = {}
        self._figures: Any = None

    def news(self, once: bool) -> pl.DataFrame:
        """Metrics of new rounds, of all where they were computed anew. Raises UserError where no round can be read, and never will be."""
        marks = self._marks(once)
        if any(marks.get(path, mark) != mark for path, mark in self._read.items()):
            self._begin()
        before = dict(self._rounds.counts)
        for path, mark in marks.items():
            if path not in self._read and self._bad.get(path) != mark:
                self._add(path, mark)
        counts = self._rounds.counts
        if once and not counts:
            raise UserError(f"{quoted(str(self._path))} has no round that can be read; give it files of the form of docs/watch.md.")
        if any(counts[round_] != count for round_, count in before.items()):
            self._figures = None
        fresh = sorted(set(counts) - set(before))
        return self._compute(fresh) if fresh or (counts and self._figures is None) else table("metrics", [])

    def over(self) -> bool:
        """Nobody knows."""
        return False

    def _marks(self, once: bool) -> dict[Path, Mark]:
        """Size and time of every file that is whole, as far as can be told."""
        found, now = {}, time.time()
        with suppress(OSError):
            for path in sorted(self._path.iterdir()):
                if path.suffix.lower() in own_rounds.FORMATS and path.is_file() and not path.name.startswith("."):
                    facts = path.stat()
                    if once or abs(now - facts.st_mtime) > SETTLED_S:
                        found[path] = (facts.st_size, facts.st_mtime_ns)
        return found

    def _add(self, path: Path, mark: Mark) -> None:
        """Read a file; one that cannot be used is said once, and left out until it changes."""
        names, named = (self._options.round_column, self._options.text_column), dict(self._named)
        with tempfile.TemporaryDirectory(dir=self._spool) as folder:
            own = OwnRounds(Path(folder), path.name)
            try:
                for file in own_rounds.files_of(path):
                    own_rounds.add_file(own, file, names, True, named, lambda: None)
            except UserError as error:
                self._bad[path] = mark
                return self._warn(f"{error} It is left out until it changes.")
            for round_ in own.rounds:
                for texts in own.batches(round_):
                    self._rounds.add(pl.DataFrame({"round": round_, "text": texts}))
        self._read[path], self._named = mark, named

    def _compute(self, fresh: list[int]) -> pl.DataFrame:
        from dces_core.diagnosing import Figures

        rounds = self._rounds
        fewest = min(rounds.counts.values())
        if self._figures is None or fewest < self._figures.fewest or fresh[0] == rounds.rounds[0]:
            self._figures, fresh = Figures(rounds, self._options, _Quiet()), rounds.rounds
        known = len(self._figures.found["metrics"])
        for round_ in fresh:
            self._figures.add(round_)
        return pl.DataFrame(self._figures.found["metrics"][known:], schema=METRICS)


def find(what: str, spool: Path, options: Options, rules: Sequence[Rule], warn: Say, past: bool = False) -> Watched:
    """What a name or a directory means. `spool`: an empty folder for texts; `past`: also rounds that a run took over.

    Raises UserError where it means nothing.
    """
    path = Path(what)
    here = path.resolve() if path.is_dir() else None
    if here and is_file(here / "run.json"):
        return WatchedRun(Run(here), past)
    if here:
        unit = study_store.unit_at(here)
        return WatchedUnit(unit, here) if unit else WatchedFolder(here, spool, options, rules, warn)
    try:
        return WatchedRun(store.find(what), past)
    except UserError:
        raise UserError(f"{quoted(what)} is neither a directory nor a run; give a run, a unit of a study, or a folder of rounds.") from None
