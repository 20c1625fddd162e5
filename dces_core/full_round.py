"""One small round of a model at full size, every stage, in a process of its own: does each pass, how long, how much memory.

`python -m dces_core.full_round DIR` is that process. It takes no turn on the device: what else runs there makes it slower, not larger.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dces_core import architectures, data, estimate, machine, plan, store
from dces_core.config import RunConfig, parse
from dces_core.errors import UserError
from dces_core.events import Events, Progress
from dces_core.rounds import planned
from dces_core.stage import read_json, write_json
from dces_core.store import Run

PEAKS = "peaks.json"
PAIRS = 16
LIMIT_S = 3600
SETTINGS: dict[str, Any] = {
    "rounds": 1, "arms": ["dces"], "device": "cpu", "pool": {"n": 16}, "train": {"round0": "finetune"},
    "eval": {"pairs": 4, "passages": 2, "budget_tokens": 24, "probe_tokens": 8},
}  # fmt: skip


def check(name: str, layers: int | None = None) -> dict[str, Any]:
    """Build the architecture, do the round, and say: stages with seconds, peak bytes and whether each passed, and the whole's peak.

    Raises UserError where it is not known or does not fit this machine.
    """
    found = architectures.find(name)
    _refuse_if_too_big(found, layers)
    folder = architectures.build(name, layers)
    with tempfile.TemporaryDirectory(prefix="dces-full-") as place:
        run = store.create(_config(folder, Path(place)), {}, Path(place) / "run")
        command = [sys.executable, "-m", "dces_core.full_round", str(run.path)]
        error = _do(command)
        return {"name": found.name, "layers": layers, "needed": needed(found, layers), **_facts(run), "error": error}


def needed(found: architectures.Architecture, layers: int | None) -> dict[str, int]:
    """Memory of the round by plan.FORMULAS."""
    shape = architectures.exact(plan.shape_of(found.values(layers)), found.configuration(layers))
    return plan.memory(shape, estimate.work_of(parse(SETTINGS)), plan.Layout(device="cpu"))


def _refuse_if_too_big(found: architectures.Architecture, layers: int | None) -> None:
    free, wanted = estimate.free_memory_bytes(), needed(found, layers)["total"]
    if wanted > free:
        raise UserError(
            f"a round of {found.name} needs about {wanted / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free: "
            "free memory, or take fewer layers (--layers)."
        )


def _config(folder: Path, place: Path) -> RunConfig:
    """A round on the first pairs of the shipped training split."""
    train = place / "train.jsonl"
    pairs = data.load_train(parse({})).pairs[:PAIRS]
    train.write_text("".join(json.dumps({"prompt": pair.prompt, "reference": pair.reference}) + "\n" for pair in pairs), encoding="utf-8")
    return parse({**SETTINGS, "model": str(folder), "data": {"train": str(train)}})


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the process: do the rounds, leave peaks beside the run's events."""
    from dces_core.rounds import advance

    run = Run(Path((arguments or sys.argv[1:])[0]))
    machine.use_threads(run.threads)
    machine.keep_memory(False)
    events = Watched(run, {})
    try:
        advance(run, events)
    finally:
        events.close()
        write_json(run.path / PEAKS, events.peaks)
    return 0


class Watched(Events):
    """Events that also note the peak of resident memory of each stage."""

    def __init__(self, run: Run, status: dict[str, Any]) -> None:
        self.peaks: dict[str, int] = {}
        super().__init__(run, status)

    @contextmanager
    def span(self, round_: int, arm: str, stage: str) -> Iterator[Progress]:
        """As Events.span."""
        _forget_peak()
        with super().span(round_, arm, stage) as progress:
            yield progress
        self.peaks[f"{round_}/{arm}/{stage}"] = _peak_bytes()


def _peak_bytes() -> int:
    """The most resident memory of this process so far; on Linux since `_forget_peak`."""
    with suppress(OSError, StopIteration):
        line = next(line for line in Path("/proc/self/status").read_text("utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


def _forget_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _facts(run: Run) -> dict[str, Any]:
    """Stages in the order in which they were done; those that are missing last."""
    peaks = read_json(run.path / PEAKS) or {}
    seconds = {f"{e['round']}/{e['arm']}/{e['stage']}": e["seconds"] for e in run.events()[0] if e.get("kind") == "span"}
    wanted = [f"{round_}/{arm}/{name}" for round_, arm, name in planned(run.config)]
    rows = []
    for key in [*seconds, *(key for key in wanted if key not in seconds)]:
        round_, arm, name = key.split("/")
        passed = run.stage(int(round_), arm, name).done is not None and key in seconds
        row = {"round": int(round_), "arm": arm, "stage": name, "seconds": seconds.get(key), "peak_bytes": peaks.get(key), "passed": passed}
        rows.append(row)
    return {"passed": all(row["passed"] for row in rows), "peak_bytes": max(peaks.values(), default=None), "stages": rows}


def _do(command: list[str]) -> str | None:
    """Run the process; why it failed, or None."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=LIMIT_S, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired:
        return f"not done after {LIMIT_S} s"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"]
    return lines[-1]


if __name__ == "__main__":
    sys.exit(main())
