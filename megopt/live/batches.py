"""What the edge computes: requests of one shape together, step by step, each leaving with what it asked for.

Between two steps it is seen who has what was asked for, who has cancelled, and whose deadline has passed.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace

from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.conditioning import encode_run
from megopt.diffusion.pipelines import Pipeline
from megopt.live import handover, runs
from megopt.live.admission import OwnTimes
from megopt.live.jobs import Job, failure
from megopt.live.messages import Result
from megopt.live.shared_energy import SharedEnergy
from megopt.live.telemetry import EdgeMetrics, log_event
from megopt.live.wire import Frame, Part
from megopt.metering.energy import Meter, NoMeter


class BatchRunner:
    """Computes batches of jobs with one pipeline, and says what becomes of them.

    Attributes:
        metrics: counters.
        times: of the steps so far.
    """

    def __init__(self, pipeline: Pipeline, meter: Meter | None = None) -> None:
        self.metrics, self.times = EdgeMetrics(), OwnTimes()
        self._pipeline, self._meter = pipeline, meter or NoMeter()

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
        self.times.learn(steps_s / num_steps, time.monotonic() - begun_s - steps_s)

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

    def _fail(self, batch: list[Job], reason: str, message: str) -> None:
        for job in batch:
            self._end(job, failure(job.request.request_id, reason, message))

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
