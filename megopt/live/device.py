"""The device: observe, decide, ask the edge, finish, and go on alone when the edge or the link does not keep up.

    observe link and load -> policy -> request -> checkpoint or image -> remaining steps -> decode -> enlarge

Where the edge does not answer in time (`megopt.live.asker`) the device finishes from the last checkpoint it has, or
from the noise it has drawn itself: both ends begin the same run. What was predicted and what came is returned as two
outcomes.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from megopt.diffusion.pipelines import Pipeline, latent_space
from megopt.diffusion.super_resolution import Upscaler
from megopt.errors import ConfigError, MegoptError, PayloadError
from megopt.live import runs
from megopt.live.admission import OwnTimes
from megopt.live.asker import EdgeAsker
from megopt.live.calibration import Calibration
from megopt.live.connection import Connection, LinkError
from megopt.live.course import Course, Decided, Generated, Prompt, no_link
from megopt.live.decision import Decision
from megopt.live.device_settings import DeviceSettings
from megopt.live.handover import schedule_crc
from megopt.live.messages import Capabilities, Request
from megopt.live.modes_rows import SharingTerms
from megopt.live.observation import LinkObserver, with_wait
from megopt.live.own_models import OwnModels
from megopt.live.policy_call import chosen_row
from megopt.live.predictor import Prediction, Predictor
from megopt.live.rows import decision_of, device_only_row, row_of
from megopt.live.telemetry import log_event
from megopt.metering.energy import Meter, NoMeter
from megopt.policies.base import Observation, Policy
from megopt.schemes.action_table import ActionTable
from megopt.system.link import LinkState


class Device(EdgeAsker):
    """A client with a model of its own.

    Attributes:
        table: rows that the policy chooses from; one of them must need no edge.
        policy: chooses; it may be replaced between two requests.
        shadow: is asked as well, once the image is there, and only written down; None for nobody.
        terms: what rows leave open; see `decision_of`.
        settings: how it deals with time.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        table: ActionTable,
        policy: Policy,
        observer: LinkObserver,
        *,
        settings: DeviceSettings | None = None,
        upscalers: Mapping[int, Upscaler] | None = None,
        kinds: Mapping[tuple[str, int], Upscaler] | None = None,
        meter: Meter | None = None,
        terms: SharingTerms | None = None,
    ) -> None:
        self.table, self.policy, self.terms = table, policy, terms
        self.shadow: Policy | None = None
        self._local_row = device_only_row(table)
        lights = {("light", scale): upscaler for scale, upscaler in (upscalers or {}).items()}
        own = OwnModels(pipeline, lights | dict(kinds or {}), meter or NoMeter(), self._first_times())
        super().__init__(own, settings or DeviceSettings())
        self._predictor = Predictor(table, Calibration(self.settings.calibration))
        self._pipeline, self._observer = pipeline, observer
        self._told: tuple[float, Connection, Capabilities] | None = None

    def _first_times(self) -> OwnTimes:
        """Return what the table says of the device's own runs; it is believed until the first of them."""
        num_steps = self._decision(self._local_row).num_steps
        return OwnTimes(step_s=float(self.table.work.device_s[self._local_row]) / num_steps)

    async def generate(self, prompt: Prompt, connection: Connection, decision: Decision | None = None) -> Generated:
        """Return the image of `prompt`; the edge's failures and the link's show only in the notes and in time.

        Args:
            prompt: what the user wants.
            connection: to the edge.
            decision: stated, in place of the policy's choice; None to ask the policy.

        Raises:
            ConfigError: for a prompt that the device's own model cannot serve, or a stated decision that cannot be
                carried out by this device with this edge.
        """
        begun_s = time.monotonic()
        notes: list[str] = []
        told, link = await self._observed(connection, notes)
        choice = await self._decided(prompt, told, link, notes) if decision is None else self._stated(decision, told)
        request = self._request(prompt, choice.decision)
        run = runs.begin(self._pipeline, request)
        course = Course(prompt=prompt, begun_s=begun_s, run=run, notes=notes)
        wait_s = 0.0 if told is None else told.wait_s
        predicted = self._predictor.of(choice.row, link, course.stamp("observe and decide", begun_s), wait_s)
        if choice.decision.mode != "device_only":
            if told is None:
                notes.append("finished alone from step 0")
            else:
                course.is_asked = True
                asked = replace(request, schedule_crc=schedule_crc(run), deadline_s=self._left_s(course))
                await self._ask(asked, connection, course)
        await self._own.call(course, self._own.finish, course, choice.decision)
        found = self._generated(course, choice, request, link, predicted)
        return found if link is None else await self._shadowed(found, with_wait(link, wait_s))

    async def refresh(self, connection: Connection) -> None:
        """Ask the edge what it can do and how busy it is, in a quiet moment; `settings.refresh_s` long that holds.

        Nothing is asked for half that time; where the edge does not answer, a request finds out and says so.
        """
        told, now_s = self._told, time.monotonic()
        if told is not None and told[1] is connection and now_s - told[0] < self.settings.refresh_s / 2.0:
            return
        with suppress(LinkError, PayloadError):
            self._told = now_s, connection, await connection.capabilities()

    async def _observed(self, connection: Connection, notes: list[str]) -> tuple[Capabilities | None, LinkState | None]:
        """Return what the edge says of itself, and the link; a note where there is none."""
        told, now_s = self._told, time.monotonic()
        try:
            if told is None or told[1] is not connection or now_s - told[0] > self.settings.refresh_s:
                told = self._told = now_s, connection, await connection.capabilities()
            return told[2], await self._observer.observe(connection)
        except (LinkError, PayloadError) as error:
            notes.append(f"no edge: {error}")
            self._told = None
            return None, None

    async def _decided(
        self, prompt: Prompt, told: Capabilities | None, link: LinkState | None, notes: list[str]
    ) -> Decided:
        """Return what the policy wants and both ends can do.

        Without an edge it is asked about a dead link; one that errs or is late gives way to the row without an edge.
        """
        seen = no_link() if told is None or link is None else with_wait(link, told.wait_s)
        choice = await chosen_row(self.policy, Observation(link=seen), len(self.table), self.settings.policy_timeout_s)
        has_failed = choice.row is None
        if has_failed:
            notes.append(choice.complaint)
        row = self._local_row if choice.row is None else self._carried_out(choice.row, told, link, prompt, notes)
        decision = self._decision(row)
        return Decided(row=row, decision=decision, probability=choice.probability, has_policy_failed=has_failed)

    def _stated(self, decision: Decision, told: Capabilities | None) -> Decided:
        """Return a stated decision, and the row that asks for the same.

        Raises:
            ConfigError: if the edge does not offer it.
        """
        problems = [] if told is None else told.problems(decision, latent_space(self._pipeline))
        if problems and decision.mode != "device_only":
            message = f"mode {decision.mode}: {'; '.join(problems)}; choose what both ends can do"
            raise ConfigError(message)
        return Decided(row=row_of(self.table, decision, self.terms), decision=decision)

    def _decision(self, row: int) -> Decision:
        return decision_of(self.table, row, self.terms)

    async def _shadowed(self, found: Generated, link: LinkState) -> Generated:
        """Write down what the shadow would have chosen; the image is there, so nobody but the log waits for it."""
        if self.shadow is None:
            return found
        choice = await chosen_row(self.shadow, Observation(link=link), len(self.table), self.settings.policy_timeout_s)
        named = choice.complaint if choice.row is None else self.table.name(choice.row)
        log_event("shadow", request_id=found.request_id, chosen=found.row, shadow=choice.row, shadow_says=named)
        return replace(found, shadow_row=choice.row)

    def _carried_out(
        self, row: int, told: Capabilities | None, link: LinkState | None, prompt: Prompt, notes: list[str]
    ) -> int:
        """Return `row` if both ends can carry it out in time, else the row that needs no edge, with a note."""
        try:
            decision = self._decision(row)
            if decision.mode == "device_only":
                return row
            if told is None:
                return self._local_row  # that there is no edge is noted already
            problems = told.problems(decision, latent_space(self._pipeline))
            if not self._own.can_enlarge(decision):
                problems.append(f"the device has no {decision.sr_kind} upscaler for the factor {decision.sr_scale}")
            expected_s = float(self._predictor.of(row, link, 0.0, told.wait_s).outcome.latency_s[0])
            if expected_s > prompt.deadline_s:
                problems.append(f"the edge would need {expected_s:.3g} s, and {prompt.deadline_s:g} s are left")
        except MegoptError as error:
            problems = [str(error)]
        if not problems:
            return row
        notes.append(f"device only: {'; '.join(problems)}")
        return self._local_row

    def _request(self, prompt: Prompt, decision: Decision) -> Request:
        if not self._own.can_enlarge(decision) or prompt.resolution_px % decision.sr_scale:
            message = (
                f"resolution_px {prompt.resolution_px} with sr_scale {decision.sr_scale}, sr_kind {decision.sr_kind}: "
                "this device has no such upscaler, or the side does not divide; choose another sr_scale or sr_kind"
            )
            raise ConfigError(message)
        side_px = prompt.resolution_px // decision.sr_scale
        return Request(
            request_id=uuid.uuid4().hex,
            prompt=prompt.text,
            negative_prompt=prompt.negative_text,
            sampler=prompt.sampler,
            guidance_scale=prompt.guidance_scale,
            guidance_rescale=prompt.guidance_rescale,
            seed=prompt.seed,
            height_px=side_px,
            width_px=side_px,
            schedule_crc=0,
            checkpoint_every=self.settings.checkpoint_every or self.settings.preview_every,
            deadline_s=prompt.deadline_s,
            decision=decision,
        )

    def _generated(
        self, course: Course, choice: Decided, request: Request, link: LinkState | None, predicted: Prediction
    ) -> Generated:
        assert course.image is not None
        measured = course.outcome(request, link)
        self._predictor.learn(choice.row, predicted, measured, course)
        return Generated(
            image=course.image,
            request_id=request.request_id,
            row=choice.row,
            decision=choice.decision,
            edge_steps=course.edge_steps,
            predicted=predicted.outcome,
            predicted_runtime_s=predicted.runtime_s,
            table_latency_s=predicted.table_s,
            measured=measured,
            timeline=tuple(course.timeline),
            notes=tuple(course.notes),
            result=course.result,
            crossed=tuple(course.crossed),
            probability=choice.probability,
            has_policy_failed=choice.has_policy_failed,
            energy_source="not_measured" if course.energy is None else course.energy.source,
        )
