"""What only a browser can show: texts verbatim and silent, deep links, a lasso, a run that survives its tab."""

from __future__ import annotations

import re

import pytest
from browser_kit import ROOT, Server, plot_box
from make_run import HOSTILE, make_run
from playwright.sync_api import Browser, expect

from dces_core.ui.text import visible

pytestmark = pytest.mark.browser


def seen(value: str) -> str:
    return "".join(map(visible, value)) or "empty answer"


def test_hostile_texts_are_verbatim_and_silent(server: Server, browser: Browser) -> None:
    make_run(server.runs, rounds=1)
    page = server.watch(browser.new_page())
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    for i, value in enumerate(HOSTILE):
        server.open(page, f"generations?run=synthetic-1&prompt=probe-{i + 2:02d}&vs=plain")
        cell = page.locator(".st-key-probes .said").last
        expect(cell).to_be_visible()
        assert cell.evaluate("node => node.textContent") == seen(value)
        assert cell.evaluate("node => getComputedStyle(node).whiteSpace") == "pre-wrap"
        assert page.locator(".stMain img[src='x'], .stMain .said a, .stMain .said img").count() == 0
    page.wait_for_timeout(500)
    assert not dialogs
    assert server.foreign == []
    page.close()


def test_first_visitor_may_come_by_deep_link(server: Server, browser: Browser) -> None:
    make_run(server.runs)
    page = server.open(server.watch(browser.new_page()), "generations?run=synthetic-1&vs=dces,plain&prompt=probe-01&round=2&mode=sampled")
    expect(page.get_by_role("heading", name="Generations")).to_be_visible()
    expect(page.get_by_text("collapsed at round 2")).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_test_id("stSidebarNavLink")).to_have_count(len(list((ROOT / "pages").glob("*.py"))))
    assert "round=2" in page.url and "mode=sampled" in page.url
    assert server.foreign == []
    page.close()


def test_every_page_in_both_themes(server: Server, browser: Browser) -> None:
    make_run(server.runs)
    for theme, ground in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(21, 23, 26)")):
        context = browser.new_context(color_scheme=theme)  # type: ignore[arg-type]
        page = server.watch(context.new_page())
        for path in ("", "launch", "watch", "trajectories", "clusters", "feedback", "point", "generations", "runs"):
            server.open(page, f"{path}?run=synthetic-1")
            expect(page.locator("h1")).to_be_visible()
            assert page.get_by_test_id("stException").count() == 0
            assert page.get_by_test_id("stApp").evaluate("node => getComputedStyle(node).backgroundColor") == ground
        context.close()
    assert server.foreign == []


def test_a_selection_on_the_map_shows_its_texts(server: Server, browser: Browser) -> None:
    make_run(server.runs)
    page = server.open(browser.new_page(viewport={"width": 1440, "height": 1100}), "clusters?run=synthetic-1&round=1")
    box = plot_box(page, "map-plain-1")
    left, top, right, bottom = box["x"] + 8, box["y"] + 8, box["x"] + box["width"] - 8, box["y"] + box["height"] - 8
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom), (left, top + 4)):
        page.mouse.move(x, y, steps=6)
    page.mouse.up()
    heading = page.get_by_text(re.compile(r"^\d+ selected$"))
    expect(heading).to_be_visible(timeout=20_000)
    assert heading.inner_text() == "120 selected", "every point of one arm, each once"
    expect(page.locator(".st-key-life dl")).to_contain_text("generated")
    page.close()


def test_a_click_on_the_heat_map_picks_prompt_and_round(server: Server, browser: Browser) -> None:
    make_run(server.runs)
    page = server.open(browser.new_page(viewport={"width": 1440, "height": 1100}), "generations?run=synthetic-1&vs=plain,dces")
    box = plot_box(page, "heat-dces")
    page.mouse.click(box["x"] + box["width"] * 2.5 / 4, box["y"] + 8)  # rounds 0..3 from the left, the worst prompt on top
    page.wait_for_url(re.compile("round=2"), timeout=20_000)
    expect(page.locator(".st-key-probes .now")).to_have_text("2")
    worst = re.search(r"prompt=(probe-\d+)", page.url)
    assert worst and worst.group(1) != "probe-01"
    expect(page.locator(".st-key-probes .said").first).to_have_text("1. 1. 1. 1. 1. 1. 1. 1. 1. 1.")
    page.close()


def test_a_row_of_the_answers_is_read_and_linked(server: Server, browser: Browser) -> None:
    make_run(server.runs)
    page = server.open(browser.new_page(viewport={"width": 1440, "height": 2600}), "generations?run=synthetic-1&vs=plain,dces&round=1")
    before = page.locator(".st-key-pair .ask").inner_text()
    table = page.get_by_test_id("stDataFrame").last.bounding_box()
    assert table is not None
    page.mouse.click(table["x"] + 16, table["y"] + 35 * 3.5)  # the header and two rows lie above the third
    page.wait_for_url(re.compile("answer=test-"), timeout=20_000)
    expect(page.locator(".st-key-pair .ask")).not_to_have_text(before)
    read = page.locator(".st-key-pair .ask").inner_text()
    server.open(page, page.url.split("/", 3)[3])
    expect(page.locator(".st-key-pair .ask")).to_have_text(read)
    page.close()


def test_the_case_study_is_verbatim_and_leads_on(server: Server, browser: Browser) -> None:
    make_run(server.runs, rounds=1)
    page = server.watch(browser.new_page())
    for i, value in enumerate(HOSTILE):
        server.open(page, f"case?run=synthetic-1&prompt=probe-{i + 2:02d}")
        cell = page.locator(".st-key-story .said").last
        expect(cell).to_be_visible()
        assert cell.evaluate("node => node.textContent") == seen(value)
    server.open(page, "case?run=synthetic-1&vs=plain,dces")
    page.locator(".st-key-worst a").first.click()
    page.wait_for_url(re.compile("prompt="), timeout=20_000)
    expect(page.locator(".ask.big")).to_contain_text("Question")
    assert server.foreign == []
    page.close()


def test_arrow_keys_move_the_round(server: Server, browser: Browser) -> None:
    make_run(server.runs)
    page = server.open(browser.new_page(), "clusters?run=synthetic-1&round=2")
    expect(page.get_by_text("The feedback loop in round 2")).to_be_visible()
    for _ in range(15):  # the listener comes with the button; the last round is 3, so one press too many changes nothing
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(1000)
        if "round=3" in page.url:
            break
    expect(page.get_by_text("The feedback loop in round 3")).to_be_visible(timeout=20_000)
    page.close()


def test_launch_close_the_tab_reopen(server: Server, browser: Browser) -> None:
    page = server.open(browser.new_page(), "launch?recipe=smoke")
    page.get_by_role("button", name="Launch", exact=True).click()
    expect(page.get_by_role("heading", name="Watch")).to_be_visible(timeout=30_000)
    run_id = re.search(r"run=([A-Za-z0-9._-]+)", page.url)
    assert run_id is not None
    page.close()
    server.stop()  # a restarted dashboard finds the run again
    server.start()
    page = server.open(browser.new_page(), f"watch?run={run_id.group(1)}")
    expect(page.locator(".badge", has_text="done")).to_be_visible(timeout=180_000)
    expect(page.locator("i[title='round 1 plain evaluate: done']")).to_have_count(1)
    server.open(page, f"generations?run={run_id.group(1)}")
    expect(page.locator(".st-key-probes .round", has_text="1").first).to_be_visible()
    page.close()
