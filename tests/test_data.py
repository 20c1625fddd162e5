"""Loaders of dces_core.data: shipped sets, own files, and every kind of bad input."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dces_core import data
from dces_core.config import RunConfig, parse
from dces_core.errors import UserError, quoted

ROWS = [
    {"id": "a", "prompt": "Why?", "reference": "Because it rains.", "topic": "weather"},
    {"id": "b", "prompt": "How?", "reference": "Slowly,\nwith care.", "topic": "craft"},
]


def train_on(path: Path | str) -> RunConfig:
    return parse({"data": {"train": str(path)}})


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def refusal(path: Path | str) -> str:
    """The sentence with which a training file is refused."""
    with pytest.raises(UserError) as caught:
        data.load_train(train_on(path))
    message = str(caught.value)
    assert message.startswith(f"data.train = {quoted(str(path))}")
    assert message.endswith(".")
    assert "\n" not in message
    return message


# the shipped set ----------------------------------------------------------------------------------------------------------


def test_shipped_splits_share_no_prompt_and_no_text() -> None:
    splits = [
        data.load_train(parse({})),
        data.load_tests(parse({}))["everyday"],
        data.load_tests(parse({"eval": {"split": "test"}}))["everyday"],
    ]
    assert [corpus.kind for corpus in splits] == ["pairs"] * 3
    for column in ("id", "prompt", "reference"):
        values = [getattr(pair, column) for corpus in splits for pair in corpus.pairs]
        assert len(values) == len(set(values)), column
    assert all(pair.topic for corpus in splits for pair in corpus.pairs)
    assert not any(corpus.skipped for corpus in splits)


def test_split_chooses_the_shipped_test_sets() -> None:
    validation = data.load_tests(parse({"eval": {"split": "validation"}}))
    test = data.load_tests(parse({"eval": {"split": "test"}}))
    assert validation["everyday"] == data.Corpus("everyday", "pairs", data.load_tests(parse({}))["everyday"].pairs)
    assert validation["passages"].kind == test["passages"].kind == "texts"
    for name in ("everyday", "passages"):
        ids = [{pair.id for pair in tests[name].pairs} for tests in (validation, test)]
        assert all(ids)
        assert not ids[0] & ids[1]
    assert all(pair.prompt == "" and pair.reference for pair in test["passages"].pairs)


def test_probes_have_prompts_and_no_references() -> None:
    probes = data.load_probes(parse({}))
    assert probes
    assert all(probe.prompt and probe.topic and probe.reference == "" for probe in probes)


# caps ---------------------------------------------------------------------------------------------------------------------


def numbered(count: int, kind: data.Kind = "pairs") -> data.Corpus:
    return data.Corpus("x", kind, [data.Pair(f"{i}", "p", "r", f"topic-{i * 4 // count}") for i in range(count)])


def test_caps_are_nested_ordered_and_mixed_in_topic() -> None:
    few, more = (data.cap(numbered(400), parse({"eval": {"pairs": n}})).pairs for n in (40, 80))
    assert (len(few), len(more)) == (40, 80)
    assert {pair.id for pair in few} < {pair.id for pair in more}
    assert [int(pair.id) for pair in few] == sorted(int(pair.id) for pair in few)
    assert set(Counter(pair.topic for pair in few)) == {f"topic-{i}" for i in range(4)}  # the file itself is sorted by topic


def test_a_cap_acts_on_its_own_kind_and_not_on_the_seed() -> None:
    assert data.cap(numbered(9), parse({"eval": {"passages": 3}})) == numbered(9)
    assert len(data.cap(numbered(9, "texts"), parse({"eval": {"passages": 3}})).pairs) == 3
    capped = [data.cap(numbered(9), parse({"seed": seed, "eval": {"pairs": 3}})) for seed in (0, 1)]
    assert capped[0] == capped[1]


def test_a_cap_beyond_the_set_and_zero_keep_everything() -> None:
    assert all(data.cap(numbered(9), parse({"eval": {"pairs": n}})) == numbered(9) for n in (0, 9, 10))


# own files ----------------------------------------------------------------------------------------------------------------


def test_all_formats_give_the_same_pairs(tmp_path: Path) -> None:
    frame = pl.DataFrame(ROWS)
    frame.write_csv(tmp_path / "d.csv")
    frame.write_parquet(tmp_path / "d.parquet")
    jsonl(tmp_path / "d.jsonl", ROWS)
    expected = data.Corpus("train", "pairs", [data.Pair(**row) for row in ROWS])
    for ending in ("jsonl", "csv", "parquet"):
        assert data.load_train(train_on(tmp_path / f"d.{ending}")) == expected


def test_an_own_file_serves_both_splits_and_an_empty_path_switches_a_set_off(tmp_path: Path) -> None:
    own = str(jsonl(tmp_path / "d.jsonl", ROWS))
    for split in ("validation", "test"):
        tests = data.load_tests(parse({"data": {"tests": {"own": own, "passages": ""}}, "eval": {"split": split}}))
        assert list(tests) == ["everyday", "own"]  # own sets come on top of the shipped ones
        assert [pair.id for pair in tests["own"].pairs] == ["a", "b"]
    with pytest.raises(UserError, match="switches every test set off"):
        data.load_tests(parse({"data": {"tests": {"everyday": "", "passages": ""}}}))


def test_id_and_topic_are_optional(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"text": "One."}, {"text": "Two.", "id": 7, "topic": None}, {"text": "Three.", "id": ""}])
    corpus = data.load_train(train_on(path))
    assert corpus.kind == "texts"
    assert [(pair.id, pair.prompt, pair.reference, pair.topic) for pair in corpus.pairs] == [
        ("line-1", "", "One.", ""),
        ("7", "", "Two.", ""),
        ("line-3", "", "Three.", ""),
    ]


def test_blank_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("prompt,reference\nWhy?,Rain.\n,lost\nHow?,\n", encoding="utf-8")
    corpus = data.load_train(train_on(tmp_path / "d.csv"))
    assert [pair.prompt for pair in corpus.pairs] == ["Why?"]
    assert corpus.skipped == 2


def test_prompt_and_reference_win_over_text(tmp_path: Path) -> None:
    corpus = data.load_train(train_on(jsonl(tmp_path / "d.jsonl", [{**ROWS[0], "text": "other"}])))
    assert (corpus.kind, corpus.pairs[0].reference) == ("pairs", "Because it rains.")


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode() + b"\r\n\r\n" + json.dumps(ROWS[1]).encode())
    assert [pair.id for pair in data.load_train(train_on(path)).pairs] == ["a", "b"]


def test_own_probes_need_a_prompt_only(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"prompt": "Why?"}])
    assert data.load_probes(parse({"data": {"probes": str(path)}})) == [data.Pair("line-1", "Why?", "", "")]
    with pytest.raises(UserError, match="no column prompt"):
        data.load_probes(parse({"data": {"probes": str(jsonl(tmp_path / "q.jsonl", [{"text": "x"}]))}}))
    (tmp_path / "p.txt").write_text("Why?")
    with pytest.raises(UserError, match=r"\.txt"):
        data.load_probes(parse({"data": {"probes": str(tmp_path / "p.txt")}}))


# plain text ---------------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.sampled_from(["w", "longer", "= Heading ="]), max_size=700).map(" ".join), max_size=12))
def test_blocks_lose_no_word_and_are_never_too_long(lines: list[str]) -> None:
    blocks = list(data.blocks_of(lines))
    assert " ".join(blocks).split() == " ".join(lines).split()
    sizes = [len(block.split()) for block in blocks]
    assert all(0 < size <= data.BLOCK_WORDS for size in sizes)
    assert all(size >= data.BREAK_WORDS for size in sizes[:-1])


def test_a_block_ends_at_a_paragraph() -> None:
    paragraph = " ".join(["word"] * 100)
    blocks = list(data.blocks_of([paragraph, "", paragraph, "", paragraph]))
    assert [len(block.split()) for block in blocks] == [200, 100]
    assert blocks[0] == f"{paragraph}\n\n{paragraph}"


def test_a_text_file_is_continuation_text(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("A line.\n\nAnother.\n", encoding="utf-8")
    assert data.load_train(train_on(tmp_path / "d.txt")).pairs == [data.Pair("block-000001", "", "A line.\n\nAnother.", "")]


@pytest.mark.skipif("DCES_TEXT" not in os.environ, reason="DCES_TEXT names no text file of one's own")
def test_a_large_text_of_ones_own() -> None:
    path = Path(os.environ["DCES_TEXT"])
    pairs = data.load_train(train_on(path)).pairs
    assert sum(len(pair.reference.split()) for pair in pairs) == len(path.read_text(encoding="utf-8").split())


# bad input ----------------------------------------------------------------------------------------------------------------


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert "is not there" in refusal(tmp_path / "absent.jsonl")
    assert "is not a file" in refusal(tmp_path)
    assert "is not a file" in refusal("")
    assert "cannot be read" in refusal("x" * 5000)


def test_a_huge_file_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    with path.open("wb") as handle:
        handle.truncate(2**30)  # sparse: reading it would be slow, looking at its size is not
    assert "1,024 MiB, over the limit of 512 MiB" in refusal(path)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "txt", "parquet"])
def test_an_empty_a_binary_and_a_torn_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"d.{ending}"
    path.write_bytes(b"")
    assert "is empty" in refusal(path)
    path.write_bytes(b"\x7fELF\0\0\0" * 100)
    assert ("cannot be parsed" if ending == "parquet" else "binary") in refusal(path)
    path.write_bytes(b'text\n{"text": "caf\xe9"}\n')
    assert ("cannot be parsed" if ending == "parquet" else "not") in refusal(path)
    if ending != "parquet":
        path.write_bytes(b" \n\n")
        refusal(path)


def test_an_unknown_ending(tmp_path: Path) -> None:
    (tmp_path / "d.xlsx").write_bytes(b"x")
    assert "'.xlsx'; use one of .jsonl, .csv, .parquet, .txt" in refusal(tmp_path / "d.xlsx")


def test_a_huge_line_is_refused_before_it_is_read(tmp_path: Path) -> None:
    for ending in ("jsonl", "csv", "txt"):
        path = tmp_path / f"d.{ending}"
        path.write_text("text\n" * (ending == "csv") + "x" * (data.MAX_TEXT_BYTES + 1))
        assert f"line {1 + (ending == 'csv')} is over 1 MiB" in refusal(path)
    pl.DataFrame({"text": ["x" * (data.MAX_TEXT_BYTES + 1)]}).write_parquet(tmp_path / "d.parquet")
    assert "row 1: text is over 1 MiB" in refusal(tmp_path / "d.parquet")


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"prompt": "x"}], "has no column reference: give it prompt and reference, or text"),
        ([{"question": "x"}], "has no column prompt and no column reference"),
        ([{"text": "x"}, {"txt": "y"}], "line 2: text is missing"),
        ([{"text": "x"}, {"text": None}], "line 2: text is null"),
        ([{"text": "x"}, {"text": 3}], "line 2: text is a number"),
        ([{"text": ["x"]}], "line 1: text is a list"),
        ([{"text": "\ud800"}], "line 1: text has half a surrogate pair"),
        ([{"text": "x", "topic": 1}], "line 1: topic is a number"),
        ([{"text": "x", "id": True}], "line 1: id is true or false"),
        ([{"text": "x", "id": 1.5}], "line 1: id is a fraction"),
        ([{"text": "x", "id": "a"}, {"text": "y", "id": "a"}], "id 'a' occurs twice"),
        ([{"text": " "}, {"text": ""}], "has no usable row"),
        (["x"], "line 1 is not text"),
        ([[1]], "line 1 is a list"),
    ],
)
def test_bad_rows(tmp_path: Path, rows: list[Any], sentence: str) -> None:
    assert sentence in refusal(jsonl(tmp_path / "d.jsonl", rows))


@pytest.mark.parametrize("line", ["{'text': 'x'}", '{"text": "x"', "[" * 100_000, '{"text": ' + "9" * 5000 + "}"])
def test_invalid_json_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "x"}\n\n' + line)
    assert "line 3 is not JSON" in refusal(tmp_path / "d.jsonl")


def test_bad_csv_and_bad_parquet(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("prompt,reference\na,b,c\n")
    assert "cannot be parsed" in refusal(tmp_path / "d.csv")
    (tmp_path / "d.csv").write_text("question,answer\na,b\n")
    assert "has no column prompt" in refusal(tmp_path / "d.csv")
    (tmp_path / "d.csv").write_text("prompt,reference\n")
    assert "has no rows" in refusal(tmp_path / "d.csv")
    pl.DataFrame({"text": ["x", None]}).write_parquet(tmp_path / "d.parquet")
    assert "row 2: text is null" in refusal(tmp_path / "d.parquet")
    pl.DataFrame({"text": [1, 2]}).write_parquet(tmp_path / "d.parquet")
    assert "row 1: text is a number" in refusal(tmp_path / "d.parquet")


def test_the_field_is_named() -> None:
    for section, field in (
        ({"tests": {"mine": "no"}}, "data.tests.mine"),
        ({"probes": "no"}, "data.probes"),
    ):
        load = {"data.probes": data.load_probes}.get(field, data.load_tests)
        with pytest.raises(UserError, match=f"{field} = 'no' is not there"):
            load(parse({"data": section}))
