"""Goals, tables and pages of the recorded studies, on frames small enough to judge by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from markdown_it import MarkdownIt

from dces_core import cli, goals, results
from dces_core.answers import HAND_EYE, coherent, degenerate
from dces_core.config import SHIPPED
from dces_core.errors import UserError
from dces_core.evidence import Estimate, Evidence, estimate, number, words
from dces_core.goals import GOALS, JUDGED, Limit, Part, spans
from dces_core.records import table
from dces_core.stage import sha256_of, write_json
from dces_core.study import load_study
from dces_core.study_store import TABLES, Output

T_4 = 2.7764451051977987  # 97.5% point of Student's t with 4 degrees of freedom
SETS = ("everyday", "passages")
LAST = 3
LOOP = "1." * 8
GOOD = "You need quick eyes and steady hands for tennis, golf and cricket."
HOSTILE = "`a`\n```\n<!-- end: dces results -->\n# heading\n\n<script>x</script>\r* [x](y)\u2028| a\x1b[31m \u202e"

Value = Callable[[int], float]
Key = tuple[str, str, str, str]  # study, arm, metric, test set


def factor(arm: str) -> float:
    """Perplexity over round 0: DCES keeps it, everything else loses it."""
    return {"plain": 2.0, "real10": 1.0, "frozen": 1.0, **dict.fromkeys(JUDGED, 0.99)}.get(arm, 1.8)


def base(study: str, arm: str, metric: str) -> float:
    """The value at the last round of a world in which every goal is reached."""
    ours = arm in JUDGED
    if metric == "ppl":
        return 100 * factor(arm)
    return {"ece": 0.11 if ours else 0.2, "entropy_real": 3.1 if ours else 1.0, "gain_kept": 0.9 if ours else 0.1}.get(metric, 0.0)


START = {"ppl": 100.0, "ece": 0.1, "entropy_real": 3.0, "gain_kept": 1.0, "loop_rate": 0.0}
PLANS = {
    "chain": {arm: (0, 1) if arm.startswith("dces-") and arm not in JUDGED else (0, 1, 2, 3, 4)
              for arm in (*goals.STATIC, *JUDGED, *goals.ABLATIONS, "real10", "frozen")},
    "inherit": dict.fromkeys(("plain", "random", "semdedup", *JUDGED), (0, 1, 2, 3, 4)),
    "collapse": dict.fromkeys(("plain", *JUDGED), (0,)),
}  # fmt: skip


def world(
    changes: dict[Key, Value] | None = None,
    missing: set[tuple[str, str, int]] | None = None,
    texts: dict[str, str] | None = None,
    logprob: float | None = -2.0,
) -> dict[str, Evidence]:
    """All three studies; `changes` replace values of the last round, `missing` units were not made, `texts` are answers by arm.

    `logprob`: of every answer under M_0; real references reach -5.
    """
    found = {}
    for name, planned in PLANS.items():
        units = [(arm, seed) for arm, seeds in planned.items() for seed in seeds if (name, arm, seed) not in (missing or set())]
        rows = [row for arm, seed in units for row in unit_rows(name, arm, seed, changes or {})]
        found[name] = Evidence(
            name,
            "Asks this.",
            planned,
            table("metrics", rows),
            probes(units, texts or {}, logprob),
            ("A processor",),
            (),
            dict.fromkeys(range(5), -5.0),
        )
    return {name: study for name, study in found.items() if study.metrics.height}


def unit_rows(study: str, arm: str, seed: int, changes: dict[Key, Value]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for metric, start in START.items():
        for test_set in SETS if metric != "loop_rate" else ("",):
            change = changes.get((study, arm, metric, test_set))
            end = change(seed) if change else base(study, arm, metric)
            values = [start, *[base(study, arm, metric)] * (LAST - 1), end]
            where = {"arm": arm, "seed": seed, "test_set": test_set, "metric": metric, "n": 9}
            rows += [{**where, "round": round_, "value": value} for round_, value in enumerate(values)]
    return rows


def probes(units: list[tuple[str, int]], texts: dict[str, str], logprob: float | None = -2.0) -> pl.DataFrame:
    default = {"plain": LOOP, **dict.fromkeys(JUDGED, GOOD)}
    rows: list[dict[str, object]] = []
    for arm, seed in units:
        for round_, text in ((0, GOOD), (LAST, {**default, **texts}.get(arm, GOOD))):
            for prompt, said in ((HAND_EYE, text), ("Count to 3.", "1, 2, 3." if arm == "plain" else GOOD)):
                rows.append({"arm": arm, "seed": seed, "round": round_, "prompt": prompt, "mode": "greedy", "text": said})
                rows.append({"arm": arm, "seed": seed, "round": round_, "prompt": prompt, "mode": "sampled", "text": "never looked at"})
    seeds = pl.Series("seed", [row["seed"] for row in rows], dtype=pl.Int64)
    return table("probes", rows).with_columns(seeds, pl.lit(logprob, dtype=pl.Float64).alias("frozen_logprob"))


# estimates --------------------------------------------------------------------------------------------------------------


def test_five_seeds_have_the_t_interval_and_fewer_the_range_of_their_points() -> None:
    half = T_4 * math.sqrt(2.5) / math.sqrt(5)
    found = estimate({seed: float(seed) for seed in range(1, 6)})
    assert found and found.interval and (found.mean, found.low, found.high) == pytest.approx((3.0, 3 - half, 3 + half))
    few = estimate({0: 2.0, 7: 1.0})
    assert few == Estimate(1.5, 1.0, 2.0, 2) and not few.interval
    assert estimate({}) is None


def test_ratios_are_averaged_on_the_log_scale() -> None:
    found = estimate({0: 2.0, 1: 8.0}, log=True)
    assert found and (found.mean, found.low, found.high) == pytest.approx((4.0, 2.0, 8.0))


@pytest.mark.parametrize(
    ("value", "wanted"), [(0.1234, "0.123"), (12.34, "12.3"), (1234.5, "1,234"), (-0.0001, "0.000"), (-0.5, "-0.500")]
)  # fmt: skip
def test_numbers_in_words(value: float, wanted: str) -> None:
    assert number(value) == wanted


def test_estimates_in_words() -> None:
    assert words(Estimate(1.5, 1.25, 1.75, 5), "×") == "×1.500 [1.250, 1.750], n = 5"
    assert words(Estimate(0.5, -0.25, 1.0, 2), signed=True) == "+0.500 (point only, n = 2: -0.250 to +1.000)"
    assert words(Estimate(0.5, 0.5, 0.5, 1)) == "0.500 (point only, n = 1)"


# limits and parts -------------------------------------------------------------------------------------------------------


def test_a_value_on_the_limit_is_within_unless_the_limit_is_strict() -> None:
    assert Limit("≤", 1.05).holds(math.exp(math.log(1.05))) and Limit("≥", 0).holds(0.0)
    assert not Limit("<", 1).holds(1.0) and not Limit(">", 0).holds(0.0)
    assert Limit("<", 1).holds(0.99) and not Limit(">", 0).holds(-1.0)


@pytest.mark.parametrize(
    ("low", "high", "state"), [(0.9, 0.99, "reached"), (1.01, 1.1, "not reached"), (0.9, 1.1, "not decided"), (1.0, 1.0, "not reached")]
)  # fmt: skip
def test_both_ends_of_an_interval_decide(low: float, high: float, state: str) -> None:
    part = Part("ppl", "on everyday", (Limit("<", 1),), Estimate((low + high) / 2, low, high, 5))
    assert part.state == state
    assert Part(part.what, part.where, part.limits, part.found, lack="not measured yet: 1 of 5 seeds").state == "not decided"
    assert Part(part.what, part.where, part.limits, None).reason == "undefined"


def test_two_limits_make_a_band() -> None:
    band = (Limit("≥", -1), Limit("≤", 1))
    states = [Part("x", "", band, Estimate(0, low, high, 5)).state for low, high in ((-1, 1), (1.5, 2), (-3, -2), (0, 2), (-2, 2))]
    assert states == ["reached", "not reached", "not reached", "not decided", "not decided"]


def test_one_comparison_that_fails_decides_and_the_worst_is_named() -> None:
    limit = (Limit("<", 1),)
    parts = [Part("ppl", f"against {name}", limit, Estimate(mean, mean, mean, 5)) for name, mean in (("a", 0.5), ("b", 1.2), ("c", 1.4))]
    found = goals.judged([*parts, Part("ece", "against a", limit, None, "a missing")], "a note")
    assert found.state == "not reached" and found.reason == ""
    assert found.figures == (
        "ppl < 1: 1 of 3 hold; worst: against c ×1.400 [1.400, 1.400], n = 5", "ece < 1: against a no figure", "a note"
    )  # fmt: skip


# the goals --------------------------------------------------------------------------------------------------------------


def verdict(letter: str, arm: str = "dces", **what: Any) -> goals.Verdict:
    return GOALS[letter][1](world(**what), arm)


@pytest.mark.parametrize("arm", JUDGED)
@pytest.mark.parametrize("letter", list(GOALS))
def test_a_world_in_which_every_goal_is_reached(letter: str, arm: str) -> None:
    found = verdict(letter, arm)
    assert (found.state, found.reason) == ("reached", ""), found
    assert found.figures


def spread(middle: float, step: float) -> Value:
    """Seeds 0 to 4 on both sides of the middle."""
    return lambda seed: middle + step * (seed - 2)


FAILS: list[tuple[str, dict[Key, Value], str]] = [
    ("a", {("chain", "semdedup", "ppl", "passages"): lambda seed: 90.0}, "against semdedup on passages ×1.100 [1.100, 1.100], n = 5"),
    ("a", {("chain", "toedit", "ece", "everyday"): lambda seed: 0.08}, "against toedit on everyday +0.030 [+0.030, +0.030], n = 5"),
    ("a", {("inherit", "random", "gain_kept", "passages"): lambda seed: 1.0}, "against random on passages -0.100"),
    ("b", {("chain", "dces", "ppl", "passages"): lambda seed: 110.0}, "on passages ×1.100"),
    ("b", {("chain", "plain", "ppl", "everyday"): lambda seed: 140.0}, "plain's perplexity over round 0 on everyday > 1.5: ×1.400"),
    ("c", {("chain", "dces", "entropy_real", "passages"): lambda seed: 3.3}, "entropy_real over round 0 ≥ 0.95 and ≤ 1.05"),
    ("c", {("chain", "dces", "ece", "everyday"): lambda seed: 0.07}, "ECE minus round 0 ≥ -0.02 and ≤ 0.02"),
    ("d", {("chain", "dces", "loop_rate", ""): lambda seed: 0.03}, "loop_rate ≤ 0.01: 0.030 [0.030, 0.030], n = 5"),
    ("e", {("chain", "dces-static", "ppl", "everyday"): lambda seed: 90.0}, "against dces-static on everyday ×1.100 (point only, n = 2:"),
    ("f", {("chain", "real10", "ppl", "everyday"): lambda seed: 90.0}, f"on everyday {math.log(90 / 99):.3f} ["),
]


@pytest.mark.parametrize(("letter", "changes", "figure"), FAILS, ids=lambda value: value if isinstance(value, str) else "")
def test_goals_that_are_not_reached(letter: str, changes: dict[Key, Value], figure: str) -> None:
    found = verdict(letter, changes=changes)
    assert found.state == "not reached" and figure in "; ".join(found.figures), found


OPEN: list[tuple[str, dict[Key, Value]]] = [
    ("a", {("chain", "ppl-low", "ppl", "passages"): spread(100, 10)}),
    ("b", {("chain", "dces", "ppl", "passages"): spread(105, 2)}),
    ("c", {("chain", "dces", "entropy_real", "passages"): spread(3.15, 0.1)}),
    ("d", {("chain", "dces", "loop_rate", ""): spread(0.01, 0.005)}),
    ("e", {("chain", "edit-random", "ppl", "everyday"): spread(99, 5)}),
    ("f", {("chain", "real10", "ppl", "everyday"): spread(97, 2)}),
]


@pytest.mark.parametrize(("letter", "changes"), OPEN, ids=lambda value: value if isinstance(value, str) else "")
def test_goals_whose_interval_spans_the_limit_are_not_decided(letter: str, changes: dict[Key, Value]) -> None:
    found = verdict(letter, changes=changes)
    assert (found.state, found.reason) == ("not decided", "an interval spans the limit"), found


@pytest.mark.parametrize("letter", "abcdefh")
def test_a_seed_that_is_missing_leaves_a_goal_undecided(letter: str) -> None:
    found = verdict(letter, missing={("chain", "dces", 2)})
    assert found.state == "not decided" and "not measured yet: 4 of 5 seeds of" in found.reason


def test_a_failure_counts_while_other_arms_are_missing() -> None:
    worse: dict[Key, Value] = {("chain", "random", "ppl", "everyday"): lambda seed: 50.0}
    missing = {("chain", "plain", seed) for seed in range(5)}
    assert verdict("a", changes=worse, missing=missing).state == "not reached"
    found = verdict("a", missing=missing)
    assert (found.state, found.reason) == ("not decided", "plain missing")


def test_points_of_two_seeds_must_all_agree() -> None:
    found = verdict("e", changes={("chain", "dces-no-gate", "ppl", "everyday"): lambda seed: (90.0, 110.0)[seed]})
    assert (found.state, found.reason) == ("not decided", "points on both sides of the limit")


def test_an_undefined_value_leaves_a_goal_undecided() -> None:
    found = verdict("a", changes={("inherit", "dces", "gain_kept", "passages"): lambda seed: math.nan if seed == 3 else 0.9})
    assert found.state == "not decided" and "undefined in 1 of 5 seeds of dces and plain" in found.reason


def test_the_paired_ratio_and_its_interval_by_hand() -> None:
    plain, steps = [200.0, 300.0, 250.0, 400.0, 150.0], [-0.1, -0.2, -0.3, -0.4, -0.5]
    changes: dict[Key, Value] = {
        ("chain", "plain", "ppl", "everyday"): lambda seed: plain[seed],
        ("chain", "dces", "ppl", "everyday"): lambda seed: plain[seed] * math.exp(steps[seed]),
    }
    part = goals.against(world(changes)["chain"], "dces", "plain", "ppl", "everyday", "<")
    half = T_4 * math.sqrt(0.025) / math.sqrt(5)
    assert part.found and (part.found.mean, part.found.low, part.found.high) == pytest.approx(
        (math.exp(-0.3), math.exp(-0.3 - half), math.exp(-0.3 + half))
    )
    assert part.state == "reached"


def test_static_arms_that_inherit_does_not_have_are_named() -> None:
    assert verdict("a").figures[-1] == "not in inherit: ppl-low, ppl-high, ppl-band, toedit"


def test_studies_without_units_leave_their_goals_undecided() -> None:
    studies = {name: study for name, study in world().items() if name == "chain"}
    assert goals.verdicts({})["b", "dces"].reason == "study chain has no finished unit yet"
    assert GOALS["a"][1](studies, "dces").reason == "study inherit has no finished unit yet"
    assert {one.state for one in goals.verdicts({}).values()} == {"not decided"}
    del studies["chain"]
    assert "study chain has no finished unit yet; study inherit" in GOALS["a"][1](studies, "dces").reason


def test_ablations_are_said_to_be_those_of_text_editing() -> None:
    assert "those of dces" in verdict("e", "dces-targets").figures[-1] and "those of dces" not in verdict("e").figures[-1]


def test_rounds_better_than_frozen() -> None:
    found = verdict("h", changes={("chain", "dces", "ppl", "passages"): lambda seed: 120.0})
    assert (found.state, found.figures[0].split(";")[0]) == ("reached", "better in rounds 1 to 2 (2 in a row)")
    assert "round 1, worst there: on everyday ×0.990" in found.figures[1]
    assert verdict("h", missing={("chain", "dces", 0)}).figures[0].startswith("better in no round, open in rounds 1 to 3 (3 in a row);")
    never = GOALS["h"][1]({"chain": world()["chain"]}, "plain")
    assert never.state == "not reached" and "better in no round; 3 rounds looked at" in never.figures[0]
    assert spans([7, 2, 3, 4]) == "rounds 2 to 4 (3 in a row) and round 7"


# the watched answer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "bad", "good"),
    [(LOOP, True, False), (GOOD, False, True), ("Ball, ball, ball games.", True, False), ("", True, False),
     ("Sports need good eyes and hands and practice.", False, False), ("Tennis and golf need good eyes.", False, False)],
)  # fmt: skip
def test_degenerate_and_coherent_answers(text: str, bad: bool, good: bool) -> None:
    assert (degenerate(text), coherent(text)) == (bad, good)


def test_the_watched_prompt_is_shipped() -> None:
    assert HAND_EYE in (SHIPPED / "everyday" / "probes.jsonl").read_text(encoding="utf-8")


def test_the_watched_answer_decides() -> None:
    kept = verdict("g", texts={"plain": GOOD})
    assert kept.state == "not reached" and "not degenerate (no loop, 11 distinct words, names cricket, golf, tennis)" in kept.figures[0]
    assert verdict("g", texts={"dces": "Sports."}).state == "not reached"
    assert "perplexity under M_0 7.39" in kept.figures[-1]
    assert verdict("g", logprob=-5.1).state == "not reached" and verdict("g", logprob=None).reason.startswith("no limit")
    assert verdict("g", missing={("collapse", "plain", 0)}).reason == "plain missing"
    study = world()["collapse"]
    unwatched = Evidence("collapse", "", study.planned, study.metrics, study.probes.filter(prompt="Count to 3."))
    assert "is not among the watched prompts" in GOALS["g"][1]({"collapse": unwatched}, "dces").reason


# markdown ---------------------------------------------------------------------------------------------------------------


def test_tables_have_every_arm_the_noise_floor_first_and_reference_rows_last() -> None:
    study = world()["chain"]
    text = results.block([study])
    part = text.split("On the test set everyday")[1].split("\n\n")[1]
    rows = [line.split(" | ") for line in part.splitlines()]
    assert rows[2][0] == "| round 0" and rows[3][0] == "| `random` (noise floor)" and rows[-1][0] == "| `frozen` (reference)"
    assert len(rows) == 3 + len(study.planned) and {len(row) for row in rows} == {8}
    (dces,) = [row for row in rows if row[0] == "| `dces`"]
    assert dces[1:5] == ["5", "99.0 [99.0, 99.0]", "×0.990 [0.990, 0.990]", "0.110 [0.110, 0.110]"]
    (few,) = [row for row in rows if row[0] == "| `dces-static`"]
    assert few[1:4] == ["2", "180", "×1.800"], "two seeds have no interval"
    assert "68 of 68 units are finished" in text and "`dces-static` 2 of 2" in text


def test_a_cell_says_its_n_where_values_are_undefined() -> None:
    assert results.cell({0: 1.0, 1: 3.0}, 5) == "2.000 (n = 2)" and results.cell({}) == "-"


def test_collapse_verdicts_are_counted_by_seed() -> None:
    study = world({("chain", "dces", "ppl", "everyday"): lambda seed: 120.0 if seed == 0 else 99.0})["chain"]
    part = results.block([study]).split("Seeds that collapse")[1].split("\n\n")[1].splitlines()
    column = part[0].split(" | ").index("perplexity, everyday")
    found = {line.split(" | ")[0]: line.split(" | ")[column] for line in part[2:]}
    assert (found["| `dces`"], found["| `plain`"], found["| `dces-static`"]) == ("1 of 5", "5 of 5", "2 of 2")


def test_the_block_is_the_same_twice() -> None:
    one, other = (results.block(list(world(missing={("inherit", "dces", 1)}).values())) for _ in range(2))
    assert one == other and "not measured yet: 4 of 5 seeds of dces and plain" in one
    assert results.block([]) == "No finished unit yet."


def test_texts_of_a_model_stay_code() -> None:
    text = results.block([world(texts={"dces": HOSTILE})["collapse"]])
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    assert "    <!-- end: dces results -->" in text.splitlines()
    (code,) = [token.content for token in tokens if token.type == "code_block" and "heading" in token.content]
    assert code == "`a`\n```\n<!-- end: dces results -->\n# heading\n\n<script>x</script>\\r* [x](y)\\u2028| a\\x1b[31m \\u202e\n"
    assert [token.content for token in tokens if token.type == "html_block"] == []
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings == ["Goals", "The study `collapse`"]


def test_prompts_for_which_plain_degenerates_are_listed() -> None:
    text = results.block([world(texts={"plain": GOOD})["collapse"]])
    assert "plain degenerates at round 3, seed 0: 1 of 2.\n\n    Count to 3." in text
    assert "`dces`, round 3, seed 0: no text." in results.block([world(texts={"dces": " "})["collapse"]])


def test_the_headline_counts_goals() -> None:
    text = results.headline(list(world(changes=FAILS[0][1]).values()))
    assert "- `dces`, of 8 goals: 7 reached (b, c, d, e, f, g, h); 1 not reached (a)." in text
    assert "over round 0's: plain ×2.000 / ×2.000 (n = 5), dces ×0.990 / ×0.990 (n = 5)" in text
    assert "No finished unit yet" in results.headline([])


# pages ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pages with markers, and recorded studies of the test's own: none yet."""
    monkeypatch.setattr(results, "recorded_studies", lambda: tmp_path / "studies")
    for name, mark in (("results.md", "dces results"), ("README.md", "headline")):
        (tmp_path / name).write_text(f"# Page\n\n<!-- begin: {mark} -->\nold\n<!-- end: {mark} -->\n\nRest\n", encoding="utf-8")
    return tmp_path


