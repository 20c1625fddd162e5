from __future__ import annotations

import pytest

from dces_core.config import Gate
from dces_core.stages.gate import EMPTY, FEW_LETTERS, FEW_WORDS, LOOP, REPEATS, gate

GOOD = "Ice floats because it is less dense than water."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", EMPTY),
        (" \n\t", EMPTY),
        ("Yes, yes, YES!", FEW_WORDS),
        ("1.1.1.1.1.1.1.1.1.1.", FEW_WORDS),
        (GOOD + " It is cold. It is cold. It is cold. It is cold.", LOOP),
        ("one two three four five " * 4 + "and then it stops at last", REPEATS),
        ("1 + 2 = 3; 4 + 5 = 9; 6 + 7 = 13; 8 + 9 = 17 a b", FEW_LETTERS),
        (GOOD, None),
        ("Warum schwimmt Eis auf dem Wasser? Es ist leichter.", None),
        ("Почему лёд плавает на воде зимой?", None),
    ],
)
def test_reason(text: str, reason: str | None) -> None:
    assert gate([text], Gate()) == [reason]


def test_settings_decide() -> None:
    lenient = Gate(min_words=0, max_rep_4=1.0, min_letters=0.0)
    assert gate(["Yes, yes, YES!", "1 + 2 = 3"], lenient) == [None, None]
    assert gate([GOOD], Gate(min_words=20)) == [FEW_WORDS]
    assert gate(["Yes, yes, YES!"], Gate(min_words=2)) == [FEW_WORDS], "case makes no new word"
