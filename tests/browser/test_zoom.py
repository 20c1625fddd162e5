"""Zoom survives what makes a chart anew: a round that lands, a round that is picked, another page. Only a double click undoes it."""

from __future__ import annotations

import re

import numpy as np
import pytest
from browser_kit import Server, plot_box
from make_run import make_run, round_of
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.browser
CHART = "document.querySelector('.st-key-metric-ppl .js-plotly-plot')"
Ranges = tuple[list[float], list[float]]


def ranges(page: Page) -> Ranges:
    """What the chart of the perplexity shows of x and y."""
    x, y = page.evaluate(f"(({{_fullLayout: all}}) => [all.xaxis.range, all.yaxis.range])({CHART})")
    return x, y


def zoom(page: Page) -> Ranges:
    """Draw a box over the middle of the chart; returns what it then shows."""
    box = plot_box(page, "metric-ppl")
    whole = ranges(page)
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.2 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.7 * box["height"], steps=8)
    page.mouse.up()
    page.wait_for_timeout(600)
    x, y = ranges(page)
    assert whole[0][0] < x[0] < x[1] < whole[0][1] and y[1] - y[0] < whole[1][1] - whole[1][0]
    page.evaluate(f"{CHART}.old = true")
    return x, y


def expect_anew(page: Page, state: str = "data") -> None:
    """Wait for another chart than the one that `zoom` marked, in this state."""
    page.wait_for_function(f"() => {CHART}?._fullLayout && !{CHART}.old && {CHART}.{state}", timeout=60_000)


def expect_zoom(page: Page, zoomed: Ranges, state: str = "data") -> None:
    """The chart was made anew and shows the same part."""
    expect_anew(page, state)
    page.wait_for_function(f"x => {CHART}._fullLayout.xaxis.range[0] === x", arg=zoomed[0][0], timeout=20_000)
    x, y = ranges(page)
    assert x == pytest.approx(zoomed[0]) and y == pytest.approx(zoomed[1])


def test_zoom_survives_a_round_that_lands(server: Server, browser: Browser) -> None:
    run = make_run(server.runs, upto={"plain": 1, "dces": 1, "dces-targets": 1}, state="running")
    page = server.open(browser.new_page(viewport={"width": 1440, "height": 1100}), "trajectories?run=synthetic-1")
    zoomed = zoom(page)
    round_of(run, run.config, "plain", 2, np.random.default_rng(0))
    expect_zoom(page, zoomed, "data[0].x.length === 3")
    whole = ranges_of_others(page)
    box = plot_box(page, "metric-ppl")
    page.mouse.dblclick(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function(f"x => {CHART}._fullLayout.xaxis.range[1] === x", arg=whole[1], timeout=20_000)
    page.evaluate(f"{CHART}.old = true")
    round_of(run, run.config, "plain", 3, np.random.default_rng(0))
    expect_anew(page, "data[0].x.length === 4")
    assert ranges(page)[0] == pytest.approx(whole) and ranges(page)[1][1] > zoomed[1][1], "a double click undid the zoom for good"
    page.close()


def ranges_of_others(page: Page) -> list[float]:
    """What a chart that nobody zoomed shows of x."""
    found: list[float] = page.evaluate("document.querySelector('.st-key-metric-loss .js-plotly-plot')._fullLayout.xaxis.range")
    return found


def test_zoom_survives_a_picked_round_and_another_page_but_not_another_test_set(server: Server, browser: Browser) -> None:
    make_run(server.runs)
    page = server.open(browser.new_page(viewport={"width": 1440, "height": 1100}), "trajectories?run=synthetic-1&set=everyday&round=1")
    zoomed = zoom(page)
    page.locator(".st-key-round-right button").first.click()
    page.wait_for_url(re.compile("round=2"), timeout=60_000)
    expect_zoom(page, zoomed)
    assert ranges_of_others(page) == pytest.approx([-0.3, 3.4])
    page.get_by_test_id("stSidebarNavLink").filter(has_text="Towards one point").click()
    expect(page.get_by_role("heading", name="The first token in round 2")).to_be_visible(timeout=60_000)
    page.get_by_test_id("stSidebarNavLink").filter(has_text="Trajectories").click()
    expect_zoom(page, zoomed)
    page.get_by_text("passages", exact=True).first.click()
    page.wait_for_url(re.compile("set=passages"), timeout=60_000)
    page.wait_for_function(f"() => {CHART}?._fullLayout?.xaxis.range[0] === -0.3", timeout=60_000)
    page.close()
