"""A disk that is full, broken or read only at every write, and damaged bytes in every file: never `done`, never silent, never different."""

from __future__ import annotations

import json
import random
import shutil
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import polars as pl

from dces_core import launch
from dces_core.bench.rows import Row
from dces_core.damage import damage
from dces_core.errors import UserError
from dces_core.store import SHARED, Run
from dces_core.ui import read
from torture.forks import RAISED, Fault, differences, drop, finish, make, reference, said, workplace

FAULTS, DAMAGES, SEED = 160, 200, 7
HOWS = [("ENOSPC", True), ("EIO", False), ("EROFS", True), ("ENOSPC", False)]
WORDS = {"ENOSPC": "No space left on device", "EIO": "Input/output error", "EROFS": "Read-only file system"}
PLAIN = ("metrics", "probes", "next_tokens", "frame", "frame_facts", "events", "log_tail", "status")
#: What no result is computed from: readers must live with its damage, and a resumed run too.
UNHASHED = ("status.json", "events.jsonl", "log.txt", "worker.lock")


def measure(scale: float) -> list[Row]:
    """Faults while writing, then damage of what was written."""
    wrong: list[str] = []
    silent: list[str] = []
    raised: list[str] = []
    with workplace() as folder:
        whole = reference(folder, arms=["dces"])
        faults, calls = inject(folder, whole, max(len(HOWS), round(FAULTS * scale)), wrong)
        damages = spoil(folder, whole, scale, silent, raised, wrong)
    return [
        Row("disk-faults", faults, None, None, "faults", calls, "ENOSPC, EIO, EROFS; n: calls of one run that write"),
        Row("disk-wrong", len(wrong), None, None, "runs", faults, "; ".join(wrong)[:300]),
        Row("disk-damage", damages, None, None, "files", damages, "a bit flipped, or cut short"),
        Row("disk-undetected", len(silent), None, None, "files", damages, "; ".join(silent)[:300]),
        Row("disk-raised", len(raised), None, None, "readers", damages, "; ".join(raised)[:300]),
    ]


def inject(folder: Path, whole: Run, wanted: int, wrong: list[str]) -> tuple[int, int]:
    """Let calls that write fail, evenly spread over a run; each run goes on once. Faults and calls of a run."""
    counted = make(folder, "counted", whole.config)
    assert finish(counted, Fault()) == 0, said(counted)
    calls = len(Path(f"{counted.path}.calls").read_text(encoding="utf-8").splitlines())
    places = sorted({round(i * (calls - 1) / (wanted - 1)) for i in range(wanted)})
    for index, at in enumerate(places):
        how, sticky = HOWS[index % len(HOWS)]
        run = make(folder, f"fault-{at}", whole.config)
        found = _after_fault(run, whole, Fault(at, how, sticky))
        wrong += [f"{how} at {at}: {'; '.join(found)[:150]}"] if found else []
        drop(run)
    return len(places), calls


def _after_fault(run: Run, whole: Run, fault: Fault) -> list[str]:
    """Which promises a run breaks whose disk fails once or from then on."""
    code, now, reason = finish(run, fault), launch.state(run), run.status().get("error")
    found = [f"raised {Path(f'{run.path}.raised').read_text(encoding='utf-8')[-300:]}"] if code == RAISED else []
    if (code == 0) != (now == "done") or now not in ("done", "failed", "lost"):
        found.append(f"exit {code}, {now}")
    if code and WORDS[fault.how] not in (str(reason) if now == "failed" else said(run)):
        found.append(f"no reason: {reason}, {said(run)[-100:]}")
    found += readers_that_raise(run)
    if now != "done":
        launch.check_resumable(run)
        again = finish(run)
        found += [f"resumed: exit {again} {run.status().get('error')}"] if again else []
    spans = ("twice", "left over: log.txt")
    return found + [item for item in differences(run, whole) if not item.startswith(spans)]


