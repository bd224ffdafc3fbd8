"""The edge without its socket: a queue with an estimate, one worker that computes, results that are kept for a while.

    wait = sum over the requests ahead of (t_fixed + steps left x t_step)

Requests of one shape that wait together are computed together, step by step. Between two steps the worker looks who has
what was asked for, who has cancelled, and whose deadline has passed. A device that is gone changes nothing: the result
is kept under the request's id, and is given again to whoever asks for it.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass, replace

import torch

from megopt import __version__
from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.conditioning import encode_run
from megopt.diffusion.pipelines import Pipeline, family, latent_space
from megopt.diffusion.schedulers import SAMPLERS
from megopt.errors import MegoptError, PayloadError
from megopt.live import handover, runs
from megopt.live.jobs import Job, failure
from megopt.live.messages import CODEC_BITS, EDGE_MODES, IMAGE_CODECS, MAX_SIDE_PX, Capabilities, Request, Result
from megopt.live.shared_energy import SharedEnergy
from megopt.live.telemetry import LOGGER, EdgeMetrics, log_event
from megopt.live.wire import PROTOCOL_VERSION, Frame, Part
from megopt.metering.energy import Meter, NoMeter
from megopt.ranges import require_whole, require_within

SMOOTHING = 0.3
"""Weight of the newest time in an estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """Bounds of an edge service.

    Attributes:
        max_waiting: requests that may wait [1].
        max_batch: requests computed together [1].
        max_steps: denoising steps of a run [1].
        max_side_px: side of an image [px].
        keep_s: time for which results are kept [s].
        max_kept_bytes: size of all kept results [B].
    """

    max_waiting: int = 32
    max_batch: int = 8
    max_steps: int = 100
    max_side_px: int = 1024
    keep_s: float = 120.0
    max_kept_bytes: int = 1 << 28

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("max_waiting", "max_batch", "max_steps", "max_kept_bytes")}
        require_whole("edge settings", 1, **counts)
        require_within("edge settings", 8, MAX_SIDE_PX, max_side_px=self.max_side_px)
        require_within("edge settings", 0.0, 86_400.0, keep_s=self.keep_s)


