"""Answers side by side: what is said about each, what it is compared with, and which of them a list shows."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import polars as pl
import streamlit as st

from dces_core.metrics.text import ends_in_loop, units
from dces_core.ui import heat, look, state, text

RULE = "Degenerate: the answer is empty or ends in a loop (a period of at most 16 units, 3 full repeats, 8 units or more)."
WORDS = "Distinct words: words that differ, upper and lower case taken as one."
DIFFS = {"off": "Nothing", "round": "Previous round", "arm": "Other arm"}
MOST_FOUND = 200  # characters of a search
COLUMN = "minmax(172px, 1fr)"
NUMBERS = ("degeneracy", "rep_4", "bertscore_f1")

#: (arm, round) -> the answer; None where none is stored. Absent where the arm has not finished the round.
Answers = dict[tuple[str, int], str | None]


@dataclass(frozen=True)
class View:
    """How answers are shown: what a word diff compares with, whether loops are highlighted, what is searched for."""

    diff: str = "off"  # of DIFFS
    base: str = ""  # the arm that `arm` compares with
    highlight: bool = True
    find: str = ""


def degenerate(answer: str | None) -> bool:
    """Empty, or ending in a loop."""
    return heat.degeneracy(answer or "") == 1


def word_counts(answer: str) -> tuple[int, int]:
    """Distinct words (regardless of case) and words of a text; punctuation marks are none."""
    words = [unit.lower() for unit in units(answer) if unit[0].isalnum() or unit[0] == "_"]
    return len(set(words)), len(words)


def facts(answer: str | None, before: str | None = None) -> str:
    """What is measured on one answer, as a line of HTML."""
    if answer is None:
        return ""
    distinct, words = word_counts(answer)
    said = f"{distinct} distinct of {words} word{'' if words == 1 else 's'}" if words else "no words"
    same = " &nbsp; unchanged" if before == answer else ""
    loop = ' &nbsp; <span class="badge bad">ends in a loop</span>' if ends_in_loop(answer) else ""
    return f'<p class="num fact"><span class="quiet">{said}{same}</span>{loop}</p>'


def badge_of(answers: Answers, arm: str) -> str:
    """Says "collapsed at round k" where every answer from there on is degenerate; else how many are."""
    rounds = sorted(round_ for name, round_ in answers if name == arm)
    bad = [round_ for round_ in rounds if degenerate(answers[arm, round_])]
    if not rounds:
        return ""
    if not bad:
        return f'<span class="badge good">not degenerate up to round {rounds[-1]}</span>'
    if bad == rounds[-len(bad) :]:
        return f'<span class="badge bad">collapsed at round {bad[0]}</span>'
    return f'<span class="badge bad">degenerate in {len(bad)} of {len(rounds)} rounds, first in {bad[0]}</span>'


def compared(answers: Answers, arm: str, round_: int, view: View) -> str | None:
    """The text that an answer's word diff starts from; None where there is none."""
    if view.diff == "round":
        earlier = [at for name, at in answers if name == arm and at < round_]
        return answers[arm, max(earlier)] if earlier else None
    return answers.get((view.base, round_)) if view.diff == "arm" and arm != view.base else None


def said(answers: Answers, arm: str, round_: int, view: View) -> str:
    """One answer as a block of HTML, marked as the view asks."""
    if (arm, round_) not in answers:
        return '<div class="said"><span class="none">not evaluated yet</span></div>'
    answer, before = answers[arm, round_], compared(answers, arm, round_, view)
    if answer and before is not None:
        return text.diff(before, answer, view.highlight)
    return text.mark(answer, view.highlight)


def beside(answers: Answers, arms: Sequence[str], round_: int, view: View, more: Sequence[tuple[str, str]] = ()) -> str:
    """The answers of one round side by side with what is measured on them; `more`: heads and bodies (HTML) to the right."""
    columns = [*((look.chip(arm), full(answers, arm, round_, view)) for arm in arms), *more]
    return grid(f"repeat({len(columns)}, {COLUMN})", [head for head, _ in columns], [f"<div>{body}</div>" for _, body in columns])


def full(answers: Answers, arm: str, round_: int, view: View) -> str:
    """An answer and the facts on it."""
    return said(answers, arm, round_, view) + facts(answers.get((arm, round_)), compared(answers, arm, round_, view))


def through(answers: Answers, arms: Sequence[str], now: int, view: View) -> str:
    """Every round of one prompt: rows are rounds, columns are arms."""
    heads = ["", *(f"{look.chip(arm)} &nbsp;{badge_of(answers, arm)}" for arm in arms)]
    cells = []
    for round_ in sorted({round_ for _, round_ in answers}):
        cells.append(f'<div class="round{" now" if round_ == now else ""}">{round_}</div>')
        cells += [f"<div>{said(answers, arm, round_, view)}</div>" for arm in arms]
    return grid(f"2.2rem repeat({len(arms)}, {COLUMN})", heads, cells)


def grid(columns: str, heads: Sequence[str], cells: Sequence[str]) -> str:
    """Aligned columns (of CSS) that scroll sideways where the screen is narrow. `cells`: divisions of HTML, row by row."""
    head = "".join(f'<div class="head">{words}</div>' for words in heads)
    return look.scroll(f'<div class="pairs" style="grid-template-columns:{columns}">{head}{"".join(cells)}</div>')


def legend(view: View) -> str:
    """What the marks in the texts mean."""
    keys = ['<span class="loop">loop at the end</span>', '<span class="rep">repeated 4-grams</span>'] if view.highlight else []
    keys += ["<del>gone</del>", "<ins>new</ins>"] if view.diff != "off" else []
    return f'<span class="said keys">{" &nbsp; ".join(keys)}</span> &nbsp; ' if keys else ""


