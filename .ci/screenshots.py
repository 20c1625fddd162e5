"""Make the pictures of README.md and docs/tour.md: the product's own pages over the recorded run, in a real Chromium.

    python .ci/screenshots.py

DCES_CHROMIUM names the browser; without it Debian's is taken, else Playwright's own.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT / "data" / "recorded"
IMAGES = ROOT / "docs" / "images"
NAMES = ("launch", "trajectories", "clusters", "feedback", "generations", "case", "compare", "runs")
PAGES = {"start": "", **dict(zip(NAMES, NAMES, strict=True))}
READY = "[data-testid='stApp'][data-test-connection-state='CONNECTED'][data-test-script-state='notRunning']"
LIMIT_S = 60.0
#: Pages draw their charts after the script has ended.
SETTLE_MS = 3000


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_server(address: str) -> None:
    """Return once the dashboard answers; SystemExit when it does not."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/_stcore/health", timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    sys.exit("the dashboard did not start")


@contextmanager
def dashboard() -> Iterator[str]:
    """The dashboard's address, with no runs but the recorded ones."""
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port), "--server.headless", "true"]
    with tempfile.TemporaryDirectory() as runs:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "DCES_RUNS": runs}, stdout=subprocess.DEVNULL)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for_server(address)
            yield address
        finally:
            process.terminate()
            process.wait()


def take(page: Page, address: str, name: str) -> None:
    """One page as one picture."""
    page.goto(address)
    page.wait_for_selector(READY, timeout=LIMIT_S * 1000)
    page.wait_for_selector(".stMain h1", timeout=LIMIT_S * 1000)
    page.wait_for_timeout(SETTLE_MS)
    if page.get_by_test_id("stException").count():
        sys.exit(f"the page {name} shows an error; open it in a browser and look")
    page.screenshot(path=IMAGES / f"{name}.png")
    print(IMAGES / f"{name}.png")


def main() -> None:
    """Take all pictures of the first recorded run."""
    recorded = sorted(path.parent for path in RECORDED.glob("*/run.json"))
    if not recorded:
        sys.exit("data/recorded holds no run; record one first: dces record RUN NAME")
    IMAGES.mkdir(parents=True, exist_ok=True)
    chromium = os.environ.get("DCES_CHROMIUM") or shutil.which("chromium")
    with dashboard() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--enable-unsafe-swiftshader"])
        context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light")
        for name, path in PAGES.items():
            take(context.new_page(), f"{address}/{path}?run={recorded[0].name}", name)
        browser.close()


if __name__ == "__main__":
    main()
