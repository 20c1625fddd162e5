"""The feedback loop: from what a pool measures to the edge share and the editing temperature (method, step 6).

Signs are chosen so that a positive error always means "collapsing": dispersion or entropy below its set-point,
log-probability above it. Everything here is [ours] except the idea that dispersion drives the center:edge ratio [page].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from dces_core.config import Controller, Edit
from dces_core.stages.cluster import Floats, default_k, nearest_distance, spherical_kmeans

SIGNALS = ("dispersion", "entropy", "logprob")
COLLAPSE_SIDE = {"dispersion": 1.0, "entropy": 1.0, "logprob": -1.0, "entropy_real": 1.0}  # +1: falls under collapse


@dataclass(frozen=True)
class Spread:
    """A statistic's value and its own standard deviation at this pool size; None where undefined."""

    mean: float | None
    sd: float | None


@dataclass(frozen=True)
class Reference:
    """Set-points, measured once per run: each signal of round 0's own pool and of real training text, and the quality limit.

    `round0` also has entropy_real: the mean entropy of M_0 on the watched real training references.
    """

    round0: dict[str, Spread]
    real: dict[str, Spread]
    quality_limit: float | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Reference:
        """The inverse of `dataclasses.asdict`."""
        spreads = {side: {name: Spread(**spread) for name, spread in value[side].items()} for side in ("round0", "real")}
        return cls(spreads["round0"], spreads["real"], value["quality_limit"])


@dataclass(frozen=True)
class ControlInput:
    """What one pool measures. `values` by signal; the arrays (k,) describe the clusters by the signal in use."""

    values: dict[str, float | None]
    pool_size: int
    cluster_value: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    cluster_size: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


class EditState(TypedDict):
    """The editing temperature and what made it. `edit_reason`: why it is the constant, else null."""

    edit_signal: str
    edit_value: float | None  # nats
    edit_setpoint: float | None
    edit_error: float | None  # nats; positive: collapsing
    edit_integral: float | None  # nats, summed over rounds
    edit_temperature: float | None
    edit_clipped: bool
    edit_reason: str | None


class SamplingState(TypedDict):
    """The sampling temperature of the next round's pool (arm plain-tctl) and what made it. `sampling_reason`: as `edit_reason`."""

    sampling_temperature: float
    sampling_integral: float  # nats, summed over rounds
    sampling_clipped: bool
    sampling_reason: str | None


class ControlState(EditState):
    """The controller's memory and its output, JSON-able. `reason`: why the edge share is the constant a0, else null."""

    signal: str
    value: float | None
    setpoint: float | None
    sd: float | None
    error: float | None  # in sd, smoothed; positive: collapsing
    edge_share: float | None
    edge_share_by_cluster: dict[str, float] | None
    edge_clipped: bool
    reason: str | None


def dispersion_centroids(embeddings: Floats, seed: int) -> Floats:
    """Unit centroids (k, d) behind S_t: spherical k-means of (P, d) unit rows, k = default_k(P), whatever clusterer made the roles.

    Zero rows (empty texts) have no direction and are left out; k is 0 where no row is left.
    """
    x = _directed(embeddings)
    return spherical_kmeans(x, default_k(len(embeddings)), seed)[1] if len(x) else x


def dispersion(embeddings: Floats, seed: int) -> float | None:
    """S_t: mean cosine distance of the pool's non-zero rows to the nearest of `dispersion_centroids`; None without rows."""
    centroids = dispersion_centroids(embeddings, seed)
    return float(nearest_distance(_directed(embeddings), centroids).mean()) if len(centroids) else None


def _directed(embeddings: Floats) -> Floats:
    lengths = np.einsum("ij,ij->i", embeddings, embeddings)
    return embeddings if lengths.all() else embeddings[lengths > 0]


