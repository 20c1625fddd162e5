"""Every bench on a tiny model or few rows: what it measures, not how fast. The full table is `dces bench`'s business."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from dces_core import cli
from dces_core.bench import command, generation, growth, pools, rows, runs, selection, sides, training
from dces_core.bench.clock import PeakMemory, alternate
from dces_core.bench.plan import Plan
from dces_core.bench.rows import GOALS, Row
from dces_core.config import SHIPPED
from dces_core.errors import UserError

BRIEF = (
    "generate.max_new_tokens=5", "pool.n=4", "train.batch_size=4", "encoder.name=hash", "encoder.judge=hash",
    "cluster.clusterer=kmeans", "eval.pairs=2", "eval.passages=1", "eval.bertscore=off", "eval.vendi_n=0", "eval.probe_tokens=4",
    "map.on=false",
)  # fmt: skip


def small(**more: Any) -> Plan:
    values: dict[str, Any] = {
        "model": str(tiny.folder("llama")), "precision": "fp32", "changes": BRIEF, "repeats": 1, "batch": 3, "new_tokens": 4, "pairs": 6,
        "rounds": 2, "seeds": 2, "scored": (2, 4),
    }  # fmt: skip
    return Plan(**{**values, **more})


def few_pairs(folder: Path) -> Plan:
    """The runs' round zero scores the whole training split: here it has 30 pairs."""
    lines = (SHIPPED / "everyday" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "train.jsonl").write_text("\n".join(lines[:30]), encoding="utf-8")
    return small(changes=(*BRIEF, f"data.train={folder / 'train.jsonl'}"))


def check(found: list[Row]) -> dict[str, Row]:
    """What holds for every row that was measured."""
    for row in found:
        figures = [value for value in (row.ours, row.peer, row.ratio) if value is not None]
        assert figures and all(math.isfinite(value) for value in figures), row
        assert row.n > 0 and not row.note.startswith("skipped"), row
        assert row.peer is None or row.ratio is not None
    return {row.name: row for row in found}


# rows, files and the page -----------------------------------------------------------------------------------------------


def test_every_bench_is_there_and_every_goal_has_its_row() -> None:
    assert all(callable(command.function(name)) for name in command.BENCHES)
    named = {name for name in GOALS if any(name == bench or name.startswith(f"{bench}-") for bench in command.BENCHES)}
    assert named == set(GOALS)


def test_results_of_several_calls_come_together(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    rows.keep(out, [Row("train", 2.0, 1.0, 2.0, "tokens/s", 3), Row("round", 9.0, None, None, "s", 1)])
    rows.keep(out, [Row("train", 6.0, 2.0, 3.0, "tokens/s", 4)])
    found = {entry["name"]: entry for entry in rows.stored(out)}
    assert found.keys() == {"train", "round"} and found["train"]["ratio"] == 3.0
    assert found["round"]["measured"] and "cores" in found["round"]["machine"]
    out.write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(UserError, match="no file of bench results"):
        rows.keep(out, [])


def test_the_table_is_written_between_the_markers_and_nowhere_else(tmp_path: Path) -> None:
    out, page = tmp_path / "results.json", tmp_path / "page.md"
    page.write_text(f"before\n{rows.BEGIN}\nold\n{rows.END}\nafter\n", encoding="utf-8")
    with pytest.raises(UserError, match="has no results"):
        rows.write_page(page, out, list(command.BENCHES))
    rows.keep(out, [Row("train", 250.0, 100.0, 2.5, "tokens/s", 4, "a | b"), rows.skipped("generate-ct2", "not installed")])
    rows.keep(out, [Row("dces-overhead", 12.0, 10.0, 1.2, "s", 3), Row("select-1m-memory", 3.0, None, None, "GB", 1)])
    for _ in range(2):
        rows.write_page(page, out, list(command.BENCHES))
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"before\n{rows.BEGIN}\n| bench") and text.endswith(f".\n{rows.END}\nafter\n") and "old" not in text
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines] == ["generate-ct2", "train", "dces-overhead", "select-1m-memory"]
    assert "| 250 tokens/s | 100 tokens/s | 2.5 | ≥ 2.5: met | 4 | a / b |" in lines[1]
    assert "≥ 2.5: not measured" in lines[0] and "≤ 1.1: missed" in lines[2] and "≤ 6: met" in lines[3]
    page.write_text("no markers", encoding="utf-8")
    with pytest.raises(UserError, match="does not have the lines"):
        rows.write_page(page, out, [])


