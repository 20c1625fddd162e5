from __future__ import annotations

from typing import get_args

from dces_core.arms import ARMS
from dces_core.config import ArmName


def test_every_arm_of_the_settings_has_one_row() -> None:
    assert set(ARMS) == set(get_args(ArmName))
    assert all(arm.name == name and arm.title.endswith(".") for name, arm in ARMS.items())


def test_random_differs_from_plain_by_the_draw_alone() -> None:
    plain, again = vars(ARMS["plain"]), vars(ARMS["random"])
    assert {key for key in plain if plain[key] != again[key]} == {"name", "title", "draw"}


def test_an_ablation_differs_from_dces_in_one_thing() -> None:
    dces = vars(ARMS["dces"])
    for name, change in {"dces-targets": "edit", "dces-no-edit": "edit", "dces-static": "dynamic"}.items():
        arm = vars(ARMS[name])
        assert {key for key in arm if arm[key] != dces[key]} - {"name", "title", "source"} == {change}


def test_frozen_never_trains() -> None:
    assert [name for name, arm in ARMS.items() if not arm.trains] == ["frozen"]
    assert ARMS["frozen"].select == "none"
