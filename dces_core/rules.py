"""Rules over the rounds of a run: when one holds, and what is to be done then. Reads no file but the rules', does nothing itself.

A condition is `METRIC COMPARISON LIMIT`; the limit is a number, or a factor times the metric's value in round 0 or in the previous
round: `loop_rate > 0.02`, `entropy_generated < 0.9 * round0`, `ppl > 1.5 * previous`.
"""

from __future__ import annotations

import math
import operator
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlsplit

import polars as pl
from pydantic import Field, model_validator

from dces_core.config import SHIPPED
from dces_core.errors import UserError, quoted, reason_of
from dces_core.metrics.degradation import TITLE
from dces_core.reading import read_toml
from dces_core.section import Section, validate

DEFAULT = SHIPPED / "rules.toml"
PAGE = "docs/watch.md"
MOST_RULES = 100
LONGEST_ADDRESS = 4_000
Base = Literal["", "round0", "previous"]
COMPARISONS: dict[str, Callable[[float, float], bool]] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
FORM = re.compile(r"\s*(?P<metric>\w{1,60})\s*(?P<comparison><=|>=|<|>)\s*(?P<limit>[^<>]{1,60}?)\s*", re.ASCII)
LIMIT = re.compile(r"(?:(?P<factor>[-+.\deE]{1,30})\s*\*\s*)?(?P<base>round0|previous)|(?P<number>[-+.\deE]{1,30})", re.ASCII)
PLAIN_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?", re.ASCII)
VARIABLE = re.compile(r"\$[A-Za-z_]\w*", re.ASCII)
Text = Annotated[str, Field(max_length=500)]


@dataclass(frozen=True)
class Condition:
    """A parsed condition: the limit is `factor`, times the value in the base round where there is one."""

    metric: str
    comparison: str
    factor: float
    base: Base

    @property
    def limit_words(self) -> str:
        """The limit as it is written."""
        return f"{self.factor:g}{' * ' * bool(self.base)}{self.base}"


class Rule(Section):
    """One rule. What is left empty does not bind: any arm, any test set, no action but the log."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    when: Annotated[str, Field(max_length=200)]
    arm: Text = ""
    test_set: Text = ""
    command: tuple[str, ...] = ()  # no shell: the program, then its arguments
    webhook: str = ""  # an address, or $NAME: the variable of the environment that holds it
    stop: bool = False
    rollback: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _sound(self) -> Rule:
        parse_condition(self.when, f"rule {self.name!r}, when")
        if self.webhook and not (VARIABLE.fullmatch(self.webhook) or is_address(self.webhook)):
            form = "http:// or https:// and a host, or $NAME for a variable of the environment"
            raise ValueError(f"rule {self.name!r}: webhook must be {form}")
        if self.stop and self.rollback is not None:
            raise ValueError(f"rule {self.name!r} has both stop and rollback; a rollback stops the run anyway: keep one")
        if self.rollback is not None and not self.rollback:
            raise ValueError(f"rule {self.name!r}: rollback names no setting to go on with; give one: rollback = {{edit.share = 0.5}}")
        if any("\0" in part for part in self.command):
            raise ValueError(f"rule {self.name!r}: command has a null character; take it out")
        return self

    @property
    def condition(self) -> Condition:
        """When it fires."""
        return parse_condition(self.when, f"rule {self.name!r}, when")

    @property
    def actions(self) -> tuple[str, ...]:
        """What is done when it fires, in this order: what saves computing first, then those who are told of it."""
        given = {"stop": self.stop, "rollback": self.rollback is not None, "command": bool(self.command), "webhook": bool(self.webhook)}
        return tuple(name for name, wanted in given.items() if wanted)


class Rules(Section):
    """A file of rules."""

    rule: tuple[Rule, ...]

    @model_validator(mode="after")
    def _names(self) -> Rules:
        names = [rule.name for rule in self.rule]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"rule.name = {twice!r} is there twice; the log tells rules apart by their names")
        return self


def load(path: Path) -> tuple[Rule, ...]:
    """The rules of a TOML file. Raises UserError, a sentence per wrong field."""
    try:
        values = read_toml(path)
    except FileNotFoundError:
        raise UserError(f"rules = {quoted(str(path))} is not there; give a TOML file of the form of {PAGE}.") from None
    except (tomllib.TOMLDecodeError, ValueError, OSError) as error:
        raise UserError(f"rules = {quoted(str(path))} cannot be read as TOML: {reason_of(error)}.") from None
    return parse(values)


def parse(values: dict[str, Any]) -> tuple[Rule, ...]:
    """Rules of plain values. Raises UserError, a sentence per wrong field; no sentence quotes an address or a command."""
    rows = values.get("rule", [])
    if not isinstance(rows, list) or len(rows) > MOST_RULES:
        raise UserError(f"rule must be a list of at most {MOST_RULES} tables; write [[rule]] above each of them.")
    if not rows:
        raise UserError(f"rule is missing: the file has none; {PAGE} shows one.")
    for number, row in enumerate(rows):
        if isinstance(row, dict):
            _check_quotable(row, f"rule.{number}")
    return validate(Rules, values, PAGE).rule


def _check_quotable(row: dict[str, Any], where: str) -> None:
    """Raise UserError for what `validate` would quote with an address or a command in it."""
    for name in ("name", "when"):
        if name not in row:
            raise UserError(f"{where}.{name} is missing; every rule has a name and a condition (when).")
    if not isinstance(row.get("webhook", ""), str) or len(row.get("webhook", "")) > LONGEST_ADDRESS:
        raise UserError(f"{where}.webhook must be one text of at most {LONGEST_ADDRESS:,} characters.")
    if not isinstance(row.get("command", []), list) or not all(isinstance(part, str) and part for part in row.get("command", [])):
        raise UserError(f"{where}.command must be a list of texts: the program, then its arguments.")


def is_address(text: str) -> bool:
    """Whether a text is an address that can be posted to."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and text.isascii() and text.isprintable() and " " not in text
    except ValueError:
        return False


