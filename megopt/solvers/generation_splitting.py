"""Region split with device power control: the exact optimum in closed form, with a certified bound.

The edge makes the share x of the image and sends its latent; the device makes a coarse image and refines the rest.
With t(x) = beta (c + (1 - x) b), A = U_E + Z u (u = seconds per bit), device power p up to P and exponent kappa,

    D(x, p) = x A + t(x) (p/P)^(-kappa)        E(x, p) = p t(x) (p/P)^(-kappa)        for x < 1
    D(1) = A                                   E(1) = 0                               (model split: no device pass)

    minimise D   subject to   E <= epsilon,   x_min <= x <= 1,   0 < p <= P.

Power. D falls and, for kappa < 1, E grows with p. At fixed x < 1 the best power is P where t(x) <= e = epsilon/P, else
(p/P)^(1 - kappa) = e/t(x). For kappa = 1 less power saves no energy, so t(x) <= e is needed.

Ratio. That leaves, on the branch x < 1, D(x) = x A + t where t <= e, and D(x) = x A + t^s e^(1 - s) where the limit
binds (t > e), with s = 1/(1 - kappa). D is linear on the first part and convex on the second. Where they meet, at
t(x) = e, the slope rises with x from A - s b beta to A - b beta, so D is convex on the whole branch. Its minimum is at
x_min, at the kink t = e, at the stationary point t* = e (A (1 - kappa)/(beta b))^((1 - kappa)/kappa), or, where D falls
all the way, it is approached as x -> 1, where D tends to at least A, so that x = 1 is no worse. Hence x_min, kink,
stationary point and x = 1 are all the candidates; x = 1 spends nothing, so the problem is never infeasible. At fixed
power p = P the branch exists only where t <= e and is linear: x_min, kink and x = 1, which is the limit s -> inf.

Certificate. With tau for the device's time, the branch is the convex program: minimise x A + tau subject to
t(x) <= tau and t(x) <= e^kappa tau^(1 - kappa). Its Lagrangian dual is a lower bound for ANY multipliers >= 0, whatever
was found before; with m their sum and g what the minimum over tau takes away,

    dual = min(x_min A + m t(x_min), A + m t(1)) - g
    (m, g) = (1 + w, w e) for 0 <= w <= s - 1,   or   (s r^kappa, (s - 1) e r) for any r >= 0 (r stands for P/p).

`bound_s` is min(A, best dual). Strong duality makes it equal the optimum up to rounding.
Source: MEGSplitting, ICC 2025, problem and power rule; the treatment of c > 0 at x = 1 and the certificate are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from megopt.arrays import BoolArray, FloatArray, Real
from megopt.ranges import require_within
from megopt.system.compute import power_control_energy_j, power_control_latency_s

ENERGY_TOLERANCE = 1e-12
"""Relative excess of energy over its limit that counts as rounding."""
_SHAVE = 1e-13
"""Relative power given up where rounding would put the energy a last bit above its limit."""
_LARGEST_MULTIPLIER = 1e100
"""Multipliers are cut here to stay finite; any multiplier gives a valid bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionSplitModel:
    """Constants of the region split; each is a number, or an array that broadcasts with limits and links.

    Attributes:
        edge_full_s: time U_E of the whole image at the edge [s].
        latent_bits: payload Z of the whole latent [bit].
        device_coarse_s: time c of the coarse pass at full device power and cost factor 1 [s].
        device_refine_s: time b to refine the whole image at full device power and cost factor 1 [s].
        device_power_max_w: largest device power P [W], at least 1 nW.
        power_exponent: kappa [1] from 0 to 1; device time grows as (p/P)^(-kappa).
        region_ratio_min: smallest share x_min of the image that the edge may make [1].
        cost_factor: beta [1], multiplies c and b.
    """

    edge_full_s: Real
    latent_bits: Real
    device_coarse_s: Real
    device_refine_s: Real
    device_power_max_w: Real
    power_exponent: Real
    region_ratio_min: Real
    cost_factor: Real = 1.0

    def __post_init__(self) -> None:
        for name in ("edge_full_s", "latent_bits", "device_coarse_s", "device_refine_s", "cost_factor"):
            require_within("RegionSplitModel", 0.0, np.finfo(float).max, **{name: getattr(self, name)})
        require_within("RegionSplitModel", 1e-9, np.finfo(float).max, device_power_max_w=self.device_power_max_w)
        for name in ("power_exponent", "region_ratio_min"):
            require_within("RegionSplitModel", 0.0, 1.0, **{name: getattr(self, name)})


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionSplitSolution:
    """The optimum for every limit and link state; fields have the shape to which all inputs broadcast.

    Attributes:
        region_ratio: share x of the image made at the edge [1]; 1 is model split.
        power_w: device power p [W]; P where x = 1, where it is not used.
        latency_s: D(x, p) [s], re-scored with `latency_s`.
        energy_j: E(x, p) [J], re-scored with `energy_j`; at most the limit, up to `ENERGY_TOLERANCE`.
        bound_s: certified lower bound on the latency of any feasible (x, p) [s].
        runtime_s: wall time of the solve [s].
    """

    region_ratio: FloatArray
    power_w: FloatArray
    latency_s: FloatArray
    energy_j: FloatArray
    bound_s: FloatArray
    runtime_s: float

    @property
    def is_model_split(self) -> BoolArray:
        """Where the edge makes the whole image."""
        return np.asarray(self.region_ratio == 1.0)

    @property
    def gap(self) -> FloatArray:
        """Relative distance |latency - bound| / max(bound, 1e-12) [1]; 0 where both are inf."""
        with np.errstate(invalid="ignore"):
            distance = np.abs(self.latency_s - self.bound_s) / np.maximum(self.bound_s, 1e-12)
        return np.where(self.latency_s == self.bound_s, 0.0, distance)


