"""A diagnosis of made-up rounds: the figures, the verdicts, what is not there and why, and the verb."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dces_core import cli, diagnose, own_rounds, store
from dces_core.diagnose import Diagnosis, Options, from_json, summary
from dces_core.diagnosing import diagnose as run_diagnosis
from dces_core.engines.base import silent
from dces_core.errors import UserError
from dces_core.events import Progress
from dces_core.metrics.degradation import TITLE
from dces_core.ui import diagnosis

FIRST = 2  # the number of the first round
HOSTILE = "<script>alert(1)</script> 1. 1. 1. 1. 1. 1. 1. 1."
RECORDED = store.Run(store.recorded_root() / "standard")


class Steps:
    def __init__(self) -> None:
        self.seen: list[tuple[int, str]] = []

    @contextmanager
    def span(self, round_: int, arm: str, stage: str) -> Iterator[Progress]:
        self.seen.append((round_, stage))
        yield silent


def rounds_file(folder: Path, rounds: int = 6, texts: int = 60) -> Path:
    """Fewer words and more loops in every round; one empty text a round."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(60)])
    rows = []
    for t in range(rounds):
        for i in range(texts):
            text = " ".join(rng.choice(words[: 60 - 9 * t], 14))
            rows.append({"round": FIRST + t, "text": "" if i == 0 else HOSTILE if i <= 3 * t else text})
    path = folder / "own.jsonl"
    pl.DataFrame(rows).write_ndjson(path)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rounds_file(tmp_path_factory.mktemp("own"))


def made(path: Path, folder: Path, **options: object) -> Diagnosis:
    rounds = own_rounds.read_files([path], folder / "texts", ("round", "text"), silent)
    return run_diagnosis(rounds, Options(**{"encoder": "hash", "sample": 40, **options}), Steps())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Diagnosis:
    return made(path, tmp_path_factory.mktemp("spool"))


def test_every_metric_has_a_value_or_a_reason(found: Diagnosis) -> None:
    metrics = found.tables["metrics"]
    assert set(metrics["metric"]) == set(TITLE) == set(diagnose.ABSENT)
    assert metrics.height == 6 * len(TITLE)
    assert (metrics["value"].is_null() == metrics["reason"].is_not_null()).all()
    defined = set(metrics.drop_nulls("value")["metric"])
    assert {"distinct_2", "vendi", "loop_rate", "rep_4", "self_bleu", "dispersion", "dispersion_frozen", "compression_ratio"} <= defined
    assert not defined & {"ppl", "ref_ppl", "bertscore_f1", "tail_coverage", "length"}


def test_rounds_loops_and_copies_are_counted_over_all_texts(found: Diagnosis) -> None:
    rounds = found.tables["rounds"]
    assert rounds["round"].to_list() == list(range(FIRST, FIRST + 6)) == found.rounds
    assert rounds["empty"].to_list() == [1] * 6
    assert rounds["copies"].to_list() == [max(0, 3 * t - 1) for t in range(6)]
    loops = found.tables["metrics"].filter(metric="loop_rate").sort("round")
    assert loops["value"].to_list() == pytest.approx([3 * t / 60 for t in range(6)]) and set(loops["n"]) == {60}
    repeated = found.tables["repeated"].filter(pl.col("round") == FIRST + 5)
    assert repeated.select("text", "copies").rows() == [(HOSTILE, 15)]
    assert found.tables["worst"].filter(pl.col("round") == FIRST + 5)["text"][0] == HOSTILE


def test_the_first_given_round_is_the_start(found: Diagnosis) -> None:
    verdicts = {row["definition"]: row for row in found.tables["verdicts"].iter_rows(named=True)}
    assert verdicts["loops"]["round"] == FIRST + 1
    assert verdicts["perplexity"]["reason"] == "ppl: needs the model of each round and held-out real text"
    lead = found.tables["lead_times"].filter(metric="distinct_1")
    values = found.tables["metrics"].filter(metric="distinct_1").sort("round")["value"].to_list()
    assert lead["round"][0] == next(FIRST + t for t, value in enumerate(values) if value <= 0.9 * values[0])
    assert found.tables["forecasts"]["round"].unique().sort().to_list() == [FIRST + 6, FIRST + 7]
    assert found.tables["risks"].filter(definition="loops")["reason"][0] == f"reached at round {FIRST + 1}"


def test_clusters_and_points_cover_the_sample(found: Diagnosis) -> None:
    sizes = found.tables["clusters"].group_by("round").agg(pl.col("texts").sum(), pl.col("share").sum()).sort("round")
    points = found.tables["points"].group_by("round").len().sort("round")
    assert sizes["texts"].to_list() == points["len"].to_list() and max(sizes["texts"]) <= 40
    assert sizes["share"].to_list() == pytest.approx([1.0] * 6)
    assert found.facts["embedded"] == 40


