"""The edge service with the modes beyond step split: the same queue, deadlines and frames."""

from __future__ import annotations

import time
from dataclasses import replace

from megopt.errors import MegoptError
from megopt.live.decision import EDGE_MODES
from megopt.live.jobs import Job
from megopt.live.messages import Capabilities, Request
from megopt.live.modes_edge import SharingEdge
from megopt.live.modes_layers import LayerSessions
from megopt.live.modes_shares import SHARING_MODES
from megopt.live.service import EdgeService
from megopt.live.shared_energy import SharedEnergy
from megopt.live.telemetry import LOGGER


class SharingEdgeService(EdgeService):
    """An edge service that also carries out region split, shared steps and layer split.

    Requests of these modes are computed one at a time: what they share is not a batch.

    Attributes:
        sharing: what the pipeline can do beyond step split.
        sessions: layer splits with a head on the device.
    """

    def _prepare(self) -> None:
        """Build what the modes share between requests."""
        self.sharing = SharingEdge(self._pipeline, self.settings.keep_s)
        self.sessions = LayerSessions(self._pipeline)

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
            with SharedEnergy(self._meter, [job]) as energy:
                for stage in self.sharing.stages(job.request):
                    if not self._still_wanted([job]):
                        return
                    if stage.parts:
                        self._say(job, stage.step, stage.parts, begun_s, 1.0, energy if stage.is_last else None)
        except MegoptError as error:
            self._fail([job], "refused", str(error))
        except Exception:  # whatever a model raises must not take the other requests with it
            LOGGER.exception("a request of mode %s failed", job.request.decision.mode)
            self._fail([job], "internal", "the edge failed; finish on the device")
