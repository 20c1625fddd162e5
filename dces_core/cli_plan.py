"""`dces plan` and `dces doctor --arch`: what a model needs by the formulas, and a round of it at full size."""

from __future__ import annotations

import argparse
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from dces_core import architectures, estimate, export, full_round, machine, plan
from dces_core.config import RunConfig, _apply, load_recipe, parse, recipe_names
from dces_core.errors import UserError, quoted
from dces_core.stage import read_json, write_json

BEGIN, END = "<!-- begin: dces plan -->", "<!-- end: dces plan -->"
GB = 1e9


def add_commands(commands: Any) -> None:
    """`dces plan MODEL`."""
    command = commands.add_parser("plan", help="memory and seconds of a model on one or several devices, before it is there")
    command.add_argument(
        "model", nargs="?", metavar="MODEL", help="a recipe, a name of data/architectures.toml, or a folder with config.json"
    )
    command.add_argument("--set", action="append", metavar="section.key=value", help="change a setting; repeatable")
    command.add_argument("--devices", default="1", metavar="N,N", help="how many cards, such as 1,2,4,8 (default: 1)")
    command.add_argument("--lora", action="store_true", help="adapters on every linear layer of the blocks as well")
    command.add_argument("--rank", type=int, default=plan.RANK, metavar="R", help=f"of the adapters (default: {plan.RANK})")
    command.add_argument("--memory-gb", type=float, default=80.0, metavar="X", help="of one card (default: 80)")
    command.add_argument("--format", choices=("table", "json"), default="table")
    command.add_argument("--out", type=Path, metavar="FILE", help="measured rounds that dces doctor --arch has kept")
    command.add_argument("--markdown", type=Path, metavar="PAGE", help="plan nothing; write the table of --out into this page")
    command.set_defaults(do=plan_)


def add_doctor_options(command: Any) -> None:
    """Those of a round at full size."""
    command.add_argument("--arch", metavar="NAME", help="build this architecture with random weights and do one small round on the CPU")
    command.add_argument("--layers", type=int, metavar="N", help="with --arch: fewer layers, where memory is short")
    command.add_argument("--out", type=Path, metavar="FILE", help="with --arch: a JSON file that keeps the results of several calls")


def doctor_arch(options: argparse.Namespace) -> int:
    """`dces doctor --arch`: 0 where every stage passed."""
    found = full_round.check(options.arch, options.layers)
    if options.out and found["passed"]:
        keep(options.out, found)
    if options.format == "json":
        print(json.dumps(found, indent=1))
        return 0 if found["passed"] else 1
    rows = [
        {"round": row["round"], "arm": row["arm"], "stage": row["stage"], "seconds": row["seconds"],
         "peak, GB": _gb(row["peak_bytes"]), "passed": "yes" if row["passed"] else "no"}
        for row in found["stages"]
    ]  # fmt: skip
    export.emit(pl.DataFrame(rows), "table")
    layers = f"{found['layers']} layers of it" if found["layers"] else "every layer"
    print(f"{found['name']}, {layers}: peak {_gb(found['peak_bytes'])} GB, by the formula {_gb(found['needed']['total'])} GB")
    print("every stage passed" if found["passed"] else f"failed: {found['error']}")
    return 0 if found["passed"] else 1


def plan_(options: argparse.Namespace) -> int:
    """`dces plan`: a table or JSON on stdout, or a page's table."""
    if options.markdown:
        if options.model or options.out is None:
            raise UserError("--markdown plans nothing: give it --out FILE with measured rounds, and no MODEL.")
        write_page(options.markdown, options.out)
        print(options.markdown)
        return 0
    if not options.model:
        raise UserError(f"MODEL is missing; give a recipe, a folder, or one of: {', '.join(architectures.known())}.")
    facts = planned(options)
    print(json.dumps(facts, indent=1) if options.format == "json" else text_of(facts))
    return 0


def planned(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the verb says."""
    config = settings_of(options.model, options.set)
    shape = shape_of(config.model)
    counts = _counts(options.devices)
    if options.rank < 1:
        raise UserError(f"rank = {options.rank} is not allowed: it must be at least 1.")
    if not options.memory_gb > 0:
        raise UserError(f"memory-gb = {options.memory_gb} is not allowed: it must be above 0.")
    layouts = [plan.Layout(device="cpu"), *(plan.Layout("full", n) for n in counts)]
    layouts += [plan.Layout("lora", n, rank=options.rank) for n in counts if options.lora]
    work = estimate.work_of(config)
    return {
        "model": config.model,
        "parameters": shape.parameters,
        "adapters": options.rank * shape.block_linear * shape.layers if options.lora else None,
        "work": {"batch": work.batch, "tokens": work.tokens, "new_tokens": work.new_tokens, "decoded_at_once": work.decoded},
        "memory_gb": options.memory_gb,
        "layouts": [_row(config, shape, layout, options.memory_gb) for layout in layouts],
        "formulas": plan.FORMULAS,
    }


def settings_of(model: str, changes: list[str] | None) -> RunConfig:
    """A recipe's settings, or the defaults with this model."""
    if model.endswith(".toml") or model in recipe_names():
        return load_recipe(model, changes)
    values: dict[str, Any] = {"model": model}
    for change in changes or []:
        _apply(values, change)
    return parse(values)


def shape_of(model: str) -> plan.Shape:
    """Dimensions, counted on the meta device. Raises UserError where the model is not known here."""
    found = architectures.dimensions(model)
    if found is None:
        known = ", ".join(architectures.known())
        raise UserError(f"model = {quoted(model)} is no recipe, no folder with config.json, and none of: {known}.")
    try:
        return architectures.exact(plan.shape_of(found[0]), architectures.configuration(found[0]))
    except Exception as error:  # of a config.json that transformers refuses
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"model = {quoted(model)}: its dimensions cannot be read ({reason}).") from None


