"""Asking the edge within the time there is: send the request, hear its frames, ask again, and give up in time.

The time to finish alone is kept back from the deadline,

    t_give_up = deadline - margin - t_local(steps left)

with t_local from the device's own runs.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

from megopt.errors import PayloadError
from megopt.live.connection import BusyError, Connection, LinkError, RefusedByEdgeError
from megopt.live.course import Course
from megopt.live.device_settings import DeviceSettings
from megopt.live.handover import received_checkpoint, received_image
from megopt.live.messages import Request, Result
from megopt.live.own_models import OwnModels
from megopt.live.previews import Previews
from megopt.live.wire import Frame
from megopt.units import BITS_PER_BYTE


class EdgeAsker:
    """The half of a device that talks to the edge: brings what it makes of a request into the request's course.

    A device of more modes overrides `_ask`, where a mode has calls of its own, and `_take`, to note what came.

    Attributes:
        settings: how it deals with time.
        previews: of the checkpoints that come on the way; nobody is shown any before its `show` is set.
    """

    def __init__(self, own: OwnModels, settings: DeviceSettings) -> None:
        self.settings, self._own = settings, own
        self.previews = Previews(own)

    def _give_up_s(self, course: Course) -> float:
        """Return when the device must go on alone [s], monotonic clock."""
        left = course.run.num_steps - course.run.step
        local_s = self._own.times.of(left)
        return course.begun_s + course.prompt.deadline_s - self.settings.margin_s - local_s

    def _left_s(self, course: Course) -> float:
        """Return the time that is left until then [s], above 0."""
        return max(1e-3, self._give_up_s(course) - time.monotonic())

    async def _ask(self, request: Request, connection: Connection, course: Course) -> None:
        """Let the edge work until it has said its last word, or the device must go on alone."""
        begun_s = time.monotonic()
        try:
            is_over = await self._heard(request, connection, course)
        except BusyError as error:
            course.notes.append(str(error))
            return
        took_s = course.stamp("edge and link", begun_s)
        if course.result is not None:
            parts = {"queue": course.result.queue_s, "edge": course.result.compute_s}
            course.timeline += [(f"of which {stage}", part_s) for stage, part_s in parts.items()]
        if is_over and course.result is not None:
            course.link_s = max(0.0, took_s - course.result.total_s)
            course.timeline.append(("of which link", course.link_s))
        if not is_over:
            course.notes.append(f"finished alone from step {course.run.step}")
            await connection.cancel(request.request_id, timeout_s=self.settings.margin_s / 2)

    async def _heard(self, request: Request, connection: Connection, course: Course) -> bool:
        """Ask until there is an answer, or no time to ask again; return whether the edge has said all it had to.

        Raises:
            BusyError: if the edge takes nothing now.
        """
        for attempt in range(self.settings.num_retries + 1):
            try:
                return await self._listen(request, connection, course)
            except BusyError:
                raise
            except RefusedByEdgeError as error:
                course.notes.append(str(error))
                return False
            except (LinkError, PayloadError) as error:
                course.note(str(error))
                wait_s = self.settings.backoff_s * 2**attempt
                if time.monotonic() + wait_s >= self._give_up_s(course):
                    return False
                await asyncio.sleep(wait_s)
        return False

    async def _listen(self, request: Request, connection: Connection, course: Course) -> bool:
        """Take frames until the last; return whether it came in time."""
        limit = asyncio.timeout_at(_loop_time(self._give_up_s(course)))
        try:
            async with limit, aclosing(connection.frames(request)) as frames:
                async for frame in frames:
                    if frame.kind == "failure":
                        course.notes.append(f"the edge ended it: {str(frame.fields.get('message'))[:200]}")
                        return False
                    self._take(frame, request, course)
                    if frame.kind == "result":
                        return True
                    self.previews.offer(course.run)
                    limit.reschedule(_loop_time(self._give_up_s(course)))
        except TimeoutError:
            course.notes.append("the deadline is near and the edge has not answered")
            return False
        message = "link: the answer ended before the result"
        raise LinkError(message)

    def _take(self, frame: Frame, request: Request, course: Course) -> None:
        """Take one frame; of those heard before the link was lost, nothing."""
        result = Result.of_frame(frame)
        if result.request_id != request.request_id or result.decision != request.decision:
            message = "result: of another request, or of another decision than was asked for"
            raise PayloadError(message)
        is_last = frame.kind == "result"
        if not is_last and result.step <= course.run.step:
            return
        if is_last and request.decision.mode == "edge_only":
            course.image = received_image(frame, request.decision, (request.height_px, request.width_px))
        else:
            course.run = received_checkpoint(frame, course.run, result.step, request.decision)
        course.result = result
        course.payload_bits = float(BITS_PER_BYTE * sum(len(part.payload) for part in frame.parts))


def _loop_time(monotonic_s: float) -> float:
    """Return a time of the monotonic clock on the clock of the running loop [s]."""
    return asyncio.get_running_loop().time() + monotonic_s - time.monotonic()
