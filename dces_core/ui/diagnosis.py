"""The sections of the page Diagnose, which its report has too. Texts in them are escaped."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go
import polars as pl

from dces_core.diagnose import Diagnosis, summary
from dces_core.metrics.degradation import TITLE
from dces_core.metrics.trend import LEVEL
from dces_core.metrics.verdict import DEFINITIONS
from dces_core.ui import charts, look
from dces_core.ui.comparison_charts import Chart
from dces_core.ui.comparison_tables import head, titled, wide
from dces_core.ui.report import Chapter, report
from dces_core.ui.sections import Section, quiet
from dces_core.ui.text import escaped, mark

DRAWN = (
    "distinct_2", "vendi", "loop_rate", "rep_4", "entropy_unigram", "self_bleu", "compression_ratio", "dispersion", "survival_tail",
    "nearest_reference", "ref_ppl",
)  # fmt: skip
MAP_HEIGHT = 400


def extent(found: Diagnosis) -> str:
    """What was diagnosed and how, in plain text."""
    facts = found.facts
    beside = [f"{facts['references']:,} real references" if facts["references"] else "no real reference"]
    beside.append(f"scored by {facts['model']}, {facts['scored']:,} texts a round" if facts["model"] else "no model to score with")
    return (
        f"{facts['source']}: {facts['texts']:,} texts in {facts['rounds']} rounds ({found.rounds[0]} to {found.rounds[-1]}), "
        f"{', '.join(beside)}. Loops and repetition: all texts. Distinct words, entropy, compression: {facts['budget_units']:,} words of "
        f"each round at most. Vendi score and self-BLEU: {facts['pairwise']:,} texts a round. Other figures of embeddings: "
        f"{facts['embedded']:,} a round, by {facts['encoder']}."
    )


def sections(found: Diagnosis, round_: int) -> list[Section]:
    """All of a diagnosis; map and examples of one round."""
    return [verdicts(found), coming(found), rounds(found), clusters(found, round_), examples(found, round_), figures(found)]


def report_of(found: Diagnosis) -> str:
    """The whole as one HTML file, in the light theme; map and examples of the last round."""
    with look.on_paper():
        said = "What the texts say; every comparison is with the first round."
        return report("DCES Lab: diagnosis", [extent(found)], [Chapter("Diagnosis", said, sections(found, found.rounds[-1]))])


def number(value: float | None, digits: int = 4) -> str:
    """A figure, a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}g}".replace("-", "−")


def why(reason: str | None) -> str:
    """A cell of words."""
    return f'<td class="what">{escaped(reason or "")}</td>'


# tables -----------------------------------------------------------------------------------------------------------------


def verdicts(found: Diagnosis) -> Section:
    """Has it collapsed, by each definition?"""
    lines, reached = [], 0
    for row in found.tables["verdicts"].iter_rows(named=True):
        rule = DEFINITIONS[row["definition"]]
        reached += row["round"] is not None
        if row["round"] is not None:
            verdict = f'<td class="worse">● round {row["round"]}</td>'
        else:
            verdict = "<td>○ no</td>" if row["value"] is not None else "<td>cannot be told</td>"
        note = row["reason"] if row["value"] is None else None
        lines.append(f"<tr><td>{rule.name}</td>{verdict}<td>{number(row['value'])}</td>{why(rule.formula)}{why(note)}</tr>")
    told = found.tables["verdicts"]["value"].count()
    said = f"{reached} of the {told} definitions that can be told hold at some round; 0 in a formula is the first round, t a later one."
    heads = head("definition", "holds from", "quantity") + '<th class="what">holds where</th><th class="what"></th>'
    return Section("Collapse verdicts", said, wide(heads, lines))


def coming(found: Diagnosis) -> Section:
    """What the next rounds may bring."""
    frame = found.tables["risks"]
    ahead = frame["round"].unique().sort().to_list()
    lines = []
    for (definition,), part in frame.group_by("definition", maintain_order=True):
        rule = DEFINITIONS[str(definition)]
        chances, (reason, *_) = part["probability"].to_list(), part["reason"].to_list()
        cells = "".join("<td>–</td>" if chance is None else f"<td>{chance:.0%}</td>" for chance in chances)
        lines.append(f"<tr><td>{rule.name}</td>{cells}<td>{part.item(0, 'n')}</td>{why(rule.formula)}{why(reason)}</tr>")
    said = (
        "Probability that a definition holds in the next rounds, if they drift as those before (random walk with drift, "
        f"{found.facts['rounds']} rounds). How often that was right on the recorded studies: docs/diagnose.md, or dces diagnose --backtest."
    )
    heads = head("definition", *(f"round {one}" for one in ahead), "rounds") + '<th class="what">holds where</th><th class="what"></th>'
    return Section("Susceptibility", said, wide(heads, lines))


