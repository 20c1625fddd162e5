"""`dces bench`: the engine against its peers, side by side in one run; docs/performance.md says how."""
