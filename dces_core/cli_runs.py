"""`dces runs`, `dces ask` and `dces gc`: what can be done with a run besides watching it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import polars as pl

from dces_core import ask, branch, export, labels, launch, retention, store
from dces_core.config import Keep, RunConfig, _apply, parse
from dces_core.damage import damage
from dces_core.errors import UserError
from dces_core.store import Run


def add_commands(commands: Any) -> None:
    """`dces runs ACTION RUN`, `dces ask RUN` and `dces gc`."""
    runs = commands.add_parser("runs", help="rename, note, tag, delete, continue or fork a run")
    family = runs.add_subparsers(required=True, metavar="ACTION")
    command = _action(family, "rename", rename, "give a run a label; the run directory keeps its name")
    command.add_argument("label", metavar="LABEL", help="one line; '' takes the label away")
    command = _action(family, "note", note, "replace a run's note, or print it")
    command.add_argument("text", metavar="TEXT", nargs="?", help="the new note (default: print the one it has)")
    command = _action(family, "tag", tag, "add and remove tags; prints those it has then")
    command.add_argument("tags", metavar="TAG", nargs="*", help="tags to add")
    command.add_argument("--remove", metavar="TAG", nargs="+", default=[], help="tags to remove")
    command = _action(family, "delete", delete, "delete a run's directory for good")
    command.add_argument("--yes", action="store_true", help="do not ask")
    command = _action(family, "continue", continue_, "a finished run with more rounds, as a new run that takes its rounds over")
    command.add_argument("--more", type=int, required=True, metavar="ROUNDS", help="rounds to add")
    _add_start(command)
    command = _action(family, "fork", fork, "a new run that takes rounds 0 to k over and goes on with other settings")
    command.add_argument("--round", type=int, required=True, metavar="K", help="the last round that is taken over")
    command.add_argument("--set", action="append", metavar="section.key=value", help="change a setting; repeatable")
    _add_start(command)
    command = commands.add_parser("gc", help="free the disk of what no run needs; without --yes only says what would go")
    command.add_argument("runs", nargs="*", metavar="RUN", help="only these runs (default: all, and what belongs to none)")
    command.add_argument("--keep", choices=get_args(Keep), help="the weights to keep (default: what each run's own keep says)")
    really = command.add_mutually_exclusive_group()
    really.add_argument("--yes", action="store_true", help="delete")
    really.add_argument("--dry-run", action="store_true", help="only say what would go (the default)")
    command.add_argument("--format", choices=("table", "csv", "json"), default="table")
    command.set_defaults(do=gc)
    command = commands.add_parser("verify", help="damaged files of a run, found by their hashes; exit code 1 where there are any")
    command.add_argument("run", metavar="RUN")
    command.set_defaults(do=verify)
    command = commands.add_parser("ask", help="one's own prompt to checkpoints of a run whose weights are kept")
    command.add_argument("run", metavar="RUN")
    command.add_argument("--prompt", required=True, metavar="TEXT")
    command.add_argument("--arm", action="append", metavar="ARM", help="one arm, or two to compare (default: the first)")
    command.add_argument("--round", type=int, metavar="K", help="the round (default: the newest that can be asked)")
    command.add_argument("--samples", type=int, default=1, metavar="N", help="sampled answers beside the greedy one (default: 1)")
    for name, kind, text in (
        ("--temperature", float, "of the sampled answers"), ("--top-p", float, "nucleus mass; 1 switches it off"),
        ("--max-new-tokens", int, "longest answer, in tokens"),
    ):  # fmt: skip
        command.add_argument(name, type=kind, metavar="X", help=f"{text} (default: as in the run)")
    command.add_argument("--seed", type=int, default=0, help="of the sampled answers (default: 0)")
    command.add_argument("--format", choices=("table", "csv", "json"), default="table")
    command.set_defaults(do=ask_)


def verify(options: argparse.Namespace) -> int:
    """`dces verify`: 1 where a file is damaged; `dces resume` does its stage again."""
    found = damage(store.find(options.run))
    for path in found:
        print(path)
    return 1 if found else 0


def rename(options: argparse.Namespace) -> int:
    """`dces runs rename`."""
    found = store.find(options.run)
    labels.rename(found, options.label)
    print(labels.read(found).label)
    return 0


def note(options: argparse.Namespace) -> int:
    """`dces runs note`."""
    found = store.find(options.run)
    if options.text is not None:
        labels.set_note(found, options.text)
    print(labels.note_of(found))
    return 0


def tag(options: argparse.Namespace) -> int:
    """`dces runs tag`."""
    found = store.find(options.run)
    if options.tags or options.remove:
        labels.tag(found, options.tags, options.remove)
    for name in labels.read(found).tags:
        print(name)
    return 0


def delete(options: argparse.Namespace) -> int:
    """`dces runs delete`: 1 where the answer was no."""
    found = store.find(options.run)
    if not options.yes:
        if not sys.stdin.isatty():
            raise UserError(f"run {found.id!r} is deleted for good and nobody can be asked here; add --yes.")
        print(f"{found.path}: {found.bytes / 1e6:.1f} MB, for good. Type yes to delete it: ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip() != "yes":
            return 1
    launch.delete(found)
    print(found.path)
    return 0


def continue_(options: argparse.Namespace) -> int:
    """`dces runs continue`."""
    return _go(branch.continue_run(store.find(options.run), options.more, options.out), options.detach)


def fork(options: argparse.Namespace) -> int:
    """`dces runs fork`."""
    found = store.find(options.run)
    return _go(branch.fork_run(found, options.round, _changed(found, options.set or []), options.out), options.detach)


def gc(options: argparse.Namespace) -> int:
    """`dces gc`: what goes, a row each; the bytes that the disk gets back on stderr."""
    found = retention.garbage([store.find(name) for name in options.runs] or None, options.keep)
    rows = [{"path": str(item.path), "bytes": retention.freed_bytes([item]), "why": item.why} for item in found]
    freed = retention.freed_bytes(found)
    if options.yes:
        retention.collect(found)
        print(f"dces: {freed / 1e6:.1f} MB freed, {len(found)} items", file=sys.stderr)
    else:
        print(f"dces: nothing was deleted; --yes would free {freed / 1e6:.1f} MB, {len(found)} items", file=sys.stderr)
    return export.emit(pl.DataFrame(rows, schema={"path": pl.String, "bytes": pl.Int64, "why": pl.String}), options.format)


def ask_(options: argparse.Namespace) -> int:
    """`dces ask`: the answers on stdout; 1 where they failed or were cancelled."""
    found = store.find(options.run)
    arms = list(dict.fromkeys(options.arm or found.config.arms[:1]))
    round_ = options.round if options.round is not None else _newest(found, arms)
    given = {name: getattr(options, name) for name in ("temperature", "top_p", "max_new_tokens")}
    places = [{"arm": arm, "round": round_} for arm in arms]
    values = {name: value for name, value in given.items() if value is not None}
    asked = ask.question(found, prompt=options.prompt, checkpoints=places, samples=options.samples, seed=options.seed, **values)
    job = ask.create(found, asked)
    from dces_core.progress import follow

    waits = launch.device_user(found.config)
    if waits:
        print(f"dces: the device is used by {waits}; the question waits for its turn (Ctrl-C cancels it)", file=sys.stderr)
    state = follow(job, lines=False)
    if state != "done":
        print(f"dces: {job.status().get('error') or 'the question was cancelled'}", file=sys.stderr)
        return 1
    schema = {"round": pl.Int64, "draw": pl.Int64, "tokens": pl.Int64, "ended": pl.Boolean, "logprob": pl.Float64, "loop": pl.Boolean}
    frame = pl.DataFrame(job.answers, schema={name: schema.get(name, pl.String) for name in ask.ANSWERS})
    return export.emit(frame if options.format != "table" else frame.select("arm", "round", "mode", "text"), options.format)


def _newest(run: Run, arms: list[str]) -> int:
    """The newest round in which all these arms can be asked; 0 where there is none."""
    rounds = range(run.config.rounds, 0, -1)
    known = [arm for arm in arms if arm in run.config.arms]
    return next((round_ for round_ in rounds if known and all(ask.absent(run, arm, round_) is None for arm in known)), 0)


def foreground(run: Run, processes: int = 0) -> int:
    """Do a run here, on `processes` where there are any; the last line of stdout is its directory, the exit code 0 where it is done."""
    from dces_core.progress import follow
    from dces_core.torchrun import supervise

    state = supervise(run, processes) if processes else follow(run)
    sys.stdout.flush()
    if state == "failed":
        print(f"dces: the run failed: {run.status().get('error')}", file=sys.stderr)
    elif state == "stopped":
        print(f"dces: the run was stopped; go on with: dces resume {run.id}", file=sys.stderr)
    print(run.path)
    return 0 if state == "done" else 1


def _changed(run: Run, overrides: list[str]) -> RunConfig:
    """The run's settings with `section.key=value` overrides."""
    values = run.config.model_dump(mode="json")
    for override in overrides:
        _apply(values, override)
    return parse(values)


def _go(run: Run, detach: bool) -> int:
    if not detach:
        return foreground(run)
    print(launch.start(run).path)
    return 0


def _action(family: Any, name: str, do: Callable[[argparse.Namespace], int], text: str) -> Any:
    command = family.add_parser(name, help=text)
    command.add_argument("run", metavar="RUN")
    command.set_defaults(do=do)
    return command


def _add_start(command: Any) -> None:
    command.add_argument("--out", type=Path, metavar="DIR", help="run directory to make (default: below runs/ or $DCES_RUNS)")
    command.add_argument("--detach", action="store_true", help="as a detached process")
