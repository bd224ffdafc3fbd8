"""SAC, TD3 and DDPG under limits on mean costs: one separate critic per cost, multipliers from measured costs.

The critics of the costs learn y_i = c~_i + gamma (1 - terminated) Q_i'(s', a') with c~ the scaled cost and a' the
action that the reward's critics use. There is one critic per limit and no minimum over twins, which would report costs
as too small. The actor descends

    [ (loss of the parent) + sum_i lambda_i Q_i(s, pi(s)) ] / (1 + sum_i lambda_i).

The multipliers see the costs of the actions that were taken: for SAC those of its sampled policy, for TD3 and DDPG
those of the policy with its action noise. Random actions before `learning_starts` are left out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import get_parameters_by_name, polyak_update
from torch.nn import functional

from megopt.errors import ConfigError
from megopt.rl.buffer import CostReplayBuffer, CostReplaySamples
from megopt.rl.costs import LimitPer
from megopt.rl.lagrangian_duals import Duals, new_duals
from megopt.rl.networks import descend, new_optimizer
from megopt.rl.pid import PidGains

Self = TypeVar("Self", bound="CostCritics")
Losses = dict[str, float]


class CostCritics(OffPolicyAlgorithm):
    """What SAC-Lag and TD3-Lag share; stands before SAC or TD3 in the list of bases.

    Attributes:
        duals: multipliers, limits and the latest measured costs.
        cost_critic: discounted scaled cost of a state and action, one network per limit.
        cost_critic_target: its slow copy.
        dual_interval: environment steps between two updates of the multipliers.
    """

    duals: Duals

    def __init__(
        self,
        policy: str | type[Any],
        env: GymEnv | str,
        *,
        limits: Sequence[float] | None = None,
        limit_per: LimitPer = "step",
        cost_scales: Sequence[float] | None = None,
        gains: PidGains | None = None,
        dual_interval: int = 500,
        _init_setup_model: bool = True,
        **settings: Any,
    ) -> None:
        """Set the algorithm up.

        Args:
            policy: policy class or its name, such as "MlpPolicy".
            env: environment that reports info["costs"], or info["cost"] for one limit; actions of a bounded Box.
            limits: limit of each mean cost.
            limit_per: whether the mean is over steps or the sums over episodes are meant.
            cost_scales: excess that counts as 1, per limit; the limits' sizes where None.
            gains: gains of the multipliers.
            dual_interval: steps between two updates of the multipliers, over all environments; an update waits for the
                end of an episode where limits are per episode.
            _init_setup_model: whether to build the networks; False while loading.
            **settings: keywords of the parent algorithm.

        Raises:
            ConfigError: no limits, limits and scales that do not fit, or another replay buffer or n-step returns.
        """
        if settings.get("replay_buffer_class") is not None or settings.get("n_steps", 1) != 1 or dual_interval < 1:
            message = (
                f"{type(self).__name__}: replay_buffer_class, n_steps or dual_interval = {dual_interval}; expected no "
                "replay buffer class, one-step returns and an interval >= 1; leave the first two out"
            )
            raise ConfigError(message)
        super().__init__(policy, env, _init_setup_model=False, **settings)  # type: ignore[call-arg]  # SAC's or TD3's
        self.dual_interval = dual_interval
        if _init_setup_model:
            self.duals = new_duals(limits, limit_per, cost_scales, gains)
            self._setup_model()

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

    def learn(
        self: Self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Learn for a number of environment steps; see stable-baselines3. Logs under the name of the class."""
        name = tb_log_name or type(self).__name__
        return super().learn(total_timesteps, callback, log_interval, name, reset_num_timesteps, progress_bar)

    def _setup_learn(self, *args: Any, **settings: Any) -> tuple[int, BaseCallback]:
        before = self._last_obs
        answer = super()._setup_learn(*args, **settings)
        if self._last_obs is not before:
            self.duals.restart(self.n_envs)
        return answer

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
        if self.duals.num_steps >= self.dual_interval and self.duals.update():
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


