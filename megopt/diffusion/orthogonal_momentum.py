"""An optimiser for the inner convolutions of small networks: momentum whose singular values are all set to 1.

    m <- b m + g        u = g + b m        w <- w - rate sqrt(max(1, rows / columns)) orthogonalised(u)

A weight of shape (out, in, ...) counts as a matrix of `out` rows. All directions of a layer learn at one speed, which
takes far fewer steps than AdamW where the number of steps is what is scarce.
Source: K. Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import nn

_QUINTIC = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5


class OrthogonalMomentum(torch.optim.Optimizer):
    """Orthogonalised momentum for weights of two or more dimensions."""

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Do one step; weights of one shape are orthogonalised together."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[weight.shape].append(weight)
            for weights in by_shape.values():
                self._move(weights, group["lr"], group["momentum"])

    def _move(self, weights: list[nn.Parameter], rate: float, momentum: float) -> None:
        looking_ahead = []
        for weight in weights:
            assert weight.grad is not None
            past = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
            past.mul_(momentum).add_(weight.grad)
            looking_ahead.append(weight.grad.add(past, alpha=momentum).flatten(1))
        rows, columns = looking_ahead[0].shape
        updates = orthogonalised(torch.stack(looking_ahead)) * max(1.0, rows / columns) ** 0.5
        for weight, update in zip(weights, updates, strict=True):
            weight.add_(update.view(weight.shape), alpha=-rate)


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """Return matrices with the same singular vectors and singular values near 1, shape (n, rows, columns)."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    wide = matrices.mT if is_tall else matrices
    wide = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(_NUM_ITERATIONS):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    result: torch.Tensor = wide.mT if is_tall else wide
    return result


def split_weights(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the inner convolutions, which this optimiser is for, and all other trained weights.

    Inner are those with at least 16 channels on either side; first and last layers, biases and queries are not.
    """
    inner: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    for weight in network.parameters():
        if weight.requires_grad:
            is_inner = weight.ndim == 4 and min(weight.shape[:2]) >= 16
            (inner if is_inner else other).append(weight)
    return inner, other
