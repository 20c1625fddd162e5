"""A synthetic run directory that is true to the schemas: for page tests and page work, no engine needed.

`python tests/app/make_run.py DIR` writes one for looking at the pages.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from make_tables import entropy, next_tokens

from dces_core import processes, store
from dces_core.config import RunConfig, parse
from dces_core.stage import Draft
from dces_core.store import SHARED, Run

HAND_EYE = "What sports require good hand-eye coordination?"
HOSTILE = (
    "1. 1. 1. 1. 1. 1. 1. 1. 1. 1.",
    "1.1.1.1.1.1.1.1.1.1.1.1.",
    "---\n# not a heading\n***",
    "![x](http://127.0.0.1:9/beacon.png) and [a link](javascript:alert(1))",
    "<img src=x onerror=alert(1)><script>alert(2)</script>",
    "</div></div><style>*{display:none}</style>&lt;b&gt; &amp; &#60;",
    "$\\frac{1}{0}$ :material/delete: :red[no] `code` ~~gone~~",
    "tabs\tand   runs  of spaces\n\n\n  kept  ",
    "bell\x07 escape\x1b[31m null\x00 rtl\u202eesrever\u202c zero\u200bwidth \ufeffbom",
    '=HYPERLINK("http://127.0.0.1:9","x")',
    "",
)
SENTENCES = (
    "Tennis, table tennis and baseball all ask the eyes and the hands to work together.",
    "Rinse the rice until the water runs clear, then keep the lid shut for ten minutes.",
    "A sonnet has fourteen lines and usually turns its argument near the ninth.",
    "Check the tyre pressure when the wheels are cold, because heat raises it.",
    "The moon pulls on the sea, and the sea answers twice a day with a tide.",
    "Start with the smallest debt, pay it off, and carry the habit to the next one.",
    "Cats sleep most of the day and wake at dusk, when small prey begins to move.",
    "Water the seedlings from below so that the stems stay dry and do not rot.",
)
STEEPNESS = {"plain": 1.0, "random": 0.95, "dces": 0.3, "dces-targets": 0.12, "dces-no-edit": 0.7, "dces-static": 0.5, "frozen": 0.0}
#: metric -> (value at round 0, change per round of an arm of steepness 1)
REAL = {
    "loss": (1.76, 0.11),
    "ppl": (5.81, 1.1),
    "accuracy": (0.62, -0.02),
    "gain_kept": (1.0, -0.2),
    "kl_from_start": (0.0, 0.16),
    "ece": (0.028, 0.035),
    "ece_signed": (0.012, 0.04),
    "entropy_real": (1.9, -0.22),
    "tail_nll_head": (0.9, 0.03),
    "tail_nll_middle": (2.4, 0.1),
    "tail_nll_tail": (5.6, 0.5),
    "topk_mass_1": (0.55, 0.05),
    "topk_mass_10": (0.86, 0.02),
    "topk_mass_100": (0.96, 0.006),
    "effective_vocabulary": (6.7, -0.9),
}
GENERATED = {
    "entropy_generated": (1.4, -0.2),
    "entropy_unigram": (6.3, -0.2),
    "self_ppl": (3.9, -0.4),
    "ref_ppl": (3.9, -0.3),
    "distinct_1": (0.41, -0.03),
    "distinct_2": (0.73, -0.045),
    "distinct_3": (0.86, -0.04),
    "rep_4": (0.03, 0.05),
    "loop_rate": (0.01, 0.06),
    "self_bleu": (0.11, 0.04),
    "compression_ratio": (2.6, 0.25),
    "vendi": (21.0, -2.4),
    "bertscore_p": (0.61, -0.015),
    "bertscore_r": (0.6, -0.012),
    "bertscore_f1": (0.605, -0.014),
    "tail_coverage": (0.34, -0.03),
    "survival_head": (0.99, -0.01),
    "survival_middle": (0.81, -0.06),
    "survival_tail": (0.34, -0.07),
    "dispersion": (0.927, -0.006),
    "length": (38.5, 0.6),
    "ended_rate": (0.78, -0.05),
}


def config_for(arms: tuple[str, ...] = ("plain", "dces", "dces-targets"), rounds: int = 3, **changes: Any) -> RunConfig:
    """A fake-engine config of these arms and rounds."""
    return parse({"name": "synthetic", "engine": "fake", "arms": list(arms), "rounds": rounds, "pool": {"n": 60, "factor": 2.0}, **changes})


def make_run(root: Path, name: str = "synthetic-1", upto: dict[str, int] | None = None, state: str = "done", **config: Any) -> Run:
    """Write a run below `root`. `upto`: last finished round per arm (all rounds by default); -1: not even round 0."""
    settings = config_for(**config)
    manifest = {
        "recipe": "standard",
        "device": "cpu",
        "cpu": "test machine",
        "versions": {"dces": "0.1.0"},
        "command": "dces run standard",
        "model": {"id": settings.model},
    }
    run = store.create(settings, manifest, root / name)
    last = {arm: settings.rounds for arm in settings.arms} | (upto or {})
    rng = np.random.default_rng(7)
    if max(last.values()) >= 0:
        with run.commit(run.stage(0, SHARED, "evaluate"), "in") as draft:
            evaluation(draft, settings, SHARED, 0, rng)
    if max(last.values()) >= 1:
        ground(run, rng)
    for round_ in range(1, settings.rounds + 1):
        for arm in settings.arms:
            if round_ <= last[arm]:
                round_of(run, settings, arm, round_, rng)
    for name_ in settings.arms:
        event(run, {"kind": "span", "round": 0, "arm": name_, "stage": "evaluate", "seconds": 12.0})
    run.log_path.write_text("\n".join(f"round {r}  plain  train  {10 + r}.2 s   ETA 0:04:10" for r in range(30)) + "\n", encoding="utf-8")
    run.write_status(status_of(state, settings, min(last.values())))
    return run


def event(run: Run, body: dict[str, object]) -> None:
    """Append one event as the worker does."""
    import json

    with run.events_path.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps({"t": time.time(), **body}) + "\n")


def status_of(state: str, config: RunConfig, round_: int) -> dict[str, object]:
    """status.json of a run in this state."""
    body: dict[str, object] = {
        "state": state,
        "round": max(0, round_),
        "arm": config.arms[0],
        "stage": "train",
        "done": 7,
        "total": 20,
        "heartbeat": time.time(),
        "stage_started": time.time() - 20,
        "eta_s": 251.0,
        "device": "cpu",
        "rss_bytes": 1_650_000_000,
        "pid": None,
        "pid_started": None,
        "waiting_for": None,
        "error": None,
    }
    if state == "failed":
        body["error"] = "training loss became NaN in round 2 of arm plain; lower train.lr, then resume."
    if state == "lost":
        body |= {"state": "running", "pid": 2**22 - 3, "pid_started": 1.0}
    if state == "running":
        body |= processes.identity()
    return body


def pathway(steepness: float, arm: str) -> float:
    """How far a value of this arm moves per round; the unknown arm moves like plain."""
    return steepness * STEEPNESS.get(arm, 1.0)


def evaluation(draft: Draft, config: RunConfig, arm: str, round_: int, rng: np.random.Generator) -> None:
    """Everything that stage `evaluate` leaves."""
    rows: list[dict[str, object]] = []
    for test_set in config.data.tests:
        rows += [
            metric_row(arm, round_, test_set, name, start * (8 if name == "ppl" and test_set == "passages" else 1), step)
            for name, (start, step) in REAL.items()
        ]
    rows += [metric_row(arm, round_, "", name, start, step) for name, (start, step) in GENERATED.items()]
    rows.append({**metric_row(arm, round_, "", "distinct_1_mean", 0, 0), "value": None, "n": 0, "reason": "every continuation is empty"})
    draft.table("metrics", rows)
    draft.table("reliability", reliability(config, arm, round_))
    draft.table("entropy", entropy(list(config.data.tests), pathway(1.0, arm) * round_))
    draft.table("probes", watched := probes(arm, round_))
    ids = list(dict.fromkeys(str(row["prompt_id"]) for row in watched))
    draft.table("next_tokens", next_tokens(ids, arm, round_, pathway(1.0, arm) * round_))
    draft.table("generations", generations(arm, round_, rng))


def metric_row(arm: str, round_: int, test_set: str, metric: str, start: float, step: float) -> dict[str, object]:
    """One METRICS row on a smooth path."""
    value = start + pathway(step, arm) * round_ * (1 + 0.04 * math.sin(round_ * 2.1 + len(metric)))
    return {
        "arm": arm,
        "seed": 0,
        "round": round_,
        "test_set": test_set,
        "metric": metric,
        "value": max(value, 0.0) if start else value,
        "n": 4200,
    }


def reliability(config: RunConfig, arm: str, round_: int) -> list[dict[str, object]]:
    """15 bins per test set; over-confidence grows with the rounds."""
    rows: list[dict[str, object]] = []
    for test_set in config.data.tests:
        for index in range(15):
            n = int(40 + 900 * math.exp(-((index - 13) ** 2) / 14) + 260 * math.exp(-((index - 3) ** 2) / 9))
            confidence = (index + 0.5) / 15
            correct = max(0.0, confidence - pathway(0.06, arm) * round_ * math.sin(math.pi * confidence) - 0.01)
            rows.append({"test_set": test_set, "bin": index, "n": n, "confidence_sum": n * confidence, "correct_sum": n * correct})
    return rows


def collapsed(arm: str, round_: int) -> bool:
    """Whether the probe answers of this arm are loops by now."""
    return pathway(1.0, arm) * round_ >= 2


def probes(arm: str, round_: int) -> list[dict[str, object]]:
    """The hand-eye prompt, then one prompt per hostile string."""
    texts = {"probe-01": (HAND_EYE, "1.1.1.1.1.1.1.1.1.1.1.1.1." if collapsed(arm, round_) else SENTENCES[0])}
    texts |= {f"probe-{i + 2:02d}": (f"Hostile prompt {i} <b>&amp;</b> *x*", text) for i, text in enumerate(HOSTILE)}
    return [
        {
            "arm": arm,
            "round": round_,
            "prompt_id": key,
            "prompt": prompt,
            "mode": mode,
            "text": text,
            "loop": "1.1.1" in text or "1. 1. 1" in text,
            "frozen_logprob": -1.5 if text else None,
        }
        for key, (prompt, text) in texts.items()
        for mode in ("greedy", "sampled")
    ]


def generations(arm: str, round_: int, rng: np.random.Generator) -> list[dict[str, object]]:
    """40 evaluation answers, worse with the rounds, the hostile strings among them."""
    rows: list[dict[str, object]] = []
    for i in range(40):
        looping = rng.random() < pathway(0.1, arm) * round_
        text = HOSTILE[i % 2] if looping else (HOSTILE[i - 28] if 28 <= i < 28 + len(HOSTILE) else SENTENCES[i % len(SENTENCES)])
        rows.append(
            {
                "prompt_id": f"test-{i:03d}",
                "topic": ("sports", "cooking", "poetry")[i % 3],
                "prompt": f"Question {i}: {HAND_EYE}",
                "reference": SENTENCES[i % 8],
                "text": text,
                "tokens": len(text) // 4,
                "ended": not looping,
                "logprob": -1.2 + 0.1 * round_,
                "loop": looping,
                "rep_4": 0.9 if looping else 0.02,
                "bertscore_f1": None if not text else 0.6 - 0.3 * looping,
            }
        )
    return rows


CENTRES = np.array([[2.0, 3.0], [6.5, 1.5], [8.0, 6.0], [3.5, 7.5], [5.2, 4.4], [9.6, 3.2]])


def ground(run: Run, rng: np.random.Generator) -> None:
    """Round 1's shared stages: the pool, and the frame of all maps."""
    with run.commit(run.stage(1, SHARED, "generate"), "in") as draft:
        draft.json("note", {"pool": run.config.pool.size})
    points = np.concatenate([centre + rng.normal(0, 0.75, (60, 2)) for centre in CENTRES])
    with run.commit(run.stage(1, SHARED, "map"), "in") as draft:
        draft.table(
            "frame",
            [{"id": f"train-{i:04d}", "topic": "sports", "text": SENTENCES[i % 8], "x": x, "y": y} for i, (x, y) in enumerate(points)],
        )
        facts = {"method": "umap", "parameters": {"n_neighbors": 15, "min_dist": 0.1, "metric": "cosine"}, "n": len(points)}
        draft.json(
            "frame", {**facts, "fit_set": "real training references + round 1 pool", "seed": 0, "x": [-1.0, 12.5], "y": [-1.5, 10.5]}
        )