class RefusedError(Exception):
    """Raised when a request is not taken.

    Attributes:
        reason: "busy", "closing" or "other_request".
        retry_after_s: when to try again [s]; None where that would not help.
    """

    def __init__(self, reason: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.reason, self.retry_after_s = reason, retry_after_s


class EdgeService:
    """Takes requests, computes them in a thread of its own, and keeps what became of them.

    Attributes:
        model: its name, for those who ask.
        settings: bounds.
        metrics: counters.
    """

    def __init__(
        self, pipeline: Pipeline, model: str, settings: EdgeSettings | None = None, meter: Meter | None = None
    ) -> None:
        self.model, self.settings, self.metrics = model, settings or EdgeSettings(), EdgeMetrics()
        self._pipeline, self._meter = pipeline, meter or NoMeter()
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._step_s = self._fixed_s = 0.0
        self._is_closing = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name="megopt-edge", daemon=True)
        self._worker.start()

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
            step_s=self._step_s,
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
        self._worker.join(grace_s)
        with self._changed:
            left = [*self._waiting, *self._running]
            self._waiting.clear()
        for job in left:
            job.is_cancelled = True
            self._end(job, failure(job.request.request_id, "shutdown", "the edge is shutting down; ask another"))
        self._worker.join(grace_s)

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
        return self._fixed_s + request.decision.split_step * self._step_s

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

    def _fail(self, batch: list[Job], reason: str, message: str) -> None:
        for job in batch:
            self._end(job, failure(job.request.request_id, reason, message))

    def _next_batch(self) -> list[Job]:
        """Take the request that waits longest, and those that can run with it."""
        first = self._waiting.popleft()
        same = [job for job in self._waiting if _shape(job.request) == _shape(first.request)]
        batch = [first, *same[: self.settings.max_batch - 1]]
        self._waiting = deque(job for job in self._waiting if job not in batch)
        return batch

    def _compute(self, batch: list[Job]) -> None:
        """Run `batch` step by step; each job leaves with what it asked for."""
        batch = self._still_wanted(batch)
        if batch:
            with SharedEnergy(self._meter, batch) as energy:
                self._run(batch, energy)

    def _run(self, batch: list[Job], energy: SharedEnergy) -> None:
        begun_s, num_run, num_steps = time.monotonic(), 0, 0
        run = runs.joined([runs.begin(self._pipeline, job.request) for job in batch])
        told = encode_run(self._pipeline, run)
        steps_s = 0.0
        while batch:
            step_begun_s = time.monotonic()
            run = next(runs.steps(self._pipeline, run, told, run.step + 1))
            steps_s += time.monotonic() - step_begun_s
            num_run, num_steps = num_run + len(batch), num_steps + 1
            wanted = self._still_wanted(batch)
            for row, job in enumerate(batch):
                if job in wanted:
                    self._hand_over(job, runs.taken(run, [row]), begun_s, num_run / num_steps, energy)
                else:
                    energy.drop(job)
            left = [row for row, job in enumerate(batch) if job in wanted and job.ended_s is None]
            if len(left) not in (0, len(batch)):
                run = runs.taken(run, left)
                told = runs.taken_conditioning(told, run, left)
            batch = [batch[row] for row in left]
        self._learn(steps_s / num_steps, time.monotonic() - begun_s - steps_s)

    def _still_wanted(self, batch: list[Job]) -> list[Job]:
        """End what was cancelled or is late, and return the rest."""
        wanted = []
        for job in batch:
            name = job.request.request_id
            if job.is_cancelled:
                self._end(job, failure(name, "cancelled", "the request was cancelled"))
            elif job.is_late():
                self._end(job, failure(name, "deadline", "the deadline has passed; finish on the device"))
            else:
                wanted.append(job)
        return wanted

    def _hand_over(self, job: Job, run: Checkpoint, begun_s: float, batch_size: float, energy: SharedEnergy) -> None:
        """Say what `job` asked for at this step, if anything."""
        request, decision = job.request, job.request.decision
        is_last = run.step == decision.split_step
        every = request.checkpoint_every
        if not is_last and not (every and run.step % every == 0):
            return
        if is_last and decision.mode == "edge_only":
            parts: tuple[Part, ...] = (handover.image_part(runs.image(self._pipeline, run), decision),)
        else:
            own = replace(run, seeds=(request.seed,))
            parts = handover.checkpoint_parts(own, decision, request.schedule_crc)
        self._say(job, run.step, parts, begun_s, batch_size, energy if is_last else None)

    def _say(
        self,
        job: Job,
        step: int,
        parts: tuple[Part, ...],
        begun_s: float,
        batch_size: float,
        energy: SharedEnergy | None,
    ) -> None:
        """Say what a job has come to; with `energy` it is its last word."""
        now_s = time.monotonic()
        energy_j = None if energy is None else energy.of_leaving(job)
        result = Result(
            request_id=job.request.request_id,
            step=step,
            decision=job.request.decision,
            queue_s=begun_s - job.arrived_s,
            compute_s=now_s - begun_s,
            total_s=now_s - job.arrived_s,
            batch_size=batch_size,
            energy_j=energy_j,
            energy_source="not_measured" if energy is None or energy_j is None else energy.source,
        )
        frame = Frame(kind="checkpoint" if energy is None else "result", fields=asdict(result), parts=parts)
        if energy is None:
            job.say(frame)
            return
        self.metrics.queue_s.observe(result.queue_s)
        self.metrics.compute_s.observe(result.compute_s)
        self.metrics.batch_size.observe(result.batch_size)
        self._end(job, frame)

    def _end(self, job: Job, frame: Frame) -> None:
        if not job.say(frame):
            return
        self.metrics.requests.labels(job.reason).inc()
        self.metrics.waiting.dec()
        assert job.ended_s is not None
        log_event(
            "request",
            request_id=job.request.request_id,
            reason=job.reason,
            mode=job.request.decision.mode,
            num_steps=job.request.decision.num_steps,
            split_step=job.request.decision.split_step,
            total_s=round(job.ended_s - job.arrived_s, 6),
        )

    def _learn(self, step_s: float, fixed_s: float) -> None:
        def blended(old: float, new: float) -> float:
            return new if old == 0.0 else (1.0 - SMOOTHING) * old + SMOOTHING * new

        with self._changed:
            self._step_s, self._fixed_s = blended(self._step_s, step_s), blended(self._fixed_s, fixed_s)


def _shape(request: Request) -> tuple[object, ...]:
    """Return what requests must share to be computed together."""
    return (
        request.decision.num_steps,
        request.sampler,
        request.guidance_scale,
        request.height_px,
        request.width_px,
        request.negative_prompt is None,
    )


def set_threads(num_threads: int) -> None:
    """Let the models use so many threads of the processor."""
    require_whole("edge", 1, num_threads=num_threads)
    torch.set_num_threads(num_threads)
