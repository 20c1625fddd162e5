"""What `dces watch` did to a run, and to whatever else it watches: the newest entries of its logs."""

from __future__ import annotations

import time
from typing import Any

import streamlit as st

from dces_core import actions
from dces_core.actions import FIRED
from dces_core.store import Run
from dces_core.ui import look
from dces_core.ui.text import escaped

SHOWN = 30
STATES = {FIRED: "", "begun": "begun, no word of its end", "done": "done", "failed": "failed"}


def rows(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest entry of every action of every rule and round, newest first."""
    newest = {(entry.get("source"), entry["rule"], entry["round"], entry["action"]): entry for entry in entries}
    return sorted(newest.values(), key=lambda entry: -entry["t"])[:SHOWN]


def table(entries: list[dict[str, Any]], sources: bool = False) -> str:
    """Entries as a table; `sources`: with what was watched."""
    lines = []
    for entry in rows(entries):
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry["t"]))
        state = STATES.get(entry["state"], entry["state"])
        cells = [when, *([entry.get("source") or "–"] if sources else []), entry["rule"], entry["round"], entry["action"], state]
        shown = "".join(f"<td>{escaped(str(cell))}</td>" for cell in cells)
        lines.append(f'<tr>{shown}<td class="what">{escaped(entry["text"])}</td></tr>')
    names = ("time", *(("watched",) if sources else ()), "rule", "round", "action", "", "what")
    return f'<div class="entries">{look.table("".join(f"<th>{name}</th>" for name in names), lines)}</div>'


def entries_of_others() -> list[dict[str, Any]]:
    """Entries of everything else that is watched; logs are read again only when one has changed."""
    stamps = []
    for path in actions.logs_of_others():
        try:
            facts = path.stat()
        except OSError:
            continue
        stamps.append((str(path), facts.st_mtime_ns, facts.st_size))
    return _others(tuple(stamps)) if stamps else []


@st.cache_data(max_entries=8, show_spinner=False)
def _others(stamps: tuple[tuple[str, int, int], ...]) -> list[dict[str, Any]]:
    return actions.of_others()


def section(run: Run) -> None:
    """Rules that fired on this run, then those on folders of others."""
    found = actions.of_run(run).entries()
    hint = f"No rule has fired. dces watch {run.id} follows the run: it notifies, stops or rolls back by rules."
    look.show(table(found) if found else f'<p class="quiet">{escaped(hint)}</p>')
    others = [entry for entry in entries_of_others() if entry.get("source") != run.id]
    if others:
        with st.expander("Other directories that are watched"):
            look.show(table(others, sources=True))
