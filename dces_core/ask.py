"""One's own prompt to checkpoints of a run. A question is a job like a run: a folder, a process of its own, the device's lock.

    runs/.jobs/question-YYYYMMDD-HHMMSS-microseconds/
      ask.json       the question, the run's settings, where its weights lie
      weights-0.safetensors, ...   links, so that a run at work cannot delete them meanwhile; gone when the job is over
      answers.json   what was answered so far: replaced atomically
      status.json, events.jsonl, log.txt, stop: as a run's

Nothing else is written: no table of a run knows of a question. One question is answered at a time, the newest KEPT stay.
The answering itself is in answering.py; this module is what pages and the command line need.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock
from pydantic import Field

from dces_core import launch, models
from dces_core.arms import ARMS
from dces_core.config import RunConfig, parse
from dces_core.errors import UserError
from dces_core.reading import Test, all_of, fitted, is_count, is_number, is_text
from dces_core.section import Section, validate
from dces_core.stage import Stage, read_json, write_json
from dces_core.store import PRIVATE, SHARED, WEIGHTS, Run, runs_root

KEPT = 20
FACTS: dict[str, Test] = {
    "threads": is_count,
    **dict.fromkeys(("run", "asked"), is_text),
    "weights": all_of(lambda source: source is None or is_text(source)),
}
ANSWERS = ("arm", "round", "mode", "draw", "text", "tokens", "ended", "logprob", "loop")
KEEPS = {
    "newest": "of the newest round",
    "ends": "of the first and the newest round",
    "best": "of the best and the newest round",
    "every-5": "of every fifth and the newest round",
    "all": "of all rounds",
}


class Checkpoint(Section):
    """The model of one arm after one round. Round 0 is the same for every arm."""

    arm: str
    round: Annotated[int, Field(ge=0)]


class Question(Section):
    """A prompt, whom it is for, and how the answers are decoded: greedily once, and `samples` times by sampling."""

    prompt: Annotated[str, Field(min_length=1, max_length=4000)]
    checkpoints: Annotated[tuple[Checkpoint, ...], Field(min_length=1, max_length=2)]
    samples: Annotated[int, Field(ge=0, le=8)] = 1
    max_new_tokens: Annotated[int, Field(ge=1, le=1024)] = 64
    temperature: Annotated[float, Field(gt=0, le=5)] = 0.8
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    top_k: Annotated[int, Field(ge=0, le=1000)] = 0
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0


def question(run: Run, **values: Any) -> Question:
    """A question to a run; what `values` leaves out comes from the run's settings. Raises UserError with a sentence per wrong field."""
    config = run.config
    own = {name: getattr(config.generate, name) for name in ("temperature", "top_p", "top_k")}
    asked = validate(Question, {"max_new_tokens": config.eval.probe_tokens, **own, **values}, "docs/ask.md")
    if not asked.prompt.strip():
        raise UserError("prompt is blank; write one.")
    return asked


# checkpoints ------------------------------------------------------------------------------------------------------------


def absent(run: Run, arm: str, round_: int) -> str | None:
    """Why a checkpoint cannot be asked; None where its weights are there (round 0: of `shared`, or any arm)."""
    if round_ and not ARMS[arm].trains:
        return "never trained: the model of round 0 in every round"
    weights = _weights(run, arm, round_)
    if weights is None:
        return None
    if run.recorded:
        return "a run that ships with the project has no weights; launch its settings to make your own"
    if weights.done is None:
        return "not trained yet"
    entry = weights.done["files"].get(WEIGHTS, {})
    if entry.get("pruned"):
        return f"weights deleted: keep = {run.config.keep} keeps those {KEEPS[run.config.keep]}"
    path = weights.file(WEIGHTS)
    return None if path.is_file() and path.stat().st_size == entry.get("bytes") else "weights missing or damaged on the disk"


def checkpoints(run: Run) -> list[Checkpoint]:
    """Every checkpoint that can be asked: round 0 (arm `shared`), then arm by arm."""
    places = [(SHARED, 0), *((arm, round_) for arm in run.config.arms for round_ in range(1, run.config.rounds + 1))]
    return [Checkpoint(arm=arm, round=round_) for arm, round_ in places if absent(run, arm, round_) is None]


def missing(run: Run) -> list[tuple[str, list[int], str]]:
    """The others: arm, rounds and why, neighbouring rounds of one reason together."""
    found = []
    for arm in run.config.arms:
        reasons = [(round_, absent(run, arm, round_)) for round_ in range(1, run.config.rounds + 1)]
        for reason, group in groupby(reasons, key=lambda item: item[1]):
            if reason is not None:
                found.append((arm, [round_ for round_, _ in group], reason))
    start = absent(run, SHARED, 0)
    return ([(SHARED, [0], start)] if start else []) + found


def _weights(run: Run, arm: str, round_: int) -> Stage | None:
    """The stage that holds a checkpoint's weights; None: the base model as it is."""
    if round_:
        return run.stage(round_, arm, "train")
    return run.stage(0, SHARED, "train") if run.config.train.round0 == "finetune" else None


# jobs -------------------------------------------------------------------------------------------------------------------


