"""File names of a search, and what its readers see. Reading needs neither torch nor Optuna.

OUT/                       runs/tune/NAME unless told otherwise
  journal.log              Optuna's journal: what the search goes on from
  tune.json                the trials as they stand, made from the journal: what people and pages read
  best.toml                the best trial's settings as a recipe
  baseline/                the recipe's own settings: an ordinary run, whose round 0 and first pool all trials share
  trial-0000/              an ordinary run; its weights are deleted when it is over
  worker.lock              one `dces tune` at a time
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dces_core import launch
from dces_core.config import NAME
from dces_core.errors import UserError
from dces_core.reading import MAX_TOML_BYTES, all_of, fields_of, fitted, is_count, is_number, is_text, read_text
from dces_core.stage import read_json, write_json
from dces_core.store import Run, runs_root

SCHEMA_VERSION = 1
#: Optuna's word -> ours; a trial that runs no more is "interrupted".
STATES = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}


@dataclass(frozen=True)
class Trial:
    """One set of values."""

    number: int
    state: str
    values: dict[str, Any]
    by_round: list[list[float]]  # (round, objective) of its finished rounds
    reason: str | None = None

    @property
    def value(self) -> float | None:
        """The objective after its last finished round."""
        return self.by_round[-1][1] if self.by_round else None


@dataclass(frozen=True)
class Found:
    """A search as tune.json has it."""

    name: str
    note: str
    arm: str
    objective: str
    higher: bool
    rounds: int
    fields: list[str]
    baseline: Trial | None
    trials: list[Trial]
    importance: dict[str, float] | None
    importance_reason: str | None
    recipe: str = field(default="", compare=False)

    @property
    def best(self) -> Trial | None:
        """The best of the trials that did all rounds, the first one where several are."""
        done = [(trial.value, trial) for trial in self.trials if trial.state == "done" and trial.value is not None]
        if not done:
            return None
        return min(done, key=lambda pair: (-pair[0] if self.higher else pair[0], pair[1].number))[1]


class Search:
    """A search's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def journal_path(self) -> Path:
        """Optuna's."""
        return self.path / "journal.log"

    @property
    def lock_path(self) -> Path:
        """Held by the process that works on it."""
        return self.path / "worker.lock"

    @property
    def recipe_path(self) -> Path:
        """The best settings."""
        return self.path / "best.toml"

    def run_path(self, number: int | None) -> Path:
        """Where a trial's run is; None: the recipe's own settings."""
        return self.path / ("baseline" if number is None else f"trial-{number:04d}")

    def run(self, number: int | None) -> Run | None:
        """A trial's run, None where it was not begun; what was never whole is removed."""
        path = self.run_path(number)
        if (path / "run.json").is_file():
            return Run(path)
        shutil.rmtree(path, ignore_errors=True)
        return None

    def facts(self) -> dict[str, Any]:
        """What tune.json says; empty where there is none."""
        return fitted(read_json(self.path / "tune.json"), FORM)

    def begin(self, definition: dict[str, Any]) -> None:
        """Make the folder. Raises UserError where it belongs to a search with other settings, or cannot be written."""
        said = self.facts().get("definition")
        other = sorted(key for key in definition if key != "note" and said is not None and said.get(key) != definition[key])
        if other:
            raise UserError(
                f"out = {str(self.path)!r} holds a search with another {', '.join(other)}: its trials cannot be compared with new ones; "
                "choose another --out, or restore the settings."
            )
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if said is None:
                self.write({"definition": definition, "trials": []})
        except OSError as error:
            raise UserError(f"out = {str(self.path)!r} cannot be written: {error.strerror}; choose another --out.") from None

    def write(self, facts: dict[str, Any]) -> None:
        """Replace tune.json."""
        write_json(self.path / "tune.json", {"schema": SCHEMA_VERSION, **facts})

    def write_recipe(self, text: str) -> None:
        """Replace best.toml."""
        temporary = self.recipe_path.with_name(".best.toml")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.recipe_path)

    def read(self) -> Found | None:
        """The search, None where there is none that can be read."""
        facts = self.facts()
        definition = facts.get("definition")
        if facts.get("schema") != SCHEMA_VERSION or not definition or not definition.keys() >= WORDS.keys() | {"fields"}:
            return None
        trials = [self._trial(one) for one in facts.get("trials") or []]
        baseline = facts.get("baseline")
        return Found(
            name=str(definition["name"]),
            note=str(definition["note"]),
            arm=str(definition["arm"]),
            objective=str(definition["objective_words"]),
            higher=definition["higher"] is True,
            rounds=definition["rounds"],
            fields=list(definition["fields"]),
            baseline=self._trial(baseline) if baseline else None,
            trials=sorted((one for one in trials if one), key=lambda one: one.number),
            importance=facts.get("importance"),
            importance_reason=facts.get("importance_reason"),
            recipe=self._recipe(),
        )

    def _trial(self, entry: dict[str, Any]) -> Trial | None:
        facts = fitted(entry, TRIAL)
        number, state = facts.get("number"), facts.get("state")
        if number is None or state not in STATES.values() or facts.get("values") is None or facts.get("by_round") is None:
            return None
        if state == "running" and launch.state(Run(self.run_path(None if number < 0 else number))) not in launch.ALIVE:
            state = "interrupted"
        return Trial(number, str(state), facts["values"], facts["by_round"], facts.get("reason"))

    def _recipe(self) -> str:
        try:
            return read_text(self.recipe_path, MAX_TOML_BYTES)
        except (OSError, ValueError):
            return ""


def _is_point(value: Any) -> bool:
    return all_of(is_number)(value) and len(value) == 2


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_plain(value: Any) -> bool:
    return is_text(value) or is_number(value) or isinstance(value, bool)


def _is_definition(value: Any) -> bool:
    return (
        _is_object(value) and all(name in value and test(value[name]) for name, test in WORDS.items()) and _is_object(value.get("fields"))
    )


WORDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("name", "note", "arm", "objective_words"), is_text), "rounds": is_count,
    "higher": lambda value: isinstance(value, bool),
}  # fmt: skip
TRIAL: dict[str, Callable[[Any], bool]] = {
    "number": lambda value: value == -1 or is_count(value),
    "state": is_text,
    "values": fields_of(_is_plain),
    "by_round": all_of(_is_point),
    "reason": is_text,
}
FORM: dict[str, Callable[[Any], bool]] = {
    "schema": is_count,
    "definition": _is_definition,
    "trials": all_of(_is_object),
    "baseline": _is_object,
    "importance": fields_of(is_number),
    "importance_reason": is_text,
}


def searches_root() -> Path:
    """Where searches are kept."""
    return runs_root() / "tune"


def searches() -> dict[str, Found]:
    """The searches that can be read, by the name of their folder, the newest first."""
    files = [path for path in searches_root().glob("*/tune.json") if NAME.fullmatch(path.parent.name)]
    paths = sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)
    found = ((path.parent.name, Search(path.parent).read()) for path in paths)
    return {name: one for name, one in found if one}
