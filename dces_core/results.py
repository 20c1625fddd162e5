"""`dces results`: what the recorded studies say, as blocks of markdown in docs/results.md and README.md. No figure is typed.

Texts of a model get onto the page as indented code, escaped line by line; everything else is this project's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from dces_core import goals
from dces_core.answers import HAND_EYE, SPORTS, Answer, answer, answers, degenerate
from dces_core.compare import NOISE_FLOOR, REFERENCE_ROWS, ordered, refuse_unequal, remarks
from dces_core.config import SHIPPED
from dces_core.errors import UserError
from dces_core.evidence import Evidence, Seeds, estimate, number
from dces_core.metrics.verdict import collapses, verdicts
from dces_core.records import PROBES, table
from dces_core.study import budget_of, cpu_words, mixed_cpus
from dces_core.study_store import Output, Unit, recorded_studies

PAGE, README = SHIPPED.parent / "docs" / "results.md", SHIPPED.parent / "README.md"
BASE = "plain"
STATES: tuple[goals.State, ...] = ("reached", "not reached", "not decided")
REAL = ("ece", "entropy_real", "accuracy", "gain_kept")
GENERATED = ("distinct_2", "vendi", "tail_coverage", "loop_rate")
NOTHING = "No finished unit yet."
STEERED = "The controller steers the entropy and with it the ECE: `entropy_real` and `ece` are shown and carry no claim."
STEERED_GOALS = f"{STEERED} What goals a and c say of them is no evidence by itself."


# reading ----------------------------------------------------------------------------------------------------------------


def recorded() -> list[Evidence]:
    """Every recorded study that has a finished unit, but for those of the fake engine, whose figures mean nothing.

    Raises UserError where a unit is damaged, or where budgets are unequal.
    """
    outputs = [Output(path.parent) for path in sorted(recorded_studies().glob("*/study.json"))]
    return [study for output in outputs if output.config().engine != "fake" if (study := read(output))]


def read(output: Output) -> Evidence | None:
    """A study's finished units; None where there is none."""
    units, study = output.units(), output.facts()["study"]
    if not units:
        return None
    budgets = [budget_of(unit) for unit in units]
    refuse_unequal(budgets)
    return Evidence(
        name=study["name"],
        note=study["note"],
        planned={arm: tuple(study["seeds_of"].get(arm, study["seeds"])) for arm in study["arms"]},
        metrics=pl.concat([table("metrics", []), *(unit.frame("metrics") for unit in units)]),
        probes=pl.concat([unit.frame("probes").select(*PROBES, "seed") for unit in units]),
        cpus=tuple(dict.fromkeys(cpu_words(unit.facts["cpu"]) for unit in units)),
        remarks=(*remarks(budgets, BASE), *mixed_cpus(units)),
        plausible=plausible(units),
    )


def plausible(units: Sequence[Unit]) -> dict[int, float]:
    """By seed the limit of the quality filter, which reads the real training references; absent where no arm of a seed filters."""
    rows = pl.concat([unit.frame("controller") for unit in units]).filter(pl.col("value").is_finite(), quantity="quality_limit")
    return dict(rows.select("seed", "value").unique().iter_rows())


# pages ------------------------------------------------------------------------------------------------------------------


def pages(page: Path, readme: Path, studies: Sequence[Evidence]) -> dict[Path, tuple[str, str]]:
    """What the pages hold and what they should hold. A README without the marker is left alone. Raises UserError."""
    found = {page: rewritten(page, "dces results", block(studies)), readme: rewritten(readme, "headline", headline(studies))}
    if found[page] is None:
        raise UserError(f"out = {str(page)!r} does not have the lines {' and '.join(_marks('dces results'))} once each; put them there.")
    return {path: texts for path, texts in found.items() if texts}


