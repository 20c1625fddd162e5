"""The dashboard on a large run: the server's time until a map is there, what a tick costs, memory, first paint, zoom."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

from dces_core.bench import ui_browser, ui_run
from dces_core.bench.plan import Plan
from dces_core.bench.rows import Row, skipped
from dces_core.bench.ui_server import APP, POINTS, Server, Visitor, serve
from dces_core.store import Run

PAGES = ("clusters", "trajectories", "generations", "watch")


def ui(plan: Plan) -> list[Row]:
    """Every figure of the dashboard. The server is asked over its own protocol; only paint and zoom need a browser."""
    if not APP.exists():
        return [skipped("ui", "the dashboard is not here: measure in a checkout of the project")]
    with tempfile.TemporaryDirectory(prefix="dces-bench-") as folder:
        run = ui_run.make(plan, Path(folder))
        return [*server_rows(plan, run), *browser_rows(plan, run)]


def server_rows(plan: Plan, run: Run) -> list[Row]:
    """What the server alone decides, from one process in this order: maps, ticks, memory."""
    with serve(APP, run.path.parent) as server:
        server.wait()
        maps, clusters = _maps(plan, server, run)
        visitors = {"clusters": clusters, **{page: Visitor(server.port, page, f"run={run.id}") for page in PAGES[1:]}}
        ticks = _ticks(plan, server, visitors)
        size = f"{plan.ui_arms} arms x {plan.ui_rounds} rounds x {plan.ui_samples:,} samples"
        memory = Row("ui-memory", server.memory_bytes / 1e6, None, None, "MB", len(visitors), f"{size}; open: {', '.join(visitors)}")
        for visitor in visitors.values():
            visitor.close()
    return [*maps, *ticks, memory]


def browser_rows(plan: Plan, run: Run) -> list[Row]:
    """What a person sees, in headless Chromium; skipped with the reason where there is none."""
    sizes, reason = {f"ui-zoom-{size // 1000}k": size for size in plan.ui_points}, ui_browser.absent()
    if reason:
        return [skipped(name, reason) for name in ("ui-first-paint", *sizes)]
    with ui_browser.chromium() as browser:
        paints = []
        for _ in range(plan.repeats + 1):  # the first reads the program from the disk
            with serve(APP, run.path.parent) as server:
                paints.append(ui_browser.first_paint_s(browser, server))
        first = f"from the start of the server's process to the heading of Start; the very first took {paints[0]:.2f} s"
        rows = [Row("ui-first-paint", median(paints[1:]), None, None, "s", plan.repeats, first)]
        for name, size in sizes.items():
            with serve(POINTS, run.path.parent, DCES_BENCH_POINTS=str(size)) as server:
                zooms = ui_browser.zooms_ms(browser, server, plan.ui_zooms)
            note = f"{size:,} samples, a part of them as points, wheel to the frame after, WebGL by processor; slowest {max(zooms):.0f} ms"
            rows.append(Row(name, median(zooms), None, None, "ms", len(zooms), note))
    return rows


def _maps(plan: Plan, server: Server, run: Run) -> tuple[list[Row], Visitor]:
    """Two arms' maps, every round for the first time (cold), then again (warm); the visitor stays on the page."""
    query = f"run={run.id}&vs={','.join(run.config.arms[:2])}&round="
    visitor = Visitor(server.port, "clusters", f"{query}1")
    rounds = range(2, plan.ui_rounds + 1)
    rows = []
    for name in ("ui-map-cold", "ui-map-warm"):
        before = server.cpu_s
        answers = [visitor.go(f"{query}{round_}") for round_ in rounds]
        times = [answer.figure_s for answer in answers if answer.figure_s is not None]
        assert len(times) == len(answers), "a round has no map"
        note = f"click to the last of two maps; processor {(server.cpu_s - before) / len(times):.3f} s; the slowest {max(times):.3f} s"
        rows.append(Row(name, median(times), None, None, "s", len(times), note))
    opened = visitor.opened.figure_s
    return [*rows, Row("ui-map-first", opened, None, None, "s", 1, "the first page of a new process, its imports included")], visitor


def _ticks(plan: Plan, server: Server, visitors: dict[str, Visitor]) -> list[Row]:
    """All timers of a page once is a tick, on a run that lives and does not move."""
    rows, figures, sent = [], 0, 0
    for page, visitor in visitors.items():
        timers, before = visitor.opened.timers, server.cpu_s
        assert timers, f"{page} does not tick"
        answers = [visitor.tick(timer) for _ in range(plan.ui_ticks) for timer in timers]
        spent = 1000 * (server.cpu_s - before) / plan.ui_ticks
        figures += sum(answer.figures for answer in answers)
        size = sum(answer.bytes for answer in answers) // plan.ui_ticks
        if page == "watch":
            rows.append(Row("ui-tick", spent, None, None, "ms", plan.ui_ticks, f"processor time; {len(timers)} timers, {size:,} bytes"))
        sent += plan.ui_ticks
    return [*rows, Row("ui-tick-figures", float(figures), None, None, "", sent, f"sent by unchanged ticks of {', '.join(visitors)}")]
