"""What the torture figures are meant to reach; a section's rows begin with its name."""

from __future__ import annotations

from dces_core.bench.rows import Goals

GOALS: Goals = {
    "kill-fake": ("ours", "≥", 100.0),
    "kill-tiny": ("ours", "≥", 20.0),
    "kill-different": ("ours", "≤", 0.0),
    "kill-states": ("ours", "≤", 0.0),
    "disk-wrong": ("ours", "≤", 0.0),
    "disk-undetected": ("ours", "≤", 0.0),
    "disk-raised": ("ours", "≤", 0.0),
    "numbers-undefined": ("ours", "≤", 0.0),
    "numbers-oom-undefined": ("ours", "≤", 0.0),
    "inputs-cases": ("ours", "≥", 10_000.0),
    "inputs-tracebacks": ("ours", "≤", 0.0),
    "inputs-hangs": ("ours", "≤", 0.0),
    "inputs-outside": ("ours", "≤", 0.0),
    "crowd-slowdown-10": ("ours", "≤", 5.0),
    "crowd-errors-10": ("ours", "≤", 0.0),
    "crowd-errors-100": ("ours", "≤", 0.0),
    "crowd-share-100": ("ours", "≤", 10.0),
    "crowd-memory-100": ("ours", "≤", 1000.0),
    "cluster-moved": ("ours", "≥", 1.0),
    "cluster-different": ("ours", "≤", 0.0),
    "cluster-lost": ("ours", "≤", 0.0),
    "cluster-repeated": ("ours", "≤", 0.0),
    "cluster-strangers": ("ours", "≤", 0.0),
    "soak-heap-growth": ("ours", "≤", 10.0),
    "soak-server-growth": ("ours", "≤", 10.0),
}
