"""The terminal's view of a run in the foreground: a bar per stage with the ETA of the whole, and a line per finished stage."""

from __future__ import annotations

import threading
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from dces_core.events import clock
from dces_core.launch import State
from dces_core.store import Run
from dces_core.worker import run_foreground

REFRESH_S = 0.5


def follow(run: Run, lines: bool = True, each: Callable[[str], None] | None = None) -> State:
    """Do a run in this process and show it on stderr; its final state. Without a terminal only finished stages are printed.

    `lines = False`: only the bar. `each` gets the lines instead, one per finished stage.
    """
    console = Console(stderr=True, highlight=False)
    if lines:
        console.print(f"run {escape(run.id)}", soft_wrap=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TextColumn("ETA {task.fields[eta]}"))
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        task = bars.add_task("starting", total=None, eta="-")
        over = threading.Event()
        watcher = threading.Thread(target=_watch, args=(run, bars, task, over), daemon=True)
        watcher.start()
        try:
            return run_foreground(run, (lambda text: console.print(escape(text), soft_wrap=True)) if lines else each)
        finally:
            over.set()
            watcher.join()


def _watch(run: Run, bars: Progress, task: TaskID, over: threading.Event) -> None:
    """Copy status.json to the bar until the run is over."""
    rounds = run.config.rounds
    while not over.wait(REFRESH_S):
        status = run.status()
        if status.get("waiting_for"):
            text = f"queued behind {status['waiting_for']}, position {status.get('queue_position') or 1}"
        elif status.get("stage"):
            text = f"round {status['round']}/{rounds}  {status['arm']}  {status['stage']}"
        else:
            text = "starting"
        eta = clock(status.get("eta_s"))
        bars.update(task, description=text, completed=status.get("done") or 0, total=status.get("total") or None, eta=eta)
