from __future__ import annotations

import math

import pytest

from dces_core.ui import pace


@pytest.mark.parametrize(
    ("load", "cores", "now", "wanted"),
    [
        (0.0, 2, 1, 1),
        (0.06, 2, 1, 1),  # just fits
        (0.07, 2, 1, 2),
        (0.3, 2, 1, 8),  # five times too much
        (0.3, 16, 1, 1),
        (0.15, 2, 8, 8),  # four would be enough, and be full
        (0.12, 2, 8, 4),
        (0.01, 2, 8, 1),
        (0.0, 2, 64, 1),
    ],
)
def test_stretch(load: float, cores: int, now: int, wanted: int) -> None:
    assert pace.stretch(load, cores, now) == wanted


def test_beats_never_take_more_than_their_share_and_do_not_swing() -> None:
    for cores in (1, 2, 64):
        for step in range(200):
            load = 0.001 * 1.1**step
            grown = pace.stretch(load, cores)
            assert load / grown <= pace.SHARE * cores
            assert math.log2(grown).is_integer() and pace.stretch(load, cores, grown) == grown
            assert pace.stretch(0.9 * load, cores, grown) == grown, "a little less load changes nothing"


def test_a_crowd_is_counted_by_its_beats_and_forgotten_when_it_has_gone() -> None:
    clock = pace.Pace(cores=2)
    for viewer in range(100):
        clock.note(f"{viewer}/tick", 2.0, 0.02, 0.01 * viewer)
    assert clock.stretch == 64, "100 viewers x 0.02 s / 2 s x 2 is 33 times the room"
    clock.note("0/tick", 2.0, 0.02, 400.0)
    assert clock.stretch == 1


def test_a_crowd_that_comes_at_once_is_felt_before_its_first_beats() -> None:
    clock = pace.Pace(cores=2)
    clock.expect("0/tick", 2.0, 0.0)
    assert clock.stretch == 1, "what a beat costs is not known yet"
    clock.note("0/tick", 2.0, 0.02, 2.0)
    for viewer in range(1, 100):
        clock.expect(f"{viewer}/tick", 2.0, 2.0)
        clock.expect(f"{viewer}/tick", 2.0, 2.0)
    assert clock.stretch == 64


def test_a_page_that_is_drawn_anew_counts_for_the_beat_that_asked() -> None:
    clock = pace.Pace(cores=1)
    clock.note("a", 2.0, 0.01, 0.0)
    clock.add("a", 10.0)
    clock.add("unknown", 10.0)
    clock.note("a", 2.0, 0.01, 2.0)
    assert clock.stretch > 8
