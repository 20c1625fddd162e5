"""Bad numbers: engines that follow a script (empty, identical, endless, NaN, no memory) and what the run then says of it.

A case is defined where the run ends in the wanted state, its log or its error has the wanted words, nothing half-written is left, every
finished stage can be read, and no number that is not finite was stored.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tiny
from small import attempt, small_run

from dces_core import models
from dces_core.bench.rows import Row
from dces_core.engines import fake
from dces_core.engines.base import Generation
from dces_core.stage import Stage
from dces_core.store import Run

SENTENCE = "A small red house stands near the old river."
Engine = type[Any]


@dataclass(frozen=True)
class Case:
    """What an engine does, and the outcome that is defined for it. `said` is in the run's log or its error."""

    name: str
    script: Callable[[Engine], Engine]
    state: str
    said: str
    changes: dict[str, Any] = field(default_factory=dict)


def as_it_is(base: Engine) -> Engine:
    return base


def writes(
    text_of: Callable[[int], str], logprob: float = -1.0, ended: bool = True, tokens: int | None = None
) -> Callable[[Engine], Engine]:
    """An engine whose i-th response is a given text, `tokens` long at most."""

    def script(base: Engine) -> Engine:
        def generate(self: Any, prompts: list[list[int]], *_: Any, **__: Any) -> list[Generation]:
            rows = [self.encode_text(text_of(i))[:tokens] for i in range(len(prompts))]
            facts = [np.full(len(ids), logprob, np.float32) for ids in rows]
            return [Generation(ids, ended, fact, np.abs(fact)) for ids, fact in zip(rows, facts, strict=True)]

        return type("Scripted", (base,), {"generate": generate})

    return script


def learns(loss: float) -> Callable[[Engine], Engine]:
    """An engine whose last training step has this loss."""

    def script(base: Engine) -> Engine:
        def train(self: Any, *arguments: Any) -> list[float]:
            return [*base.train(self, *arguments)[:-1], loss]

        return type("Scripted", (base,), {"train": train})

    return script


def scores(shift: float, fewer_than: int = 1 << 30) -> Callable[[Engine], Engine]:
    """An engine that moves the frozen model's log-probabilities by `shift`, in calls of fewer examples than `fewer_than`."""

    def script(base: Engine) -> Engine:
        def score(self: Any, examples: Any, which: Any = "current", *rest: Any) -> Any:
            found = base.score(self, examples, which, *rest)
            if len(examples) < fewer_than and (which == "frozen" or np.isnan(shift)):
                found.logprob[:] += shift
                found.entropy[:] += shift if np.isnan(shift) else 0
            return found

        return type("Scripted", (base,), {"score": score})

    return script


def poisoned(when: str) -> Callable[[Engine], Engine]:
    """A real model with a NaN among its weights: `__init__`, from the start; `train`, as its training begins."""

    def script(base: Engine) -> Engine:
        def verb(self: Any, *arguments: Any) -> Any:
            result = None if when == "train" else base.__init__(self, *arguments)
            for state in (self._master.state_dict(), self._base if when == "__init__" else {}):
                for name, tensor in state.items():
                    if "norm" in name:
                        tensor.view(-1)[0] = np.nan
            if when == "__init__":
                self._refresh()
            return base.train(self, *arguments) if when == "train" else result

        return type("Scripted", (base,), {when: verb})

    return script


def few(i: int) -> str:
    """Three of four responses are a single word."""
    return SENTENCE if i % 4 == 0 else "house"


