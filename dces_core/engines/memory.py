"""Out of memory: how it is recognised, what is tried once, and what to advise. Imports nothing heavy: the worker reads it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

from dces_core.events import Note

MARKS = (
    "out of memory",  # CUDA, MPS
    "DefaultCPUAllocator",
    "can't allocate memory",
)
ADVICE = "lower train.batch_size, generate.batch_size or generate.max_new_tokens, or use a smaller model, then resume or launch again"


def ran_out(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    return isinstance(error, MemoryError) or any(mark in str(error) for mark in MARKS)


class Halving:
    """The batches of one call. Once memory has run out, that batch and all later ones are done in two halves; a second time is final."""

    def __init__(self, doing: str, note: Note) -> None:
        self.doing, self.note, self.halved = doing, note, False

    def do(self, batch: list[int], work: Callable[[list[int]], None], undo: Callable[[], None] = lambda: None) -> None:
        """`work` on the batch, or on its halves; `undo` takes back what an attempt that failed has left."""
        if not self.halved:
            try:
                work(batch)
                return
            except Exception as error:
                if not ran_out(error) or len(batch) < 2:
                    raise
            self.halved = True  # out here: the error and the tensors that its traceback holds are gone
            undo()
            release()
            self.note(f"out of memory while {self.doing} {len(batch)} sequences at once; going on with half as many")
        middle = (len(batch) + 1) // 2
        for half in filter(None, (batch[:middle], batch[middle:])):
            work(half)


def release() -> None:
    """Give what is no longer used back to the device."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