def edge_s(model: RegionSplitModel, downlink_s_per_bit: Real) -> FloatArray:
    """Return A = U_E + Z u [s] for `downlink_s_per_bit` u [s/bit], any shape."""
    return np.asarray(model.edge_full_s + _product(model.latent_bits, downlink_s_per_bit))


def device_s(model: RegionSplitModel, region_ratio: Real) -> FloatArray:
    """Return t(x) = beta (c + (1 - x) b) [s], the device's time at full power, for `region_ratio` x [1], any shape."""
    share = 1.0 - np.asarray(region_ratio, dtype=np.float64)
    return np.asarray(model.cost_factor * (model.device_coarse_s + share * model.device_refine_s))


def latency_s(model: RegionSplitModel, region_ratio: Real, power_w: Real, downlink_s_per_bit: Real) -> FloatArray:
    """Return D(x, p) [s]; all arguments broadcast.

    Args:
        model: constants.
        region_ratio: share x of the image made at the edge [1].
        power_w: device power p [W] from 0 to P.
        downlink_s_per_bit: link time u [s/bit]; inf in outage, where x = 0 still ends.

    Raises:
        ConfigError: outside those ranges.
    """
    ratio, power_ratio = _checked(model, region_ratio, power_w)
    device = power_control_latency_s(device_s(model, ratio), power_ratio, model.power_exponent)
    return np.asarray(_product(ratio, edge_s(model, downlink_s_per_bit)) + np.where(ratio < 1.0, device, 0.0))


def energy_j(model: RegionSplitModel, region_ratio: Real, power_w: Real) -> FloatArray:
    """Return the device's energy E(x, p) [J]; arguments and errors as in `latency_s`."""
    ratio, power_ratio = _checked(model, region_ratio, power_w)
    spent = power_control_energy_j(
        device_s(model, ratio), power_ratio, model.power_exponent, full_power_w=model.device_power_max_w
    )
    return np.where(ratio < 1.0, spent, 0.0)


def solve(model: RegionSplitModel, energy_limit_j: Real, downlink_s_per_bit: Real) -> RegionSplitSolution:
    """Return the least latency with device power control, in closed form (derivation above).

    Args:
        model: constants; arrays broadcast with the other arguments.
        energy_limit_j: limit epsilon on the device's energy [J], >= 0, inf for none, any shape.
        downlink_s_per_bit: link time u [s/bit], >= 0, inf in outage, broadcasts.

    Raises:
        ConfigError: if a limit or a link time is negative or NaN.

    Never infeasible: x = 1 spends no energy. Where latencies tie, x = 1 is preferred.
    """
    with np.errstate(divide="ignore"):
        steepness = 1.0 / (1.0 - np.asarray(model.power_exponent, dtype=np.float64))
    return _solve(model, energy_limit_j, downlink_s_per_bit, steepness)


def solve_fixed_power(model: RegionSplitModel, energy_limit_j: Real, downlink_s_per_bit: Real) -> RegionSplitSolution:
    """Return the least latency with p = P always; arguments and errors as in `solve`."""
    return _solve(model, energy_limit_j, downlink_s_per_bit, np.asarray(np.inf))


