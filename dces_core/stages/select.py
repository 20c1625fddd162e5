"""One round's selection for one arm: gate, cluster, split, filter, control, pick. Arrays and frames in and out, no files.

Every arm is gated (where it gates), clustered, split and measured, so that the pages can show the same facts for all;
only arms that select by center and edge (and semdedup, by the clusters) let them decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dces_core.arms import Arm, Rule
from dces_core.config import Cluster, RunConfig
from dces_core.records import table
from dces_core.seeds import rng_for, seed_for
from dces_core.stages.cluster import NOISE, Clustering, Floats, cluster, distances
from dces_core.stages.control import (
    ControlInput,
    Reference,
    Spread,
    control,
    dispersion,
    mean_spread,
    reference_spread,
    sampling_step,
)
from dces_core.stages.dedup import budget_eps, nearest_earlier
from dces_core.stages.gate import gate
from dces_core.stages.pick import Picks, pick, pick_at_random, pick_by_perplexity, pick_in_order
from dces_core.stages.quality import IMPLAUSIBLE, quality_limit, reject_edges
from dces_core.stages.remarks import sameness
from dces_core.stages.split import CENTER, EDGE, Roles, split

PICKED, OVER_QUOTA, REJECTED = "picked", "over quota", "rejected"
#: By the rule of an arm: why its edge share is none, and why a sample was not picked.
WHY: dict[Rule, tuple[str, str]] = {
    "random": ("this arm picks at random", "not drawn"),
    "center-edge": ("", "the quota was full"),
    "ppl-low": ("this arm picks by perplexity", "perplexity above the N lowest"),
    "ppl-high": ("this arm picks by perplexity", "perplexity below the N highest"),
    "ppl-band": ("this arm picks by perplexity", "perplexity outside the middle N"),
    "semdedup": ("this arm removes near-duplicates", "too close to an earlier sample of its cluster"),
}
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class SelectInputs:
    """What selection reads. P samples; `frozen_logprob` maps row indices to mean log-probabilities under M_0 (nats)."""

    arm: Arm
    config: RunConfig
    round_: int
    pool: pl.DataFrame  # id, prompt_id, topic, prompt, text, tokens, ended, logprob, entropy
    embeddings: Floats  # (P, d), unit rows; an empty text is a zero row
    frozen_logprob: Callable[[Rows], NDArray[Any]]  # called at most once, for the rows that need it
    reference: Reference
    previous: Mapping[str, Any] | None = None  # this arm's controller state of the round before
    entropy_real: float | None = None  # mean entropy of M_{t-1} on the watched real training references, nats; None: not measured


@dataclass(frozen=True)
class Selection:
    """What selection decided."""

    samples: pl.DataFrame  # SAMPLES; `edits`, `flagged` and `changed` are null until editing fills them in
    controller: dict[str, Any]  # ControlState and the round's flow, JSON-able
    order: Rows  # (N,) picked rows in training order
    edit: Rows  # picked rows that the arm edits, in the same order
    clustering: Clustering  # of the rows in `clustered`
    clustered: Rows  # rows that passed the gate


@dataclass(frozen=True)
class _View:
    """Full-length facts (P,) about the pool; rows that the gate rejected have no cluster, role, distance or centrality."""

    gated: pl.Series  # why the gate rejected a row, null where it passed
    clustered: Rows
    clustering: Clustering
    labels: NDArray[np.int32]
    distance: NDArray[np.float64]
    centrality: NDArray[np.float64]
    role: Roles
    score: NDArray[np.float64]  # mean log-probability under the scorer of the split
    frozen_logprob: NDArray[np.float64]
    implausible: NDArray[np.bool_]


def measure_reference(
    config: RunConfig,
    first_pool: pl.DataFrame,
    embeddings: Floats,
    real_embeddings: Floats,
    real_logprob: NDArray[Any],
    real_entropy: NDArray[Any],
    entropy_real: float | None = None,
) -> Reference:
    """Set-points of a run: round 0's own (the first pool) and real training references cut to the same token budget.

    `real_logprob` and `real_entropy`: per-reference means under the frozen M_0, nats; `entropy_real`: that of the watched ones. The
    sd of dispersion comes from the bootstrap on real text for both set-points; that of entropy and log-probability is the standard
    error of a pool's mean [ours].
    """
    real = reference_spread(real_embeddings, config.pool.size, seed_for(config.seed, 0, "bootstrap"))
    first = dispersion(embeddings, _dispersion_seed(config))
    return Reference(
        round0={
            "dispersion": Spread(first, real.sd),
            "entropy": mean_spread(_floats(first_pool["entropy"])),
            "logprob": mean_spread(_floats(first_pool["logprob"])),
            "entropy_real": Spread(entropy_real, None),
        },
        real={
            "dispersion": real,
            "entropy": mean_spread(real_entropy, config.pool.size),
            "logprob": mean_spread(real_logprob, config.pool.size),
        },
        quality_limit=quality_limit(real_logprob, config.filter.percentile),
    )


def select(inputs: SelectInputs) -> Selection:
    """Run one round's selection. All randomness comes from (seed, round, stage), never from the arm."""
    view = _view(inputs)
    state = _control(inputs, view)
    eligible = ~view.implausible & view.gated.is_null().to_numpy()
    picks = _pick(inputs, view, state, eligible)
    return Selection(
        _samples(inputs, view, picks),
        {**state, **_flow(inputs, view, picks, state)},
        picks.order,
        _edited(inputs, view, picks.order),
        view.clustering,
        view.clustered,
    )


