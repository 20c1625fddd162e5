"""Print and keep the figures of docs/reliability.md: `make torture`, or `python -m torture --only kill --scale 0.1`."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from dces_core.bench import rows
from torture.goals import GOALS

SECTIONS = ("kill", "disk", "numbers", "crowd", "inputs", "soak", "cluster")


def main() -> int:
    """Run the sections one after the other; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SECTIONS, action="append", help="a section; repeat for several")
    parser.add_argument("--scale", type=float, default=1.0, help="how much of the full amount to do")
    parser.add_argument("--out", type=Path, help="JSON file that keeps the figures")
    parser.add_argument("--page", type=Path, help="page whose table is written from that file")
    options = parser.parse_args()
    missed = 0
    for section in options.only or SECTIONS:
        found: list[rows.Row] = import_module(f"torture.{section}").measure(options.scale)
        for row in found:
            goal = rows.goal_of(row, GOALS)
            missed += goal.endswith("missed")
            print(
                f"{row.name:28} {'-' if row.ours is None else f'{row.ours:.4g}'} {row.unit:8} n = {row.n:<7} {goal:16} {row.note}",
                flush=True,
            )
        if options.out:
            rows.keep(options.out, found)
    if options.page and options.out:
        rows.write_page(options.page, options.out, list(SECTIONS), GOALS)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
