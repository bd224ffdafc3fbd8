"""What SAC, TD3 and DDPG under limits share: one separate critic per cost, multipliers from measured costs.

The critics of the costs learn y_i = c~_i + gamma (1 - terminated) Q_i'(s', a') with c~ the scaled cost and a' the
action that the reward's critics use. There is one critic per limit and no minimum over twins, which would report costs
as too small. The actor descends

    [ (loss of the parent) + sum_i lambda_i Q_i(s, pi(s)) ] / (1 + sum_i lambda_i).

The multipliers see the costs of the actions that were taken: for SAC those of its sampled policy, for TD3 and DDPG
those of the policy with its action noise. Random actions before `learning_starts` are left out.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, cast

import numpy as np
import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import get_parameters_by_name, polyak_update
from torch.nn import functional

from megopt.errors import ConfigError
from megopt.rl.buffer import CostReplayBuffer, CostReplaySamples
from megopt.rl.lagrangian_base import UnderLimits
from megopt.rl.networks import descend, new_optimizer

Losses = dict[str, float]


class CostCritics(UnderLimits, OffPolicyAlgorithm):
    """What SAC-Lag and TD3-Lag share; stands before SAC or TD3 in the list of bases.

    Attributes:
        cost_critic: discounted scaled cost of a state and action, one network per limit.
        cost_critic_target: its slow copy.
        dual_interval: environment steps between two updates of the multipliers.
    """

    rollouts_per_log: ClassVar[int] = 4

    def __init__(
        self,
        policy: str | type[Any],
        env: GymEnv | str,
        *,
        dual_interval: int = 500,
        **settings: Any,
    ) -> None:
        """Set the algorithm up; actions are of a bounded Box.

        Args:
            policy: policy class or its name, such as "MlpPolicy".
            env: environment, see `UnderLimits`.
            dual_interval: steps between two updates of the multipliers, over all environments; an update waits for the
                end of an episode where limits are per episode.
            **settings: keywords of `UnderLimits` and of the parent algorithm.

        Raises:
            ConfigError: no limits, limits and scales that do not fit, or another replay buffer or n-step returns.
        """
        if settings.get("replay_buffer_class") is not None or settings.get("n_steps", 1) != 1 or dual_interval < 1:
            message = (
                f"{type(self).__name__}: replay_buffer_class, n_steps or dual_interval = {dual_interval}; expected no "
                "replay buffer class, one-step returns and an interval >= 1; leave the first two out"
            )
            raise ConfigError(message)
        self.dual_interval = dual_interval
        super().__init__(policy, env, **settings)

    def _setup_model(self) -> None:
        self.replay_buffer_class = CostReplayBuffer
        given = {"num_limits": self.duals.num_limits, "gamma": self.gamma}
        self.replay_buffer_kwargs = {**self.replay_buffer_kwargs, **given}
        super()._setup_model()
        self.cost_critic = self._new_cost_critic()
        self.cost_critic_target = self._new_cost_critic()
        self.cost_critic_target.load_state_dict(self.cost_critic.state_dict())
        self.cost_critic_target.set_training_mode(False)
        self.cost_critic.optimizer = new_optimizer(self.policy, self.cost_critic, self.lr_schedule(1))

    def _new_cost_critic(self) -> ContinuousCritic:
        extractor = self.policy.make_features_extractor()
        settings: dict[str, Any] = {
            **cast("dict[str, Any]", self.policy.critic_kwargs),
            "features_extractor": extractor,
            "features_dim": extractor.features_dim,
            "n_critics": self.duals.num_limits,
            "share_features_extractor": False,
        }
        return ContinuousCritic(**settings).to(self.device)

    def _store_transition(
        self, replay_buffer: Any, buffer_action: Any, new_obs: Any, reward: Any, dones: Any, infos: Any
    ) -> None:
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        # num_timesteps already counts this step, whose actions were random if it was still below learning_starts.
        is_warm_up = self.num_timesteps - self.n_envs < self.learning_starts
        costs = replay_buffer.costs[replay_buffer.newest].astype(np.float64)
        self.duals.count(costs, np.asarray(dones, dtype=bool), is_warm_up=is_warm_up)

    def _on_step(self) -> None:
        super()._on_step()
        if self.duals.num_steps < self.dual_interval:
            return
        assert self.replay_buffer is not None
        self.duals.measure_rewards(self.replay_buffer.rewards[: self.replay_buffer.size()])
        if self.duals.update():
            for name, value in self.duals.log_rows().items():
                self.logger.record(name, value)

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """Take gradient steps on batches from the replay buffer."""
        self.policy.set_training_mode(True)
        self.cost_critic.set_training_mode(True)
        self._update_learning_rate(self._optimizers())
        rows = [self._gradient_step(batch_size) for _ in range(gradient_steps)]
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name in sorted({name for row in rows for name in row}):
            self.logger.record(f"train/{name}", float(np.mean([row[name] for row in rows if name in row])))

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.actor.optimizer, self.critic.optimizer, self.cost_critic.optimizer]  # type: ignore[attr-defined, list-item]  # the parent's

    @abstractmethod
    def _gradient_step(self, batch_size: int) -> Losses:
        """Step every network on one batch; returns losses by name."""

    def _batch(self, batch_size: int) -> CostReplaySamples:
        assert self.replay_buffer is not None
        batch: Any = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
        assert isinstance(batch, CostReplaySamples)
        return batch

    def _fit_critics(self, batch: CostReplaySamples, target: torch.Tensor, weight: float) -> float:
        """Step all reward critics towards a target of shape (batch, 1); `weight` as in the parent's loss."""
        values = self.critic(batch.observations, batch.actions)  # type: ignore[attr-defined]  # the parent's
        loss = weight * torch.stack([functional.mse_loss(value, target) for value in values]).sum()
        return descend(self.critic.optimizer, loss)  # type: ignore[attr-defined]

    def _fit_cost_critics(self, batch: CostReplaySamples, next_actions: torch.Tensor) -> float:
        """Step the critics of the costs, with the actions that the policy would take next."""
        offset, scale = (self._tensor(part) for part in self.duals.offset_and_scale())
        with torch.no_grad():
            following = torch.cat(self.cost_critic_target(batch.next_observations, next_actions), dim=1)
            target = (batch.returns[:, 1:] - offset) / scale + batch.discounts[:, None] * following
        values = torch.cat(self.cost_critic(batch.observations, batch.actions), dim=1)
        loss = functional.mse_loss(values, target, reduction="none").mean(dim=0).sum()
        return descend(self.cost_critic.optimizer, loss)

    def _lagrangian(self, batch: CostReplaySamples, actions: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        """Return the actor's loss under the limits; `loss` is the parent's."""
        multipliers = self._tensor(self.duals.multipliers)
        costs = torch.cat(self.cost_critic(batch.observations, actions), dim=1)
        return (loss + (costs @ multipliers).mean()) / (1.0 + multipliers.sum())

    def _follow(self, critic: torch.nn.Module, target: torch.nn.Module) -> None:
        polyak_update(critic.parameters(), target.parameters(), self.tau)
        running = ["running_"]
        polyak_update(get_parameters_by_name(critic, running), get_parameters_by_name(target, running), 1.0)

    def _tensor(self, array: Any) -> torch.Tensor:
        return torch.as_tensor(array, dtype=torch.float32, device=self.device)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "cost_critic", "cost_critic_target"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, "cost_critic", "cost_critic_target", "cost_critic.optimizer"], variables
