"""The flow of a round and the loop's figures: counts add up, undefined has a reason, no text is markup."""

from __future__ import annotations

from collections import Counter

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from make_run import HOSTILE

from dces_core.config import Controller
from dces_core.records import table
from dces_core.ui import flow

FATES = (
    ("picked", None),
    ("over quota", "the quota was full"),
    ("rejected", "ends in a loop"),
    ("rejected", None),
    ("rejected", HOSTILE[4]),
)


def frame(rows: list[tuple[str | None, str, str | None, int | None]]) -> pl.DataFrame:
    """SAMPLES of (role, fate, reason, changed)."""
    return table("samples", [dict(zip(("role", "fate", "reason", "changed"), row, strict=True)) for row in rows])


SAMPLES = some.lists(
    some.tuples(some.sampled_from(["center", "edge", None]), some.sampled_from(FATES), some.sampled_from([None, 0, 3])), max_size=60
)


@settings(deadline=None, max_examples=60)
@given(SAMPLES)
def test_every_sample_leaves_the_pool_once_and_ends_once(drawn: list[tuple[str | None, tuple[str, str | None], int | None]]) -> None:
    found = flow.links(frame([(role, fate, reason, changed) for role, (fate, reason), changed in drawn]))
    into, out = Counter[str](), Counter[str]()
    for link in found:
        assert link.count > 0
        out[link.source] += link.count
        into[link.target] += link.count
    assert out[flow.POOL] == len(drawn) and into[flow.POOL] == 0
    assert sum(into[node] for node in {*into} - {*out}) == len(drawn)
    assert all(into[node] == out[node] for node in {*into} & {*out})
    assert into[flow.TRAINED] == sum(fate == "picked" for _, (fate, _), _ in drawn)
    assert len({(link.source, link.target) for link in found}) == len(found)


def test_links_name_roles_fates_and_reasons() -> None:
    rows = [("center", "picked", None, 2), ("center", "picked", None, 0), ("edge", "picked", None, None), (None, "picked", None, None)]
    rows += [("center", "over quota", "not drawn", None), ("edge", "rejected", "implausible", None), (None, "rejected", "empty", None)]
    found = {(link.source, link.target): link.count for link in flow.links(frame([*rows, *rows]))}
    assert found == {
        ("pool", "center"): 6, ("pool", "edge"): 4, ("pool", "rejected by the gate"): 4,
        ("center", "edited"): 2, ("center", "picked as it is"): 2, ("center", "over quota: not drawn"): 2,
        ("edge", "picked as it is"): 2, ("edge", "filter: implausible"): 2,
        ("rejected by the gate", "picked as it is"): 2, ("rejected by the gate", "gate: empty"): 2,
        ("edited", "trained"): 2, ("picked as it is", "trained"): 6,
    }  # fmt: skip
    assert flow.links(frame([])) == []


@settings(deadline=None, max_examples=60)
@given(SAMPLES.filter(len))
def test_nodes_of_a_column_never_overlap(drawn: list[tuple[str | None, tuple[str, str | None], int | None]]) -> None:
    passing = flow.totals(flow.links(frame([(role, fate, reason, changed) for role, (fate, reason), changed in drawn])))
    points = flow.centres(passing)
    height, unit = flow.height_px(passing), flow.POOL_PX / passing[flow.POOL]
    ends = []
    for x in flow.COLUMNS:
        end = -float(flow.GAP_PX)
        for node in (node for node in passing if points[node][0] == x):
            assert points[node][1] * height - unit * passing[node] / 2 == pytest.approx(end + flow.GAP_PX)
            end = points[node][1] * height + unit * passing[node] / 2
        ends.append(end)
    assert max(ends) == pytest.approx(height)


