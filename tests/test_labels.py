from __future__ import annotations

from pathlib import Path

import pytest
from kit import make_config

from dces_core import labels, store
from dces_core.errors import UserError
from dces_core.labels import Labels
from dces_core.store import Run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("DCES_RUNS", str(tmp_path / "runs"))
    return store.create(make_config(tmp_path, note="as launched"), {})


def test_a_run_without_labels_has_the_note_it_was_launched_with(run: Run) -> None:
    assert labels.read(run) == Labels()
    assert labels.note_of(run) == "as launched"


def test_each_label_is_changed_alone(run: Run) -> None:
    before, digest = (run.path / "run.json").read_bytes(), run.config.digest()
    labels.rename(run, "  the one with 1.2  ")
    labels.set_note(run, "line one\nline two")
    labels.tag(run, ["b", "a", "b"])
    labels.tag(run, ["c"], ["a", "never-there"])
    assert labels.read(run) == Labels("the one with 1.2", "line one\nline two", ("b", "c"))
    labels.rename(run, "")
    labels.set_note(run, "")
    assert labels.read(run) == Labels("", "", ("b", "c")) and labels.note_of(run) == ""
    assert (run.path / "run.json").read_bytes() == before and run.config.digest() == digest


@pytest.mark.parametrize("text", ["x" * 81, "two\nlines", "bell\x07", "rtl\u202e"])
def test_a_label_is_one_printable_line(run: Run, text: str) -> None:
    with pytest.raises(UserError, match="one line of at most 80"):
        labels.rename(run, text)
    assert not run.labels_path.exists()


@pytest.mark.parametrize("tag", ["", "two words", "../up", "<b>", "x" * 65, "-first", ":red[x]"])
def test_a_tag_is_a_plain_word(run: Run, tag: str) -> None:
    with pytest.raises(UserError, match="must use letters, digits"):
        labels.tag(run, [tag])
    assert labels.read(run).tags == ()


def test_there_are_bounds(run: Run) -> None:
    with pytest.raises(UserError, match="at most 2000"):
        labels.set_note(run, "x" * 2001)
    with pytest.raises(UserError, match="21 are too many"):
        labels.set_tags(run, [f"t{i}" for i in range(21)])


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"label": 3, "note": [], "tags": "a"}', '{"label": "a\\nb", "tags": [1, null, "two words"]}']
)
def test_a_damaged_file_hides_nothing_and_is_mended_by_the_next_change(run: Run, text: str) -> None:
    run.labels_path.write_text(text, encoding="utf-8")
    assert labels.read(run) == Labels() and labels.note_of(run) == "as launched"
    assert [found.id for found in store.discover(recorded=False)] == [run.id]
    labels.tag(run, ["kept"])
    assert labels.read(run).tags == ("kept",)


def test_parts_that_are_whole_survive_a_part_that_is_not(run: Run) -> None:
    run.labels_path.write_text('{"label": "good", "note": 7, "tags": ["ok", "not ok"]}', encoding="utf-8")
    assert labels.read(run) == Labels("good", None, ("ok",))


def test_tags_of_several_runs(run: Run, tmp_path: Path) -> None:
    other = store.create(make_config(tmp_path), {}, tmp_path / "runs" / "other")
    labels.tag(run, ["b", "a"])
    labels.tag(other, ["b", "c"])
    assert labels.all_tags([run, other]) == ["a", "b", "c"]


def test_shipped_runs_and_places_that_refuse(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(labels, "write_json", full)
    with pytest.raises(UserError, match="No space left"):
        labels.rename(run, "x")
    monkeypatch.setattr(store, "recorded_root", lambda: run.path.parent)
    with pytest.raises(UserError, match="only be read"):
        labels.rename(run, "x")
