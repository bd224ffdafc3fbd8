"""The edge's part of the modes beyond step split: one generator each, from step boundary to step boundary.

| mode | the edge | what it sends |
|---|---|---|
| region_split | all steps of a rectangle, with what is around it as far as asked for | its finished latent |
| shared_steps | common steps once per group, then a member's own | the member's checkpoint |
| layer_split, all layers | all steps; goes on from the noise that the device will decode | guided noise, each step |

Layer split with a head on the device has calls of its own: `megopt.live.modes_layers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.conditioning import encode_run
from megopt.diffusion.layer_pieces import Body, layer_names
from megopt.diffusion.layers import LayerSplit, step_with
from megopt.diffusion.pipelines import Pipeline, latent_space
from megopt.diffusion.region_completion import cropped
from megopt.diffusion.regions import Region
from megopt.errors import ConfigError, PayloadError, PipelineError
from megopt.live import runs
from megopt.live.decision import Decision
from megopt.live.handover import checkpoint_parts, one_image, received_share, share_part
from megopt.live.messages import Request
from megopt.live.modes_groups import Groups
from megopt.live.modes_runs import as_batch, region_of, with_context
from megopt.live.wire import Frame, Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A step boundary.

    Attributes:
        step: steps done.
        parts: what is to be sent; none if nothing is.
        is_last: whether the edge is done.
    """

    step: int
    parts: tuple[Part, ...] = ()
    is_last: bool = False


Stages = Iterator[Stage]


class SharingEdge:
    """What a pipeline can do at an edge beyond step split.

    Attributes:
        groups: that share steps here.
        layers: of the denoiser; none if it cannot be split.
    """

    def __init__(self, pipeline: Pipeline, keep_s: float = 120.0) -> None:
        self.groups, self.layers = Groups(keep_s), _layers(pipeline)
        self._pipeline = pipeline
        self._stages: dict[str, Callable[[Request], Stages]] = {
            "region_split": self._region,
            "shared_steps": self._shared,
            **({"layer_split": self._noise} if self.layers else {}),
        }

    @property
    def modes(self) -> tuple[str, ...]:
        """Modes that are offered."""
        return tuple(self._stages)

    def check(self, request: Request) -> None:
        """Check a request before it waits, and take it into its group if it has one.

        Raises:
            PayloadError: if it cannot be carried out.
        """
        decision = request.decision
        if decision.mode not in self._stages:
            message = f"request: mode {decision.mode}; this edge offers {', '.join(self._stages)}; ask for one of them"
            raise PayloadError(message)
        if decision.layers is not None and not decision.layers.is_whole:
            message = "request: a layer split with a head on the device; open it with POST /v1/layers"
            raise PayloadError(message)
        if decision.region is not None:
            try:
                self._region_of(request)
            except ConfigError as error:
                raise PayloadError(str(error)) from error
        if decision.group is not None:
            self.groups.join(request)

    def stages(self, request: Request) -> Stages:
        """Compute `request`, and yield at every step boundary; whoever does not go on has stopped it."""
        return self._stages[request.decision.mode](request)

    def _region(self, request: Request) -> Stages:
        begun, region = runs.begin(self._pipeline, request), self._region_of(request)
        assert request.decision.region is not None
        seen = with_context(region, request.decision.region.context_px // begun.latent_space.scale_factor)
        told = encode_run(self._pipeline, begun)
        told = told if seen.is_whole else cropped(told, seen, begun)
        alone = replace(begun, latent=seen.of(begun.latent).clone())
        rows = slice(region.top - seen.top, region.top - seen.top + region.height)
        columns = slice(region.left - seen.left, region.left - seen.left + region.width)
        for run in runs.steps(self._pipeline, alone, told, begun.num_steps):
            is_last = run.step == run.num_steps
            made = one_image(run.latent[:, :, rows, columns]) if is_last else None
            parts = () if made is None else (share_part("region", made, request.decision),)
            yield Stage(step=run.step, parts=parts, is_last=is_last)

    def _shared(self, request: Request) -> Stages:
        run = self.groups.common(request)
        if run is None:
            for run in self._common_steps(request):
                yield Stage(step=run.step)
            assert run is not None
            self.groups.keep(request, run)
        begun = runs.begin(self._pipeline, request)
        begun = replace(begun, latent=run.latent, step=run.step, solver_history=run.solver_history)
        every, last = request.checkpoint_every, request.decision.split_step
        if begun.step == last:
            yield self._checkpoint(begun, request, is_last=True)
            return
        for own in runs.steps(self._pipeline, begun, encode_run(self._pipeline, begun), last):
            is_asked = own.step == last or (every > 0 and own.step % every == 0)
            yield self._checkpoint(own, request, is_last=own.step == last) if is_asked else Stage(step=own.step)

    def _common_steps(self, request: Request) -> Iterator[Checkpoint]:
        """Yield the run of the group after each of its steps."""
        group = request.decision.group
        assert group is not None
        public = replace(
            request,
            prompt=group.prompt,
            negative_prompt=None,
            guidance_scale=group.guidance_scale,
            guidance_rescale=0.0,
        )
        run = runs.begin(self._pipeline, public)
        yield from runs.steps(self._pipeline, run, encode_run(self._pipeline, run), group.common_steps)

    def _noise(self, request: Request) -> Stages:
        split, run = LayerSplit(self._pipeline, Body()), runs.begin(self._pipeline, request)
        told = encode_run(self._pipeline, run)
        while run.step < run.num_steps:
            seen, _ = split.head(run, told)
            noise = split.run_body(seen, run, told).hidden
            part = share_part("noise", one_image(noise), request.decision)
            run = step_with(self._pipeline, run, heard(part, noise, request.decision))
            yield Stage(step=run.step, parts=(part,), is_last=run.step == run.num_steps)

    def _checkpoint(self, run: Checkpoint, request: Request, *, is_last: bool) -> Stage:
        parts = checkpoint_parts(run, request.decision, request.schedule_crc)
        return Stage(step=run.step, parts=parts, is_last=is_last)

    def _region_of(self, request: Request) -> Region:
        assert request.decision.region is not None
        factor = latent_space(self._pipeline).scale_factor
        return region_of(request.decision.region, (request.height_px, request.width_px), factor)


def heard(part: Part, values: torch.Tensor, decision: Decision) -> torch.Tensor:
    """Return what the receiver of `part` makes of it: the sender of `values` goes on from that, not from them."""
    shape = (int(values.shape[1]), int(values.shape[2]), int(values.shape[3]))
    found = received_share(Frame(kind="checkpoint", parts=(part,)), part.name, shape, decision)
    return as_batch(found, values)


def _layers(pipeline: Pipeline) -> tuple[str, ...]:
    try:
        return layer_names(pipeline)
    except PipelineError:
        return ()
