"""How time and memory grow with the number of samples: selection, text statistics, projection, evaluation."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl

from dces_core import data
from dces_core.bench import pools
from dces_core.bench.clock import PeakMemory
from dces_core.bench.plan import Plan
from dces_core.bench.rows import Row
from dces_core.config import parse
from dces_core.metrics import text
from dces_core.metrics.assemble import pool_budget
from dces_core.stages.select import select

Work = Callable[[], object]


def growth(plan: Plan) -> list[Row]:
    """All four, each at its sizes."""
    return [*_curve("select", plan.growth, lambda n: _selection(n, plan)), *_curve("text", plan.growth, _statistics),
            *_curve("project", plan.maps, _projection(plan)), *_evaluation(plan)]  # fmt: skip


def exponent(sizes: tuple[int, ...], values: list[float]) -> float | None:
    """The b of the least-squares fit of values = a * size^b; None with fewer than two sizes or a value that is not positive."""
    if len(sizes) < 2 or min(values) <= 0:
        return None
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def _curve(name: str, sizes: tuple[int, ...], prepare: Callable[[int], Work]) -> list[Row]:
    """Seconds and peak memory of the prepared work at each size, after an untimed turn at the smallest; and their exponents."""
    prepare(sizes[0])()
    measured = [_measure(prepare(size)) for size in sizes]
    seconds, memory = [found[0] for found in measured], [found[1] for found in measured]
    rows = [
        Row(f"growth-{name}-{size}", took, None, None, "s", size, f"peak {used / 1e6:,.0f} MB above its input")
        for size, took, used in zip(sizes, seconds, memory, strict=True)
    ]
    fits = {"time": exponent(sizes, seconds), "memory": exponent(sizes, memory)}
    return rows + [Row(f"growth-{name}-{what}", None, None, b, "", len(sizes), "ratio: the exponent") for what, b in fits.items()]


def _measure(work: Work) -> tuple[float, float]:
    """Seconds, and bytes above what was resident before."""
    with PeakMemory() as memory:
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
    return seconds, float(memory.above_bytes)


def _selection(n: int, plan: Plan) -> Work:
    given = pools.inputs(pools.clustered_rows(n, plan.dimensions), pools.pool(n), clusters=0)  # as many as a run would take
    return lambda: select(given)


def _statistics(n: int) -> Work:
    """Every statistic of generated text that an evaluation computes, self-BLEU on its fixed subsample."""
    texts, budget = pools.texts(n), pool_budget(n)
    counts = Counter(unit for pair in data.load_train(parse({})).pairs for unit in text.units(pair.reference))

    def work() -> None:
        text.entropy_unigram(texts, budget)
        for size in (1, 2, 3):
            text.distinct(texts, size, budget)
        text.compression_ratio(texts, budget)
        text.tail_coverage(texts, counts, budget)
        text.survival(texts, counts, budget)
        text.rep_4_mean(texts)
        text.loop_rate(texts)
        text.self_bleu(texts, 200)

    return work


def _projection(plan: Plan) -> Callable[[int], Work]:
    """Coordinates of n rows in one frame that is fitted before."""
    from dces_core.stages.project import Frame

    real, first = np.array_split(pools.clustered_rows(plan.map_fit, plan.dimensions), 2)
    lab: Any = SimpleNamespace(config=parse({}), real_embeddings=real, encoder=SimpleNamespace(embed=lambda texts: first))
    frame = Frame(lab, SimpleNamespace(frame=lambda name: {"text": pl.Series([""])}))  # type: ignore[arg-type]
    frame.fit()

    def prepare(n: int) -> Work:
        rows = pools.clustered_rows(n, plan.dimensions, seed=1)
        return lambda: frame.transform(rows)

    return prepare


def _evaluation(plan: Plan) -> list[Row]:
    """Teacher-forced scoring: tokens per second at each size, and the exponent of its memory, which should be flat."""
    from dces_core.bench import sides

    rows, memory = [], []
    with sides.open_lab(sides.settings(plan)) as lab:
        lab.engine.score(sides.examples(lab, plan.scored[0]))
        for size in plan.scored:
            examples = sides.examples(lab, size)
            tokens = sum(len(example.prompt) + len(example.response) for example in examples)
            seconds, used = _measure(lambda examples=examples: lab.engine.score(examples))  # type: ignore[misc]
            memory.append(used)
            note = f"{size} responses, peak {used / 1e6:,.0f} MB above its input"
            rows.append(Row(f"growth-evaluate-{size}", tokens / seconds, None, None, "tokens/s", tokens, note))
    return [*rows, Row("growth-evaluate-memory", None, None, exponent(plan.scored, memory), "", len(memory), "ratio: the exponent")]
