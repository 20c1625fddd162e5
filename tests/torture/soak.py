"""Ten minutes on Watch in Chromium while a run adds round after round: how the tab's and the server's memory grow.

Growth is that between the second of ten minutes and the end: before, caches and pools of memory fill.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dces_core.bench import ui_browser
from dces_core.bench.rows import Row, skipped
from dces_core.bench.ui_server import APP, Server, serve
from dces_core.store import Run

if TYPE_CHECKING:
    from playwright.sync_api import Page

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "app"))

import make_run

MINUTES, ROUNDS = 10.0, 40
NAMES = ("soak-heap-growth", "soak-server-growth")
SETTLED = 0.2  # of the time


def measure(scale: float) -> list[Row]:
    """Rows of this section; skipped where there is no Chromium."""
    reason = ui_browser.absent()
    if reason:
        return [skipped(name, reason) for name in NAMES]
    with tempfile.TemporaryDirectory(prefix="dces-soak-") as folder:
        run = make_run.make_run(
            Path(folder) / "runs", rounds=ROUNDS, upto=dict.fromkeys(("plain", "dces", "dces-targets"), 0), state="running"
        )
        make_run.ground(run, np.random.default_rng(7))
        with serve(APP, run.path.parent, DCES_CACHE=str(Path(folder) / "cache")) as server, ui_browser.chromium() as browser:
            server.wait()
            page = browser.new_page(viewport=ui_browser.SIZE)
            page.goto(f"http://127.0.0.1:{server.port}/watch?run={run.id}", timeout=ui_browser.PATIENCE_MS)
            page.wait_for_selector(".stages", timeout=ui_browser.PATIENCE_MS)
            return _rows(_soak(page, server, run, 60 * MINUTES * scale))


def _soak(page: Page, server: Server, run: Run, seconds: float) -> list[tuple[float, float, float]]:
    """Share of the time, JS heap after a collection and resident memory of the server in bytes, once for each round that is added."""
    tab = page.context.new_cdp_session(page)
    tab.send("Performance.enable")
    random, started, found = np.random.default_rng(7), time.monotonic(), []
    for round_ in range(1, ROUNDS + 1):
        for arm in run.config.arms:
            make_run.round_of(run, run.config, arm, round_, random)
            make_run.event(run, {"kind": "span", "round": round_, "arm": arm, "stage": "evaluate", "seconds": 1.0})
        run.write_status({**run.status(), "round": round_, "heartbeat": time.time()})
        page.wait_for_timeout(max(0.0, 1000 * (started + seconds * round_ / ROUNDS - time.monotonic())))
        found.append((round_ / ROUNDS, _heap_bytes(tab), float(server.memory_bytes)))
    done = page.locator(".stages i.on").count()
    assert done > len(run.config.arms) * ROUNDS / 2, f"the tab followed only {done} finished stages"
    return found


def _heap_bytes(tab: Any) -> float:
    """What the page's scripts hold, after a collection."""
    tab.send("HeapProfiler.collectGarbage")
    metrics = tab.send("Performance.getMetrics")["metrics"]
    return float(next(one["value"] for one in metrics if one["name"] == "JSHeapUsedSize"))


def _rows(found: list[tuple[float, float, float]]) -> list[Row]:
    settled = next(one for one in found if one[0] >= SETTLED)
    rows = []
    for name, place in zip(NAMES, (1, 2), strict=True):
        first, last, peak = settled[place], found[-1][place], max(one[place] for one in found)
        note = f"{first / 1e6:.1f} MB, then {last / 1e6:.1f} MB at the end; peak {peak / 1e6:.1f} MB; {ROUNDS} rounds added"
        rows.append(Row(name, 100 * (last / first - 1), None, None, "%", len(found), note))
    return rows