def figures(found: Diagnosis) -> Section:
    """A line for every metric, and why the others are not there."""
    frame = summary(found)
    lines = []
    for row in frame.filter(pl.col("last").is_not_null()).iter_rows(named=True):
        interval = "–" if row["low"] is None else f"{number(row['low'], 3)} to {number(row['high'], 3)}"
        worse = "–" if row["worse_at"] is None else f"round {row['worse_at']}"
        values = f"<td>{number(row['first'])}</td><td>{number(row['last'])}</td><td>{row['n']:,}</td><td>{worse}</td><td>{interval}</td>"
        lines.append(f"<tr><td>{titled(row['metric'])}</td>{values}{why(TITLE.get(row['metric']))}</tr>")
    groups = frame.filter(pl.col("last").is_null()).group_by("reason", maintain_order=True).agg("metric")
    absent = "".join(f"<li>{escaped(', '.join(metrics))}: {escaped(reason)}</li>" for reason, metrics in groups.iter_rows())
    said = f"First round 10% worse than the first one, and the {LEVEL:.0%} interval two rounds on. n: items behind the last value."
    heads = head("metric", "first", "last", "n", "10% worse", "in two rounds") + '<th class="what">what it is</th>'
    gone = f'<p class="section">Not there, and why</p><ul class="quiet">{absent}</ul>' if absent else ""
    return Section("All metrics", said, wide(heads, lines) + gone)


def examples(found: Diagnosis, round_: int) -> Section:
    """The worst texts of a round, and those that it says most often."""
    worst = found.tables["worst"].filter(pl.col("round") == round_)
    blocks = []
    for row in worst.iter_rows(named=True):
        loop = f"{row['loop_units']} of {row['units']} words in its final loop" if row["loop_units"] else "no loop at its end"
        blocks.append(f'{mark(row["text"])}<p class="quiet">{loop} · {row["rep_4"]:.0%} of its 4-grams are repeats</p>')
    copied = found.tables["repeated"].filter(pl.col("round") == round_)
    again = [f'{mark(text)}<p class="quiet">{copies:,} times in this round</p>' for text, copies in copied.select("text", "copies").rows()]
    none = quiet("No text of this round repeats itself.")
    more = f'<p class="section">Said most often</p>{"".join(again)}' if again else ""
    words = "Of all its texts, those that repeat themselves most."
    return Section(f"Most degenerate texts of round {round_}", words, "".join(blocks) + more or none)


# charts -----------------------------------------------------------------------------------------------------------------


def rounds(found: Diagnosis) -> Section:
    """Metrics over the rounds with what comes next, and how many texts there are."""
    metrics = found.tables["metrics"]
    known = set(metrics.drop_nulls("value")["metric"])
    drawn = tuple(Chart(name, trajectory(found, name), f"{TITLE[name]} over the rounds") for name in DRAWN if name in known)
    lines = []
    for row in found.tables["rounds"].iter_rows(named=True):
        shares = "".join(f"<td>{row[name]:,} ({row[name] / row['texts']:.1%})</td>" for name in ("empty", "copies"))
        lines.append(f"<tr><td>{row['round']}</td><td>{row['texts']:,}</td>{shares}<td>{row['mean_units']:.1f}</td></tr>")
    table = wide(head("round", "texts", "empty", "copies of another", "words a text"), lines)
    said = f"Ringed: the first round 10% worse than the first one. Shaded: {LEVEL:.0%} prediction interval of the next rounds."
    return Section("Round by round", said, table, drawn)


