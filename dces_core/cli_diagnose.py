"""`dces diagnose`: what the texts of one's own rounds say about collapse."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from dces_core import export, own_rounds, store
from dces_core.diagnose import MOST_SAMPLED, Diagnosis, Options, summary
from dces_core.diagnosis_jobs import options_of
from dces_core.errors import UserError
from dces_core.events import Progress
from dces_core.own_rounds import OwnRounds

BEGIN, END = "<!-- begin: backtest -->", "<!-- end: backtest -->"


def add_commands(commands: Any) -> None:
    """The verb's arguments."""
    own = Options()
    command = commands.add_parser("diagnose", help="the texts of one's own rounds: diversity, loops, verdicts, what comes next")
    command.add_argument(
        "what", nargs="*", metavar="DIR_OR_FILES", help="JSONL, CSV or Parquet with round and text, or one a round; or a run"
    )
    command.add_argument("--arm", metavar="ARM", help="of a run (default: its first)")
    command.add_argument("--reference", default="", metavar="FILE", help="real text, in a form of docs/data.md; or 'everyday'")
    command.add_argument("--model", default="", metavar="NAME", help="a model to score the texts with")
    command.add_argument(
        "--encoder", default=own.encoder, metavar="NAME", help="minilm (default), hash (no weights, quick), a folder or hub id"
    )
    command.add_argument(
        "--sample",
        type=int,
        default=own.sample,
        metavar="N",
        help=f"texts a round that are embedded (default: {own.sample}, most: {MOST_SAMPLED})",
    )
    command.add_argument("--map", choices=("pca", "umap", "off"), default=own.map, help="how the map is made (default: pca)")
    command.add_argument("--round-column", default=own.round_column, metavar="NAME", help="default: round")
    command.add_argument("--text-column", default=own.text_column, metavar="NAME", help="default: text")
    command.add_argument("--report", type=Path, metavar="FILE", help="write one HTML file too")
    command.add_argument("--format", choices=("table", "csv", "json"), default="table", help="csv: metrics only; json: everything")
    command.add_argument("--backtest", action="store_true", help="diagnose nothing; how good predictions are on the recorded studies")
    command.add_argument("--markdown", type=Path, metavar="PAGE", help="with --backtest: write the table into this page")
    command.set_defaults(do=diagnose_)


def diagnose_(options: argparse.Namespace) -> int:
    """`dces diagnose`: figures on stdout, progress on stderr; the last line of stderr names the report."""
    if options.backtest:
        return backtest(options)
    if not options.what:
        raise UserError("nothing to diagnose: give files, a directory or the name of a run.")
    asked = options_of({name: getattr(options, name) for name in Options.model_fields})
    if options.report and not options.report.absolute().parent.is_dir():
        raise UserError(f"report = {str(options.report)!r}: its directory is not there; make it, or choose another.")
    from dces_core.diagnosing import diagnose

    with tempfile.TemporaryDirectory(prefix="dces-") as folder, _bars() as bars:
        with bars.span(0, "", "reading") as progress:
            rounds = _rounds(options, asked, Path(folder) / "texts", progress)
        found = diagnose(rounds, asked, bars)
    if options.report:
        from dces_core.ui import diagnosis

        try:
            options.report.write_text(diagnosis.report_of(found), encoding="utf-8")
        except OSError as error:
            raise UserError(f"report = {str(options.report)!r} cannot be written: {error.strerror}.") from None
    code = _print(found, options.format)
    if options.report:
        print(options.report, file=sys.stderr)
    return code


def _rounds(options: argparse.Namespace, asked: Options, folder: Path, progress: Progress) -> OwnRounds:
    """The texts: of files, or of a run where one name is given that is no path."""
    paths = [Path(one) for one in options.what]
    if len(paths) == 1 and not (paths[0].exists() and not (paths[0] / "run.json").is_file()):
        run = _run_of(options.what[0])
        if run:
            return own_rounds.read_run(run, options.arm or run.config.arms[0], folder, progress)
    if options.arm:
        raise UserError(f"arm = {options.arm!r} is for a run; files have none.")
    return own_rounds.read_files(paths, folder, (asked.round_column, asked.text_column), progress)


def _run_of(name: str) -> store.Run | None:
    try:
        return store.find(name)
    except UserError:
        return None


def _print(found: Diagnosis, kind: str) -> int:
    """Everything as JSON, the metrics as CSV, or what fits a terminal."""
    if kind == "json":
        print(json.dumps(found.as_json(), ensure_ascii=False, indent=1, allow_nan=False))
        return 0
    if kind == "csv":
        return export.emit(found.tables["metrics"], "csv")
    facts, tables = found.facts, found.tables
    by = f"{facts['embedded']:,} a round embedded by {facts['encoder']}"
    print(f"{facts['source']}: {facts['texts']:,} texts in {facts['rounds']} rounds; {by}")
    lines = summary(found).filter(pl.col("last").is_not_null()).drop("reason")
    for title, frame in (
        ("Rounds", tables["rounds"]),
        ("Metrics: worse_at is the first round 10% worse, low and high are an 80% interval of the round next", lines),
        ("Verdicts", tables["verdicts"].select("definition", "round", "value", "threshold", "reason")),
        ("Probability that a definition holds", tables["risks"]),
    ):
        print(f"\n{title}")
        export.emit(frame, "table")
    return 0


def backtest(options: argparse.Namespace) -> int:
    """`dces diagnose --backtest`: predictions of the recorded studies from their own first rounds."""
    from dces_core import results
    from dces_core.metrics import trend

    studies = results.recorded()
    if not studies:
        raise UserError("no recorded study has a finished unit; there is nothing to predict.")
    frame = trend.backtest(pl.concat([study.metrics.with_columns(pl.lit(study.name).alias("study")) for study in studies]))
    if options.markdown is None:
        return export.emit(frame, options.format)
    _write(options.markdown, frame, [study.name for study in studies])
    print(options.markdown)
    return 0


def _write(page: Path, frame: pl.DataFrame, studies: list[str]) -> None:
    """Put the table between the markers of a page."""
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"markdown = {str(page)!r} cannot be read: {error.strerror}.") from None
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"markdown = {str(page)!r} does not have the lines {BEGIN} and {END}; put them where the table belongs.")
    lines = [f"| {' | '.join(frame.columns)} |", "|---" * len(frame.columns) + "|"]
    cells = [["" if x is None else f"{x:.3g}" if isinstance(x, float) else str(x) for x in row] for row in frame.iter_rows()]
    lines += [f"| {' | '.join(row)} |" for row in cells]
    body = "\n".join([*lines, "", f"Studies: {', '.join(studies)}."])
    page.write_text(f"{text.split(BEGIN)[0]}{BEGIN}\n{body}\n{END}{text.split(END)[1]}", encoding="utf-8")


class _Bars:
    """One bar on stderr, for the piece of work at hand; nothing without a terminal."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._task = bars.add_task("starting", total=None)

    @contextmanager
    def span(self, round_: int, arm: str, stage: str) -> Iterator[Progress]:
        """See diagnosing.Spans."""
        self._bars.reset(self._task, description=f"round {round_}  {stage}" if arm else stage, total=None)
        yield lambda done, total: self._bars.update(self._task, completed=done, total=total)


@contextmanager
def _bars() -> Iterator[_Bars]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with RichProgress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        yield _Bars(bars)
