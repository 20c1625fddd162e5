"""Start opens at once: its words wait for nothing that reads runs, and its curves need no chart library."""

from __future__ import annotations

import re
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest
from make_run import make_run
from streamlit.testing.v1 import AppTest

from dces_core.ui import curves, look

ROOT = Path(__file__).resolve().parents[2]
FRONT = """
import ast, importlib, sys
for path in ("app.py", "pages/start.py"):
    for node in ast.parse(open(path).read()).body:
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            for alias in node.names:
                found = importlib.import_module(node.module)
                if not hasattr(found, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
print(*sys.modules)
"""


def rows(values: dict[str, list[float | None]]) -> pl.DataFrame:
    """METRICS of one metric, as far as a curve reads them."""
    cells = [
        (arm, round_, value, None if value is not None else "no loop") for arm, own in values.items() for round_, value in enumerate(own)
    ]
    return pl.DataFrame(cells, {"arm": pl.String, "round": pl.Int64, "value": pl.Float64, "reason": pl.String}, orient="row")


def drawn(html: str) -> str:
    """The picture of a curve, and only one."""
    (picture,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', html)
    return b64decode(picture).decode()


@pytest.fixture(autouse=True)
def light() -> Iterator[None]:
    """Colours without a session."""
    with look.on_paper():
        yield


def test_a_curve_has_gaps_a_ring_and_tells_its_values() -> None:
    values = {"plain": [1.0, None, 3.0, 4.0], "dces": [1.0, 1.0, float("inf"), 1.25]}
    html = curves.curve(rows(values), "ppl", ("plain", "dces", "random"), 3, {"plain": 2})
    svg = drawn(html)
    plain, dces, random = re.findall(r'<path d="([^"]*)" fill="none"', svg)
    assert (plain.count("M"), plain.count("L"), dces.count("M"), dces.count("L"), random) == (2, 1, 2, 1, "")
    assert re.findall(r'cx="(\S+)" cy="\S+" r="7.5"', svg) == [f"{curves.Plot([0.0], 3).x(2):.1f}"]
    assert "ppl, lower is better" in html and 'title="round 1&#10;dces 1"' in html and 'title="round 3&#10;plain 4&#10;dces 1.25"' in html
    assert "plain 1 in round 0, 4 in round 3; dces 1 in round 0, 1.25 in round 3." in html and "inf" not in html + svg


def test_a_curve_without_a_value_says_why() -> None:
    html = curves.curve(rows({"plain": [None, None]}), "loop_rate", ("plain",), 1, {})
    assert "undefined: no loop" in html and "<img" not in html


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [-3.0, -3.0], [1e-9, 2e-9], [5e8, 9e11], [-1.0, 1.0]])
def test_every_value_lies_inside_and_ticks_are_few(values: list[float]) -> None:
    plot = curves.Plot(values, 4)
    levels = curves.ticks(plot.low, plot.high)
    assert 2 <= len(levels) <= curves.TICKS + 1 and all(plot.low <= level <= plot.high for level in levels)
    assert all(curves.TOP <= plot.y(value) <= curves.HEIGHT - curves.BOTTOM for value in values)
    assert plot.low >= 0 or min(values) < 0


def test_what_draws_the_first_words_reads_no_runs() -> None:
    done = subprocess.run([sys.executable, "-c", FRONT], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert "dces_core.ui.picture" in loaded
    assert not loaded & {"pydantic", "psutil", "polars", "dces_core.store", "dces_core.config", "dces_core.ui.state", "dces_core.ui.charts"}


def test_start_loads_no_chart_library(runs: Path, open_page: Callable[..., AppTest]) -> None:
    make_run(runs)
    app = open_page("start")
    assert not app.get("plotly_chart") and not app.get("bidi_component")
    assert "".join(html.proto.body for html in app.get("html")).count('class="curve"') == 4
    assert open_page("trajectories", run="synthetic-1").get("bidi_component")
