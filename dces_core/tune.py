"""What a TUNE.toml says: settings of one arm that are searched, and the figure that they are judged by.

tuning.py does the search, tune_store.py keeps it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import polars as pl
from pydantic import Field, StrictFloat, StrictInt, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from dces_core.branch import why_fixed
from dces_core.config import NAME, ArmName, RunConfig, load_recipe, parse
from dces_core.errors import UserError, quoted, reason_of
from dces_core.metrics.degradation import DIRECTION
from dces_core.reading import read_toml
from dces_core.section import Section, validate
from dces_core.study import Seed, dotted

PAGE = "docs/tune.md"
Number = StrictInt | StrictFloat
Choice = bool | int | float | str
ENDS = {"low", "high", "log", "choices"}


class Range(Section):
    """Values of one field: from `low` to `high`, or one of `choices`."""

    low: Number | None = Field(None, description="Smallest value.")
    high: Number | None = Field(None, description="Largest value.")
    log: bool = Field(False, description="Draw on a logarithmic scale.")
    choices: tuple[Choice, ...] = Field((), description="The values themselves, instead of low and high.")

    @model_validator(mode="after")
    def _consistent(self) -> Range:
        if self.choices:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("a field has either choices, or low and high")
            if len(set(self.choices)) < max(2, len(self.choices)):
                raise ValueError(f"choices = {list(self.choices)} must name at least two values, none of them twice")
            return self
        if self.low is None or self.high is None or self.low >= self.high:
            raise ValueError(f"low = {self.low} and high = {self.high} must be two numbers, low the smaller one; or give choices")
        if self.log and self.low <= 0:
            raise ValueError(f"low = {self.low} must be greater than 0 where log = true")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that must be allowed for all of them to be."""
        return self.choices or (self.low, self.high)


class Objective(Section):
    """The figure that a trial is judged by, after its last round."""

    metric: str = Field("ppl", description="A metric of docs/metrics.md.")
    test_set: str = Field("", description="The test set that it is read on; empty: the worst of all.")
    over_round0: bool = Field(True, description="Divide it by its value at round 0.")
    direction: Literal["auto", "lower", "higher"] = Field("auto", description="Which is better; auto: as docs/metrics.md says.")

    @property
    def higher(self) -> bool:
        """Whether a larger value is better."""
        return (DIRECTION.get(self.metric) if self.direction == "auto" else self.direction) == "higher"

    @property
    def words(self) -> str:
        """What is measured, in words."""
        where = f"on {self.test_set}" if self.test_set else "worst over the test sets"
        return f"{self.metric}{' over round 0' * self.over_round0}, {where}, {'higher' if self.higher else 'lower'} is better"

    def value(self, metrics: pl.DataFrame, round_: int) -> tuple[float | None, str | None]:
        """The figure at a round, or None and why it is not there. `metrics`: METRICS of one arm."""
        own = metrics.filter(pl.col("metric") == self.metric)
        own = own.filter(pl.col("test_set") == self.test_set) if self.test_set else own
        now = {row["test_set"]: row for row in own.filter(pl.col("round") == round_).iter_rows(named=True)}
        if not now:
            return None, f"{self.metric} is not measured{f' on {self.test_set}' if self.test_set else ''}"
        start = {row["test_set"]: row["value"] for row in own.filter(pl.col("round") == 0).iter_rows(named=True)}
        found = []
        for name, row in now.items():
            if row["value"] is None:
                return None, row["reason"] or f"{self.metric} is undefined at round {round_}"
            if self.over_round0 and not start.get(name):
                return None, f"{self.metric} is undefined or 0 at round 0; set objective.over_round0 = false"
            found.append(row["value"] / start[name] if self.over_round0 else row["value"])
        return (min(found) if self.higher else max(found)), None


