"""`dces curate`: one step of an arm on a pool of one's own."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import polars as pl

from dces_core import export
from dces_core.errors import UserError


def add_commands(commands: Any) -> None:
    """`dces curate POOL --n N --out SELECTED`."""
    command = commands.add_parser("curate", help="choose N of a pool of one's own, by DCES or another arm")
    command.add_argument("pool", type=Path, metavar="POOL", help="JSONL, CSV or Parquet with prompt and text, perhaps logprob and round")
    command.add_argument("--n", type=int, required=True, metavar="N", help="rows to choose")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSONL to write the chosen rows to, in training order")
    command.add_argument("--table", type=Path, metavar="FILE", help="JSONL to write every row of the pool to, with its fate and the reason")
    command.add_argument("--arm", default="dces", help="the rule (default: dces)")
    command.add_argument("--model", metavar="MODEL", help="M_0: edits, judges, and scores a pool without logprob (default: none of these)")
    command.add_argument("--current", type=Path, metavar="PATH", help="weights of the model that wrote the pool (default: M_0's)")
    command.add_argument("--reference", metavar="FILE", help="real pairs or texts, or 'everyday': set-points and quality limit")
    command.add_argument("--state", type=Path, metavar="FILE", help="the feedback loop's state: read if it exists, then replaced")
    command.add_argument("--seed", type=int, help="default: the state's, else 0")
    command.add_argument("--set", action="append", metavar="section.key=value", help="change a setting; repeatable")
    command.add_argument("--format", choices=("table", "json"), default="table", help="of the report on stdout")
    command.set_defaults(do=curate_)


def curate_(options: argparse.Namespace) -> int:
    """`dces curate`: files first, the state last, the report on stdout."""
    from dces_core import curation, curation_state

    for name in ("out", "table", "state"):
        path = getattr(options, name)
        if path is not None and not path.absolute().parent.is_dir():
            raise UserError(f"{name} = {str(path)!r} lies in a folder that is not there; make it first.")
    given = {name: getattr(options, name) for name in ("arm", "model", "current", "reference", "seed")}
    state = curation_state.read_state(options.state)
    found = curation.curate(
        options.pool, options.n, **given, state=state.model_dump(mode="json") if state else None, settings=options.set or []
    )
    curation.write_jsonl(found.selected, options.out)
    if options.table:
        curation.write_jsonl(found.table, options.table, "table")
    if options.state:
        curation_state.write_state(options.state, found.state)
    if options.format == "json":
        print(json.dumps(found.report, indent=1, ensure_ascii=False))
        return 0
    return export.emit(pl.DataFrame(rows_of(found.report), schema={"field": pl.String, "value": pl.String}), "table")


def rows_of(report: dict[str, Any]) -> list[dict[str, str | None]]:
    """The report line by line; what was not possible, and why, at the end."""
    plain = {key: value for key, value in report.items() if key not in ("undefined", "notes") and value is not None}
    rows: list[dict[str, str | None]] = [
        {"field": key, "value": f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)}
        for key, value in plain.items()
    ]
    rows += [{"field": f"no {key}", "value": reason} for key, reason in report["undefined"].items()]
    return rows + [{"field": "note", "value": note} for note in report["notes"]]
