"""Layer split: the denoiser in three pieces; the device runs head and tail, the edge the body between them.

    head: latent -> activations    body: activations -> activations    tail: activations -> noise

Layers of a U-Net, in order: conv_in, down_blocks.0, ..., mid_block, up_blocks.0, ..., conv_out. A body is any row of
them. Activations that a layer before the body leaves for one in it, or one in it for a layer after it, cross with the
hidden state; a skip that is the hidden state itself crosses once. Cut at equal depth on both sides nothing but the
hidden state crosses.

| body | crosses up, each step | crosses down, each step |
|---|---|---|
| inner layers | activations of the guided pair | activations of the guided pair |
| inner layer to conv_out | activations of the guided pair | guided noise |
| all | nothing, if the edge integrates too | guided noise |

Where only noise crosses, both ends keep a latent. The sender goes on from the noise that the receiver will decode, so
that both stay in step at any number of bits.

Source: Ohta and Nishio 2023, "Lambda-Split" (arXiv 2310.14651).
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

from megopt.diffusion import schedulers
from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.conditioning import Conditioning
from megopt.diffusion.guidance import guided
from megopt.diffusion.pipelines import Pipeline, denoiser
from megopt.errors import ConfigError, PipelineError

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


class LayerSplit:
    """A pipeline whose denoiser is run in pieces.

    Attributes:
        pipeline: the model; each side needs the layers that it runs.
        body: the layers of the edge.
    """

    def __init__(self, pipeline: Pipeline, body: Body) -> None:
        """Check the cuts.

        Raises:
            ConfigError: for a layer that the denoiser does not have, or a body that ends before it begins.
            PipelineError: as `layer_names`.
        """
        self.pipeline, self.body, self._names = pipeline, body, layer_names(pipeline)
        unknown = [name for name in (body.first, body.last) if name not in self._names]
        if unknown:
            message = f"layer split: no layer {unknown[0]!r}; expected one of {', '.join(self._names)}"
            raise ConfigError(message)
        self._begin, self._end = self._names.index(body.first), self._names.index(body.last) + 1
        if self._begin >= self._end:
            message = f"layer split: the body ends at {body.last} before it begins at {body.first}; swap them"
            raise ConfigError(message)

    @property
    def needs_uplink(self) -> bool:
        """Whether the device has a head, whose activations go up each step."""
        return self._begin > 0

    @property
    def gives_noise(self) -> bool:
        """Whether the edge ends with guided noise and the device has no tail."""
        return self._end == len(self._names)

    def shapes_up(self, latent: Shape) -> tuple[Shape, ...]:
        """Return the shapes of what crosses from head to body, without the batch; a latent where there is no head."""
        stack = self._stack(latent, self._begin)
        return (stack[0], *_kept(stack[1], self._num_asked(), self._is_doubled(self._begin)))

    def shapes_down(self, latent: Shape) -> tuple[Shape, ...]:
        """Return the shapes of what crosses from body to tail, without the batch; one latent where there is no tail."""
        stack = self._stack(latent, self._end)
        return (stack[0], *_kept(stack[1], self._num_left(latent), self._is_doubled(self._end)))

    def head(self, run: Checkpoint, told: Conditioning) -> tuple[Crossing, tuple[torch.Tensor, ...]]:
        """Return what the body needs for the next step of `run`, and the skips that the tail will ask for."""
        self._check_size(run)
        hidden, skips = self._run(0, self._begin, model_input(self.pipeline, run, told), (), run, told)
        num_asked = self._num_asked()
        sent = _kept(skips, num_asked, self._is_doubled(self._begin))
        return Crossing(hidden=hidden, skips=sent), skips[: len(skips) - num_asked]

    def run_body(self, crossing: Crossing, run: Checkpoint, told: Conditioning) -> Crossing:
        """Return what the tail needs for the next step of `run`; without a tail, the guided noise.

        Args:
            crossing: from the head; without a head, of `model_input`.
            run: at the step in question; only its step and its schedule are used.
            told: conditioning of the run.
        """
        skips = crossing.skips
        if self._num_asked() and self._is_doubled(self._begin):
            skips = (*skips, crossing.hidden)
        hidden, skips = self._run(self._begin, self._end, crossing.hidden, skips, run, told)
        if self.gives_noise:
            return Crossing(hidden=guided(hidden, told, run.guidance_scale, run.guidance_rescale))
        return Crossing(hidden=hidden, skips=_kept(skips, len(skips), self._is_doubled(self._end)))

    def tail(
        self, crossing: Crossing, held: tuple[torch.Tensor, ...], run: Checkpoint, told: Conditioning
    ) -> torch.Tensor:
        """Return the guided noise of the next step of `run`, shape of its latent.

        Args:
            crossing: from the body.
            held: skips that the head kept.
            run: at the step in question.
            told: conditioning of the run.
        """
        if self.gives_noise:
            return crossing.hidden
        came = crossing.skips
        if self._is_doubled(self._end) and self._num_left(_shape(run)):
            came = (*came, crossing.hidden)
        output, _ = self._run(self._end, len(self._names), crossing.hidden, (*held, *came), run, told)
        return guided(output, told, run.guidance_scale, run.guidance_rescale)

    def _run(
        self,
        begin: int,
        end: int,
        hidden: torch.Tensor,
        skips: tuple[torch.Tensor, ...],
        run: Checkpoint,
        told: Conditioning,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Run layers `begin` to `end`, and return the hidden state and the skips that are left."""
        unet = denoiser(self.pipeline)
        if begin == end:
            return hidden, skips
        with torch.no_grad():
            time, text = _embedded(unet, hidden, run.timesteps[run.step].to(hidden.device), told)
            for name in self._names[begin:end]:
                hidden, skips = _layer(unet, name, hidden, skips, time, text)
        return hidden, skips

    def _num_asked(self) -> int:
        """Return how many skips of the head the body asks for."""
        depth = least = 0
        for name in self._names[self._begin : self._end]:
            pops, pushes = _pops(denoiser(self.pipeline), name), _pushes(denoiser(self.pipeline), name)
            least = min(least, depth - pops)
            depth += pushes - pops
        return -least

    def _num_left(self, latent: Shape) -> int:
        """Return how many skips of the body are left for the tail."""
        at_first, at_last = (len(self._stack(latent, index)[1]) for index in (self._begin, self._end))
        return at_last - at_first + self._num_asked()

    def _is_doubled(self, index: int) -> bool:
        """Return whether the newest skip before layer `index` is the hidden state itself."""
        return index > 0 and not self._names[index - 1].startswith(("up_blocks", "mid_block", LAST))

    def _stack(self, latent: Shape, end: int) -> tuple[Shape, tuple[Shape, ...]]:
        """Return the shapes of hidden state and skips before layer `end`."""
        hidden = latent
        skips: tuple[Shape, ...] = ()
        for name in self._names[:end]:
            hidden, skips = _layer_shapes(denoiser(self.pipeline), name, hidden, skips)
        return hidden, skips

    def _check_size(self, run: Checkpoint) -> None:
        grain = 2 ** int(denoiser(self.pipeline).num_upsamplers)
        if any(side % grain for side in run.latent.shape[2:]):
            message = f"layer split: a latent of {tuple(run.latent.shape[2:])}; expected multiples of {grain}"
            raise ConfigError(message)


