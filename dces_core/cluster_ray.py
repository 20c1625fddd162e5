"""`dces study --engine ray`: one Ray task per unit. What a task does is in cluster.py; this module only sends and waits.

The first unit of a seed goes alone: what it makes for all arms is lent to the others, which then go at once.
A task of a dead node is sent again by Ray, and its run goes on after the last finished stage.
"""

from __future__ import annotations

import logging
import os
import socket
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
        task = ray.remote(max_retries=RETRIES, max_calls=1, **options)(do_job)
        sending = _Sending(ray, work, workshop, lambda place: task.remote(job_of(work, cluster.root, place, threads)), missing)
        return sending.go()


@dataclass
class _Sending:
    """The units of one call."""

    ray: Any
    work: Work
    workshop: SharedWorkshop
    send: Any
    waiting: list[Place]
    running: dict[Any, Place] = field(default_factory=dict)
    hosts: dict[Place, str] = field(default_factory=dict)
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
        except KeyboardInterrupt:
            self._stop()
            return "stopped"
        return "failed" if self.failed else "done"

    def _send_ready(self) -> None:
        """Every unit whose seed is led; of the other seeds the first."""
        leading = {seed for seed, _ in self.running.values()}
        for place in list(self.waiting):
            if place[0] in self.led or place[0] not in leading:
                self.running[self.send(place)] = place
                self.waiting.remove(place)
                leading.add(place[0])

    def _say_hosts(self) -> None:
        """A line where a unit begins, or goes on elsewhere."""
        for place in self.running.values():
            run = self.workshop.run(*place)
            host = run.status().get("host") if run else None
            if host and self.hosts.get(place) != host:
                words = f"goes on on {host}, begun on {self.hosts[place]}" if place in self.hosts else f"on {host}"
                self.work.say(f"seed {place[0]}  {place[1]:<14} {words}")
                self.hosts[place] = host

    def _end(self, ref: Any) -> None:
        """A line and the unit's tables."""
        place = self.running.pop(ref)
        self.ended += 1
        head = f"unit {self.ended}/{self.total}  seed {place[0]}  {place[1]:<14}"
        answer = self._answer(ref)
        if answer.state != "done" or not fetch(self.work, self.workshop, place):
            self.failed += 1
            self.work.say(f"{head} failed on {answer.host}: {answer.error or answer.state}")
            return
        self.led.add(place[0])
        study = self.work.study
        done = self.work.finished(study.places())
        self.work.say(f"{head} {done[place].facts['seconds']:9.1f} s   on {answer.host}")
        if all(other in done for other in study.places() if other[0] == place[0]):
            self.workshop.close(place[0], self.work.keep_runs)

    def _answer(self, ref: Any) -> Answer:
        """What the node said; where it could not say anything, Ray's reason."""
        try:
            found: Answer = self.ray.get(ref)
            return found
        except self.ray.exceptions.RayError as error:
            return Answer("failed", " ".join(str(error).split())[:300], "a node that is gone")

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
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise UserError(f"engine = 'ray' needs the package ray, which is not installed; run: {INSTALL}.") from None
    refuse_unreachable(address)
    here: dict[str, Any] = {"num_cpus": machine.cores(), "include_dashboard": False, "object_store_memory": OBJECTS_BYTES}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **(here if address == "local" else {}))
    except ray.exceptions.AuthenticationError:
        raise UserError(
            f"address = {address!r} wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN."
        ) from None
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise UserError(
            f"address = {address!r}: no Ray cluster answers ({' '.join(str(error).split())[:200]}); see docs/cluster.md."
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
