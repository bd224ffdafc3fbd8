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
        costs: mean Q of the costs under the slow policy over the batch, shape (num_limits,).
        level: running mean of that over batches, shape (num_limits,).
        loss: cross entropy of the last gradient step.
        divergence_share: largest divergence there over its bound.
    """

    step: EStep
    multipliers: FloatArray
    costs: FloatArray
    level: FloatArray
    loss: float
    divergence_share: float


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Centre:
    """The slow actor at some states, which the E-step and the fit begin from.

    Attributes:
        states: observations, shape (num_states, ...).
        masks: legal choices there, shape (num_states, num_choices); None without masks.
        outputs: of the slow actor, shape (num_states, num_outputs).
        candidates: actions to weigh, num_actions of each state.
        values: Q of reward and costs by the slow critics, shape (1 + num_limits, num_states, num_actions).
        prior: probabilities of listed actions, shape (num_states, num_actions), rows sum to 1; None of drawn ones.
    """

    states: th.Tensor
    masks: th.Tensor | None
    outputs: th.Tensor
    candidates: Candidates
    values: FloatArray
    prior: FloatArray | None

    def at(self, is_kept: th.Tensor) -> _Centre:
        """Return the part at the states that are kept; `is_kept` has the shape (num_states,)."""
        rows = is_kept.cpu().numpy()
        return _Centre(
            states=self.states[is_kept],
            masks=_kept(self.masks, is_kept),
            outputs=self.outputs[is_kept],
            candidates=Candidates(
                actions=_kept(self.candidates.actions, is_kept),
                encoding=_kept(self.candidates.encoding, is_kept),
                prior=_kept(self.candidates.prior, is_kept),
                num_points=self.candidates.num_points,
            ),
            values=self.values[:, rows],
            prior=None if self.prior is None else self.prior[rows],
        )

    def mean_costs(self) -> FloatArray:
        """Return mean Q of each cost under the slow policy, shape (num_limits,)."""
        costs = self.values[1:]
        by_state = np.mean(costs, axis=2) if self.prior is None else np.sum(costs * self.prior, axis=2)
        return np.asarray(np.mean(by_state, axis=1))


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

    States whose masks leave no choice take no part: they would lend their trust to the others, which could then move by
    a multiple of it. What is missing has to be made up for in the rest, so it is divided by their share.

    Args:
        policy: the networks.
        batch: where from.
        thresholds: upper limits on mean Q of the costs, shape (num_limits,).
        horizon: mean discounted number of steps that Q counts, >= 1.
        settings: trust regions and counts.
        multipliers: multiplier of each divergence, >= 0, shape (num_divergences,).
        latest: the update before, to start from.
    """
    centre = _centre_of(policy, batch, settings)
    found = centre.mean_costs()
    level = found if latest is None else latest.level + _LEVEL_RATE * (found - latest.level)
    start = None if latest is None else latest.step
    deciding, deciding_share = _deciding(policy, centre)
    bounds = deciding.mean_costs() + (thresholds - level) / (horizon * deciding_share)
    step = _best_weights(deciding, bounds, settings.max_kl, start)
    multipliers, loss, used = _fit_to(policy, deciding, step.weights, settings, multipliers)
    return Fit(step=step, multipliers=multipliers, costs=found, level=level, loss=loss, divergence_share=used)


def _deciding(policy: CVPOPolicy, centre: _Centre) -> tuple[_Centre, float]:
    """Return the states with more than one legal choice, and their share; all of them where none has."""
    if centre.masks is None:
        return centre, 1.0
    has_choice = policy.head.has_choice(centre.masks)
    deciding_share = float(has_choice.float().mean())
    return (centre, 1.0) if deciding_share in (0.0, 1.0) else (centre.at(has_choice), deciding_share)


def _centre_of(policy: CVPOPolicy, batch: CostReplaySamples, settings: CVPOSettings) -> _Centre:
    """Return the slow actor at the states of a batch, or at the first few where actions are sampled."""
    count = None if policy.head.num_joint else settings.num_sampled_states
    states, masks = batch.observations[:count], None if batch.masks is None else batch.masks[:count]
    with th.no_grad():
        outputs = policy.actor_target(states)
        candidates = policy.head.candidates(outputs, masks, settings.num_samples)
        values = _doubles(policy.critic_target.joined(states, candidates))
    prior = _prior(candidates)
    return _Centre(states=states, masks=masks, outputs=outputs, candidates=candidates, values=values, prior=prior)


def _best_weights(centre: _Centre, bounds: FloatArray, max_kl: float, start: EStep | None) -> EStep:
    """Return the answer of the E-step under upper bounds on mean Q of the costs."""
    return solve(
        centre.values[0],
        centre.values[1:],
        bounds,
        max_kl,
        prior=centre.prior,
        start=start,
        tolerance=_TOLERANCE,
        max_iterations=_MAX_ITERATIONS,
    )


def _fit_to(
    policy: CVPOPolicy, centre: _Centre, weights: FloatArray, settings: CVPOSettings, multipliers: FloatArray
) -> tuple[FloatArray, float, float]:
    """Fit the actor to q; returns multipliers of the divergences, the last loss and largest divergence over its bound.

    The multipliers are projected where they are stored, so that they do not wind up.
    """
    radii = np.array([settings.fit_kl, settings.fit_kl_spread][: len(policy.head.names)])
    wanted = th.as_tensor(weights, dtype=th.float32, device=centre.outputs.device)
    loss, used = np.nan, np.zeros(len(radii))
    for _ in range(settings.num_fit_steps):
        loss, divergences = _descend_once(policy, centre, wanted, multipliers)
        used = divergences / radii
        multipliers = np.clip(multipliers + _MULTIPLIER_RATE * (used - 1.0), 0.0, _MULTIPLIER_CEILING)
    return multipliers, loss, float(np.max(used))


def _descend_once(
    policy: CVPOPolicy, centre: _Centre, weights: th.Tensor, multipliers: FloatArray
) -> tuple[float, FloatArray]:
    """Take one step of the actor; returns the cross entropy and the divergences before it."""
    new = policy.actor(centre.states)
    divergences = policy.head.divergences(new, centre.outputs, centre.masks)
    fit = policy.head.fit_loss(new, centre.outputs, centre.candidates, weights, centre.masks)
    prices = th.as_tensor(multipliers, dtype=th.float32, device=new.device)
    descend(policy.actor.optimizer, fit + th.sum(prices * divergences))
    return float(fit.detach()), _doubles(divergences)


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
        weights = 1.0 / values.shape[2] if candidates.prior is None else candidates.prior
        expected = th.sum(values * weights, dim=2).mean(dim=1)
    return _doubles(stored * critic.scales[1:]), _doubles(expected)


def _kept(rows: th.Tensor | None, is_kept: th.Tensor) -> th.Tensor | None:
    """Return some of the rows; None of none."""
    return None if rows is None else rows[is_kept]


def _prior(candidates: Candidates) -> FloatArray | None:
    """Return pi(a|s) of enumerated actions with rows that sum to 1 in double precision."""
    if candidates.prior is None:
        return None
    prior = _doubles(candidates.prior)
    return np.asarray(prior / np.sum(prior, axis=1, keepdims=True))


def _doubles(tensor: th.Tensor) -> FloatArray:
    return tensor.detach().cpu().numpy().astype(np.float64)
