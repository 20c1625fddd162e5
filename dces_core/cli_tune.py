"""`dces tune`: search settings of one arm on the validation split."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import polars as pl

from dces_core import export
from dces_core.errors import UserError
from dces_core.tune_store import Found, Search, searches_root


def add_commands(commands: Any) -> None:
    """The verb's arguments."""
    command = commands.add_parser("tune", help="search settings of one arm on the validation split; goes on where it stopped")
    command.add_argument("tune", metavar="TUNE.toml", help="what is searched: docs/tune.md")
    command.add_argument("--trials", type=int, metavar="K", help="go on until there are K trials (without it: list them)")
    command.add_argument("--out", type=Path, metavar="DIR", help="folder of the search (default: runs/tune/NAME)")
    command.add_argument("--format", choices=("table", "json"), default="table")
    command.set_defaults(do=tune)


def tune(options: argparse.Namespace) -> int:
    """`dces tune`: the trials on stdout; progress, and the recipe's path, on stderr."""
    from dces_core.tune import load_tune
    from dces_core.tuning import Work, do_tune

    if options.trials is not None and not 1 <= options.trials <= 100_000:
        raise UserError(f"trials = {options.trials} is not allowed; give 1 to 100,000.")
    found = load_tune(options.tune)
    search = Search((options.out or searches_root() / found.config.name).absolute())
    state = "done"
    if options.trials is not None:
        state = do_tune(Work(found, search, lambda text: print(text, file=sys.stderr, flush=True)), options.trials)
    read = search.read()
    if read is None:
        raise UserError(f"out = {str(search.path)!r} holds no search; begin it with --trials K.")
    show(read, options.format)
    if state == "stopped":
        print("dces: the search was stopped; the same command goes on.", file=sys.stderr)
    elif read.best:
        print(f"best: {search.recipe_path}", file=sys.stderr)
    return 0 if state == "done" else 1


def show(found: Found, kind: str) -> None:
    """All trials; as JSON with the best one and the importance of the fields."""
    rows = [{"number": one.number, "state": one.state, "value": one.value, "rounds": len(one.by_round)} for one in found.trials]
    if kind == "table":
        keys = [path.rpartition(".")[2] for path in found.fields]
        heads = found.fields if len(set(keys)) < len(keys) or set(keys) & {"number", "state", "value", "rounds"} else keys
        values = {head: [_cell(one.values.get(path)) for one in found.trials] for head, path in zip(heads, found.fields, strict=True)}
        schema = {"number": pl.Int64, "state": pl.String, "value": pl.Float64, "rounds": pl.Int64}
        export.emit(pl.DataFrame(rows, schema=schema).with_columns(pl.Series(path, own, pl.String) for path, own in values.items()), kind)
        return
    trials = [
        {**row, "fields": one.values, "by_round": one.by_round, "reason": one.reason} for row, one in zip(rows, found.trials, strict=True)
    ]
    best, own = found.best, found.baseline
    body = {
        "name": found.name, "arm": found.arm, "objective": found.objective, "rounds": found.rounds,
        "baseline": own.value if own else None, "best": best.number if best else None,
        "importance": found.importance, "importance_reason": found.importance_reason, "trials": trials,
    }  # fmt: skip
    print(json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False))


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
