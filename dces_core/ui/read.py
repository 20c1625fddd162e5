"""Cached reads. A finished round never changes, so its tables are kept by (run path, arm, round), bounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import streamlit as st

from dces_core import launch
from dces_core.records import METRICS, table
from dces_core.stage import Stage
from dces_core.store import SHARED, Run
from dces_core.ui.text import plain_cell


def stamp(stage: Stage) -> int:
    """When the stage was finished, ns; 0 while it is not. Part of every cache key, so a redone round is read again."""
    try:
        return (stage.path / "_done.json").stat().st_mtime_ns
    except OSError:
        return 0


@st.cache_data(max_entries=4096, show_spinner=False)  # fewer than arms x rounds would read every file again at every drawing
def _metrics(path: str, arm: str, round_: int, when: int) -> pl.DataFrame:
    return Run(Path(path)).of(round_, arm, "evaluate").frame("metrics").with_columns(pl.lit(arm).alias("arm"))


@st.cache_data(max_entries=1024, show_spinner=False)
def _evaluated(path: str, arm: str, round_: int, name: str, when: int) -> pl.DataFrame:
    """A table of one evaluation; columns that it was written without are null."""
    frame = Run(Path(path)).of(round_, arm, "evaluate").frame(name)
    return table(name, frame.with_columns(pl.lit(arm).alias("arm")) if "arm" in frame.columns else frame)


@st.cache_data(max_entries=32, show_spinner=False)
def _samples(path: str, arm: str, round_: int, when: int) -> pl.DataFrame:
    return Run(Path(path)).samples(arm, round_)


@st.cache_data(max_entries=2048, show_spinner=False)
def _loop(path: str, arm: str, round_: int, when: int) -> dict[str, Any]:
    picked = Run(Path(path)).stage(round_, arm, "select").frame("samples").filter(pl.col("fate") == "picked")
    edited = int((picked["changed"].fill_null(0) > 0).sum())
    return {**controller(Run(Path(path)), arm, round_), "picked_samples": picked.height, "edited_samples": edited}


@st.cache_data(max_entries=8, show_spinner=False)
def _ground(path: str, when: int) -> pl.DataFrame:
    return Run(Path(path)).frame()


def stage_of(run: Run, arm: str, round_: int, name: str) -> Stage:
    """The stage that counts for an arm: round 0's evaluation and the first pool are shared, the shared map is only the ground."""
    own = run.stage(round_, arm, name)
    return own if name not in ("generate", "evaluate") or stamp(own) else run.stage(round_, SHARED, name)


def finished(run: Run, arm: str, name: str = "evaluate") -> list[int]:
    """Rounds of an arm whose stage is done, ascending."""
    return [r for r in run.rounds_begun() if stamp(stage_of(run, arm, r, name))]


def metrics(run: Run) -> pl.DataFrame:
    """METRICS of all finished rounds; round 0 repeats under each arm."""
    parts = [table("metrics", [])]
    for arm in run.config.arms:
        parts += [_metrics(str(run.path), arm, r, stamp(stage_of(run, arm, r, "evaluate"))) for r in finished(run, arm)]
    return pl.concat([part.select(list(METRICS)) for part in parts])


def probes(run: Run, arms: tuple[str, ...]) -> pl.DataFrame:
    """PROBES of all finished rounds of these arms."""
    return _of_all_rounds(run, arms, "probes")


def next_tokens(run: Run, arms: tuple[str, ...]) -> pl.DataFrame:
    """NEXT_TOKENS of all finished rounds of these arms."""
    return _of_all_rounds(run, arms, "next_tokens")


def _of_all_rounds(run: Run, arms: tuple[str, ...], name: str) -> pl.DataFrame:
    parts = [table(name, [])]
    for arm in arms:
        parts += [_evaluated(str(run.path), arm, r, name, stamp(stage_of(run, arm, r, "evaluate"))) for r in finished(run, arm)]
    return pl.concat(parts)


def generations(run: Run, arm: str, round_: int) -> pl.DataFrame:
    """GENERATIONS of one evaluation."""
    return _evaluated(str(run.path), arm, round_, "generations", stamp(stage_of(run, arm, round_, "evaluate")))


def entropy(run: Run, arm: str, round_: int) -> pl.DataFrame:
    """ENTROPY of one evaluation."""
    return _evaluated(str(run.path), arm, round_, "entropy", stamp(stage_of(run, arm, round_, "evaluate")))


def samples(run: Run, arm: str, round_: int) -> pl.DataFrame:
    """SAMPLES with x, y of one round."""
    when = stamp(run.stage(round_, arm, "select")) + stamp(run.stage(round_, arm, "map"))
    return _samples(str(run.path), arm, round_, when)


def ground(run: Run) -> pl.DataFrame:
    """FRAME: the real references under every map."""
    return _ground(str(run.path), stamp(run.stage(1, "shared", "map")))


def facts(run: Run, arm: str, round_: int) -> dict[str, Any]:
    """Dispersion, hull area and so on of one round's map."""
    return run.map_facts(arm, round_)


def controller(run: Run, arm: str, round_: int) -> dict[str, Any]:
    """The feedback loop's state, flat: what `flow` counts stands beside it, counts by reason are summed and spelt out."""
    state = run.controller(arm, round_)
    flat = {key: value for key, value in state.items() if not isinstance(value, dict) and key not in ("clusters", "quotas", "arm", "round")}
    for key, value in (state.get("flow") or {}).items():
        flat[key] = value
        if isinstance(value, dict):
            flat[key] = sum(value.values())
            flat[f"{key} because"] = ", ".join(f"{reason}: {count}" for reason, count in value.items()) or None
    return flat


def loop(run: Run, arm: str, round_: int) -> dict[str, Any]:
    """`controller`, and how many samples of the round were picked and how many of those the edit changed."""
    return _loop(str(run.path), arm, round_, stamp(run.stage(round_, arm, "select")))


def live(run: Run) -> bool:
    """Whether a worker is at it or about to be."""
    return not run.recorded and launch.state(run) in launch.ALIVE


def csv_of(frame: pl.DataFrame) -> bytes:
    """A CSV that no spreadsheet executes."""
    texts = [name for name, kind in frame.schema.items() if kind == pl.String]
    safe = frame.with_columns([pl.col(name).map_elements(plain_cell, return_dtype=pl.String) for name in texts])
    return safe.write_csv().encode()
