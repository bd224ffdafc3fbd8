"""Generalised advantages of several costs over a rollout."""

from __future__ import annotations

import numpy as np

from megopt.arrays import BoolArray, FloatArray


def generalised_advantages(
    costs: FloatArray, values: FloatArray, next_values: FloatArray, is_done: BoolArray, *, gamma: float, decay: float
) -> FloatArray:
    """Return the generalised advantage of every step and cost.

        delta_t = c_t + gamma V(s_t+1) - V(s_t)
        A_t     = delta_t + gamma decay A_t+1        (A_t+1 = 0 where t ends an episode)

    Args:
        costs: costs c, shape (num_steps, num_envs, num_limits).
        values: values V(s_t), same shape.
        next_values: values of the state that followed, before any reset; 0 where the episode terminated; same shape.
        is_done: whether the step ended its episode, by termination or time limit, shape (num_steps, num_envs).
        gamma: discount per step.
        decay: lambda of the estimator, in [0, 1].

    Source: Schulman et al., ICLR 2016, arXiv:1506.02438.
    """
    deltas = costs + gamma * next_values - values
    advantages = np.zeros_like(deltas)
    following = np.zeros_like(deltas[0])
    for step in reversed(range(len(deltas))):
        following = deltas[step] + gamma * decay * np.where(is_done[step, :, None], 0.0, following)
        advantages[step] = following
    return advantages