# the list of evaluation answers -----------------------------------------------------------------------------------------


def evaluation_table(answers: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """One row per evaluation prompt: prompt_id, topic, prompt, reference, and per arm its figures and its text. `answers`: GENERATIONS."""
    shared, figures = ["prompt_id", "topic", "prompt", "reference"], ["loop", "rep_4", "bertscore_f1", "text"]
    keys = pl.concat([frame.select(shared) for frame in answers.values()]).unique("prompt_id", maintain_order=True)
    for arm, frame in answers.items():
        values = [None if said is None else heat.degeneracy(said) for said in frame["text"].to_list()]
        own = frame.select("prompt_id", *figures).with_columns(pl.Series("degeneracy", values, dtype=pl.Float64))
        named = own.rename({name: f"{arm} {name}" for name in ["degeneracy", *figures]})
        keys = keys.join(named, on="prompt_id", how="left", maintain_order="left")
    return keys


def worst_first(table: pl.DataFrame, arms: Sequence[str]) -> pl.DataFrame:
    """The most degenerate answer of any of these arms first; among equals the one farthest from the reference, then by id."""
    worst = pl.max_horizontal(*(f"{arm} degeneracy" for arm in arms))
    farthest = pl.min_horizontal(*(f"{arm} bertscore_f1" for arm in arms))
    return table.sort(worst, farthest, "prompt_id", descending=[True, False, False], nulls_last=True)


def matches(find: str, columns: Sequence[str]) -> pl.Expr:
    """Rows in which one of the columns holds the searched words, upper and lower case taken as one."""
    hits = [pl.col(name).str.to_lowercase().str.contains(find.lower(), literal=True).fill_null(False) for name in columns]
    return pl.any_horizontal(*hits) if find else pl.lit(True)


def chosen_answers(table: pl.DataFrame, topic: str, find: str) -> pl.DataFrame:
    """Rows of `evaluation_table` of a topic ("": of all) in whose prompt or answers the searched words are."""
    of_topic = table.filter(pl.col("topic") == topic) if topic else table
    return of_topic.filter(matches(find, ["prompt", *(name for name in table.columns if name.endswith(" text"))]))


def row_picked(key: str, ids: Sequence[str]) -> None:
    """Callback of the list: the picked row's prompt goes into the address bar."""
    rows = st.session_state[key]["selection"]["rows"]
    if rows and rows[0] < len(ids):
        state.put("answer", ids[rows[0]])


def pick_row(table: pl.DataFrame, arms: Sequence[str], name: str) -> dict[str, Any]:
    """Draw the list; the row of the address bar's `answer`, else the first. `name` changes with what the list shows."""
    ids = table["prompt_id"].to_list()
    at = ids.index(state.asked("answer")) if state.asked("answer") in ids else 0
    key = f"worst-{zlib.crc32(name.encode())}"
    columns: dict[str, Any] = {"prompt": st.column_config.TextColumn(width=320), "topic": st.column_config.TextColumn(width=110)}
    shown = ["prompt", "topic", *(f"{arm} {name}" for arm in arms for name in NUMBERS)]
    columns |= {name: st.column_config.NumberColumn(format="%.3f") for name in shown[2:]}
    bare: Any = {"hide_index": True, "height": min(280, 38 + 35 * table.height), "column_config": columns, "placeholder": "–"}
    bare |= {"selection_mode": "single-row-required", "selection_default": {"selection": {"rows": [at]}}}
    alt = "The evaluation prompts with the figures of each arm"
    st.dataframe(table.select(shown), key=key, on_select=partial(row_picked, key, ids), alt=alt, **bare)
    return table.row(at, named=True)


# linked controls --------------------------------------------------------------------------------------------------------


def changed_or_none(name: str) -> None:
    """Callback of a linked control that may be empty: its value goes into the address bar, or the parameter goes."""
    if st.session_state[f"pick-{name}"]:
        state.changed(name)
    else:
        state.forget(name)


def pick_words(name: str, label: str) -> str:
    """A linked search field."""
    found = (state.asked(name) or "")[:MOST_FOUND]
    st.session_state[f"pick-{name}"] = found
    if found:
        state.put(name, found)
    bare: Any = {"icon": ":material/search:", "max_chars": MOST_FOUND, "width": 280, "type": "search"}
    return str(st.text_input(label, key=f"pick-{name}", on_change=changed_or_none, args=(name,), **bare) or "").strip()


def pick_one(name: str, label: str, options: Sequence[str], none: str) -> str:
    """A linked choice of one of these, or of none (""), which is what it starts with."""
    key = state.linked(name, ["", *options], "")
    bare: Any = {"format_func": lambda option: option or none, "width": 220}
    return str(st.selectbox(label, ["", *options], key=key, on_change=changed_or_none, args=(name,), **bare))


def pick_view(arms: Sequence[str]) -> View:
    """The controls of a View: `find`, `diff`, `base` and `highlight` of the address bar."""
    find = pick_words("find", "Search prompts and answers")
    kinds = [kind for kind in DIFFS if kind != "arm" or len(arms) > 1]
    key = state.linked("diff", kinds, "off")
    bare: Any = {"format_func": DIFFS.get, "required": True}
    diff = str(st.segmented_control("Word diff to", kinds, key=key, on_change=state.changed, args=("diff",), **bare))
    base = ""
    if diff == "arm":
        key = state.linked("base", arms, "plain" if "plain" in arms else arms[0])
        base = str(st.selectbox("Compared with", arms, key=key, on_change=state.changed, args=("base",), width=150))
    key = state.linked("highlight", [True, False], True)
    highlight = st.toggle("Highlight loops and repeats", key=key, on_change=state.changed, args=("highlight",))
    return View(diff, base, highlight, find)
