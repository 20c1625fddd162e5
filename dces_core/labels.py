"""What people call a run: a label, a note and tags, kept beside it. They change no result and no name of a file.

labels.json is replaced whole; a damaged one counts as none, so it never hides a run.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from dces_core.config import NAME
from dces_core.errors import UserError
from dces_core.stage import read_json, write_json
from dces_core.store import Run

LABEL_LENGTH, NOTE_LENGTH, MOST_TAGS = 80, 2000, 20
_WRITING = threading.Lock()  # two tabs of one dashboard


@dataclass(frozen=True)
class Labels:
    """`note` None: nobody changed the one that the run was launched with."""

    label: str = ""
    note: str | None = None
    tags: tuple[str, ...] = ()


def read(run: Run) -> Labels:
    """The run's labels; the parts that are damaged are empty."""
    value = read_json(run.labels_path)
    found: dict[str, Any] = value if isinstance(value, dict) else {}
    label, note, tags = found.get("label"), found.get("note"), found.get("tags")
    return Labels(
        label=label if isinstance(label, str) and _is_label(label) else "",
        note=note[:NOTE_LENGTH] if isinstance(note, str) else None,
        tags=tuple(dict.fromkeys(filter(_is_tag, tags)))[:MOST_TAGS] if isinstance(tags, list) else (),
    )


def note_of(run: Run) -> str:
    """The note: the changed one, else that of the settings. Raises UserError where the run is unreadable."""
    note = read(run).note
    return run.config.note if note is None else note


def rename(run: Run, label: str) -> None:
    """Give the run a label; an empty one takes it away. Raises UserError where it is too long or not one line."""
    label = label.strip()
    if not _is_label(label):
        raise UserError(f"label = {label[:100]!r} must be one line of at most {LABEL_LENGTH} printable characters; shorten it.")
    _write(run, label=label)


def set_note(run: Run, note: str) -> None:
    """Replace the run's note. Raises UserError where it is too long."""
    if len(note) > NOTE_LENGTH:
        raise UserError(f"note has {len(note)} characters; at most {NOTE_LENGTH} are kept: shorten it.")
    _write(run, note=note)


def set_tags(run: Run, tags: Iterable[str]) -> None:
    """Replace the run's tags; each is kept once, in order. Raises UserError for a tag of another form, or too many."""
    wanted = tuple(dict.fromkeys(tags))
    for tag in wanted:
        if not _is_tag(tag):
            raise UserError(f"tag = {str(tag)[:80]!r} must use letters, digits, '.', '_' and '-' only, at most 64 of them; choose another.")
    if len(wanted) > MOST_TAGS:
        raise UserError(f"tags: {len(wanted)} are too many, a run has at most {MOST_TAGS}; remove some.")
    _write(run, tags=wanted)


def tag(run: Run, add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
    """Add and remove tags. Raises UserError as `set_tags` does."""
    gone = set(remove)
    set_tags(run, [name for name in (*read(run).tags, *add) if name not in gone])


def all_tags(runs: Iterable[Run]) -> list[str]:
    """Every tag that one of the runs has, sorted."""
    return sorted({name for run in runs for name in read(run).tags})


def _write(run: Run, **changes: Any) -> None:
    if run.recorded:
        raise UserError(f"run {run.id!r} ships with the project and can only be read.")
    run.refuse_links()
    try:
        with _WRITING:
            write_json(run.labels_path, asdict(replace(read(run), **changes)))
    except OSError as error:
        raise UserError(f"the labels of run {run.id!r} cannot be written: {error.strerror}; check the rights on {run.path}.") from None


def _is_label(text: str) -> bool:
    return len(text) <= LABEL_LENGTH and text.isprintable()


def _is_tag(value: object) -> bool:
    return isinstance(value, str) and NAME.fullmatch(value) is not None
