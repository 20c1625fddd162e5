"""The core contour: the convex hull of a round's center samples, in NumPy alone (the web process loads no SciPy)."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import polars as pl
from numpy.typing import NDArray

from dces_core.ui import look

Floats = NDArray[np.float64]


def convex_hull(points: Floats) -> Floats:
    """Corners (m, 2) of the convex hull of (n, 2) points, counter-clockwise; none where the points span no area.

    Andrew's monotone chain (1979). Points that are not finite are left out.
    """
    known = np.unique(points[np.isfinite(points).all(axis=1)].astype(np.float64), axis=0)
    corners = np.array([*_chain(known), *_chain(known[::-1])]).reshape(-1, 2)
    return corners if len(corners) > 2 else corners[:0]


def _chain(points: Floats) -> list[Floats]:
    """One half of the hull of sorted points, without its last point."""
    chain: list[Floats] = []
    for point in points:
        while len(chain) > 1 and _turn(chain[-2], chain[-1], point) <= 0:
            chain.pop()
        chain.append(point)
    return chain[:-1]


def _turn(a: Floats, b: Floats, c: Floats) -> float:
    """Above 0: a, b, c turn left."""
    return float((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))


def area(corners: Floats) -> float | None:
    """Area inside the corners of `convex_hull`; None where there are none."""
    if not len(corners):
        return None
    (x, y), (u, v) = corners.T, np.roll(corners, -1, axis=0).T
    return float(np.sum(x * v - u * y) / 2)


def core(samples: pl.DataFrame) -> Floats:
    """The hull of the center samples among SAMPLES with x and y."""
    return convex_hull(samples.filter(role="center").select("x", "y").drop_nulls().to_numpy())


def draw(figure: go.Figure, corners: Floats, arm: str) -> None:
    """A faint outline in the arm's look, under its points."""
    if not len(corners):
        return
    style = look.look(arm)
    path = "M" + "L".join(f"{x:.6g},{y:.6g}" for x, y in corners) + "Z"
    line = {"color": style.colour, "width": 1.5, "dash": style.dash}
    figure.add_shape(type="path", path=path, line=line, opacity=0.5, layer="below", name="core")
