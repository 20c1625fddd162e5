"""Data sets of a hub, `hub:owner/name` or `hub:owner/name:split`, read with the optional package `datasets`."""

from __future__ import annotations

import re
from typing import Any

from dces_core.errors import UserError, quoted, reason_of

PREFIX = "hub:"
NAME = re.compile(r"hub:([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?::([\w.-]{1,96}))?")
SPLIT = "train"
INSTALL = 'pip install "dces-lab[hub]"'


def rows_of(value: str, field: str, columns: tuple[str, ...], most_rows: int, most_bytes: int) -> list[tuple[str, dict[str, Any]]]:
    """Where each row stands and its known `columns`. No code of a data set is run.

    Raises UserError where the name has another form, the package is missing, the data set cannot be had, or it is too large.
    """
    match = NAME.fullmatch(value)
    if not match:
        raise UserError(f"{field} is no name of a data set; write hub:owner/name or hub:owner/name:split.")
    name, split = match[1], match[2] or SPLIT
    try:
        import datasets
    except ImportError:
        raise UserError(f"{field} needs the package datasets, which is not installed; run: {INSTALL}.") from None
    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(name, split=split)
    except Exception as error:  # of the network, the hub, the file system or the data set's own reader
        reason = reason_of(error) or type(error).__name__
        raise UserError(f"{field}: split {quoted(split)} cannot be had ({reason}); check name, split and network, or give files.") from None
    size = found.dataset_size or 0
    if len(found) > most_rows or size > most_bytes:
        raise UserError(f"{field} has {len(found):,} rows, {size / 2**20:,.0f} MiB, over the limits of docs/data.md; take a part of it.")
    wanted = found.select_columns([column for column in columns if column in found.column_names])
    return [(f"row {number}", row) for number, row in enumerate(wanted, 1)]
