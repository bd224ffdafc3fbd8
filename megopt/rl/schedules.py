"""A learning rate that falls with the progress of a whole run, also of one that learns in pieces."""

from __future__ import annotations


class FadingRate:
    """A learning rate that falls linearly to a share of its first value; for `learning_rate=` of any algorithm.

    stable-baselines3 tells a schedule what is left of the present call of `learn`. A run in many calls tells this one
    where it is: `agent.learning_rate.num_done = agent.num_timesteps`.

    Attributes:
        num_done: steps that the run has done.
    """

    def __init__(self, first: float, num_steps: int, last_share: float) -> None:
        """Set the schedule.

        Args:
            first: learning rate at the start, > 0.
            num_steps: steps of the run.
            last_share: learning rate at the end over that at the start, in [0, 1].
        """
        self.first, self.num_steps, self.last_share = first, num_steps, last_share
        self.num_done = 0

    def __call__(self, remaining: float) -> float:
        """Return the learning rate; what remains of a call of `learn` is not read."""
        progress = min(1.0, self.num_done / self.num_steps)
        return self.first * (1.0 + progress * (self.last_share - 1.0))
