"""`dces study --engine ray`: one Ray task per unit. What a task does is in cluster.py; this module only sends and waits.

The first unit of a seed goes alone: what it makes for all arms is lent to the others, which then go at once.
A unit of a dead node is sent again from here, and its run goes on after the last finished stage. Ray's own retries are off: of a node that
went silent (no power, no cable) Ray knows after seconds, but it waits for minutes until the connection to its worker is given up.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dces_core import estimate, launch, machine
from dces_core.cluster import Answer, do_job, fetch, job_of
from dces_core.errors import UserError, quoted
from dces_core.study import Place, Work, alone, refuse_other_tests
from dces_core.study_store import SharedWorkshop

INSTALL = "pip install -e '.[ray]'"
RETRIES = 5
TICK_S = 0.5
CONNECT_S = 5.0
OBJECTS_BYTES = 100 * 2**20


@dataclass(frozen=True)
class Cluster:
    """How to reach it, and what one unit needs of it."""

    address: str
    root: Path
    resources: dict[str, float]  # cpus, gpus, memory_gb, or a resource of one's own


def resources_of(pairs: Sequence[str]) -> dict[str, float]:
    """NAME=NUMBER as a table. Raises UserError."""
    found = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            found[name] = float(value)
            assert name and 0 <= found[name] < float("inf")
        except (ValueError, AssertionError):
            raise UserError(f"resources = {quoted(pair)} is not NAME=NUMBER, such as cpus=4, gpus=1, memory_gb=16 or big_node=1.") from None
    return found


def needs(resources: dict[str, float], threads: int, device: str) -> dict[str, Any]:
    """The table as Ray takes it: by default a CPU per thread, and a GPU where the study computes on one."""
    own = {name: value for name, value in resources.items() if name not in ("cpus", "gpus", "memory_gb")}
    options: dict[str, Any] = {
        "num_cpus": resources.get("cpus", threads),
        "num_gpus": resources.get("gpus", float(device.startswith("cuda"))),
        "resources": own,
    }
    return options | ({"memory": int(resources["memory_gb"] * 1e9)} if "memory_gb" in resources else {})


def do_study_on_ray(work: Work, cluster: Cluster, only: Sequence[str] = ()) -> launch.State:
    """Make the missing units on the cluster: as `do_study`, and with the same results. Raises UserError before anything starts."""
    study, workshop = work.study, SharedWorkshop(work.study.config.name, cluster.root)
    threads = study.base.threads or machine.threads()
    options = needs(cluster.resources, threads, estimate.likely_device(study.base))
    with connected(cluster.address) as ray, alone(study, workshop):
        refuse_too_small(ray.nodes(), options)
        work.output.write_study(study.config.model_dump(mode="json"), study.base)
        for place in study.places():
            fetch(work, workshop, place)  # of a call that was cut off
        done = work.finished(study.places())
        refuse_other_tests(study, done.values())
        missing = [place for place in study.places(only) if place not in done]
        task = ray.remote(max_retries=0, max_calls=1, **options)(do_job)
        sending = _Sending(ray, work, workshop, lambda place: task.remote(job_of(work, cluster.root, place, threads)), missing)
        return sending.go()


Speaker = tuple[Any, Any]  # host and pid


@dataclass
class _Sending:
    """The units of one call."""

    ray: Any
    work: Work
    workshop: SharedWorkshop
    send: Any
    waiting: list[Place]
    running: dict[Any, Place] = field(default_factory=dict)
    spoke: dict[Place, Speaker] = field(default_factory=dict)  # who speaks of a unit's run now
    before: dict[Place, Speaker] = field(default_factory=dict)  # who did when it was sent
    sent: Counter[Place] = field(default_factory=Counter)
    led: set[int] = field(default_factory=set)  # seeds whose shared stages are there
    ended: int = 0
    failed: int = 0

    def go(self) -> launch.State:
        """Until nothing is left."""
        self.total = len(self.waiting)
        self.led = {seed for seed, _ in self.waiting if self.workshop.lends(seed)}
        try:
            while self.waiting or self.running:
                self._send_ready()
                ended, _ = self.ray.wait(list(self.running), num_returns=1, timeout=TICK_S)
                self._say_hosts()
                for ref in ended:
                    self._end(ref)
                self._bury()
        except KeyboardInterrupt:
            self._stop()
            return "stopped"
        return "failed" if self.failed else "done"

    def _send_ready(self) -> None:
        """Every unit whose seed is led; of the other seeds the first."""
        leading = {seed for seed, _ in self.running.values()}
        for place in list(self.waiting):
            if place[0] in self.led or place[0] not in leading:
                self.before[place] = self._speaker(place)
                self.running[self.send(place)] = place
                self.sent[place] += 1
                self.waiting.remove(place)
                leading.add(place[0])

    def _speaker(self, place: Place) -> Speaker:
        """Host and pid of the worker that a unit's run heard last."""
        run = self.workshop.run(*place)
        status = run.status() if run else {}
        return status.get("host"), status.get("pid")

    def _say_hosts(self) -> None:
        """A line where a unit begins, or goes on elsewhere."""
        for place in self.running.values():
            speaker = self._speaker(place)
            if None in speaker or speaker in (self.spoke.get(place), self.before[place]):
                continue
            begun = self.spoke.get(place, self.before[place])[0]
            words = f"goes on on {speaker[0]}, begun on {begun}" if begun else f"begins on {speaker[0]}"
            self.work.say(f"seed {place[0]}  {place[1]:<14} {words}")
            self.spoke[place] = speaker

    def _bury(self) -> None:
        """Send the units of dead nodes again."""
        alive = {node["NodeManagerHostname"] for node in self.ray.nodes() if node["Alive"]}
        for ref, place in list(self.running.items()):
            host = self.spoke[place][0] if place in self.spoke else None
            if host and self.spoke[place] != self.before[place] and host not in alive:
                self._again(ref, f"node {host} is gone")

    def _again(self, ref: Any, why: str) -> None:
        """Send a unit once more. One that ends its nodes again and again has failed."""
        place = self.running.pop(ref)
        if self.sent[place] > RETRIES:
            self._fail(place, f"{why}, after {RETRIES} more attempts")
            return
        self.work.say(f"seed {place[0]}  {place[1]:<14} {why}; it is sent again")
        self.waiting.insert(0, place)

    def _fail(self, place: Place, why: str) -> None:
        self.ended += 1
        self.failed += 1
        self.work.say(f"{self._head(place)} failed: {why}")

    def _head(self, place: Place) -> str:
        return f"unit {self.ended}/{self.total}  seed {place[0]}  {place[1]:<14}"

    def _end(self, ref: Any) -> None:
        """A line and the unit's tables."""
        place = self.running[ref]
        try:
            answer: Answer = self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            answer = Answer("failed", " ".join(str(error.cause or error).split())[:300], "a node")
        except self.ray.exceptions.RayError as error:
            return self._again(ref, f"its worker is gone ({type(error).__name__})")
        del self.running[ref]
        if answer.state != "done" or not fetch(self.work, self.workshop, place):
            return self._fail(place, f"{answer.error or answer.state} (on {answer.host})")
        self.ended += 1
        self.led.add(place[0])
        study = self.work.study
        done = self.work.finished(study.places())
        self.work.say(f"{self._head(place)} {done[place].facts['seconds']:9.1f} s   on {answer.host}")
        if all(other in done for other in study.places() if other[0] == place[0]):
            self.workshop.close(place[0], self.work.keep_runs)

    def _stop(self) -> None:
        """Ask every unit to stop, and wait for those that had begun."""
        for ref in self.running:
            self.ray.cancel(ref)
        self.ray.wait(list(self.running), num_returns=len(self.running), timeout=launch.DYING_S * 5)


