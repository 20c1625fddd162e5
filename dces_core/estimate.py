"""What a run will cost, before it starts: seconds, disk and memory. Predictions, each with what it rests on."""

from __future__ import annotations

import math
import shutil
import struct
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil

from dces_core import architectures, machine, plan, processes, store
from dces_core.arms import ARMS
from dces_core.config import RunConfig
from dces_core.errors import UserError
from dces_core.reading import all_of, fitted, is_count, parse_json, read_bytes

REFERENCE_PARAMETERS = 134_515_008
REFERENCE_CORES = 2
#: Tokens per second of a model of REFERENCE_PARAMETERS; the processor's on REFERENCE_CORES cores. Start values that
#: the measured stages of earlier runs correct (see `_corrections`).
TOKENS_PER_S = {
    "cpu": {"generate": 400.0, "score": 800.0, "train": 170.0},
    "mps": {"generate": 1500.0, "score": 6000.0, "train": 2000.0},
    "cuda": {"generate": 8000.0, "score": 60000.0, "train": 20000.0},
}
#: Seconds that a stage takes whatever its size: UMAP's compilation, BERTScore, loading.
FIXED_S = {"generate": 0.5, "select": 8.0, "train": 3.0, "evaluate": 6.0, "map": 4.0}
FAKE_ROUND_S = 0.5
PROMPT_TOKENS = 45
PASSAGE_TOKENS = 160
DEFAULT_PAIRS = 120
DEFAULT_PASSAGES = 60
PROBES = 24
#: A response uses this share of its token limit on average.
FILL = 0.7
ROW_BYTES = 1500
MAX_HEADER_BYTES = 100_000_000  # of a safetensors file
STAGE_BYTES = 60_000


def estimate(config: RunConfig) -> dict[str, Any]:
    """Predicted cost of a run.

    Keys: parameters (None where unknown), device, round_s (all arms), total_s, disk_bytes, memory_bytes (None where
    the parameters are unknown), basis (`assumed`, or `measured on N runs`), notes (sentences).
    """
    fake = config.engine == "fake"
    parameters = 0 if fake else count_parameters(config.model)
    device = likely_device(config)
    notes = []
    if parameters is None:
        notes.append(f"The size of {config.model!r} is unknown before its first use: memory and weights on disk are not predicted.")
    factors, runs = ({}, 0) if fake else _corrections(config)
    stages = stage_seconds(config, parameters or REFERENCE_PARAMETERS, device)
    arm_s = sum(seconds * factors.get(stage, 1.0) for stage, seconds in stages.items())
    round_s = FAKE_ROUND_S * len(config.arms) if fake else arm_s * len(config.arms)
    first_s = 0.0 if fake else stages["evaluate"] * factors.get("evaluate", 1.0) + stages["generate"] * factors.get("generate", 1.0)
    return {
        "parameters": parameters,
        "device": device,
        "round_s": round(round_s, 1),
        "total_s": round(first_s + config.rounds * round_s, 1),
        "disk_bytes": _weight_bytes(config, parameters or 0) + _table_bytes(config),
        "memory_bytes": None if parameters is None else _memory_bytes(config, parameters),
        "basis": f"measured on {runs} earlier run{'s' if runs > 1 else ''}" if runs else "assumed",
        "notes": notes,
    }


def refuse_if_too_big(config: RunConfig) -> None:
    """Raise UserError when the predicted disk or memory does not fit this machine."""
    wanted = estimate(config)
    root = store.runs_root()
    while not root.exists():
        root = root.parent
    free = shutil.disk_usage(root).free
    if wanted["disk_bytes"] > free:
        raise UserError(
            f"the run needs about {_gb(wanted['disk_bytes'])} on disk and {_gb(free)} are free at {root}: "
            f"free space, set DCES_RUNS, or use keep = newest (now {config.keep}), fewer arms or rounds."
        )
    memory = wanted["memory_bytes"]
    available = free_memory_bytes()
    if memory is not None and wanted["device"] != "cuda" and memory > available:
        raise UserError(
            f"model = {config.model!r} needs about {_gb(memory)} of memory and {_gb(available)} are free: "
            f"use a smaller model, or lower train.batch_size (now {config.train.batch_size})."
        )


def free_memory_bytes() -> int:
    """Memory that a run could have once the runs before it are done: available now, plus what live workers hold."""
    held = 0
    for run in store.discover(recorded=False):
        status = run.status()
        if status.get("state") == "running" and processes.alive(status.get("pid"), status.get("pid_started")):
            held += int(status.get("rss_bytes") or 0)
    return int(psutil.virtual_memory().available) + held


def likely_device(config: RunConfig) -> str:
    """The device that `auto` will most probably mean; the worker decides (torch is not asked here)."""
    if config.device != "auto":
        return config.device
    if shutil.which("nvidia-smi"):
        return "cuda"
    return "mps" if sys.platform == "darwin" else "cpu"


def count_parameters(model: str) -> int | None:
    """Parameters of a model; None where nothing on this machine tells."""
    found = architectures.dimensions(model)
    if found and found[1]:
        return found[1]
    try:
        folder = Path(model).expanduser()
        files = list(folder.glob("*.safetensors")) if (folder / "config.json").is_file() else []
        return sum(_elements(path) for path in files) or None
    except (OSError, RuntimeError, ValueError, struct.error):
        return None