def _counts(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and 1 <= int(part) <= 4096 for part in parts):
        raise UserError(f"devices = {quoted(text)} is not allowed: write numbers from 1 to 4096, such as 1,2,4,8.")
    return [int(part) for part in parts]


def _row(config: RunConfig, shape: plan.Shape, layout: plan.Layout, memory_gb: float) -> dict[str, Any]:
    """Memory by parts, whether it fits, and seconds of a round of one arm."""
    parts = plan.memory(shape, estimate.work_of(config), layout)
    stages = estimate.stage_seconds(config, shape.parameters, layout.device)
    if layout.method == "lora":  # no gradient of the weights: two of three products
        stages["train"] = estimate.FIXED_S["train"] + (stages["train"] - estimate.FIXED_S["train"]) * 2 / 3
    steps = math.ceil(config.pool.n / config.train.batch_size) * config.train.epochs
    seconds = plan.round_seconds(sum(stages.values()), sum(estimate.FIXED_S.values()), steps, shape, layout)
    fits = None if layout.device == "cpu" else parts["total"] <= memory_gb * GB
    named = {"method": layout.method, "device": layout.device, "devices": layout.devices}
    return {**named, "bytes": parts, "fits": fits, "round_s": round(seconds, 1)}


def text_of(facts: dict[str, Any]) -> str:
    """Parts down, layouts across, in GB of one device."""
    work, layouts = facts["work"], facts["layouts"]
    lines = [["GB of one device", *(_title(row) for row in layouts)]]
    lines += [[part, *(f"{row['bytes'][part] / GB:.2f}" for row in layouts)] for part in layouts[0]["bytes"]]
    lines.append([f"fits {facts['memory_gb']:g} GB", *({None: "-", True: "yes", False: "no"}[row["fits"]] for row in layouts)])
    lines.append(["round, s", *(f"{row['round_s']:,.0f}" for row in layouts)])
    adapters = "" if facts["adapters"] is None else f", {facts['adapters']:,} in adapters"
    head = [
        f"{facts['model']}: {facts['parameters']:,} parameters{adapters}",
        f"a step: {work['batch']} sequences of {work['tokens']} tokens, {work['new_tokens']} of them new; "
        f"{work['decoded_at_once']} sequences decoded at once",
        "P parameters, T trained ones, V vocabulary, w width, f inner width, N devices; lora and N > 1 are plans (docs/plan.md)",
    ]
    formulas = [f"  {name} = {formula}" for name, formula in facts["formulas"].items()]
    return "\n".join(
        [*head, "", *(f"{line[0]:<18}" + "".join(f"{cell:>10}" for cell in line[1:]) for line in lines), "", "Formulas", *formulas]
    )


def _title(row: dict[str, Any]) -> str:
    return "cpu" if row["device"] == "cpu" else f"{row['method']} x {row['devices']}"


# measured rounds ----------------------------------------------------------------------------------------------------


def keep(path: Path, found: dict[str, Any]) -> None:
    """Add a measured round to a file of them; one of the same architecture and layers gives way."""
    entry = {
        "name": found["name"], "layers": found["layers"], "peak_bytes": found["peak_bytes"],
        "seconds": round(sum(row["seconds"] for row in found["stages"]), 1), "stages": len(found["stages"]),
        "measured": f"{datetime.now(UTC):%Y-%m-%d}", "machine": f"{machine.cpu()['model']}, {machine.threads()} threads",
    }  # fmt: skip
    others = [each for each in measured(path) if (each["name"], each["layers"]) != (entry["name"], entry["layers"])]
    try:
        write_json(path, [*others, entry])
    except OSError as error:
        raise UserError(f"out = {str(path)!r} cannot be written: {error.strerror}.") from None


def measured(path: Path) -> list[dict[str, Any]]:
    """What a file of measured rounds holds; nothing where there is none."""
    value = read_json(path) if path.exists() else []
    if not isinstance(value, list) or not all(isinstance(each, dict) and {"name", "layers", "peak_bytes"} <= each.keys() for each in value):
        raise UserError(f"out = {str(path)!r} is no file of measured rounds; choose another, or delete it.")
    return value


def write_page(page: Path, results: Path) -> None:
    """Put the table of measured rounds between the markers of a page."""
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"markdown = {str(page)!r} cannot be read: {error.strerror}.") from None
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise UserError(f"markdown = {str(page)!r} does not have the lines {BEGIN} and {END}; put them where the table belongs.")
    page.write_text(f"{text.split(BEGIN)[0]}{BEGIN}\n{table_of(measured(results))}\n{END}{text.split(END)[1]}", encoding="utf-8")


def table_of(entries: list[dict[str, Any]]) -> str:
    """Measured peaks beside the formula as it is now."""
    lines = ["| architecture | layers | measured peak, GB | formula, GB | formula / measured | stages passed | seconds |", "|---" * 7 + "|"]
    for entry in entries:
        wanted = full_round.needed(architectures.find(entry["name"]), entry["layers"])["total"]
        cells = (
            entry["name"], entry["layers"] or "all", _gb(entry["peak_bytes"]), _gb(wanted), f"{wanted / entry['peak_bytes']:.2f}",
            entry["stages"], f"{entry['seconds']:.0f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    places = sorted({f"{entry['measured']} on {entry['machine']}" for entry in entries})
    return "\n".join([*lines, "", f"Measured {'; '.join(places)}, beside other work."])


def _gb(size: float | None) -> str:
    return "-" if size is None else f"{size / GB:.2f}"
