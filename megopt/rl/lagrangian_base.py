"""What all Lagrangian algorithms share: their keywords about limits, and multipliers that meet whole episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback

from megopt.errors import ConfigError
from megopt.rl.costs import LimitPer
from megopt.rl.lagrangian_duals import Duals, new_duals
from megopt.rl.pid import PidGains

Self = TypeVar("Self", bound="UnderLimits")


class UnderLimits(BaseAlgorithm):
    """An algorithm of stable-baselines3 with multipliers; stands before that algorithm in the list of bases.

    Attributes:
        duals: multipliers, limits and the latest measured costs.
    """

    duals: Duals
    rollouts_per_log: ClassVar[int] = 1
    """Default of `learn(log_interval=...)`, as the parent has it."""

    def __init__(
        self,
        policy: str | type[Any],
        env: GymEnv | str,
        *,
        limits: Sequence[float] | None = None,
        limit_per: LimitPer = "step",
        cost_scales: Sequence[float] | None = None,
        gains: PidGains | Mapping[str, float] | None = None,
        reward_scale: float | None = 1.0,
        _init_setup_model: bool = True,
        **settings: Any,
    ) -> None:
        """Set the algorithm up.

        Args:
            policy: policy class or its name, such as "MlpPolicy".
            env: environment that reports info["costs"], or info["cost"] for one limit.
            limits: limit of each mean cost.
            limit_per: whether the mean is over steps or the sums over episodes are meant.
            cost_scales: excess that counts as 1, per limit; the limits' sizes where None.
            gains: gains of the multipliers, also as a mapping.
            reward_scale: size of a reward, which the gains are in units of; None measures it before the first update.
            _init_setup_model: whether to build the networks; False while loading.
            **settings: keywords of the parent algorithm.

        Raises:
            ConfigError: no limits, limits and scales that do not fit, or a box without bounds.
        """
        space = getattr(env, "action_space", None)
        if isinstance(space, spaces.Box) and not space.is_bounded():
            message = f"{type(self).__name__}: action space is {space}; expected a bounded Box; wrap the environment"
            raise ConfigError(message)
        super().__init__(policy, env, _init_setup_model=False, **settings)  # type: ignore[call-arg]  # the parent's
        if _init_setup_model:
            self.duals = new_duals(limits, limit_per, cost_scales, gains, reward_scale)
            self._setup_model()

    def learn(
        self: Self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = None,
        tb_log_name: str = "",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Learn for a number of environment steps; see stable-baselines3. Logs under the name of the class."""
        interval, name = log_interval or self.rollouts_per_log, tb_log_name or type(self).__name__
        return super().learn(total_timesteps, callback, interval, name, reset_num_timesteps, progress_bar)  # type: ignore[safe-super]

    def _setup_learn(self, *args: Any, **settings: Any) -> tuple[int, BaseCallback]:
        before = self._last_obs
        answer = super()._setup_learn(*args, **settings)
        if self._last_obs is not before:
            self.duals.restart(self.n_envs)
        return answer
