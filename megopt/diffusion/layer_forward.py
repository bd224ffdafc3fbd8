"""One layer of a denoiser at a time: as the network runs it itself, and the shapes that it leaves."""

from __future__ import annotations

from typing import Any

import torch

from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.conditioning import Conditioning
from megopt.diffusion.layer_pieces import FIRST, LAST, Shape


def embedded(unet: Any, hidden: torch.Tensor, timestep: torch.Tensor, told: Conditioning) -> tuple[Any, Any]:
    """Return the embedding of the time and the text as the layers hear them; cheap, so each side makes its own."""
    added = {} if told.sizes_px is None else {"text_embeds": told.pooled, "time_ids": told.sizes_px}
    time = unet.time_embedding(unet.get_time_embed(sample=hidden, timestep=timestep), None)
    more = unet.get_aug_embed(emb=time, encoder_hidden_states=told.text, added_cond_kwargs=added)
    time = time if more is None else time + more
    if unet.time_embed_act is not None:
        time = unet.time_embed_act(time)
    return time, unet.process_encoder_hidden_states(encoder_hidden_states=told.text, added_cond_kwargs=added)


def run_layer(
    unet: Any, name: str, hidden: torch.Tensor, skips: tuple[torch.Tensor, ...], time: Any, text: Any
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Run one layer as the network's own forward pass does."""
    if name == FIRST:
        hidden = unet.conv_in(2 * hidden - 1.0 if unet.config.center_input_sample else hidden)
        return hidden, (hidden,)
    if name == LAST:
        normed = unet.conv_act(unet.conv_norm_out(hidden)) if unet.conv_norm_out else hidden
        return unet.conv_out(normed), skips
    block = unet.get_submodule(name)
    told = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
    if name == "mid_block":
        return block(hidden, time, **told), skips
    if name.startswith("down_blocks"):
        hidden, fresh = block(hidden_states=hidden, temb=time, **told)
        return hidden, (*skips, *fresh)
    kept = len(skips) - len(block.resnets)
    hidden = block(hidden_states=hidden, temb=time, res_hidden_states_tuple=skips[kept:], upsample_size=None, **told)
    return hidden, skips[:kept]


def layer_shapes(unet: Any, name: str, hidden: Shape, skips: tuple[Shape, ...]) -> tuple[Shape, tuple[Shape, ...]]:
    """Return the shapes of hidden state and skips after one layer."""
    _, height, width = hidden
    if name in (FIRST, LAST):
        hidden = (int(getattr(unet, name).out_channels), height, width)
        return hidden, (hidden,) if name == FIRST else skips
    if name == "mid_block":
        return hidden, skips
    block = unet.get_submodule(name)
    inner = (int(block.resnets[-1].out_channels), height, width)
    if name.startswith("down_blocks"):
        outer = (inner[0], -(-height // 2), -(-width // 2)) if block.downsamplers else inner
        fresh = [inner] * len(block.resnets) + [outer] * (block.downsamplers is not None)
        return outer, (*skips, *fresh)
    outer = (inner[0], 2 * height, 2 * width) if block.upsamplers else inner
    return outer, skips[: len(skips) - len(block.resnets)]


def num_popped(unet: Any, name: str) -> int:
    """Return how many skips a layer takes."""
    return len(unet.get_submodule(name).resnets) if name.startswith("up_blocks") else 0


def num_pushed(unet: Any, name: str) -> int:
    """Return how many skips a layer leaves."""
    if not name.startswith("down_blocks"):
        return int(name == FIRST)
    block = unet.get_submodule(name)
    return len(block.resnets) + (block.downsamplers is not None)


def kept_skips(skips: tuple[Any, ...], count: int, is_doubled: bool) -> tuple[Any, ...]:
    """Return the newest `count` skips, less the one that is the hidden state itself."""
    newest = skips[len(skips) - count :]
    return newest[:-1] if is_doubled and newest else newest


def shape_of(run: Checkpoint) -> Shape:
    """Return channels, height and width of the latent of `run`."""
    _, channels, height, width = run.latent.shape
    return channels, height, width
