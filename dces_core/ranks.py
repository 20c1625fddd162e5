"""The processes of one run that computes on several devices: rank 0 leads, the others do their share of each of its calls.

Rank 0 alone owns the run: store, events, locks, stages. What ranks say to each other goes over gloo, whatever the devices compute over.
Imports torch inside functions only.
"""

from __future__ import annotations

import datetime
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dces_core.engines import memory
from dces_core.errors import RunFailed, UserError

LOST = "a process of the run ended early"
KEPT = "finished stages are kept: resume"
END = "end"
#: Rank 0 may fit a map or wait in the queue of its device for long; that a process has died is seen by its closed connection.
PATIENCE = datetime.timedelta(days=30)
WATCH_S = 0.5
BROKEN = ("connection closed", "connection reset", "connection refused", "broken pipe", "gloo", "nccl", "socket")


class RanksLost(RunFailed):
    """Another process of the run is gone."""


class Ranks:
    """This process among those of its run, which torchrun has started."""

    def __init__(self, device: str) -> None:
        import torch
        from torch import distributed

        cuda = device == "cuda"
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        self.backend = "nccl" if cuda else "gloo"
        self.sharding: dict[str, Any] | None = None  # what the last training obtained
        self._control = distributed.new_group(backend="gloo", timeout=PATIENCE)
        self._calling = False

    def call(self, name: str, arguments: tuple[Any, ...], work: Callable[[], Any]) -> list[Any]:
        """Rank 0: have every rank do `name`, do `work` as one's own share, and return the shares in the order of ranks.

        Where `work` raises, the others are left waiting: the run ends. Raises what another rank has met.
        """
        self._calling = True
        self._broadcast((name, arguments))
        shares = self._gather(("share", work()))
        assert shares is not None
        self._calling = False
        for rank, (kind, value) in enumerate(shares):
            if kind != "share":
                raise _refusal(kind, rank, value)
        return [value for _, value in shares]

    def serve(self, do: Callable[[str, tuple[Any, ...]], Any]) -> None:
        """The other ranks: do each call of rank 0 until it ends. Raises RanksLost where rank 0 is gone."""
        while True:
            name, arguments = self._broadcast(None)
            if name == END:
                return
            try:
                share = ("share", do(name, arguments))
            except RanksLost:
                raise
            except Exception as error:
                if name == "train":
                    raise  # the others are in the middle of a step: only the end of this process tells them
                share = (_kind(error), f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
            self._gather(share)

    def leave(self) -> None:
        """Rank 0: let the others end, unless they wait for the rest of a call that was broken off."""
        if not self._calling:
            self._broadcast((END, ()))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Turn a broken connection into RanksLost."""
        try:
            yield
        except RunFailed:
            raise
        except RuntimeError as error:
            if not any(mark in str(error).lower() for mark in BROKEN):
                raise
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, which follows: how the run ends is settled
            raise RanksLost(f"{LOST}; {KEPT}.") from error

    def _broadcast(self, value: Any) -> Any:
        from torch import distributed

        box = [value]
        with self.listening():
            distributed.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def _gather(self, value: Any) -> list[Any] | None:
        from torch import distributed

        found: list[Any] | None = [None] * self.world if self.rank == 0 else None
        with self.listening():
            distributed.gather_object(value, found, dst=0, group=self._control)
        return found


_joined: Ranks | None = None


def join(device: str) -> Ranks:
    """Meet the other processes of the run; from now on an engine of this process is shared with them."""
    global _joined
    _joined = Ranks(device)
    return _joined


def joined() -> Ranks | None:
    """This process among others; None where it does its run alone."""
    return _joined


def end_with_parent() -> None:
    """Send oneself SIGTERM once the process that started this one is gone: no rank outlives its launcher."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _kind(error: Exception) -> str:
    if isinstance(error, UserError):
        return "input"
    return "memory" if memory.ran_out(error) else "failure"


def _refusal(kind: str, rank: int, text: str) -> Exception:
    """What rank 0 raises for another rank's error."""
    if kind == "memory":
        return MemoryError(f"rank {rank}: {text}")
    return (UserError if kind == "input" else RunFailed)(f"rank {rank}: {text}")
