"""Two nodes of a Ray cluster in namespaces of their own; one loses its power in the middle of a unit, and the study ends the same.

A node has its own network, host name, processes, /dev/shm and /tmp/ray: all that it shares with the other is one folder.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from test_study import ARMS, hashes, write_study

from dces_core import launch
from dces_core.bench.rows import Row, skipped
from dces_core.store import Run
from dces_core.study_store import Output

REPEATS = 3
HEAD, OTHER = ("dces-node-1", "10.77.0.1"), ("dces-node-2", "10.77.0.2")
PORT = 6390
#: A node that is silent for three seconds is dead.
QUICK = {"RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "1000",
         "RAY_health_check_failure_threshold": "3"}  # fmt: skip
SETTINGS = {"rounds": 8}
ROOM = "mkdir -p /tmp/ray && mount -t tmpfs x /tmp/ray && mount -t tmpfs x /dev/shm && hostname $0 && ip link set lo up && exec sleep 600"
LIMIT_S = 80.0
Stages = dict[tuple[str, str], int]  # (run, stage) -> inode of its folder: another one where it was made again


def why_not() -> str | None:
    """Why two nodes cannot be made here; None where they can."""
    if importlib.util.find_spec("ray") is None:
        return "ray is not installed"
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return "needs unshare, nsenter and ip"
    if subprocess.run(["unshare", *SPACES, "true"], capture_output=True, check=False).returncode:
        return "needs the right to make namespaces (root)"
    return None


def measure(scale: float) -> list[Row]:
    """Power cuts, and what of the study differs, is lost or was done twice."""
    reason = why_not()
    if reason:
        return [skipped("cluster-kills", reason)]
    repeats, found = max(1, round(REPEATS * scale)), Counter[str]()
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            found.update(one_cut(Path(folder)))
    notes = {
        "kills": "a node's link and power cut while it was in the middle of a unit, token authentication on",
        "moved": "units that the other node went on with",
        "different": "tables that differ from the local engine's",
        "lost": "stages that are missing in the end",
        "repeated": "stages that were done twice",
        "strangers": "drivers with another token that were let in",
    }
    return [Row(f"cluster-{name}", found[name], None, None, "", repeats, note) for name, note in notes.items()]


# nodes ------------------------------------------------------------------------------------------------------------------

SPACES = ("--net", "--uts", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc")


@dataclass
class Node:
    """A machine in namespaces of its own."""

    name: str
    pid: int  # of its first process: when that is killed, so is all the rest
    env: dict[str, str]

    def inside(self, *command: str, **env: str) -> subprocess.Popen[str]:
        """Begin a command on the node."""
        enter = ["nsenter", "-t", str(self.pid), "-n", "-u", "-p", "-m", "--", *command]
        return subprocess.Popen(enter, env={**self.env, **env}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def do(self, *command: str, **env: str) -> str:
        """Do a command on the node; what it said."""
        process = self.inside(*command, **env)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said
        return said

    def ray(self, *arguments: str) -> None:
        """`ray start` with one CPU and no GPU."""
        start = (sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1", "--num-gpus=0")
        self.do(*start, "--object-store-memory=100000000", "--disable-usage-stats", *arguments)


@contextmanager
def node(name: str, env: dict[str, str]) -> Iterator[Node]:
    """A node until the end of the block, or until its power is cut."""
    holder = subprocess.Popen(["unshare", *SPACES, "sh", "-c", ROOM, name], stderr=subprocess.DEVNULL)
    try:
        children, deadline = Path(f"/proc/{holder.pid}/task/{holder.pid}/children"), time.monotonic() + 10
        while not (pids := children.read_text().split()) or Path(f"/proc/{pids[0]}/comm").read_text() != "sleep\n":
            assert time.monotonic() < deadline, f"{name} does not start"
            time.sleep(0.05)
        yield Node(name, int(pids[0]), env)
    finally:
        holder.kill()
        holder.wait()


@contextmanager
def wire(head: Node, other: Node) -> Iterator[None]:
    """A network of two. The other's end stays when its node is gone, as a cable does."""
    enter = ["nsenter", "-t", str(head.pid), "-n"]
    subprocess.run([*enter, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", str(other.pid)], check=True)
    for one, (_, address) in ((head, HEAD), (other, OTHER)):
        one.do("ip", "address", "add", f"{address}/24", "dev", "eth0")
        one.do("ip", "link", "set", "eth0", "up")
    socket = subprocess.Popen(["nsenter", "-t", str(other.pid), "-n", "sleep", "600"])
    try:
        yield
    finally:
        socket.kill()
        socket.wait()


def cut_power(other: Node) -> None:
    """Nothing more is heard of the node, not even that its connections are closed."""
    other.do("ip", "link", "set", "eth0", "down")
    os.kill(other.pid, signal.SIGKILL)


# a study ----------------------------------------------------------------------------------------------------------------


def one_cut(folder: Path) -> dict[str, int]:
    """A study on two nodes of which one dies, beside the same study of the local engine."""
    own = {"HOME": str(folder), "DCES_CACHE": str(folder / "cache"), "DCES_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1"}
    env = {**os.environ, **own, **QUICK, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    path = write_study(folder / "study", SETTINGS, arms=ARMS[:2], seeds=[0, 1], seeds_of={ARMS[1]: [1]})
    study = [sys.executable, "-m", "dces_core.cli", "study", path, "--keep-runs"]
    local = [*study, "--out", str(folder / "local")]
    alone = subprocess.Popen(local, env={**env, "DCES_RUNS": str(folder / "alone")}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with ExitStack() as stack:
        head, other = (stack.enter_context(node(name, env)) for name, _ in (HEAD, OTHER))
        stack.enter_context(wire(head, other))
        head.ray("--head", "--include-dashboard=false", f"--node-ip-address={HEAD[1]}", f"--port={PORT}")
        other.ray(f"--address={HEAD[1]}:{PORT}", f"--node-ip-address={OTHER[1]}")
        ray = [*study, "--engine", "ray", "--address", f"{HEAD[1]}:{PORT}", "--out", str(folder / "out")]
        stranger = head.inside(*ray, RAY_AUTH_TOKEN=secrets.token_hex(32))
        driver = head.inside(*ray)
        before = when_halfway(folder / "runs", driver)
        cut_power(other)
        said, _ = driver.communicate(timeout=LIMIT_S)
        refused, _ = stranger.communicate(timeout=LIMIT_S)
        assert alone.wait(timeout=LIMIT_S) == 0
        assert driver.returncode == 0, said
    found = judged(folder, before)
    moved = said.count(f"goes on on {HEAD[0]}, begun on {OTHER[0]}")
    return {"kills": 1, "moved": moved, "strangers": int(stranger.returncode != 2 or "token" not in refused), **found}


def when_halfway(runs: Path, driver: subprocess.Popen[str]) -> Stages:
    """Wait until the other node is inside a unit's third round; what is finished then."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        for path in runs.glob("small-*"):
            status = Run(path).status()
            if status.get("host") == OTHER[0] and status.get("state") == "running" and (status.get("round") or 0) >= 3:
                return stages(runs)
        assert driver.poll() is None and time.monotonic() < deadline, driver.communicate()[0]
        time.sleep(0.05)


def stages(runs: Path) -> Stages:
    """Every finished stage; run.json, which is written once, tells a run that was begun anew."""
    begun = {(path.parent.name, path.name): path.stat().st_mtime_ns for path in runs.glob("small-*/run.json")}
    return begun | {
        (path.relative_to(runs).parts[0], str(path.parent.relative_to(path.parents[3]))): path.parent.stat().st_ino
        for path in runs.glob("small-*/round-*/*/*/_done.json")
    }


def judged(folder: Path, before: Stages) -> dict[str, int]:
    """What differs, what is lost, what was done twice."""
    mine, other = hashes(Output(folder / "out")), hashes(Output(folder / "local"))
    after, wanted = stages(folder / "runs"), set[tuple[str, str]]()
    for seed, arm in other:
        alone = folder / "alone" / "studies" / "small" / f"seed-{seed}" / arm
        wanted |= {(f"small-s{seed}-{arm}", str(path.parent.relative_to(alone))) for path in alone.glob("round-*/*/*/_done.json")}
    spans = Counter[tuple[str, int, str, str]]()
    for path in (folder / "runs").glob("small-*"):
        for event in Run(path).events()[0]:
            if event["kind"] == "span":
                spans[path.name, event["round"], event["arm"], event["stage"]] += 1
        assert launch.state(Run(path)) == "done"
    return {
        "different": sum(mine.get(place) != files for place, files in other.items()) + len(mine.keys() - other.keys()),
        "lost": len(wanted - after.keys()),
        "repeated": sum(count > 1 for count in spans.values()) + sum(after.get(key) != inode for key, inode in before.items()),
    }