def model_input(pipeline: Pipeline, run: Checkpoint, told: Conditioning) -> torch.Tensor:
    """Return what the denoiser sees at the next step of `run`: the latent, twice with guidance."""
    latent = run.latent.to(device=pipeline.device, dtype=denoiser(pipeline).dtype)
    batch = torch.cat([latent] * 2) if told.is_guided else latent
    scheduler = schedulers.resume(pipeline, run)
    seen: torch.Tensor = scheduler.scale_model_input(batch, scheduler.timesteps[run.step])
    return seen


def step_with(pipeline: Pipeline, run: Checkpoint, noise: torch.Tensor) -> Checkpoint:
    """Return `run` after one step with the guided `noise`, wherever that was computed.

    Raises:
        ConfigError: if no step is left, or the noise is not of the latent's shape.
    """
    if run.step >= run.num_steps or noise.shape != run.latent.shape:
        message = (
            f"step {run.step} of {run.num_steps} with noise of shape {tuple(noise.shape)}: expected a step that is "
            f"left, and {tuple(run.latent.shape)}"
        )
        raise ConfigError(message)
    scheduler = schedulers.resume(pipeline, run)
    latent = run.latent.to(device=pipeline.device, dtype=denoiser(pipeline).dtype)
    after = scheduler.step(noise.to(latent), scheduler.timesteps[run.step], latent, return_dict=False)[0]
    history = schedulers.history(scheduler) if run.step + 1 < run.num_steps else ()
    return replace(run, latent=after, step=run.step + 1, solver_history=history)


def _embedded(unet: Any, hidden: torch.Tensor, timestep: torch.Tensor, told: Conditioning) -> tuple[Any, Any]:
    """Return the embedding of the time and the text as the layers hear them; cheap, so each side makes its own."""
    added = {} if told.sizes_px is None else {"text_embeds": told.pooled, "time_ids": told.sizes_px}
    time = unet.time_embedding(unet.get_time_embed(sample=hidden, timestep=timestep), None)
    more = unet.get_aug_embed(emb=time, encoder_hidden_states=told.text, added_cond_kwargs=added)
    time = time if more is None else time + more
    if unet.time_embed_act is not None:
        time = unet.time_embed_act(time)
    return time, unet.process_encoder_hidden_states(encoder_hidden_states=told.text, added_cond_kwargs=added)


def _layer(
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


def _layer_shapes(unet: Any, name: str, hidden: Shape, skips: tuple[Shape, ...]) -> tuple[Shape, tuple[Shape, ...]]:
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


def _pops(unet: Any, name: str) -> int:
    return len(unet.get_submodule(name).resnets) if name.startswith("up_blocks") else 0


def _pushes(unet: Any, name: str) -> int:
    if not name.startswith("down_blocks"):
        return int(name == FIRST)
    block = unet.get_submodule(name)
    return len(block.resnets) + (block.downsamplers is not None)


def _kept(skips: tuple[Any, ...], count: int, is_doubled: bool) -> tuple[Any, ...]:
    """Return the newest `count` skips, less the one that is the hidden state itself."""
    newest = skips[len(skips) - count :]
    return newest[:-1] if is_doubled and newest else newest


def _shape(run: Checkpoint) -> Shape:
    _, channels, height, width = run.latent.shape
    return channels, height, width
