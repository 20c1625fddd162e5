"""Towards one point in a browser: tokens stand on the axis as they are written, and a cell of the map picks its round."""

from __future__ import annotations

import re

import pytest
from browser_kit import Server, plot_box
from make_run import make_run
from playwright.sync_api import Browser, expect

pytestmark = pytest.mark.browser


def test_tokens_are_verbatim_and_silent_and_a_cell_picks_its_round(server: Server, browser: Browser) -> None:
    make_run(server.runs)
    page = server.watch(browser.new_page(viewport={"width": 1440, "height": 2200}))
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    server.open(page, "point?run=synthetic-1&vs=plain,dces&prompt=probe-12&round=3")
    box = plot_box(page, "maps")
    labels = page.locator(".st-key-bars .yaxislayer-above text, .st-key-bars .ytick text").all_text_contents()
    assert labels[0] == "</script>" and {"␣The", "↵", "<b>", "$x$", "all other tokens"} <= set(labels)
    assert page.locator(".st-key-bars svg a, .st-key-bars svg script").count() == 0
    page.mouse.click(box["x"] + box["width"] * 1.5 / 4, box["y"] + 30)  # rounds 0..3 from the left
    page.wait_for_url(re.compile("round=1"), timeout=60_000)
    expect(page.get_by_role("heading", name="The first token in round 1")).to_be_visible(timeout=60_000)
    assert not dialogs and server.foreign == []
    page.close()