COMMON = [
    Case("all empty", writes(lambda i: ""), "done", "all 16 generations are empty; the gate rejected all 16 samples"),
    Case("all identical", writes(lambda i: SENTENCE), "done", "all 16 generations are the same text"),
    Case(
        "loss is NaN",
        learns(float("nan")),
        "failed",
        "round 1 of arm plain, train: the training loss is nan at step 1 of 1; lower train.lr",
    ),
    Case(
        "probability is NaN",
        writes(lambda i: SENTENCE, float("nan")),
        "failed",
        "round 0, evaluate: the model's probabilities are not finite",
    ),
]
FAKE = [
    *COMMON,
    Case("loss is infinite", learns(float("inf")), "failed", "then launch again, or fork from round 0 with it."),
    Case("one token", writes(lambda i: SENTENCE, tokens=1), "done", "none of the 16 generations is longer than one token"),
    Case(
        "no token to learn", writes(lambda i: "", ended=False), "done", "8 of 8 samples have no token to learn: the model stays as it was"
    ),
    Case("signal undefined", writes(lambda i: ""), "done", "edge share fixed at 0.1: dispersion is undefined in this pool"),
    Case(
        "gate rejects all",
        as_it_is,
        "done",
        "the gate rejected all 16 samples: no clusters, no center and no edge",
        {"gate": {"min_words": 100}},
    ),
    Case("zero center", as_it_is, "done", "8 rejected samples picked: only 0 of the 8 needed had passed", {"gate": {"min_words": 100}}),
    Case("fewer than N pass", writes(few), "done", "4 rejected samples picked: only 4 of the 8 needed had passed"),
    Case("zero edge", as_it_is, "done", "center in place of edge samples", {"split": {"center_share": 0.999}, "gate": {"on": False}}),
    Case(
        "every edge rejected", scores(-100.0, 40), "done", "edge samples were rejected: no edge to pick", {"split": {"center_share": 0.3}}
    ),
    Case("score is NaN", scores(float("nan")), "done", "values are not finite"),
    Case("hdbscan, identical", writes(lambda i: SENTENCE), "done", "are the same text", {"cluster": {"clusterer": "hdbscan"}}),
]
SLOW = [
    Case("map, all empty", writes(lambda i: ""), "done", "generations are empty", {"map": {"on": True}}),
]
REAL = [
    Case(
        "weights are NaN", poisoned("__init__"), "failed", "round 0, evaluate: the model's probabilities are not finite in 6 of 6 responses"
    ),
    Case(
        "NaN in training",
        poisoned("train"),
        "failed",
        "round 1 of arm plain, train: the training loss is nan at step 1 of 1; lower train.lr",
    ),
    *COMMON,
]


def hf() -> dict[str, Any]:
    """Settings of a run with a tiny real model."""
    return {"engine": "hf", "model": str(tiny.folder("llama")), "device": "cpu", "train": {"precision": "fp32"}}


@contextmanager
def scripted(case: Case, engine: str) -> Iterator[None]:
    """The engine replaced by one that follows the case's script."""
    if engine == "fake":
        place, base = "dces_core.engines.fake.FakeModel", fake.FakeModel
    else:
        from dces_core.engines.hf import HFModel

        place, base = "dces_core.engines.hf.HFModel", HFModel
    with mock.patch(place, case.script(base)):
        yield


def ended(case: Case, engine: str, folder: Path) -> Run:
    """The run of a case, as it ended."""
    run = small_run(folder, **{"arms": ["plain", "dces"], "rounds": 1, **(hf() if engine == "hf" else {}), **case.changes})
    with scripted(case, engine):
        attempt(run)
    return run


def wrong(run: Run, state: str, said: str) -> str | None:
    """What is not as it was defined, None where all is."""
    status = run.status()
    if status["state"] != state:
        return f"{status['state']}, not {state}: {status.get('error')}"
    notes = [str(event.get("text") or event.get("error") or "") for event in run.events()[0]]
    heard = [status.get("error") or ""] if state == "failed" else [*notes, *run.metrics()["reason"].drop_nulls()]
    if not any(said in words for words in heard):
        return f"nobody said {said!r}: {heard[-4:]}"
    if list(run.path.glob("round-*/*/.tmp-*")):
        return "something half-written is left"
    stages = [Stage(path.parent) for path in run.path.glob("round-*/*/*/_done.json")]
    if not stages and "round 0" not in str(status.get("error")):
        return "nothing finished is left"
    if not all(stage.valid((stage.done or {})["inputs"]) for stage in stages):
        return "a finished stage cannot be read"
    return None if run.metrics()["value"].drop_nulls().is_finite().all() else "a stored number is not finite"


def tally(found: dict[str, str | None], name: str, note: str) -> list[Row]:
    """How many cases there were, and which were not as defined."""
    bad = [f"{case}: {words}" for case, words in found.items() if words]
    return [
        Row(f"numbers-{name}cases", float(len(found)), peer=None, ratio=None, unit="", n=len(found), note=note),
        Row(f"numbers-{name}undefined", float(len(bad)), peer=None, ratio=None, unit="", n=len(found), note=" / ".join(bad)[:400]),
    ]


def measure(scale: float) -> list[Row]:
    """Every case with the fake engine and, on enough scale, all of the real ones; then the runs that are short of memory."""
    from torture.numbers_memory import short_of_memory

    found: dict[str, str | None] = {}
    real = REAL if scale >= 0.5 else REAL[:2]
    plan = [(case, "fake") for case in (FAKE if scale < 0.5 else FAKE + SLOW)] + [(case, "hf") for case in real if models.pulled()]
    for case, engine in plan:
        with tempfile.TemporaryDirectory() as folder:
            found[f"{engine}, {case.name}"] = wrong(ended(case, engine, Path(folder)), case.state, case.said)
    memory = short_of_memory(scale) if models.pulled() else {}
    return tally(found, "", "engines: fake, tiny llama") + tally(memory, "oom-", "a tiny llama with room for so many sequences")
