"""A new policy under guard: it decides some of the requests, and is put in or taken back by what came of them.

    every n-th request      the candidate decides, the others go on as before
    taken back, at once     it raises, hangs or names an impossible row, or a deadline is missed
    put in, after m         share of its requests that were kept >= share of the others' - tolerance

Whoever wants to look before that puts it in the shadow of the device first, where it decides nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from megopt.live.connection import Connection
from megopt.live.course import Generated, Prompt
from megopt.live.device import Device
from megopt.live.telemetry import log_event
from megopt.policies.base import Policy
from megopt.ranges import require_whole, require_within


class PolicyTrial:
    """One candidate on trial in one device; the device needs no restart, whatever becomes of it.

    Attributes:
        verdict: "running", "put in" or "taken back".
    """

    def __init__(
        self,
        device: Device,
        candidate: Policy,
        keeps: Callable[[Generated], bool],
        *,
        every: int = 5,
        num_requests: int = 20,
        tolerance: float = 0.0,
    ) -> None:
        """Begin a trial.

        Args:
            device: decides by its own policy as before.
            candidate: on trial; of the device's table.
            keeps: says of a request whether it was as it should be, such as within its limits.
            every: the candidate decides one of so many requests, from 2 [1].
            num_requests: requests of the candidate before it is put in [1].
            tolerance: by which its share of kept requests may be smaller [1].

        Raises:
            ConfigError: for a number outside its range.
        """
        require_whole("policy trial", 2, every=every)  # it is held against the requests of the others
        require_whole("policy trial", 1, num_requests=num_requests)
        require_within("policy trial", 0.0, 1.0, tolerance=tolerance)
        self.verdict = "running"
        self._device, self._candidate, self._keeps = device, candidate, keeps
        self._every, self._num_requests, self._tolerance = every, num_requests, tolerance
        self._kept: dict[bool, list[bool]] = {True: [], False: []}
        self._num_begun = 0
        self._one_at_a_time = asyncio.Lock()

    async def generate(self, prompt: Prompt, connection: Connection) -> Generated:
        """Return the image of `prompt`, as `Device.generate`; calls wait for each other, and turns come by number."""
        async with self._one_at_a_time:
            if self.verdict != "running":
                return await self._device.generate(prompt, connection)
            self._num_begun += 1
            is_tried = self._num_begun % self._every == 0
            before = self._device.policy
            if is_tried:
                self._device.policy = self._candidate
            try:
                found = await self._device.generate(prompt, connection)
            finally:
                self._device.policy = before
            self._judge(found, prompt, is_tried=is_tried)
            return found

    def _judge(self, found: Generated, prompt: Prompt, *, is_tried: bool) -> None:
        """Take a request into account, and end the trial when its time has come."""
        is_late = float(found.measured.latency_s[0]) > prompt.deadline_s
        self._kept[is_tried].append(not is_late and self._keeps(found))
        if not is_tried:
            return
        if is_late or found.has_policy_failed:
            self._end("taken back")
        elif len(self._kept[True]) >= self._num_requests:
            tried, others = (sum(kept) / len(kept) for kept in (self._kept[True], self._kept[False]))
            self._end("put in" if tried >= others - self._tolerance else "taken back")

    def _end(self, verdict: str) -> None:
        self.verdict = verdict
        if verdict == "put in":
            self._device.policy = self._candidate
        log_event("trial", verdict=verdict, num_tried=len(self._kept[True]), num_kept=sum(self._kept[True]))
