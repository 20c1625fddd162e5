"""What is kept on the disk and what can go: weights by policy, and what killed processes left behind."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from dces_core import ask, launch, models, store
from dces_core.config import Keep, RunConfig
from dces_core.errors import UserError
from dces_core.stage import entries, leftovers
from dces_core.store import WEIGHTS, Run

#: A younger folder of the cache may be one that is being written.
SETTLED_S = 3600.0
EVERY = 5


def kept_rounds(run: Run, arm: str, keep: Keep, newest: int) -> set[int]:
    """Rounds from 1 to `newest` whose weights a policy wants. The newest always is one of them: the next round starts from it."""
    if keep == "all":
        return set(range(1, newest + 1))
    if keep == "ends":
        return {1, newest}
    if keep == "every-5":
        return {newest, *range(EVERY, newest + 1, EVERY)}
    best = best_round(run, arm, newest) if keep == "best" else None
    return {newest} if best is None else {newest, best}


def best_round(run: Run, arm: str, newest: int) -> int | None:
    """The round from 1 to `newest` of lowest perplexity on the first test set that is on; None where none has any."""
    test_set = first_test_set(run.config)
    found = []
    for round_ in range(1, newest + 1):
        frame = run.stage(round_, arm, "evaluate").frame("metrics")
        own = frame.filter(metric="ppl", test_set=test_set).drop_nulls("value") if frame.height else frame
        found += [(float(value), round_) for value in own["value"]]
    return min(found, default=(0.0, None))[1]


def first_test_set(config: RunConfig) -> str:
    """The test set that `keep = "best"` looks at."""
    return next(name for name, value in config.data.tests.items() if value)


# collecting garbage -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """Something that can go: what it is, why, its bytes, and how it goes."""

    path: Path
    why: str
    remove: Callable[[], None] = field(repr=False, compare=False)

    def files(self) -> Iterable[tuple[tuple[int, int], int, int]]:
        """Every file of it: identity, bytes, links."""
        found = [self.path.lstat()] if self.path.is_file() else [facts for path, facts in entries(self.path) if path.is_file()]
        return [((facts.st_dev, facts.st_ino), facts.st_size, facts.st_nlink) for facts in found]


def freed_bytes(items: Sequence[Item]) -> int:
    """Bytes that the disk gets back: a file counts where all its links go."""
    gone: Counter[tuple[int, int]] = Counter()
    facts = {}
    for item in items:
        for identity, size, links in item.files():
            gone[identity] += 1
            facts[identity] = (size, links)
    return sum(size for identity, (size, links) in facts.items() if gone[identity] >= links)


def garbage(runs: Sequence[Run] | None = None, keep: Keep | None = None) -> list[Item]:
    """What can go. `runs` (None: all, and what belongs to no run); `keep`: the policy (None: each run's own).

    Nothing of a run that is at work, of a recorded one, or of one that a question is asked of.
    """
    found: list[Item] = []
    for run in store.discover(recorded=False) if runs is None else runs:
        if not run.recorded and not _busy(run):
            found += [*_weights(run, keep), *_leftovers(run)]
    return found if runs is not None else [*found, *_graves(), *_downloads(), *_questions()]


def collect(items: Sequence[Item]) -> None:
    """Remove them. What has begun to work meanwhile is left alone."""
    for item in items:
        item.remove()


def _busy(run: Run) -> bool:
    return launch.state(run) in launch.ALIVE or any(launch.state(job) in launch.ALIVE for job in ask.jobs(run))


def _weights(run: Run, keep: Keep | None) -> list[Item]:
    """Weights of trained rounds that the policy does not want."""
    try:
        config = run.config
    except UserError:
        return []  # unreadable: nothing is known of its rounds
    policy, found = keep or config.keep, []
    for arm in config.arms:
        trained = [r for r in range(1, config.rounds + 1) if run.stage(r, arm, "train").done is not None]
        kept = kept_rounds(run, arm, policy, max(trained, default=0))
        for round_ in trained:
            stage = run.stage(round_, arm, "train")
            if round_ not in kept and stage.file(WEIGHTS).is_file():
                why = f"weights of round {round_} of {arm}: keep = {policy}"
                found.append(Item(stage.file(WEIGHTS), why, partial(_alone, run, partial(run.prune, stage))))
    return found


def _leftovers(run: Run) -> list[Item]:
    return [Item(path, "left by a worker that was killed", partial(_alone, run, partial(_remove, path))) for path in leftovers(run.path)]


def _graves() -> list[Item]:
    return [Item(path, "a deleted run", partial(_remove, path)) for path in _below(store.runs_root(), ".deleted-*")]


def _downloads() -> list[Item]:
    """Downloads and conversions that never ended."""
    if models.pull_progress().get("running"):
        return []
    found = [path for pattern in (".pull-*", ".convert-*") for path in _below(models.models_root(), pattern)]
    return [Item(path, "a download that failed", partial(_remove, path)) for path in found if _settled(path)]


def _questions() -> list[Item]:
    """Links to weights of questions that are over, and folders of questions that never came to be."""
    over = [job for job in ask.jobs() if launch.state(job) not in launch.ALIVE]
    links = [path for job in over for path in job.linked_weights()]
    broken = [path for path in _below(ask.jobs_root(), "question-*") if not ask.is_job(path) and _settled(path)]
    return [Item(path, "of a question that is over", partial(_remove, path)) for path in (*links, *broken)]


def _below(root: Path, pattern: str) -> list[Path]:
    return sorted(root.glob(pattern)) if root.is_dir() else []


def _settled(path: Path) -> bool:
    return path.lstat().st_mtime < time.time() - SETTLED_S


def _alone(run: Run, act: Callable[[], None]) -> None:
    """Do something to a run that has no worker; nothing where one has come."""
    try:
        with FileLock(run.lock_path, timeout=0):
            if not _busy(run):
                act()
    except Timeout:
        return


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