def reference_spread(real_embeddings: Floats, pool_size: int, seed: int, draws: int = 200) -> Spread:
    """S_real and its sd: dispersion of `draws` draws of `pool_size` rows from (n, d) real training references.

    The sd comes from bootstrap draws. Their repeated rows pull the mean down (by one to two sd at n = 4 P), so S_real is
    the mean of draws without replacement wherever n >= pool_size [ours]. Both None with fewer than two references.
    """
    n = len(real_embeddings)
    if n < 2:
        return Spread(None, None)
    rng = np.random.default_rng(seed)

    def measure(replace: bool) -> NDArray[np.float64]:
        rows = (rng.choice(n, pool_size, replace=replace) for _ in range(draws))
        values = (dispersion(real_embeddings[drawn], int(rng.integers(2**32))) for drawn in rows)
        return np.array([value for value in values if value is not None])

    bootstrap = measure(replace=True)
    whole = measure(replace=False) if n >= pool_size else bootstrap
    return Spread(float(whole.mean()), float(bootstrap.std(ddof=1))) if min(len(whole), len(bootstrap)) > 1 else Spread(None, None)


def mean_spread(values: NDArray[Any], pool_size: int | None = None) -> Spread:
    """Mean of per-sample values and its standard error over `pool_size` samples (default: as many as there are)."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    if not len(known):
        return Spread(None, None)
    error = float(known.std(ddof=1) / (pool_size or len(known)) ** 0.5) if len(known) > 1 else None
    return Spread(float(known.mean()), error)


def control(
    settings: Controller, edit: Edit, dynamic: bool, measured: ControlInput, reference: Reference, previous: Mapping[str, Any] | None
) -> ControlState:
    """One step of both controllers. `previous` is the last round's state of the same arm, None in round 1.

    `dynamic` False keeps the edge share at a0 and the editing temperature at edit.temperature; errors are still measured.
    """
    signal = settings.signal
    goal = (reference.round0 if settings.setpoint == "round0" else reference.real)[signal]
    value = measured.values[signal]
    error, reason = _error(settings, value, goal, previous)
    share, clipped = settings.a0, False
    by_cluster = None
    if dynamic and error is not None:
        wanted = settings.a0 + settings.gain * settings.sign * error
        share = float(np.clip(wanted, settings.a_min, settings.a_max))
        clipped = share != wanted
        if settings.per_cluster:
            by_cluster = _shares_by_cluster(settings, error, goal.sd, measured)
    state: ControlState = {
        "signal": signal,
        "value": value,
        "setpoint": goal.mean,
        "sd": goal.sd,
        "error": error,
        "edge_share": share,
        "edge_share_by_cluster": by_cluster,
        "edge_clipped": clipped,
        "reason": reason if dynamic else "dynamic is off",
        **_edit_step(settings, edit, dynamic, measured.values, reference.round0, previous),
    }
    return state


def _error(settings: Controller, value: float | None, goal: Spread, previous: Mapping[str, Any] | None) -> tuple[float | None, str | None]:
    """e_t = ema * e_{t-1} + (1 - ema) * (S_set - S_t) / sd; without an earlier error, the new one alone."""
    if value is None or goal.mean is None:
        return None, f"{settings.signal} is undefined in {'this pool' if value is None else 'the reference'}"
    if not goal.sd:
        return None, f"the sd of {settings.signal} is {'zero' if goal.sd == 0 else 'undefined'}"
    new = COLLAPSE_SIDE[settings.signal] * (goal.mean - value) / goal.sd
    before = previous["error"] if previous else None
    return (new if before is None else settings.ema * before + (1 - settings.ema) * new), None


def _shares_by_cluster(settings: Controller, error: float, sd: float | None, measured: ControlInput) -> dict[str, float] | None:
    """One edge share per cluster: the pool's error plus how far the cluster lies from the mean cluster, in its own noise.

    A cluster of n_c samples has noise sd * sqrt(P / n_c). Measuring against the mean cluster keeps clusters of another
    clusterer than the set-point's on its scale, and lets the smoothed error serve although clusters have no past.
    """
    size, value = measured.cluster_size, measured.cluster_value
    known = np.isfinite(value) & (size > 0)
    if not known.any() or not sd:
        return None
    mean = float(np.average(value[known], weights=size[known]))
    noise = sd * np.sqrt(measured.pool_size / np.maximum(size, 1))
    own = np.where(known, COLLAPSE_SIDE[settings.signal] * (mean - value) / noise, 0.0)
    shares = np.clip(settings.a0 + settings.gain * settings.sign * (error + own), settings.a_min, settings.a_max)
    return {str(index): float(share) for index, share in enumerate(shares)}


def _edit_step(
    settings: Controller,
    edit: Edit,
    dynamic: bool,
    values: Mapping[str, float | None],
    setpoints: Mapping[str, Spread],
    previous: Mapping[str, Any] | None,
) -> EditState:
    """The editing temperature: T0 = edit.temperature, within edit_t_min and edit_t_max. See `_steer`."""
    signal = "logprob" if settings.edit_signal == "off" else settings.edit_signal
    value, goal = values.get(signal), setpoints[signal].mean if signal in setpoints else None
    error = None if value is None or goal is None else COLLAPSE_SIDE[signal] * (goal - value)
    reason = _held(settings, dynamic, value, goal)
    bounds = (settings.edit_t_min, settings.edit_t_max)
    before = float((previous or {}).get("edit_integral") or 0.0)
    temperature, integral, clipped = _steer(settings, edit.temperature, bounds, None if reason else error, before)
    return {
        "edit_signal": signal,
        "edit_value": value,
        "edit_setpoint": goal,
        "edit_error": error,
        "edit_integral": integral,
        "edit_temperature": temperature,
        "edit_clipped": clipped,
        "edit_reason": reason,
    }


def sampling_step(
    settings: Controller, edit: Edit, base: float, dynamic: bool, state: Mapping[str, Any], previous: Mapping[str, Any] | None
) -> SamplingState:
    """The sampling temperature of the next round's pool: the editing loop's gains and the width of its bounds, around `base`.

    `state`: this round's, with the editing loop's error. Never below a tenth of `base`, which a temperature of zero or less would be.
    """
    reason = _held(settings, dynamic, state["edit_value"], state["edit_setpoint"])
    bounds = (max(0.1 * base, base + settings.edit_t_min - edit.temperature), base + settings.edit_t_max - edit.temperature)
    before = float((previous or {}).get("sampling_integral") or 0.0)
    temperature, integral, clipped = _steer(settings, base, bounds, None if reason else state["edit_error"], before)
    return {
        "sampling_temperature": temperature,
        "sampling_integral": integral,
        "sampling_clipped": clipped,
        "sampling_reason": reason,
    }


def _held(settings: Controller, dynamic: bool, value: float | None, goal: float | None) -> str | None:
    """Why a temperature stays at its constant, None where it moves."""
    if not dynamic or settings.edit_signal == "off":
        return "edit_signal is off" if dynamic else "dynamic is off"
    if value is None or goal is None:
        return f"{settings.edit_signal} is undefined {'in this round' if value is None else 'for M_0'}"
    return None


def _steer(
    settings: Controller, base: float, bounds: tuple[float, float], error: float | None, integral: float
) -> tuple[float, float, bool]:
    """T = clip(base + kp * e + ki * sum(e), *bounds), the new sum, and whether it was clipped; e None: `base` as it is.

    e: the editing loop's error in nats, positive when collapsing. Anti-windup: while T is clipped, an error that pushes it further
    out is not added to the stored sum, so that the temperature leaves its bound in the first round in which the error turns.
    """
    if error is None:
        return base, integral, False
    total = integral + error
    wanted = base + settings.edit_kp * error + settings.edit_ki * total
    temperature = float(np.clip(wanted, *bounds))
    return temperature, total if (wanted - temperature) * error <= 0 else integral, temperature != wanted
