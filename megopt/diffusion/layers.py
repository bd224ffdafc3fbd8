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

from dataclasses import replace

import torch

from megopt.diffusion import schedulers
from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.conditioning import Conditioning
from megopt.diffusion.guidance import guided
from megopt.diffusion.layer_forward import (
    embedded,
    kept_skips,
    layer_shapes,
    num_popped,
    num_pushed,
    run_layer,
    shape_of,
)
from megopt.diffusion.layer_pieces import LAST, Body, Crossing, Shape, layer_names
from megopt.diffusion.pipelines import Pipeline, denoiser
from megopt.diffusion.placement import device_of, dtype_of
from megopt.errors import ConfigError


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
        return (stack[0], *kept_skips(stack[1], self._num_asked(), self._is_doubled(self._begin)))

    def shapes_down(self, latent: Shape) -> tuple[Shape, ...]:
        """Return the shapes of what crosses from body to tail, without the batch; one latent where there is no tail."""
        stack = self._stack(latent, self._end)
        return (stack[0], *kept_skips(stack[1], self._num_left(latent), self._is_doubled(self._end)))

    def head(self, run: Checkpoint, told: Conditioning) -> tuple[Crossing, tuple[torch.Tensor, ...]]:
        """Return what the body needs for the next step of `run`, and the skips that the tail will ask for."""
        self._check_size(run)
        hidden, skips = self._run(0, self._begin, model_input(self.pipeline, run, told), (), run, told)
        num_asked = self._num_asked()
        sent = kept_skips(skips, num_asked, self._is_doubled(self._begin))
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
        return Crossing(hidden=hidden, skips=kept_skips(skips, len(skips), self._is_doubled(self._end)))

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
        if self._is_doubled(self._end) and self._num_left(shape_of(run)):
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
            time, text = embedded(unet, hidden, run.timesteps[run.step].to(hidden.device), told)
            for name in self._names[begin:end]:
                hidden, skips = run_layer(unet, name, hidden, skips, time, text)
        return hidden, skips

    def _num_asked(self) -> int:
        """Return how many skips of the head the body asks for."""
        depth = least = 0
        for name in self._names[self._begin : self._end]:
            pops, pushes = num_popped(denoiser(self.pipeline), name), num_pushed(denoiser(self.pipeline), name)
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
            hidden, skips = layer_shapes(denoiser(self.pipeline), name, hidden, skips)
        return hidden, skips

    def _check_size(self, run: Checkpoint) -> None:
        grain = 2 ** int(denoiser(self.pipeline).num_upsamplers)
        if any(side % grain for side in run.latent.shape[2:]):
            message = f"layer split: a latent of {tuple(run.latent.shape[2:])}; expected multiples of {grain}"
            raise ConfigError(message)


def model_input(pipeline: Pipeline, run: Checkpoint, told: Conditioning) -> torch.Tensor:
    """Return what the denoiser sees at the next step of `run`: the latent, twice with guidance."""
    latent = run.latent.to(device=device_of(pipeline), dtype=dtype_of(pipeline))
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
    latent = run.latent.to(device=device_of(pipeline), dtype=dtype_of(pipeline))
    after = scheduler.step(noise.to(latent), scheduler.timesteps[run.step], latent, return_dict=False)[0]
    history = schedulers.history(scheduler) if run.step + 1 < run.num_steps else ()
    return replace(run, latent=after, step=run.step + 1, solver_history=history)