def round_of(run: Run, config: RunConfig, arm: str, round_: int, rng: np.random.Generator) -> None:
    """Stages select, train, evaluate and map of one round of one arm."""
    rows, coords = samples(config, arm, round_, rng)
    with run.commit(run.stage(round_, arm, "select"), "in") as draft:
        draft.table("samples", rows)
        draft.json("controller", controller(arm, round_, rows))
    with run.commit(run.stage(round_, arm, "train"), "in") as draft:
        draft.json("loss", {"loss": [2.0 - 0.02 * i for i in range(20)], "lr": 5e-5})
    with run.commit(run.stage(round_, arm, "evaluate"), "in") as draft:
        evaluation(draft, config, arm, round_, rng)
    with run.commit(run.stage(round_, arm, "map"), "in") as draft:
        draft.table("coords", coords)
        shrink = 1 - pathway(0.2, arm) * round_
        draft.json(
            "facts",
            {
                "dispersion": 0.927 - pathway(0.02, arm) * round_,
                "hull_area": 41.0 * max(shrink, 0.1),
                "hull_area_reason": None,
                "nearest_reference": 0.31 + 0.02 * round_,
            },
        )


def samples(config: RunConfig, arm: str, round_: int, rng: np.random.Generator) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """A pool of SAMPLES and its COORDS; the spread shrinks with the rounds."""
    rows: list[dict[str, object]] = []
    coords: list[dict[str, object]] = []
    spread = max(0.12, 0.8 - pathway(0.22, arm) * round_)
    for i in range(config.pool.size):
        cluster = int(rng.integers(-1, len(CENTRES))) if i >= 8 else None
        role = None if cluster is None else "edge" if cluster == -1 or rng.random() < 0.5 else "center"
        fate = "rejected" if cluster is None else ("picked", "over quota")[i % 2]
        edited = role == "center" and fate == "picked" and arm.startswith("dces") and arm != "dces-no-edit"
        text = HOSTILE[i % len(HOSTILE)] if i < 11 else SENTENCES[i % 8]
        base = CENTRES[cluster] if cluster is not None and cluster >= 0 else rng.uniform([0, 0], [11, 9])
        x, y = np.clip(base + rng.normal(0, spread * (1.5 if role == "edge" else 0.7), 2), [-0.5, -1.0], [12.0, 10.0])
        rows.append(
            {
                "id": f"r{round_:02d}-{i:06d}",
                "arm": arm,
                "round": round_,
                "prompt_id": f"train-{i:04d}",
                "topic": "sports",
                "prompt": f"Prompt {i} <i>",
                "text": text,
                "tokens": 20,
                "ended": True,
                "logprob": float(rng.normal(-1.2, 0.3)),
                "entropy": float(rng.normal(1.5, 0.2)),
                "cluster": cluster,
                "distance": None if cluster is None else float(rng.uniform(0.1, 0.9)),
                "centrality": None if cluster is None else float(rng.random()),
                "role": role,
                "fate": fate,
                "reason": "ends in a loop" if fate == "rejected" else "quota of its cluster is full" if fate == "over quota" else None,
                "flagged": 12 if edited else 0,
                "changed": 2 if edited else 0,
                "edits": [{"position": 3, "before": " the", "after": " <b>some"}, {"position": 6, "before": " work", "after": " pull"}]
                if edited
                else [],
                "trained_text": (text.replace("the", "<b>some") if edited else text) if fate == "picked" else None,
            }
        )
        coords.append({"id": f"r{round_:02d}-{i:06d}", "x": float(x), "y": float(y)})
    return rows, coords


