"""Requests at the edge: waiting, running, finished and kept, and what was said about each so far."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from megopt.live.messages import Request
from megopt.live.wire import Frame

FINAL_KINDS = ("result", "failure")
FAILURES = ("cancelled", "deadline", "refused", "internal", "shutdown")
"""Reasons in the fields of a frame of kind "failure"."""


def failure(request_id: str, reason: str, message: str) -> Frame:
    """Return the frame that ends a request without a result."""
    assert reason in FAILURES
    return Frame(kind="failure", fields={"request_id": request_id, "reason": reason, "message": message})


@dataclass(slots=True, eq=False)
class Job:
    """One request. The worker says frames; any number of listeners hear all of them, from the first on.

    Attributes:
        request: what is asked.
        digest: of the bytes that asked for it.
        arrived_s: arrival [s], monotonic clock.
        ended_s: when the last frame was said [s], monotonic clock; None before.
        reason: how it ended: "done" or one of `FAILURES`; empty before.
        is_cancelled: whether somebody cancelled it; it ends at the next step boundary.
    """

    request: Request
    digest: bytes
    arrived_s: float = field(default_factory=time.monotonic)
    ended_s: float | None = None
    reason: str = ""
    is_cancelled: bool = False
    _frames: list[bytes] = field(default_factory=list)
    _listeners: dict[asyncio.Event, asyncio.AbstractEventLoop] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def num_bytes(self) -> int:
        """Size of what was said [B]."""
        return sum(map(len, self._frames))

    def is_late(self) -> bool:
        """Return whether the deadline has passed."""
        return time.monotonic() > self.arrived_s + self.request.deadline_s

    def say(self, frame: Frame) -> bool:
        """Say a frame to all listeners, and return whether it was; nothing is said after a final one."""
        payload = frame.to_bytes()
        with self._lock:
            if self.ended_s is not None:
                return False
            self._frames.append(payload)
            if frame.kind in FINAL_KINDS:
                self.ended_s, self.reason = time.monotonic(), str(frame.fields.get("reason", "done"))
            for event, loop in self._listeners.items():
                if not loop.is_closed():
                    loop.call_soon_threadsafe(event.set)
        return True

    async def heard(self) -> AsyncIterator[bytes]:
        """Yield every frame from the first on, waiting for those to come."""
        event = asyncio.Event()
        with self._lock:
            self._listeners[event] = asyncio.get_running_loop()
        try:
            index = 0
            while True:
                event.clear()
                with self._lock:
                    fresh, is_ended = self._frames[index:], self.ended_s is not None
                for payload in fresh:
                    yield payload
                index += len(fresh)
                if is_ended:
                    return
                await event.wait()
        finally:
            with self._lock:
                self._listeners.pop(event, None)
