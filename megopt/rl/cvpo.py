"""CVPO: constrained variational policy optimisation on stable-baselines3, for any number of limits.

    from megopt.rl.cvpo import CVPO
    model = CVPO("MlpPolicy", env, limits=[25.0], limit_per="episode").learn(100_000)

The environment reports costs in `info["costs"]`, one number per limit, or in `info["cost"]` where there is one limit.
Each update, on a batch from replay:

1. critics: n-step targets of reward and of each cost (`megopt.rl.buffer`);
2. E-step: the best action distribution q within `max_kl` of the slow actor and under all limits, solved to tolerance
   (`megopt.rl.estep`); where no q keeps the limits, the largest step towards them;
3. M-step: the actor is fitted to q by weighted likelihood, within `fit_kl` of the slow actor;
4. slow copies of actor and critics follow.

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
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import polyak_update, update_learning_rate

from megopt.arrays import BoolArray, FloatArray
from megopt.errors import ConfigError
from megopt.ranges import require_whole, require_within
from megopt.rl.action_heads import CategoricalHead, head_of
from megopt.rl.buffer import CostReplayBuffer, CostReplaySamples
from megopt.rl.estep import EStep, solve
from megopt.rl.lagrangian_costs import CostLimits, LimitPer
from megopt.rl.policies import CnnPolicy, CVPOPolicy, MlpPolicy
from megopt.rl.thresholds import Thresholds

_MULTIPLIER_RATE, _MULTIPLIER_CEILING = 0.1, 100.0
"""Change of a multiplier of the M-step per divergence that is off by its bound, and its largest value."""


class CVPO(OffPolicyAlgorithm):
    """Off-policy actor-critic with an exact E-step; see the module.

    Attributes:
        limits: the limits; None without.
        thresholds: thresholds on Q and what they rest on.
        latest: answer of the latest E-step; None before the first.
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
        learning_rate: float | Schedule = 5e-4,
        critic_rate_factor: float = 2.0,
        buffer_size: int = 200_000,
        learning_starts: int = 1000,
        batch_size: int = 256,
        tau: float = 0.01,
        policy_tau: float = 0.05,
        gamma: float = 0.99,
        n_steps: int = 1,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        num_samples: int = 16,
        num_sampled_states: int = 128,
        max_kl: float = 0.1,
        num_fit_steps: int = 1,
        fit_kl: float = 0.01,
        fit_kl_spread: float = 0.001,
        measure_window: int = 4000,
        use_action_masks: bool = False,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        """Build networks and buffer.

        Args:
            policy: "MlpPolicy", "CnnPolicy" or a class.
            env: environment, vector environment or registered id.
            limits: upper limit of each mean cost, in the order of `info["costs"]`; empty for none.
            limit_per: "step" limits the mean cost per step, "episode" the mean sum over an episode.
            learning_rate: of the actor, a number or a schedule.
            critic_rate_factor: learning rate of the critics over that of the actor.
            buffer_size: transitions to keep.
            learning_starts: steps with random actions before the first update.
            batch_size: states per update.
            tau: share that slow critics move per update.
            policy_tau: share that the slow actor moves per update.
            gamma: discount per step, in [0, 1].
            n_steps: steps per return.
            train_freq: steps per environment, or (n, "episode"), between calls of `train`.
            gradient_steps: updates per call; -1 for one per step.
            num_samples: actions per state in the E-step, where they are not enumerated.
            num_sampled_states: states of a batch that E- and M-step use where actions are sampled; critics use all.
            max_kl: trust region of the E-step [nat].
            num_fit_steps: gradient steps of the M-step per E-step.
            fit_kl: trust region of the M-step: of the mean for Box, of the policy otherwise [nat].
            fit_kl_spread: trust region of the spread for Box [nat].
            measure_window: steps that the measured cost looks back on.
            use_action_masks: ask the environment's `action_masks()` which Discrete or MultiDiscrete choices are legal.
            policy_kwargs: keywords of the policy: net_arch, activation_fn, num_critics, ...
            stats_window_size: episodes behind the logged means.
            tensorboard_log: folder of TensorBoard logs; None for none.
            verbose: 0, 1 for a table of the log.
            seed: of everything that is drawn.
            device: of the networks.
            _init_setup_model: False to build nothing yet.

        Raises:
            ConfigError: for a setting out of range, an action space that is not supported, or masks on Box.
        """
        space = getattr(env, "action_space", None)
        if space is not None:
            head_of(space)
        require_within("CVPO", 0.0, 1.0, gamma=gamma, tau=tau, policy_tau=policy_tau)
        require_within("CVPO", 1e-9, 1e3, max_kl=max_kl, fit_kl=fit_kl, fit_kl_spread=fit_kl_spread)
        require_whole("CVPO", 2, num_samples=num_samples)
        require_whole("CVPO", 1, num_fit_steps=num_fit_steps, num_sampled_states=num_sampled_states)
        require_whole("CVPO", 1, measure_window=measure_window, n_steps=n_steps)
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            replay_buffer_class=CostReplayBuffer,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
            sde_support=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete),
        )
        self.limits = CostLimits(values=tuple(float(limit) for limit in limits), per=limit_per) if limits else None
        self.critic_rate_factor, self.policy_tau, self.num_samples = critic_rate_factor, policy_tau, num_samples
        self.max_kl, self.num_fit_steps, self.fit_kl, self.fit_kl_spread = max_kl, num_fit_steps, fit_kl, fit_kl_spread
        self.num_return_steps, self.measure_window, self.use_action_masks = n_steps, measure_window, use_action_masks
        self.num_sampled_states = num_sampled_states
        self.thresholds: Thresholds | None = None
        self.latest: EStep | None = None
        self.fit_multipliers: FloatArray = np.ones(0)
        self._is_scaled, self._is_warm_up = False, True
        self._masks: BoolArray | None = None
        self._followers: list[tuple[list[th.nn.Parameter], list[th.nn.Parameter], float]] = []
        if _init_setup_model:
            self._setup_model()

    @property
    def num_limits(self) -> int:
        """Number of limits."""
        return 0 if self.limits is None else len(self.limits.values)

    def _setup_model(self) -> None:
        head = head_of(self.action_space)
        if self.use_action_masks and not isinstance(head, CategoricalHead):
            message = (
                f"CVPO: use_action_masks with {self.action_space}; expected Discrete or MultiDiscrete; leave it out"
            )
            raise ConfigError(message)
        self.policy_kwargs = {**self.policy_kwargs, "num_limits": self.num_limits}
        self.replay_buffer_kwargs = {
            "num_limits": self.num_limits,
            "n_steps": self.num_return_steps,
            "gamma": self.gamma,
            "num_choices": head.num_choices if self.use_action_masks else 0,
        }
        super()._setup_model()
        pairs = (self.policy.critic, self.policy.critic_target), (self.policy.actor, self.policy.actor_target)
        self._followers = [
            (list(network.parameters()), list(slow.parameters()), share)
            for (network, slow), share in zip(pairs, (self.tau, self.policy_tau), strict=True)
        ]
        if self.thresholds is None:
            self.thresholds = Thresholds(self.limits, self.gamma, self.n_envs, self.measure_window)
            self.fit_multipliers = np.ones(len(head.names))

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """Update critics and actor `gradient_steps` times."""
        assert self.thresholds is not None
        self.policy.set_training_mode(True)
        self._begin_training()
        steps: list[EStep] = []
        losses: list[tuple[float, float, float]] = []
        bounds = self.thresholds.current()
        for _ in range(gradient_steps):
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            critic_loss = self._update_critics(batch)
            step, fit_loss, divergence = self._update_actor(batch, bounds)
            for parameters, slow, share in self._followers:
                polyak_update(parameters, slow, share)
            steps.append(step)
            losses.append((critic_loss, fit_loss, divergence))
        self._n_updates += gradient_steps
        self.thresholds.update(np.mean([step.prior_costs for step in steps], axis=0))
        self._log(steps, np.mean(losses, axis=0), bounds)

    def _begin_training(self) -> None:
        """Set learning rates; at the first call, units and first values of the critics from what is stored."""
        assert self.thresholds is not None
        rate = self.lr_schedule(self._current_progress_remaining)
        self.logger.record("train/learning_rate", rate)
        update_learning_rate(self.policy.actor.optimizer, rate)
        update_learning_rate(self.policy.critic.optimizer, rate * self.critic_rate_factor)
        if not self._is_scaled:
            horizon = self.thresholds.horizon if np.isfinite(self.thresholds.horizon) else 1.0
            means, sizes = self.replay_buffer.head_moments()
            for critic in (self.policy.critic, self.policy.critic_target):
                critic.begin_at(means / sizes, sizes * horizon)
            self._is_scaled = True

    def _update_critics(self, batch: CostReplaySamples) -> float:
        """Fit reward and cost critics to their n-step targets; returns the loss in the critics' units."""
        policy, head = self.policy, self.policy.head
        with th.no_grad():
            outputs = policy.actor(batch.next_observations)
            following = head.candidates(outputs, batch.next_masks, 1)
            values = policy.critic_target.joined(batch.next_observations, following)
            expected = values[..., 0] if following.prior is None else th.sum(values * following.prior, dim=2)
            targets = (batch.returns.T + batch.discounts * expected) / policy.critic.scales[:, None]
        current = policy.critic.of_stored(batch.observations, head.encode(batch.actions))
        loss = th.mean((current - targets) ** 2, dim=2).sum()
        policy.critic.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        policy.critic.optimizer.step()
        return float(loss.detach())

    def _update_actor(self, batch: CostReplaySamples, bounds: FloatArray) -> tuple[EStep, float, float]:
        """Solve the E-step and fit the actor to it; returns the answer, the loss and the largest share of a bound."""
        policy, head = self.policy, self.policy.head
        count = None if head.num_joint else self.num_sampled_states
        states, masks = batch.observations[:count], None if batch.masks is None else batch.masks[:count]
        with th.no_grad():
            old = policy.actor_target(states)
            candidates = head.candidates(old, masks, self.num_samples)
            values = policy.critic_target.joined(states, candidates).cpu().numpy().astype(np.float64)
        prior = None if candidates.prior is None else candidates.prior.cpu().numpy().astype(np.float64)
        if prior is not None:
            prior /= np.sum(prior, axis=1, keepdims=True)
        step = solve(
            values[0],
            values[1:],
            bounds,
            self.max_kl,
            prior=prior,
            start=self.latest,
            tolerance=1e-6,
            max_iterations=60,
        )
        self.latest = step
        weights = th.as_tensor(step.weights, dtype=th.float32, device=self.device)
        radii = np.array([self.fit_kl, self.fit_kl_spread][: len(head.names)])
        for _ in range(self.num_fit_steps):
            new = policy.actor(states)
            divergences = head.divergences(new, old, masks)
            fit = head.fit_loss(new, old, candidates, weights, masks)
            loss = fit + th.sum(th.as_tensor(self.fit_multipliers, dtype=th.float32, device=self.device) * divergences)
            policy.actor.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            policy.actor.optimizer.step()
            share = divergences.detach().cpu().numpy() / radii
            moved = self.fit_multipliers + _MULTIPLIER_RATE * (share - 1.0)
            self.fit_multipliers = np.clip(moved, 0.0, _MULTIPLIER_CEILING)
        return step, float(fit.detach()), float(np.max(share))

    def _log(self, steps: list[EStep], losses: FloatArray, bounds: FloatArray) -> None:
        assert self.thresholds is not None
        latest = steps[-1]
        entries = {
            "n_updates": float(self._n_updates),
            "critic_loss": losses[0],
            "fit_loss": losses[1],
            "fit_divergence": losses[2],
            "kl": latest.kl,
            "temperature": latest.temperature,
            "effective_samples": latest.effective_samples,
            "recovery_rate": float(np.mean([not step.is_feasible for step in steps])),
            "horizon": self.thresholds.horizon,
        }
        for name, value in entries.items():
            self.logger.record(f"train/{name}", float(value))
        for number, limit in enumerate(self.limits.values if self.limits is not None else ()):
            self.logger.record(f"cost_{number}/limit", limit)
            self.logger.record(f"cost_{number}/measured", float(self.thresholds.measured_cost()[number]))
            self.logger.record(f"cost_{number}/threshold", float(bounds[number]))
            self.logger.record(f"cost_{number}/q_value", float(latest.prior_costs[number]))
            self.logger.record(f"cost_{number}/multiplier", float(latest.multipliers[number]))

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

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return actions for the environments and as stored: random ones at first, then the policy's."""
        self._is_warm_up = self.num_timesteps < learning_starts
        if not self.use_action_masks:
            return super()._sample_action(learning_starts, action_noise, n_envs)
        assert self._last_obs is not None
        self._masks = self._current_masks()
        if self._is_warm_up:
            masks = th.as_tensor(self._masks)
            actions = self.policy.head.act(th.zeros(masks.shape), masks, False).numpy()
            actions = actions.reshape((n_envs, *(self.action_space.shape or ())))
        else:
            actions, _ = self.predict(self._last_obs, action_masks=self._masks)
        return actions, actions

    def _current_masks(self) -> BoolArray:
        """Return the legal choices of every environment, shape (n_envs, num_choices)."""
        assert self.env is not None
        masks = np.stack([np.ravel(mask) for mask in self.env.env_method("action_masks")]).astype(np.bool_)
        if masks.shape[1] != self.policy.head.num_choices:
            came, wanted = masks.shape[1], self.policy.head.num_choices
            message = f"CVPO: action_masks() has {came} entries; expected {wanted}, the choices of all factors in a row"
            raise ConfigError(message)
        return masks

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: NDArray[Any],
        new_obs: NDArray[Any] | dict[str, NDArray[Any]],
        reward: NDArray[Any],
        dones: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Store a step with its costs and masks, and measure the costs."""
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        buffer = self.replay_buffer
        assert self.thresholds is not None
        self.thresholds.observe(
            buffer.costs[buffer.newest].astype(np.float64),
            buffer.terminations[buffer.newest],
            buffer.truncations[buffer.newest],
            is_warm_up=self._is_warm_up,
        )
        if self._masks is not None:
            following = self._current_masks()
            for row in np.flatnonzero(dones):  # the environment has gone on to its next episode
                following[row] = np.ravel(infos[row].get("action_mask", True))
            buffer.set_latest_masks(self._masks, following)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_masks", "_followers"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.actor.optimizer", "policy.critic.optimizer"], []
