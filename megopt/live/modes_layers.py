"""Layer split with a head on the device: the edge's sessions, and their calls.

| call | answer |
|---|---|
| POST /v1/layers, body: a request frame | 204; the edge has begun the run and holds its prompt |
| POST /v1/layers/{id}/{step}, body: a frame of activations | a frame of activations, or of guided noise |
| DELETE /v1/layers/{id} | 204 |

A step may be sent again, and is computed once. Text and schedule cross once, at the opening; the latent never does.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from dataclasses import dataclass, field, replace

from fastapi import FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse

from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.conditioning import Conditioning, encode_run
from megopt.diffusion.layer_pieces import Body, Shape, denoiser_crc
from megopt.diffusion.layers import LayerSplit
from megopt.diffusion.pipelines import Pipeline
from megopt.errors import MegoptError, PayloadError
from megopt.live import runs
from megopt.live.handover import schedule_crc
from megopt.live.messages import Request
from megopt.live.modes_crossing import crossing_frame, received_crossing
from megopt.live.openapi import FRAMES, answers, takes_frame
from megopt.live.wire import Frame, FrameLimits
from megopt.ranges import require_whole, require_within

MAX_OPENING_BYTES = 1 << 16


@dataclass(slots=True, eq=False)
class _Session:
    request: Request
    run: Checkpoint
    told: Conditioning
    split: LayerSplit
    next_step: int = 0
    asked: bytes = b""
    answer: bytes = b""
    begun_s: float = field(default_factory=time.monotonic)
    used_s: float = field(default_factory=time.monotonic)


class LayerSessions:
    """The layer splits that are open at an edge; one step is computed at a time.

    Attributes:
        max_sessions: that may be open [1].
        idle_s: a session that nobody uses for so long is closed [s].
        limits: of a frame of activations.
    """

    def __init__(
        self, pipeline: Pipeline, *, max_sessions: int = 8, idle_s: float = 60.0, limits: FrameLimits | None = None
    ) -> None:
        require_whole("layer sessions", 1, max_sessions=max_sessions)
        require_within("layer sessions", 0.0, 3600.0, idle_s=idle_s)
        self.max_sessions, self.idle_s, self.limits = max_sessions, idle_s, limits or FrameLimits()
        self._pipeline, self._crc = pipeline, 0
        self._sessions: dict[str, _Session] = {}
        self._lock = threading.Lock()

    def open(self, payload: bytes) -> None:
        """Begin the run of a request frame.

        Raises:
            PayloadError: if it cannot be carried out, or too many sessions are open.
        """
        request = Request.of_frame(Frame.from_bytes(payload))
        with self._lock:
            now_s = time.monotonic()
            self._sessions = {k: v for k, v in self._sessions.items() if now_s - v.used_s <= self.idle_s}
            known = self._sessions.get(request.request_id)
            if known is not None and known.request == request:
                return
            if known is not None or len(self._sessions) >= self.max_sessions:
                message = (
                    f"layers: {len(self._sessions)} of {self.max_sessions} sessions are open, or the id is known for "
                    "another request; ask again later"
                )
                raise PayloadError(message)
            try:
                self._sessions[request.request_id] = self._begun(request)
            except PayloadError:
                raise
            except MegoptError as error:
                raise PayloadError(str(error)) from error

    def step(self, request_id: str, step: int, payload: bytes) -> bytes:
        """Return what the body makes of the activations of one step, as a frame.

        Raises:
            PayloadError: if the session is not open, the step is not its next or last one, the time is over, or the
                activations are not of the stated shapes.
        """
        digest = hashlib.sha256(payload).digest()
        with self._lock:
            session = self._sessions.get(request_id)
            if session is None:
                message = f"layers: no session {request_id[:40]!r}; open it with POST /v1/layers"
                raise PayloadError(message)
            session.used_s = time.monotonic()
            if step == session.next_step - 1 and digest == session.asked:
                return session.answer
            _check_turn(session, step)
            try:
                answer = self._computed(session, step, Frame.from_bytes(payload, self.limits)).to_bytes()
            except MegoptError as error:  # such as activations that no longer fit into 16 bits
                raise PayloadError(str(error)) from error
            session.next_step, session.asked, session.answer = step + 1, digest, answer
            return answer

    def close(self, request_id: str) -> bool:
        """Forget a session; return whether it was open."""
        with self._lock:
            return self._sessions.pop(request_id, None) is not None

    def _begun(self, request: Request) -> _Session:
        layers = request.decision.layers
        if layers is None or layers.is_whole:
            message = f"layers: mode {request.decision.mode} without a head; send it to POST /v1/requests"
            raise PayloadError(message)
        split = LayerSplit(self._pipeline, Body(first=layers.first, last=layers.last))
        self._crc = self._crc or denoiser_crc(self._pipeline)
        run = runs.begin(self._pipeline, request)
        problems = {
            "the device holds another denoiser": layers.model_crc != self._crc,
            "the device runs another schedule": schedule_crc(run) != request.schedule_crc,
        }
        found = [problem for problem, is_there in problems.items() if is_there]
        if found:
            message = f"layers: {'; '.join(found)}; head, body and tail must be of one model"
            raise PayloadError(message)
        return _Session(request=request, run=run, told=encode_run(self._pipeline, run), split=split)

    def _computed(self, session: _Session, step: int, frame: Frame) -> Frame:
        decision, split, told = session.request.decision, session.split, session.told
        begun_s = time.monotonic()
        shapes = split.shapes_up(_latent_shape(session.run))
        up = received_crossing(frame, shapes, 1 + told.is_guided, decision, like=session.run.latent)
        # the body reads no more of a run than its step and its schedule
        down = split.run_body(up, replace(session.run, step=step), told)
        answer = crossing_frame("noise" if split.gives_noise else "activations", step, down, decision)
        return replace(answer, fields={**answer.fields, "compute_s": time.monotonic() - begun_s})


def add_layer_routes(app: FastAPI, sessions: LayerSessions) -> None:
    """Add the calls of layer split to the application of an edge."""
    calls = _Calls(sessions)
    for path, call, method, said in (
        ("/v1/layers", calls.open, "POST", answers(204, None, 400) | takes_frame()),
        ("/v1/layers/{request_id}/{step}", calls.step, "POST", answers(200, FRAMES, 400) | takes_frame()),
        ("/v1/layers/{request_id}", calls.close, "DELETE", answers(204, None, 404)),
    ):
        app.add_api_route(path, call, methods=[method], response_class=Response, **said)


class _Calls:
    """What the routes call."""

    def __init__(self, sessions: LayerSessions) -> None:
        self._sessions = sessions

    async def open(self, request: HttpRequest) -> Response:
        """Begin the run of a request frame."""
        await asyncio.to_thread(self._sessions.open, await _body(request, MAX_OPENING_BYTES))
        return Response(status_code=204)

    async def step(self, request: HttpRequest, request_id: str, step: int) -> Response:
        """Answer the activations of one step."""
        content = await _body(request, self._sessions.limits.max_frame_bytes)
        return Response(await asyncio.to_thread(self._sessions.step, request_id, step, content), media_type=FRAMES)

    async def close(self, request_id: str) -> Response:
        """Forget a session."""
        if self._sessions.close(request_id):
            return Response(status_code=204)
        return JSONResponse({"error": "no such session, or one that is closed"}, 404)


async def _body(request: HttpRequest, most: int) -> bytes:
    """Return the body, refused as soon as it is too large."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > most:
            message = f"layers: a body of more than {most} B; send fewer bits a value, or cut elsewhere"
            raise PayloadError(message)
    return bytes(content)


def _check_turn(session: _Session, step: int) -> None:
    late = time.monotonic() > session.begun_s + session.request.deadline_s
    if late or step != session.next_step or step >= session.run.num_steps:
        message = (
            f"layers: step {step}{' after the deadline' if late else ''}; expected step {session.next_step} of "
            f"{session.run.num_steps}, in time; finish on the device"
        )
        raise PayloadError(message)


def _latent_shape(run: Checkpoint) -> Shape:
    _, channels, height, width = run.latent.shape
    return channels, height, width
