"""Runs of a tiny real model on a device that has room for so many sequences at once and no more."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from small import attempt, small_run

from dces_core.engines import trainer
from dces_core.engines.decode import Decoder
from dces_core.engines.teacher import Teacher
from dces_core.store import Run
from torture import numbers

#: What needs memory: where, the position of its sequences among the arguments, and room for half of the largest batch.
PLACES: dict[str, tuple[Any, str, int, int]] = {
    "training on": (trainer, "response_loss", 2, 4),
    "generating": (Decoder, "_decode", 1, 8),
    "scoring": (Teacher, "hidden", 1, 20),
}
ADVICE = "out of memory: lower train.batch_size, generate.batch_size or generate.max_new_tokens"


@contextmanager
def room_for(doing: str, sequences: int) -> Iterator[None]:
    """As CUDA does: an error where more sequences come at once."""
    owner, name, position, _ = PLACES[doing]
    real: Callable[..., Any] = getattr(owner, name)

    def limited(*arguments: Any, **more: Any) -> Any:
        if len(arguments[position]) > sequences:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(*arguments, **more)

    with mock.patch.object(owner, name, limited):
        yield


def run_with(folder: Path, doing: str, sequences: int) -> Run:
    """One round of a tiny model with so much room."""
    run = small_run(folder, **{**numbers.hf(), "arms": ["plain"], "rounds": 1, "generate": {"batch_size": 16}})
    with room_for(doing, sequences):
        attempt(run)
    return run


def short_of_memory(scale: float) -> dict[str, str | None]:
    """Room for half a batch: the run ends well and says so. Room for one sequence: it fails with advice."""
    found: dict[str, str | None] = {}
    chosen = PLACES if scale >= 0.5 else {"training on": PLACES["training on"]}
    for doing, (_, _, _, half) in chosen.items():
        for sequences, state, said in ((half, "done", f"out of memory while {doing} "), (1, "failed", ADVICE)):
            with tempfile.TemporaryDirectory() as folder:
                run = run_with(Path(folder), doing, sequences)
                found[f"{doing}, room for {sequences}"] = numbers.wrong(run, state, said)
    return found
