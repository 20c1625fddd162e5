"""The loop. Read this first: what a round is, in the order in which it happens.

Arms advance round by round (plain 1, dces 1, plain 2, ...), so that a comparison appears at once. Every stage is written whole or not
at all and depends on its inputs and on (seed, round, stage) only: an interrupted run goes on where it stopped and ends the same.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

from dces_core.arms import ARMS, Arm
from dces_core.config import RunConfig, Train
from dces_core.events import Events, Progress
from dces_core.lab import Lab
from dces_core.retention import kept_rounds
from dces_core.stage import Draft, Stage
from dces_core.stages.curate import training_data, write_reference, write_selection
from dces_core.stages.evaluate import repeat_evaluation, write_evaluation
from dces_core.stages.generate import write_pool
from dces_core.stages.project import Frame, write_coords, write_frame
from dces_core.store import SHARED, WEIGHTS, Run


def advance(run: Run, events: Events) -> None:
    """Do what is missing of a run. Raises UserError, RunFailed or Stopped; finished stages stay."""
    run.sweep()
    lab = Lab(run, events)
    arms = [ARMS[name] for name in lab.config.arms]
    events.plan(remaining(run))
    start, first = round_zero(lab)
    pool = write_first_pool(lab, start)
    frame = Frame(lab, pool) if lab.config.map.on else None
    reference = lab.do(1, SHARED, "reference", [pool], lambda draft, progress: write_reference(lab, pool, draft, progress))
    if frame:
        lab.do(1, SHARED, "map", [pool], lambda draft, progress: write_frame(lab, frame, draft, progress))
    for round_ in range(1, lab.config.rounds + 1):
        for arm in arms:
            one_round(lab, arm, round_, start, first, pool, reference, frame)


def round_zero(lab: Lab) -> tuple[Stage | None, Stage]:
    """M_0 (None: the base model as it is) and its evaluation, shared by all arms."""
    start = None
    if lab.config.train.round0 == "finetune":
        start = lab.do(0, SHARED, "train", [], partial(write_weights, lab, None, 0, [], lab.config.train.at_round0()))
    lab.load(start)
    lab.freeze(start)

    def evaluate(draft: Draft, progress: Progress) -> None:
        lab.load(start)
        write_evaluation(lab, SHARED, 0, None, None, draft, progress)

    return start, lab.do(0, SHARED, "evaluate", [start] if start else [], evaluate)


def write_first_pool(lab: Lab, start: Stage | None) -> Stage:
    """Round 1's pool comes from M_0: one for all arms."""

    def generate(draft: Draft, progress: Progress) -> None:
        lab.load(start)
        write_pool(lab, 1, lab.config.generate, draft, progress)

    return lab.do(1, SHARED, "generate", [start] if start else [], generate)


def one_round(
    lab: Lab, arm: Arm, round_: int, start: Stage | None, first: Stage, first_pool: Stage, reference: Stage, frame: Frame | None
) -> None:
    """One round of one arm: generate, select, train, evaluate, map."""
    run, name = lab.run, arm.name
    before = run.stage(round_ - 1, name, "train") if arm.trains and round_ > 1 else start
    chain = [before] if before else []
    last = run.stage(round_ - 1, name, "select") if round_ > 1 else None
    previous = last.json("controller") if last else None
    steered = [last] if last and arm.decode == "controlled" else []

    def generate(draft: Draft, progress: Progress) -> None:
        lab.load(before)
        settings = arm.decoding(lab.config.generate, (previous or {}).get("sampling_temperature"))
        write_pool(lab, round_, settings, draft, progress)

    pool = first_pool if round_ == 1 and arm.shares_pool else lab.do(round_, name, "generate", [*chain, *steered], generate)

    def choose(draft: Draft, progress: Progress) -> None:
        lab.load(before)
        write_selection(lab, arm, round_, pool, reference, previous, draft, progress)

    select = lab.do(round_, name, "select", [pool, reference, *chain, *([last] if last else [])], choose)
    if frame:
        lab.do(round_, name, "map", [select], lambda draft, progress: write_coords(lab, frame, select, round_, draft, progress))
    if not arm.trains:
        lab.do(round_, name, "evaluate", [first], lambda draft, progress: repeat_evaluation(lab, name, round_, first, draft))
        return
    selections = [run.stage(r, name, "select") for r in range(1, round_ + 1)]
    origin = before if lab.config.train.init == "previous" else None
    fit = partial(write_weights, lab, origin, round_, selections, arm.training(lab.config.train))
    weights = lab.do(round_, name, "train", [*selections, *chain], fit)

    def evaluate(draft: Draft, progress: Progress) -> None:
        lab.load(weights)
        write_evaluation(lab, name, round_, first, select, draft, progress)

    lab.do(round_, name, "evaluate", [weights, first], evaluate)
    forget(lab, name, round_)


def write_weights(
    lab: Lab, origin: Stage | None, round_: int, selections: list[Stage], settings: Train, draft: Draft, progress: Progress
) -> None:
    """Fine-tune `origin` (None: the base model) on a round's data; without selections, on the real training split."""
    engine = lab.load(origin)
    if selections:
        examples = training_data(lab, round_, selections)
    else:
        examples = [lab.training_example(lab.train, pair) for pair in lab.train.pairs]
    losses = lab.fit(examples, settings, round_, progress)
    engine.save(draft.file(WEIGHTS))
    tokens = sum(len(example.response) for example in examples)
    draft.json("loss", {"loss": losses, "examples": len(examples), "trained_tokens": tokens * settings.epochs})


def forget(lab: Lab, arm: str, round_: int) -> None:
    """Delete the weights that `keep` does not want, once the round after them is done (all earlier ones: some were made again)."""
    kept = kept_rounds(lab.run, arm, lab.config.keep, round_)
    for earlier in range(1, round_):
        if earlier not in kept:
            lab.run.prune(lab.run.stage(earlier, arm, "train"))


def planned(config: RunConfig) -> list[tuple[int, str, str]]:
    """Every stage of a run: round, arm, name."""
    mapped = ["map"] if config.map.on else []
    start = [(0, SHARED, "train")] if config.train.round0 == "finetune" else []
    found = [*start, (0, SHARED, "evaluate"), *((1, SHARED, name) for name in ("generate", "reference", *mapped))]
    for round_ in range(1, config.rounds + 1):
        for arm in (ARMS[name] for name in config.arms):
            names = ["select", "evaluate", *(["train"] if arm.trains else []), *mapped]
            if round_ > 1 or not arm.shares_pool:
                names.append("generate")
            found += [(round_, arm.name, name) for name in names]
    return found


def remaining(run: Run) -> Counter[str]:
    """How often each `arm/stage` is still to come, for the ETA."""
    return Counter(f"{arm}/{name}" for round_, arm, name in planned(run.config) if run.stage(round_, arm, name).done is None)
