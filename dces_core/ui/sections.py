"""The sections of the Compare page, which its report has too: what each asks, its charts, its table, and its rows for CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from dces_core.compare import LEAST_SEEDS, LOG_METRICS
from dces_core.ui import comparison as figures
from dces_core.ui import comparison_charts as drawn
from dces_core.ui import comparison_tables as tables
from dces_core.ui.comparison import Choice
from dces_core.ui.comparison_charts import Chart
from dces_core.ui.sources import Comparison, Measured
from dces_core.ui.text import escaped

#: What ablations are judged by.
ABLATED = ("ppl", "gain_kept", "accuracy", "vendi", "tail_coverage", "loop_rate")
KEPT_HEADS = {"vendi": "Vendi score", "survival_head": "frequent words", "survival_middle": "middling words", "survival_tail": "rare words"}
#: As the round of a choice: the last one of each comparison.
LAST = 10**9
FRAMES = ("properties", "arms", "verdicts", "budgets", "ablations", "robustness", "settings")
TRAINED_HEADS = {"trained_loop_rate": "end in a loop ↓", "trained_ref_ppl": "reference perplexity"}


@dataclass(frozen=True)
class Section:
    """A piece of the page. `html` is this project's own; words of others in it are escaped."""

    title: str
    said: str  # what it asks, in a sentence of plain text
    html: str = ""
    charts: tuple[Chart, ...] = ()


def quiet(words: str) -> str:
    """Plain text in small."""
    return f'<p class="quiet">{escaped(words)}</p>'


def properties(comparison: Comparison, choice: Choice) -> list[Section]:
    """The four properties that the method claims, each with the quantity behind it."""
    return [_awareness(comparison), _diversity(comparison, choice), _quality(comparison, choice), _sustainability(comparison, choice)]


def _awareness(comparison: Comparison) -> Section:
    frame = figures.awareness(comparison)
    table = tables.awareness_table(comparison, frame)
    note = "Correlation of ranks over the rounds, seed by seed: where a loop holds the entropy still it says little."
    return Section(
        "Model awareness",
        "Does selection follow the model? What the loop asked for in each round, against the entropy of the model that wrote its pool; a "
        "static filter asks for nothing.",
        table + quiet(note) if frame.height else quiet("No arm of this comparison has a feedback loop."),
        tuple(drawn.awareness(comparison)),
    )


def _diversity(comparison: Comparison, choice: Choice) -> Section:
    frame = figures.diversity(comparison, choice.round)
    shown = {"vendi": "Vendi score", "survival_tail": "rare words"}
    words = f"share left in round {choice.round}: Vendi score filled, rare words open"
    chart = Chart("diversity", drawn.forest(comparison, frame, shown, 1.0, words), f"Per arm, {words}")
    return Section(
        "Diversity mitigation",
        f"How much of round 0's variety is left in round {choice.round}: the Vendi score (how many different answers there are) "
        "and the real words still in use, over round 0's.",
        tables.measured_table(comparison, frame, KEPT_HEADS, tables.ratio_cell),
        (chart,) if frame["value"].count() else (),
    )


def _quality(comparison: Comparison, choice: Choice) -> Section:
    frame = figures.quality(comparison, choice.round)
    return Section(
        "Quality control",
        f"What round {choice.round} was trained on: the share of its generated texts that end in a loop, and their perplexity under round "
        "0's model, which falls as texts get typical and rises as they get strange.",
        tables.measured_table(comparison, frame, TRAINED_HEADS, tables.plain_cell),
        tuple(drawn.quality(comparison, choice.round)),
    )


def _sustainability(comparison: Comparison, choice: Choice) -> Section:
    frame = figures.sustainability(comparison, choice.test_set)
    words = f"first round 10% worse: perplexity on {choice.test_set} filled, Vendi score open"
    figure = drawn.sustained(comparison, frame, {"ppl": "perplexity", "vendi": "Vendi score"}, words)
    return Section(
        "Sustainability",
        "First round at which a metric is 10% worse than at round 0: the median over the seeds that get there and how many do; "
        f"> {comparison.evidence.last}: none by the last round.",
        tables.measured_table(comparison, frame, {name: tables.titled(name) for name in figures.SUSTAINED}, tables.first_round_cell),
        (Chart("sustainability", figure, f"Per arm, {words}"),) if frame["n_seeds"].sum() else (),
    )


def arms(comparison: Comparison, choice: Choice) -> Section:
    """Arms x metrics."""
    title, refused = "Arms and metrics", comparison.refusal()
    said = (
        f"Round {choice.round}, real text of {choice.test_set}: the mean over seeds, and below it the difference to {choice.base}, paired "
        f"by seed (of perplexities the ratio, ×); [95% intervals] from {LEAST_SEEDS} seeds on."
    )
    if refused:
        return Section(title, said, f'<div class="problem">{escaped(refused)}</div>')
    return Section(title, said, tables.arms_table(comparison, choice) + quiet(f"{tables.LEGEND} ↓ lower is better, ↑ higher is better."))


def budgets(comparison: Comparison, choice: Choice) -> Section:
    """What the arms were given."""
    remarks = "".join(f"<li>{escaped(remark)}</li>" for remark in comparison.remarks(choice.base))
    table = tables.budgets_html(figures.budgets_table(comparison, choice.base), choice.base)
    said = "Given over a whole run, means over seeds. Arms are compared only where pool, N, optimiser steps, regime and decoding are equal."
    return Section("Budgets", said, table + (f'<ul class="quiet">{remarks}</ul>' if remarks else ""))


