"""What DCES is meant to reach, judged by the recorded studies: each goal is a set of comparisons with limits.

A comparison holds where its whole 95% interval over seeds does (below five seeds: every point), fails where the whole interval does, and is
open otherwise, or while a planned seed is missing. One that fails decides its goal; all must hold for the goal to be reached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dces_core.answers import HAND_EYE, answer, coherent, degenerate, described, plausible
from dces_core.compare import LOG_METRICS
from dces_core.evidence import Estimate, Evidence, Seeds, estimate, words

State = Literal["reached", "not reached", "not decided"]
Studies = Mapping[str, Evidence]  # those that have finished units, by name

JUDGED = ("dces", "dces-targets")
STATIC = ("plain", "random", "ppl-low", "ppl-high", "ppl-band", "semdedup", "toedit")
ABLATIONS = ("dces-no-edit", "dces-static", "dces-no-filter", "dces-no-gate", "edit-random")
CHAIN, INHERIT, COLLAPSE = "chain", "inherit", "collapse"
IN_DOMAIN = "everyday"
MARGIN_NATS = 0.02
RANK: dict[State, int] = {"not reached": 0, "not decided": 1, "reached": 2}


@dataclass(frozen=True)
class Limit:
    """A bound; a value that equals it but for rounding is on it."""

    sign: Literal["<", "≤", ">", "≥"]
    value: float

    def holds(self, value: float) -> bool:
        """Whether the value is within the bound."""
        if math.isclose(value, self.value, rel_tol=1e-9, abs_tol=1e-12):
            return self.sign in "≤≥"
        return self.excess(value) < 0

    def excess(self, value: float) -> float:
        """How far the value is beyond the bound; below 0: to spare."""
        return value - self.value if self.sign in "<≤" else self.value - value

    def __str__(self) -> str:
        return f"{self.sign} {self.value:g}"


@dataclass(frozen=True)
class Part:
    """One comparison of a goal."""

    what: str  # parts of the same quantity are reported together
    where: str  # test set, and competitor where there is one
    limits: tuple[Limit, ...]
    found: Estimate | None
    lack: str = ""  # why it cannot be decided, whatever the figure
    kind: Literal["ratio", "difference", "level"] = "ratio"

    @property
    def state(self) -> State:
        """Judged by both ends of the estimate."""
        if self.lack or self.found is None:
            return "not decided"
        ends = (self.found.low, self.found.high)
        if all(limit.holds(end) for limit in self.limits for end in ends):
            return "reached"
        return "not reached" if any(not any(map(limit.holds, ends)) for limit in self.limits) else "not decided"

    @property
    def reason(self) -> str:
        """Why it is not decided."""
        if self.lack or self.found is None:
            return self.lack or "undefined"
        return "an interval spans the limit" if self.found.interval else "points on both sides of the limit"

    @property
    def rank(self) -> tuple[int, float]:
        """Sorts the worst part first: by state, then by how far its mean is beyond a limit."""
        if self.found is None:
            return RANK[self.state], math.inf
        return RANK[self.state], -max(limit.excess(self.found.mean) for limit in self.limits)

    @property
    def figure(self) -> str:
        """The estimate in words."""
        if self.found is None:
            return "no figure"
        return words(self.found, "×" if self.kind == "ratio" else "", signed=self.kind == "difference")


@dataclass(frozen=True)
class Verdict:
    """A goal, judged for one arm."""

    state: State
    reason: str  # why not decided; else empty
    figures: tuple[str, ...]  # by how much


def joined(parts: Sequence[Part]) -> State:
    """Whether all hold."""
    return min((part.state for part in parts), key=RANK.__getitem__, default="not decided")


def judged(parts: Sequence[Part], *notes: str) -> Verdict:
    """The verdict on comparisons that must all hold: of each quantity how many do, and the worst."""
    figures = []
    for what in dict.fromkeys(part.what for part in parts):
        group = [part for part in parts if part.what == what]
        worst = min(group, key=lambda part: part.rank)
        hold, undecided = (sum(part.state == state for part in group) for state in ("reached", "not decided"))
        many = f"{hold} of {len(group)} hold{f', {undecided} open' if undecided else ''}; worst: " if len(group) > 1 else ""
        limits = " and ".join(map(str, worst.limits))
        figures.append(f"{what} {limits}: {many}{' '.join(filter(None, (worst.where, worst.figure)))}")
    state = joined(parts)
    return Verdict(state, reasons(parts) if state == "not decided" else "", (*figures, *notes))


def reasons(parts: Sequence[Part]) -> str:
    """Why those that are not decided are not."""
    found = list(dict.fromkeys(part.reason for part in parts if part.state == "not decided"))
    more = f"; {len(found) - 2} more such" if len(found) > 2 else ""
    return "; ".join(found[:2]) + more or "nothing to compare"


# comparisons ------------------------------------------------------------------------------------------------------------


def against(study: Evidence, arm: str, other: str, metric: str, test_set: str, sign: Literal["<", ">"]) -> Part:
    """The arm's last round over (LOG_METRICS) or minus the other's, paired by seed, must be below or above 1 or 0."""
    values, log = study.against(arm, other, metric, test_set), metric in LOG_METRICS
    what = f"{_name(metric)} {'over' if log else 'minus'} the other's"
    limit, lack = Limit(sign, 1 if log else 0), study.lack((arm, other), values)
    return Part(what, f"against {other} on {test_set}", (limit,), estimate(values, log), lack, "ratio" if log else "difference")


def since_0(study: Evidence, arm: str, metric: str, test_set: str, *limits: Limit, ratio: bool = True, round_: int | None = None) -> Part:
    """The arm's last round (or another) over round 0 of the same seed, or minus it."""
    values = study.change(arm, metric, test_set, round_, ratio)
    what = f"{_name(metric)} {'over' if ratio else 'minus'} round 0"
    found, lack = estimate(values, metric in LOG_METRICS), study.lack((arm,), values)
    return Part(what, f"on {test_set}", limits, found, lack, "ratio" if ratio else "difference")


