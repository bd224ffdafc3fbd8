"""CVPO: constrained variational policy optimisation on stable-baselines3, for any number of limits.

    from megopt.rl.cvpo import CVPO
    model = CVPO("MlpPolicy", env, limits=[25.0], limit_per="episode").learn(100_000)

The environment reports costs in `info["costs"]`, one number per limit, or in `info["cost"]` where there is one limit.
Each update, on a batch from replay:

1. critics: n-step targets of reward and of each cost (`megopt.rl.buffer`);
2. E-step: the best action distribution q within `max_kl` of the slow actor and under all limits, solved to tolerance
   (`megopt.rl.estep`); where no q keeps the limits, the largest step towards them;
3. M-step: the actor is fitted to q by weighted likelihood, within `fit_kl` of the slow actor;
4. slow copies of actor and critics follow, and the running mean of the actor, which acts when learning is over.

Limits become thresholds on Q as episodes end and as costs measure (`megopt.rl.thresholds`).
Source: Liu et al., Constrained Variational Policy Optimization for Safe Reinforcement Learning, ICML 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import polyak_update, update_learning_rate

from megopt.arrays import BoolArray, FloatArray
from megopt.errors import ConfigError
from megopt.rl.action_heads import head_of
from megopt.rl.buffer import CostReplayBuffer
from megopt.rl.costs import CostLimits, LimitPer, numbers_of, require_array_observations
from megopt.rl.cvpo_log import log_rows
from megopt.rl.estep import EStep
from megopt.rl.masked_acting import MaskedActing
from megopt.rl.policies import CnnPolicy, CVPOPolicy, MlpPolicy
from megopt.rl.settings import OFF_POLICY, CVPOSettings, checked_settings
from megopt.rl.thresholds import CriticMeans, Thresholds
from megopt.rl.updates import Fit, cost_means, fit_actor, fit_critics

_LONGEST_PATH = 8192
"""Most steps since the last call of `train` at which the critics are compared with the costs."""


class CVPO(MaskedActing):
    """Off-policy actor-critic with an exact E-step; see the module.

    Attributes:
        limits: the limits; None without.
        thresholds: thresholds on Q and what they rest on.
        fit_multipliers: multiplier of each divergence of the M-step, >= 0.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": MlpPolicy, "CnnPolicy": CnnPolicy}
    policy: CVPOPolicy
    replay_buffer: CostReplayBuffer

    def __init__(
        self,
        policy: str | type[CVPOPolicy],
        env: GymEnv | str | None,
        limits: Sequence[float] = (),
        limit_per: LimitPer = "step",
        *,
        _init_setup_model: bool = True,
        **keywords: Any,
    ) -> None:
        """Build networks and buffer.

        Args:
            policy: "MlpPolicy", "CnnPolicy" or a class.
            env: environment, vector environment or registered id.
            limits: upper limit of each mean cost, in the order of `info["costs"]`; empty for none.
            limit_per: "step" limits the mean cost per step, "episode" the mean sum over an episode.
            _init_setup_model: False to build nothing yet.
            **keywords: fields of `megopt.rl.settings.CVPOSettings`; and what stable-baselines3's off-policy algorithms
                take: those of `megopt.rl.settings.OFF_POLICY` (learning_rate, gamma, batch_size, ...), policy_kwargs
                (net_arch, activation_fn, num_critics, ...), tensorboard_log, verbose, seed, device.

        Raises:
            ConfigError: for a setting out of range, an action space that is not supported, masks on Box, or intervals
                on anything else.
            TypeError: for an unknown keyword.
        """
        space = getattr(env, "action_space", None)
        if space is not None:
            head_of(space)
        require_array_observations("CVPO", env)
        self.settings = CVPOSettings.taken_from(keywords)
        chosen = checked_settings("CVPO", OFF_POLICY | keywords)
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]
            replay_buffer_class=CostReplayBuffer,
            support_multi_env=True,
            sde_support=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete),
            **chosen,
        )
        bounds = numbers_of(limits)
        self.limits = CostLimits(values=bounds, per=limit_per) if bounds else None
        self.thresholds: Thresholds | None = None
        self._fit: Fit | None = None
        self.fit_multipliers: FloatArray = np.ones(0)
        self._is_scaled = False
        self._followers: list[tuple[list[th.nn.Parameter], list[th.nn.Parameter], float]] = []
        if _init_setup_model:
            self._setup_model()

    @property
    def num_limits(self) -> int:
        """Number of limits."""
        return 0 if self.limits is None else len(self.limits.values)

    @property
    def asks_for_masks(self) -> bool:
        """Whether it keeps to the `action_masks()` of its environment."""
        return self.settings.use_action_masks or self.settings.use_joint_masks

    @property
    def latest(self) -> EStep | None:
        """Answer of the latest E-step; None before the first."""
        return None if self._fit is None else self._fit.step

    def _setup_model(self) -> None:
        settings = self.settings
        given = {"use_joint_masks": settings.use_joint_masks, "num_bins": settings.num_bins}
        head = head_of(self.action_space, is_joint=settings.use_joint_masks, num_bins=settings.num_bins)
        if self.asks_for_masks and not head.num_choices:
            message = (
                f"CVPO: use_action_masks with {self.action_space}; expected Discrete or MultiDiscrete; leave it out"
            )
            raise ConfigError(message)
        self.policy_kwargs = {**self.policy_kwargs, **given, "num_limits": self.num_limits}
        self.replay_buffer_kwargs = {
            "num_limits": self.num_limits,
            "n_steps": settings.n_steps,
            "gamma": self.gamma,
            "num_choices": head.num_choices if self.asks_for_masks else 0,
        }
        super()._setup_model()
        pairs = (self.policy.critic, self.policy.critic_target), (self.policy.actor, self.policy.actor_target)
        self._followers = [
            (list(network.parameters()), list(slow.parameters()), share)
            for (network, slow), share in zip(pairs, (self.tau, settings.policy_tau), strict=True)
        ]
        if self.thresholds is None:
            window, margin = settings.measure_window, settings.limit_margin
            self.thresholds = Thresholds(self.limits, self.gamma, self.n_envs, window, margin=margin)
            self.fit_multipliers = np.ones(len(head.names))

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """Update critics and actor `gradient_steps` times."""
        assert self.thresholds is not None
        self.policy.set_training_mode(True)
        self._begin_training()
        fits: list[Fit] = []
        critic_losses: list[float] = []
        bounds, horizon = self.thresholds.current(), self.thresholds.horizon
        horizon = horizon if np.isfinite(horizon) else 1.0
        for _ in range(gradient_steps):
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            critic_losses.append(fit_critics(self.policy, batch))
            fits.append(fit_actor(self.policy, batch, bounds, horizon, self.settings, self.fit_multipliers, self._fit))
            self._fit, self.fit_multipliers = fits[-1], fits[-1].multipliers
            for parameters, slow, share in self._followers:
                polyak_update(parameters, slow, share)
            self._n_updates += 1
            self._average_actor()
        self._correct_thresholds(fits)
        for name, value in log_rows(fits, float(np.mean(critic_losses)), bounds, self.thresholds, self.limits).items():
            self.logger.record(name, value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _average_actor(self) -> None:
        """Move the running mean of the actor; statistics that are no parameters, as of batches, are taken over."""
        actor, average = self.policy.actor, self.policy.actor_average
        looked_back = max(1.0, self.settings.average_share * self._n_updates)
        polyak_update(actor.parameters(), average.parameters(), 1.0 / looked_back)
        for newest, kept in zip(actor.buffers(), average.buffers(), strict=True):
            kept.copy_(newest)

    def _correct_thresholds(self, fits: list[Fit]) -> None:
        """Compare what the critics say with what the latest steps cost."""
        assert self.thresholds is not None
        if not self.num_limits or not self.thresholds.num_pending:
            return
        path = self.replay_buffer.latest(min(self.thresholds.num_pending, _LONGEST_PATH), self._vec_normalize_env)
        taken, visited = cost_means(self.policy, path, self.settings.num_samples)
        replayed = np.mean([fit.costs for fit in fits], axis=0)
        prices = np.mean([fit.step.multipliers for fit in fits], axis=0)
        means = CriticMeans(taken=taken, visited=visited, replayed=replayed)
        self.thresholds.update(means, prices > 0.0)

    def _begin_training(self) -> None:
        """Set learning rates; at the first call, units and first values of the critics from what is stored."""
        assert self.thresholds is not None
        rate = self.lr_schedule(self._current_progress_remaining)
        self.logger.record("train/learning_rate", rate)
        update_learning_rate(self.policy.actor.optimizer, rate)
        update_learning_rate(self.policy.critic.optimizer, rate * self.settings.critic_rate_factor)
        if not self._is_scaled:
            horizon = self.thresholds.horizon if np.isfinite(self.thresholds.horizon) else 1.0
            means, sizes = self.replay_buffer.head_moments()
            for critic in (self.policy.critic, self.policy.critic_target):
                critic.begin_at(means / sizes, sizes * horizon)
            self._is_scaled = True

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
        action_masks: BoolArray | None = None,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Return actions; see `CVPOPolicy.predict`. Limits are met by sampled actions: a constrained optimum mixes."""
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)

    def probabilities(self, observation: NDArray[Any], action_masks: BoolArray | None = None) -> FloatArray:
        """Return the probability of each action, (num_states, num_actions); see `CVPOPolicy.probabilities`."""
        return self.policy.probabilities(observation, action_masks)

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: NDArray[Any],
        new_obs: NDArray[Any] | dict[str, NDArray[Any]],
        reward: NDArray[Any],
        dones: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Store a step with its costs, and measure them."""
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        buffer = self.replay_buffer
        assert self.thresholds is not None
        self.thresholds.observe(
            buffer.costs[buffer.newest].astype(np.float64),
            buffer.terminations[buffer.newest],
            buffer.truncations[buffer.newest],
            is_warm_up=self._is_warm_up,
        )

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_masks", "_followers"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.actor.optimizer", "policy.critic.optimizer"], []
