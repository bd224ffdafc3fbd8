"""SAC, TD3 and DDPG under limits on mean costs; see `megopt.rl.lagrangian_off_policy` for what they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.type_aliases import GymEnv

from megopt.errors import ConfigError
from megopt.rl.lagrangian_off_policy import CostCritics, Losses
from megopt.rl.networks import descend


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
            following = least(self.critic_target(batch.next_observations, next_actions))
            following = following - ent_coef * next_log_prob.reshape(-1, 1)
            target = batch.returns[:, :1] + batch.discounts[:, None] * following
        losses = {"critic_loss": self._fit_critics(batch, target, 0.5), "ent_coef": ent_coef.item()}
        losses["cost_critic_loss"] = self._fit_cost_critics(batch, next_actions)
        free = (ent_coef * log_prob - least(self.critic(batch.observations, actions))).mean()
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
            following = least(self.critic_target(batch.next_observations, next_actions))
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


def least(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the least of several critics' values, each of shape (batch, 1)."""
    return torch.cat(tuple(values), dim=1).min(dim=1, keepdim=True).values
