from __future__ import annotations

import pytest
from torture import numbers
from torture.goals import GOALS

from dces_core import models
from dces_core.bench.rows import goal_of


@pytest.mark.slow
def test_every_bad_number_has_its_outcome() -> None:
    rows = {row.name: row for row in numbers.measure(0.1)}
    assert {"numbers-cases", "numbers-undefined", "numbers-oom-cases", "numbers-oom-undefined"} == set(rows)
    assert rows["numbers-cases"].n >= len(numbers.FAKE) + 2 * models.pulled()
    for name in ("numbers-undefined", "numbers-oom-undefined"):
        assert goal_of(rows[name], GOALS).endswith("met"), rows[name].note
