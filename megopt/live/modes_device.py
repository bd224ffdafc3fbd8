"""The device with every mode behind one call: `carry_out` a stated decision, whoever chose it.

Region split, shared steps and layer split end like step split does: the device goes on from what has come, and alone
from there if the edge or the link does not keep up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import numpy as np

from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.conditioning import Conditioning
from megopt.diffusion.layers import Body, LayerSplit, denoiser_crc, step_with
from megopt.diffusion.pipelines import latent_space
from megopt.diffusion.super_resolution import Upscaler
from megopt.errors import ConfigError, MegoptError, PayloadError
from megopt.live import runs
from megopt.live.connection import Connection, LinkError
from megopt.live.course import Course, Prompt
from megopt.live.device import Device
from megopt.live.handover import Image, schedule_crc
from megopt.live.messages import Decision, Request, Result
from megopt.live.modes_crossing import crossing_frame, received_crossing
from megopt.live.modes_runs import region_of
from megopt.live.modes_shares import LayerShare
from megopt.live.wire import Frame
from megopt.units import BITS_PER_BYTE


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBytes:
    """What one frame of a request carried.

    Attributes:
        step: steps done when it was sent.
        up_bytes: payload to the edge [B]; 0 where nothing but the request went up.
        down_bytes: payload to the device [B].
        edge_s: time of the edge's models [s], since the last frame.
    """

    step: int
    up_bytes: int
    down_bytes: int
    edge_s: float


@dataclass(slots=True, eq=False)
class SharingCourse(Course):
    """A request under way, and what crossed for it.

    Attributes:
        crossed: one entry per frame that came.
    """

    crossed: list[StepBytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CarriedOut:
    """One image of a stated decision.

    Attributes:
        image: uint8, shape (height, width, 3).
        request: as it was sent.
        result: the edge's last words; None if there were none.
        crossed: payloads, one entry per frame that came.
        timeline: stage and time [s], in order.
        notes: what did not go as decided, in words; empty if all did.
    """

    image: Image
    request: Request
    result: Result | None
    crossed: tuple[StepBytes, ...]
    timeline: tuple[tuple[str, float], ...]
    notes: tuple[str, ...]


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
        if not answer.is_success:
            message = f"edge: it answers {answer.status_code}: {answer.text[:300]}"
            raise LinkError(message)
        return answer.content


class SharingDevice(Device):
    """A device that carries out every mode.

    Attributes:
        kinds: upscalers by kind and factor, such as ("hybrid", 2); "light" ones are those of `Device`.
    """

    def __init__(self, *given: Any, kinds: Mapping[tuple[str, int], Upscaler] | None = None, **named: Any) -> None:
        super().__init__(*given, **named)
        self.kinds = dict(kinds or {})

    async def carry_out(self, prompt: Prompt, decision: Decision, connection: Connection) -> CarriedOut:
        """Return the image of `prompt` by `decision`; failures of edge and link show only in the notes and in time.

        Raises:
            ConfigError: if the decision cannot be carried out by this device with this edge.
        """
        begun_s = time.monotonic()
        request = self._asked_for(prompt, decision)
        run = runs.begin(self._pipeline, request)
        course = SharingCourse(prompt=prompt, begun_s=begun_s, run=run)
        if decision.mode != "device_only":
            request = replace(request, schedule_crc=schedule_crc(run))
            if await self._is_offered(decision, connection, course):
                left_s = max(1e-3, self._give_up_s(course) - time.monotonic())
                await self._ask(replace(request, deadline_s=left_s), connection, course)
        await asyncio.to_thread(self._finish, course, decision)
        assert course.image is not None
        return CarriedOut(
            image=course.image,
            request=request,
            result=course.result,
            crossed=tuple(course.crossed),
            timeline=tuple(course.timeline),
            notes=tuple(course.notes),
        )

    def layers(self, body: Body) -> LayerShare:
        """Return the layer split in which the edge runs `body` and this device the rest of the same model.

        Raises:
            ConfigError: for a layer that the denoiser does not have.
        """
        split = LayerSplit(self._pipeline, body)
        is_whole = not split.needs_uplink and split.gives_noise
        return LayerShare(first=body.first, last=body.last, model_crc=0 if is_whole else denoiser_crc(self._pipeline))

    def _asked_for(self, prompt: Prompt, decision: Decision) -> Request:
        if decision.sr_kind != "light" and decision.sr_scale > 1 and self._chosen_upscaler(decision) is None:
            message = f"sr_kind {decision.sr_kind} at factor {decision.sr_scale}: this device has no such upscaler"
            raise ConfigError(message)
        request = self._request(prompt, decision)
        if decision.region is not None:
            factor = latent_space(self._pipeline).scale_factor
            region_of(decision.region, (request.height_px, request.width_px), factor)
        return request

    async def _is_offered(self, decision: Decision, connection: Connection, course: Course) -> bool:
        try:
            told = await connection.capabilities()
        except (LinkError, PayloadError) as error:
            course.notes.append(f"no edge: {error}")
            return False
        problems = told.problems(decision, latent_space(self._pipeline))
        if problems:
            message = f"mode {decision.mode}: {'; '.join(problems)}; choose what both ends can do"
            raise ConfigError(message)
        return True

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
            course.notes += [str(error), f"finished alone from step {course.run.step}"]
        course.stamp("edge and link", begun_s)

    async def _through_layers(self, request: Request, connection: LayerConnection, course: Course) -> None:
        """Take every step with the edge's body in the middle."""
        layers = request.decision.layers
        assert layers is not None
        split = LayerSplit(self._pipeline, Body(first=layers.first, last=layers.last))
        told = await asyncio.to_thread(runs.conditioning, self._pipeline, course.run)
        await connection.open_layers(request, self._left_s(course))
        try:
            while course.run.step < course.run.num_steps:
                course.run = await self._layer_step(split, told, request, connection, course)
        finally:
            await connection.close_layers(request.request_id, self.settings.margin_s / 2)

    async def _layer_step(
        self, split: LayerSplit, told: Conditioning, request: Request, connection: LayerConnection, course: Course
    ) -> Checkpoint:
        run, decision = course.run, request.decision
        up, held = await asyncio.to_thread(split.head, run, told)
        sent = crossing_frame("activations", run.step, up, decision)
        came = await self._answered(request.request_id, run.step, sent, connection, course)
        shapes = split.shapes_down((run.latent.shape[1], run.latent.shape[2], run.latent.shape[3]))
        batch = 1 if split.gives_noise else 1 + told.is_guided
        down = received_crossing(came, shapes, batch, decision, like=run.latent)
        noise = await asyncio.to_thread(split.tail, down, held, run, told)
        after = step_with(self._pipeline, run, noise)
        course.payload_bits += float(BITS_PER_BYTE * _payload(came))
        _note(course, after.step, _payload(sent), _payload(came), _stated_s(came))
        return after

    async def _answered(
        self, request_id: str, step: int, sent: Frame, connection: LayerConnection, course: Course
    ) -> Frame:
        """Return the edge's answer, asked for again after a lost link as often as the settings say."""
        for attempt in range(self.settings.num_retries + 1):
            try:
                return await connection.layer_step(request_id, step, sent, self._left_s(course))
            except LinkError as error:
                wait_s = self.settings.backoff_s * 2**attempt
                if attempt == self.settings.num_retries or wait_s >= self._left_s(course):
                    raise
                course.notes.append(str(error))
                await asyncio.sleep(wait_s)
        raise AssertionError

    def _left_s(self, course: Course) -> float:
        return max(1e-3, self._give_up_s(course) - time.monotonic())

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

    def _finish(self, course: Course, decision: Decision) -> None:
        upscaler = self._chosen_upscaler(decision)
        if decision.sr_scale == 1 or upscaler is None:
            super()._finish(course, decision)
            return
        super()._finish(course, replace(decision, sr_scale=1))
        assert course.image is not None
        begun_s = time.monotonic()
        course.image = upscaler.upscale(course.image[np.newaxis])[0]
        course.stamp(f"enlarge, {decision.sr_kind}", begun_s)

    def _chosen_upscaler(self, decision: Decision) -> Upscaler | None:
        return self.kinds.get((decision.sr_kind, decision.sr_scale))


def _note(course: Course, step: int, up_bytes: int, down_bytes: int, edge_s: float) -> None:
    if isinstance(course, SharingCourse):
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
