"""One prompt told through the rounds under two arms, and the prompts that fared worst."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import polars as pl
import streamlit as st

from dces_core.store import Run
from dces_core.ui import case, look, pairs, read, state, text


def pick_arms(run: Run) -> tuple[str, ...]:
    """The arm that the story is about, `plain` at first, and the one beside it."""
    every = run.config.arms
    return state.pick_pair((*(arm for arm in every if arm == "plain"), *(arm for arm in every if arm != "plain")))


def draw_story(own: pl.DataFrame, prompt: str, arms: tuple[str, ...], rounds: list[int], now: int) -> None:
    """One prompt: what became of it, the answers, and distinct words round by round. `own`: ANSWERS to this prompt."""
    modes = case.by_mode(own)
    badges = {arm: pairs.badge_of(modes["greedy"], arm) for arm in arms} if "greedy" in modes else {}
    look.show(
        f'<div class="ask big">{text.escaped(prompt)}</div><p class="lead">{text.escaped(case.verdict(modes, arms))}</p>', key="verdict"
    )
    body = case.story(modes, arms, case.told(rounds, now), now)
    look.show(case.columns_of(arms, badges, body), key="story")
    what = " The mark beside an arm's name is about its greedy answers." if badges else ""
    look.show(f'<p class="quiet">{pairs.legend(pairs.View())}{pairs.RULE}{what}</p>')
    st.subheader("Distinct words, round by round", anchor=False)
    look.show(case.word_table(modes, arms, rounds, now), key="words")
    look.show(f'<p class="quiet">{pairs.WORDS} × marks an answer that is empty or ends in a loop.</p>')


def draw_reference(run: Run, arm: str, prompt_id: str) -> None:
    """The reference of an evaluation prompt, folded."""
    known = read.generations(run, arm, read.finished(run, arm)[0]).filter(pl.col("prompt_id") == prompt_id)
    if known.height and known["reference"][0] is not None:
        with st.expander("The reference answer to this prompt"):
            look.show(text.mark(known["reference"][0], highlight=False))


def draw_worst(run: Run, answers: pl.DataFrame, arms: tuple[str, ...]) -> None:
    """The prompts that fared worst under the first arm, with the other arm's answers beside them."""
    left, right = arms[0], arms[1] if len(arms) > 1 else None
    last = max(read.finished(run, left), default=0)
    st.subheader(f"What degenerated most under {left}", anchor=False)
    if last == 0:
        state.empty("No round to look back on yet", f"{left} has not finished round 1.")
        return
    worst = case.ranked(answers, left, right, last)
    look.show(f'<p class="lead">{text.escaped(summary(answers, arms, last, worst))}</p>', key="summary")
    address = lambda one: f"?{urlencode({'run': run.id, 'vs': ','.join(arms), 'prompt': one.prompt_id})}"  # noqa: E731
    rows = "".join(case.worst_case(one, arms, last, address(one)) for one in worst[: case.WORST])
    if rows:
        look.show(case.columns_of(arms, {}, rows), key="worst")
    if right is not None:
        label = f"The other way round: what degenerated most under {right}"
        bare: Any = {"type": "tertiary", "icon": ":material/swap_horiz:", "key": "swap"}
        st.button(label, on_click=state.put, args=("vs", f"{right},{left}"), **bare)


def summary(answers: pl.DataFrame, arms: tuple[str, ...], last: int, worst: list[case.Worst]) -> str:
    """How many answers are degenerate under either arm, and what is listed."""
    counts = [(arm, *case.degenerate_share(answers, arm, last)) for arm in arms]
    said = [f"{bad} of {total} under {arm}" if total else f"none stored under {arm}" for arm, bad, total in counts]
    head = f"Answers to all watched and evaluation prompts in round {last} that are empty or end in a loop: {', '.join(said)}."
    if not worst:
        return f"{head} No prompt is answered worse than in round 0."
    loops = "" if worst[0].end == 1 else " None of them is empty or a loop: they only repeat themselves more."
    shown = min(case.WORST, len(worst))
    return f"{head} Below: {shown} of the {len(worst)} prompts answered worse than in round 0, the most degenerate first.{loops}"


def page() -> None:
    """Draw the page."""
    run = state.need_run()
    state.heading("Case study", run)
    _, rounds = state.need_rounds(run)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="large"):
        arms = pick_arms(run)
        now = state.pick_round(run, rounds, "evaluate")
    answers = case.answers_of(run, arms)
    if not answers.height:
        state.empty("No answer to read", "This run watches no prompt and keeps no evaluation answers.")
        return
    prompts = case.prompts_of(answers)
    prompt_id = state.pick_prompt(prompts)
    own = answers.filter(pl.col("prompt_id") == prompt_id)
    draw_story(own, prompts[prompt_id], arms, rounds, now)
    draw_reference(run, arms[0], prompt_id)
    draw_worst(run, answers, arms)
    look.show(f'<p class="quiet">{text.escaped(case.heat.RULE)}</p>')


state.run_page(page)
