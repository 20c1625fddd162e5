"""axe-core finds no serious fault on any page, in either theme, but for what the framework draws itself."""

from __future__ import annotations

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser_kit import ROOT, Server
from playwright.sync_api import Browser

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PAGES = ["", *sorted(path.stem for path in (ROOT / "pages").glob("*.py") if path.stem != "start")]
SERIOUS = ("serious", "critical")
#: Faults of the framework's own markup: rule and the element that holds it. The list may only shrink: an entry that is not found fails.
FRAMEWORK = {
    ("list", "stSidebarNavItems"),  # a sidebar section puts a div between the list and its items
    ("listitem", "stSidebarNavItems"),
}


def faults(server: Server, browser: Browser, theme: Any) -> dict[tuple[str, str], list[str]]:
    """(rule, holder) -> page and markup of each fault; the holder is the nearest element with a test id."""
    found: dict[tuple[str, str], list[str]] = {}
    context = browser.new_context(viewport={"width": 1440, "height": 1200}, color_scheme=theme)
    for path in PAGES:
        page = server.open(context.new_page(), f"{path}?run=standard")
        page.wait_for_timeout(1500)
        for fault in Axe().run(page).response["violations"]:
            for node in fault["nodes"] if fault["impact"] in SERIOUS else []:
                holder = page.evaluate("s => document.querySelector(s)?.closest('[data-testid]')?.dataset.testid ?? ''", node["target"][0])
                inside = page.evaluate("s => !!document.querySelector(s)?.closest('[data-testid=stSidebarNavItems]')", node["target"][0])
                key = (fault["id"], "stSidebarNavItems" if inside else holder)
                found.setdefault(key, []).append(f"{path or 'start'}: {node['html'][:150]} {node.get('failureSummary', '')[-120:]}")
        page.close()
    context.close()
    return found


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_serious_fault_outside_the_framework(server: Server, browser: Browser, theme: str) -> None:
    found = faults(server, browser, theme)
    ours = {key: lines for key, lines in found.items() if key not in FRAMEWORK}
    assert not ours, "\n".join(f"{key}: {line}" for key, lines in ours.items() for line in lines)
    assert set(found) >= FRAMEWORK, "the framework has mended something: shorten FRAMEWORK"
