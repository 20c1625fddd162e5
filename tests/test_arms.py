from __future__ import annotations

from typing import get_args

import pytest

from dces_core.arms import ARMS
from dces_core.config import ArmName, Generate, Train, parse
from dces_core.errors import UserError


def test_every_arm_of_the_settings_has_one_row() -> None:
    assert set(ARMS) == set(get_args(ArmName))
    assert all(arm.name == name and arm.title.endswith(".") for name, arm in ARMS.items())


def test_random_differs_from_plain_by_the_draw_alone() -> None:
    plain, again = vars(ARMS["plain"]), vars(ARMS["random"])
    assert {key for key in plain if plain[key] != again[key]} == {"name", "title", "draw"}


def test_an_ablation_differs_from_dces_in_one_thing() -> None:
    dces = vars(ARMS["dces"])
    changes = {"dces-targets": "edit", "dces-no-edit": "edit", "dces-static": "dynamic", "dces-no-filter": "filter", "dces-no-gate": "gate"}
    for name, change in changes.items():
        arm = vars(ARMS[name])
        assert {key for key in arm if arm[key] != dces[key]} - {"name", "title", "source"} == {change}


def test_a_control_differs_from_plain_in_one_thing() -> None:
    plain = vars(ARMS["plain"])
    changes = {
        "ppl-low": "select", "ppl-high": "select", "ppl-band": "select", "semdedup": "select",
        "plain-t1": "decode", "plain-tctl": "decode", "tce": "truncates", "real10": "real",
    }  # fmt: skip
    for name, change in changes.items():
        arm = vars(ARMS[name])
        assert {key for key in arm if arm[key] != plain[key]} - {"name", "title", "source"} == {change}


def test_reference_rows_are_never_ranked() -> None:
    assert [name for name, arm in ARMS.items() if not arm.ranked] == ["frozen", "real"]
    assert [name for name, arm in ARMS.items() if not arm.trains] == ["frozen"]
    assert ARMS["frozen"].select == ARMS["real"].select == "none"


def test_decoding_of_the_pool() -> None:
    recipe = Generate(decoding="greedy", temperature=0.7, top_p=0.8, top_k=5, max_new_tokens=9)
    assert ARMS["dces"].decoding(recipe, 1.3) == recipe == ARMS["plain-tctl"].decoding(recipe, None)
    free = ARMS["plain-t1"].decoding(recipe, None)
    assert (free.decoding, free.temperature, free.top_p, free.top_k, free.max_new_tokens) == ("sample", 1.0, 1.0, 0, 9)
    moved = ARMS["plain-tctl"].decoding(recipe, 1.3)
    assert (moved.temperature, moved.top_p, moved.top_k) == (1.3, 0.8, 5)
    assert [name for name, arm in ARMS.items() if not arm.shares_pool] == ["plain-t1"]


def test_what_has_no_temperature_is_refused() -> None:
    with pytest.raises(UserError, match=r"generate\.decoding = 'beam' has no temperature for arm plain-tctl to move; use 'sample'\."):
        parse({"arms": ["plain-tctl"], "generate": {"decoding": "beam"}})


def test_only_tce_changes_the_loss() -> None:
    assert [name for name, arm in ARMS.items() if arm.training(Train()) != Train()] == ["tce"]
    assert (ARMS["tce"].training(Train(tce_gamma=0.9)).loss, Train().tce_gamma) == ("truncated", 0.99)


def test_real_pairs_of_arm_and_regime() -> None:
    counts = {
        (name, regime): ARMS[name].real_pairs(Train(regime=regime, real_share=0.25), 40)
        for name in ("plain", "real10", "real")
        for regime in ("replace", "fixed-real", "fresh-real")
    }
    assert [counts["plain", regime] for regime in ("replace", "fixed-real", "fresh-real")] == [(0, 0), (10, 0), (0, 10)]
    assert [counts["real10", regime] for regime in ("replace", "fixed-real", "fresh-real")] == [(0, 4), (10, 4), (0, 14)]
    assert {counts["real", regime] for regime in ("replace", "fixed-real", "fresh-real")} == {(0, 40)}
