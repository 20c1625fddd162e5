"""`dces study`, `dces compare` and `dces results`: arms x seeds of one recipe, and what they say."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import polars as pl

from dces_core import export, launch, results
from dces_core.compare import compare, refuse_unequal, remarks
from dces_core.errors import UserError, quoted
from dces_core.records import table
from dces_core.store import runs_root
from dces_core.study import Work, budget_of, do_study, load_study, mixed_cpus, output_of, status
from dces_core.study_store import Output


def add_commands(commands: Any) -> None:
    """The three verbs' arguments."""
    command = commands.add_parser("study", help="arms x seeds of one recipe, one run after the other; goes on where it stopped")
    command.add_argument("study", metavar="STUDY", help="a TOML file, or the name of a shipped study")
    command.add_argument("--out", type=Path, metavar="DIR", help="where finished units go (default: the study's folder)")
    command.add_argument("--only", nargs="+", default=[], metavar="ARM/SEED", help="these units; */3 is every arm of seed 3")
    command.add_argument("--status", action="store_true", help="start nothing; list the units")
    command.add_argument("--keep-runs", action="store_true", help="keep the units' run directories, weights included")
    command.add_argument("--mixed-cpus", action="store_true", help="allow a seed on several types of processor")
    command.add_argument("--engine", default="local", metavar="ENGINE", help="local (default), or ray: units on the nodes of a Ray cluster")
    command.add_argument("--address", default="auto", metavar="HOST:PORT", help="ray: the head; auto is this machine's, local starts one")
    command.add_argument("--root", metavar="DIR", help="ray: a folder that all nodes see, for the units' runs (default: the runs)")
    command.add_argument(
        "--resources", nargs="+", default=[], metavar="NAME=N", help="ray: what a unit needs: cpus, gpus, memory_gb, own ones"
    )
    command.set_defaults(do=study)
    command = commands.add_parser("compare", help="arms of a study, paired by seed")
    command.add_argument("study", metavar="STUDY", help="a study's output directory, its TOML file, or a recorded study's name")
    command.add_argument("--vs", default="plain", metavar="ARM", help="the arm that the others are compared with (default: plain)")
    command.add_argument("--verdicts", action="store_true", help="share of seeds that collapse, by each of several definitions")
    command.add_argument("--format", choices=("table", "csv", "json"), default="table", help="the table shows the last round only")
    command.set_defaults(do=compare_)
    command = commands.add_parser("results", help="write what the recorded studies say into docs/results.md and README.md")
    command.add_argument("--out", type=Path, default=results.PAGE, metavar="PAGE", help="the page (default: docs/results.md)")
    command.add_argument(
        "--readme", type=Path, default=results.README, metavar="PAGE", help="the page with the headline (default: README.md)"
    )
    command.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page says something else")
    command.set_defaults(do=results_)


def study(options: argparse.Namespace) -> int:
    """`dces study`: 0 when everything that was asked for is there; the last line of stdout is the output directory."""
    found = load_study(options.study)
    output = Output((options.out or found.default_out).absolute())
    work = Work(found, output, options.mixed_cpus, options.keep_runs, lambda text: print(text, file=sys.stderr, flush=True))
    if options.status:
        schema = {"seed": pl.Int64, "arm": pl.String, "state": pl.String, "seconds": pl.Float64, "cpu": pl.String}
        return export.emit(pl.DataFrame(status(work), schema=schema), "table")
    state = _do(work, options)
    if state == "stopped":
        print("dces: the study was stopped; the same command goes on.", file=sys.stderr)
    elif state == "failed":
        print("dces: some units failed; the same command tries them again.", file=sys.stderr)
    print(output.path)
    return 0 if state == "done" else 1


def _do(work: Work, options: argparse.Namespace) -> launch.State:
    """Here or on a cluster. Raises UserError for an engine that is not there."""
    if options.engine == "local":
        return do_study(work, options.only)
    if options.engine != "ray":
        raise UserError(f"engine = {quoted(options.engine)} is not one of: local, ray.")
    from dces_core import cluster_ray
    from dces_core.cluster import root_of

    cluster = cluster_ray.Cluster(options.address, root_of(options.root, runs_root()), cluster_ray.resources_of(options.resources))
    return cluster_ray.do_study_on_ray(work, cluster, options.only)


def compare_(options: argparse.Namespace) -> int:
    """`dces compare`: paired differences, or collapse verdicts; remarks on budgets and processors go to stderr."""
    output = output_of(options.study)
    units = output.units()
    if not units:
        raise UserError(f"study {str(output.path)!r} has no finished unit yet; run dces study first.")
    metrics = pl.concat([table("metrics", []), *(unit.frame("metrics") for unit in units)])
    if options.verdicts:
        from dces_core.metrics.verdict import collapses, verdicts

        return export.emit(collapses(verdicts(metrics)), options.format)
    budgets = [budget_of(unit) for unit in units]
    refuse_unequal(budgets)
    frame = compare(metrics, options.vs, output.facts()["study"]["arms"])
    for remark in [*remarks(budgets, options.vs), *mixed_cpus(units)]:
        print(f"dces: {remark}", file=sys.stderr)
    if options.format == "table":
        frame = frame.filter(pl.col("round") == pl.col("round").max())
    return export.emit(frame, options.format)


def results_(options: argparse.Namespace) -> int:
    """`dces results`: rewrite the generated blocks and print the pages; with --check 1 and one sentence where one is not up to date."""
    found = results.pages(options.out, options.readme, results.recorded())
    stale = [path for path, (text, wanted) in found.items() if text != wanted]
    if options.check:
        if stale:
            names = " and ".join(path.name for path in stale)
            print(f"dces: not what the recorded studies say: {names}; run dces results.", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(found[path][1], encoding="utf-8")
    print("\n".join(map(str, found)))
    return 0
