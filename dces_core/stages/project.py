"""The maps: every round in ONE two-dimensional frame, fitted once on real text and round 0's own pool, never again."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dces_core.events import Progress
from dces_core.lab import Lab
from dces_core.metrics.semantic import nearest_reference
from dces_core.records import table
from dces_core.seeds import seed_for
from dces_core.stage import Draft, Stage
from dces_core.stages.cluster import load_umap

Floats = NDArray[np.float32]
MARGIN = 0.05


class Frame:
    """UMAP fitted once per process; the same data and seed give the same frame after a restart."""

    def __init__(self, lab: Lab, pool: Stage) -> None:
        texts = pool.frame("pool")["text"].to_list()
        self.first = lab.encoder.embed(texts)
        self.real = lab.real_embeddings
        self._lab = lab
        self._reducer: Any = None
        self.fitted: Floats = np.zeros((0, 2), np.float32)

    def fit(self) -> Frame:
        """Fit on the real references, then the first pool."""
        if self._reducer is not None:
            return self
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # umap announces its own single thread at fit
            both = np.concatenate([self.real, self.first])
            settings, seed = self._lab.config.map, seed_for(self._lab.config.seed, 0, "map") % 2**32
            self._reducer = load_umap().UMAP(
                n_components=2, metric="cosine", n_neighbors=min(settings.neighbors, len(both) - 1), min_dist=settings.min_dist,
                random_state=seed, n_jobs=1,
            )  # fmt: skip
            self.fitted = np.asarray(self._reducer.fit_transform(both), np.float32)
        return self

    def transform(self, embeddings: Floats) -> Floats:
        """(n, 2) coordinates of (n, d) rows, whole rounds at a time; NaN for a zero row (an empty text has no direction)."""
        out = np.full((len(embeddings), 2), np.nan, np.float32)
        rows = np.flatnonzero(embeddings.any(axis=1))
        if len(rows):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                out[rows] = self.fit()._reducer.transform(embeddings[rows])
        return out


def write_frame(lab: Lab, frame: Frame, draft: Draft, progress: Progress) -> None:
    """The ground of every map and how it was made."""
    frame.fit()
    real = frame.fitted[: len(frame.real)]
    rows = [
        {"id": pair.id, "topic": pair.topic, "text": pair.reference, "x": float(x), "y": float(y)}
        for pair, (x, y) in zip(lab.train.pairs, real, strict=True)
    ]
    draft.table("frame", table("frame", rows))
    settings = lab.config.map
    draft.json(
        "frame",
        {
            "method": "UMAP",
            "parameters": {"n_neighbors": settings.neighbors, "min_dist": settings.min_dist, "metric": "cosine"},
            "fit_set": "real training references and the first pool",
            "n": len(frame.fitted),
            "seed": lab.config.seed,
            "encoder": lab.encoder.name,
            "x": _range(frame.fitted[:, 0]),
            "y": _range(frame.fitted[:, 1]),
        },
    )
    progress(1, 1)


def write_coords(lab: Lab, frame: Frame, select: Stage, round_: int, draft: Draft, progress: Progress) -> None:
    """Coordinates of one round of one arm, with the area they cover and their distance to real text."""
    embeddings = np.load(select.file("embeddings.npy"))
    same = round_ == 1 and np.array_equal(embeddings, frame.first)
    xy = frame.fit().fitted[len(frame.real) :] if same else frame.transform(embeddings)
    ids = select.frame("samples")["id"]
    coords = pl.DataFrame({"id": ids, "x": xy[:, 0], "y": xy[:, 1]}).with_columns(pl.col("x", "y").fill_nan(None))
    draft.table("coords", table("coords", coords))
    area, reason = hull_area(xy)
    near = nearest_reference(embeddings, frame.real)
    state = select.json("controller") or {}
    draft.json(
        "facts",
        {
            "hull_area": area,
            "hull_area_reason": reason,
            "dispersion": state.get("value") if state.get("signal") == "dispersion" else None,
            "nearest_reference": near.value,
            "nearest_reference_reason": near.reason,
            "n": len(xy),
        },
    )
    progress(1, 1)


def hull_area(xy: Floats) -> tuple[float | None, str | None]:
    """Area of the convex hull of (n, 2) points, or why it has none."""
    from scipy.spatial import ConvexHull, QhullError

    points = xy[np.isfinite(xy).all(axis=1)].astype(np.float64)
    if len(np.unique(points, axis=0)) < 3:
        return None, "fewer than 3 distinct points"
    try:
        return float(ConvexHull(points).volume), None
    except QhullError:
        return None, "the points lie on a line"


def _range(values: Floats) -> list[float]:
    low, high = float(values.min()), float(values.max())
    margin = MARGIN * max(high - low, 1e-6)
    return [low - margin, high + margin]
