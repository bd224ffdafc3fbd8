"""The head of an action space: Gaussians or histograms for Box, categorical factors for (Multi)Discrete."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from megopt.errors import ConfigError
from megopt.rl.action_head import ActionHead, Candidates
from megopt.rl.categorical_heads import CategoricalHead, JointHead
from megopt.rl.histogram_head import HistogramHead

_MEAN_BOUND = 4.0
"""Bound on the Gaussian mean before tanh; tanh(4) = 0.9993."""
_STD_FLOOR, _STD_CEILING, _STD_FIRST = 0.02, 1.0, 0.7
"""Range of the Gaussian spread before tanh. Beyond 1 most samples would lie at the ends of the box, all of the same
effect, and nothing would hold the spread back."""


class GaussianHead(ActionHead):
    """Diagonal Gaussian before tanh, which maps onto the box; outputs are means and spreads."""

    def __init__(self, dim: int) -> None:
        """Take the number of dimensions of the box."""
        self.num_outputs, self.num_choices, self.num_joint, self.encoding_size = 2 * dim, 0, 0, dim
        self.names = ("mean", "spread")

    @staticmethod
    def moments(outputs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Return mean and standard deviation before tanh, each of shape (num_states, dim)."""
        mean, spread = th.chunk(outputs, 2, dim=-1)
        span = _STD_CEILING - _STD_FLOOR
        first = float(np.log((_STD_FIRST - _STD_FLOOR) / (_STD_CEILING - _STD_FIRST)))
        return _MEAN_BOUND * th.tanh(mean / _MEAN_BOUND), _STD_FLOOR + span * th.sigmoid(spread + first)

    def act(self, outputs: th.Tensor, masks: th.Tensor | None, is_deterministic: bool) -> th.Tensor:
        """Return tanh of the mean, or of a sample."""
        mean, std = self.moments(outputs)
        return th.tanh(mean if is_deterministic else mean + std * th.randn_like(mean))

    def candidates(self, outputs: th.Tensor, masks: th.Tensor | None, num_samples: int) -> Candidates:
        """Return samples before tanh and what they do."""
        mean, std = self.moments(outputs)
        noise = th.randn((len(mean), num_samples, mean.shape[1]), device=mean.device)
        latent = mean[:, None] + std[:, None] * noise
        return Candidates(actions=latent, encoding=th.tanh(latent), prior=None)

    def encode(self, actions: th.Tensor) -> th.Tensor:
        """Return the actions: they are stored as critics read them."""
        return actions.float()

    def fit_loss(
        self, new: th.Tensor, old: th.Tensor, candidates: Candidates, weights: th.Tensor, masks: th.Tensor | None
    ) -> th.Tensor:
        """Return the loss of the crossed Gaussians: new mean with old spread, old mean with new spread."""
        assert candidates.actions is not None
        (mean, std), (old_mean, old_std) = self.moments(new), self.moments(old)
        by_mean = ((candidates.actions - mean[:, None]) / old_std[:, None]) ** 2 / 2.0
        by_std = ((candidates.actions - old_mean[:, None]) / std[:, None]) ** 2 / 2.0 + th.log(std)[:, None]
        return th.mean(th.sum(weights * th.sum(by_mean + by_std, dim=2), dim=1))

    def divergences(self, new: th.Tensor, old: th.Tensor, masks: th.Tensor | None) -> th.Tensor:
        """Return the KL of moving the mean alone and of changing the spread alone."""
        (mean, std), (old_mean, old_std) = self.moments(new), self.moments(old)
        by_mean = th.sum(((mean - old_mean) / old_std) ** 2, dim=1) / 2.0
        ratio = (old_std / std) ** 2
        by_std = th.sum(ratio - 1.0 - th.log(ratio), dim=1) / 2.0
        return th.stack([th.mean(by_mean), th.mean(by_std)])


def head_of(space: spaces.Space[Any], *, is_joint: bool = False, num_bins: int = 0) -> ActionHead:
    """Return the head of an action space.

    Args:
        space: what is done.
        is_joint: whether masks cover joint actions, in place of the choices of each factor.
        num_bins: intervals per dimension of a Box; 0 for a Gaussian.

    Raises:
        ConfigError: for spaces other than bounded Box, Discrete and MultiDiscrete, or intervals of no bounded Box.
    """
    if isinstance(space, spaces.Box) and space.is_bounded():
        dim = int(np.prod(space.shape))
        return HistogramHead(dim, num_bins) if num_bins else GaussianHead(dim)
    if num_bins:
        message = f"CVPO: num_bins={num_bins} with {space}; expected a bounded Box; leave it out"
        raise ConfigError(message)
    categorical = JointHead if is_joint else CategoricalHead
    if isinstance(space, spaces.Discrete):
        return categorical((int(space.n),), (int(space.start),))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return categorical(tuple(int(size) for size in space.nvec), tuple(int(start) for start in space.start))
    message = f"action space is {space}; expected a bounded Box, Discrete or flat MultiDiscrete; wrap the environment"
    raise ConfigError(message)