def verdicts(comparison: Comparison, choice: Choice) -> Section:
    """Has it collapsed?"""
    return Section(
        "Collapse verdicts",
        f"Seeds that collapse at some round, by each definition (on real text: {choice.test_set}), with the median of their first rounds.",
        tables.verdicts_table(comparison, choice.test_set) + quiet("● some seeds collapse, ○ none does, of those that can be told."),
    )


def ablations(comparison: Comparison, choice: Choice) -> Section:
    """One thing less at a time."""
    title, refused = "Ablations", comparison.refusal()
    said = f"What each part of dces contributes: round {choice.round} of arms that lack a part or have another, against dces."
    if refused:
        return Section(title, said, f'<div class="problem">{escaped(refused)}</div>')
    if "dces" not in comparison.evidence.done:
        return Section(title, said, quiet("There is no finished unit of dces here, so nothing to compare its ablations with."))
    table = tables.ablations_table(comparison, replace(choice, base="dces", metrics=ABLATED))
    return Section(title, said, table + quiet(f"Arm minus dces (× over dces), paired by seed. {tables.LEGEND}"))


def of_comparison(comparison: Comparison, choice: Choice) -> list[Section]:
    """All of one comparison."""
    rest = (arms, budgets, verdicts, ablations)
    return [*properties(comparison, choice), *(make(comparison, choice) for make in rest)]


def robustness(every: Sequence[Comparison], metric: str, test_set: str) -> Section:
    """Models x arms for one metric, over everything that there is."""
    frame = figures.matrix(every, metric, test_set)
    counts = frame["state"].value_counts()
    run = int(counts.filter(pl.col("state") != "not run")["count"].sum())
    models = frame.filter(pl.col("comparison").is_null())["model"].unique(maintain_order=True).to_list()
    missing = f" Models that nothing has run: {', '.join(models)}." if models else ""
    how = "over round 0's (×)" if frame["metric"].first() in LOG_METRICS else "minus round 0's"
    said = (
        f"Does it hold for other models? {metric} at the last round {how}, of every study and finished run that is here: {run} of "
        f"{frame.height} cells were run.{missing}"
    )
    return Section("Robustness", said, tables.matrix_table(frame))


def configs(sources: Mapping[str, Measured]) -> Section:
    """Only what differs."""
    said = "Only what differs between the chosen sources. Those that differ in more than arms and seeds are not pooled."
    frame = figures.differing(sources)
    if len(sources) < 2:
        return Section("Settings that differ", said, quiet("One source: choose a second one to see in what they differ."))
    if not frame.height:
        return Section("Settings that differ", said, quiet("No setting differs."))
    return Section("Settings that differ", said, tables.settings_table(frame, [f"{one.name} · {one.kind}" for one in sources.values()]))


def definitions() -> Section:
    """What the verdicts go by."""
    return Section(
        "Definitions of collapse",
        "0 is round 0, t a later round. Sources say what collapse is; thresholds are this project's.",
        tables.definitions_table(),
    )


def frames(
    shown: Sequence[Comparison], every: Sequence[Comparison], sources: Mapping[str, Measured], choice: Choice
) -> dict[str, pl.DataFrame]:
    """Every table of the page as rows, by the name of its file."""
    found: dict[str, list[pl.DataFrame]] = {"properties": [], "arms": [], "verdicts": [], "budgets": [], "ablations": []}
    for one in shown:
        picked = fitting(one, choice)
        found["properties"] += [figures.awareness(one), figures.diversity(one, picked.round), figures.quality(one, picked.round)]
        found["properties"].append(figures.sustainability(one, picked.test_set))
        found["arms"].append(figures.differences(one, picked))
        found["verdicts"].append(one.collapses.select(pl.lit(one.title).alias("comparison"), pl.all()))
        found["budgets"].append(figures.budgets_table(one, picked.base))
        if "dces" in one.evidence.done:
            found["ablations"].append(figures.differences(one, replace(picked, base="dces", metrics=ABLATED)))
    tall = {name: pl.concat(parts) if parts else pl.DataFrame() for name, parts in found.items()}
    matrices = [figures.matrix(every, metric, choice.test_set) for metric in choice.metrics]
    return {**tall, "robustness": pl.concat(matrices), "settings": figures.differing(sources)}


def extent(comparison: Comparison) -> str:
    """How much of what is planned there is, in plain text: missing units by arm, and what few seeds mean."""
    study = comparison.evidence
    done, planned = ({arm: len(seeds) for arm, seeds in of.items()} for of in (study.done, study.planned))
    words = [f"{sum(done.values())} of {sum(planned.values())} units (one arm, one seed) are finished"]
    part = [f"{arm} {done[arm]} of {n}" for arm, n in planned.items() if 0 < done.get(arm, 0) < n]
    none = [arm for arm in planned if arm not in done]
    words += [f"seeds are missing of {', '.join(part)}"] * bool(part) + [f"nothing yet of {', '.join(none)}"] * bool(none)
    if max(done.values()) < LEAST_SEEDS:
        words.append(f"no arm has {LEAST_SEEDS} seeds, so no figure has an interval")
    remarks = len(study.remarks)
    more = f" {remarks} remark{'s' * (remarks > 1)} under Budgets." if remarks else ""
    return f"{study.note} {'; '.join(words)}.{more}".strip()


def fitting(comparison: Comparison, choice: Choice) -> Choice:
    """The choice where a comparison has what it names; else the nearest that it has."""
    study = comparison.evidence
    arms = comparison.arms("plain")
    done = [arm for arm in ("plain", *arms) if arm in study.done]
    base = choice.base if choice.base in study.done else done[0]
    test_set = choice.test_set if choice.test_set in study.test_sets else next(iter(study.test_sets), "")
    return replace(choice, base=base, test_set=test_set, round=min(choice.round, study.last))