@pytest.mark.parametrize("reason", HOSTILE)
def test_reasons_in_a_figure_are_no_markup(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dces_core.ui.look.is_dark", lambda: False)
    trace = flow.sankey(flow.links(frame([("edge", "rejected", reason, None), ("edge", "picked", None, None)])), "dces").data[0]
    words = "".join([*trace.node.label, *trace.link.customdata]).replace("<br>", "")
    assert "<" not in words
    assert list(trace.link.value) == [2, 1, 1, 1]


PLAIN = {"value": 0.6, "setpoint": 0.7, "sd": 0.1, "error": 1.0, "edge_share": None, "reason": "this arm picks at random",
         "edit_temperature": None, "edit_reason": "this arm does not edit", "changed": None, "edited_tokens": None,
         "picked_samples": 80, "edited_samples": 0}  # fmt: skip
DCES = {**PLAIN, "edge_share": 0.5, "reason": None, "edit_temperature": 1.6, "edit_reason": None, "changed": 61, "edited_tokens": 610,
        "edited_samples": 20}  # fmt: skip


def test_quantities_are_values_or_reasons() -> None:
    assert flow.quantities(DCES) == {
        "value": (0.6, None), "error": (1.0, None), "edge_share": (0.5, None), "edited_samples": (0.25, None),
        "changed_tokens": (0.1, None), "edit_temperature": (1.6, None),
    }  # fmt: skip
    plain = flow.quantities(PLAIN)
    assert plain["edge_share"] == (None, "this arm picks at random")
    assert plain["edited_samples"] == plain["changed_tokens"] == plain["edit_temperature"] == (None, "this arm does not edit")
    assert flow.quantities({**DCES, "changed": 0, "edited_tokens": 0})["changed_tokens"] == (None, "no token was up for editing")
    assert flow.quantities({**DCES, "picked_samples": 0})["edited_samples"] == (None, "no sample was picked")
    assert all(value is None and reason for value, reason in flow.quantities({}).values())


def test_undefined_names_the_rounds_unless_it_is_all_of_them() -> None:
    rows = flow.loop_rows({("plain", 1): PLAIN, ("plain", 2): PLAIN, ("dces", 1): DCES, ("dces", 2): {**DCES, "edge_share": None}})
    own = rows.filter(pl.col("quantity") == "edge_share")
    assert flow.undefined(own) == [("plain", "undefined: this arm picks at random"), ("dces", "undefined in round 2: not stored")]
    assert flow.undefined(rows.filter(pl.col("quantity") == "value")) == []


def test_what_was_controlled_is_said() -> None:
    assert flow.controlled(DCES) == "The loop set: edge share 0.5, editing temperature 1.6."
    assert flow.controlled(PLAIN) == (
        "Nothing is controlled; no edge share (this arm picks at random); no editing temperature (this arm does not edit)."
    )
    static = {**DCES, "reason": "dynamic is off", "edit_reason": "dynamic is off"}
    assert flow.controlled(static).startswith("Nothing is controlled; edge share fixed at 0.5 (dynamic is off); editing")
    tctl = {**PLAIN, "sampling_temperature": 0.8, "sampling_reason": None}
    assert flow.controlled(tctl).startswith("The loop set: sampling temperature 0.8; no edge share")


def test_a_panel_draws_its_lines_and_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dces_core.ui.look.is_dark", lambda: True)
    states: dict[tuple[str, int], flow.State] = {("plain", 1): PLAIN, ("dces", 1): DCES}
    rows, bounds = flow.loop_rows(states), Controller(a_min=0.1, a0=0.2, a_max=0.7)  # type: ignore[call-arg]
    draw = lambda name: flow.panel(  # noqa: E731
        name, rows.filter(pl.col("quantity") == name), ("plain", "dces"), 4, bounds, list(states.values())
    )
    edge = draw("edge_share")
    assert {trace.name: list(trace.y) for trace in edge.data} == {"plain": [None], "dces": [0.5]}
    assert sorted(shape.y0 for shape in edge.layout.shapes) == [0.1, 0.7]
    value = draw("value")
    assert sorted(y for shape in value.layout.shapes for y in (shape.y0, shape.y1)) == pytest.approx([0.6, 0.7, 0.7, 0.8])
    assert value.layout.title.text == "Dispersion of the pool"