def call(home: Path, *more: str) -> int:
    return cli.main(["results", "--out", str(home / "results.md"), "--readme", str(home / "README.md"), *more])


def record(home: Path, name: str, **settings: Any) -> None:
    """One unit of the study `collapse`, plain of seed 0."""
    found = load_study("collapse")
    config = found.run_config(0, "plain").model_copy(update=settings)
    output = Output(home / "studies" / name)
    output.write_study({**found.config.model_dump(mode="json"), "name": name}, config)
    path, files = output.path / "units" / "seed-0" / "plain", {}
    path.mkdir(parents=True)
    rows = table("metrics", unit_rows("collapse", "plain", 0, {}))
    for kind in TABLES:
        frame = rows if kind == "metrics" else probes([("plain", 0)], {"plain": HOSTILE}) if kind == "probes" else table(kind, [])
        frame.write_parquet(path / f"{kind}.parquet")
        files[f"{kind}.parquet"] = {"sha256": sha256_of(path / f"{kind}.parquet")}
    budget = {"pool": 4, "n": 2, "regime": "replace", "planned_steps": [1], "optimiser_steps": [1], "trained_tokens": [9], "decoding": {}}
    cpu = {"model": "Some CPU", "threads": 2, "flags": ["avx2"], "device": "cpu"}
    facts = {"schema": 1, "arm": "plain", "seed": 0, "digest": config.digest(), "files": files, "budget": budget, "cpu": cpu}
    write_json(path / "unit.json", {**facts, "tests": {}, "seconds": 1.0})


