"""The edge without its socket: a queue with an estimate, one worker that computes, results that are kept for a while.

    wait = sum over the requests ahead of (t_fixed + steps left x t_step)

Requests of one shape that wait together are computed together (`megopt.live.batches`). A device that is gone changes
nothing: the result is kept under the request's id, and is given again to whoever asks for it.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from concurrent.futures import wait

from megopt import __version__
from megopt.diffusion.pipelines import Pipeline, family, latent_space
from megopt.diffusion.schedulers import SAMPLERS
from megopt.errors import MegoptError, PayloadError
from megopt.live.admission import EdgeSettings, RefusedError, shape_of
from megopt.live.batches import BatchRunner
from megopt.live.decision import CODEC_BITS, EDGE_MODES, IMAGE_CODECS
from megopt.live.jobs import Job, failure
from megopt.live.messages import Capabilities, Request
from megopt.live.model_thread import ModelThread
from megopt.live.telemetry import LOGGER
from megopt.live.wire import PROTOCOL_VERSION, Frame
from megopt.metering.energy import Meter


class EdgeService(BatchRunner):
    """Takes requests, computes them in a thread of its own, and keeps what became of them.

    Attributes:
        model: its name, for those who ask.
        settings: bounds.

    A `thread` that is given is the one that loaded the pipeline: models run fastest there.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        model: str,
        settings: EdgeSettings | None = None,
        meter: Meter | None = None,
        thread: ModelThread | None = None,
    ) -> None:
        super().__init__(pipeline, meter)
        self.model, self.settings = model, settings or EdgeSettings()
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._is_closing = False
        self._changed = threading.Condition()
        self._thread = thread or ModelThread()
        self._prepare()
        self._worked = self._thread.submit(self._work)

    def _prepare(self) -> None:
        """Build what more modes need, before the first request; these need nothing."""

    def capabilities(self) -> Capabilities:
        """Return what this edge can do, and how busy it is."""
        name = family(self._pipeline).name
        with self._changed:
            num_waiting, wait_s = len(self._waiting) + len(self._running), self._wait_s()
        return Capabilities(
            protocol_version=PROTOCOL_VERSION,
            megopt_version=__version__,
            model=self.model,
            latent_space=latent_space(self._pipeline),
            samplers=tuple(key for key, sampler in SAMPLERS.items() if name in sampler.families),
            modes=EDGE_MODES,
            codec_bits=CODEC_BITS,
            image_codecs=IMAGE_CODECS,
            max_steps=self.settings.max_steps,
            max_side_px=self.settings.max_side_px,
            num_waiting=num_waiting,
            wait_s=wait_s,
            step_s=self.times.step_s,
        )

    def submit(self, payload: bytes) -> Job:
        """Return the job of a request, a new one or that of an earlier sending of the same bytes.

        Raises:
            PayloadError: if the payload is no request that this edge could carry out.
            RefusedError: if the edge is too busy for the deadline, is closing, or knows the id for another request.
        """
        request, digest = Request.of_frame(Frame.from_bytes(payload)), hashlib.sha256(payload).digest()
        self._check(request)
        with self._changed:
            self._forget_old()
            known = self._jobs.get(request.request_id)
            if known is not None:
                if known.digest != digest:
                    self._refuse("other_request", f"request {request.request_id} is known for another content")
                return known
            self._admit(request)
            job = self._jobs[request.request_id] = Job(request=request, digest=digest)
            self._waiting.append(job)
            self._changed.notify_all()
        self.metrics.waiting.inc()
        return job

    def find(self, request_id: str) -> Job | None:
        """Return the job of a request that is known; None for any other."""
        with self._changed:
            self._forget_old()
            return self._jobs.get(request_id)

    def cancel(self, request_id: str) -> bool:
        """Stop a request at its next step boundary; return whether it was known and not yet ended."""
        job = self.find(request_id)
        if job is None or job.ended_s is not None:
            return False
        job.is_cancelled = True
        return True

    def close(self, grace_s: float = 10.0) -> None:
        """Take no more requests, finish what runs within `grace_s` [s], and end the rest with "shutdown"."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        wait([self._worked], grace_s)
        with self._changed:
            left = [*self._waiting, *self._running]
            self._waiting.clear()
        for job in left:
            job.is_cancelled = True
            self._end(job, failure(job.request.request_id, "shutdown", "the edge is shutting down; ask another"))
        self._thread.end()
        wait([self._worked], grace_s)

    def _check(self, request: Request) -> None:
        limits = {
            f"{request.decision.num_steps} steps": request.decision.num_steps > self.settings.max_steps,
            f"{request.height_px}x{request.width_px} px": max(request.height_px, request.width_px)
            > self.settings.max_side_px,
            f"mode {request.decision.mode}": request.decision.mode not in EDGE_MODES,
        }
        too_large = [name for name, is_too_large in limits.items() if is_too_large]
        if too_large:
            message = f"request: {', '.join(too_large)}; this edge offers {', '.join(EDGE_MODES)}, up to "
            raise PayloadError(
                message + f"{self.settings.max_steps} steps and {self.settings.max_side_px} px; ask for less"
            )

    def _refuse(self, reason: str, message: str, retry_after_s: float | None = None) -> None:
        self.metrics.refusals.labels(reason).inc()
        raise RefusedError(reason, message, retry_after_s)

    def _admit(self, request: Request) -> None:
        """Refuse what could not end before its deadline."""
        if self._is_closing:
            self._refuse("closing", "the edge is shutting down; ask another")
        wait_s = self._wait_s()
        self.metrics.wait_s.set(wait_s)
        late_s = wait_s + self._own_s(request) - request.deadline_s
        if late_s > 0.0 or len(self._waiting) >= self.settings.max_waiting:
            message = f"{len(self._waiting)} requests wait, about {wait_s:.3g} s; {request.deadline_s:.3g} s are left"
            # a wait that is shorter than the lateness would not help; one own time frees a full queue by one
            self._refuse("busy", message, max(late_s, self._own_s(request), 0.05))

    def _own_s(self, request: Request) -> float:
        return self.times.of(request.decision.split_step)

    def _wait_s(self) -> float:
        return sum(self._own_s(job.request) for job in (*self._waiting, *self._running))

    def _forget_old(self) -> None:
        ended = sorted(
            ((job.ended_s, name) for name, job in self._jobs.items() if job.ended_s is not None), reverse=True
        )
        oldest_s, kept_bytes = time.monotonic() - self.settings.keep_s, 0
        for ended_s, name in ended:
            kept_bytes += self._jobs[name].num_bytes
            if ended_s < oldest_s or kept_bytes > self.settings.max_kept_bytes:
                del self._jobs[name]

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closing)
                if self._is_closing:
                    return
                self._running = batch = self._next_batch()
            try:
                self._compute(batch)
            except MegoptError as error:
                self._fail(batch, "refused", str(error))
            except Exception:  # whatever a model raises must not take the other requests with it
                LOGGER.exception("a batch of %d requests failed", len(batch))
                self._fail(batch, "internal", "the edge failed; finish on the device")
            with self._changed:
                self._running = []

    def _next_batch(self) -> list[Job]:
        """Take the request that waits longest, and those that can run with it."""
        first = self._waiting.popleft()
        same = [job for job in self._waiting if shape_of(job.request) == shape_of(first.request)]
        batch = [first, *same[: self.settings.max_batch - 1]]
        self._waiting = deque(job for job in self._waiting if job not in batch)
        return batch
