"""The device with every mode behind one call: `generate`, whether a policy chose or the user states the decision.

Region split, shared steps and layer split end like step split does: the device goes on from what has come, and alone
from there if the edge or the link does not keep up.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import torch

from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.conditioning import Conditioning, encode_run
from megopt.diffusion.layer_pieces import Body, Crossing, denoiser_crc
from megopt.diffusion.layers import LayerSplit, step_with
from megopt.diffusion.pipelines import LatentSpace, latent_space
from megopt.errors import ConfigError, MegoptError, PayloadError
from megopt.live.connection import Connection, LinkError, RefusedByEdgeError, check_status
from megopt.live.course import Course, Prompt, StepBytes
from megopt.live.decision import Decision
from megopt.live.device import Device
from megopt.live.local_models import LocalModels
from megopt.live.messages import Request
from megopt.live.modes_crossing import crossing_frame, received_crossing
from megopt.live.modes_runs import region_of
from megopt.live.modes_shares import LayerShare
from megopt.live.wire import Frame
from megopt.units import BITS_PER_BYTE


class LayerConnection(Connection):
    """A session with an edge that also has the calls of `megopt.live.modes_layers`."""

    async def open_layers(self, request: Request, timeout_s: float) -> None:
        """Begin a layer split at the edge.

        Raises:
            LinkError: if the edge does not answer in time, or refuses it.
        """
        await self._sent("POST", "/v1/layers", request.frame().to_bytes(), timeout_s)

    async def layer_step(self, request_id: str, step: int, frame: Frame, timeout_s: float) -> Frame:
        """Return what the body makes of a frame of activations; sending a step again is safe.

        Raises:
            LinkError: as `open_layers`.
            PayloadError: for a damaged answer.
        """
        path = f"/v1/layers/{request_id}/{step}"
        return Frame.from_bytes(await self._sent("POST", path, frame.to_bytes(), timeout_s), self.limits)

    async def close_layers(self, request_id: str, timeout_s: float) -> None:
        """End a layer split; a link that is lost ends it as well, later."""
        try:
            await self._sent("DELETE", f"/v1/layers/{request_id}", b"", timeout_s)
        except LinkError:
            return

    async def _sent(self, method: str, path: str, content: bytes, timeout_s: float) -> bytes:
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._client.request(method, path, content=content)
        except (httpx.HTTPError, TimeoutError) as error:
            message = f"link: {type(error).__name__} {error}; no answer to {method} {path[:10]} within {timeout_s:g} s"
            raise LinkError(message) from error
        check_status(answer)
        return answer.content


class SharingDevice(Device):
    """A device that carries out every mode.

    Attributes:
        draws_groups: whether a row of shared steps begins a group of its own with every request.
    """

    def __init__(self, *given: Any, draws_groups: bool = False, **named: Any) -> None:
        self.draws_groups = draws_groups
        super().__init__(*given, **named)

    @classmethod
    def of_models(cls, models: LocalModels, *given: Any, **named: Any) -> SharingDevice:
        """Return the device of what was loaded for it; the rest is as in `Device`, and draws_groups."""
        own: dict[str, Any] = {"upscalers": models.upscalers, "kinds": models.kinds, "meter": models.meter}
        return cls(models.pipeline, *given, **own, **named)

    @property
    def latent_space(self) -> LatentSpace:
        """Of the device's model."""
        return latent_space(self._pipeline)

    def layers(self, body: Body) -> LayerShare:
        """Return the layer split in which the edge runs `body` and this device the rest of the same model.

        Raises:
            ConfigError: for a layer that the denoiser does not have.
        """
        split = LayerSplit(self._pipeline, body)
        is_whole = not split.needs_uplink and split.gives_noise
        return LayerShare(first=body.first, last=body.last, model_crc=0 if is_whole else denoiser_crc(self._pipeline))

    def _request(self, prompt: Prompt, decision: Decision) -> Request:
        request = super()._request(prompt, decision)
        if decision.region is not None:
            region_of(decision.region, (request.height_px, request.width_px), self.latent_space.scale_factor)
        return request

    def _decision(self, row: int) -> Decision:
        decision = super()._decision(row)
        if decision.group is None or not self.draws_groups:
            return decision
        return replace(decision, group=replace(decision.group, group_id=uuid.uuid4().hex))

    async def _ask(self, request: Request, connection: Connection, course: Course) -> None:
        layers = request.decision.layers
        if layers is None or layers.is_whole:
            await super()._ask(request, connection, course)
            return
        if not isinstance(connection, LayerConnection):
            message = "layer split with a head on the device: expected a LayerConnection; open one"
            raise ConfigError(message)
        begun_s = time.monotonic()
        try:
            await self._through_layers(request, connection, course)
        except MegoptError as error:  # of the link, or of numbers that do not fit into the decision's bits
            course.note(str(error))
            course.note(f"finished alone from step {course.run.step}")
        took_s = course.stamp("edge and link", begun_s)
        course.link_s = max(0.0, took_s - course.edge_s - course.device_s)
        parts = {"edge": course.edge_s, "device": course.device_s, "link": course.link_s}
        course.timeline += [(f"of which {stage}", part_s) for stage, part_s in parts.items()]

    async def _through_layers(self, request: Request, connection: LayerConnection, course: Course) -> None:
        """Take every step with the edge's body in the middle."""
        layers = request.decision.layers
        assert layers is not None
        split = LayerSplit(self._pipeline, Body(first=layers.first, last=layers.last))
        told = await self._own.call(course, encode_run, self._pipeline, course.run)
        await connection.open_layers(request, self._left_s(course))
        try:
            while course.run.step < course.run.num_steps:
                course.run = await self._layer_step(split, told, request, connection, course)
                self.previews.offer(course.run)
        finally:
            await connection.close_layers(request.request_id, self.settings.margin_s / 2)

    async def _layer_step(
        self, split: LayerSplit, told: Conditioning, request: Request, connection: LayerConnection, course: Course
    ) -> Checkpoint:
        run, decision = course.run, request.decision
        up, held = await self._own.call(course, split.head, run, told)
        sent = crossing_frame("activations", run.step, up, decision)
        came = await self._answered(request.request_id, run.step, sent, connection, course)
        shapes = split.shapes_down((run.latent.shape[1], run.latent.shape[2], run.latent.shape[3]))
        batch = 1 if split.gives_noise else 1 + told.is_guided
        down = received_crossing(came, shapes, batch, decision, like=run.latent)
        after = await self._own.call(course, self._after_tail, split, down, held, run, told)
        course.payload_bits += float(BITS_PER_BYTE * _payload(came))
        _note(course, after.step, _payload(sent), _payload(came), _stated_s(came))
        return after

    def _after_tail(
        self,
        split: LayerSplit,
        down: Crossing,
        held: tuple[torch.Tensor, ...],
        run: Checkpoint,
        told: Conditioning,
    ) -> Checkpoint:
        return step_with(self._pipeline, run, split.tail(down, held, run, told))

    async def _answered(
        self, request_id: str, step: int, sent: Frame, connection: LayerConnection, course: Course
    ) -> Frame:
        """Return the edge's answer, asked for again after a lost link as often as the settings say."""
        for attempt in range(self.settings.num_retries + 1):
            try:
                return await connection.layer_step(request_id, step, sent, self._left_s(course))
            except RefusedByEdgeError:
                raise
            except LinkError as error:
                wait_s = self.settings.backoff_s * 2**attempt
                if attempt == self.settings.num_retries or wait_s >= self._left_s(course):
                    raise
                course.note(str(error))
                await asyncio.sleep(wait_s)
        raise AssertionError

    def _take(self, frame: Frame, request: Request, course: Course) -> None:
        earlier, earlier_bits = course.result, course.payload_bits
        super()._take(frame, request, course)
        result = course.result
        if result is None or result is earlier:
            return  # heard before the link was lost
        if request.decision.layers is not None:
            course.payload_bits += earlier_bits  # every frame is new
        edge_s = result.compute_s - (0.0 if earlier is None else earlier.compute_s)
        _note(course, result.step, 0, _payload(frame), max(0.0, edge_s))


def _note(course: Course, step: int, up_bytes: int, down_bytes: int, edge_s: float) -> None:
    course.crossed.append(StepBytes(step=step, up_bytes=up_bytes, down_bytes=down_bytes, edge_s=edge_s))


def _stated_s(frame: Frame) -> float:
    """Return the time that the edge states for a step [s]."""
    stated = frame.fields.get("compute_s")
    if not isinstance(stated, float) or not 0.0 <= stated < np.inf:
        message = f"layers: compute_s is {str(stated)[:60]!r}; expected a time; the sender is no megopt encoder"
        raise PayloadError(message)
    return stated


def _payload(frame: Frame) -> int:
    return sum(len(part.payload) for part in frame.parts)
