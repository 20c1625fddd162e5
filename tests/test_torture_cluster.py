from __future__ import annotations

import pytest
from torture import cluster
from torture.goals import GOALS

from dces_core.bench.rows import goal_of


@pytest.mark.slow
def test_a_study_goes_on_when_a_node_has_lost_its_power() -> None:
    reason = cluster.why_not()
    if reason:
        pytest.skip(reason)
    rows = {row.name: row for row in cluster.measure(0.1)}
    assert rows["cluster-kills"].ours == 1
    for name in ("cluster-moved", "cluster-different", "cluster-lost", "cluster-repeated", "cluster-strangers"):
        assert goal_of(rows[name], GOALS).endswith("met"), rows[name]
