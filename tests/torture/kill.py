"""SIGKILL at random moments and before every write: the run that goes on is the run that was never killed, to the last bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import tiny
from kit import wait_for
from pytest import skip

from dces_core import launch, processes
from dces_core.bench.rows import Row, skipped
from dces_core.config import RunConfig
from dces_core.store import Run
from torture.forks import Fault, begin, differences, drop, finish, make, reference, said, workplace

FAKE, TINY, WRITES, SEED = 100, 20, 60, 20_240
CHILD = "import dces_core.processes as p, json, sys; print(json.dumps(p.identity()), flush=True); sys.stdin.read()"
SERVER = "import sys, time; from pathlib import Path; from dces_core import launch; from dces_core.store import Run; " \
    "launch.start(Run(Path(sys.argv[1]))); print('launched', flush=True); time.sleep(600)"  # fmt: skip


def measure(scale: float) -> list[Row]:
    """Kills of the fake engine and of a real tiny model, and how processes are judged."""
    different: list[str] = []
    wrong: list[str] = []
    with workplace() as folder:
        whole = reference(folder)
        kills, runs = kill_at_random(folder, whole, max(2, round(FAKE * scale)), different, wrong)
        writes = kill_before_writes(folder, whole, max(2, round(WRITES * scale)), different)
        wrong += wrongly_judged(folder, whole)
    rows = [
        Row("kill-fake", kills, None, None, "kills", kills, f"SIGKILL at random moments, {runs} runs compared"),
        Row("kill-writes", writes, None, None, "kills", writes, "SIGKILL right before a write, a rename, an fsync or a mkdir"),
    ]
    rows.append(measure_tiny(max(2, round(TINY * scale)), different, wrong))
    return [
        *rows,
        Row("kill-different", len(different), None, None, "runs", runs, "; ".join(different)[:300]),
        Row("kill-states", len(wrong), None, None, "cases", len(CASES), "; ".join(wrong)[:300]),
    ]


def measure_tiny(count: int, different: list[str], wrong: list[str]) -> Row:
    """Kills of a model of PyTorch."""
    with workplace() as folder:
        try:
            model = str(tiny.folder("gpt2"))
        except skip.Exception as reason:
            return skipped("kill-tiny", str(reason))
        more: dict[str, Any] = {"engine": "hf", "model": model, "device": "cpu", "arms": ["dces"], "train": {"precision": "fp32"}}
        whole = reference(folder, **more)
        kills, runs = kill_at_random(folder, whole, count, different, wrong)
    return Row("kill-tiny", kills, None, None, "kills", kills, f"a transformers model with random weights, {runs} runs compared")


def kill_at_random(folder: Path, whole: Run, wanted: int, different: list[str], wrong: list[str]) -> tuple[int, int]:
    """Kill runs one after the other, each until it ends all the same; kills and runs."""
    rng = random.Random(SEED)
    duration_s = _duration_s(folder, whole.config)
    kills = runs = 0
    while kills < wanted:
        run = make(folder, f"run-{runs}", whole.config)
        while True:
            worker = begin(run)
            worker.join(rng.uniform(0.0, duration_s))
            if worker.exitcode is not None:
                break
            worker.kill()
            worker.join()
            kills += 1
            now = launch.state(run)
            if now == "done":  # all but its last breath
                break
            wrong += [f"killed, {now}"] if now != "lost" else []
            launch.check_resumable(run)
        found = differences(run, whole) + ([f"exit {worker.exitcode}: {said(run)}"] if worker.exitcode not in (0, -signal.SIGKILL) else [])
        different += [f"{run.id}: {found[:3]}"] if found else []
        runs += 1
        drop(run)
    return kills, runs


def _duration_s(folder: Path, config: RunConfig) -> float:
    run = make(folder, "timed", config)
    started = time.perf_counter()
    assert finish(run) == 0, said(run)
    drop(run)
    return time.perf_counter() - started


def kill_before_writes(folder: Path, whole: Run, wanted: int, different: list[str]) -> int:
    """Kill a run before calls that write, evenly spread over all of them; each run goes on once."""
    counted = make(folder, "counted", whole.config)
    assert finish(counted, Fault()) == 0
    calls = Path(f"{counted.path}.calls").read_text(encoding="utf-8").splitlines()
    places = sorted({round(i * (len(calls) - 1) / (wanted - 1)) for i in range(wanted)})
    for at in places:
        run = make(folder, f"write-{at}", whole.config)
        assert finish(run, Fault(at, "kill")) == -signal.SIGKILL
        code = finish(run)
        found = differences(run, whole) + ([f"exit {code}"] if code else [])
        different += [f"{calls[at]}: {found[:3]}"] if found else []
        drop(run)
    return len(places)


# how processes are judged -------------------------------------------------------------------------------------------------


def wrongly_judged(folder: Path, whole: Run) -> list[str]:
    """Names of the cases in which `launch.state` says anything but what is true."""
    found = []
    for name, case in CASES.items():
        run = make(folder, name.replace(" ", "-"), whole.config)
        try:
            case(run)
        except AssertionError as error:
            found.append(f"{name}: {error}")
        drop(run)
    return found


def _says(run: Run, wanted: launch.State, **status: Any) -> None:
    run.write_status({"state": "running", "pid": None, "pid_started": None, "heartbeat": time.time(), **status})
    now = launch.state(run)
    assert now == wanted, f"{now}, not {wanted}"


def reused_pid(run: Run) -> None:
    """The pid belongs to a process that started at another time."""
    mine = processes.identity()
    _says(run, "running", **mine)
    for shift in (-100, -1, 1, 100):
        _says(run, "lost", **{**mine, "pid_started": mine["pid_started"] + shift})
    _says(run, "lost", pid=os.getpid(), pid_started=psutil.Process().create_time() - 60)


def zombie(run: Run) -> None:
    """The process has ended and nobody has collected it."""
    child = subprocess.Popen([sys.executable, "-c", CHILD],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert child.stdin and child.stdout
    from json import loads

    identity = loads(child.stdout.readline())
    _says(run, "running", **identity)
    child.stdin.close()
    wait_for(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    _says(run, "lost", **identity)
    child.wait()
    child.stdout.close()
    _says(run, "lost", **identity)


def clock_set_back(run: Run) -> None:
    """The clock jumps by an hour, either way: who lives still lives, who never spoke is not waited for."""
    real, mine = time.time, processes.identity()
    for jump in (-3600, 3600):
        run.write_status({"state": "running", "heartbeat": real(), **mine})
        started = psutil.Process().create_time()
        with (
            patch("time.time", lambda jump=jump: real() + jump),
            patch.object(psutil.Process, "create_time", lambda self, at=started + jump: at),
        ):
            assert launch.state(run) == "running", "the worker lives"
            run.write_status({"state": "queued", "pid": None, "pid_started": None, "heartbeat": real()})
            assert launch.state(run) == "lost", "it never spoke"


def server_killed(run: Run) -> None:
    """The web server that launched it is killed: the run goes on."""
    server = _serve(run)
    server.kill()
    server.wait()
    wait_for(lambda: launch.state(run) == "done", 120)


def both_killed(run: Run) -> None:
    """The server and the worker are killed: lost, and a resumed one gets to its end."""
    server = _serve(run)
    wait_for(lambda: run.status().get("pid") is not None, 60)
    for pid in (server.pid, run.status()["pid"]):
        os.kill(pid, signal.SIGKILL)
    server.wait()
    wait_for(lambda: launch.state(run) == "lost")
    launch.check_resumable(run)
    assert finish(run) == 0, said(run)


def _serve(run: Run) -> subprocess.Popen[str]:
    environ = {**os.environ, "DCES_CACHE": str(run.path.parent / "cache")}
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(run.path)], stdout=subprocess.PIPE, text=True, env=environ)
    assert server.stdout
    with server.stdout as out:
        assert out.readline() == "launched\n"
    return server


CASES = {
    "reused pid": reused_pid, "zombie": zombie, "clock": clock_set_back, "server killed": server_killed, "both killed": both_killed,
}  # fmt: skip
