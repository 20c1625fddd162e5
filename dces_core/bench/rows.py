"""What a bench says: one row per figure, in a JSON file that the table of docs/performance.md is generated from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import polars as pl

from dces_core import machine
from dces_core.errors import UserError
from dces_core.stage import read_json, write_json

SCHEMA = {
    "name": pl.String, "ours": pl.Float64, "peer": pl.Float64, "ratio": pl.Float64, "unit": pl.String, "n": pl.Int64, "note": pl.String,
}  # fmt: skip
#: What a row is meant to reach: which figure, from above or below, and the limit.
Goals = dict[str, tuple[Literal["ours", "ratio"], Literal["≥", "≤"], float]]
GOALS: Goals = {
    "generate-topp": ("ratio", "≥", 4.0),
    "generate-round": ("ratio", "≥", 5.0),
    "generate-topk": ("ratio", "≥", 3.0),
    "generate-ct2": ("ratio", "≥", 2.5),
    "generate-greedy": ("ratio", "≥", 2.0),
    "train": ("ratio", "≥", 2.5),
    "score": ("ratio", "≥", 1.5),
    "score-memory": ("ratio", "≤", 1.0),
    "dces-overhead": ("ratio", "≤", 1.1),
    "select-1m": ("ours", "≤", 60.0),
    "select-1m-memory": ("ours", "≤", 6.0),
    "select-1m-inertia": ("ratio", "≤", 1.02),
    "growth-select-time": ("ratio", "≤", 1.1),
    "growth-select-memory": ("ratio", "≤", 1.1),
    "growth-text-time": ("ratio", "≤", 1.1),
    "growth-text-memory": ("ratio", "≤", 1.1),
    "growth-project-time": ("ratio", "≤", 1.1),
    "growth-project-memory": ("ratio", "≤", 1.1),
    "growth-evaluate-memory": ("ratio", "≤", 0.1),
    "ui-map-cold": ("ours", "≤", 1.0),
    "ui-map-warm": ("ours", "≤", 0.2),
    "ui-tick": ("ours", "≤", 20.0),
    "ui-tick-figures": ("ours", "≤", 0.0),
    "ui-memory": ("ours", "≤", 400.0),
    "ui-first-paint": ("ours", "≤", 3.0),
    "ui-zoom-50k": ("ours", "≤", 500.0),
}
BEGIN, END = "<!-- begin: dces bench -->", "<!-- end: dces bench -->"
PACKAGES = ("torch", "transformers", "trl", "ctranslate2", "scikit-learn", "umap-learn")


@dataclass(frozen=True)
class Row:
    """One figure. `ours`, `peer` in `unit`; `ratio` is None without a peer; `n` counts what was timed (docs/performance.md)."""

    name: str
    ours: float | None
    peer: float | None
    ratio: float | None
    unit: str
    n: int
    note: str = ""


def skipped(name: str, reason: str) -> Row:
    """A row that could not be measured, and why."""
    return Row(name, None, None, None, "", 0, f"skipped: {reason}")


def frame(rows: Iterable[Row]) -> pl.DataFrame:
    """Rows as a table."""
    return pl.DataFrame([asdict(row) for row in rows], schema=SCHEMA)


def keep(path: Path, rows: list[Row]) -> None:
    """Add rows to a file of results, each with its day and machine; a row of the same name gives way.

    Raises UserError for a file that holds anything else.
    """
    facts = {"measured": f"{datetime.now(UTC):%Y-%m-%d}", "machine": _machine()}
    new = [{**asdict(row), **facts} for row in rows]
    names = {row.name for row in rows}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, [entry for entry in stored(path) if entry["name"] not in names] + new)
    except OSError as error:
        raise UserError(f"out = {str(path)!r} cannot be written: {error.strerror}.") from None


def stored(path: Path) -> list[dict[str, Any]]:
    """What a file of results holds; nothing where there is none."""
    if not path.exists():
        return []
    value = read_json(path)
    if not isinstance(value, list) or not all(isinstance(entry, dict) and SCHEMA.keys() <= entry.keys() for entry in value):
        raise UserError(f"out = {str(path)!r} is no file of bench results; choose another, or delete it.")
    return value


def write_page(page: Path, results: Path, order: list[str], goals: Goals = GOALS) -> None:
    """Put the table of a file of results between the markers of a page. `order`: names of benches, first to last."""
    entries = stored(results)
    if not entries:
        raise UserError(f"out = {str(results)!r} has no results; measure first: dces bench --out {results}.")
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"markdown = {str(page)!r} cannot be read: {error.strerror}.") from None
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"markdown = {str(page)!r} does not have the lines {BEGIN} and {END}; put them where the table belongs.")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{_markdown(entries, order, goals)}\n{END}{after}", encoding="utf-8")


def _markdown(entries: list[dict[str, Any]], order: list[str], goals: Goals) -> str:
    lines = ["| bench | ours | peer | ratio | goal | n | note |", "|---|---|---|---|---|---|---|"]
    for entry in sorted(entries, key=lambda entry: _place(entry["name"], order)):
        row = Row(**{name: entry[name] for name in SCHEMA})
        unit = f" {row.unit}" if row.unit else ""
        figures = (_number(row.ours, unit), _number(row.peer, unit), _number(row.ratio))
        cells = (f"`{row.name}`", *figures, goal_of(row, goals), f"{row.n:,}", row.note)
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    days = sorted({entry["measured"] for entry in entries})
    machines = sorted({entry["machine"] for entry in entries})
    said = f"Measured {days[0]}" + (f" to {days[-1]}" if len(days) > 1 else "") + f" on {'; and on '.join(machines)}."
    return "\n".join([*lines, "", said])


def _place(name: str, order: list[str]) -> tuple[int, str]:
    """Rows of a bench follow it; a name begins with its bench's."""
    found = [i for i, bench in enumerate(order) if name == bench or name.startswith(f"{bench}-")]
    return (found[-1] if found else len(order), name)


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:,.3g}{unit}" if abs(value) < 100 else f"{value:,.0f}{unit}"


def goal_of(row: Row, goals: Goals) -> str:
    """The goal of a row and whether it is met; a dash where it has none."""
    if row.name not in goals:
        return "-"
    what, sign, limit = goals[row.name]
    value = row.ours if what == "ours" else row.ratio
    if value is None:
        return f"{sign} {limit:g}: not measured"
    return f"{sign} {limit:g}: {'met' if (value >= limit) == (sign == '≥') or value == limit else 'missed'}"


def _machine() -> str:
    cpu = machine.cpu()
    versions = {name: machine.version(name) for name in PACKAGES}
    return ", ".join([f"{cpu['model']}, {cpu['cores']} cores", *(f"{name} {found}" for name, found in versions.items() if found)])
