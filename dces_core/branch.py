"""A run that begins where another one stands: continued with more rounds, or forked from a round with changed settings.

The new run takes the finished stages over as links and does the rest itself. A stage is found again by a hash over all settings
(`config.digest()`, in which `rounds` counts) and what it was made from; so this module walks the loop of rounds.py over the old run,
and knows both hashes of every stage: the old one, which must be there, and the new one, under which the new run finds it. Files stay as
they are, `_done.json` says where they come from (`taken_from`), and run.json has the `parent`: run, round, arms, changed settings.

A continued run equals an uninterrupted one of that many rounds to the last bit, the hashes included.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from dces_core import launch, machine
from dces_core.arms import ARMS
from dces_core.config import RunConfig, parse
from dces_core.errors import UserError
from dces_core.lab import Lab
from dces_core.rounds import one_round, round_zero, write_first_pool
from dces_core.stage import Stage
from dces_core.stages.project import Frame
from dces_core.store import SHARED, WEIGHTS, Run

_WEIGHTS = "the rounds that are taken over were trained from it"
_MEASURED = "round 0, the set-points and every evaluation were made with it, so the rounds after the fork could not be compared"
#: Fields and sections that a fork cannot change, and why.
FIXED = {
    "engine": _WEIGHTS, "model": _WEIGHTS, "train.round0": _WEIGHTS, "train.round0_epochs": _WEIGHTS, "train.round0_lr": _WEIGHTS,
    "seed": "all rounds and arms share its random numbers",
    "data": _MEASURED, "encoder": _MEASURED, "eval": _MEASURED, "map": _MEASURED, "pool": _MEASURED, "generate": _MEASURED,
    "filter.percentile": _MEASURED, "controller.watched": _MEASURED, "train.precision": _MEASURED,
}  # fmt: skip
#: Within a fixed section, what no result depends on.
FREE = ("generate.batch_size",)
#: Labels, not settings.
NAMES = ("name", "note")


def why_fixed(path: str) -> str | None:
    """Why a fork cannot change this field (`section.key`), None where it can."""
    return None if path in FREE else FIXED.get(path, FIXED.get(path.partition(".")[0]))


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def changed(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Fields that differ, names aside: `section.key` -> (old, new)."""
    before, after = flat(old.model_dump(mode="json")), flat(new.model_dump(mode="json"))
    keys = [key for key in (before | after) if key not in NAMES]
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def lineage(run: Run) -> str:
    """Where a run's first rounds come from and what was changed, in one sentence or two; empty for a run of its own."""
    parent = run.parent
    if not parent:
        return ""
    words = f"{str(parent.get('kind')).capitalize()} from {parent.get('run')}, whose rounds 0 to {parent.get('round')} it took over."
    values = parent.get("changed")
    lines = [f"{path}: {' → '.join(map(str, pair))}" for path, pair in values.items()] if isinstance(values, dict) else []
    return f"{words} Changed: {'; '.join(lines)}." if lines else words


def forkable(run: Run) -> list[int]:
    """Rounds that every arm of a run has finished, ascending: where a fork of all arms can begin. Empty for a recorded run."""
    if run.recorded:
        return []
    rounds = [set(run.finished(arm)) for arm in run.config.arms]
    return sorted(set.intersection(*rounds))


def with_rounds(run: Run, more: int) -> RunConfig:
    """The settings of a finished run with `more` rounds. Raises UserError where it is not done or `more` is less than 1."""
    if more < 1:
        raise UserError(f"more = {more} is no further round; give at least 1.")
    _refuse_recorded(run)
    now = launch.state(run)
    if now != "done":
        way = "wait until it is done" if now in launch.ALIVE else f"resume it first (dces resume {run.id})"
        raise UserError(f"run {run.id!r} is {now}: only a finished run gets further rounds; {way}.")
    return parse({**run.config.model_dump(mode="json"), "rounds": run.config.rounds + more})


def continue_run(run: Run, more: int, directory: Path | None = None) -> Run:
    """A new run, queued: the finished one with `more` rounds. Raises UserError as `with_rounds` and `launch.create` do."""
    config = with_rounds(run, more)
    return _create(run, run.config.rounds, config, "continued", directory)


def fork_run(run: Run, round_: int, config: RunConfig, directory: Path | None = None) -> Run:
    """A new run, queued: rounds 0 to `round_` of config's arms from `run`, then on with `config`.

    Raises UserError as `check_fork` and `launch.create` do.
    """
    check_fork(run, round_, config)
    return _create(run, round_, config, "forked", directory)