def test_pages_are_written_checked_and_stay_the_same(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(home, "--check") == 1
    error = capsys.readouterr().err
    assert error == "dces: not what the recorded studies say: results.md and README.md; run dces results.\n"
    assert "\nold\n" in (home / "results.md").read_text(encoding="utf-8"), "--check writes nothing"
    assert call(home) == 0 and call(home, "--check") == 0
    assert (home / "results.md").read_text(encoding="utf-8") == (
        "# Page\n\n<!-- begin: dces results -->\nNo finished unit yet.\n<!-- end: dces results -->\n\nRest\n"
    )
    record(home, "collapse")
    assert call(home, "--check") == 1 and call(home) == 0 and call(home, "--check") == 0
    text = (home / "results.md").read_text(encoding="utf-8")
    assert "1 of 4 units are finished" in text and "Processor: Some CPU, 2 threads, avx2, cpu." in text and text.endswith("\nRest\n")
    assert text.splitlines().count("<!-- end: dces results -->") == 1, "the model wrote one too"
    (home / "results.md").write_text(text.replace("1 of 4 units", "4 of 4 units"), encoding="utf-8")
    assert call(home, "--check") == 1


def test_studies_of_the_fake_engine_are_left_out(home: Path) -> None:
    record(home, "collapse", engine="fake")
    assert results.recorded() == []


def test_a_damaged_unit_is_one_sentence(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(home, "collapse")
    (home / "studies/collapse/units/seed-0/plain/metrics.parquet").write_bytes(b"x")
    assert call(home, "--check") == 2 and "is damaged: metrics.parquet" in capsys.readouterr().err


def test_a_readme_without_the_marker_is_left_alone_and_a_page_without_it_is_refused(home: Path) -> None:
    (home / "README.md").write_text("# Mine\n", encoding="utf-8")
    assert call(home) == 0 and (home / "README.md").read_text(encoding="utf-8") == "# Mine\n"
    (home / "results.md").write_text("# Page\n<!-- end: dces results -->\n<!-- begin: dces results -->\n", encoding="utf-8")
    with pytest.raises(UserError, match="does not have the lines <!-- begin: dces results -->"):
        results.pages(home / "results.md", home / "README.md", [])
    assert call(home, "--out", str(home / "absent.md")) == 2


def test_the_pages_of_this_project_say_what_its_recorded_studies_say() -> None:
    assert cli.main(["results", "--check"]) == 0, "run: dces results"
