"""Run directories, questions, studies and addresses that somebody else wrote."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from torture import fuzz

Attempt = Callable[..., None]

TEXT = st.text(st.characters(codec=None), max_size=30) | st.sampled_from(
    ["\ud800", "../../x", "\0", "a" * 5000, "plain", "9" * 30, "-3", "۳"]
)
NUMBER = st.integers(-(10**20), 10**20) | st.floats() | st.sampled_from([10**400, -1, 2**31, 1e308])
VALUE = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
FIELDS = (
    "state",
    "pid",
    "pid_started",
    "heartbeat",
    "round",
    "arm",
    "stage",
    "done",
    "total",
    "eta_s",
    "parent",
    "cpu",
    "threads",
    "config",
    "schema",
    "label",
    "note",
    "tags",
    "files",
    "inputs",
    "flow",
    "clusters",
    "notes",
    "error",
    "loss",
    "examples",
    "x",
    "y",
    "parameters",
    "question",
    "weights",
    "run",
    "kind",
    "seconds",
    "study",
    "name",
    "seeds",
    "arms",
    "tests",
    "budget",
    "digest",
    "changed",
)
OBJECT = st.dictionaries(st.sampled_from(FIELDS), VALUE, max_size=6)


def drawn(count: int, strategy: st.SearchStrategy[Any], use: Callable[[Any], None]) -> None:
    """Use `count` values of a strategy, the same ones every time."""
    how = settings(
        max_examples=count, derandomize=True, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    how(given(strategy)(use))()


def try_all(attempt: Attempt, root: Path, count: int, rng: random.Random) -> None:
    """`count` cases for each group of readers."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "app"))
    try:
        from make_run import make_run
    finally:
        sys.path.pop(0)
    make_run(root / "runs", "whole", arms=("plain", "dces"), rounds=1)
    whole = root / "runs" / "whole"
    lying_files(attempt, whole, count, rng)
    special_files(attempt, whole, root / "bait")
    questions(attempt, whole, root / "runs", count)
    studies(attempt, root / "runs", count)
    addresses(attempt, count * 4)


def readers(path: Path) -> Iterator[tuple[str, Callable[[], object], bool]]:
    """What pages and the command line read of a run; whether a UserError is right."""
    from dces_core import ask, branch, estimate, labels, launch
    from dces_core.store import Run

    run = Run(path)
    plain = ("manifest", "parent", "bytes", "recorded")
    yield from ((name, lambda name=name: getattr(run, name), False) for name in plain)
    for name in ("status", "events", "log_tail", "frame", "frame_facts"):
        yield name, getattr(run, name), False
    yield "state", lambda: launch.state(run), False
    yield "labels", lambda: labels.read(run), False
    yield "lineage", lambda: branch.lineage(run), False
    for name in ("controller", "samples", "generations", "reliability", "entropy", "loss", "map_facts"):
        yield name, lambda name=name: getattr(run, name)("dces", 1), False
    yield "memory", estimate.free_memory_bytes, False
    for name in ("metrics", "probes", "next_tokens", "rounds_begun"):
        yield name, getattr(run, name), True
    for name in ("config", "threads"):
        yield name, lambda name=name: getattr(run, name), True
    yield "checkpoints", lambda: (ask.checkpoints(run), ask.missing(run)), True
    yield "forkable", lambda: branch.forkable(run), True
    yield "rename", lambda: labels.rename(run, "x"), True
    yield "resume", lambda: launch.check_resumable(run), True


def read_one(attempt: Attempt, name: str, path: Path, rng: random.Random) -> None:
    """Three readers of a damaged run, drawn by chance."""
    for reader, call, refuses in rng.sample(list(readers(path)), 3):
        attempt(f"{name}: {reader}", call, refuses)


def lying_files(attempt: Attempt, whole: Path, count: int, rng: random.Random) -> None:
    """A file of a run with other bytes, and JSON files with another object."""
    path = whole.with_name("lying")
    shutil.copytree(whole, path)
    paths = [one for one in sorted(whole.rglob("*")) if one.is_file()]
    tables = [one for one in paths if one.suffix == ".parquet"]
    for index in range(count):
        source = rng.choice(tables if index % 3 == 0 else [one for one in paths if one.suffix != ".parquet"])
        target = path / source.relative_to(whole)
        target.write_bytes(fuzz.mutated(source.read_bytes(), rng))
        read_one(attempt, f"{target.relative_to(path)} {index}", path, rng)
        shutil.copyfile(source, target)
    documents = [one for one in paths if one.suffix in (".json", ".jsonl")]

    def use(value: dict[str, Any]) -> None:
        source = rng.choice(documents)
        target = path / source.relative_to(whole)
        known = json.loads(source.read_text(encoding="utf-8")) if source.suffix == ".json" else {"kind": "span"}
        target.write_text(
            json.dumps({**known, **value} if isinstance(known, dict) else value) + "\n", encoding="utf-8", errors="surrogatepass"
        )
        read_one(attempt, f"{target.relative_to(path)} {value!r:.80}", path, rng)
        shutil.copyfile(source, target)

    drawn(count, OBJECT, use)


