"""What this machine offers. `examine` imports torch; `cached_doctor` asks a sub-process, once."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from typing import Any

import psutil

from dces_core import machine, models, store

LIMIT_S = 120


def examine() -> dict[str, Any]:
    """Devices (name, kind, memory in bytes, bf16), memory, disk, cpu, versions, models, folders."""
    root = store.runs_root()
    while not root.exists():
        root = root.parent
    memory = psutil.virtual_memory()
    return {
        "devices": _devices(),
        "memory": {"total_bytes": memory.total, "available_bytes": memory.available},
        "disk": {"free_bytes": shutil.disk_usage(root).free, "runs": str(store.runs_root()), "cache": str(store.cache_root())},
        "cpu": machine.cpu(),
        "python": sys.version.split()[0],
        "platform": machine.describe()["platform"],
        "versions": machine.versions(),
        "models": models.ls(),
    }


@functools.cache
def cached_doctor() -> dict[str, Any]:
    """`examine` from a sub-process, once in the life of this process; {"error": sentence} where it did not answer."""
    command = [sys.executable, "-m", "dces_core.cli", "doctor", "--format", "json"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=LIMIT_S, check=True, stdin=subprocess.DEVNULL)
        value: dict[str, Any] = json.loads(done.stdout)
        return value
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"]
        return {"error": f"dces doctor failed: {lines[-1]}"}
    except (subprocess.TimeoutExpired, OSError, ValueError) as error:
        return {"error": f"dces doctor did not answer: {type(error).__name__}"}


def _devices() -> list[dict[str, Any]]:
    """The devices that torch sees, the one that `auto` means first."""
    import torch

    from dces_core.engines.hf import has_bf16

    found = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        found.append({"name": facts.name, "kind": "cuda", "memory_bytes": facts.total_memory})
    if torch.backends.mps.is_available():
        found.append({"name": "Apple GPU", "kind": "mps", "memory_bytes": psutil.virtual_memory().total})
    found.append({"name": machine.cpu()["model"], "kind": "cpu", "memory_bytes": psutil.virtual_memory().total})
    return [{**device, "bf16": has_bf16(torch.device(str(device["kind"])))} for device in found]
