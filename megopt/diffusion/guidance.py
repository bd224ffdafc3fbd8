"""Classifier-free guidance of a denoiser's output, and what keeps its contrast.

    guided = without + scale (given - without)
    output = guided (1 - rescale + rescale std(given) / std(guided))

with standard deviations over channels and places of each image. A large scale spreads the output, and images come
out too crisp; rescale 1 gives it the spread of the output for the prompt.
Source: J. Ho, T. Salimans, Classifier-free diffusion guidance, 2022; S. Lin et al., Common diffusion noise schedules
and sample steps are flawed, WACV 2024, section 3.4 (rescale; as in diffusers' `guidance_rescale`).
"""

from __future__ import annotations

import torch

from megopt.diffusion.conditioning import Conditioning


def guided(output: torch.Tensor, told: Conditioning, scale: float, rescale: float = 0.0) -> torch.Tensor:
    """Return the guided output of a denoiser, shape (batch, channels, height, width).

    Args:
        output: of the batch without and with the prompt, shape (2 batch, channels, height, width); without guidance, of
            the prompt alone, which is returned as it is.
        told: conditioning of the run.
        scale: weight of guidance [1].
        rescale: share of the way back to the spread of the output for the prompt, 0 to 1 [1].
    """
    if not told.is_guided:
        return output
    without, given = output.chunk(2)
    mixed = without + scale * (given - without)
    if rescale == 0.0:
        return mixed
    spread = given.std((1, 2, 3), keepdim=True) / mixed.std((1, 2, 3), keepdim=True)
    return rescale * (mixed * spread) + (1.0 - rescale) * mixed