def _edited(inputs: SelectInputs, view: _View, order: Rows) -> Rows:
    """The picked rows that the arm edits, in training order."""
    arm, config = inputs.arm, inputs.config
    if arm.edit == "none":
        return order[:0]
    if arm.edits == "all":
        return order
    if arm.edits == "center":
        centers: Rows = order[view.role[order] == CENTER]
        return centers
    count = round((1.0 - config.controller.a0) * len(order))
    chosen = rng_for(config.seed, inputs.round_, "edit-random").permutation(len(order))[:count]
    return order[np.sort(chosen)]


def _view(inputs: SelectInputs) -> _View:
    config, pool = inputs.config, inputs.pool
    gated = pl.repeat(None, len(pool), dtype=pl.String, eager=True)
    if inputs.arm.gate and config.gate.on:
        gated = pl.Series(gate(pool["text"].fill_null("").to_list(), config.gate), dtype=pl.String)
    rows = np.flatnonzero(gated.is_null().to_numpy())
    x = inputs.embeddings if len(rows) == len(pool) else inputs.embeddings[rows]
    clustering = cluster(x, _clusters(inputs), seed_for(config.seed, inputs.round_, "cluster"))
    near = distances(x, clustering)
    frozen = np.full(len(pool), np.nan)
    by_frozen = config.split.scorer == "frozen"
    if by_frozen and len(rows):
        frozen[rows] = inputs.frozen_logprob(rows)
    scorer = frozen if by_frozen else _floats(pool["logprob"])
    central, roles = split(clustering.labels, near, scorer[rows], config.split.weight, config.split.center_share)
    role = _spread(len(pool), rows, roles, "")
    filters = inputs.arm.filter and config.filter.on
    edges = np.flatnonzero(role == EDGE)
    if filters and not by_frozen and len(edges):
        frozen[edges] = inputs.frozen_logprob(edges)
    return _View(
        gated,
        rows,
        clustering,
        _spread(len(pool), rows, clustering.labels, NOISE),
        _spread(len(pool), rows, near, np.nan),
        _spread(len(pool), rows, central, np.nan),
        role,
        scorer,
        frozen,
        reject_edges(role, frozen, inputs.reference.quality_limit if filters else None),
    )