def parse_condition(text: str, where: str) -> Condition:
    """A condition. Raises ValueError with a sentence that begins with `where`, the field."""
    found = FORM.fullmatch(text)
    if not found:
        raise ValueError(f"{where} = {quoted(text)} must be a metric, one of {', '.join(COMPARISONS)}, and a limit: loop_rate > 0.02")
    metric, limit = found["metric"], LIMIT.fullmatch(found["limit"])
    if metric not in TITLE:
        near = ", ".join(name for name in TITLE if name.split("_")[0] == metric.split("_")[0]) or "docs/metrics.md lists them"
        raise ValueError(f"{where}: {metric!r} is no metric; did you mean: {near}")
    number = (limit["number"] or limit["factor"] or "1") if limit else ""
    if not limit or not PLAIN_NUMBER.fullmatch(number) or not math.isfinite(float(number)):
        forms = "a number, or a number times round0 or previous: 0.9 * round0"
        raise ValueError(f"{where}: the limit {quoted(found['limit'])} must be {forms}")
    return Condition(metric, found["comparison"], float(number), cast(Base, limit["base"] or ""))


# evaluating -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hit:
    """A series for which a rule holds in a round."""

    metric: str
    arm: str
    test_set: str
    round: int
    value: float
    limit: float
    words: str  # comparison and limit as written, and what the limit is then

    @property
    def text(self) -> str:
        """In words."""
        where = f" on {self.test_set}" * bool(self.test_set)
        return f"{self.metric} of {self.arm}{where} is {self.value:.4g} in round {self.round}: {self.words}"


@dataclass(frozen=True)
class Found:
    """What a rule finds in a round: series for which it holds, and why it could not be told of others."""

    hits: tuple[Hit, ...]
    unknown: tuple[str, ...]


@dataclass
class History:
    """Values by metric, arm, test set and round, as they come. `first`: the round that counts as round 0."""

    series: dict[tuple[str, str, str], dict[int, float | None]] = field(default_factory=dict)
    reasons: dict[tuple[str, str, str, int], str] = field(default_factory=dict)

    def add(self, metrics: pl.DataFrame) -> set[int]:
        """Take in rows of records.METRICS; returns their rounds."""
        names = ("metric", "arm", "test_set", "round", "value", "reason")
        for metric, arm, test_set, round_, value, reason in metrics.select(names).iter_rows():
            known = value if value is not None and math.isfinite(value) else None
            self.series.setdefault((metric, arm, test_set), {})[round_] = known
            if known is None:
                self.reasons[metric, arm, test_set, round_] = reason or "it is not finite"
        return set(metrics["round"].unique().to_list())

    @property
    def first(self) -> int:
        """The earliest round."""
        return min((round_ for values in self.series.values() for round_ in values), default=0)


def evaluate(rule: Rule, history: History, round_: int) -> Found:
    """The rule in one round, over all series that it names."""
    wanted, hits, unknown = rule.condition, [], []
    for (metric, arm, test_set), values in history.series.items():
        named = metric == wanted.metric and rule.arm in ("", arm) and rule.test_set in ("", test_set)
        base = _base(wanted.base, values, round_, history.first)
        if not named or round_ not in values or base is None:
            continue
        value, start = values[round_], 1.0 if base < 0 else values.get(base)
        if value is None or start is None:
            gone = round_ if value is None else base
            reason = history.reasons.get((metric, arm, test_set, gone), "there is no such figure")
            unknown.append(f"{metric} of {arm}{f' on {test_set}' * bool(test_set)} is unknown in round {gone}: {reason}")
            continue
        limit = wanted.factor * start
        if COMPARISONS[wanted.comparison](value, limit):
            words = f"{wanted.comparison} {wanted.limit_words}" + (f" = {limit:.4g}" if wanted.base else "")
            hits.append(Hit(metric, arm, test_set, round_, value, limit, words))
    return Found(tuple(hits), tuple(unknown))


def _base(base: Base, values: Mapping[int, float | None], round_: int, first: int) -> int | None:
    """The round that the limit is taken from; -1: from none; None: this round has none before it."""
    if not base:
        return -1
    if base == "round0":
        return first if round_ > first else None
    return max((known for known in values if known < round_), default=None)


def good_rounds(rule: Rule, history: History, rounds: Iterable[int]) -> list[int]:
    """Those rounds in which the rule can be told and does not hold, or has nothing to be compared with."""
    found = {round_: evaluate(rule, history, round_) for round_ in rounds}
    return [round_ for round_, one in found.items() if not one.hits and not one.unknown]