def _name(metric: str) -> str:
    return {"ppl": "perplexity", "ece": "ECE"}.get(metric, metric)


# the goals --------------------------------------------------------------------------------------------------------------


def _static(studies: Studies, arm: str) -> Verdict:
    parts, notes = [], []
    if chain := studies.get(CHAIN):
        parts += [against(chain, arm, other, metric, on, "<") for metric in ("ppl", "ece") for other in STATIC for on in chain.test_sets]
    if inherit := studies.get(INHERIT):
        others = [other for other in STATIC if other in inherit.planned]
        parts += [against(inherit, arm, other, "gain_kept", test_set, ">") for other in others for test_set in inherit.test_sets]
        absent = [other for other in STATIC if other not in others]
        notes += [f"not in {INHERIT}: {', '.join(absent)}"] if absent else []
    missing = [name for name in (CHAIN, INHERIT) if name not in studies]
    found = judged(parts, *notes)
    if not missing or found.state == "not reached":
        return found
    return Verdict("not decided", "; ".join(filter(None, (*map(_no_unit, missing), found.reason if parts else ""))), found.figures)


def _no_unit(study: str) -> str:
    return f"study {study} has no finished unit yet"


def _level(study: Evidence, arm: str) -> Verdict:
    parts = [since_0(study, arm, "ppl", test_set, Limit("≤", 1.05)) for test_set in study.test_sets]
    for test_set in study.test_sets:
        rise = since_0(study, "plain", "ppl", test_set, Limit(">", 1.5 if test_set == IN_DOMAIN else 1.2))
        parts.append(Part(f"plain's {rise.what} on {test_set}", "", rise.limits, rise.found, rise.lack))
    return judged(parts)


def _entropy(study: Evidence, arm: str) -> Verdict:
    within, near = (Limit("≥", 0.95), Limit("≤", 1.05)), (Limit("≥", -0.02), Limit("≤", 0.02))
    entropy = [since_0(study, arm, "entropy_real", test_set, *within) for test_set in study.test_sets]
    return judged([*entropy, *(since_0(study, arm, "ece", test_set, *near, ratio=False) for test_set in study.test_sets)])


def _loops(study: Evidence, arm: str) -> Verdict:
    values = study.values(arm, "loop_rate")
    return judged([Part("loop_rate", "", (Limit("≤", 0.01),), estimate(values), study.lack((arm,), values), "level")])


def _ablations(study: Evidence, arm: str) -> Verdict:
    parts = [against(study, arm, other, "ppl", test_set, "<") for other in ABLATIONS for test_set in study.test_sets]
    return judged(parts, *(["the four ablations are those of dces: they edit the text"] if arm == "dces-targets" else []))


def _real10(study: Evidence, arm: str) -> Verdict:
    parts = []
    for test_set in study.test_sets:
        logs: Seeds = {seed: math.log(ratio) for seed, ratio in study.against("real10", arm, "ppl", test_set).items()}
        what, lack = f"log perplexity of real10 minus {arm}'s", study.lack(("real10", arm), logs)
        parts.append(Part(what, f"on {test_set}", (Limit(">", -MARGIN_NATS),), estimate(logs), lack, "difference"))
    return judged(parts, "real10 trains on real text, DCES only reads statistics of the real training split")