def _control(inputs: SelectInputs, view: _View) -> dict[str, Any]:
    """The controller's step on the WHOLE pool, gated samples included: a gate that empties the pool must not read as a signal."""
    config, pool, arm = inputs.config, inputs.pool, inputs.arm
    signal = config.controller.signal
    values = {
        "dispersion": dispersion(inputs.embeddings, _dispersion_seed(config)),
        "entropy": mean_spread(_floats(pool["entropy"])).mean,
        "logprob": mean_spread(_floats(pool["logprob"])).mean,
        "entropy_real": inputs.entropy_real,
    }
    by_sample = view.distance if signal == "dispersion" else _floats(pool[signal])
    size, mean = _cluster_means(view.clustering, by_sample[view.clustered])
    state: dict[str, Any] = {
        **control(
            config.controller,
            arm.editing(config.edit),
            config.dynamic and arm.dynamic,
            ControlInput(values, len(pool), mean, size),
            inputs.reference,
            inputs.previous,
        )
    }
    if arm.decode == "controlled":
        base, dynamic = config.generate.temperature, config.dynamic and arm.dynamic
        state.update(sampling_step(config.controller, config.edit, base, dynamic, state, inputs.previous))
    if arm.select != "center-edge":
        state.update(edge_share=None, edge_share_by_cluster=None, edge_clipped=False, reason=_why(arm)[0])
    if arm.edit == "none":
        state.update(edit_integral=None, edit_temperature=None, edit_clipped=False, edit_reason="this arm does not edit")
    return state


def _pick(inputs: SelectInputs, view: _View, state: dict[str, Any], eligible: NDArray[np.bool_]) -> Picks:
    """N samples, less the real pairs that take part: exactly what is trained on is picked."""
    arm, config = inputs.arm, inputs.config
    n = config.pool.n - sum(arm.real_pairs(config.train, config.pool.n))
    rng = rng_for(config.seed, inputs.round_, arm.draw)
    if arm.select == "none":
        return Picks(np.zeros(0, np.int64), np.zeros(len(eligible), np.bool_))
    if arm.select == "random":
        return pick_at_random(eligible, n, rng)
    if arm.select == "semdedup":
        return _deduplicated(inputs, view, eligible, n, rng)
    if arm.select != "center-edge":
        return pick_by_perplexity(view.score, arm.select, eligible, n, rng)
    shares = state["edge_share_by_cluster"]
    share = np.array(list(shares.values())) if shares else float(state["edge_share"])
    return pick(view.labels, view.role, eligible, n, share, rng)


def _deduplicated(inputs: SelectInputs, view: _View, eligible: NDArray[np.bool_], n: int, rng: np.random.Generator) -> Picks:
    """SemDeDup's survivors at the eps that leaves `n`; where equal cosines leave more, the earlier samples."""
    rows = view.clustered
    nearest = nearest_earlier(inputs.embeddings[rows], view.labels[rows], view.distance[rows])
    found = pick_in_order(np.argsort(_spread(len(eligible), rows, nearest, np.inf), kind="stable"), eligible, n, rng)
    found.notes.insert(0, budget_eps(nearest, n)[1])
    return found


def _clusters(inputs: SelectInputs) -> Cluster:
    """The cluster settings; SemDeDup is defined on spherical k-means."""
    settings = inputs.config.cluster
    return settings.model_copy(update={"clusterer": "kmeans"}) if inputs.arm.select == "semdedup" else settings


def _why(arm: Arm) -> tuple[str, str]:
    """Why an arm has no edge share, and why a sample was not picked."""
    if arm.select == "none":
        return ("this arm trains on real pairs",) * 2 if arm.trains else ("this arm never trains",) * 2
    return WHY[arm.select]


def _samples(inputs: SelectInputs, view: _View, picks: Picks) -> pl.DataFrame:
    arm, picked = inputs.arm, pl.lit(pl.Series(picks.mask))
    rejected = pl.coalesce(pl.lit(view.gated), pl.when(pl.Series(view.implausible)).then(pl.lit(IMPLAUSIBLE)))
    fate = pl.when(picked).then(pl.lit(PICKED)).when(rejected.is_not_null()).then(pl.lit(REJECTED)).otherwise(pl.lit(OVER_QUOTA))
    reason = pl.when(~picked).then(pl.coalesce(rejected, pl.lit(_why(arm)[1])))
    known = view.gated.is_null()
    frame = inputs.pool.with_columns(
        pl.lit(arm.name).alias("arm"),
        pl.lit(inputs.round_).alias("round"),
        pl.Series("cluster", view.labels).set(~known, None),
        pl.Series("distance", view.distance, nan_to_null=True),
        pl.Series("centrality", view.centrality, nan_to_null=True),
        pl.Series("frozen_logprob", view.frozen_logprob, nan_to_null=True),
        pl.when(pl.Series(view.role == CENTER)).then(pl.lit(CENTER)).when(known).then(pl.lit(EDGE)).alias("role"),
        fate.alias("fate"),
        reason.alias("reason"),
    ).with_columns(pl.when(pl.col("fate") == PICKED).then(pl.col("text")).alias("trained_text"))
    return table("samples", frame)


