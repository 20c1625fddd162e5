"""One prompt's story under two arms: which rounds it is told at, what became of the answers, and which prompts fared worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import polars as pl

from dces_core.metrics.text import evenly
from dces_core.store import Run
from dces_core.ui import heat, look, pairs, read, text

EVALUATION = "evaluation"  # the decoding of evaluation answers: the run's own settings, beside the probes' greedy and sampled
MOST_ROUNDS = 12  # columns of the table of distinct words
WORST = 5

#: One answer a row: arm, round, prompt_id, prompt, mode, text.
ANSWERS = {"arm": pl.String, "round": pl.Int32, "prompt_id": pl.String, "prompt": pl.String, "mode": pl.String, "text": pl.String}


@dataclass(frozen=True)
class Worst:
    """A prompt that fared badly: its answer under the left arm at its last round, and how degenerate it was in round 0 and then."""

    prompt_id: str
    prompt: str
    mode: str
    start: float
    end: float
    left: str
    right: str | None


def answers_of(run: Run, arms: Sequence[str]) -> pl.DataFrame:
    """ANSWERS to all watched and evaluation prompts in all finished rounds."""
    parts = [pl.DataFrame(schema=ANSWERS), read.probes(run, tuple(arms)).select(list(ANSWERS))]
    for arm in arms:
        for round_ in read.finished(run, arm):
            known = [pl.lit(arm).alias("arm"), pl.lit(round_, pl.Int32).alias("round"), pl.lit(EVALUATION).alias("mode")]
            parts.append(read.generations(run, arm, round_).with_columns(known).select(list(ANSWERS)))
    return pl.concat(parts)


def prompts_of(answers: pl.DataFrame) -> dict[str, str]:
    """Prompts by id, watched ones first."""
    return dict(answers.select("prompt_id", "prompt").unique("prompt_id", maintain_order=True).iter_rows())


def told(rounds: Sequence[int], at: int) -> list[int]:
    """The rounds that the story stops at: the first, the middle, the last, and the one that is picked."""
    return sorted({rounds[0], rounds[len(rounds) // 2], rounds[-1], at})


def by_mode(answers: pl.DataFrame) -> dict[str, pairs.Answers]:
    """ANSWERS of one prompt, for each mode."""
    table: dict[str, pairs.Answers] = {}
    for row in answers.sort("mode", "round").to_dicts():
        table.setdefault(row["mode"], {})[row["arm"], row["round"]] = row["text"]
    return table


def verdict(modes: dict[str, pairs.Answers], arms: Sequence[str]) -> str:
    """What became of this prompt, in plain sentences; also when nothing did."""
    parts, any_bad = [], False
    for arm in arms:
        known = [(round_, mode, said) for mode, own in modes.items() for (name, round_), said in own.items() if name == arm]
        bad = sorted((round_, mode) for round_, mode, said in known if pairs.degenerate(said))
        any_bad |= bool(bad)
        if bad:
            parts.append(f"under {arm} {len(bad)} of {len(known)}, first in round {bad[0][0]} ({bad[0][1]})")
        elif known:
            parts.append(f"under {arm} none of {len(known)}")
    if not parts:
        return "No answer to this prompt is stored."
    head = "" if any_bad else "This prompt does not degenerate here; what degenerated most, if anything, stands below. "
    return f"{head}Answers that are empty or end in a loop: {'; '.join(parts)}."


def ranked(answers: pl.DataFrame, left: str, right: str | None, last: int) -> list[Worst]:
    """Every prompt that `left` answers worse in round `last` than in round 0, the most degenerate first.

    A prompt with several modes counts once, by its worst. Among equals the larger rise comes first, then the id.
    """
    rows = answers.filter(pl.col("round").is_in([0, last])).to_dicts()
    texts = {(row["arm"], row["round"], row["prompt_id"], row["mode"]): row["text"] for row in rows}
    prompts = prompts_of(answers)
    found: dict[str, Worst] = {}
    for (arm, round_, prompt_id, mode), said in texts.items():
        before = texts.get((left, 0, prompt_id, mode))
        if (arm, round_) != (left, last) or said is None or before is None:
            continue
        start, end = heat.degeneracy(before), heat.degeneracy(said)
        beside = None if right is None else texts.get((right, last, prompt_id, mode))
        known = found.get(prompt_id)
        if end > start and (known is None or (end, end - start) > (known.end, known.end - known.start)):
            found[prompt_id] = Worst(prompt_id, prompts[prompt_id], mode, start, end, said, beside)
    return sorted(found.values(), key=lambda one: (-one.end, one.start - one.end, one.prompt_id))


def degenerate_share(answers: pl.DataFrame, arm: str, round_: int) -> tuple[int, int]:
    """How many of an arm's stored answers in a round are empty or end in a loop, and of how many."""
    texts = answers.filter((pl.col("arm") == arm) & (pl.col("round") == round_))["text"].drop_nulls().to_list()
    return sum(map(pairs.degenerate, texts)), len(texts)