def _watched(study: Evidence, arm: str) -> Verdict:
    both = [seed for seed in study.done.get("plain", []) if seed in study.done.get(arm, [])]
    lack, holds, figures = study.lack(("plain", arm), dict.fromkeys(both, 1.0)), True, []
    for seed in both:
        theirs, mine = (answer(study, name, seed, study.last) for name in ("plain", arm))
        if theirs is None or mine is None:
            lack = lack or f"{HAND_EYE!r} is not among the watched prompts"
            continue
        likely = plausible(mine, study.plausible.get(seed))
        lack = lack or ("" if likely is not None else f"no limit for the perplexity of {arm}'s answer under M_0")
        bad, good = degenerate(theirs.text), coherent(mine.text) and likely is not False
        holds = holds and bad and good
        under = "" if mine.frozen_logprob is None else f", perplexity under M_0 {math.exp(-mine.frozen_logprob):.3g}"
        figures.append(f"plain's answer, seed {seed}: {'' if bad else 'not '}degenerate ({described(theirs.text)})")
        figures.append(f"{arm}'s answer, seed {seed}: {'' if good else 'not '}coherent ({described(mine.text)}{under})")
    return Verdict("not decided" if lack else "reached" if holds else "not reached", lack, tuple(figures))


def _better(study: Evidence, arm: str) -> Verdict:
    """`frozen` is M_0 untouched, which is round 0 of every seed, so all seeds are paired."""
    rounds = {
        round_: [since_0(study, arm, "ppl", test_set, Limit("<", 1), round_=round_) for test_set in study.test_sets]
        for round_ in range(1, study.last + 1)
    }
    states = {round_: joined(parts) for round_, parts in rounds.items()}
    better = [round_ for round_, state in states.items() if state == "reached"]
    undecided = [round_ for round_, state in states.items() if state == "not decided"]
    waiting = f", open in {spans(undecided)}" if undecided else ""
    figures = [f"better in {spans(better)}{waiting}; {study.last} rounds looked at, which no interval is corrected for"]
    nearest = {round_: max(found) for round_, parts in rounds.items() if (found := [part.found.mean for part in parts if part.found])}
    if nearest:
        best = min(nearest, key=nearest.__getitem__)
        worst = min(rounds[best], key=lambda part: part.rank)
        figures.append(f"best at round {best}, worst there: {worst.where} {worst.figure}")
    state: State = "reached" if better else "not decided" if undecided or not rounds else "not reached"
    why = reasons([part for round_ in undecided for part in rounds[round_]]) if state == "not decided" else ""
    return Verdict(state, why, tuple(figures))


def spans(rounds: Sequence[int]) -> str:
    """`rounds 2 to 4 (3 in a row) and round 7`, or `no round`."""
    found: list[list[int]] = []
    for round_ in sorted(rounds):
        if found and found[-1][-1] == round_ - 1:
            found[-1].append(round_)
        else:
            found.append([round_])
    said = [f"round {run[0]}" if len(run) == 1 else f"rounds {run[0]} to {run[-1]} ({len(run)} in a row)" for run in found]
    return " and ".join(said) or "no round"


def _on(name: str, judge: Callable[[Evidence, str], Verdict]) -> Callable[[Studies, str], Verdict]:
    """A goal that one study judges."""

    def judge_on(studies: Studies, arm: str) -> Verdict:
        study = studies.get(name)
        return judge(study, arm) if study else Verdict("not decided", _no_unit(name), ())

    return judge_on


#: Letter -> the goal in words, and how it is judged.
GOALS: dict[str, tuple[str, Callable[[Studies, str], Verdict]]] = {
    "a": (
        "in `chain` perplexity and ECE are below those of every static arm on every test set, in `inherit` gain_kept is above theirs",
        _static,
    ),
    "b": (
        f"perplexity is at most 1.05 × round 0's on every test set, while plain's exceeds 1.5 × on {IN_DOMAIN} and 1.2 × elsewhere",
        _on(CHAIN, _level),
    ),
    "c": ("entropy_real is within 5% and ECE within 0.02 of round 0's, either way, on every test set", _on(CHAIN, _entropy)),
    "d": ("at most 1% of the answers end in a loop", _on(CHAIN, _loops)),
    "e": ("each ablation, and edit-random, is worse in perplexity on every test set", _on(CHAIN, _ablations)),
    "f": (
        f"at least level with real10: log perplexity of real10 minus the arm's is over −{MARGIN_NATS:g} on every test set",
        _on(CHAIN, _real10),
    ),
    "g": ("plain's greedy answer about hand-eye coordination degenerates, and the arm's is coherent", _on(COLLAPSE, _watched)),
    "h": ("at some round perplexity is better than that of frozen on every test set", _on(CHAIN, _better)),
}


def verdicts(studies: Studies) -> dict[tuple[str, str], Verdict]:
    """Every goal, judged for each of JUDGED, by (letter, arm)."""
    return {(letter, arm): judge(studies, arm) for letter, (_, judge) in GOALS.items() for arm in JUDGED}
