"""The dual of the E-step as a smooth convex function, and the Newton method that minimises it.

With q proportional to pi exp(u / eta) and u = r - sum_i lambda_i c_i, per batch of states s,

    g(eta, lambda) = eta eps + sum_i lambda_i b_i + eta E_s log E_pi exp(u / eta)
    dg/deta = eps - E_s KL(q | pi),     dg/dlambda_i = b_i - E_s E_q c_i
    d2g = E_s Cov_q(z) / eta   with   z = (u / eta, c_1, .., c_M)

g is convex in (eta, lambda) jointly. Each step minimises its quadratic model subject to the bounds, which is a
non-negative least squares problem of M + 1 unknowns, and backtracks.
Source: Liu et al., Constrained Variational Policy Optimization, ICML 2022, equation 10; Abdolmaleki et al., MPO, 2018.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from megopt.arrays import FloatArray

TEMPERATURE_FLOOR = 1e-6
"""Least eta, in standard deviations of the values; what q loses to it is at most eps times this."""
_SHRINK, _GROW = 0.2, 10.0
"""Most that one step may change eta by, so that the quadratic model is not followed out of sight."""
_RIDGES = (1e-10, 1e-6, 1e-3, 1.0)
"""Added to the scaled Hessian; larger ones are tried where a step along the smaller ones does not descend."""
_SHORTENED = 0.3 ** np.arange(25)
_ROUNDING = 1e-15


@dataclass(frozen=True, slots=True, kw_only=True)
class DualPoint:
    """The dual and its q at one (eta, lambda).

    Attributes:
        value: g.
        gradient: of g, shape (1 + num_limits,).
        hessian: of g, shape (1 + num_limits, 1 + num_limits).
        weights: q(a|s), shape (num_states, num_actions).
        kl: mean KL(q | pi) [nat].
        costs: mean of each cost under q, shape (num_limits,).
    """

    value: float
    gradient: FloatArray
    hessian: FloatArray
    weights: FloatArray
    kl: float
    costs: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Dual:
    """g for one batch; all values about their mean under pi and in standard deviations.

    Attributes:
        rewards: r, shape (num_states, num_actions).
        costs: c, shape (num_limits, num_states, num_actions).
        log_prior: log pi(a|s), -inf where an action is masked, shape (num_states, num_actions).
        thresholds: b, shape (num_limits,).
        max_kl: eps [nat].
        simplex_weight: weight of (sum_i lambda_i - 1)^2 / 2, which keeps the multipliers of a recovery bounded.
    """

    rewards: FloatArray
    costs: FloatArray
    log_prior: FloatArray
    thresholds: FloatArray
    max_kl: float
    simplex_weight: float = 0.0

    def at(self, x: FloatArray) -> DualPoint:
        """Return the dual at x = (eta, lambda_1, .., lambda_M)."""
        eta, multipliers = x[0], x[1:]
        tilt = (self.rewards - np.tensordot(multipliers, self.costs, axes=1)) / eta
        exponent = tilt + self.log_prior
        top = np.max(exponent, axis=1, keepdims=True)
        weights = np.exp(exponent - top)
        total = np.sum(weights, axis=1, keepdims=True)
        weights /= total
        features = np.concatenate([tilt[np.newaxis], self.costs])
        means = np.sum(features * weights, axis=2)
        log_partition = float(np.mean(np.log(total) + top))
        mean = np.mean(means, axis=1)
        kl = float(mean[0]) - log_partition
        excess = float(np.sum(multipliers)) - 1.0
        value = eta * (self.max_kl + log_partition) + multipliers @ self.thresholds
        gradient = np.concatenate([[self.max_kl - kl], self.thresholds - mean[1:] + self.simplex_weight * excess])
        return DualPoint(
            value=float(value) + 0.5 * self.simplex_weight * excess**2,
            gradient=gradient,
            hessian=self._hessian(features - means[:, :, np.newaxis], weights, eta),
            weights=weights,
            kl=kl,
            costs=mean[1:],
        )

    def _hessian(self, centred: FloatArray, weights: FloatArray, eta: float) -> FloatArray:
        rows = centred.reshape(len(centred), -1)
        hessian = (rows * weights.reshape(-1)) @ rows.T / (eta * len(weights))
        hessian[1:, 1:] += self.simplex_weight
        return np.asarray(hessian)

    def residual(self, point: DualPoint, x: FloatArray) -> float:
        """Return how far `point` is from the conditions of Karush, Kuhn and Tucker: the largest that is missed."""
        slack = x - self._floor
        missed = np.where(slack > 0.0, np.abs(point.gradient) * np.minimum(1.0, slack), 0.0)
        return float(np.max(np.maximum(missed, -point.gradient)))

    @property
    def _floor(self) -> FloatArray:
        floor = np.zeros(1 + len(self.thresholds))
        floor[0] = TEMPERATURE_FLOOR
        return floor

    def newton_step(self, point: DualPoint, x: FloatArray, ridge: float) -> FloatArray:
        """Return the step to the least value of the quadratic model over eta >= floor, lambda >= 0."""
        floor = self._floor
        floor[0] = max(floor[0], _SHRINK * x[0])
        # where q is one action per state, g is nearly linear: curvature is added so that no step leads out of sight
        reach = np.abs(point.gradient) / (1.0 + x)
        curvature = np.maximum(np.diag(point.hessian), reach)
        hessian = point.hessian + np.diag(curvature - np.diag(point.hessian))
        size = 1.0 / np.sqrt(curvature + _RIDGES[0])
        scaled = hessian * np.outer(size, size) + ridge * np.eye(len(x))
        root = np.linalg.cholesky(scaled).T
        right = root @ ((x - floor) / size) - np.linalg.solve(root.T, point.gradient * size)
        return np.asarray(floor + size * nnls(root, right)[0] - x)


def minimise(
    dual: Dual, x: FloatArray, tolerance: float, max_iterations: int, is_done_when_feasible: bool = False
) -> tuple[FloatArray, DualPoint, int]:
    """Return the minimiser of a dual, the dual there, and how many steps it took.

    Args:
        dual: the dual.
        x: where to start, shape (1 + num_limits,).
        tolerance: largest residual at which to stop.
        max_iterations: steps at most.
        is_done_when_feasible: whether to stop at the first q that keeps all thresholds and the KL bound.
    """
    point = dual.at(x)
    for number in range(max_iterations):
        is_feasible = point.kl <= dual.max_kl and bool(np.all(point.costs < dual.thresholds))
        if dual.residual(point, x) <= tolerance or (is_done_when_feasible and is_feasible):
            return x, point, number
        found = next((lower for ridge in _RIDGES if (lower := _descended(dual, x, point, ridge)) is not None), None)
        if found is None:  # flat to rounding
            return x, point, number
        x, point = found
    return x, point, max_iterations


def _descended(dual: Dual, x: FloatArray, point: DualPoint, ridge: float) -> tuple[FloatArray, DualPoint] | None:
    """Return a better point along a Newton step, shortened until it is; None where no length is.

    Better is a lower value, until the value can no longer tell: it is known to 1e-16 only, and with a curvature of
    1 / eta that hides gradients up to sqrt(1e-16 / eta). From there on, a smaller residual is better.
    """
    step = dual.newton_step(point, x, ridge)
    slope = float(point.gradient @ step)
    is_flat = -slope <= _ROUNDING * (1.0 + abs(point.value))
    before = dual.residual(point, x) if is_flat else 0.0
    length = min(1.0, (_GROW - 1.0) * x[0] / step[0]) if step[0] > 0.0 else 1.0
    for share in length * _SHORTENED:
        moved = x + share * step
        trial = dual.at(moved)
        if is_flat and dual.residual(trial, moved) <= (1.0 - 0.3 * share) * before:
            return moved, trial
        if not is_flat and trial.value <= point.value + 1e-4 * share * slope:
            return moved, trial
    return None
