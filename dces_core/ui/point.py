"""What a model would say first to a watched prompt: its likeliest next tokens, side by side and over the rounds.

Collapse moves all probability onto one token, a single point (a Dirac delta). Tokens are a model's and hostile: they reach
a chart through `written` only. Not stored is not zero: a token outside an arm's TOP has no bar, and counts in REST.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
import polars as pl

from dces_core.ui import charts, heat, look
from dces_core.ui.text import visible

Mass = Mapping[str, float]  # token -> probability, likeliest first
Masses = Mapping[tuple[str, int], Mass]  # by arm and round
Rounds = Mapping[str, Sequence[int]]  # evaluated rounds by arm

TOP = 20  # likeliest tokens that an evaluation keeps of a prompt
REST = "all other tokens"
ROW_PX = 20
AXIS_CHARACTERS, HOVER_CHARACTERS = 16, 60
NUMBERED = 14  # rounds up to which the cells of a map hold their numbers
SIGNS = {" ": "␣", "\n": "↵", "\t": "⇥"}
#: Quantity -> title and what it says.
PANELS = {
    "likeliest": ("Likeliest token", "Its probability. At 1, nothing else can come."),
    "kept": (f"The {TOP} likeliest tokens", f"Their probability together. At 1, none but these {TOP} can come."),
    "effective": ("Effective number of tokens, at least", "Equally likely tokens that would leave as much choice. 1: none."),
}
RULE = (
    f"Effective number: exp of the entropy. Only {TOP} probabilities are stored, so it is the least that fits them: what is left is split "
    f"among as few tokens as it can be, none of them likelier than the last of the {TOP}. The true number is never smaller."
)


def masses(rows: pl.DataFrame) -> Masses:
    """The distributions of one prompt. `rows`: NEXT_TOKENS. Tokens that are written alike count as one."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for arm, round_, token, probability in rows.sort("rank").select("arm", "round", "token", "probability").iter_rows():
        own = found.setdefault((arm, round_), {})
        own[token] = own.get(token, 0.0) + probability
    return found


def rest(mass: Mass, shown: Iterable[str] | None = None) -> float:
    """The probability of everything but `shown` (all that is stored by default)."""
    return max(0.0, 1.0 - sum(mass.get(token, 0.0) for token in (mass if shown is None else shown)))


def ranked(of: Iterable[Mass]) -> list[str]:
    """Every token of these distributions, by its largest probability in any of them: no arm is favoured; ties by name."""
    peak: dict[str, float] = {}
    for mass in of:
        for token, probability in mass.items():
            peak[token] = max(probability, peak.get(token, 0.0))
    return sorted(peak, key=lambda token: (-peak[token], token))


def effective(mass: Mass) -> float:
    """Effective number: exp of the smallest entropy that fits `mass`: no token outside it is likelier than its least likely one.

    Entropy is least where the mass that is left is as uneven as allowed: as many tokens as fit of that probability, then one of
    what remains.
    """
    known = [probability for probability in mass.values() if probability > 0]
    whole, part = divmod(rest(mass), min(known))
    terms = [*known, part] if part > 0 else known
    entropy = -sum(p * math.log(p) for p in terms) - whole * min(known) * math.log(min(known))
    return math.exp(max(0.0, entropy))


def readings(found: Masses, finished: Rounds) -> pl.DataFrame:
    """arm, round, quantity, value, hover, reason: PANELS of every finished round; a round without a table has no value."""
    rows = []
    for arm, rounds in finished.items():
        for round_ in rounds:
            mass = found.get((arm, round_))
            known = {} if mass is None else {"likeliest": max(mass.values()), "kept": 1 - rest(mass), "effective": effective(mass)}
            for quantity in PANELS:
                value = known.get(quantity)
                words = None if value is None else f"{value:.2f}" if quantity == "effective" else percent(value)
                if mass is not None and quantity == "likeliest":
                    words = f"{words} {written(next(iter(ranked([mass]))), AXIS_CHARACTERS)}"
                rows.append((arm, round_, quantity, value, words, None if mass is not None else "no distribution stored"))
    types = {"arm": pl.String, "round": pl.Int32, "quantity": pl.String, "value": pl.Float64, "hover": pl.String, "reason": pl.String}
    return pl.DataFrame(rows, schema=types, orient="row")