# damage -------------------------------------------------------------------------------------------------------------------


def spoil(folder: Path, whole: Run, scale: float, silent: list[str], raised: list[str], wrong: list[str]) -> int:
    """Damage every file of a finished run, one way and the other; a share of the runs is resumed, one file's damage each."""
    rng = random.Random(SEED)
    paths = sorted(path.relative_to(whole.path) for path in whole.path.rglob("*") if path.is_file() and path.stat().st_size)
    cases = [(path, way) for path in paths for way in ("cut", "flip")]
    wanted = min(len(cases), max(12, round(DAMAGES * scale)))
    chosen = [cases[round(i * (len(cases) - 1) / (wanted - 1))] for i in range(wanted)]
    for number, (path, way) in enumerate(chosen):
        run = Run(folder / f"damaged-{number}")
        shutil.copytree(whole.path, run.path)
        _damage(run.path / path, way, rng)
        name = f"{path} {way}"
        raised += [f"{name}: {item}" for item in readers_that_raise(run)]
        silent += [name] if str(path) not in UNHASHED and not _told(run, path) else []
        if number % max(1, round(4 * scale)) == 0:
            wrong += [f"{name}: {item}" for item in _after_damage(run, whole, path)]
        drop(run)
    return len(chosen)


def _damage(path: Path, way: str, rng: random.Random) -> None:
    data = path.read_bytes()
    place = rng.randrange(len(data))
    flipped = data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    path.write_bytes(data[:place] if way == "cut" else flipped)


def _told(run: Run, path: Path) -> bool:
    """Whether the damage has a name; a file of settings that cannot be read says so in a sentence."""
    try:
        return str(path) in damage(run)
    except UserError:
        return path.name == "run.json"


def _after_damage(run: Run, whole: Run, path: Path) -> list[str]:
    """Which promises a damaged run breaks when it is resumed."""
    try:
        launch.check_resumable(run)
    except UserError as error:
        refused = str(path) == "run.json" or (str(path) in UNHASHED and "is done" in str(error))
        return [] if refused else [f"refused: {error}"]
    with redirect_stderr(StringIO()):
        code = finish(run)
    found = [f"exit {code} {run.status().get('error')}"] if code else []
    notes = [str(event.get("text")) for event in run.events()[0] if event.get("kind") == "note"]
    if str(path) not in UNHASHED and not any(str(path) in note for note in notes):
        found.append("not named in the events")
    return found + [item for item in differences(run, whole) if not item.startswith("twice")]


def readers_that_raise(run: Run) -> list[str]:
    """Readers of a run that raise anything but a sentence."""
    rounds = (0, 1, 2)
    calls = {
        **{name: getattr(run, name) for name in PLAIN},
        **{f"{name} {r}": lambda name=name, r=r: getattr(run, name)("dces", r)
           for name in ("samples", "generations", "reliability", "entropy", "controller") for r in rounds},
        **{f"read.{name}": lambda name=name: getattr(read, name)(run) for name in ("metrics", "ground", "live")},
        **{f"read.{name} {r}": lambda name=name, r=r: getattr(read, name)(run, "dces", r)
           for name in ("samples", "generations", "entropy", "facts", "controller", "loop") for r in rounds},
        "read.probes": lambda: read.probes(run, ("dces",)), "read.next_tokens": lambda: read.next_tokens(run, ("dces",)),
        "state": lambda: launch.state(run), "shared": lambda: run.stage(1, SHARED, "generate").frame("pool"),
    }  # fmt: skip
    found = []
    for name, call in calls.items():
        try:
            value = call()
            _ = (
                value.write_csv()
                if isinstance(value, pl.DataFrame) and not any(kind.is_nested() for kind in value.dtypes)
                else json.dumps(str(value))
            )
        except UserError:
            continue
        except BaseException as error:
            found.append(f"{name}: {type(error).__name__} {str(error)[:80]}")
    return found