def _flow(inputs: SelectInputs, view: _View, picks: Picks, state: dict[str, Any]) -> dict[str, Any]:
    """Counts from pool to pick: pool = gated + center + edge; center + edge = rejected + over_quota + picked_center + picked_edge.

    `picked_other`: rejected samples that were picked after all; they stay in the counts of `gated` and `rejected`.
    """
    picked = picks.mask & ~picks.refilled
    center, edge = view.role == CENTER, view.role == EDGE
    own = _clusters(inputs).clusterer
    return {
        "arm": inputs.arm.name,
        "round": inputs.round_,
        "flow": {
            "pool": len(picked),
            "gated": dict(sorted(view.gated.drop_nulls().value_counts().iter_rows())),
            "noise": int((view.clustering.labels == NOISE).sum()),
            "center": int(center.sum()),
            "edge": int(edge.sum()),
            "rejected": {IMPLAUSIBLE: int(view.implausible.sum())} if view.implausible.any() else {},
            "over_quota": int((~picked & (center | edge) & ~view.implausible).sum()),
            "picked_center": int((picked & center).sum()),
            "picked_edge": int((picked & edge).sum()),
            "picked_other": int(picks.refilled.sum()),
        },
        "clusterer": view.clustering.method,
        "fallback": view.clustering.reason if view.clustering.method != own else None,
        "clusters": _cluster_rows(view, state),
        "quotas": picks.quotas,
        "quality_limit": inputs.reference.quality_limit if inputs.arm.filter and inputs.config.filter.on else None,
        "notes": [*picks.notes, *sameness(inputs.pool["text"].fill_null("").to_list(), inputs.pool["tokens"].to_list())],
    }


def _cluster_rows(view: _View, state: dict[str, Any]) -> list[dict[str, Any]]:
    """Size, centers and mean distance of every cluster (noise, -1, last where there is any)."""
    labels, roles = view.clustering.labels, view.role[view.clustered]
    names = np.append(np.arange(len(view.clustering.centroids)), NOISE)
    size = np.bincount(np.where(labels == NOISE, len(names) - 1, labels), minlength=len(names))
    centers = np.bincount(labels[roles == CENTER], minlength=len(names))
    total = np.bincount(np.where(labels == NOISE, len(names) - 1, labels), view.distance[view.clustered], len(names))
    shares = state["edge_share_by_cluster"] or {}
    return [
        {"cluster": int(c), "size": int(s), "center": int(m), "dispersion": float(t / s), "edge_share": shares.get(str(c))}
        for c, s, m, t in zip(names, size, centers, total, strict=True)
        if s
    ]


def _cluster_means(clustering: Clustering, value: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Known values and their mean per cluster, noise left out; NaN where a cluster has none."""
    k = len(clustering.centroids)
    known = np.isfinite(value) & (clustering.labels != NOISE)
    size = np.bincount(clustering.labels[known], minlength=k)
    total = np.bincount(clustering.labels[known], value[known], k)
    return size, np.where(size > 0, total / np.maximum(size, 1), np.nan)


def _dispersion_seed(config: RunConfig) -> int:
    """The same in every round: then the first pool's S_1 is the set-point S_0 to the last bit."""
    return seed_for(config.seed, 0, "dispersion")


def _spread(total: int, rows: Rows, values: NDArray[Any], empty: object) -> NDArray[Any]:
    """`values` at `rows` of a full-length array, `empty` elsewhere."""
    out = np.full(total, empty, dtype=values.dtype)
    out[rows] = values
    return out


def _floats(column: pl.Series) -> NDArray[np.float64]:
    return column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