class TuneConfig(Section):
    """The fields of a TUNE.toml."""

    name: str = Field(description="Name of the search; its folder has it.")
    note: Annotated[str, Field(max_length=2000)] = Field("", description="What it looks for.")
    recipe: str = Field("quick", description="A recipe by name or path; a relative path starts at the folder of the TUNE.toml.")
    set: dict[str, Any] = Field({}, description="Settings over the recipe, as in a study.")
    arm: ArmName = Field("dces", description="The arm.")
    seed: Seed = Field(0, description="The seed of every trial.")
    objective: Objective = Objective()  # type: ignore[call-arg]
    startup: Annotated[int, Field(ge=1, le=1000)] = Field(5, description="Finished trials before any is pruned.")
    prune_after: Annotated[int, Field(ge=1, le=10_000)] = Field(1, description="Rounds that every trial gets.")
    fields: Annotated[dict[str, Range], Field(min_length=1)] = Field(description="Settings that are searched.")

    @field_validator("fields", mode="before")
    @classmethod
    def _flat(cls, fields: Any) -> Any:
        """`controller.gain = {...}` of TOML is a table in a table."""
        return _leaves(fields) if isinstance(fields, dict) else fields

    @model_validator(mode="after")
    def _consistent(self) -> TuneConfig:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name = {self.name!r} must use letters, digits, '.', '_' and '-' only")
        metric = self.objective.metric
        if metric not in DIRECTION:
            raise ValueError(f"objective.metric = {metric!r} is not a metric; docs/metrics.md lists them all")
        if DIRECTION[metric] == "neutral" and self.objective.direction == "auto":
            raise ValueError(
                f"objective.metric = {metric!r} has no better direction of its own; set objective.direction to lower or higher"
            )
        return self


def _leaves(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in fields.items():
        inner = isinstance(value, dict) and not ENDS & value.keys() and value
        found |= _leaves(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


@dataclass(frozen=True)
class Tune:
    """A search with its recipe resolved."""

    config: TuneConfig
    base: RunConfig  # the recipe's own settings, of this arm and seed

    def with_values(self, values: dict[str, Any]) -> RunConfig:
        """The recipe with these values of the searched fields. Raises UserError where they contradict each other."""
        body = self.base.model_dump(mode="json")
        for path, value in values.items():
            section, _, key = path.rpartition(".")
            (body[section] if section else body)[key] = value
        return parse(body)


def load_tune(name: str) -> Tune:
    """A TUNE.toml. Raises UserError where it cannot be read, reads the test split, or names a field that cannot be searched."""
    path = Path(name).absolute()
    try:
        values = read_toml(path)
    except (ValueError, OSError) as error:
        raise UserError(f"tune = {quoted(name)} cannot be read as TOML: {reason_of(error)}.") from None
    config = validate(TuneConfig, values, PAGE)
    beside = str(path.parent / config.recipe) if config.recipe.endswith(".toml") else config.recipe
    own = [*dotted(config.set), f"name={json.dumps(config.name)}", f"arms={json.dumps([config.arm])}", f"seed={config.seed}"]
    base = load_recipe(beside, own)
    if base.eval.split != "validation":
        raise UserError(
            "eval.split = 'test' is not for tuning, for a figure that settings were chosen by is no test of them any more; "
            "put eval.split = 'validation' into set."
        )
    test_set = config.objective.test_set
    known = [name for name, where in base.data.tests.items() if where]
    if test_set and test_set not in known:
        raise UserError(f"objective.test_set = {quoted(test_set)} is not among data.tests: {', '.join(known)}.")
    for field, range_ in config.fields.items():
        _check_field(field, range_)
    return Tune(config, base)


def field_info(path: str) -> FieldInfo | None:
    """A setting of a run by `section.key`; None where there is none, or it is a section."""
    section, _, key = path.rpartition(".")
    default = RunConfig.model_fields[section].default if section in RunConfig.model_fields else None
    fields = type(default).model_fields if isinstance(default, Section) else RunConfig.model_fields if not section else {}
    info = fields.get(key)
    return None if info is None or isinstance(info.default, Section) else info


def _check_field(path: str, range_: Range) -> None:
    """Raise UserError unless the field exists, leaves round 0 and the first pool as they are, and allows these values."""
    info = field_info(path)
    if info is None:
        raise UserError(f"fields: {quoted(path)} is not a setting; docs/settings.md lists them all.")
    if why_fixed(path) or ("." not in path and path != "dynamic"):
        raise UserError(
            f"fields: {path} cannot be searched, for all trials share one round 0, one first pool and one way of measuring; "
            "choose its value in set."
        )
    if not range_.choices and (info.annotation is bool or info.annotation is str or get_origin(info.annotation) is Literal):
        raise UserError(f"fields: {path} is no number; give it choices.")
    kind: Any = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
    for value in range_.ends:
        try:
            TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise UserError(f"fields: {path} = {quoted(value)} is not allowed: {said[0].lower()}{said[1:]}.") from None


def recipe_text(config: RunConfig) -> str:
    """Settings as a recipe."""
    body = config.model_dump(mode="json")
    lines = [f"{key} = {_toml(value)}" for key, value in body.items() if not isinstance(value, dict)]
    for name, section in body.items():
        if isinstance(section, dict):
            lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in section.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
