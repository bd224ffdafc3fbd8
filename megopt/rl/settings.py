"""Settings: what all learners are checked for, CVPO's own, and its values of those that learners from replay share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from megopt.errors import ConfigError
from megopt.ranges import require_number, require_whole, require_within

OFF_POLICY: dict[str, Any] = {
    "learning_rate": 5e-4,  # of the actor, a number or a schedule
    "buffer_size": 200_000,  # transitions to keep
    "learning_starts": 1000,  # steps with random actions before the first update
    "batch_size": 256,  # states per update
    "tau": 0.01,  # share that slow critics move per update
    "gamma": 0.99,  # discount per step, in [0, 1]
    "train_freq": 1,  # steps per environment, or (n, "episode"), between calls of `train`
    "gradient_steps": 1,  # updates per call; -1 for one per step, 0 to collect only
}
"""CVPO's values of the settings that all off-policy algorithms of stable-baselines3 have."""

_RANGES = {
    "learning_rate": (0.0, 10.0),
    "gamma": (0.0, 1.0),
    "tau": (0.0, 1.0),
    "gae_lambda": (0.0, 1.0),
    "clip_range": (1e-9, 1e3),
}
_WHOLE = {"batch_size": 1, "buffer_size": 1, "n_steps": 1, "n_epochs": 1, "learning_starts": 0}
"""Least and largest legal values of stable-baselines3's settings; schedules are not looked into."""


def checked_settings(where: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of stable-baselines3's names once they are checked; a list of `train_freq` becomes a tuple.

    Args:
        where: who asks, the first word of a message.
        chosen: keywords of an algorithm; names that are not there, or not known here, are left alone.

    Raises:
        ConfigError: for a value out of range.
    """
    given = dict(chosen)
    for name, (low, high) in _RANGES.items():
        if name in given and not callable(given[name]):
            require_number(where, low, high, **{name: given[name]})
    for name, least in _WHOLE.items():
        if name in given:
            require_whole(where, least, **{name: given[name]})
    if given.get("gradient_steps", -1) != -1:
        came = given["gradient_steps"]
        if isinstance(came, bool) or not isinstance(came, int) or came < 0:
            message = (
                f"{where}: gradient_steps is {came!r}; expected a whole number from 1, -1 for one per step, or 0 to "
                "collect only; change gradient_steps"
            )
            raise ConfigError(message)
    if "train_freq" in given:
        given["train_freq"] = _train_freq(where, given["train_freq"])
    widths = (given.get("policy_kwargs") or {}).get("net_arch")
    for layers in widths.values() if isinstance(widths, Mapping) else [[] if widths is None else widths]:
        if not isinstance(layers, list | tuple):
            message = f"{where}: net_arch is {widths!r}; expected a list of widths such as [64, 64]; change net_arch"
            raise ConfigError(message)
        for width in layers:
            require_whole(where, 1, net_arch=width)
    return given


def _train_freq(where: str, came: Any) -> Any:
    """Return how often updates are made, as stable-baselines3 takes it."""
    if not isinstance(came, list | tuple):
        require_whole(where, 1, train_freq=came)
        return came
    unit = getattr(came[1], "value", came[1]) if len(came) == 2 else None
    if unit not in ("step", "episode"):
        message = f"{where}: train_freq is {came!r}; expected a whole number, or a pair such as [1, episode]; change it"
        raise ConfigError(message)
    require_whole(where, 1, train_freq=came[0])
    return (came[0], unit)


@dataclass(frozen=True, slots=True, kw_only=True)
class CVPOSettings:
    """What CVPO alone knows; every field is a keyword of `megopt.rl.cvpo.CVPO`.

    Attributes:
        critic_rate_factor: learning rate of the critics over that of the actor, > 0.
        policy_tau: share that the slow actor moves per update, in [0, 1].
        average_share: share of all updates so far that the running mean of the actor looks back on, in [0, 1]; it acts
            for `predict`, so that what a run ends with is not its last wobble. 0 for the actor itself.
        n_steps: steps per return.
        num_samples: actions per state in the E-step, where they are sampled: of Gaussians, of histograms of more than
            64 cells, and of products of more than 1024 choices; of all others every cell or choice is weighed.
        num_sampled_states: states of a batch that E- and M-step use for Box and for products of more than 1024
            choices; all others, and the critics, use the whole batch.
        max_kl: trust region of the E-step [nat].
        num_fit_steps: gradient steps of the M-step per E-step.
        fit_kl: trust region of the M-step: of the mean for Box, of the policy otherwise [nat].
        fit_kl_spread: trust region of the spread for Box [nat].
        num_bins: intervals that a histogram policy cuts each dimension of a Box into, 2 or more; 0 for a Gaussian.
        measure_window: steps, over all environments, that the measured cost looks back on at least; half of all steps
            once that is more.
        limit_margin: share of each limit's size to stay below it, in [0, 0.5]: what the luck of the draws may cost.
        use_action_masks: ask the environment's `action_masks()` which Discrete or MultiDiscrete choices are legal.
        use_joint_masks: masks cover joint actions of MultiDiscrete, in an array of the space's shape or raveled;
            otherwise one entry per choice of each factor.
    """

    critic_rate_factor: float = 2.0
    policy_tau: float = 0.05
    average_share: float = 0.1
    n_steps: int = 1
    num_samples: int = 16
    num_sampled_states: int = 128
    max_kl: float = 0.1
    num_fit_steps: int = 1
    fit_kl: float = 0.01
    fit_kl_spread: float = 0.001
    num_bins: int = 0
    measure_window: int = 4000
    limit_margin: float = 0.0
    use_action_masks: bool = False
    use_joint_masks: bool = False

    def __post_init__(self) -> None:
        radii = {"max_kl": self.max_kl, "fit_kl": self.fit_kl, "fit_kl_spread": self.fit_kl_spread}
        require_within("CVPO", 1e-9, 1e3, critic_rate_factor=self.critic_rate_factor, **radii)
        require_within("CVPO", 0.0, 1.0, policy_tau=self.policy_tau, average_share=self.average_share)
        require_within("CVPO", 0.0, 0.5, limit_margin=self.limit_margin)
        require_whole("CVPO", 2, num_samples=self.num_samples, num_bins=self.num_bins or 2)
        require_whole("CVPO", 1, num_fit_steps=self.num_fit_steps, num_sampled_states=self.num_sampled_states)
        require_whole("CVPO", 1, measure_window=self.measure_window, n_steps=self.n_steps)

    @classmethod
    def taken_from(cls, keywords: dict[str, Any]) -> CVPOSettings:
        """Return the settings among some keywords, and remove them there."""
        names = [field.name for field in fields(cls) if field.name in keywords]
        return cls(**{name: keywords.pop(name) for name in names})
