from __future__ import annotations

import json
from pathlib import Path

import pytest

from dces_core import architectures, cli, cli_plan, estimate, full_round, plan
from dces_core.config import RunConfig, load_recipe, parse
from dces_core.errors import UserError
from dces_core.plan import Layout, Shape, Work

ROOT = Path(__file__).resolve().parent.parent
WORK = Work(batch=8, prompt_tokens=45, new_tokens=64, decoded=128)
MOST_ERROR = 0.15


def shape(name: str) -> Shape:
    found = architectures.find(name)
    return plan.shape_of(found.config, found.parameters)


# the formula ------------------------------------------------------------------------------------------------------------


def test_the_parts_of_gpt2_by_hand() -> None:
    parts = plan.memory(shape("gpt2"), WORK, Layout(device="cpu"))
    count = 124_439_808
    assert (parts["weights"], parts["base"], parts["gradients"], parts["optimiser"]) == (4 * count, 4 * count, 4 * count, 8 * count)
    assert parts["sampling_copy"] == parts["frozen_copy"] == parts["gathered"] == 2 * count and parts["laid_out"] == 0
    assert parts["logits"] == 12 * 8 * 64 * 50_257
    assert parts["kv_cache"] == 2 * 2 * 12 * 768 * 109 * 128
    assert parts["activations"] == 8 * 12 * (109 * (40 * 768 + 10 * 3072) + 14 * 12 * 109**2)
    after, before = 4 * count + 4 * 50_257 * 768, parts["activations"] + parts["logits"]
    assert parts["total"] == 14 * count + 1_200_000_000 + 8 * count + max(after, before)


def test_only_llamas_layout_is_laid_out_again() -> None:
    qwen = plan.memory(shape("qwen3-0.6b"), WORK, Layout(device="cpu"))
    assert qwen["laid_out"] == 4 * 596_049_920
    assert 0 < plan.memory(shape("qwen3-0.6b"), WORK, Layout())["laid_out"] < qwen["laid_out"]


@pytest.mark.parametrize("name", list(architectures.known()))
def test_more_devices_never_need_more_each(name: str) -> None:
    for method in ("full", "lora"):
        totals = [plan.memory(shape(name), WORK, Layout(method, n))["total"] for n in (2, 4, 8, 64)]  # type: ignore[arg-type]
        assert totals == sorted(totals, reverse=True)
    full, lora = (plan.memory(shape(name), WORK, Layout(method))["total"] for method in ("full", "lora"))  # type: ignore[arg-type]
    assert lora < full


def test_the_largest_model_needs_several_cards_or_lora() -> None:
    found = shape("opt-6.7b")
    fits = {n: plan.memory(found, WORK, Layout("full", n))["total"] < 80e9 for n in (1, 4)}
    assert fits == {1: False, 4: True}
    assert plan.memory(found, WORK, Layout("lora"))["total"] < 80e9


def test_seconds_shrink_and_communication_counts() -> None:
    found = shape("opt-6.7b")
    assert plan.round_seconds(100.0, 20.0, 10, found, Layout()) == 100.0
    moved = 6 * found.parameters * 3 / 4 * 10 / plan.LINK_BYTES_PER_S
    assert plan.round_seconds(100.0, 20.0, 10, found, Layout("full", 4)) == pytest.approx(20 + 80 / 4 + moved)


def test_every_part_has_its_formula() -> None:
    assert [*plan.memory(shape("gpt2"), WORK, Layout()), "round_s"] == list(plan.FORMULAS)


# dimensions -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", list(architectures.known()))
def test_the_published_parameters_are_what_transformers_counts(name: str) -> None:
    found = architectures.find(name)
    own, counted = shape(name), architectures.exact(shape(name), found.configuration())
    assert counted.parameters == found.parameters and counted.tied == own.tied
    joined = own.kind in ("gpt2", "gpt_neox")  # one layer for query, key and value
    assert counted.block_linear == own.block_linear - joined * 2 * own.width
    assert counted.block == pytest.approx(own.block, rel=0.01)
    fewer = architectures.exact(plan.shape_of(found.values(1)), found.configuration(1))
    assert fewer.parameters == found.parameters - (own.layers - 1) * counted.block


def test_layers_out_of_range() -> None:
    for layers in (0, 13):
        with pytest.raises(UserError, match=f"layers = {layers} is not allowed for gpt2; it has 12"):
            architectures.find("gpt2").values(layers)


