"""What only a browser can tell: when the first heading is painted, and how long a zoom takes. Playwright may be absent."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dces_core.bench.ui_server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ViewportSize

SIZE: ViewportSize = {"width": 1440, "height": 1000}
PATIENCE_MS = 120_000
#: Notes the milliseconds from the first turn of the wheel to the frame after the zoom that it led to; reading a pixel waits for WebGL.
WATCH = """() => {
  const chart = document.querySelector(".js-plotly-plot");
  window.zooms = [];
  let from = null;
  addEventListener("wheel", (event) => (from ??= event.timeStamp), { capture: true, passive: true });
  const painted = () => {
    for (const canvas of chart.querySelectorAll("canvas"))
      canvas.getContext("webgl")?.readPixels(0, 0, 1, 1, 6408, 5121, new Uint8Array(4));
    zooms.push(performance.now() - from);
    from = null;
  };
  chart.on("plotly_relayout", () => from === null || requestAnimationFrame(() => requestAnimationFrame(painted)));
}"""


def path() -> str | None:
    """The Chromium of the machine; None: Playwright's own, if any."""
    return os.environ.get("DCES_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


def absent() -> str | None:
    """Why there is no browser, None where there is one."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed: pip install -c constraints.txt -e .[dev]"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        there = path() is not None or Path(playwright.chromium.executable_path).exists()
    return None if there else "there is no Chromium: set DCES_CHROMIUM, or run make browser"


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium; WebGL by the processor, so that its figures do not depend on a graphics card."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--enable-unsafe-swiftshader"]
        browser = playwright.chromium.launch(executable_path=path(), args=options)
        try:
            yield browser
        finally:
            browser.close()


def first_paint_s(browser: Browser, server: Server) -> float:
    """Seconds from the start of the server's process to the Start page's heading in a tab without a cache."""
    context = browser.new_context(viewport=SIZE)
    page = context.new_page()
    server.wait()
    page.goto(f"http://127.0.0.1:{server.port}/", wait_until="commit")
    page.wait_for_selector("h1", timeout=PATIENCE_MS)
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    seconds = time.perf_counter() - server.started
    context.close()
    return seconds


def zooms_ms(browser: Browser, server: Server, count: int) -> list[float]:
    """Milliseconds of each of `count` zooms into the map of ui_points.py, after one that does not count."""
    page = browser.new_page(viewport=SIZE)
    server.wait()
    page.goto(f"http://127.0.0.1:{server.port}/", timeout=PATIENCE_MS)
    page.wait_for_function(
        "() => document.querySelector('.js-plotly-plot')?._ev?.listenerCount('plotly_relayout')", timeout=PATIENCE_MS
    )  # Streamlit listens to a finished chart
    page.evaluate(WATCH)
    box = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    for done in range(count + 1):
        page.mouse.wheel(0, -120 if done % 2 else 120)
        page.wait_for_function("n => zooms.length === n", arg=done + 1, timeout=PATIENCE_MS)
        page.wait_for_timeout(300)
    found: list[float] = page.evaluate("zooms")
    page.close()
    return found[1:]
