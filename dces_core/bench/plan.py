"""How much a bench does. The defaults are what docs/performance.md describes; tests inject less."""

from __future__ import annotations

from dataclasses import dataclass

from dces_core import models


@dataclass(frozen=True)
class Plan:
    """Sizes of all benches."""

    model: str = models.DEFAULT
    precision: str = "bf16"  # of both sides
    recipe: str = "standard"
    changes: tuple[str, ...] = ()  # to the recipe, as `--set` takes them
    repeats: int = 3  # timed turns of each side
    batch: int = 32  # sequences of a generation bench
    new_tokens: int = 48
    pairs: int = 160  # of the training split, for train and score
    rounds: int = 4  # of the round bench; the first is left out
    seeds: int = 3  # of the two benches that compare rounds of dces and plain
    rows: int = 1_000_000  # of the selection bench
    dimensions: int = 384
    clusters: int = 256
    iterations: int = 25  # of scikit-learn's k-means, as many as ours may do
    growth: tuple[int, ...] = (10_000, 100_000, 1_000_000)  # samples: selection and text statistics
    maps: tuple[int, ...] = (1_000, 10_000, 100_000)  # samples: projection
    map_fit: int = 600  # rows that the map's frame is fitted on
    scored: tuple[int, ...] = (100, 400, 1_600)  # responses: evaluation
    ui_arms: int = 10  # of the run that the dashboard is measured on
    ui_rounds: int = 10
    ui_samples: int = 2_000  # of each arm and round
    ui_ticks: int = 50  # of each page
    ui_points: tuple[int, ...] = (5_000, 50_000)  # samples of the maps that are zoomed
    ui_zooms: int = 10