def clusters(frame: pl.DataFrame) -> list[dict[str, object]]:
    """Every cluster of SAMPLES as stage `select` describes it."""
    center = (pl.col("role") == "center").sum().alias("center")
    own = frame.drop_nulls("cluster").group_by("cluster").agg(pl.len().alias("size"), center, pl.col("distance").mean().alias("dispersion"))
    return [{**row, "edge_share": None} for row in own.sort("cluster").to_dicts()]


def controller(arm: str, round_: int, rows: list[dict[str, object]]) -> dict[str, object]:
    """The feedback loop's state; plain has no controller, so its edge share and temperature are null."""
    frame = pl.DataFrame(rows, infer_schema_length=None)
    picked = frame.filter(pl.col("fate") == "picked")
    flow = {
        "pool": frame.height,
        "gated": {"ends in a loop": frame["cluster"].null_count()},
        "rejected": {},
        "noise": int((frame["cluster"] == -1).sum()),
        "center": int((frame["role"] == "center").sum()),
        "edge": int((frame["role"] == "edge").sum()),
        "over_quota": int((frame["fate"] == "over quota").sum()),
        "picked_center": int((picked["role"] == "center").sum()),
        "picked_edge": int((picked["role"] == "edge").sum()),
    }
    steers = arm.startswith("dces")
    return {
        "arm": arm,
        "round": round_,
        "signal": "dispersion",
        "value": 0.927 - 0.002 * round_,
        "setpoint": 0.927,
        "sd": 0.002,
        "error": float(round_),
        "edge_share": 0.5 + 0.02 * round_ if steers else None,
        "edit_error": 0.05 * round_,
        "edit_temperature": 1.1 + 0.03 * round_ if steers else None,
        "flagged": 340 if steers else None,
        "changed": 61 if steers else None,
        "edited_tokens": 610 if steers else None,
        "edit_reason": None if steers else "this arm does not edit",
        "clusterer": "hdbscan",
        "clusters": clusters(frame),
        "quotas": [],
        "flow": flow,
        "reason": None if steers else "this arm picks at random",
        "notes": ["2 picks of cluster 4 filled from center: too few edge samples"] if steers else [],
    }


if __name__ == "__main__":
    target = Path(sys.argv[1])
    make_run(target, "synthetic-10", rounds=10)
    make_run(target, "failed-1", upto={"plain": 1, "dces": 1, "dces-targets": 0}, state="failed")
    make_run(target, "small-1", arms=("plain", "dces"), rounds=3)