# as HTML ----------------------------------------------------------------------------------------------------------------


def columns_of(arms: Sequence[str], badges: dict[str, str], body: str) -> str:
    """The frame of all rows below: one narrow column of labels, one wide one per arm; one under the other on a narrow screen."""
    head = "".join(f'<div class="head">{look.chip(arm)} &nbsp;{badges.get(arm, "")}</div>' for arm in arms)
    return f'<div class="case" style="--arms:{len(arms)}"><div class="head"></div>{head}{body}</div>'


def answer_cell(arm: str, answers: pairs.Answers, round_: int, kind: str = "") -> str:
    """One answer with its facts; the arm's name shows where the columns are stacked."""
    return f'<div class="{kind}"><span class="who">{look.chip(arm)}</span>{pairs.full(answers, arm, round_, pairs.View())}</div>'


def story(modes: dict[str, pairs.Answers], arms: Sequence[str], rounds: Sequence[int], now: int) -> str:
    """The answers at these rounds: rows are round and mode, columns are arms. Round 0 is one model, so it is shown once."""
    parts = []
    for round_ in rounds:
        for index, (mode, answers) in enumerate(modes.items()):
            kind = "" if index else "first"
            title = "" if index else f"<b>Round {round_}</b>"
            parts.append(f'<div class="when {kind}{" now" if round_ == now else ""}">{title}<span>{mode}</span></div>')
            if round_:
                parts += [answer_cell(arm, answers, round_, kind) for arm in arms]
                continue
            same = next((arm for arm in arms if (arm, 0) in answers), arms[0])
            note = "" if index or len(arms) < 2 else '<p class="quiet">Before the first round all arms are one model.</p>'
            parts.append(f'<div class="all {kind}">{pairs.full(answers, same, 0, pairs.View())}{note}</div>')
    return "".join(parts)


def word_table(modes: dict[str, pairs.Answers], arms: Sequence[str], rounds: Sequence[int], now: int) -> str:
    """Distinct words of every answer, round by round; a cross where it is empty or ends in a loop."""
    newest = sorted(rounds, reverse=True)
    shown = sorted(newest[index] for index in evenly(len(newest), MOST_ROUNDS))
    lines = []
    for mode, answers in modes.items():
        for arm in arms:
            cells = "".join(word_cell(answers, arm, round_, round_ == now) for round_ in shown)
            lines.append(f"<tr><td>{mode}</td><td>{look.chip(arm)}</td>{cells}</tr>")
    head = "".join(f"<th>{round_}</th>" for round_ in shown)
    return look.table(f"<th></th><th>round</th>{head}", lines)


def word_cell(answers: pairs.Answers, arm: str, round_: int, now: bool) -> str:
    """One figure of `word_table`."""
    said = answers.get((arm, round_))
    words = "–" if said is None else str(pairs.word_counts(said)[0])
    bad = said is not None and pairs.degenerate(said)
    return f'<td class="{"now" if now else ""}{" worse" if bad else ""}">{words}{" ×" if bad else ""}</td>'


def worst_case(one: Worst, arms: Sequence[str], last: int, address: str) -> str:
    """One of the prompts that fared worst: the prompt, then both answers. `address`: query of this page for its story."""
    said: pairs.Answers = {(arms[0], last): one.left}
    if len(arms) > 1 and one.right is not None:
        said[arms[1], last] = one.right
    moved = f"{text.escaped(one.prompt_id)}, {one.mode}; degeneracy {one.start:.2f} in round 0, {one.end:.2f} in round {last}"
    link = f'<a href="{escape(address)}">Its story</a>'
    head = f'<div class="ask">{text.escaped(one.prompt)}</div><p class="quiet num">{moved} &nbsp; {link}</p>'
    answers = "".join(answer_cell(arm, said, last) for arm in arms)
    return f'<div class="when first"></div><div class="all first">{head}</div><div class="when"></div>{answers}'
