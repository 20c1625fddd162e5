"""Center and edge inside each cluster (method, step 5)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dces_core.stages.cluster import NOISE
from dces_core.stages.groups import position_within

CENTER = "center"
EDGE = "edge"
Roles = NDArray[np.str_]


def split(
    labels: NDArray[np.int32], distance: NDArray[Any], logprob: NDArray[Any], weight: float, center_share: float
) -> tuple[NDArray[np.float64], Roles]:
    """Centrality (n,) in [0, 1] and role (n,) of n clustered samples.

    Inside a cluster samples are ranked from 0 to 1 by closeness to the centroid and by mean log-probability;
    centrality = weight * rank of closeness + (1 - weight) * rank of log-probability. The upper `center_share`, rounded
    and at least one sample, is center, the rest edge. Ties go to the earlier sample; an undefined log-probability ranks
    last. Noise is edge and its centrality is NaN.
    """
    size = np.bincount(labels[labels != NOISE], minlength=1)[np.maximum(labels, 0)]
    noise = labels == NOISE
    last = np.maximum(size - 1, 1)
    closeness = 1.0 - position_within(labels, np.asarray(distance, np.float64)) / last
    confidence = 1.0 - position_within(labels, -np.asarray(logprob, np.float64)) / last
    centrality = weight * closeness + (1.0 - weight) * confidence
    centers = np.maximum(np.floor(center_share * size + 0.5), 1)
    is_center = (position_within(labels, -centrality) < centers) & ~noise
    return np.where(noise, np.nan, centrality), np.where(is_center, CENTER, EDGE)
