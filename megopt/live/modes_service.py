"""The edge service with the modes beyond step split: the same queue, deadlines and frames."""

from __future__ import annotations

import time
from dataclasses import asdict, replace

from megopt.diffusion.pipelines import Pipeline
from megopt.errors import MegoptError
from megopt.live.jobs import Job
from megopt.live.messages import EDGE_MODES, Capabilities, Request, Result
from megopt.live.modes_edge import SharingEdge, Stage
from megopt.live.modes_layers import LayerSessions
from megopt.live.modes_shares import SHARING_MODES
from megopt.live.service import EdgeService, EdgeSettings
from megopt.live.telemetry import LOGGER
from megopt.live.wire import Frame


class SharingEdgeService(EdgeService):
    """An edge service that also carries out region split, shared steps and layer split.

    Requests of these modes are computed one at a time: what they share is not a batch.

    Attributes:
        sharing: what the pipeline can do beyond step split.
        sessions: layer splits with a head on the device.
    """

    def __init__(self, pipeline: Pipeline, model: str, settings: EdgeSettings | None = None) -> None:
        self.sharing = SharingEdge(pipeline, (settings or EdgeSettings()).keep_s)
        self.sessions = LayerSessions(pipeline)
        super().__init__(pipeline, model, settings)

    def capabilities(self) -> Capabilities:
        """Return what this edge can do, and how busy it is."""
        told = super().capabilities()
        return replace(told, modes=(*EDGE_MODES, *self.sharing.modes), layers=self.sharing.layers)

    def _check(self, request: Request) -> None:
        decision = request.decision
        if decision.mode not in SHARING_MODES:
            super()._check(request)
            return
        # limits of size hold for every mode
        as_split = replace(
            decision, mode="model_split", split_step=decision.num_steps, region=None, group=None, layers=None
        )
        super()._check(replace(request, decision=as_split))
        self.sharing.check(request)

    def _compute(self, batch: list[Job]) -> None:
        plain = [job for job in batch if job.request.decision.mode not in SHARING_MODES]
        for job in batch:
            if job not in plain:
                self._compute_shares(job)
        if plain:
            super()._compute(plain)

    def _compute_shares(self, job: Job) -> None:
        begun_s = time.monotonic()
        try:
            if not self._still_wanted([job]):
                return
            for stage in self.sharing.stages(job.request):
                if not self._still_wanted([job]):
                    return
                if stage.parts:
                    self._say(job, stage, begun_s)
        except MegoptError as error:
            self._fail([job], "refused", str(error))
        except Exception:  # whatever a model raises must not take the other requests with it
            LOGGER.exception("a request of mode %s failed", job.request.decision.mode)
            self._fail([job], "internal", "the edge failed; finish on the device")

    def _say(self, job: Job, stage: Stage, begun_s: float) -> None:
        now_s = time.monotonic()
        result = Result(
            request_id=job.request.request_id,
            step=stage.step,
            decision=job.request.decision,
            queue_s=begun_s - job.arrived_s,
            compute_s=now_s - begun_s,
            total_s=now_s - job.arrived_s,
            batch_size=1.0,
        )
        frame = Frame(kind="result" if stage.is_last else "checkpoint", fields=asdict(result), parts=stage.parts)
        if not stage.is_last:
            job.say(frame)
            return
        self.metrics.queue_s.observe(result.queue_s)
        self.metrics.compute_s.observe(result.compute_s)
        self.metrics.batch_size.observe(result.batch_size)
        self._end(job, frame)
