from __future__ import annotations

import pytest
from torture import disk
from torture.goals import GOALS

from dces_core.bench.rows import goal_of


@pytest.mark.slow
def test_a_slice_of_the_faults_and_damages() -> None:
    rows = {row.name: row for row in disk.measure(0.1)}
    assert {"disk-faults", "disk-wrong", "disk-damage", "disk-undetected", "disk-raised"} == set(rows)
    for name in ("disk-wrong", "disk-undetected", "disk-raised"):
        assert goal_of(rows[name], GOALS).endswith("met"), rows[name].note
