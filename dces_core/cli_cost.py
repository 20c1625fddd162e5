"""`dces cost`: what a run costs at one's own price, from what was measured."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import polars as pl

from dces_core import cost_sources, export, store
from dces_core.config import RunConfig, load_recipe
from dces_core.cost import FORMULAS, Costs, Measurement, costs, rate_of
from dces_core.study import output_of

TITLES = {
    "totals": "Sums",
    "stages": "Stages, once",
    "collapse": "Rounds lost to collapse",
    "dces_over_plain": "A round of dces over one of plain",
}


def add_commands(commands: Any) -> None:
    """`dces cost RECIPE`."""
    command = commands.add_parser("cost", help="seconds, energy and money of a run at one's own price, from what was measured")
    command.add_argument("recipe", metavar="RECIPE", help="a TOML file, or the name of a shipped recipe")
    command.add_argument("--set", action="append", metavar="section.key=value", help="change a setting; repeatable")
    command.add_argument("--price-per-hour", type=float, metavar="X", help="of the device (default: none, no money is said)")
    command.add_argument("--watts", type=float, metavar="X", help="that the device draws at work (default: none, no energy is said)")
    command.add_argument("--currency", default="", metavar="WORD", help="of the price, such as EUR; a label only")
    measured = command.add_mutually_exclusive_group()
    measured.add_argument("--run", metavar="RUN", help="the run whose stage seconds count (default: the one that fits the recipe best)")
    measured.add_argument("--study", metavar="STUDY", help="a study whose finished units count instead: whole rounds, by arm")
    command.add_argument(
        "--bench",
        type=Path,
        metavar="FILE",
        help="results of dces bench: dces-total, and the rows of round where neither --run nor --study is given",
    )
    command.add_argument("--format", choices=("table", "json"), default="table")
    command.set_defaults(do=cost_)


def cost_(options: argparse.Namespace) -> int:
    """`dces cost`: tables, or everything as JSON, on stdout."""
    rate = rate_of(options.price_per_hour, options.watts, options.currency)
    config = load_recipe(options.recipe, options.set)
    overhead = cost_sources.overhead(options.bench or cost_sources.BENCH)
    found = costs(config, _measured(options, config), overhead, rate)
    print(json.dumps(found.as_json(), indent=1, ensure_ascii=False, allow_nan=False) if options.format == "json" else text_of(found))
    return 0


def _measured(options: argparse.Namespace, config: RunConfig) -> Measurement | str:
    if options.run:
        return cost_sources.of_run(store.find(options.run))
    if options.study:
        return cost_sources.of_study(output_of(options.study))
    return cost_sources.of_bench(options.bench) if options.bench else cost_sources.best(config)


def text_of(found: Costs) -> str:
    """Everything for a terminal: inputs, tables, formulas."""
    facts = found.facts
    inputs = facts["inputs"]
    unit = inputs["currency"] or "no unit"
    price = "no price per hour" if inputs["price_per_hour"] is None else f"price per hour {inputs['price_per_hour']:g} ({unit})"
    watts = "no watts" if inputs["watts"] is None else f"{inputs['watts']:g} watts"
    lines = [
        f"{facts['recipe']}: {_model(facts['model'], facts['parameters'])}, arms {', '.join(facts['arms'])}, {facts['rounds']} rounds",
        f"given: {price}, {watts}",
    ]
    if facts["measured"]:
        lines.append(f"seconds: {facts['measured']}, {_model(facts['measured_model'], facts['measured_parameters'])}")
    lines += [f"note: {note}" for note in facts["notes"]]
    for name, title in TITLES.items():
        lines += ["", title, _table(getattr(found, name), unit)]
    return "\n".join([*lines, "", "Formulas", *(f"  {name} = {formula}" for name, formula in FORMULAS.items())])


def _table(frame: pl.DataFrame, unit: str) -> str:
    """A table without empty columns; reasons of rows without seconds only. One sentence where no row has seconds and all say the same."""
    reasons = frame["reason"].unique().to_list()
    if not frame["seconds"].count() and len(reasons) == 1:
        return f"  none: {reasons[0]}"
    shown = frame.with_columns(pl.when(pl.col("seconds").is_null()).then("reason").alias("reason"))
    shown = shown.select(name for name in shown.columns if shown[name].count())
    return export.to_table(shown.rename({"money": f"money, {unit}"}, strict=False)).rstrip()


def _model(name: str, parameters: int | None) -> str:
    return f"{name} (parameters not known)" if parameters is None else f"{name} ({parameters:,} parameters)"
