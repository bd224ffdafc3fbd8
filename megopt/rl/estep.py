"""The E-step of CVPO: the best action distribution within a trust region and under limits, solved to tolerance.

For a batch of states with candidate actions, values r = Q^r and c_i = Q^{c_i}, and the policy pi they start from,

    max_q E_s E_q[r]   subject to   E_s E_q[c_i] <= b_i  (all i),   E_s KL(q | pi) <= eps

is solved through its dual in (eta, lambda), see `megopt.rl.estep_dual`; q is proportional to
pi exp((r - sum_i lambda_i c_i) / eta). Values enter about their mean per state and in standard deviations, so neither
the scale of the rewards nor that of a cost matters, and there are no caps on the multipliers.

Where pi itself breaks a limit, the least reachable excess comes first,

    min_q max_i (E_s E_q[c_i] - b_i) / sigma_i   subject to   E_s KL(q | pi) <= eps,     sigma_i = spread of c_i.

If it is above 0 then no q keeps the limits: its q is the recovery step, the largest step towards the limits that the
trust region allows, and its multipliers mu prove it: E_q[sum_i mu_i (c_i - b_i)] > 0 for every q in the region.
Source: Liu et al., Constrained Variational Policy Optimization, ICML 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.arrays import BoolArray, FloatArray
from megopt.errors import ConfigError
from megopt.ranges import require_within
from megopt.rl.estep_dual import TEMPERATURE_FLOOR, Dual, DualPoint, minimise

FEASIBILITY_MARGIN = 1e-6
"""Depth of the set of answers, in standard deviations of a cost, below which the recovery step is the answer."""
_NEGLIGIBLE_SPREAD = 1e-9
"""Spread beside the size of a value up to which it counts as independent of the action: rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EStep:
    """The answer for one batch.

    Attributes:
        weights: q(a|s), sums to 1 per state, shape (num_states, num_actions).
        temperature: eta, in the unit of the rewards; in a recovery, of the normalised costs.
        multipliers: lambda [unit of the reward per unit of the cost], shape (num_limits,); mu in a recovery.
        kl: mean KL(q | pi) [nat].
        reward: mean reward under q.
        costs: mean costs under q, shape (num_limits,).
        bound: value of the dual: no q that keeps the limits has a larger mean reward; -inf in a recovery.
        excess: least reachable value of the largest excess over a limit [standard deviations of that cost]; an upper
            bound below 0 where there is an answer.
        is_feasible: whether `weights` keeps all limits; False for a recovery step.
        num_iterations: Newton steps.
    """

    weights: FloatArray
    temperature: float
    multipliers: FloatArray
    kl: float
    reward: float
    costs: FloatArray
    bound: float
    excess: float
    is_feasible: bool
    num_iterations: int

    @property
    def effective_samples(self) -> float:
        """Mean over states of 1 / sum_a q(a|s)^2: how many actions share the weight."""
        return float(np.mean(1.0 / np.sum(self.weights**2, axis=1)))


def solve(
    rewards: FloatArray,
    costs: FloatArray,
    thresholds: FloatArray,
    max_kl: float,
    *,
    prior: FloatArray | None = None,
    start: EStep | None = None,
    tolerance: float = 1e-8,
    max_iterations: int = 200,
) -> EStep:
    """Solve the E-step of one batch.

    Args:
        rewards: action values of the reward, shape (num_states, num_actions).
        costs: action values of the costs, shape (num_limits, num_states, num_actions).
        thresholds: upper limits on the mean costs, shape (num_limits,); inf for none.
        max_kl: bound on the mean KL(q | pi) [nat], > 0.
        prior: pi(a|s) of enumerated actions, 0 for masked ones, rows sum to 1; None for actions sampled from pi.
        start: an earlier answer to start from; it changes the time, not the answer.
        tolerance: largest violation of the optimality conditions, in standard deviations of the values.
        max_iterations: Newton steps at most, per phase.

    Raises:
        ConfigError: for shapes that do not fit, values that are not finite, or max_kl <= 0.
    """
    log_prior = _checked(rewards, costs, thresholds, max_kl, prior)
    scaled = _Scaled(rewards, costs, thresholds, np.exp(log_prior))
    x = scaled.start(start, max_kl)
    excess, steps = float(np.max(-scaled.thresholds[scaled.is_used], initial=-np.inf)), 0
    if excess > -FEASIBILITY_MARGIN:
        recovery = scaled.dual(log_prior, max_kl, is_recovery=True)
        begin = np.full(len(x), 1.0 / max(len(x) - 1, 1))
        begin[0] = _first_temperature(recovery.costs, max_kl)
        y, point, steps = minimise(recovery, begin, tolerance, max_iterations, is_done_when_feasible=True)
        excess = float(np.max(point.costs - recovery.thresholds))
        if point.kl > max_kl + tolerance or excess > -FEASIBILITY_MARGIN:
            return scaled.answer(y, point, excess, steps, is_recovery=True)
    x, point, more = minimise(scaled.dual(log_prior, max_kl), x, tolerance, max_iterations)
    return scaled.answer(x, point, excess, steps + more)


