"""Conditions parse or are refused by name; a rule holds where its figures say so, and says why where it cannot be told."""

from __future__ import annotations

import operator
import tomllib
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dces_core import config, rules
from dces_core.errors import UserError
from dces_core.metrics.verdict import DEFINITIONS
from dces_core.records import METRICS
from dces_core.rules import Condition, History, Rule, evaluate

SECRET = "hunter2-token"


def rule(when: str, **more: Any) -> Rule:
    return rules.parse({"rule": [{"name": "r", "when": when, **more}]})[0]


def history(*values: float | None, metric: str = "loop_rate", arm: str = "plain", test_set: str = "", first: int = 0) -> History:
    rows = [
        {"arm": arm, "seed": 0, "round": first + i, "test_set": test_set, "metric": metric, "value": v, "reason": None if v else "gone"}
        for i, v in enumerate(values)
    ]
    found = History()
    found.add(pl.DataFrame(rows, schema=METRICS))
    return found


def rounds_of(one: Rule, past: History, rounds: int) -> list[int]:
    return [round_ for round_ in range(rounds) if evaluate(one, past, round_).hits]


@pytest.mark.parametrize(
    ("when", "condition"),
    [
        ("entropy_generated < 0.9 * round0", Condition("entropy_generated", "<", 0.9, "round0")),
        ("  loop_rate>0.02 ", Condition("loop_rate", ">", 0.02, "")),
        ("ppl >= 1.5e0*previous", Condition("ppl", ">=", 1.5, "previous")),
        ("ece_signed <= -.5", Condition("ece_signed", "<=", -0.5, "")),
        ("vendi < round0", Condition("vendi", "<", 1.0, "round0")),
    ],
)
def test_conditions(when: str, condition: Condition) -> None:
    assert rule(when).condition == condition


BAD: list[tuple[dict[str, Any], str]] = [
    ({"when": "loop_rate"}, "rule 'r', when = 'loop_rate' must be a metric"),
    ({"when": "loop_rate == 1"}, "must be a metric"),
    ({"when": "loops > 1"}, "'loops' is no metric"),
    ({"when": "distinct > 1"}, "did you mean: distinct_1, distinct_2"),
    ({"when": "loop_rate > round1"}, "the limit 'round1' must be a number"),
    ({"when": "loop_rate > 1e999"}, "the limit '1e999'"),
    ({"when": "loop_rate > nan"}, "the limit 'nan'"),
    ({"when": "loop_rate > 2 * 3"}, "the limit"),
    ({"when": "loop_rate > __import__('os')"}, "the limit"),
    ({"when": "x" * 300}, "rule.0.when"),
    ({"webhook": f"ftp://{SECRET}"}, "webhook must be http://"),
    ({"webhook": f"http://{SECRET}\nHost: x"}, "webhook must be http://"),
    ({"webhook": [f"http://{SECRET}"]}, "rule.0.webhook must be one text"),
    ({"webhook": f"http://a/{SECRET}{'x' * 5000}"}, "rule.0.webhook must be one text"),
    ({"command": SECRET}, "rule.0.command must be a list of texts"),
    ({"command": [SECRET, 1]}, "rule.0.command must be a list of texts"),
    ({"command": [f"{SECRET}\0"]}, "command has a null character"),
    ({"stop": True, "rollback": {"edit": {"share": 0.5}}}, "both stop and rollback"),
    ({"rollback": {}}, "rollback names no setting"),
    ({"stop": "perhaps"}, "rule.0.stop = 'perhaps'"),
    ({"notify": f"http://{SECRET}"}, "rule.0.notify is not a setting"),
    ({"name": "a b"}, "rule.0.name"),
]