def stage_seconds(config: RunConfig, parameters: int, device: str) -> dict[str, float]:
    """Seconds of each stage of one round of one arm, from tokens and TOKENS_PER_S."""
    scale = REFERENCE_PARAMETERS / parameters
    if device == "cpu":
        scale *= (config.threads or machine.cores()) / REFERENCE_CORES
    speed = {name: value * scale for name, value in TOKENS_PER_S[device].items()}
    response = config.generate.max_new_tokens * FILL
    pairs, passages = config.eval.pairs or DEFAULT_PAIRS, config.eval.passages or DEFAULT_PASSAGES
    answers = (pairs + passages) * config.eval.budget_tokens + PROBES * 2 * config.eval.probe_tokens
    real = pairs * (PROMPT_TOKENS + 40) + passages * PASSAGE_TOKENS
    work = {
        "generate": config.pool.size * response / speed["generate"],
        "select": config.pool.n * (PROMPT_TOKENS + response) / speed["score"],
        "train": config.pool.n * config.train.epochs * (PROMPT_TOKENS + response) / speed["train"],
        "evaluate": answers * FILL / speed["generate"] + (2 * real + answers * FILL) / speed["score"],
        "map": 0.0,
    }
    return {stage: FIXED_S[stage] + seconds for stage, seconds in work.items()}


def _corrections(config: RunConfig) -> tuple[dict[str, float], int]:
    """Measured over predicted seconds of each stage, from up to five newest runs of the same model and device."""
    measured: dict[str, float] = defaultdict(float)
    predicted: dict[str, float] = defaultdict(float)
    used = 0
    for run in store.discover(recorded=False):
        if used == 5:
            break
        try:
            other = run.config
        except UserError:
            continue
        if (other.engine, other.model, likely_device(other)) != (config.engine, config.model, likely_device(config)):
            continue
        spans = [event for event in run.events()[0] if event.get("kind") == "span" and event["round"] and event["arm"] != store.SHARED]
        used += bool(spans)
        stages = stage_seconds(other, count_parameters(other.model) or REFERENCE_PARAMETERS, likely_device(other))
        for span in spans:
            measured[span["stage"]] += span["seconds"]
            predicted[span["stage"]] += stages.get(span["stage"], 0.0)
    return {stage: measured[stage] / predicted[stage] for stage in measured if predicted[stage]}, used


def _weight_bytes(config: RunConfig, parameters: int) -> int:
    """fp32 weights or adapters that lie on disk at the worst moment: what `keep` keeps, and the set that is being written."""
    trained = [arm for arm in config.arms if ARMS[arm].trains]
    per_arm = {"newest": 1, "ends": 2, "best": 2, "every-5": config.rounds // 5 + 1, "all": config.rounds}[config.keep]
    shared = 1 if config.train.round0 == "finetune" else 0
    kept = _adapter_parameters(config) if config.train.lora_rank else None
    return 4 * (parameters if kept is None else kept) * (min(per_arm, config.rounds) * len(trained) + shared + bool(trained))


def _adapter_parameters(config: RunConfig) -> int | None:
    """Parameters of an adapter on every linear layer of the blocks; None where the model's dimensions are not known here."""
    found = architectures.dimensions(config.model)
    try:
        shape = found and plan.shape_of(*found)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return config.train.lora_rank * shape.block_linear * shape.layers if shape else None


def _table_bytes(config: RunConfig) -> int:
    pairs, passages = config.eval.pairs or DEFAULT_PAIRS, config.eval.passages or DEFAULT_PASSAGES
    per_round = ROW_BYTES * (config.pool.size + pairs + passages + 2 * PROBES) + STAGE_BYTES
    return per_round * len(config.arms) * (config.rounds + 1)


def memory_parts(config: RunConfig, parameters: int, layout: plan.Layout) -> dict[str, int] | None:
    """plan.memory of a run; None where the model's dimensions are not known here."""
    found = architectures.dimensions(config.model)
    try:
        shape = found and plan.shape_of(found[0], parameters)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return plan.memory(shape, work_of(config), layout) if shape else None


def work_of(config: RunConfig) -> plan.Work:
    """What a run holds at once."""
    batch = min(config.train.micro_batch_size or config.train.batch_size, config.train.batch_size, config.pool.n)
    return plan.Work(batch, PROMPT_TOKENS, config.generate.max_new_tokens, min(config.generate.batch_size, config.pool.size))


def _memory_bytes(config: RunConfig, parameters: int) -> int | None:
    """At the worst moment, a step of training, with what is freed given back; a run with room keeps it and takes up to twice as much."""
    if config.engine == "fake":
        return plan.PROCESS_BYTES["cpu"]
    parts = memory_parts(config, parameters, plan.Layout(device="cpu"))
    return None if parts is None else parts["total"]


def _elements(path: Path) -> int:
    """Numbers in a safetensors file, from its header alone."""
    (length,) = struct.unpack("<Q", read_bytes(path, 8))
    header = parse_json(read_bytes(path, min(length, MAX_HEADER_BYTES), 8))
    if not isinstance(header, dict):
        raise ValueError(f"{path} has no header")
    shapes = [fitted(entry, {"shape": all_of(is_count)}).get("shape") for name, entry in header.items() if name != "__metadata__"]
    return sum(math.prod(shape) for shape in shapes if shape is not None)


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