class Job(Run):
    """A question's folder. As a run it has a state, a log and a stop request; its settings are those of the run that is asked."""

    @property
    def facts(self) -> dict[str, Any]:
        """What ask.json says; empty where it is unreadable."""
        return fitted(read_json(self.path / "ask.json"), FACTS)

    @property
    def config(self) -> RunConfig:
        """Settings of the run that is asked."""
        return parse(self.facts.get("config") or {})

    @property
    def threads(self) -> int:
        """As many as that run computes with."""
        return int(self.facts.get("threads") or 1)

    @property
    def question(self) -> Question:
        """What is asked. Raises UserError where the folder is damaged."""
        return validate(Question, self.facts.get("question") or {}, "docs/ask.md")

    @property
    def run_id(self) -> str:
        """The run that is asked."""
        return str(self.facts.get("run") or "")

    @property
    def answers_path(self) -> Path:
        """answers.json."""
        return self.path / "answers.json"

    @property
    def answers(self) -> list[dict[str, Any]]:
        """ANSWERS so far: arm, round, mode (greedy or sampled), draw, text, tokens, ended, mean log-probability in nats, loop."""
        value = read_json(self.answers_path)
        return list(filter(_is_answer, value)) if isinstance(value, list) else []

    @property
    def readable(self) -> bool:
        """Whether the folder says what was asked."""
        try:
            return bool(self.question)
        except UserError:
            return False

    def weights(self, index: int) -> Path | None:
        """The weights of the question's checkpoint number `index`; None: the base model. Raises UserError where they are gone."""
        sources = self.facts.get("weights") or []
        if index >= len(sources):
            raise UserError(f"{self.id} does not say where its weights lie; ask again.")
        source = sources[index]
        if source is None:
            return None
        for path in (self.path / f"weights-{index}.safetensors", Path(source)):
            if path.is_file():
                return path
        place = self.question.checkpoints[index]
        raise UserError(
            f"the weights of round {place.round} of {place.arm} were deleted before the question's turn came; ask a newer round."
        )

    def linked_weights(self) -> list[Path]:
        """The links to weights."""
        return sorted(self.path.glob("weights-*.safetensors"))

    def unlink_weights(self) -> None:
        """Remove the links to weights."""
        for path in self.linked_weights():
            path.unlink(missing_ok=True)


def jobs_root() -> Path:
    """Where questions live: hidden below the runs, so that none of them is taken for a run."""
    return runs_root() / ".jobs"


def _is_answer(row: Any) -> bool:
    """Whether a row of answers.json has the fields of ANSWERS."""
    if not isinstance(row, dict) or row.keys() != set(ANSWERS):
        return False
    texts, counts = (
        all(is_text(row[name]) for name in ("arm", "mode", "text")),
        all(is_count(row[name]) for name in ("round", "draw", "tokens")),
    )
    flags = all(isinstance(row[name], bool) for name in ("ended", "loop"))
    return texts and counts and flags and (row["logprob"] is None or is_number(row["logprob"]))


def is_job(path: Path) -> bool:
    """Whether a folder is a question's."""
    return (path / "ask.json").is_file()


def jobs(run: Run | None = None) -> list[Job]:
    """The questions to a run (None: to any), newest first; of a run only those that can be read."""
    paths = sorted(jobs_root().glob("question-*/ask.json"), reverse=True)
    found = [Job(path.parent) for path in paths]
    return [job for job in found if run is None or (job.run_id == run.id and job.readable)]


def create(run: Run, asked: Question) -> Job:
    """Make a question's folder, queued. Raises UserError where a checkpoint or the model is not there, or another question is at work."""
    for place in asked.checkpoints:
        _refuse_absent(run, place)
    if run.config.engine == "hf":
        models.check(run.config.model)
    jobs_root().mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    with FileLock(jobs_root() / "lock"):
        _sweep()
        busy = next((job for job in jobs() if launch.state(job) in launch.ALIVE), None)
        if busy:
            raise UserError(f"{busy.id} is {launch.state(busy)} and one question is answered at a time; wait for it, or cancel it.")
        job = Job(jobs_root() / f"question-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}")
        job.path.mkdir()
        sources = [_weights(run, place.arm, place.round) for place in asked.checkpoints]
        files = [stage.file(WEIGHTS) if stage else None for stage in sources]
        for index, file in enumerate(files):
            if file:
                with suppress(OSError):  # without links the run's own file is read
                    os.link(file, job.path / f"weights-{index}.safetensors")
        facts = {"run": run.id, "threads": run.threads, "weights": [str(file) if file else None for file in files]}
        plain = {"question": asked.model_dump(mode="json"), "config": run.config.model_dump(mode="json")}
        write_json(job.path / "ask.json", {**facts, **plain, "asked": datetime.now(UTC).isoformat(timespec="seconds")})
        launch.queue(job)
    return job


def forget(job: Job) -> None:
    """Delete a question and its answers. Raises UserError while it is at work."""
    if launch.state(job) in launch.ALIVE:
        raise UserError(f"{job.id} is {launch.state(job)}; cancel it before you delete it.")
    shutil.rmtree(job.path, ignore_errors=True)


def _refuse_absent(run: Run, place: Checkpoint) -> None:
    known = (SHARED, *run.config.arms) if place.round == 0 else run.config.arms
    if place.arm not in known:
        raise UserError(f"arm = {place.arm!r} is not in run {run.id!r}; it has: {', '.join(run.config.arms)}.")
    reason = absent(run, place.arm, place.round) if place.round <= run.config.rounds else f"the run has {run.config.rounds} rounds"
    if reason:
        there = ", ".join(f"{one.arm} {one.round}" if one.round else "round 0" for one in checkpoints(run))
        raise UserError(f"round = {place.round} of arm {place.arm!r} cannot be asked: {reason}. There are: {there or 'none'}.")


def _sweep() -> None:
    """Delete all but the newest questions, and what killed processes left."""
    for path in jobs_root().glob("question-*"):
        if not is_job(path):
            shutil.rmtree(path, ignore_errors=True)
    over = [job for job in jobs() if launch.state(job) not in launch.ALIVE]
    for job in over[KEPT - 1 :]:
        shutil.rmtree(job.path, ignore_errors=True)
    for job in over[: KEPT - 1]:
        job.unlink_weights()
