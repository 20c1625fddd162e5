"""Workers forked from one warm process, so that hundreds of them cost little; and a disk that refuses, or kills, on demand."""

from __future__ import annotations

import builtins
import errno
import io
import multiprocessing
import os
import shutil
import signal
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import polars as pl
from safetensors import SafetensorError
from small import contents, small_config

from dces_core import events, store, worker
from dces_core.config import RunConfig
from dces_core.engines import fake
from dces_core.store import Run

PRELOAD = [
    "dces_core.worker",
    "dces_core.rounds",
    "dces_core.engines.fake",
    "dces_core.metrics.assemble",
    "sacrebleu",
    "sklearn.cluster",
    "transformers",
]
RAISED = 3
SMALL: dict[str, Any] = {
    "arms": ["plain", "dces"], "pool": {"n": 3}, "generate": {"max_new_tokens": 8},
    "eval": {"pairs": 2, "passages": 1, "budget_tokens": 8, "probe_tokens": 4},
}  # fmt: skip


@dataclass
class Fault:
    """What the disk does at its call number `at` (-1: nothing, calls are counted), and at all later ones where it is `sticky`."""

    at: int = -1
    how: str = "ENOSPC"
    sticky: bool = False
    calls: list[str] = field(default_factory=list)

    def meet(self, what: str, path: Any) -> None:
        """One call that writes. Raises OSError, or ends the process, where it is the one."""
        number = len(self.calls)
        self.calls.append(f"{what} {path}")
        if self.at < 0 or number < self.at or (number > self.at and not self.sticky):
            return
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        code = getattr(errno, self.how)
        raise OSError(code, os.strerror(code), str(path))


class _File(io.FileIO):
    """A file on a disk that may refuse: the first half of what did not fit is there."""

    def __init__(self, path: Any, mode: str, fault: Fault) -> None:
        fault.meet("open", path)
        super().__init__(path, mode)
        self.fault = fault

    def write(self, data: Any) -> int:
        try:
            self.fault.meet("write", self.name)
        except OSError:
            super().write(memoryview(data)[: len(data) // 2])
            raise
        return super().write(data)


def _below(path: Any, root: Path) -> bool:
    return isinstance(path, str | os.PathLike) and str(path).startswith(f"{root}/")


def _guarded(name: str, root: Path, fault: Fault) -> Any:
    real = getattr(os, name)

    def call(path: Any, *rest: Any, **more: Any) -> Any:
        where = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path
        if _below(where, root) and not (name == "open" and not rest[0] & (os.O_WRONLY | os.O_RDWR)):
            fault.meet(name, where)
        return real(path, *rest, **more)

    return patch.object(os, name, call)


def _native(fault: Fault, error: type[Exception], what: str, path: Any) -> None:
    """As a native library says it: another exception, with the system's words inside."""
    try:
        fault.meet(what, path)
    except OSError as refused:
        Path(os.fsdecode(path)).write_bytes(b"torn")
        raise error(f"{what}: I/O error: {refused.strerror} (os error {refused.errno})") from None


@contextmanager
def disk(root: Path, fault: Fault) -> Iterator[None]:
    """Let every call that writes below `root` meet the fault."""
    real_open, real_save = builtins.open, fake.save_file

    def open_(path: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if not _below(path, root) or not set(mode) & set("wax"):
            return real_open(path, mode, *rest, **more)
        buffered = io.BufferedWriter(_File(path, mode.replace("b", "").replace("t", ""), fault))
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8", newline=more.get("newline"))

    def save(tensors: Any, path: Any, *rest: Any, **more: Any) -> None:
        _native(fault, SafetensorError, "safetensors", path)
        real_save(tensors, path, *rest, **more)

    real_parquet = pl.DataFrame.write_parquet

    def parquet(frame: pl.DataFrame, path: Any, **more: Any) -> None:
        _native(fault, pl.exceptions.ComputeError, "parquet", path)
        real_parquet(frame, path, **more)

    with ExitStack() as stack:
        for module in (builtins, io):
            stack.enter_context(patch.object(module, "open", open_))
        for name in ("open", "fsync", "replace", "mkdir"):
            stack.enter_context(_guarded(name, root, fault))
        stack.enter_context(patch.object(events, "HEARTBEAT_S", 1e6))  # calls are counted: none may depend on the time
        stack.enter_context(patch.object(fake, "save_file", save))
        stack.enter_context(patch.object(pl.DataFrame, "write_parquet", parquet))
        yield


def _work(path: str, cache: str, fault: Fault | None) -> None:
    """A worker; its exit code: 0 done or stopped, 1 failed, 2 refused, RAISED for what should never happen."""
    os.environ["DCES_CACHE"] = cache
    os.dup2(os.open(f"{path}.said", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    try:
        with disk(Path(path), fault) if fault else nullcontext():
            code = worker.main([path])
        if fault and fault.at < 0:
            Path(f"{path}.calls").write_text("\n".join(fault.calls), encoding="utf-8")
    except BaseException:
        Path(f"{path}.raised").write_text(traceback.format_exc(), encoding="utf-8")
        code = RAISED
    os._exit(code)


def begin(run: Run, fault: Fault | None = None, preload: tuple[str, ...] = ()) -> BaseProcess:
    """Start a worker for a run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOAD, *preload])
    process = context.Process(target=_work, args=(str(run.path), str(run.path.parent / "cache"), fault), daemon=True)
    process.start()
    return process


def finish(run: Run, fault: Fault | None = None) -> int:
    """Do a run in a worker of its own; its exit code."""
    process = begin(run, fault)
    process.join(120)
    assert process.exitcode is not None, f"{run.path} does not end"
    return process.exitcode


@contextmanager
def workplace() -> Iterator[Path]:
    """An empty folder, in memory where there is such a place: a kill needs no slow disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def make(folder: Path, name: str, config: RunConfig) -> Run:
    """A run that waits for its worker."""
    return store.create(config, {"cpu": {"threads": 1}}, folder / name)


def reference(folder: Path, **changes: Any) -> Run:
    """The run that nothing disturbed."""
    run = make(folder, "whole", small_config(folder, **{**SMALL, **changes}))
    assert finish(run) == 0, said(run)
    return run


def said(run: Run) -> str:
    """What its workers printed."""
    path = Path(f"{run.path}.said")
    return path.read_text(encoding="utf-8", errors="replace")[-2000:] if path.exists() else ""


def differences(run: Run, whole: Run) -> list[str]:
    """How a run that went on differs from one that nothing disturbed: stages, files, figures, leftovers, stages done twice."""
    found = []
    ours, theirs = contents(run), contents(whole)
    found += [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
    found += ["metrics"] if not run.metrics().equals(whole.metrics()) else []
    found += ["probes"] if not run.probes().equals(whole.probes()) else []
    for arm in whole.config.arms:
        for round_ in range(1, whole.config.rounds + 1):
            same = run.samples(arm, round_).equals(whole.samples(arm, round_))
            found += [] if same and run.controller(arm, round_) == whole.controller(arm, round_) else [f"samples {arm} {round_}"]
    names = {path.relative_to(whole.path) for path in whole.path.rglob("*")}
    found += [f"left over: {path}" for path in run.path.rglob("*") if path.relative_to(run.path) not in names | {Path("log.txt")}]
    spans = [(event["round"], event["arm"], event["stage"]) for event in run.events()[0] if event.get("kind") == "span"]
    return found + ([f"twice: {spans}"] if len(spans) != len(set(spans)) else [])


def drop(run: Run) -> None:
    """Give the space back."""
    shutil.rmtree(run.path, ignore_errors=True)
