from __future__ import annotations

import numpy as np
import pytest

from dces_core.stages.quality import quality_limit, reject_edges
from dces_core.stages.split import CENTER, EDGE


def test_the_limit_is_a_percentile_of_perplexity() -> None:
    logprob = -np.linspace(1, 3, 101)
    limit = quality_limit(logprob, 99.0)
    assert limit == pytest.approx(-2.98)
    assert np.exp(-limit) == pytest.approx(np.percentile(np.exp(-logprob), 99.0))


def test_no_reference_no_limit() -> None:
    assert quality_limit(np.array([np.nan]), 99.0) is None
    assert not reject_edges(np.array([EDGE]), np.array([-99.0]), None).any()


def test_only_edges_below_the_limit_go() -> None:
    role = np.array([CENTER, EDGE, EDGE, EDGE, "", EDGE])
    assert reject_edges(role, np.array([-9.0, -9.0, -1.0, -2.0, -9.0, np.nan]), -2.0).tolist() == [False, True, False, False, False, False]
