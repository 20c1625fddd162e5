"""What the torture figures are meant to reach; a section's rows begin with its name."""

from __future__ import annotations

from dces_core.bench.rows import Goals

GOALS: Goals = {
    "kill-fake": ("ours", "≥", 100.0),
    "kill-tiny": ("ours", "≥", 20.0),
    "kill-different": ("ours", "≤", 0.0),
}
