"""Reading a run in a browser: a clicked point is a round, a table row is a cluster, rounds play, pictures and files are saved."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest
from browser_kit import Server, plot_box
from make_run import make_run
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.browser


@pytest.fixture
def tab(server: Server, browser: Browser) -> Page:
    """A large tab over one synthetic run of three rounds."""
    make_run(server.runs)
    return server.watch(browser.new_page(viewport={"width": 1440, "height": 1400}, accept_downloads=True))


def test_a_clicked_point_is_the_round_of_every_chart(server: Server, tab: Page) -> None:
    server.open(tab, "trajectories?run=synthetic-1&shown=change&vs=plain,dces")
    box = plot_box(tab, "metric-ppl")
    assert tab.locator(".st-key-metric-loss .shapelayer path").count() == 0
    tab.mouse.click(box["x"] + box["width"] * (2 + 0.3) / 3.7, box["y"] + box["height"] / 2)  # the axis goes from -0.3 to 3.4
    tab.wait_for_url(re.compile("round=2"), timeout=60_000)
    expect(tab.get_by_role("heading", name="Calibration in round 2")).to_be_visible(timeout=60_000)
    expect(tab.locator(".st-key-metric-loss .shapelayer path")).to_have_count(1, timeout=60_000)
    assert "shown=change" in tab.url
    tab.locator(".st-key-round-latest button").first.click()
    expect(tab.locator(".st-key-metric-loss .shapelayer path")).to_have_count(0, timeout=60_000)
    tab.close()


def test_a_chart_is_saved_under_its_name_in_double_size(server: Server, tab: Page, tmp_path: Path) -> None:
    server.open(tab, "trajectories?run=synthetic-1")
    box = plot_box(tab, "metric-ppl")
    tab.mouse.move(box["x"] + 40, box["y"] + 40)
    with tab.expect_download(timeout=60_000) as download:
        tab.locator(".st-key-metric-ppl button.modebar-btn").first.click()
    assert download.value.suggested_filename == "synthetic-1-ppl.png"
    download.value.save_as(tmp_path / "chart.png")
    head = (tmp_path / "chart.png").read_bytes()[:24]
    drawn = tab.locator(".st-key-metric-ppl .main-svg").first.bounding_box()
    assert drawn and drawn["height"] > 200
    assert head.startswith(b"\x89PNG") and int.from_bytes(head[20:24], "big") == 2 * round(drawn["height"])
    tab.close()


def test_a_row_of_the_table_selects_its_cluster(server: Server, tab: Page, tmp_path: Path) -> None:
    server.open(tab, "clusters?run=synthetic-1&round=1&vs=plain,dces")
    plot_box(tab, "map-plain-1")
    table = tab.get_by_test_id("stDataFrame").first.bounding_box()
    assert table is not None
    tab.mouse.click(table["x"] + 14, table["y"] + 35 + 17)
    expect(tab.get_by_text(re.compile(r"^\d+ selected$"))).to_be_visible(timeout=60_000)
    expect(tab.locator(".st-key-life dl")).to_contain_text("cluster 0")
    for label, name in (("Samples as Parquet", "synthetic-1-round1.parquet"), ("Maps as HTML", "synthetic-1-round1-maps.html")):
        with tab.expect_download(timeout=60_000) as download:
            tab.get_by_role("button", name=label).click()
        assert download.value.suggested_filename == name
        download.value.save_as(tmp_path / name)
    assert pl.read_parquet(tmp_path / "synthetic-1-round1.parquet").height == 240
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto((tmp_path / "synthetic-1-round1-maps.html").as_uri())
    expect(tab.locator(".js-plotly-plot .main-svg").first).to_be_visible(timeout=60_000)
    expect(tab.locator(".js-plotly-plot")).to_have_count(2)
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
    tab.close()


def test_rounds_play_to_the_last_one_and_stop(server: Server, tab: Page) -> None:
    server.open(tab, "feedback?run=synthetic-1&round=1")
    tab.locator(".st-key-round-play button").first.click()
    for round_ in (2, 3):
        expect(tab.get_by_role("heading", name=f"round {round_} went")).to_be_visible(timeout=60_000)
    expect(tab.locator(".st-key-round-play").get_by_text("play_arrow").first).to_be_visible(timeout=60_000)
    tab.wait_for_timeout(3000)
    assert "round=3" in tab.url
    tab.close()