class _Scaled:
    """A batch about its mean per state and in standard deviations; limits that no action can move are left out."""

    def __init__(self, rewards: FloatArray, costs: FloatArray, thresholds: FloatArray, prior: FloatArray) -> None:
        self._raw_rewards, self._raw_costs, self._prior = rewards, costs, prior
        self._raw_thresholds = thresholds
        values = np.concatenate([np.asarray(rewards, dtype=np.float64)[np.newaxis], costs])
        means = np.sum(values * prior, axis=2, keepdims=True)
        values = np.where(prior > 0.0, values - means, 0.0)
        spread = np.sqrt(np.mean(np.sum(values**2 * prior, axis=2), axis=1))
        is_moved = spread > _NEGLIGIBLE_SPREAD * np.max(np.abs(means), axis=(1, 2))
        self.spread = np.where(is_moved & (spread > 0.0), spread, 1.0)
        self.values = values / self.spread[:, np.newaxis, np.newaxis] * is_moved[:, np.newaxis, np.newaxis]
        self._prior_costs = np.mean(means[1:, :, 0], axis=1)
        self.is_used: BoolArray = is_moved[1:] & np.isfinite(thresholds)
        self.is_hopeless = bool(np.any(~is_moved[1:] & (self._prior_costs > thresholds)))
        self.thresholds = (thresholds - self._prior_costs) / self.spread[1:]

    def dual(self, log_prior: FloatArray, max_kl: float, *, is_recovery: bool = False) -> Dual:
        """Return the dual of the batch, or that of its least reachable excess."""
        rewards, costs = self.values[0], self.values[1:][self.is_used]
        return Dual(
            rewards=np.zeros_like(rewards) if is_recovery else rewards,
            costs=costs,
            log_prior=log_prior,
            thresholds=self.thresholds[self.is_used],
            max_kl=max_kl,
            simplex_weight=float(is_recovery),
        )

    def start(self, earlier: EStep | None, max_kl: float) -> FloatArray:
        """Return where to start: an earlier answer, or eta as it is for Gaussian values and no multipliers."""
        x = np.zeros(1 + int(np.sum(self.is_used)))
        x[0] = _first_temperature(self.values[0], max_kl)
        if earlier is not None and earlier.is_feasible and len(earlier.multipliers) == len(self.is_used):
            x[0] = np.clip(earlier.temperature / self.spread[0], 1e-3, 1e3)
            x[1:] = np.minimum((earlier.multipliers * self.spread[1:] / self.spread[0])[self.is_used], 1e3)
        return x

    def answer(
        self, x: FloatArray, point: DualPoint, excess: float, num_iterations: int, *, is_recovery: bool = False
    ) -> EStep:
        """Return the answer in the units of the batch."""
        unit = 1.0 if is_recovery else self.spread[0]
        multipliers = np.zeros(len(self.is_used))
        multipliers[self.is_used] = x[1:] * unit / self.spread[1:][self.is_used]
        mean_reward = float(np.mean(np.sum(self._prior * self._raw_rewards, axis=1)))
        reward = float(np.mean(np.sum(point.weights * self._raw_rewards, axis=1)))
        return EStep(
            weights=point.weights,
            temperature=float(x[0] * unit),
            multipliers=multipliers,
            kl=point.kl,
            reward=reward,
            costs=np.mean(np.sum(point.weights * self._raw_costs, axis=2), axis=1),
            bound=-np.inf if is_recovery else float(mean_reward + point.value * unit),
            excess=excess,
            is_feasible=not is_recovery and not self.is_hopeless,
            num_iterations=num_iterations,
        )


def _first_temperature(values: FloatArray, max_kl: float) -> float:
    """Return eta as it is for Gaussian values of spread 1; larger where single values would take all the weight."""
    return float(max(1.0 / np.sqrt(2.0 * max_kl), np.max(np.abs(values)) / 30.0))


def _checked(
    rewards: FloatArray, costs: FloatArray, thresholds: FloatArray, max_kl: float, prior: FloatArray | None
) -> FloatArray:
    """Return log pi after a look at all inputs."""
    require_within("E-step", 1e-12, 1e6, max_kl=max_kl)
    shapes = f"rewards {np.shape(rewards)}, costs {np.shape(costs)}, thresholds {np.shape(thresholds)}"
    if np.ndim(rewards) != 2 or np.shape(costs) != (len(thresholds), *np.shape(rewards)):
        message = f"E-step: {shapes}; expected (states, actions), (limits, states, actions), (limits,)"
        raise ConfigError(message)
    if not (np.all(np.isfinite(rewards)) and np.all(np.isfinite(costs))) or np.any(np.isnan(thresholds)):
        message = "E-step: an action value or a threshold is not finite; expected numbers; lower the learning rate"
        raise ConfigError(message)
    if prior is None:
        return np.full(np.shape(rewards), -np.log(np.shape(rewards)[1]))
    if np.shape(prior) != np.shape(rewards) or np.any(prior < 0.0) or not np.allclose(np.sum(prior, axis=1), 1.0):
        message = f"E-step: prior has shape {np.shape(prior)}; expected {np.shape(rewards)}, >= 0, rows that sum to 1"
        raise ConfigError(message)
    return np.log(prior, out=np.full(np.shape(prior), -np.inf), where=np.asarray(prior) > 0.0)


__all__ = ["FEASIBILITY_MARGIN", "TEMPERATURE_FLOOR", "EStep", "solve"]