def test_reference_and_model_fill_what_needs_them(path: Path, tmp_path: Path) -> None:
    real = tmp_path / "real.jsonl"
    pl.DataFrame({"text": [f"word{i} word{i} word{i + 1} the" for i in range(50)]}).write_ndjson(real)
    found = made(path, tmp_path, reference=str(real), model="fake", map="off")
    for metric in ("tail_coverage", "survival_tail", "nearest_reference", "ref_ppl"):
        values = found.tables["metrics"].filter(metric=metric)["value"]
        assert values.null_count() == 0, metric
    assert found.tables["points"].is_empty() and found.facts["references"] == 50
    with pytest.raises(UserError, match="reference = 'nothing' is not there"):
        made(path, tmp_path, reference="nothing")


def test_json_there_and_back_and_damage(found: Diagnosis) -> None:
    text = json.dumps(found.as_json(), allow_nan=False)
    again = from_json(json.loads(text))
    assert again.facts == found.facts
    assert all(again.tables[name].equals(found.tables[name]) for name in diagnose.TABLES)
    for value in (None, [], {}, {"schema": 1}, {**found.as_json(), "schema": 2}, {**found.as_json(), "rounds": []}):
        with pytest.raises(UserError, match="cannot be read"):
            from_json(value)


def test_same_texts_give_the_same_diagnosis(path: Path, found: Diagnosis, tmp_path: Path) -> None:
    assert made(path, tmp_path).as_json() == found.as_json()


def test_a_recorded_run_gets_its_own_figures(tmp_path: Path) -> None:
    rounds = own_rounds.read_run(RECORDED, "plain", tmp_path / "texts", silent)
    found = run_diagnosis(rounds, Options(encoder="hash", map="off"), Steps())
    own = RECORDED.metrics().filter(pl.col("arm") == "plain", pl.col("test_set") == "")
    both = own.join(found.tables["metrics"], on=["round", "metric"], suffix="_found")
    for metric in ("distinct_1", "distinct_2", "distinct_3", "entropy_unigram", "compression_ratio", "rep_4", "loop_rate", "self_bleu"):
        pair = both.filter(metric=metric)
        assert pair.height == 11
        assert pair["value"].to_list() == pytest.approx(pair["value_found"].to_list(), abs=1e-12), metric
    with pytest.raises(UserError, match="arm = 'nobody' is not in run"):
        own_rounds.read_run(RECORDED, "nobody", tmp_path / "x", silent)


def test_rounds_without_any_word_are_an_ordinary_case(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"round": t, "text": "" if t != 2 else "a b c d e f"} for t in range(5) for _ in range(4)]
    pl.DataFrame(rows).write_ndjson(path)
    found = made(path, tmp_path)
    assert found.tables["metrics"].filter(metric="distinct_1", round=0)["reason"].to_list() == ["no text has 1 units"]
    assert found.tables["rounds"]["copies"].to_list() == [3] * 5
    assert "no clusters" in diagnosis.clusters(found, 4).said
    assert diagnosis.report_of(found)


def test_summary_has_a_line_for_every_metric(found: Diagnosis) -> None:
    frame = summary(found)
    assert sorted(frame["metric"]) == sorted(TITLE)
    assert frame["last"].is_null().to_list() == sorted(frame["last"].is_null().to_list())


def test_the_report_is_one_file_with_escaped_texts(found: Diagnosis) -> None:
    html = diagnosis.report_of(found)
    assert "<script>alert(1)" not in html and "&lt;script&gt;alert(1)" in html
    assert 'http-equiv="Content-Security-Policy"' in html and 'src="http' not in html
    for words in ("Collapse verdicts", "Susceptibility", "Clusters on a map", f"Most degenerate texts of round {FIRST + 5}", "All metrics"):
        assert words in html


def test_the_verb(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.html"
    base = ["diagnose", str(path), "--encoder", "hash", "--sample", "40"]
    assert cli.main([*base, "--format", "json", "--report", str(report)]) == 0
    said = capsys.readouterr()
    assert from_json(json.loads(said.out)).rounds == list(range(FIRST, FIRST + 6))
    assert said.err.splitlines()[-1] == str(report) and report.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert cli.main([*base, "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("arm,seed,round,test_set,metric,value,n,low,high,reason")
    assert cli.main(base) == 0
    assert "Verdicts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to diagnose"),
        (["nothing-here"], "'nothing-here' is not there"),
        (["OWN", "--arm", "plain"], "arm = 'plain' is for a run"),
        (["OWN", "--sample", "5"], "sample"),
        (["OWN", "--encoder", "no/such/folder"], "encoder"),
        (["OWN", "--report", "no/such/folder/a.html"], "its directory is not there"),
        (["OWN", "--text-column", "answer"], "has no column 'answer'"),
    ],
)
def test_bad_input_is_one_sentence(path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["diagnose", *(str(path) if one == "OWN" else one for one in arguments)]) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.strip().splitlines()) == 1


def test_backtest_writes_the_block_of_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin: backtest -->\nold\n<!-- end: backtest -->\nafter\n")
    assert cli.main(["diagnose", "--backtest", "--markdown", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text and "| all | " in text and "Studies: " in text
    page.write_text("none")
    assert cli.main(["diagnose", "--backtest", "--markdown", str(page)]) == 2
    assert "does not have the lines" in capsys.readouterr().err