def check_fork(run: Run, round_: int, config: RunConfig) -> None:
    """Raise UserError where the round, an arm or a changed setting does not allow the fork. Cheap: no file is hashed."""
    _refuse_recorded(run)
    for path, (before, _) in changed(run.config, config).items():
        reason = why_fixed(path)
        if reason:
            raise UserError(
                f"{path} cannot change at a fork, it is {before!r} in run {run.id!r}: {reason}; launch a run of its own with it."
            )
    if round_ >= 1:
        strangers = [arm for arm in config.arms if arm not in run.config.arms]
        if strangers:
            raise UserError(f"arms: {strangers[0]!r} has no round {round_} in run {run.id!r}; it has: {', '.join(run.config.arms)}.")
    for arm in config.arms:
        there = run.finished(arm) if arm in run.config.arms else run.finished(SHARED)
        if round_ not in there:
            said = f"0 to {there[-1]}" if there else "none yet"
            raise UserError(f"round = {round_} of arm {arm!r} is not finished in run {run.id!r}; finished rounds: {said}.")
    if config.rounds <= round_:
        raise UserError(f"rounds = {config.rounds} leaves nothing to do after round {round_}; set rounds to at least {round_ + 1}.")
    _need_weights(run, run.config, config, round_)


def trains_again(run: Run, round_: int, arms: Sequence[str]) -> list[str]:
    """Arms whose weights of this round were deleted: a run that goes on from there trains their rounds again, to the same digits."""
    trained = [arm for arm in arms if ARMS[arm].trains] if round_ else []
    return [arm for arm in trained if not run.stage(round_, arm, "train").file(WEIGHTS).is_file()]


def _need_weights(run: Run, old: RunConfig, new: RunConfig, round_: int) -> None:
    """Deleted weights can be made again only by settings that make the same ones."""
    gone = trains_again(run, round_, new.arms)
    touched = [path for path in changed(old, new) if path.startswith("train.") or path == "edit.top_k"]
    if gone and touched:
        raise UserError(
            f"{touched[0]} cannot change at round {round_}: the weights of arm {gone[0]!r} were deleted there (keep = {old.keep!r}), and "
            f"training them again needs the old value; fork from a round whose weights are kept, or launch again with keep = 'all'."
        )


def _refuse_recorded(run: Run) -> None:
    if run.recorded:
        raise UserError(f"run {run.id!r} ships with the project as tables only, nothing can go on from it; launch its settings instead.")


# taking over ------------------------------------------------------------------------------------------------------------


class _Walk:
    """Stands in for the Lab of rounds.py: notes what each stage was made from, and makes nothing."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.config = run.config.model_copy(update={"keep": "all"})  # and deletes nothing
        self.found: list[tuple[Stage, list[str]]] = []

    def do(self, round_: int, arm: str, name: str, after: list[Stage], make: object = None) -> Stage:
        stage = self.run.stage(round_, arm, name)
        if stage.done is None:
            raise UserError(f"round {round_} of run {self.run.id!r} is not whole: stage {name} of {arm} is missing; launch it again.")
        self.found.append((stage, [name, *(before.digest for before in after)]))
        return stage

    def load(self, weights: Stage | None) -> None:
        """No engine."""

    def freeze(self, weights: Stage | None) -> None:
        """No engine."""


def walk(run: Run, arms: Sequence[str], rounds: int) -> list[tuple[Stage, Callable[[RunConfig], str]]]:
    """The stages of rounds 0 to `rounds` in their order, each with the hash of its inputs under given settings.

    Raises UserError where one is missing.
    """
    notes = _Walk(run)
    lab = cast(Lab, notes)
    start, first = round_zero(lab)
    pool = write_first_pool(lab, start)
    reference = notes.do(1, SHARED, "reference", [pool])
    frame = cast("Frame | None", notes.do(1, SHARED, "map", [pool]) if run.config.map.on else None)
    for round_ in range(1, rounds + 1):
        for arm in arms:
            one_round(lab, ARMS[arm], round_, start, first, pool, reference, frame)
    return [(stage, _hash_of(parts)) for stage, parts in notes.found]


def _hash_of(parts: list[str]) -> Callable[[RunConfig], str]:
    """As Lab.do computes it."""
    return lambda config: hashlib.sha256("/".join([config.digest(), *parts]).encode()).hexdigest()


def _create(parent: Run, round_: int, config: RunConfig, kind: str, directory: Path | None) -> Run:
    old = parent.config
    taken = walk(parent, [arm for arm in config.arms if arm in old.arms], round_)
    for stage, inputs in taken:
        if not stage.valid(inputs(old)):
            where = stage.path.relative_to(parent.path)
            raise UserError(f"run {parent.id!r}: {where} is damaged or of another version of this program; launch the settings again.")
    manifest = parent.manifest
    facts = {
        "run": parent.id, "kind": kind, "round": round_, "arms": list(config.arms),
        "changed": {path: list(values) for path, values in changed(old, config).items()},
        **{name: manifest.get(name) for name in ("config_hash", "created", "versions", "cpu")},
    }  # fmt: skip
    threads = {**machine.cpu(), "threads": parent.threads}  # how sums are split decides their last digits
    run = launch.create(config, directory, parent=facts, cpu=threads)
    try:
        for stage, inputs in taken:
            run.adopt(stage, parent, inputs(config))
        _need_weights(run, old, config, round_)
    except (UserError, OSError) as error:
        shutil.rmtree(run.path, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(
                f"the stages of run {parent.id!r} cannot be taken over: {error.strerror}; free space, or set DCES_RUNS."
            ) from None
        raise
    return run