def absence(arm: str, round_: int, finished: Rounds) -> str:
    """Why an arm has no distribution in a round."""
    late = round_ not in finished.get(arm, ())
    return f"{arm} has not finished round {round_}" if late else f"round {round_} of {arm} was evaluated before distributions were kept"


def told(found: Masses, arm: str, round_: int, finished: Rounds) -> str:
    """In a sentence how far an arm has come: numbers only, no token."""
    first, now = found.get((arm, 0)), found.get((arm, round_))
    if now is None:
        return f"{absence(arm, round_, finished)}."
    here = f"{percent(max(now.values()))} on its likeliest token, choice among at least {effective(now):.1f} tokens"
    if first is None or round_ == 0:
        return f"{arm} in round {round_}: {here}."
    return f"{arm} in round {round_}: {here}; in round 0 it was {percent(max(first.values()))} and {effective(first):.1f}."


def written(token: str, most: int) -> str:
    """A token as it is written, for a chart: white space by signs, what cannot be seen by its code point, never markup."""
    seen = "".join(SIGNS.get(c) or (f"U+{ord(c):04X}" if c.isspace() else visible(c)) for c in token) or "(no text)"
    return escape(seen if len(seen) <= most else f"{seen[: most - 1]}…")


def percent(share: float) -> str:
    """A share in two digits or more: 34%, 3.4%, 0.34%, 99.97%."""
    if 0 < share < 5e-5:
        return "<0.01%"
    return f"{share:.{2 if share < 0.00995 or 0.995 <= share < 0.99995 else 1 if share < 0.0995 else 0}%}"


# charts -----------------------------------------------------------------------------------------------------------------


def bars(found: Masses, arms: tuple[str, ...], round_: int, finished: Rounds) -> go.Figure:
    """One round: the likeliest tokens of all arms in one order and on one axis, which stays the same in every round."""
    here = {arm: found[arm, round_] for arm in arms if (arm, round_) in found}
    tokens = ranked(here.values())
    names = [*(written(token, AXIS_CHARACTERS) for token in tokens), REST]
    places = [*range(len(tokens)), len(tokens) + 0.4]
    figure = columns(arms, places, names)
    limit = max(max(*mass.values(), rest(mass)) for mass in found.values())
    for column, arm in enumerate(arms, 1):
        if arm not in here:
            missing(figure, column, absence(arm, round_, finished))
            continue
        values = [*(here[arm].get(token) for token in tokens), rest(here[arm])]
        least = f"≤{percent(min(here[arm].values()))}"
        absent = [place for place, value in zip(places, values, strict=True) if value is None]
        hovers = [*(written(token, HOVER_CHARACTERS) for token in tokens), REST]
        figure.add_bar(
            x=values,
            y=places,
            orientation="h",
            width=0.74,
            marker={"color": [*[look.look(arm).colour] * len(tokens), look.faint(0.3)]},
            text=["" if value is None else percent(value) for value in values],
            textposition="outside",
            textfont={"size": 11, "color": look.faint(0.85)},
            cliponaxis=False,
            customdata=[f"{name}: {percent(value or 0)}" for name, value in zip(hovers, values, strict=True)],
            hovertemplate="%{customdata}<extra></extra>",
            row=1,
            col=column,
        )
        small = {"size": 11, "color": look.faint(0.5)}
        words = {"text": [least] * len(absent), "textposition": "middle right", "textfont": small}
        figure.add_scatter(x=[0] * len(absent), y=absent, mode="text", hoverinfo="skip", **words, row=1, col=column)
    figure.update_xaxes(range=[0, 1.16 * limit], tickformat=".0%", nticks=6, showgrid=True, gridcolor=look.faint(0.1))
    return figure