def rewritten(path: Path, name: str, body: str) -> tuple[str, str] | None:
    """A page as it is, and with `body` between its markers; None where it does not have them, as lines, once each."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"page {str(path)!r} cannot be read: {error.strerror}; run this in a checkout, or name another page.") from None
    begin, end = _marks(name)
    lines = text.split("\n")
    if lines.count(begin) != 1 or lines.count(end) != 1 or lines.index(begin) > lines.index(end):
        return None
    return text, "\n".join([*lines[: lines.index(begin) + 1], body, *lines[lines.index(end) :]])


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- begin: {name} -->", f"<!-- end: {name} -->"


def headline(studies: Sequence[Evidence]) -> str:
    """The README's few lines: perplexity in the main study, and how many goals each arm reaches."""
    if not studies:
        return f"{NOTHING} Once studies are recorded, their figures are in [docs/results.md](docs/results.md)."
    by_name, lines = {study.name: study for study in studies}, []
    for study in filter(None, (by_name.get(goals.CHAIN), by_name.get(goals.INHERIT))):
        arms = [f"{arm} {_rise(study, arm)}" for arm in (BASE, *goals.JUDGED) if arm in study.done]
        sets = " / ".join(study.test_sets)
        lines.append(f"- `{study.name}`: perplexity on {sets} after {study.last} rounds, over round 0's: {', '.join(arms) or 'none yet'}.")
    found = goals.verdicts(by_name)
    for arm in goals.JUDGED:
        states = {state: [letter for letter in goals.GOALS if found[letter, arm].state == state] for state in STATES}
        counts = [f"{len(letters)} {state} ({', '.join(letters)})" for state, letters in states.items() if letters]
        lines.append(f"- `{arm}`, of {len(goals.GOALS)} goals: {'; '.join(counts)}.")
    return "\n".join([*lines, "", "The goals, intervals and all arms: [docs/results.md](docs/results.md)."])


def _rise(study: Evidence, arm: str) -> str:
    found = [estimate(study.change(arm, "ppl", test_set), log=True) for test_set in study.test_sets]
    return f"×{' / ×'.join(number(one.mean) if one else '-' for one in found)} (n = {len(study.done[arm])})"


def block(studies: Sequence[Evidence]) -> str:
    """The generated part of docs/results.md."""
    if not studies:
        return NOTHING
    parts = [_goals({study.name: study for study in studies}), *(part for study in studies for part in _study(study))]
    return "\n\n".join(parts)


def _goals(studies: goals.Studies) -> str:
    found = goals.verdicts(studies)
    words = "\n".join(f"- **{letter}**: {words}" for letter, (words, _) in goals.GOALS.items())
    rows = []
    for letter, arm in found:
        one = found[letter, arm]
        rows.append([letter, f"`{arm}`", f"{one.state}{': ' * bool(one.reason)}{one.reason}", "<br>".join(one.figures)])
    return "\n\n".join(["### Goals", words, grid(["goal", "arm", "verdict", "by how much"], rows), STEERED_GOALS])


# one study --------------------------------------------------------------------------------------------------------------


def _study(study: Evidence) -> list[str]:
    done = {arm: [seed for seed in seeds if seed in study.done.get(arm, [])] for arm, seeds in study.planned.items()}
    total = f"{sum(map(len, done.values()))} of {sum(map(len, study.planned.values()))} units are finished"
    seeds = ", ".join(f"`{arm}` {len(done[arm])} of {len(planned)}" for arm, planned in study.planned.items())
    plural = "s" * (len(study.cpus) != 1)
    parts = [f"### The study `{study.name}`", study.note, f"{total}, by seeds: {seeds}.", f"Processor{plural}: {'; '.join(study.cpus)}."]
    arms = [arm for arm in ordered(list(study.planned), BASE) if arm in study.done]
    for test_set in study.test_sets:
        parts += [f"On the test set {test_set}, after {study.last} rounds:", _on_set(study, arms, test_set)]
    parts += [f"Generated text, after {study.last} rounds:", _generated(study, arms), STEERED]
    parts += ["Seeds that collapse, of those that can be told, by the definitions of [metrics.md](metrics.md#has-it-collapsed):"]
    parts += [_collapsed(study, arms)]
    if study.remarks:
        said = "\n".join(f"- {remark}" for remark in study.remarks)
        parts += [f"<details><summary>Remarks on budgets and processors: {len(study.remarks)}</summary>", said, "</details>"]
    return [part for part in [*parts, *(_watched(study) if study.name == goals.COLLAPSE else [])] if part]


