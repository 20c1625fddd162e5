"""Metrics: plain arrays and texts in, value + n + interval out. One definition each."""
