"""PPO under limits on mean costs: its advantage is that of the Lagrangian."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from torch.nn import functional

from megopt.arrays import BoolArray, FloatArray
from megopt.rl.advantages import generalised_advantages
from megopt.rl.costs import read_costs, require_finite_rewards
from megopt.rl.lagrangian_base import UnderLimits
from megopt.rl.networks import FeatureNetwork, new_optimizer


class PPOLag(UnderLimits, PPO):
    """PPO with the advantage A = A_reward - sum_i lambda_i A_cost_i, and lambda from a PID controller per limit.

    The multipliers move once per rollout, on the rollout's own mean costs, before the policy learns from it. A is
    standardised in each minibatch, as in PPO, which stands in for Stooke's division by 1 + sum lambda.

    Keywords are those of `UnderLimits` and of `stable_baselines3.PPO`.

    Attributes:
        cost_value: expected discounted scaled cost of a state, one output per limit; layers as the value network has.
    """

    def _setup_model(self) -> None:
        super()._setup_model()
        arch = self.policy.net_arch
        layers = list(arch["vf"] if isinstance(arch, dict) else arch)
        activation_fn, num_limits = self.policy.activation_fn, self.duals.num_limits
        self.cost_value = FeatureNetwork(self.policy, layers, activation_fn, num_limits).to(self.device)
        self.cost_value.optimizer = new_optimizer(self.policy, self.cost_value, self.lr_schedule(1))
        self._costs: list[FloatArray] = []
        self._is_done: list[BoolArray] = []
        self._timeouts: list[tuple[int, int, Any]] = []
        self._cost_returns: FloatArray = np.zeros(0)

    def collect_rollouts(self, *args: Any, **settings: Any) -> bool:
        """Collect a rollout, move the multipliers on its costs and turn its advantages into those of the Lagrangian."""
        self._costs, self._is_done, self._timeouts = [], [], []
        if not super().collect_rollouts(*args, **settings):
            return False
        require_finite_rewards(self.rollout_buffer.rewards)
        self.duals.measure_rewards(self.rollout_buffer.rewards)
        self.duals.update()
        for name, value in self.duals.log_rows().items():
            self.logger.record(name, value)
        advantages, self._cost_returns = self._cost_advantages()
        self.rollout_buffer.advantages -= (advantages @ self.duals.multipliers).astype(np.float32)
        return True

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: Any = None) -> None:
        # The one place of the parent's collection that sees infos and dones of each step.
        super()._update_info_buffer(infos, dones)
        costs = read_costs(infos, self.duals.num_limits)
        is_done = np.array(dones, dtype=bool)
        for row in np.flatnonzero(is_done):
            if infos[row].get("TimeLimit.truncated", False) and infos[row].get("terminal_observation") is not None:
                self._timeouts.append((len(self._costs), int(row), infos[row]["terminal_observation"]))
        self._costs.append(costs)
        self._is_done.append(is_done)
        self.duals.count(costs, is_done)

    def _cost_advantages(self) -> tuple[FloatArray, FloatArray]:
        """Return advantages and returns of the scaled costs, both of shape (num_steps, num_envs, num_limits)."""
        offset, scale = self.duals.offset_and_scale()
        costs, is_done = (np.stack(self._costs) - offset) / scale, np.stack(self._is_done)
        values = self._cost_values(self._flat_observations()).reshape(costs.shape)
        last = self._cost_values(self.policy.obs_to_tensor(self._last_obs)[0])  # type: ignore[arg-type]
        next_values = np.concatenate([values[1:], last[None]])
        next_values[is_done] = 0.0
        for step, row, observation in self._timeouts:
            next_values[step, row] = self._cost_values(self.policy.obs_to_tensor(observation)[0])[0]
        advantages = generalised_advantages(
            costs, values, next_values, is_done, gamma=self.gamma, decay=self.gae_lambda
        )
        return advantages, advantages + values

    def _cost_values(self, observations: Any) -> FloatArray:
        self.cost_value.set_training_mode(False)
        with torch.no_grad():
            values = self.cost_value(observations).cpu().numpy()
        return np.asarray(values, dtype=np.float64)

    def _flat_observations(self) -> Any:
        """Return the rollout's observations as tensors of shape (num_steps * num_envs, ...), steps first."""
        held: Any = self.rollout_buffer.observations
        if isinstance(held, dict):
            return {name: self._flat(part) for name, part in held.items()}
        return self._flat(held)

    def _flat(self, array: Any) -> torch.Tensor:
        return torch.as_tensor(array.reshape(-1, *array.shape[2:]), device=self.device)

    def train(self) -> None:
        """Fit the critic of the costs, then let PPO learn from the Lagrangian's advantages."""
        self._fit_cost_values()
        super().train()

    def _fit_cost_values(self) -> None:
        observations = self._flat_observations()
        returns = self._flat(self._cost_returns.astype(np.float32))
        self.cost_value.set_training_mode(True)
        self._update_learning_rate(self.cost_value.optimizer)
        losses = []
        for _ in range(self.n_epochs):
            for batch in torch.split(torch.randperm(len(returns), device=self.device), self.batch_size):
                part = (
                    {name: rows[batch] for name, rows in observations.items()}
                    if isinstance(observations, dict)
                    else observations[batch]
                )
                loss = functional.mse_loss(self.cost_value(part), returns[batch])
                self.cost_value.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(self.cost_value.parameters(), self.max_grad_norm)
                self.cost_value.optimizer.step()
                losses.append(loss.item())
        self.logger.record("train/cost_value_loss", float(np.mean(losses)))

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "cost_value", "_costs", "_is_done", "_timeouts", "_cost_returns"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, "cost_value", "cost_value.optimizer"], variables