def _solve(model: RegionSplitModel, limit: Real, link: Real, steepness: FloatArray) -> RegionSplitSolution:
    """Score all candidates and keep the best; `steepness` is s = 1/(1 - kappa), inf for fixed power."""
    start = perf_counter()
    require_within("region split", 0.0, np.inf, energy_limit_j=limit, downlink_s_per_bit=link)
    full_w = np.asarray(model.device_power_max_w, dtype=np.float64)
    # no x needs more than x_min at full power, so a limit above that never binds and may be cut there
    allowed_s = np.minimum(np.asarray(limit, dtype=np.float64) / full_w, device_s(model, model.region_ratio_min))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        ratios = _candidates(model, edge_s(model, link), allowed_s)  # (4, ...), x = 1 first
        power_ratios = _power_ratio(device_s(model, ratios), allowed_s, steepness, ratios < 1.0)
        bound = _bound_s(model, edge_s(model, link), allowed_s, steepness, ratios)
    scores = latency_s(model, ratios, full_w * power_ratios, link)
    scores = np.where(power_ratios > 0.0, scores, np.inf)  # no power is no candidate
    best = np.argmin(scores, axis=0)[np.newaxis]
    ratio, power = (
        np.take_along_axis(np.broadcast_to(values, scores.shape), best, axis=0)[0]
        for values in (ratios, full_w * power_ratios)
    )
    power = np.where(energy_j(model, ratio, power) > limit, power * (1.0 - _SHAVE), power)
    return RegionSplitSolution(
        region_ratio=ratio,
        power_w=power,
        latency_s=latency_s(model, ratio, power, link),
        energy_j=energy_j(model, ratio, power),
        bound_s=bound,
        runtime_s=perf_counter() - start,
    )


def _candidates(model: RegionSplitModel, edge: FloatArray, allowed_s: FloatArray) -> FloatArray:
    """Return x = 1, x_min, the kink and the stationary point, within [x_min, 1], shape (4, ...)."""
    kappa, low = (np.asarray(value, dtype=np.float64) for value in (model.power_exponent, model.region_ratio_min))
    coarse, refine = device_s(model, 1.0), np.asarray(model.cost_factor * model.device_refine_s)
    stationary_s = allowed_s * (edge * (1.0 - kappa) / refine) ** ((1.0 - kappa) / kappa)
    kink = np.asarray(1.0 - (allowed_s - coarse) / refine)
    # near 1 a rounded kink lies below the true one by enough to break the limit: the next number above keeps it
    kink = np.where(device_s(model, kink) > allowed_s, np.nextafter(kink, np.inf), kink)
    points = np.broadcast_arrays(1.0, low, kink, 1.0 - (stationary_s - coarse) / refine)
    stacked = np.stack(points)
    return np.where(stacked > low, np.minimum(stacked, 1.0), low)  # 0/0 where b = 0 becomes x_min, a candidate anyway


def _power_ratio(
    needed_s: FloatArray, allowed_s: FloatArray, steepness: FloatArray, uses_device: BoolArray
) -> FloatArray:
    """Return the largest p/P that keeps the limit; 0 where none does."""
    is_slack = needed_s <= allowed_s * (1.0 + ENERGY_TOLERANCE)
    return np.where(is_slack | ~uses_device, 1.0, (allowed_s / needed_s) ** steepness)


def _bound_s(
    model: RegionSplitModel, edge: FloatArray, allowed_s: FloatArray, steepness: FloatArray, ratios: FloatArray
) -> FloatArray:
    """Return min(A, best dual value of the branch x < 1) [s], without the first axis of `ratios`."""
    low, kappa = model.region_ratio_min, model.power_exponent
    coarse, refine = device_s(model, 1.0), np.asarray(model.cost_factor * model.device_refine_s)

    def dual(multiplier: Real, spent: Real) -> FloatArray:
        at_low = _product(low, edge) + multiplier * device_s(model, low)
        return np.asarray(np.minimum(at_low, edge + multiplier * coarse) - spent)

    weight = np.fmin(np.fmax(edge / refine - 1.0, 0.0), np.fmin(steepness - 1.0, _LARGEST_MULTIPLIER))
    slowdown = np.clip((device_s(model, ratios) / allowed_s) ** steepness, 1.0, _LARGEST_MULTIPLIER)
    binding = dual(steepness * slowdown**kappa, (steepness - 1.0) * allowed_s * slowdown)
    branch = np.fmax(dual(1.0, 0.0), np.fmax(dual(1.0 + weight, weight * allowed_s), np.fmax.reduce(binding, axis=0)))
    # no power keeps the limit at any x < 1: nothing may be spent, or full power alone is offered and is too much
    is_empty = ((allowed_s == 0.0) & (coarse + refine > 0.0)) | ((allowed_s < coarse) & np.isinf(steepness))
    return np.asarray(np.minimum(edge, np.where(is_empty, np.inf, branch)))


def _product(first: Real, second: Real) -> FloatArray:
    """Return first x second with 0 x inf = 0: nothing sent costs nothing on a dead link."""
    with np.errstate(invalid="ignore"):
        return np.where((np.asarray(first) == 0.0) | (np.asarray(second) == 0.0), 0.0, np.multiply(first, second))


def _checked(model: RegionSplitModel, region_ratio: Real, power_w: Real) -> tuple[FloatArray, FloatArray]:
    """Return x and p/P."""
    require_within("region split", 0.0, 1.0, region_ratio=region_ratio)
    power_ratio = np.asarray(power_w, dtype=np.float64) / model.device_power_max_w
    require_within("region split", 0.0, 1.0, power_over_maximum=power_ratio)
    return np.asarray(region_ratio, dtype=np.float64), power_ratio