@pytest.mark.parametrize(("changes", "words"), BAD)
def test_refusals_name_the_field_and_no_secret(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        rules.parse({"rule": [{"name": "r", "when": "loop_rate > 1", **changes}]})
    assert words in str(caught.value) and SECRET not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[rule]\nname = 'r'\nwebhook = 'http://hunter2-token'", "write [[rule]]"),
        ("[[rule]]\nname = 'r'\nwebhook = 'http://hunter2-token'", "rule.0.when is missing"),
        ("[[rule]]\nname='r'\nwhen='ppl > 1'\n[[rule]]\nname='r'\nwhen='ppl > 1'", "rule.name = 'r' is there twice"),
        ("", "rule"), ("x = ", "cannot be read as TOML"), ("\n".join(["[[rule]]"] * 101), "at most 100"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(text)
    with pytest.raises(UserError) as caught:
        rules.load(tmp_path / "rules.toml")
    assert words in str(caught.value) and SECRET not in str(caught.value)
    with pytest.raises(UserError, match="is not there"):
        rules.load(tmp_path / "nothing.toml")


@given(st.text(max_size=80))
def test_any_text_is_a_condition_or_a_sentence(text: str) -> None:
    try:
        found = rules.parse_condition(text, "when")
    except ValueError as error:
        assert str(error).startswith("when")
    else:
        assert found.comparison in text


@given(st.sampled_from(["<", "<=", ">", ">="]), st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(-9, 9))
def test_comparisons_are_those_of_numbers(sign: str, start: float, value: float, factor: float) -> None:
    own = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}[sign]
    found = evaluate(rule(f"loop_rate {sign} {factor!r} * round0"), history(start, value), 1)
    assert bool(found.hits) == own(value, factor * start)


def test_round_0_is_the_first_that_is_given_and_previous_the_one_before() -> None:
    past = history(1.0, 3.0, 2.9, 9.0, first=0)
    assert rounds_of(rule("loop_rate > 2 * round0"), past, 4) == [1, 2, 3]
    assert rounds_of(rule("loop_rate > 2 * previous"), past, 4) == [1, 3]
    assert rounds_of(rule("loop_rate >= 1"), past, 4) == [0, 1, 2, 3]
    late = history(1.0, 3.0, first=7)
    assert rounds_of(rule("loop_rate > 2 * round0"), late, 9) == [8]


def test_arms_and_test_sets_bind_and_unknown_figures_have_reasons() -> None:
    past = history(1.0, 5.0, metric="ppl", test_set="everyday")
    past.add(pl.DataFrame([{"arm": "dces", "round": 1, "test_set": "passages", "metric": "ppl", "value": 7.0}], schema=METRICS))
    assert {hit.arm for hit in evaluate(rule("ppl > 4"), past, 1).hits} == {"plain", "dces"}
    assert {hit.arm for hit in evaluate(rule("ppl > 4", arm="dces"), past, 1).hits} == {"dces"}
    assert {hit.test_set for hit in evaluate(rule("ppl > 4", test_set="everyday"), past, 1).hits} == {"everyday"}
    found = evaluate(rule("loop_rate > 2 * round0"), history(None, 3.0), 1)
    assert not found.hits and found.unknown == ("loop_rate of plain is unknown in round 0: gone",)
    assert rules.good_rounds(rule("loop_rate > 2"), history(1.0, None, 3.0), range(3)) == [0]


def test_a_hit_says_its_figures() -> None:
    past = history(2.0, 1.0, metric="ppl", test_set="everyday")
    (hit,) = evaluate(rule("ppl < 0.9 * round0"), past, 1).hits
    assert hit.text == "ppl of plain on everyday is 1 in round 1: < 0.9 * round0 = 1.8"


def test_the_shipped_rules_only_tell_and_have_the_thresholds_of_the_verdicts() -> None:
    shipped = {one.name: one for one in rules.load(rules.DEFAULT)}
    assert all(not one.actions for one in shipped.values())
    ratios = {name: one for name, one in DEFINITIONS.items() if one.change == "ratio"}
    assert shipped.keys() == {*ratios, "loops"}
    for name, one in ratios.items():
        sign = "<=" if one.falls else ">="
        assert shipped[name].condition == Condition(one.metric, sign, one.threshold, "round0")  # type: ignore[arg-type]


def test_the_page_shows_rules_that_work() -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "watch.md").read_text(encoding="utf-8")
    shown = rules.parse(tomllib.loads(text.split("```text\n")[1].split("```")[0]))
    assert [one.actions for one in shown] == [("command",), ("webhook",), ("rollback",)]
    assert config.parse(shown[2].rollback or {}).edit.share == 0.5
