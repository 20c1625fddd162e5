"""The launch form, generated from the config: one widget per setting, its bounds and its description as help.

Bounds here are for the person; the same bounds are checked again where the run is created.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import annotated_types
import streamlit as st
from pydantic.fields import FieldInfo

from dces_core.branch import flat
from dces_core.config import RunConfig
from dces_core.errors import UserError
from dces_core.section import Section

#: Shown open, in this order; every other field waits in its section.
FIRST = ("name", "model", "arms", "rounds", "seed", "device", "note")
TITLES = {
    "data": "Data",
    "pool": "Pool",
    "generate": "Decoding",
    "encoder": "Encoders",
    "gate": "Gate",
    "cluster": "Clusters",
    "split": "Center and edge",
    "controller": "Controller",
    "edit": "Token editing",
    "filter": "Quality filter",
    "train": "Training",
    "eval": "Evaluation",
    "map": "Map",
}
#: A step that fits the scale of the field; without it Streamlit steps by 0.01.
DECIMALS = "%.6g"


def bounds(info: FieldInfo) -> tuple[float | None, float | None]:
    """Smallest and largest allowed value; an open bound moves by a hair."""
    low: Any = None
    high: Any = None
    for rule in info.metadata:
        if isinstance(rule, annotated_types.Ge):
            low = rule.ge
        elif isinstance(rule, annotated_types.Gt):
            low = math.nextafter(float(rule.gt), math.inf)  # type: ignore[arg-type]
        elif isinstance(rule, annotated_types.Le):
            high = rule.le
        elif isinstance(rule, annotated_types.Lt):
            high = math.nextafter(float(rule.lt), -math.inf)  # type: ignore[arg-type]
    return low, high


def draw(config: RunConfig, recipe: str, fixed: Callable[[str], str | None] = lambda path: None) -> dict[str, Any]:
    """Draw the form with the recipe's values in it; returns plain values for `config.parse`.

    `fixed`: why a field (`section.key`) cannot be changed here, None where it can.
    """
    values: dict[str, Any] = {}
    fields = RunConfig.model_fields
    with st.grid(3, min_column_width=240):
        for name in FIRST:
            values[name] = widget(name, fields[name], getattr(config, name), f"{recipe}/{name}", fixed(name))
    rest = [name for name in fields if name not in FIRST and name not in TITLES]
    with st.expander("Run"), st.grid(3, min_column_width=240):
        for name in rest:
            values[name] = widget(name, fields[name], getattr(config, name), f"{recipe}/{name}", fixed(name))
    for section, title in TITLES.items():
        values[section] = draw_section(getattr(config, section), title, f"{recipe}/{section}", fixed)
    return values


def draw_section(section: Section, title: str, key: str, fixed: Callable[[str], str | None]) -> dict[str, Any]:
    """One section as an expander."""
    fields, path = type(section).model_fields, key.rpartition("/")[2]
    with st.expander(title), st.grid(3, min_column_width=240):
        return {name: widget(name, info, getattr(section, name), f"{key}/{name}", fixed(f"{path}.{name}")) for name, info in fields.items()}


def widget(name: str, info: FieldInfo, value: Any, key: str, fixed: str | None = None) -> Any:
    """The widget that fits a field's type; returns its value as plain data. `fixed`: why it cannot be changed."""
    kind: Any = info.annotation
    words = f"{info.description} Cannot be changed here: {fixed}." if fixed else info.description
    shared: dict[str, Any] = {"label": name, "key": key, "help": words, "disabled": fixed is not None}
    if get_origin(kind) is tuple:
        options = list(get_args(get_args(kind)[0]))
        chosen = st.multiselect(options=options, default=list(value), **shared)
        return list(chosen)
    if get_origin(kind) is Literal:
        options = list(get_args(kind))
        return st.selectbox(options=options, index=options.index(value), **shared)
    if kind is bool:
        return st.toggle(value=value, **shared)
    if kind is int or kind is float:
        return number(kind, info, value, shared)
    if get_origin(kind) is dict:
        return lines_to_dict(st.text_area(value="\n".join(f"{k} = {v}" for k, v in value.items()), height=100, **shared), name)
    return st.text_input(value=value, **shared)


def number(kind: type, info: FieldInfo, value: float, shared: dict[str, Any]) -> float:
    """A bounded number; its step is about a tenth of its value."""
    low, high = bounds(info)
    if kind is int:
        whole = [None if bound is None else int(bound) for bound in (low, high)]
        return int(st.number_input(value=int(value), min_value=whole[0], max_value=whole[1], step=1, **shared))
    low, high = (None if bound is None else float(bound) for bound in (low, high))
    step = 10.0 ** math.floor(math.log10(abs(value) or 0.1)) / (1 if value < 0.01 else 2)
    return float(st.number_input(value=float(value), min_value=low, max_value=high, step=min(step, 0.1), format=DECIMALS, **shared))


def lines_to_dict(text: str, name: str) -> dict[str, str]:
    """`key = value` lines as a dict. Raises UserError for a line of another form."""
    pairs = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        key, equals, value = line.partition("=")
        if not equals:
            raise UserError(f"data.{name}: the line {line[:60]!r} must have the form NAME = PATH.")
        pairs[key.strip()] = value.strip()
    return pairs


def changes(config: RunConfig, recipe: RunConfig) -> list[str]:
    """Settings that differ from the recipe, as `section.key = value`."""
    before, after = flat(recipe.model_dump(mode="json")), flat(config.model_dump(mode="json"))
    return [f"{key} = {value}" for key, value in after.items() if before.get(key) != value]
