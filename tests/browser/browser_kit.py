"""A dashboard process for browser tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

ROOT = Path(__file__).resolve().parents[2]
READY = "[data-testid='stApp'][data-test-connection-state='CONNECTED']"
IDLE = "[data-testid='stApp'][data-test-script-state='notRunning']"


@dataclass
class Server:
    """One dashboard process over a runs directory of its own."""

    runs: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    foreign: list[str] = field(default_factory=list)  # requests to anything but this server

    def start(self) -> None:
        env = {**os.environ, "DCES_RUNS": str(self.runs), "DCES_CACHE": str(self.runs.parent / "cache"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(self.port)]
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_stcore/health", timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the dashboard did not start")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(15)
            self.process = None

    def watch(self, page: Page) -> Page:
        """Note every request of this tab that leaves the server."""
        page.on("request", lambda request: None if self.own(request.url) else self.foreign.append(request.url))
        return page

    def own(self, url: str) -> bool:
        return url.startswith((f"http://127.0.0.1:{self.port}/", f"ws://127.0.0.1:{self.port}/", "data:", "blob:"))

    def open(self, page: Page, path: str) -> Page:
        """Go to an address and wait until the page stands."""
        page.goto(f"http://127.0.0.1:{self.port}/{path}")
        page.wait_for_selector(READY, timeout=60_000)
        page.wait_for_selector(IDLE, timeout=60_000)
        return page


def plot_box(page: Page, key: str) -> Any:
    """Where a chart's drawing area is, once it takes the mouse."""
    plot = page.locator(f".st-key-{key} .nsewdrag").first
    expect(plot).to_be_visible(timeout=60_000)
    page.wait_for_timeout(1500)
    box = plot.bounding_box()
    assert box is not None
    return box