# the cluster ------------------------------------------------------------------------------------------------------------


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected. Raises UserError where it is not installed, not there, or lets nobody in without its token."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise UserError(f"engine = 'ray' needs the package ray, which is not installed; run: {INSTALL}.") from None
    refuse_unreachable(address)
    here: dict[str, Any] = {"num_cpus": machine.cores(), "include_dashboard": False, "object_store_memory": OBJECTS_BYTES}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **(here if address == "local" else {}))
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError):
        raise UserError(
            f"address = {quoted(address)}: no Ray cluster lets this machine in; does Ray run, of this version, and is its token given "
            "(RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN)? See docs/cluster.md."
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def refuse_unreachable(address: str) -> None:
    """Raise UserError unless the address is `local`, `auto`, or HOST:PORT where somebody listens. Ray itself would wait for minutes."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise UserError(f"address = {quoted(address)} is neither HOST:PORT of a Ray head, nor auto, nor local.")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, OverflowError):
        raise UserError(
            f"address = {quoted(address)} cannot be reached: start Ray there (ray start --head --port={port}), or mend the address."
        ) from None


def refuse_too_small(nodes: Sequence[dict[str, Any]], options: dict[str, Any]) -> None:
    """Raise UserError where no node can ever take a unit: it would wait for good."""
    wanted = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], "memory": options.get("memory", 0), **options["resources"]}
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(all(node.get(name, 0) >= count for name, count in wanted.items()) for node in alive):
        text = ", ".join(f"{name} {count:g}" for name, count in wanted.items() if count)
        raise UserError(
            f"no node of the cluster has what a unit needs ({text}): lower --resources or OMP_NUM_THREADS, or start a larger node."
        )
