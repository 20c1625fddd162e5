"""`dces watch`: rules over the rounds of a run, or of a folder that somebody else fills."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dces_core import export, rules, watched, watching
from dces_core.diagnose import Options
from dces_core.diagnosis_jobs import options_of
from dces_core.errors import UserError
from dces_core.redact import redact
from dces_core.rules import Rule
from dces_core.watched import Watched

FOLDER = ("reference", "model", "encoder", "round_column", "text_column")


def add_commands(commands: Any) -> None:
    """The verb's arguments."""
    own = Options()
    command = commands.add_parser("watch", help="follow rounds, and notify, stop or roll back by rules")
    command.add_argument("what", metavar="DIR", help="a run, a finished unit of a study, or a folder of texts by round")
    command.add_argument(
        "--rules", type=Path, default=rules.DEFAULT, metavar="RULES.toml", help="default: data/rules.toml, which only tell"
    )
    command.add_argument("--once", action="store_true", help="look at what is there now, act, and end")
    command.add_argument("--dry-run", action="store_true", help="do nothing; say which rule would have fired in which round")
    command.add_argument("--every", type=float, default=watching.EVERY_S, metavar="SECONDS", help="how often to look (default: 2)")
    command.add_argument("--format", choices=("table", "csv", "json"), default="table", help="of --dry-run")
    for name, text in (
        ("reference", "folder: real text, in a form of docs/data.md, or 'everyday'"), ("model", "folder: a model to score texts with"),
        ("encoder", "folder: minilm (default), hash, a folder or hub id; loaded where a rule needs it"),
        ("round-column", "folder: default: round"), ("text-column", "folder: default: text"),
    ):  # fmt: skip
        command.add_argument(f"--{name}", default=getattr(own, name.replace("-", "_")), metavar="NAME", help=text)
    command.set_defaults(do=watch)


def watch(options: argparse.Namespace) -> int:
    """`dces watch`: what fired and what was done on stdout, a line each; what failed on stderr."""
    if not 0.05 <= options.every <= 86_400:
        raise UserError(f"every = {options.every:g} is not allowed; give 0.05 to 86,400 seconds.")
    found = rules.load(options.rules)
    asked = options_of({name: getattr(options, name) for name in FOLDER})
    with tempfile.TemporaryDirectory(prefix="dces-") as folder:
        source = watched.find(options.what, Path(folder), asked, found, _warn, past=options.dry_run)
        if options.dry_run:
            return _dry_run(found, source, options.format)
        watching.watch(found, source, _say, _warn, options.once, options.every)
    return 0


def _dry_run(found: Sequence[Rule], source: Watched, kind: str) -> int:
    watching.check(found, source, act=False)
    frame = watching.dry_run(found, source, _warn)
    shown = ("rule", "round", "arm", "test_set", "value", "limit", "actions")  # what fits a terminal; the other formats have everything
    return export.emit(frame.select(shown) if kind == "table" else frame, kind)


def _say(text: str) -> None:
    print(redact(text), flush=True)


def _warn(text: str) -> None:
    print(f"dces: {redact(text)}", file=sys.stderr, flush=True)
