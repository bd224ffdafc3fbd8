"""What the device computes itself: the steps that are left, decoding, enlarging; each timed and metered."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np

from megopt.diffusion.conditioning import encode_run
from megopt.diffusion.pipelines import Pipeline
from megopt.diffusion.super_resolution import Upscaler
from megopt.live import runs
from megopt.live.admission import OwnTimes
from megopt.live.course import Course
from megopt.live.decision import Decision
from megopt.live.model_thread import ModelThread
from megopt.metering.energy import Meter

Found = TypeVar("Found")


class OwnModels:
    """The models of one device, which one thread runs: a call waits for the one before it.

    Attributes:
        pipeline: a model of the edge's latent space.
        times: of its steps so far, and of all else in a run.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        upscalers: Mapping[tuple[str, int], Upscaler],
        meter: Meter,
        times: OwnTimes,
    ) -> None:
        self.pipeline, self.times = pipeline, times
        self._upscalers, self._meter = dict(upscalers), meter
        self._thread = ModelThread()
        self._last: Future[Any] | None = None
        weakref.finalize(self, self._thread.end)

    def can_enlarge(self, decision: Decision) -> bool:
        """Return whether there is an upscaler for what `decision` asks for."""
        return decision.sr_scale == 1 or (decision.sr_kind, decision.sr_scale) in self._upscalers

    async def call(self, course: Course, work: Callable[..., Found], *given: Any) -> Found:
        """Call what runs models, in their thread, and note its time and joules in `course`."""

        def _metered() -> Found:
            begun_s = time.monotonic()
            self._meter.begin()
            found = work(*given)
            energy = self._meter.end()
            course.add_device(time.monotonic() - begun_s, energy)
            return found

        return await asyncio.wrap_future(self._submitted(_metered))

    def when_idle(self, work: Callable[..., Found], *given: Any) -> Future[Found] | None:
        """Begin what runs models and belongs to no request; None, and nothing is done, while they are busy."""
        is_idle = self._last is None or self._last.done()
        return self._submitted(lambda: work(*given)) if is_idle else None

    def _submitted(self, work: Callable[[], Found]) -> Future[Found]:
        self._last = future = self._thread.submit(work)
        return future

    def finish(self, course: Course, decision: Decision) -> None:
        """Do what is left to do, so that `course` has its image."""
        image = self._decoded(course) if course.image is None else course.image
        if decision.sr_scale > 1:
            begun_s = time.monotonic()
            image = self._upscalers[decision.sr_kind, decision.sr_scale].upscale(image[np.newaxis])[0]
            course.stamp("enlarge" if decision.sr_kind == "light" else f"enlarge, {decision.sr_kind}", begun_s)
        course.image = image

    def _decoded(self, course: Course) -> Any:
        """Take the steps that are left, and return the image."""
        begun_s, run, step_s = time.monotonic(), course.run, self.times.step_s
        num_left = run.num_steps - run.step
        if num_left:
            told, step_begun_s = encode_run(self.pipeline, run), time.monotonic()
            run = runs.finished(self.pipeline, run, told)
            step_s = course.stamp("denoise", step_begun_s) / num_left
        decode_begun_s = time.monotonic()
        image = runs.image(self.pipeline, run)
        course.stamp("decode", decode_begun_s)
        self.times.learn(step_s, time.monotonic() - begun_s - step_s * num_left)
        return image
