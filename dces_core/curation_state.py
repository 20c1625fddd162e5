"""What goes from one round of curation to the next: the set-points, the controller's memory, and what must not change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dces_core.config import RunConfig, _apply, parse
from dces_core.errors import UserError
from dces_core.section import Section, validate
from dces_core.stage import read_json, write_json
from dces_core.stages.control import SIGNALS, Reference

#: What curation reads of the settings; a state remembers them, and they must stay.
READ = {
    "engine": True, "model": True, "dynamic": True, "encoder": {"name"}, "gate": True, "cluster": True, "split": True, "controller": True,
    "edit": True, "filter": True, "data": {"instruction", "template", "context_tokens"}, "eval": {"block_tokens"},
}  # fmt: skip

#: Settings that curation reads, by section; "" is the top level.
SETTABLE: dict[str, tuple[str, ...]] = {
    "": ("device", "dynamic"), "data": ("instruction", "template", "context_tokens"), "generate": ("max_new_tokens",),
    "eval": ("block_tokens",), "encoder": ("name",), "gate": (), "cluster": (), "split": (), "controller": (), "edit": (), "filter": (),
}  # fmt: skip


class Memory(BaseModel):
    """What the controller keeps of a round, and everything that it said of it."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    error: float | None = None
    edit_integral: float | None = None
    sampling_integral: float | None = None


class State(Section):
    """What goes from one round of curation to the next."""

    schema_version: Literal[1]
    arm: str
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)]
    round: Annotated[int, Field(ge=1, le=2**31 - 1)]
    pool: str  # sha256 of this round's prompts and texts
    settings: dict[str, Any]  # `section.key`: value
    max_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None  # what real text is cut to in every round; None without a model
    reference: Reference
    controller: Memory

    @model_validator(mode="after")
    def _complete(self) -> State:
        if not set(SIGNALS) <= self.reference.round0.keys() & self.reference.real.keys():
            raise ValueError(f"reference must have the set-points {', '.join(SIGNALS)}")
        return self


def read_state(given: str | Path | dict[str, Any] | None) -> State | None:
    """The state of the round before; None at the beginning."""
    if given is None or (isinstance(given, str | Path) and not Path(given).exists()):
        return None
    value, name = (given, "state") if isinstance(given, dict) else (read_json(Path(given)), f"state = {str(given)!r}")
    if not isinstance(value, dict):
        raise UserError(f"{name} is no state file; give one that curate wrote, or a path where nothing is yet.")
    try:
        json.dumps(value, allow_nan=False)
        return validate(State, value, "docs/curate.md")
    except (UserError, ValueError, TypeError) as error:
        raise UserError(f"{name} is no state that curate wrote: {error}") from None


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Replace a state file atomically. Raises UserError where it cannot be written."""
    try:
        write_json(path, state)
    except OSError as error:
        raise UserError(f"state = {str(path)!r} cannot be written: {error.strerror}; choose another place.") from None


def remembered(config: RunConfig) -> dict[str, Any]:
    """The settings that a state remembers, flat."""
    plain = config.model_dump(mode="json", include=READ)  # type: ignore[arg-type]
    parts = {key: value if isinstance(value, dict) else {"": value} for key, value in plain.items()}
    return {f"{section}.{key}".strip("."): value for section, part in parts.items() for key, value in part.items()}


def settings_of(overrides: Sequence[str]) -> RunConfig:
    """The default settings with `section.key=value` overrides. Raises UserError for one that curation does not read."""
    values: dict[str, Any] = {}
    for override in overrides:
        section, _, name = override.partition("=")[0].strip().rpartition(".")
        known = SETTABLE.get(section)
        if known is None or (known and name not in known) or (section == "" and name not in SETTABLE[""]):
            raise UserError(f"--set {override!r} is nothing that curation reads; docs/curate.md lists what can be set.")
        _apply(values, override)
    return parse(values)
