"""`dces send` and `dces export`: metrics to trackers, checkpoints to transformers, samples to Embedding Atlas."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dces_core import export, store
from dces_core.errors import UserError

TRACKER_NAMES = ("tensorboard", "trackio", "wandb", "mlflow")


def add_commands(commands: Any) -> None:
    """The two verbs' arguments."""
    command = commands.add_parser("send", help="metrics of a run to an experiment tracker, each round once")
    command.add_argument("run", metavar="RUN", help="a run, a study, or the directory of a study's unit")
    command.add_argument("--to", required=True, choices=TRACKER_NAMES)
    command.add_argument("--out", type=Path, metavar="DIR", help="where the tracker's files go (default: trackers/NAME)")
    command.add_argument("--follow", action="store_true", help="go on until the run has ended")
    command.set_defaults(do=send_)
    command = commands.add_parser("export", help="a checkpoint as a folder of transformers, or samples for Embedding Atlas")
    command.add_argument("run", metavar="RUN")
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="ARM:ROUND", help="a checkpoint whose weights are kept; round 0: any arm")
    what.add_argument("--samples", action="store_true", help="samples with their place on the map, as Parquet")
    command.add_argument("--arm", action="append", default=[], metavar="ARM", help="with --samples: these arms; repeatable (default: all)")
    command.add_argument("--out", type=Path, required=True, metavar="PATH", help="the folder, or the Parquet file, to make")
    command.set_defaults(do=export_)


def send_(options: argparse.Namespace) -> int:
    """`dces send`: the folder on stdout; 1 where the tracker did not take every row."""
    from dces_core.send import send
    from dces_core.trackers import LOOK
    from dces_core.tracks import source_of

    source, out = source_of(options.run), options.out or Path("trackers") / options.to
    sent = send(source, options.to, out, options.follow, lambda text: print(f"dces: {text}", file=sys.stderr, flush=True))
    print(f"dces: {sent.now} rounds sent, {sent.before} were there; look: {LOOK[options.to].format(out=out)}", file=sys.stderr)
    print(out)
    if sent.refused:
        print(f"dces: {sent.refused} rounds were not taken; the same command tries them again.", file=sys.stderr)
    return 1 if sent.refused else 0


def export_(options: argparse.Namespace) -> int:
    """`dces export`: what was made, on stdout."""
    found = store.find(options.run)
    if options.samples:
        return export.emit(export.for_atlas(found, options.arm), "parquet", options.out)
    arm, _, round_ = options.model.rpartition(":")
    if not arm or not round_.isdecimal():
        raise UserError(f"model = {options.model!r} is not ARM:ROUND, such as dces:3.")
    from dces_core.model_folder import write_folder

    print(write_folder(found, arm, int(round_[:9]), options.out))
    return 0