class SACLag(CostCritics, SAC):
    """SAC under limits; the entropy bonus belongs to the reward, costs are plain."""

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        temperature = [] if self.ent_coef_optimizer is None else [self.ent_coef_optimizer]
        return super()._optimizers() + temperature

    def _gradient_step(self, batch_size: int) -> Losses:
        batch = self._batch(batch_size)
        if self.use_sde:
            self.actor.reset_noise()
        actions, log_prob = self.actor.action_log_prob(batch.observations)
        log_prob = log_prob.reshape(-1, 1)
        ent_coef = self._fit_temperature(log_prob)
        with torch.no_grad():
            next_actions, next_log_prob = self.actor.action_log_prob(batch.next_observations)
            following = _least(self.critic_target(batch.next_observations, next_actions))
            following = following - ent_coef * next_log_prob.reshape(-1, 1)
            target = batch.returns[:, :1] + batch.discounts[:, None] * following
        losses = {"critic_loss": self._fit_critics(batch, target, 0.5), "ent_coef": ent_coef.item()}
        losses["cost_critic_loss"] = self._fit_cost_critics(batch, next_actions)
        free = (ent_coef * log_prob - _least(self.critic(batch.observations, actions))).mean()
        losses["actor_loss"] = descend(self.actor.optimizer, self._lagrangian(batch, actions, free))
        if self._n_updates % self.target_update_interval == 0:
            self._follow(self.critic, self.critic_target)
            self._follow(self.cost_critic, self.cost_critic_target)
        self._n_updates += 1
        return losses

    def _fit_temperature(self, log_prob: torch.Tensor) -> torch.Tensor:
        """Return the entropy coefficient, and step it towards the target entropy where it is learned."""
        if self.ent_coef_optimizer is None or self.log_ent_coef is None:
            return self.ent_coef_tensor
        ent_coef = torch.exp(self.log_ent_coef.detach())
        assert isinstance(self.target_entropy, float)
        descend(self.ent_coef_optimizer, -(self.log_ent_coef * (log_prob + self.target_entropy).detach()).mean())
        return ent_coef


class TD3Lag(CostCritics, TD3):
    """TD3 under limits; the smoothed target action serves the critics of the costs too."""

    def _gradient_step(self, batch_size: int) -> Losses:
        self._n_updates += 1
        batch = self._batch(batch_size)
        with torch.no_grad():
            noise = torch.randn_like(batch.actions) * self.target_policy_noise
            noise = noise.clamp(-self.target_noise_clip, self.target_noise_clip)
            next_actions = (self.actor_target(batch.next_observations) + noise).clamp(-1.0, 1.0)
            following = _least(self.critic_target(batch.next_observations, next_actions))
            target = batch.returns[:, :1] + batch.discounts[:, None] * following
        losses = {"critic_loss": self._fit_critics(batch, target, 1.0)}
        losses["cost_critic_loss"] = self._fit_cost_critics(batch, next_actions)
        if self._n_updates % self.policy_delay == 0:
            actions = self.actor(batch.observations)
            free = -self.critic.q1_forward(batch.observations, actions).mean()
            losses["actor_loss"] = descend(self.actor.optimizer, self._lagrangian(batch, actions, free))
            self._follow(self.critic, self.critic_target)
            self._follow(self.cost_critic, self.cost_critic_target)
            self._follow(self.actor, self.actor_target)
        return losses


class DDPGLag(TD3Lag):
    """DDPG under limits: TD3-Lag with one reward critic, no delay of the actor and no smoothing of target actions.

    One critic, as in stable-baselines3's DDPG; `policy_kwargs={"n_critics": 2}` brings the minimum of twins back.
    """

    def __init__(self, policy: str | type[Any], env: GymEnv | str, **settings: Any) -> None:
        """Set the algorithm up; keywords as in `TD3Lag`, less those that make the difference to TD3.

        Raises:
            ConfigError: as `TD3Lag`, or a keyword of TD3 that DDPG does not have.
        """
        foreign = {"policy_delay", "target_noise_clip", "target_policy_noise"} & settings.keys()
        if foreign:
            message = f"DDPGLag: {', '.join(sorted(foreign))}; expected no keyword of TD3's own; use TD3Lag"
            raise ConfigError(message)
        settings["policy_kwargs"] = {"n_critics": 1, **(settings.get("policy_kwargs") or {})}
        super().__init__(policy, env, policy_delay=1, target_noise_clip=0.0, **settings)


def _least(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(tuple(values), dim=1).min(dim=1, keepdim=True).values