def special_files(attempt: Attempt, whole: Path, bait: Path) -> None:
    """Each file of a run as a pipe, a folder, a device, a link to the outside; folders as links; names that climb."""
    from dces_core.launch import check_resumable, delete
    from dces_core.store import Run, create

    places = (
        "run.json",
        "status.json",
        "events.jsonl",
        "log.txt",
        "labels.json",
        "worker.lock",
        "stop",
        "round-01/dces/select/controller.json",
    )
    makers: dict[str, Callable[[Path], object]] = {
        "pipe": os.mkfifo,
        "folder": Path.mkdir,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "link": lambda path: path.symlink_to(bait / "bait.txt"),
        "dangling": lambda path: path.symlink_to(bait / "made"),
        "large": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 2**30),
    }
    for place in (
        *places,
        "round-01/dces/select/samples.parquet",
        "round-01/dces/evaluate/metrics.parquet",
        "round-01/dces/select/_done.json",
    ):
        for kind, make in makers.items():
            path = whole.with_name("special")
            shutil.copytree(whole, path)
            (path / place).unlink(missing_ok=True)
            make(path / place)
            for reader, call, refuses in readers(path):
                attempt(f"{place} is a {kind}: {reader}", call, refuses)
            attempt(f"{place} is a {kind}: delete", lambda path=path: delete(Run(path)))
            shutil.rmtree(path, ignore_errors=True)
    for name in ("../../../../bait/out", "/tmp/x", "..", "", "a/b", "\0"):
        path = whole.with_name("climbing")
        shutil.copytree(whole, path)
        done = {"inputs": "x", "files": {name: {"bytes": 1, "sha256": "x"}}, "seconds": 1}
        (path / "round-01/dces/select/_done.json").write_text(json.dumps(done), encoding="utf-8")
        fresh = create(Run(whole).config, {})
        attempt(f"adopt {name!r}", lambda path=path, fresh=fresh: fresh.adopt(Run(path).stage(1, "dces", "select"), Run(path), "y"))
        shutil.rmtree(path)
    path = whole.with_name("linked")
    shutil.copytree(whole, path)
    shutil.rmtree(path / "round-01/dces")
    (path / "round-01/dces").symlink_to(bait)
    attempt("a folder is a link", lambda: check_resumable(Run(path)))


def questions(attempt: Attempt, whole: Path, runs: Path, count: int) -> None:
    """Questions whose files say anything."""
    from dces_core import ask, launch
    from dces_core.store import Run

    folder = runs / ".jobs" / "question-20260101-000000-000000"
    folder.mkdir(parents=True)

    def use(values: tuple[Any, Any]) -> None:
        (folder / "ask.json").write_text(json.dumps(values[0]), encoding="utf-8")
        (folder / "answers.json").write_text(json.dumps(values[1]), encoding="utf-8")
        job = ask.Job(folder)
        for name in ("answers", "run_id", "threads", "readable"):
            attempt(f"question {values!r:.80}: {name}", lambda name=name: getattr(job, name), False)
        attempt("question: jobs", lambda: ask.jobs(Run(whole)), False)
        attempt("question: state", lambda: launch.state(job), False)
        for name in ("question", "config"):
            attempt(f"question {values!r:.80}: {name}", lambda name=name: getattr(job, name))
        attempt(f"question {values!r:.80}: weights", lambda: job.weights(0))

    drawn(count // 3, st.tuples(OBJECT | VALUE, VALUE | st.lists(OBJECT, max_size=3)), use)


def studies(attempt: Attempt, runs: Path, count: int) -> None:
    """study.json and unit.json that say anything."""
    from dces_core import results, study
    from dces_core.config import parse
    from dces_core.study_store import Output

    unit, config = runs / "study" / "units" / "seed-0" / "plain", parse({"engine": "fake"})
    unit.mkdir(parents=True)
    good = {"schema": 1, "digest": config.digest(), "arm": "plain", "seed": 0, "files": {}, "config": {}}

    def use(values: tuple[Any, Any]) -> None:
        head, body = (
            {**given_, **known}
            for given_, known in zip(values, ({"schema": 1, "config": config.model_dump(mode="json")}, good), strict=True)
        )
        output = Output(runs / "study")
        (output.path / "study.json").write_text(json.dumps(head), encoding="utf-8")
        (unit / "unit.json").write_text(json.dumps(body), encoding="utf-8")
        for name, call in (("units", output.units), ("config", output.config), ("evidence", lambda: results.read(output))):
            attempt(f"study {values!r:.80}: {name}", call)
        attempt("study: cpus", lambda: study.mixed_cpus(output.units()))

    drawn(count // 3, st.tuples(OBJECT, OBJECT), use)


class Address(SimpleNamespace):
    """Stands in for streamlit: what the address bar says, what the session remembers, and widgets that do nothing."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *_, **__: None


def addresses(attempt: Attempt, count: int) -> None:
    """Query parameters of any text, to every reader of the address bar that needs no browser."""
    from unittest.mock import patch

    from dces_core.ui import state

    arms = ("plain", "dces", "random")
    rounds = [0, 1, 2, 5]

    def use(values: tuple[str, str]) -> None:
        page = Address(query_params={"run": values[0], "round": values[0], "vs": ",".join(values), "prompt": values[1]}, session_state={})
        with patch.object(state, "st", page):
            for name, call in (
                ("round", lambda: _among(rounds, state.linked("round", rounds, 5, state.clamp(rounds)), page)),
                ("prompt", lambda: _among(["a", "b"], state.linked("prompt", ["a", "b"], "a"), page)),
                ("arms", lambda: _distinct(state.pick_arms(arms), page)),
                ("run", state.find_run),
            ):
                attempt(f"address {values!r:.80}: {name}", call)

    words = TEXT | st.text("0123456789-+eE.,_ ", max_size=40) | st.sampled_from(["plain,plain", "dces,plain", "1e5", "-99", "9" * 10_000])
    drawn(count // 4, st.tuples(words, words), use)


def _among(options: list[Any], key: str, page: Address) -> None:
    assert page.session_state[key] in options


def _distinct(chosen: tuple[str, ...], page: Address) -> None:
    assert chosen
    assert len(set(page.session_state["pick-vs"])) == len(page.session_state["pick-vs"])
