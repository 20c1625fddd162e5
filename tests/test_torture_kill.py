from __future__ import annotations

import pytest
from torture import kill
from torture.goals import GOALS

from dces_core.bench.rows import goal_of


@pytest.mark.slow
def test_a_slice_of_the_kills() -> None:
    rows = {row.name: row for row in kill.measure(0.05)}
    assert {"kill-fake", "kill-writes", "kill-tiny", "kill-different", "kill-states"} == set(rows)
    assert rows["kill-fake"].ours is not None and rows["kill-fake"].ours >= 5
    for name in ("kill-different", "kill-states"):
        assert goal_of(rows[name], GOALS).endswith("met"), rows[name].note
