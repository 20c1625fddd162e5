"""A slice of the section `inputs` of docs/reliability.md."""

from __future__ import annotations

import pytest
from torture import inputs
from torture.goals import GOALS

from dces_core.bench.rows import goal_of


@pytest.mark.slow
def test_bad_input_ends_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row.name: row for row in inputs.measure(0.01)}
    said = capsys.readouterr().out
    for name in ("inputs-tracebacks", "inputs-hangs", "inputs-outside"):
        assert not goal_of(rows[name], GOALS).endswith("missed"), said
    assert (rows["inputs-cases"].ours or 0) > 1000
    assert (rows["inputs-fuzz-lines"].ours or 0) > 300