def trajectory(found: Diagnosis, metric: str) -> go.Figure:
    """One metric: its line, the ring, the next rounds' interval."""
    own = found.tables["metrics"].filter(pl.col("metric") == metric)
    arm, last = str(own["arm"].first()), found.rounds[-1]
    figure = charts.panel(charts.title_of(metric), charts.said_of(metric))
    coming = found.tables["forecasts"].filter(pl.col("metric") == metric).drop_nulls("value").sort("round")
    if coming.height:
        _fan(figure, coming, own.drop_nulls("value").sort("round").tail(1))
    charts.line(figure, own, escape(arm))
    lead = found.tables["lead_times"].filter(pl.col("metric") == metric)["round"].first()
    charts.ring(figure, own, arm, lead)  # type: ignore[arg-type]
    end = coming.item(-1, "round") if coming.height else last
    step = max(1, -(-(end - found.rounds[0]) // 8))
    figure.update_xaxes(tick0=found.rounds[0], dtick=step, range=[found.rounds[0] - 0.3, end + 0.4])
    figure.update_xaxes(unifiedhovertitle={"text": "round %{x}"})
    return figure


def _fan(figure: go.Figure, coming: pl.DataFrame, now: pl.DataFrame) -> None:
    """The interval, beginning at the last value."""
    x = [now["round"][0], *coming["round"].to_list()]
    value = now["value"][0]
    high, low = [value, *coming["high"].to_list()], [value, *coming["low"].to_list()]
    shape = {"mode": "none", "fill": "toself", "fillcolor": look.faint(0.12), "hoverinfo": "skip"}
    figure.add_scatter(x=[*x, *x[::-1]], y=[*high, *low[::-1]], name="interval", **shape)
    line = {"color": look.faint(0.5), "dash": "dot", "width": 1.4}
    figure.add_scatter(x=x, y=[value, *coming["value"].to_list()], mode="lines", line=line, name="expected", hovertemplate="%{y:.4g}")


def clusters(found: Diagnosis, round_: int) -> Section:
    """The first round's clusters: where the round's texts lie, and how the shares moved."""
    frame, first = found.tables["clusters"], found.rounds[0]
    if frame.is_empty():
        return Section("Clusters", "There is no text with words in the first round's sample, so there are no clusters.")
    shares = {row["cluster"]: row["share"] for row in frame.filter(pl.col("round") == round_).iter_rows(named=True)}
    lines = []
    for row in frame.filter(pl.col("round") == first).sort("share", descending=True).iter_rows(named=True):
        swatch = f'<span style="color:{look.hue(row["cluster"])}">●</span>'
        cells = f"<td>{row['share']:.1%}</td><td>{shares.get(row['cluster'], 0.0):.1%}</td>"
        lines.append(f"<tr><td>{swatch} {row['cluster'] + 1}</td>{cells}{why((row['central'] or '')[:160])}</tr>")
    heads = head("cluster", f"round {first}", f"round {round_}") + '<th class="what">its most central text in the first round</th>'
    facts = found.facts["map"]
    said = (
        f"k-means of round {first}'s embeddings; later texts belong to the nearest centroid. Map (grey: round {first}): "
        f"{str(facts['method']).upper()}, fitted once on {facts.get('fitted', 0):,} texts of round {first}"
        f"{' and references' if found.facts['references'] else ''}; distances in two dimensions have no direct meaning."
    )
    points = found.tables["points"]
    drawn = Chart("map", scatter(points, first, round_), f"Texts of round {round_} over those of round {first}, coloured by cluster")
    return Section("Clusters on a map", said, wide(heads, lines), (drawn,) if points.height else ())


def scatter(points: pl.DataFrame, first: int, round_: int) -> go.Figure:
    """A round's points over the first round's, in one frame for all rounds."""
    figure = charts.base(MAP_HEIGHT)
    ground, own = points.filter(pl.col("round") == first), points.filter(pl.col("round") == round_)
    bare = {"mode": "markers", "hoverinfo": "skip"}
    figure.add_scatter(x=ground["x"].to_list(), y=ground["y"].to_list(), marker={"size": 5, "color": look.faint(0.16)}, **bare)
    marker = {"size": 6, "color": [look.hue(cluster) for cluster in own["cluster"].to_list()], "opacity": 0.85}
    figure.add_scatter(x=own["x"].to_list(), y=own["y"].to_list(), marker=marker, **bare)
    hidden = {"showticklabels": False, "showgrid": False, "ticks": "", "showline": False}
    for name, axis in (("x", figure.update_xaxes), ("y", figure.update_yaxes)):
        low, high = float(points[name].min() or 0.0), float(points[name].max() or 0.0)  # type: ignore[arg-type]
        margin = 0.06 * (high - low) or 1.0
        axis(range=[low - margin, high + margin], **hidden)
    figure.update_layout(plot_bgcolor=look.faint(0.03), margin={"l": 4, "r": 4, "t": 4, "b": 4})
    return figure
