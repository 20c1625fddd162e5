"""`dces`: run, launch, watch and read runs from a terminal. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import polars as pl

from dces_core import (
    cli_cost,
    cli_curate,
    cli_diagnose,
    cli_interchange,
    cli_plan,
    cli_runs,
    cli_study,
    cli_tune,
    cli_watch,
    export,
    labels,
    launch,
    models,
    store,
    torchrun,
)
from dces_core.cli_runs import foreground
from dces_core.config import load_recipe, recipe_names
from dces_core.errors import UserError
from dces_core.store import Run


def main(arguments: list[str] | None = None) -> int:
    """Entry point. 0: done; 1: the run failed or was stopped; 2: bad input, one sentence on stderr; 130: Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.do(options)
        return code
    except UserError as error:
        print(f"dces: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe went away
        return 0


def run(options: argparse.Namespace) -> int:
    """`dces run`: in the foreground; the last line of stdout is the run directory."""
    config, processes = load_recipe(options.recipe, options.set), torchrun.processes_of(options)
    return foreground(launch.create(config, options.out, **torchrun.facts_of(config, processes)), processes)


def launch_(options: argparse.Namespace) -> int:
    """`dces launch`: as a detached process; prints the run directory."""
    print(launch.launch(load_recipe(options.recipe, options.set), options.out).path)
    return 0


def ls(options: argparse.Namespace) -> int:
    """`dces ls`: all runs, newest first."""
    rows = [_row(found) for found in store.discover() if options.tag is None or options.tag in labels.read(found).tags]
    columns = ("id", "state", "name", "engine", "model", "arms", "seed", "rounds", "finished", "queue", "created", "recorded", "path")
    numbers = ("seed", "rounds", "finished", "queue", "bytes")
    kinds = {name: pl.Int64 if name in numbers else pl.String for name in (*columns, "bytes", "label", "tags", "parent")}
    frame = pl.DataFrame(rows, schema=kinds)
    if options.format == "table":  # what fits a terminal; the other formats have everything
        given = [name for name in ("label", "tags") if (frame[name] != "").any()]
        queue = ["queue"] if frame["queue"].count() else []
        frame = frame.with_columns((pl.col("bytes") / 1e6).round(1).alias("MB"))
        frame = frame.select("id", "state", *queue, "arms", "finished", "rounds", "MB", *given)
    return export.emit(frame, options.format)


def stop(options: argparse.Namespace) -> int:
    """`dces stop`: a request, then SIGTERM after a grace time."""
    found = store.find(options.run)
    launch.stop(found, grace_s=options.grace)
    print(launch.state(found))
    return 0


def resume(options: argparse.Namespace) -> int:
    """`dces resume`: in the foreground like `dces run`, or detached."""
    found, processes = store.find(options.run), torchrun.processes_of(options)
    if options.detach:
        if processes:
            raise UserError("--detach goes without --launcher: several processes are resumed in the foreground.")
        print(launch.resume(found).path)
        return 0
    launch.check_resumable(found)
    return foreground(found, processes)


def record(options: argparse.Namespace) -> int:
    """`dces record`: keep a finished run's tables in data/recorded."""
    print(store.record(store.find(options.run), options.name).path)
    return 0


def show(options: argparse.Namespace) -> int:
    """`dces show`: metrics, collapse verdicts, or what the run is."""
    found = store.find(options.run)
    if options.metrics:
        return export.emit(found.metrics(), options.format)
    if options.verdicts:
        from dces_core.metrics.verdict import verdicts

        return export.emit(verdicts(found.metrics()), options.format)
    info = run_info(found)
    if options.format == "json":
        print(json.dumps(info, indent=1, ensure_ascii=False))
        return 0
    rows = [{"field": key, "value": value if isinstance(value, str) else json.dumps(value)} for key, value in info.items()]
    return export.emit(pl.DataFrame(rows), options.format)


def samples(options: argparse.Namespace) -> int:
    """`dces samples`: the sample table of one round of one arm."""
    found = store.find(options.run)
    if options.arm not in found.config.arms:
        raise UserError(f"arm = {options.arm!r} is not in run {found.id!r}; it has: {', '.join(found.config.arms)}.")
    frame = found.samples(options.arm, options.round)
    if frame.is_empty():
        done = found.finished(options.arm, "select")
        raise UserError(f"round = {options.round} of arm {options.arm!r} has no samples; rounds that have: {_list(done)}.")
    return export.emit(frame, options.format, options.out)


def probes(options: argparse.Namespace) -> int:
    """`dces probes`: answers to the watched prompts."""
    frame = store.find(options.run).probes().select("arm", "round", "prompt", "mode", "text", "loop")
    return export.emit(frame, options.format)


def models_(options: argparse.Namespace) -> int:
    """`dces models pull | ls`."""
    if options.action == "pull":
        said: list[str] = []
        print(models.pull(lambda share, text: _say(said, f"{share:4.0%}  {text}")))
        return 0
    return export.emit(pl.DataFrame(models.ls(), schema_overrides={"bytes": pl.Int64}), options.format)


def doctor(options: argparse.Namespace) -> int:
    """`dces doctor`: devices, memory, disk, versions; or a round of an architecture at full size."""
    if options.arch:
        return cli_plan.doctor_arch(options)
    from dces_core.doctor import examine

    facts = examine()
    if options.format == "json":
        print(json.dumps(facts, indent=1))
        return 0
    rows = [{"what": key, "found": value if isinstance(value, str) else json.dumps(value)} for key, value in facts.items()]
    return export.emit(pl.DataFrame(rows), "table")


def bench(options: argparse.Namespace) -> int:
    """`dces bench`: measure, or put the table of what was measured into a page."""
    from dces_core.bench import command, rows

    if options.markdown is None:
        return export.emit(rows.frame(command.measure(options.names, options.out)), options.format)
    if options.names or options.out is None:
        raise UserError("--markdown measures nothing: give it --out FILE with results, and no NAME.")
    rows.write_page(options.markdown, options.out, list(command.BENCHES))
    print(options.markdown)
    return 0


def run_info(found: Run) -> dict[str, Any]:
    """What `dces show --info` says of a run."""
    config, manifest, status = found.config, found.manifest, found.status()
    given = labels.read(found)
    return {
        "id": found.id,
        "path": str(found.path),
        "label": given.label,
        "note": labels.note_of(found),
        "tags": list(given.tags),
        "parent": found.parent or None,
        "state": launch.state(found),
        "error": status.get("error"),
        "engine": config.engine,
        "model": config.model,
        "arms": list(config.arms),
        "seeds": [config.seed],
        "rounds": config.rounds,
        "finished": {arm: found.finished(arm) for arm in config.arms},
        "pool": {"n": config.pool.n, "size": config.pool.size},
        "eval_split": config.eval.split,
        "created": manifest.get("created"),
        "config_hash": manifest.get("config_hash"),
        "versions": manifest.get("versions"),
        "python": manifest.get("python"),
        "platform": manifest.get("platform"),
        "cpu": manifest.get("cpu"),
        "device": status.get("device") or config.device,
        "bytes": found.bytes,
        "recorded": found.recorded,
        "config": manifest.get("config"),
    }


def _row(found: Run) -> dict[str, Any]:
    """One line of `dces ls`; an unreadable run keeps its line."""
    given = labels.read(found)
    names = {"id": found.id, "path": str(found.path), "label": given.label, "tags": ",".join(given.tags), "bytes": found.bytes}
    try:
        config = found.config
    except UserError as error:
        return {**names, "state": "unreadable", "name": str(error)}
    finished = min(len(found.finished(arm)) for arm in config.arms) - 1
    return {
        **names,
        "state": launch.state(found),
        "name": config.name,
        "engine": config.engine,
        "model": config.model,
        "arms": ",".join(config.arms),
        "seed": config.seed,
        "rounds": config.rounds,
        "finished": max(0, finished),
        "queue": launch.queue_position(found),
        "created": found.manifest.get("created"),
        "recorded": "yes" if found.recorded else "no",
        "parent": found.parent.get("run"),
    }


def _say(said: list[str], line: str) -> None:
    """A line to stderr, unless it was the last one."""
    if said[-1:] != [line]:
        said.append(line)
        print(line, file=sys.stderr, flush=True)


def _list(rounds: list[int]) -> str:
    return ", ".join(map(str, rounds)) or "none yet"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dces", description="Train a language model on its own output, with and without DCES, and watch.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_runners(commands)
    _add_readers(commands)
    cli_runs.add_commands(commands)
    cli_curate.add_commands(commands)
    cli_cost.add_commands(commands)
    cli_plan.add_commands(commands)
    cli_study.add_commands(commands)
    cli_tune.add_commands(commands)
    cli_diagnose.add_commands(commands)
    cli_interchange.add_commands(commands)
    cli_watch.add_commands(commands)
    pull = commands.add_parser("models", help="fetch the default model, or list what is here")
    pull.add_argument("action", choices=("pull", "ls"))
    pull.add_argument("--format", choices=("table", "csv", "json"), default="table")
    pull.set_defaults(do=models_)
    examine = commands.add_parser("doctor", help="devices, memory, disk, versions")
    examine.add_argument("--format", choices=("table", "json"), default="table")
    cli_plan.add_doctor_options(examine)
    examine.set_defaults(do=doctor)
    command = commands.add_parser("bench", help="measure the engine against its peers, side by side")
    command.add_argument("names", nargs="*", metavar="NAME", help="benches of docs/performance.md (default: all)")
    command.add_argument("--format", choices=("table", "csv", "json"), default="table")
    command.add_argument("--out", type=Path, metavar="FILE", help="a JSON file that keeps the results of several calls")
    command.add_argument("--markdown", type=Path, metavar="PAGE", help="measure nothing; write the table of --out into this page")
    command.set_defaults(do=bench)
    return parser


def _add_runners(commands: Any) -> None:
    for name, do, text in (("run", run, "do a run in the foreground"), ("launch", launch_, "start a run as a detached process")):
        command = commands.add_parser(name, help=text)
        command.add_argument("recipe", metavar="RECIPE", help=f"a TOML file, or one of: {', '.join(recipe_names())}")
        command.add_argument("--set", action="append", metavar="section.key=value", help="change a setting; repeatable")
        command.add_argument("--out", type=Path, metavar="DIR", help="run directory to make (default: below runs/ or $DCES_RUNS)")
        command.set_defaults(do=do)
        if do is run:
            torchrun.add_options(command)
    command = commands.add_parser("stop", help="stop a run")
    command.add_argument("run", metavar="RUN")
    command.add_argument("--grace", type=float, default=30.0, metavar="SECONDS", help="seconds before SIGTERM")
    command.set_defaults(do=stop)
    command = commands.add_parser("resume", help="go on after the last finished stage")
    command.add_argument("run", metavar="RUN")
    command.add_argument("--detach", action="store_true", help="as a detached process")
    torchrun.add_options(command)
    command.set_defaults(do=resume)
    command = commands.add_parser("record", help="copy the tables of a finished run into data/recorded, where the app shows them first")
    command.add_argument("run", metavar="RUN")
    command.add_argument("name", metavar="NAME")
    command.set_defaults(do=record)


def _add_readers(commands: Any) -> None:
    command = commands.add_parser("ls", help="list runs")
    command.add_argument("--tag", metavar="TAG", help="only runs that have this tag")
    command.add_argument("--format", choices=("table", "csv", "json"), default="table")
    command.set_defaults(do=ls)
    command = commands.add_parser("show", help="metrics of a run, collapse verdicts, or what it is")
    command.add_argument("run", metavar="RUN")
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--metrics", action="store_true")
    what.add_argument("--verdicts", action="store_true", help="first round of collapse, by each of several definitions")
    what.add_argument("--info", action="store_true")
    command.add_argument("--format", choices=("table", "csv", "json"), default="table")
    command.set_defaults(do=show)
    command = commands.add_parser("samples", help="the samples of one round of one arm")
    command.add_argument("run", metavar="RUN")
    command.add_argument("--arm", required=True)
    command.add_argument("--round", type=int, required=True)
    command.add_argument("--format", choices=("csv", "parquet"), default="csv")
    command.add_argument("--out", type=Path, metavar="FILE", help="write there instead of to stdout")
    command.set_defaults(do=samples)
    command = commands.add_parser("probes", help="answers to the watched prompts")
    command.add_argument("run", metavar="RUN")
    command.add_argument("--format", choices=("csv", "json"), default="csv")
    command.set_defaults(do=probes)


if __name__ == "__main__":
    sys.exit(main())