def _on_set(study: Evidence, arms: Sequence[str], test_set: str) -> str:
    first = study.start("ppl", test_set)
    rows = [["round 0", f"{len(first)}", cell(first, 0, log=True), "×1", *(cell(study.start(name, test_set)) for name in REAL)]]
    for arm in arms:
        n, values = len(study.done[arm]), [cell(study.values(arm, name, test_set), len(study.done[arm])) for name in REAL]
        change = cell(study.change(arm, "ppl", test_set), n, log=True, sign="×")
        rows.append([_label(arm), f"{n}", cell(study.values(arm, "ppl", test_set), n, log=True), change, *values])
    return grid(["arm", "n", "ppl", "ppl over round 0", *REAL], rows)


def _generated(study: Evidence, arms: Sequence[str]) -> str:
    rows = [["round 0", f"{len(study.start(GENERATED[0]))}", *(cell(study.start(name)) for name in GENERATED)]]
    for arm in arms:
        n = len(study.done[arm])
        rows.append([_label(arm), f"{n}", *(cell(study.values(arm, name), n) for name in GENERATED)])
    return grid(["arm", "n", *GENERATED], rows)


def _label(arm: str) -> str:
    return f"`{arm}`" + (" (noise floor)" if arm == NOISE_FLOOR else " (reference)" if arm in REFERENCE_ROWS else "")


def cell(values: Seeds, n: int = 0, log: bool = False, sign: str = "") -> str:
    """Mean over seeds, with its 95% interval where there is one; says its n where that is not the row's `n` (0: any)."""
    found = estimate(values, log)
    if found is None:
        return "-"
    interval = f" [{number(found.low)}, {number(found.high)}]" if found.interval else ""
    return f"{sign}{number(found.mean)}{interval}{f' (n = {found.n})' if n not in (0, found.n) else ''}"


def _collapsed(study: Evidence, arms: Sequence[str]) -> str:
    found = collapses(verdicts(study.metrics))
    columns = list(dict.fromkeys(found.select("definition", "test_set").iter_rows()))
    counts = found.select("arm", "definition", "test_set", "collapsed", "n_seeds").iter_rows()
    shares = {(arm, name, test_set): f"{collapsed} of {n}" if n else "-" for arm, name, test_set, collapsed, n in counts}
    rows = [[_label(arm), *(shares.get((arm, *column), "-") for column in columns)] for arm in arms]
    return grid(["arm", *(f"{name}, {test_set}" if test_set else name for name, test_set in columns)], rows)


# answers ----------------------------------------------------------------------------------------------------------------


def _watched(study: Evidence) -> list[str]:
    """What the arms answer to the prompt of goal g, and for which prompts plain degenerates."""
    parts = [f'Greedy answers to "{HAND_EYE}" (sports that count as named: {", ".join(SPORTS)}):']
    for seed in study.done.get(BASE, []):
        parts += _answer(f"Round 0, seed {seed}", answer(study, BASE, seed, 0))
        for arm in (arm for arm, seeds in study.done.items() if seed in seeds):
            parts += _answer(f"`{arm}`, round {study.last}, seed {seed}", answer(study, arm, seed, study.last))
        found = answers(study, BASE, seed, study.last)
        bad = [one.prompt for one in found if degenerate(one.text)]
        parts += [
            f"Watched prompts whose greedy answer by plain degenerates at round {study.last}, seed {seed}: {len(bad)} of {len(found)}."
        ]
        parts += [verbatim("\n".join(bad))] if bad else []
    return parts


def _answer(title: str, found: Answer | None) -> list[str]:
    if found is None:
        return [f"{title}: not watched."]
    return [f"{title}:", verbatim(found.text)] if found.text.strip() else [f"{title}: no text."]


def verbatim(text: str) -> str:
    """Hostile text as an indented code block: no line of it can be anything else, and what does not print is shown as its code."""
    lines = text.split("\n")
    shown = ["".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line) for line in lines]
    return "\n".join(f"    {line}" for line in shown)


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(' '.join(text.replace('|', '/').split()) for text in line)} |" for line in lines)