def test_what_the_estimate_knows(tmp_path: Path) -> None:
    def memory(**changes: object) -> int | None:
        found = estimate.estimate(parse({"device": "cpu", **changes}))["memory_bytes"]
        return None if found is None else int(found)

    wanted = plan.memory(shape("smollm2-135m"), estimate.work_of(RunConfig()), Layout(device="cpu"))["total"]
    assert memory() == wanted and memory(model="someone/else") is None
    assert (memory(model="Qwen/Qwen3-0.6B") or 0) > wanted > (memory(model="tiny-opt") or 0) > plan.PROCESS_BYTES["cpu"]
    assert [architectures.dimensions(name) for name in ("~nobody/x", "x" * 5000, "a\0b", "")] == [None] * 4
    for wrong in ("{", "[]", '{"hidden_size": "wide"}', '{"hidden_size": 1e400, "vocab_size": 2}'):
        (tmp_path / "config.json").write_text(wrong, encoding="utf-8")
        assert estimate.memory_parts(parse({"model": str(tmp_path)}), 1000, Layout()) is None, wrong


# the verb ---------------------------------------------------------------------------------------------------------------


def test_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    call = ["plan", "gpt2", "--devices", "1,4", "--lora", "--rank", "8", "--memory-gb", "4", "--set", "train.batch_size=4"]
    assert cli.main([*call, "--format", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [(row["device"], row["method"], row["devices"]) for row in said["layouts"]] == [
        ("cpu", "full", 1), ("cuda", "full", 1), ("cuda", "full", 4), ("cuda", "lora", 1), ("cuda", "lora", 4),
    ]  # fmt: skip
    assert said["parameters"] == 124_439_808 and said["adapters"] == 8 * 12 * 16 * 768 and said["work"]["batch"] == 4
    assert [row["fits"] for row in said["layouts"]] == [None, False, True, True, True]
    assert cli.main(call) == 0
    shown = capsys.readouterr().out
    assert "full x 4" in shown and "fits 4 GB" in shown and "kv_cache = " in shown and max(map(len, shown.splitlines())) <= 140


def test_a_recipe_and_a_folder(tmp_path: Path) -> None:
    assert cli_plan.settings_of("paper-gpt2", ["rounds=2"]) == load_recipe("paper-gpt2", ["rounds=2"])
    config = architectures.find("opt-125m").configuration(2)
    config.save_pretrained(tmp_path)
    assert cli_plan.shape_of(str(tmp_path)) == architectures.exact(plan.shape_of(architectures.find("opt-125m").values(2)), config)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "MODEL is missing"),
        (["someone/else"], "is no recipe, no folder with config.json"),
        (["gpt2", "--devices", "1,0"], "devices = '1,0'"),
        (["gpt2", "--rank", "0"], "rank = 0"),
        (["gpt2", "--memory-gb", "nan"], "memory-gb = nan"),
        (["gpt2", "--markdown", "page.md"], "--markdown plans nothing"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


# measured rounds --------------------------------------------------------------------------------------------------------


def test_the_page_has_the_measured_rounds_and_the_formula_holds(tmp_path: Path) -> None:
    page, results = tmp_path / "plan.md", ROOT / "docs" / "plan.json"
    page.write_text((ROOT / "docs" / "plan.md").read_text(encoding="utf-8"), encoding="utf-8")
    cli_plan.write_page(page, results)
    assert page.read_text(encoding="utf-8") == (ROOT / "docs" / "plan.md").read_text(encoding="utf-8"), "write the table again"
    entries = cli_plan.measured(results)
    assert len(entries) >= 3
    for entry in entries:
        wanted = full_round.needed(architectures.find(entry["name"]), entry["layers"])["total"]
        assert wanted == pytest.approx(entry["peak_bytes"], rel=MOST_ERROR), entry["name"]


def test_results_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('[{"name": "x"}]', encoding="utf-8")
    with pytest.raises(UserError, match="is no file of measured rounds"):
        cli_plan.measured(tmp_path / "plan.json")


def test_a_round_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(estimate, "free_memory_bytes", lambda: 10**9)
    assert cli.main(["doctor", "--arch", "gpt2"]) == 2
    assert "free memory, or take fewer layers (--layers)" in capsys.readouterr().err
    assert cli.main(["doctor", "--arch", "gone"]) == 2
    assert "arch = 'gone' is not known; there are: opt-125m, gpt2" in capsys.readouterr().err