def test_the_performance_page_has_the_markers_and_names_every_bench() -> None:
    text = (Path(__file__).parent.parent / "docs" / "performance.md").read_text(encoding="utf-8")
    assert text.count(rows.BEGIN) == text.count(rows.END) == 1
    assert [name for name in command.BENCHES if f"`{name}`" not in text] == []


# the command ------------------------------------------------------------------------------------------------------------


def test_command_prints_one_bench_and_keeps_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "function", lambda name: lambda plan: [Row(name, 2.0, 1.0, 2.0, "tokens/s", 3, "note")])
    out = tmp_path / "results.json"
    assert cli.main(["bench", "train", "--format", "json", "--out", str(out)]) == 0
    expected = {"name": "train", "ours": 2.0, "peer": 1.0, "ratio": 2.0, "unit": "tokens/s", "n": 3, "note": "note"}
    assert json.loads(capsys.readouterr().out) == [expected]
    assert rows.stored(out)[0].items() >= expected.items()
    page = tmp_path / "page.md"
    page.write_text(f"{rows.BEGIN}\n{rows.END}", encoding="utf-8")
    assert cli.main(["bench", "--markdown", str(page), "--out", str(out)]) == 0
    assert "`train`" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such"], "choose from: generate-topp"),
        (["--markdown", "x.md"], "--out FILE"),
        (["train", "--markdown", "x", "--out", "y"], "no NAME"),
    ],
)
def test_command_refuses(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_several_benches_run_apart_and_one_that_fails_ends_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(line: list[str], **options: Any) -> Any:
        name = line[line.index("bench") + 1]
        text = json.dumps([{"name": name, "ours": 1.0, "peer": None, "ratio": None, "unit": "s", "n": 1, "note": ""}])
        return type("Done", (), {"returncode": name == "train", "stdout": text})

    monkeypatch.setattr(command.subprocess, "run", run)
    found = command.measure(["train", "score"], tmp_path / "out.json")
    assert [row.name for row in found] == ["train", "score"] == [entry["name"] for entry in rows.stored(tmp_path / "out.json")]
    assert found[0].note.startswith("skipped: it failed") and found[1].ours == 1.0


# the clock --------------------------------------------------------------------------------------------------------------


def test_sides_alternate_and_the_first_turn_does_not_count() -> None:
    order: list[tuple[str, int]] = []

    def side(name: str, units: int) -> Any:
        def work(repetition: int) -> int:
            order.append((name, repetition))
            time.sleep(0.001)
            return units * repetition

        return work

    pair = alternate(side("ours", 4), side("peer", 2), 3, lambda repetition: order.append(("prepare", repetition)))
    assert order == [(name, i) for i in range(4) for name in ("ours", "prepare", "peer")]
    assert pair.n == 4 + 8 + 12 and pair.ratio == pair.ours / pair.peer > 0


def test_peak_memory_sees_what_was_freed() -> None:
    with PeakMemory() as memory:
        block = np.ones(40_000_000 // 8)
        time.sleep(0.05)
        del block
    assert 35e6 < memory.above_bytes < memory.peak_bytes


def test_exponent_of_a_power() -> None:
    assert growth.exponent((10, 100, 1000), [2.0, 20.0, 200.0]) == pytest.approx(1)
    assert growth.exponent((10, 100), [3.0, 300.0]) == pytest.approx(2)
    assert growth.exponent((10,), [1.0]) is None and growth.exponent((1, 2), [0.0, 1.0]) is None


# model benches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["generate-topp", "generate-topk", "generate-greedy"])
def test_generation_has_equal_tokens_on_both_sides(name: str) -> None:
    found = check(command.one(name, small()))
    assert found[name].n == 3 * 4 and found[name].unit == "tokens/s"


def test_nothing_ends_a_response_on_either_side(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small()
    settings = generation.fixed(plan, decoding="greedy")
    with sides.open_lab(sides.settings(plan)) as lab:
        prompts = sides.prompts(lab, 3)
        loud = lab.engine.generate(prompts, settings, np.zeros((3, 4)))
        lab.engine._ends = [loud[0].ids[1]]  # type: ignore[attr-defined]
        lab.engine.end = loud[0].ids[1]
        stopping = generation._transformers(plan, lab, prompts, settings, 2, stop=True)
        assert stopping(1) == generation._ours(lab.engine, prompts, settings)(1) < 12
        assert generation._transformers(plan, lab, prompts, settings, 2, stop=False)(1) == 12
        assert generation._endless(lab.engine, prompts, settings)(1) == 12


def test_the_profile_adds_up_and_has_a_floor() -> None:
    found = check(command.one("generate-profile", small()))
    shares = [row.ratio or 0 for name, row in found.items() if not name.endswith("-floor")]
    assert sum(shares) == pytest.approx(1) and min(shares) > 0
    floor = found["generate-profile-floor"]
    assert floor.ours and floor.peer and 0 < floor.ours < floor.peer


def test_round_pool() -> None:
    assert 8 <= check(generation.pool(small()))["generate-round"].n <= 8 * 5


def test_ctranslate2() -> None:
    pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed: pip install -e .[bench]")
    row = check(generation.ctranslate2(small()))["generate-ct2"]
    assert row.n == 12 and "conversion" in row.note


def test_peers_that_are_absent_are_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for found in (generation.ctranslate2(Plan()), training.tuning(Plan())):
        assert found[0].ratio is None and found[0].note.startswith("skipped: ") and "pip install" in found[0].note


@pytest.mark.slow
def test_training_against_trl() -> None:
    pytest.importorskip("trl", reason="trl is not installed: pip install -e .[bench]")
    plan = small()
    with sides.open_lab(sides.settings(plan)) as lab:
        tokens = sum(len(pair.prompt) + len(pair.response) for pair in sides.examples(lab, 6))
    assert check(training.tuning(plan))["train"].n == tokens


def test_scoring_measures_speed_and_memory() -> None:
    assert check(training.scoring(small())).keys() == {"score", "score-memory"}


def test_the_plain_pass_computes_what_we_compute() -> None:
    plan = small()
    with sides.open_lab(sides.settings(plan)) as lab:
        pairs = sides.examples(lab, 5)
        logprob, entropy, correct = training.plain_scores(sides.peer_model(plan, torch.float32), pairs)
        ours = lab.engine.score(pairs)
    np.testing.assert_allclose(logprob.numpy(), ours.logprob, atol=1e-4)
    np.testing.assert_allclose(entropy.numpy(), ours.entropy, atol=1e-4)
    assert np.array_equal(correct.numpy(), ours.correct)


@pytest.mark.slow
def test_rounds_of_dces_against_rounds_of_plain(tmp_path: Path) -> None:
    plan = few_pairs(tmp_path)
    overhead, total = check(runs.overhead(plan))["dces-overhead"], check(runs.total(plan))["dces-total"]
    assert overhead.n == total.n == plan.seeds
    assert overhead.ratio == overhead.ours / overhead.peer  # type: ignore[operator]


@pytest.mark.slow
def test_stages_add_up_to_the_round(tmp_path: Path) -> None:
    found = check(runs.stages(few_pairs(tmp_path)))
    whole = found.pop("round")
    assert found.keys() == {f"round-{stage}" for stage in ("generate", "select", "train", "evaluate")}
    assert whole.ours == pytest.approx(sum(row.ours or 0 for row in found.values()))


# selection and growth ---------------------------------------------------------------------------------------------------


def test_synthetic_pool() -> None:
    found, frame = pools.clustered_rows(300, 16), pools.pool(300)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert frame["text"].n_unique() == frame.height == 300
    assert np.array_equal(found, pools.clustered_rows(300, 16))


def test_inertia_is_the_sum_of_squared_distances_to_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "PART", 70)
    found = pools.clustered_rows(200, 8)
    labels = np.random.default_rng(0).integers(0, 5, 200).astype(np.int32) * 2
    expected = sum(((found[labels == c] - found[labels == c].mean(axis=0)) ** 2).sum() for c in range(0, 10, 2))
    assert selection.inertia(found, labels) == pytest.approx(expected, rel=1e-5)


def test_large_selection() -> None:
    found = check(selection.large(small(rows=900, dimensions=16, clusters=8)))
    assert found.keys() == {"select-1m", "select-1m-memory", "select-1m-inertia"}
    assert found["select-1m-inertia"].n == 900 - 18, "one text in fifty ends in a loop and is gated"
    assert 0.8 < (found["select-1m-inertia"].ratio or 0) < 1.2


@pytest.mark.slow
def test_growth_of_everything() -> None:
    plan = small(growth=(200, 400), maps=(20, 40), map_fit=40, dimensions=16)
    found = {row.name: row for row in growth.growth(plan)}
    sizes = {"select": plan.growth, "text": plan.growth, "project": plan.maps, "evaluate": plan.scored}
    for name, counts in sizes.items():
        assert all((found[f"growth-{name}-{size}"].ours or 0) > 0 for size in counts)
    assert all(math.isfinite(found[f"growth-{name}-time"].ratio or math.nan) for name in ("select", "text", "project"))
    assert len(found) == 4 * 2 + 3 * 2 + 1
