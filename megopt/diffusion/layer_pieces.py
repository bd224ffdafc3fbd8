"""The layers of a denoiser by name, the row of them that the edge runs, and what crosses a cut."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import TypeAlias

import torch

from megopt.diffusion.pipelines import Pipeline, denoiser
from megopt.errors import PipelineError

Shape: TypeAlias = tuple[int, int, int]
"""Channels, height and width of activations, without the batch."""
FIRST, LAST = "conv_in", "conv_out"
BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D", "UNetMidBlock2DCrossAttn")
"""Classes of blocks whose skips are known here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """The layers of the edge.

    Attributes:
        first: name of its first layer; the head is everything before.
        last: name of its last layer; the tail is everything after.
    """

    first: str = FIRST
    last: str = LAST


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Crossing:
    """What crosses a cut.

    Attributes:
        hidden: output of the layer before the cut, shape (batch, channels, height, width).
        skips: older activations that layers on the other side ask for, oldest first, without `hidden`.
    """

    hidden: torch.Tensor
    skips: tuple[torch.Tensor, ...] = ()

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Everything that crosses, the hidden state first."""
        return (self.hidden, *self.skips)


def layer_names(pipeline: Pipeline) -> tuple[str, ...]:
    """Return the layers of the denoiser, in the order in which they run.

    Raises:
        PipelineError: if it is no U-Net whose blocks are known here.
    """
    unet = denoiser(pipeline)
    if type(unet).__name__ != "UNet2DConditionModel" or unet.config.addition_embed_type == "image_hint":
        message = f"layer split: the denoiser is a {type(unet).__name__}; expected a UNet2DConditionModel"
        raise PipelineError(message)
    blocks = [*unet.down_blocks, *([unet.mid_block] if unet.mid_block is not None else []), *unet.up_blocks]
    unknown = sorted({type(block).__name__ for block in blocks} - set(BLOCKS))
    if unknown:
        message = f"layer split: blocks of class {', '.join(unknown)}; expected {', '.join(BLOCKS)}"
        raise PipelineError(message)
    down = [f"down_blocks.{index}" for index in range(len(unet.down_blocks))]
    up = [f"up_blocks.{index}" for index in range(len(unet.up_blocks))]
    return (FIRST, *down, *(["mid_block"] if unet.mid_block is not None else []), *up, LAST)


def denoiser_crc(pipeline: Pipeline) -> int:
    """Return a checksum of the denoiser's settings and weights: equal where head, body and tail belong together."""
    unet = denoiser(pipeline)
    settings = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    crc = zlib.crc32(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, weight in sorted(unet.state_dict().items()):
        values = weight.detach().cpu().contiguous().view(torch.uint8).numpy()
        crc = zlib.crc32(values, zlib.crc32(name.encode(), crc))
    return crc
