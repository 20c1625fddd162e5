"""Exactly N samples out of a pool (method, step 8): quotas per cluster, a share of edge inside each, random inside a role."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from dces_core.arms import Rule
from dces_core.stages.cluster import NOISE
from dces_core.stages.groups import apportion, position_within
from dces_core.stages.split import CENTER, EDGE, Roles

Mask = NDArray[np.bool_]


class Quota(TypedDict):
    """What one cluster (-1: noise) had to give and gave, in samples."""

    cluster: int
    eligible_center: int
    eligible_edge: int
    quota: int
    edge_wanted: int
    picked_center: int
    picked_edge: int


@dataclass(frozen=True)
class Picks:
    """`order`: the picked rows in training order; `refilled` (P,): those that were picked although they were rejected."""

    order: NDArray[np.int64]
    refilled: Mask
    notes: list[str] = field(default_factory=list)
    quotas: list[Quota] = field(default_factory=list)

    @property
    def mask(self) -> Mask:
        """(P,) picked rows."""
        mask = np.zeros(len(self.refilled), np.bool_)
        mask[self.order] = True
        return mask


def pick(
    labels: NDArray[Any], role: Roles, eligible: Mask, n: int, edge_share: float | NDArray[np.float64], rng: np.random.Generator
) -> Picks:
    """Pick `n` of the `eligible` rows (all arrays (P,); `edge_share` one number or one per cluster).

    A cluster's quota is proportional to its eligible size (largest remainder, so it never exceeds that size). Noise is a
    group of its own, all edge. A shortfall of one role is filled from the other in the same cluster. One permutation of
    the P rows orders everything: arms that share the stream share the draw.
    """
    priority = rng.permutation(len(labels))
    wanted = min(n, int(eligible.sum()))
    groups, group = np.unique(labels[eligible], return_inverse=True)
    is_edge = role[eligible] == EDGE
    edges = np.bincount(group[is_edge], minlength=len(groups))
    centers = np.bincount(group[~is_edge], minlength=len(groups))
    total = max(1, int(eligible.sum()))
    quota = apportion((edges + centers) * np.float64(wanted / total), wanted)
    share = _share_by_group(groups, edge_share)
    edge_wanted = apportion(share * quota, round(float(share @ quota)))
    take_edge = np.clip(edge_wanted, quota - centers, edges)
    take = np.where(is_edge, take_edge[group], (quota - take_edge)[group])
    rows = np.flatnonzero(eligible)
    chosen = rows[position_within(group * 2 + is_edge, priority[rows]) < take]
    quotas: list[Quota] = [
        {"cluster": int(c), "eligible_center": int(a), "eligible_edge": int(b), "quota": int(q), "edge_wanted": int(w),
         "picked_center": int(q - e), "picked_edge": int(e)}
        for c, a, b, q, w, e in zip(groups, centers, edges, quota, edge_wanted, take_edge, strict=True)
    ]  # fmt: skip
    return _finish(chosen, eligible, n, priority, _shortfalls(edge_wanted - take_edge), quotas)


def pick_at_random(eligible: Mask, n: int, rng: np.random.Generator) -> Picks:
    """The first `n` eligible rows of the same permutation, whatever their cluster or role."""
    priority = rng.permutation(len(eligible))
    rows = np.flatnonzero(eligible)
    return _finish(rows[np.argsort(priority[rows])][:n], eligible, n, priority, [], [])


def pick_by_perplexity(logprob: NDArray[Any], rule: Rule, eligible: Mask, n: int, rng: np.random.Generator) -> Picks:
    """The `n` eligible rows of lowest or highest perplexity, or those in the middle of all known ones.

    `logprob` (P,): mean log-probability, nats. Ties go to the earlier row; a row without one (an empty text) comes last.
    """
    value = np.where(eligible, np.asarray(logprob, np.float64), np.nan)
    if rule == "ppl-low":
        preferred = np.argsort(-value, kind="stable")
    else:
        preferred = np.argsort(value, kind="stable")
    if rule == "ppl-band":
        known = int(np.isfinite(value).sum())
        from_middle = np.abs(np.arange(len(value)) - (known - 1) / 2)
        preferred = np.concatenate([preferred[:known][np.argsort(from_middle[:known], kind="stable")], preferred[known:]])
    found = pick_in_order(preferred, eligible, n, rng)
    unknown = int((~np.isfinite(value[found.order]) & eligible[found.order]).sum())
    if unknown:
        found.notes.append(f"{unknown} samples without a perplexity picked: only {int(np.isfinite(value).sum())} have one")
    return found


def pick_in_order(preferred: NDArray[np.int64], eligible: Mask, n: int, rng: np.random.Generator) -> Picks:
    """The first `n` eligible rows of `preferred` (P,), in the training order of the common permutation."""
    priority = rng.permutation(len(eligible))
    return _finish(preferred[eligible[preferred]][:n], eligible, n, priority, [], [])


def _share_by_group(groups: NDArray[Any], edge_share: float | NDArray[np.float64]) -> NDArray[np.float64]:
    own = np.full(len(groups), edge_share) if np.isscalar(edge_share) else np.asarray(edge_share)[np.maximum(groups, 0)]
    return np.where(groups == NOISE, 1.0, own)


def _shortfalls(missing: NDArray[np.int64]) -> list[str]:
    """Notes on roles that could not fill their part; `missing` edge samples by cluster, negative where centers lacked."""
    notes = []
    for lacking, given, short in ((EDGE, CENTER, missing), (CENTER, EDGE, -missing)):
        short = short[short > 0]
        if len(short):
            notes.append(f"{int(short.sum())} {given} in place of {lacking} samples, in {len(short)} clusters that had too few")
    return notes


def _finish(chosen: NDArray[np.int64], eligible: Mask, n: int, priority: NDArray[np.int64], notes: list[str], quotas: list[Quota]) -> Picks:
    """Fill up with rejected rows at random where fewer than `n` were eligible, and put all in the order of the permutation."""
    refilled = np.zeros(len(eligible), np.bool_)
    rejected = np.flatnonzero(~eligible)
    spare = rejected[np.argsort(priority[rejected])][: n - len(chosen)]
    if len(spare):
        refilled[spare] = True
        notes = [*notes, f"{len(spare)} rejected samples picked: only {len(chosen)} of the {n} needed had passed"]
    if len(chosen) + len(spare) < n:
        notes = [*notes, f"the pool has {len(eligible)} samples, {n} were needed"]
    order = np.concatenate([chosen, spare]).astype(np.int64)
    return Picks(order[np.argsort(priority[order])], refilled, notes, quotas)
