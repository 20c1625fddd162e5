"""On a telephone no page is wider than the screen: what is wide scrolls in a box of its own."""

from __future__ import annotations

import pytest
from browser_kit import ROOT, Server
from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PAGES = ["", *sorted(path.stem for path in (ROOT / "pages").glob("*.py") if path.stem != "start")]
#: What juts out of the screen, unless a box that itself fits cuts it off or scrolls it.
WIDER = """() => {
  const width = document.documentElement.clientWidth, found = [];
  const held = (box) => box && !box.matches(".stMain") && ((getComputedStyle(box).overflowX !== "visible"
    && box.getBoundingClientRect().right <= width + 1) || held(box.parentElement));
  for (const box of [document.documentElement, document.querySelector(".stMain")])
    if (box.scrollWidth > box.clientWidth) found.push(`${box.tagName}: ${box.scrollWidth} px`);
  for (const node of document.querySelectorAll(".stMain *")) {
    const {right, width: own} = node.getBoundingClientRect();
    if (own && right > width + 1 && !held(node.parentElement)) found.push(`${node.tagName}.${node.className}: up to ${right} px`);
  }
  return found;
}"""


def wider(page: Page) -> list[str]:
    return page.evaluate(WIDER)


def test_no_page_is_wider_than_a_narrow_screen(server: Server, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 420, "height": 900})
    found = {}
    for path in PAGES:
        server.open(page, f"{path}?run=standard")
        page.wait_for_selector(".stMain h1")
        page.wait_for_timeout(400)
        found[path or "start"] = wider(page)
    assert not any(found.values()), {name: lines for name, lines in found.items() if lines}
    page.locator(".stMain h1").evaluate("node => { node.style.width = '500px'; }")
    assert wider(page), "what is too wide is found"
    page.close()
