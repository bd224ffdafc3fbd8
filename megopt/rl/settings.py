"""Settings of CVPO: its own, and its values of those that all off-policy algorithms have."""

from __future__ import annotations

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


def off_policy_settings(where: str, chosen: dict[str, Any]) -> dict[str, Any]:
    """Return settings of `OFF_POLICY` once they are checked; a list of `train_freq` becomes the tuple that is meant.

    Args:
        where: who asks, the first word of a message.
        chosen: all names of `OFF_POLICY`, and others, which are left as they are.

    Raises:
        ConfigError: for a value out of range.
    """
    if not callable(chosen["learning_rate"]):
        require_number(where, 1e-12, 10.0, learning_rate=chosen["learning_rate"])
    require_whole(where, 1, batch_size=chosen["batch_size"], buffer_size=chosen["buffer_size"])
    require_whole(where, 0, learning_starts=chosen["learning_starts"])
    require_within(where, 0.0, 1.0, gamma=chosen["gamma"], tau=chosen["tau"])
    if chosen["gradient_steps"] != -1:
        require_whole(where, 0, gradient_steps=chosen["gradient_steps"])
    every = chosen["train_freq"]
    every = tuple(every) if isinstance(every, list | tuple) else (every, "step")
    require_whole(where, 1, train_freq=every[0] if every else None)
    if len(every) != 2 or getattr(every[1], "value", every[1]) not in ("step", "episode"):
        message = f"{where}: train_freq is {every!r}; expected a whole number, or one and step or episode; change it"
        raise ConfigError(message)
    return chosen | {"train_freq": every}


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