def heat_maps(found: Masses, arms: tuple[str, ...], rounds: list[int], round_: int) -> go.Figure:
    """Tokens x rounds, one map per arm with the same rows: those that came highest in any of these rounds. A frame marks `round_`.

    An invisible marker on every cell takes the clicks: plotly selects points, never cells.
    """
    tokens = rows_of(found)
    names = [*(written(token, AXIS_CHARACTERS) for token in tokens), REST]
    figure = columns(arms, list(range(len(names))), names)
    figure.update_layout(hovermode="closest")
    low, high = heat.scale()
    for column, arm in enumerate(arms, 1):
        own = [found.get((arm, r)) for r in rounds]
        table: list[list[float | None]] = [[None if mass is None else mass.get(token) for mass in own] for token in tokens]
        table.append([None if mass is None else rest(mass, tokens) for mass in own])
        cells = [(r, c, value) for r, values in enumerate(table) for c, value in enumerate(values) if value is not None]
        colours = {"zmin": 0, "zmax": 1, "colorscale": [[0, low], [1, high]], "showscale": False, "xgap": 1, "ygap": 1}
        words = [["" if value is None or value < 0.005 else f"{100 * value:.0f}" for value in values] for values in table]
        numbers: dict[str, Any] = {"text": words, "texttemplate": "%{text}"} if len(rounds) <= NUMBERED else {}
        figure.add_heatmap(z=table, hoverinfo="skip", **colours, **numbers, row=1, col=column)
        figure.add_scatter(
            x=[c for _, c, _ in cells],
            y=[r for r, _, _ in cells],
            mode="markers",
            marker={"symbol": "square", "size": ROW_PX - 4, "opacity": 0},
            selected={"marker": {"opacity": 0}},
            unselected={"marker": {"opacity": 0}},
            customdata=[[r, c] for r, c, _ in cells],
            text=[f"{written([*tokens, REST][r], HOVER_CHARACTERS)}, round {rounds[c]}: {percent(value)}" for r, c, value in cells],
            hovertemplate="%{text}<extra></extra>",
            row=1,
            col=column,
        )
        if round_ in rounds:
            at, ink = rounds.index(round_), {"color": look.faint(0.85), "width": 2}
            figure.add_shape(type="rect", x0=at - 0.5, x1=at + 0.5, y0=-0.5, y1=len(names) - 0.5, line=ink, row=1, col=column)
    step = max(1, -(-len(rounds) // 12))
    ticks = list(range(0, len(rounds), step))
    figure.update_xaxes(tickvals=ticks, ticktext=[str(rounds[c]) for c in ticks], range=[-0.5, len(rounds) - 0.5])
    figure.update_yaxes(showgrid=False)
    return figure


def rows_of(found: Masses) -> list[str]:
    """The tokens that the maps show: TOP of all."""
    return ranked(found.values())[:TOP]


def columns(arms: tuple[str, ...], places: Sequence[float], names: list[str]) -> go.Figure:
    """An empty figure: a column per arm, its name above it, and one row per name, from the top."""
    figure = charts.base(round(ROW_PX * (places[-1] + 1)) + 58, columns=len(arms))
    figure.update_layout(hovermode="y", dragmode=False, margin={"l": 8, "r": 8, "t": 28, "b": 30})
    for column, arm in enumerate(arms, 1):
        place = {"x": 0, "y": 1, "xref": f"x{column if column > 1 else ''} domain", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
        words = {"text": f"<b>{escape(arm)}</b>", "font": {"size": 13, "color": look.look(arm).colour}}
        figure.add_annotation(**place, **words, yshift=4, showarrow=False)
    figure.update_yaxes(
        tickvals=list(places), ticktext=names, range=[places[-1] + 0.55, -0.55], fixedrange=True, showgrid=False, automargin=True, ticks=""
    )
    figure.update_yaxes(tickfont={"size": 12, "family": '"Source Code Pro", monospace'})
    figure.update_xaxes(fixedrange=True)
    return figure


def missing(figure: go.Figure, column: int, words: str) -> None:
    """Say in a column why it is empty."""
    at = "" if column == 1 else str(column)
    place = {"x": 0.5, "y": 0.5, "xref": f"x{at} domain", "yref": f"y{at} domain", "showarrow": False}
    figure.add_annotation(**place, text="<br>".join(textwrap.wrap(escape(words), 40)), font={"color": look.faint(0.7)})
    figure.add_bar(x=[0], y=[0], orientation="h", hoverinfo="skip", row=1, col=column)


def panel(quantity: str, rows: pl.DataFrame, arms: tuple[str, ...], rounds: int, round_: int) -> go.Figure:
    """One quantity over the rounds, one line per arm. `rows`: of `readings`, of this quantity."""
    title, said = PANELS[quantity]
    figure = charts.panel(title, charts.wrapped(said))
    for arm in arms:
        charts.line(figure, rows.filter(pl.col("arm") == arm), arm)
    figure.update_xaxes(**charts.round_ticks(rounds))
    figure.update_yaxes(rangemode="tozero") if quantity == "effective" else figure.update_yaxes(range=[0, 1.04], tickformat=".0%")
    charts.mark_round(figure, round_)
    charts.why_empty(figure, rows)
    return figure
