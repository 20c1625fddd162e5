"""The quality filter of edge samples (method, step 7). A model's own probability never judges quality: the judge is M_0."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dces_core.stages.split import EDGE, Roles

IMPLAUSIBLE = "perplexity under M_0 above real text's"


def quality_limit(reference_logprob: NDArray[Any], percentile: float) -> float | None:
    """Mean log-probability (nats) whose perplexity is that percentile of real training references under the frozen M_0.

    None where no reference has one: then nothing can be rejected.
    """
    known = np.asarray(reference_logprob, np.float64)
    known = known[np.isfinite(known)]
    return float(np.percentile(known, 100.0 - percentile)) if len(known) else None


def reject_edges(role: Roles, frozen_logprob: NDArray[Any], limit: float | None) -> NDArray[np.bool_]:
    """(n,) edge samples whose mean log-probability under M_0 lies below `limit`; an undefined one is kept."""
    if limit is None:
        return np.zeros(len(role), np.bool_)
    edges: NDArray[np.bool_] = role == EDGE
    return edges & (np.asarray(frozen_logprob, np.float64) < limit)
