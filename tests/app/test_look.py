from __future__ import annotations

from typing import get_args

from dces_core.config import ArmName
from dces_core.ui.look import LOOKS, SVG_DASH, SVG_MARKER, UNKNOWN


def test_every_arm_has_a_look_of_its_own_beyond_its_colour() -> None:
    assert set(LOOKS) == set(get_args(ArmName))
    looks = [*LOOKS.values(), UNKNOWN]
    assert len({(look.dash, look.marker) for look in looks}) == len({look.light for look in looks}) == len(looks)
    assert {look.dash for look in looks} <= set(SVG_DASH) and {look.marker for look in looks} <= set(SVG_MARKER)
