"""Maps of more samples than are drawn as points: a shade of all of them behind, and a lasso that takes them all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl
from numpy.typing import NDArray

from dces_core.ui import look

CELLS = 320  # of the shade, along each axis
FAINTEST, DARKEST = 60, 150  # opacity of a cell with one sample and of the fullest one, of 255


def shade(figure: go.Figure, samples: pl.DataFrame) -> None:
    """Put all samples behind a map's points: a cell has the mean colour of its samples, and more opacity the more they are.

    The map's axes must have their ranges. It is one picture: a browser moves it at no cost per sample.
    """
    from PIL import Image

    (left, right), (bottom, top) = figure.layout.xaxis.range, figure.layout.yaxis.range
    column = (samples["x"].to_numpy() - left) / (right - left) * CELLS
    row = (top - samples["y"].to_numpy()) / (top - bottom) * CELLS
    within = (column >= 0) & (column < CELLS) & (row >= 0) & (row < CELLS)
    cell = row[within].astype(np.int64) * CELLS + column[within].astype(np.int64)
    count = np.bincount(cell, minlength=CELLS**2)
    sums = [np.bincount(cell, weights, CELLS**2) for weights in _tints(samples["cluster"])[within].T]
    share = np.log1p(count) / np.log1p(max(1, count.max()))
    opacity = np.where(count > 0, FAINTEST + (DARKEST - FAINTEST) * share, 0)
    pixels = np.stack([*(total / np.maximum(count, 1) for total in sums), opacity], axis=1).reshape(CELLS, CELLS, 4)
    place = {"xref": "x", "yref": "y", "x": left, "y": top, "sizex": right - left, "sizey": top - bottom, "sizing": "stretch"}
    figure.add_layout_image(source=Image.fromarray(pixels.astype(np.uint8)), layer="below", name="all samples", **place)


def _tints(clusters: pl.Series) -> NDArray[np.float64]:
    """Red, green and blue (n, 3) of each sample."""
    from PIL import ImageColor

    known, steps = np.unique(clusters.fill_null(-1).to_numpy(), return_inverse=True)
    return np.array([ImageColor.getrgb(look.hue(cluster))[:3] for cluster in known.tolist()], dtype=np.float64)[steps]


def taken(selection: Mapping[str, Any], samples: pl.DataFrame) -> set[int]:
    """`row` of what a selection on a map takes: its points, and all samples in its boxes and lassos, drawn as points or not."""
    rows: set[int] = set()
    for point in selection["points"]:
        match point.get("customdata"):
            case int(row) | [int(row), *_]:
                rows.add(row)
    x, y = samples["x"].to_numpy(), samples["y"].to_numpy()
    inside = np.zeros(samples.height, dtype=bool)
    for box in selection.get("box", ()):
        inside |= (x >= min(box["x"])) & (x <= max(box["x"])) & (y >= min(box["y"])) & (y <= max(box["y"]))
    for lasso in selection.get("lasso", ()):
        inside |= _in_polygon(x, y, np.array(lasso["x"], dtype=np.float64), np.array(lasso["y"], dtype=np.float64))
    return rows | set(samples["row"].to_numpy()[inside].tolist())


def _in_polygon(x: NDArray[np.float64], y: NDArray[np.float64], xs: NDArray[np.float64], ys: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Even-odd rule: a ray to the right of a point inside crosses an odd number of sides."""
    odd = np.zeros(len(x), dtype=bool)
    for x0, y0, x1, y1 in zip(xs, ys, np.roll(xs, -1), np.roll(ys, -1), strict=True):
        if y0 != y1:
            odd ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    return odd
