"""Units on nodes of a cluster: taking over from a dead node, sending again, and what is refused. test_torture_cluster.py cuts power."""

from __future__ import annotations

import importlib.util
import os
import secrets
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from small import small_config, small_run
from test_study import do, hashes, home, said_by, work_on, write_study

from dces_core import cluster, cluster_ray, launch, store
from dces_core.cluster import Answer, do_job, job_of, root_of, take_over
from dces_core.cluster_ray import needs, refuse_too_small, refuse_unreachable, resources_of
from dces_core.errors import UserError
from dces_core.study_store import SharedWorkshop

__all__ = ["home"]


# one unit on a node -----------------------------------------------------------------------------------------------------


@pytest.fixture
def node(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `do_job` changes in its process is put back."""
    for name in ("DCES_NODE", "DCES_LOCKS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
        monkeypatch.delenv(name)
    return home


def test_a_unit_is_what_the_local_engine_makes_and_its_run_is_on_every_page(node: Path) -> None:
    path = write_study(node / "study", arms=["plain"], seeds=[0], seeds_of={})
    local = do(path, node / "local")
    work, _ = work_on(path, node / "out", keep_runs=True)
    work.output.write_study(work.study.config.model_dump(mode="json"), work.study.base)
    job = job_of(work, node / "runs", (0, "plain"), launch.machine.threads())
    host = cluster.platform.node()
    assert do_job(job) == Answer("done", None, host)
    workshop = SharedWorkshop("small", node / "runs")
    assert not work.finished([(0, "plain")]) and cluster.fetch(work, workshop, (0, "plain"))
    assert hashes(work.output) == hashes(local)
    assert [run.id for run in store.discover(recorded=False)] == ["small-s0-plain"]
    assert store.find("small-s0-plain").status()["host"] == host
    assert not cluster.fetch(work, workshop, (0, "plain")), "fetched once"
    other = do_job(cluster.Job(**{**vars(job), "versions": {**job.versions, "torch": "0.1"}, "place": (0, "plain")}))
    assert other.state == "failed" and "torch is" in str(other.error) and "make them equal" in str(other.error)


def test_a_worker_of_another_node_lives_as_long_as_its_heart_beats(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    said = {"state": "running", "pid": 1, "pid_started": 0.0, "host": "elsewhere"}
    run.write_status({**said, "heartbeat": time.time()})
    assert launch.state(run) == "running"
    run.write_status({**said, "heartbeat": time.time() - 2 * launch.FRESH_S})
    assert launch.state(run) == "lost"
    launch.queue(run)
    assert run.status()["host"] is None


def test_a_run_is_taken_over_when_the_heart_has_stopped_and_not_before(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    said = {"state": "running", "pid": 1, "pid_started": 0.0, "host": "elsewhere"}
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.1):
            run.write_status({**said, "heartbeat": time.time() + 1e6})  # no clock is compared

    run.write_status({**said, "heartbeat": 0.0})
    heart = threading.Thread(target=beat)
    heart.start()
    try:
        with pytest.raises(UserError, match="still worked on by node elsewhere"):
            take_over(run, still_s=1.2, patience_s=2.5)
    finally:
        over.set()
        heart.join()
    started = time.monotonic()
    take_over(run, still_s=1.2, patience_s=5)
    assert time.monotonic() - started >= 1.2
    run.write_status({**said, "host": cluster.platform.node()})
    started = time.monotonic()
    take_over(run)
    assert time.monotonic() - started < 1, "a process of this machine is known to be dead"
    with FileLock(run.lock_path), pytest.raises(UserError, match="still locked by another node"):
        take_over(run, patience_s=0.2)


# sending ----------------------------------------------------------------------------------------------------------------


class FakeRay:
    """Tasks that end when the test says so."""

    class exceptions:
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            pass

    def __init__(self, each: Any) -> None:
        self.each, self.log, self.hosts = each, [], ["one", "two"]

    def send(self, place: Any) -> Future[Answer]:
        self.log.append(place)
        return self.each(self, place)  # type: ignore[no-any-return]

    def wait(self, refs: list[Future[Answer]], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return [ref for ref in refs if ref.done()][:num_returns], []

    def get(self, ref: Future[Answer]) -> Answer:
        return ref.result()

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": name in self.hosts, "NodeManagerHostname": name} for name in ("one", "two")]


def ended(result: Answer | Exception | None) -> Future[Answer]:
    future: Future[Answer] = Future()
    if isinstance(result, Exception):
        future.set_exception(result)
    elif result:
        future.set_result(result)
    return future


def sending(home: Path, each: Any, **fields: Any) -> tuple[Any, FakeRay, list[str]]:
    work, said = work_on(write_study(home / "study", **fields), home / "out")
    ray = FakeRay(each)
    workshop = SharedWorkshop("small", home / "runs")
    return cluster_ray._Sending(ray, work, workshop, ray.send, work.study.places()), ray, said


def test_the_first_unit_of_a_seed_goes_alone_and_another_leads_where_it_fails(home: Path) -> None:
    found, ray, said = sending(home, lambda ray, place: ended(Answer("failed", "why", "one")))
    assert found.go() == "failed"
    assert ray.log == [(0, "plain"), (1, "plain"), (0, "dces"), (1, "random"), (1, "dces")]
    assert len(said) == 5 and "failed: why (on one)" in said[0]


def test_a_unit_of_a_dead_node_is_sent_again_once(home: Path) -> None:
    def each(ray: FakeRay, place: Any) -> Future[Answer]:
        if len(ray.log) > 1:
            return ended(Answer("failed", "enough", "one"))
        run = store.create(small_config(home), {}, home / "runs" / "small-s0-plain")
        run.write_status({"state": "running", "host": "two", "pid": 7})
        ray.hosts = ["one"]
        return ended(None)

    found, ray, said = sending(home, each, arms=["plain"], seeds=[0], seeds_of={})
    assert found.go() == "failed" and ray.log == [(0, "plain")] * 2
    assert said[0].endswith("begins on two") and said[1].endswith("node two is gone; it is sent again")


def test_a_unit_that_ends_its_workers_fails_in_the_end(home: Path) -> None:
    found, ray, said = sending(home, lambda ray, place: ended(ray.exceptions.RayError("killed")), arms=["plain"], seeds=[0], seeds_of={})
    assert found.go() == "failed" and len(ray.log) == 1 + cluster_ray.RETRIES
    assert "its worker is gone (RayError), after 5 more attempts" in said[-1]


# refusals ---------------------------------------------------------------------------------------------------------------


def test_what_a_unit_needs() -> None:
    assert needs({}, 4, "cpu") == {"num_cpus": 4, "num_gpus": 0.0, "resources": {}}
    wanted = needs(resources_of(["cpus=2", "memory_gb=8", "big=1"]), 4, "cuda")
    assert wanted == {"num_cpus": 2.0, "num_gpus": 1.0, "memory": 8_000_000_000, "resources": {"big": 1.0}}
    for wrong in ("cpus", "cpus=x", "=1", "cpus=-1", "cpus=nan", "cpus=inf"):
        with pytest.raises(UserError, match="is not NAME=NUMBER"):
            resources_of([wrong])
    nodes = [{"Alive": True, "Resources": {"CPU": 1.0}}, {"Alive": False, "Resources": {"CPU": 64.0}}]
    with pytest.raises(UserError, match=r"no node of the cluster has what a unit needs \(CPU 4\)"):
        refuse_too_small(nodes, needs({}, 4, "cpu"))


def test_refusals_are_one_sentence(home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_study(home / "study")
    assert "engine = 'slurm' is not one of: local, ray." in said_by(capfd, "study", path, "--engine", "slurm", code=2)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "engine = 'ray' needs the package ray" in said_by(capfd, "study", path, "--engine", "ray", code=2)
    assert "only a folder that all nodes see" in said_by(capfd, "study", path, "--engine", "ray", "--root", "s3://bucket/x", code=2)
    assert root_of("file:///srv/x", Path()) == Path("/srv/x")
    for address in ("nowhere", "ray://one:1", ":6379", "one:x"):
        with pytest.raises(UserError, match="is neither HOST:PORT"):
            refuse_unreachable(address)
    with pytest.raises(UserError, match="cannot be reached: start Ray there"):
        refuse_unreachable("127.0.0.1:1")


# Ray itself -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_a_ray_of_one_node_makes_what_the_local_engine_makes(home: Path) -> None:
    path = write_study(home / "study", seeds=[1], seeds_of={})
    local = do(path, home / "local")
    own = {"HOME": str(home), "DCES_CACHE": str(home / "cache"), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = [sys.executable, "-m", "dces_core.cli", "study", path, "--out", str(home / "out"), "--engine", "ray", "--address", "local"]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, timeout=85, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(home / "out")
    assert hashes(work_on(path, home / "out")[0].output) == hashes(local)
    assert [path.name for path in (home / "runs").iterdir()] == ["studies"], "no run is kept"
