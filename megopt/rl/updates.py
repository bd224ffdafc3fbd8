"""One update of CVPO on a batch: critics to their targets, the E-step, and the actor to its answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch as th

from megopt.arrays import FloatArray
from megopt.rl.action_head import Candidates
from megopt.rl.buffer import CostReplaySamples
from megopt.rl.estep import EStep, solve
from megopt.rl.networks import descend
from megopt.rl.policies import CVPOPolicy
from megopt.rl.settings import CVPOSettings

_MULTIPLIER_RATE, _MULTIPLIER_CEILING = 0.1, 100.0
"""Change of a multiplier of the M-step per divergence that is off by its bound, and its largest value."""
_LEVEL_RATE = 0.1
"""Share that the running mean cost of the slow policy moves per batch; twice what the slow policy itself moves."""
_TOLERANCE, _MAX_ITERATIONS = 1e-6, 60
"""Of the E-step, on batches of values that are far less certain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What an update of the actor came to.

    Attributes:
        step: answer of the E-step.
        multipliers: multiplier of each divergence after the M-step, >= 0.
        level: running mean over batches of Q of the costs under the slow policy, shape (num_limits,).
        loss: cross entropy of the last gradient step.
        share: largest divergence there over its bound.
    """

    step: EStep
    multipliers: FloatArray
    level: FloatArray
    loss: float
    share: float


def fit_critics(policy: CVPOPolicy, batch: CostReplaySamples) -> float:
    """Fit reward and cost critics to their n-step targets; returns the loss in the critics' units."""
    head = policy.head
    with th.no_grad():
        following = head.candidates(policy.actor(batch.next_observations), batch.next_masks, 1)
        values = policy.critic_target.joined(batch.next_observations, following)
        expected = values[..., 0] if following.prior is None else th.sum(values * following.prior, dim=2)
        targets = (batch.returns.T + batch.discounts * expected) / policy.critic.scales[:, None]
    current = policy.critic.of_stored(batch.observations, head.encode(batch.actions))
    return descend(policy.critic.optimizer, th.mean((current - targets) ** 2, dim=2).sum())


def fit_actor(
    policy: CVPOPolicy,
    batch: CostReplaySamples,
    thresholds: FloatArray,
    horizon: float,
    settings: CVPOSettings,
    multipliers: FloatArray,
    latest: Fit | None,
) -> Fit:
    """Solve the E-step around the slow actor and fit the actor to its answer.

    The limits are on means over all states, and a batch is dear or cheap by luck. Its own mean is therefore replaced by
    the running one: what a batch tells is how much dearer or cheaper q is than the slow policy. Batch by batch, limits
    would be felt in dear batches alone, and their multipliers would jump.

    Q of q differs from Q of the slow policy in one step, while q will be followed in all of them: by the performance
    difference (Kakade and Langford, ICML 2002) its mean cost per step changes by E_q[Q] - E_pi[Q], and what is missing
    to the threshold, which counts `horizon` steps, is divided by their number. Asked for in one step, the whole of it
    would be paid `horizon` times over, and the policy would swing about its limits.

    Args:
        policy: the networks.
        batch: where from.
        thresholds: upper limits on mean Q of the costs, shape (num_limits,).
        horizon: mean discounted number of steps that Q counts, >= 1.
        settings: trust regions and counts.
        multipliers: multiplier of each divergence, >= 0, shape (num_divergences,).
        latest: the update before, to start from.
    """
    head = policy.head
    count = None if head.num_joint else settings.num_sampled_states
    states, masks = batch.observations[:count], None if batch.masks is None else batch.masks[:count]
    with th.no_grad():
        old = policy.actor_target(states)
        candidates = head.candidates(old, masks, settings.num_samples)
        values = _doubles(policy.critic_target.joined(states, candidates))
    prior = _prior(candidates)
    found = np.mean(np.sum(values[1:] * prior, axis=2) if prior is not None else np.mean(values[1:], axis=2), axis=1)
    level = found if latest is None else latest.level + _LEVEL_RATE * (found - latest.level)
    step = solve(
        values[0],
        values[1:],
        found + (thresholds - level) / horizon,
        settings.max_kl,
        prior=prior,
        start=None if latest is None else latest.step,
        tolerance=_TOLERANCE,
        max_iterations=_MAX_ITERATIONS,
    )
    weights = th.as_tensor(step.weights, dtype=th.float32, device=old.device)
    radii = np.array([settings.fit_kl, settings.fit_kl_spread][: len(head.names)])
    for _ in range(settings.num_fit_steps):
        new = policy.actor(states)
        divergences = head.divergences(new, old, masks)
        fit = head.fit_loss(new, old, candidates, weights, masks)
        prices = th.as_tensor(multipliers, dtype=th.float32, device=old.device)
        descend(policy.actor.optimizer, fit + th.sum(prices * divergences))
        shares = _doubles(divergences) / radii
        # projected where it is stored, so that it does not wind up
        multipliers = np.clip(multipliers + _MULTIPLIER_RATE * (shares - 1.0), 0.0, _MULTIPLIER_CEILING)
    loss, share = float(fit.detach()), float(np.max(shares))
    return Fit(step=step, multipliers=multipliers, level=level, loss=loss, share=share)


def cost_means(policy: CVPOPolicy, batch: CostReplaySamples, num_samples: int) -> tuple[FloatArray, FloatArray]:
    """Return mean Q of each cost by the slow critics, shape (num_limits,) each: of stored actions, of the actor's.

    Args:
        policy: the networks.
        batch: states and actions.
        num_samples: actions per state for the mean over the actor, where actions are not enumerated.
    """
    head, critic = policy.head, policy.critic_target
    with th.no_grad():
        stored = critic.of_stored(batch.observations, head.encode(batch.actions))[:, 1:].mean(dim=(0, 2))
        candidates = head.candidates(policy.actor(batch.observations), batch.masks, num_samples)
        values = critic.joined(batch.observations, candidates)[1:]
        shares = 1.0 / values.shape[2] if candidates.prior is None else candidates.prior
        expected = th.sum(values * shares, dim=2).mean(dim=1)
    return _doubles(stored * critic.scales[1:]), _doubles(expected)


def _prior(candidates: Candidates) -> FloatArray | None:
    """Return pi(a|s) of enumerated actions with rows that sum to 1 in double precision."""
    if candidates.prior is None:
        return None
    prior = _doubles(candidates.prior)
    return np.asarray(prior / np.sum(prior, axis=1, keepdims=True))


def _doubles(tensor: th.Tensor) -> FloatArray:
    return tensor.detach().cpu().numpy().astype(np.float64)
