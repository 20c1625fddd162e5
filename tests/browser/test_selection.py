"""A lasso on a map leads to one sample's life, outlives a round that lands, and its sample has an address."""

from __future__ import annotations

import re

import numpy as np
import pytest
from browser_kit import Server, plot_box
from make_run import make_run, round_of
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.browser
SELECTED = re.compile(r"^\d+ selected$")
LIFE = ".st-key-life dl"


def lasso(page: Page, key: str) -> None:
    """Draw around the middle of a map."""
    box = plot_box(page, key)
    left, right = (box["x"] + share * box["width"] for share in (0.2, 0.8))
    top, bottom = (box["y"] + share * box["height"] for share in (0.2, 0.8))
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom), (left, top + 4)):
        page.mouse.move(x, y, steps=6)
    page.mouse.up()


def test_a_selection_survives_a_round_that_lands_and_its_sample_has_an_address(server: Server, browser: Browser) -> None:
    run = make_run(server.runs, upto={"plain": 1, "dces": 1, "dces-targets": 1}, state="running")
    page = server.open(browser.new_page(viewport={"width": 1440, "height": 1400}), "clusters?run=synthetic-1&vs=plain,dces&round=1")
    lasso(page, "map-dces-1")
    heading = page.get_by_text(SELECTED)
    expect(heading).to_be_visible(timeout=60_000)
    words, life = heading.inner_text(), page.locator(LIFE).inner_text()
    for name in ("prompt", "generated", "distance to its centroid", "log-probability", "role", "fate"):
        assert name in life
    page.wait_for_url(re.compile(r"sample=dces(:|%3A)r01-"), timeout=20_000)
    for arm in ("plain", "dces"):
        round_of(run, run.config, arm, 2, np.random.default_rng(0))
    expect(page.get_by_role("button", name="Round 2 is ready")).to_be_visible(timeout=60_000)
    expect(heading).to_have_text(words)
    assert page.locator(LIFE).inner_text() == life
    address = page.url.split("/", 3)[3]
    page.close()
    page = server.open(browser.new_page(), address)
    expect(page.get_by_role("heading", name="The linked sample")).to_be_visible(timeout=60_000)
    assert page.locator(LIFE).inner_text() == life
    page.close()
