"""Layer split with a head on the device, over a real socket: exactness, bytes a step, lost sessions, foreign frames."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megopt.diffusion import codec
from megopt.diffusion.conditioning import encode_run
from megopt.diffusion.layer_pieces import Body, denoiser_crc
from megopt.diffusion.layers import LayerSplit
from megopt.diffusion.sampling import decode
from megopt.errors import PayloadError
from megopt.live import runs
from megopt.live.handover import schedule_crc
from megopt.live.modes_crossing import crossing_frame, received_crossing
from megopt.live.modes_layers import LayerSessions
from megopt.live.modes_shares import LayerShare
from megopt.live.wire import Frame
from tests import live_modes
from tests.live_modes import (
    INNER,
    NOISE,
    Edge,
    device_of,
    made,
    request_of,
    unsplit,
)

pipelines, edge = live_modes.pipelines, live_modes.edge
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


# --- layer split, head on the device --------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [INNER, Body(first="mid_block"), Body(last="down_blocks.0", first="down_blocks.0")])
@pytest.mark.parametrize("bits", [32, 8])
def test_head_body_and_tail_over_the_socket(edge: Edge, pipelines: dict[str, Any], body: Body, bits: int) -> None:
    device = device_of(pipelines["sd"])
    found = made(device, replace(NOISE, codec_bits=bits, layers=device.layers(body)), edge)
    assert found.notes == ()
    exact = decode(pipelines["sd"], unsplit(pipelines["sd"], NOISE))[0]
    assert np.array_equal(found.image, exact) == (bits == 32)
    assert [one.step for one in found.crossed] == [1, 2, 3, 4]
    assert min(one.edge_s for one in found.crossed) > 0.0
    if bits == 8:
        split = LayerSplit(pipelines["sd"], body)
        up = sum(codec.payload_bytes((2 * c, h, w), 8) for c, h, w in split.shapes_up((4, 8, 8)))
        batch = 1 if split.gives_noise else 2
        down = sum(codec.payload_bytes((batch * c, h, w), 8) for c, h, w in split.shapes_down((4, 8, 8)))
        assert {(one.up_bytes, one.down_bytes) for one in found.crossed} == {(up, down)}


def test_a_session_lost_on_the_way_is_finished_alone(
    edge: Edge, pipelines: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = device_of(pipelines["sd"])
    step = edge.sessions.step

    def lossy(request_id: str, number: int, payload: bytes) -> bytes:
        if number == 2:
            edge.sessions.close(request_id)
        return step(request_id, number, payload)

    monkeypatch.setattr(edge.sessions, "step", lossy)
    found = made(device, replace(NOISE, layers=device.layers(INNER)), edge)
    assert "no session" in found.notes[0]
    assert found.notes[-1] == "finished alone from step 2"
    assert np.array_equal(found.image, decode(pipelines["sd"], unsplit(pipelines["sd"], NOISE))[0])


def test_a_step_sent_again_is_computed_once_and_others_are_refused(pipelines: dict[str, Any]) -> None:
    pipeline, sessions = pipelines["sd"], LayerSessions(pipelines["sd"], max_sessions=1)
    crc = denoiser_crc(pipeline)
    decision = replace(NOISE, layers=LayerShare(first=INNER.first, last=INNER.last, model_crc=crc))
    run = runs.begin(pipeline, request_of(decision))
    request = request_of(decision, schedule_crc=schedule_crc(run))
    sessions.open(request.frame().to_bytes())
    sessions.open(request.frame().to_bytes())
    split, told = LayerSplit(pipeline, INNER), encode_run(pipeline, run)
    up, _ = split.head(run, told)
    payload = crossing_frame("activations", 0, up, decision).to_bytes()
    answer = sessions.step(request.request_id, 0, payload)
    assert sessions.step(request.request_id, 0, payload) is answer
    down = received_crossing(Frame.from_bytes(answer), split.shapes_down((4, 8, 8)), 2, decision, run.latent)
    assert torch.equal(down.hidden, split.run_body(up, run, told).hidden)
    with pytest.raises(PayloadError, match="step 3; expected step 1 of 4"):
        sessions.step(request.request_id, 3, payload)
    with pytest.raises(PayloadError, match="expected 1; both ends must cut at the same layers"):
        sessions.step(request.request_id, 1, Frame(kind="activations").to_bytes())
    too_small = crossing_frame("activations", 1, replace(up, hidden=up.hidden[:1]), decision)
    with pytest.raises(PayloadError, match="expected tensors of about"):
        sessions.step(request.request_id, 1, too_small.to_bytes())
    with pytest.raises(PayloadError, match="1 of 1 sessions are open"):
        sessions.open(replace(request, request_id="1" * 32).frame().to_bytes())
    broken = crossing_frame("activations", 1, replace(up, hidden=up.hidden * torch.nan), decision)
    with pytest.raises(PayloadError, match="some values are not finite"):
        sessions.step(request.request_id, 1, broken.to_bytes())
    assert sessions.close(request.request_id)
    with pytest.raises(PayloadError, match="no session"):
        sessions.step(request.request_id, 1, payload)
    for changed, text in (
        (replace(request, schedule_crc=1), "another schedule"),
        (
            replace(request, decision=replace(decision, layers=replace(decision.layers, model_crc=1))),
            "another denoiser",
        ),
        (replace(request, decision=NOISE), "send it to POST /v1/requests"),
        (replace(request, decision=replace(decision, layers=LayerShare(first="down_blocks.9"))), "no layer"),
    ):
        with pytest.raises(PayloadError, match=text):
            sessions.open(changed.frame().to_bytes())


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_are_answered_or_refused(pipelines: dict[str, Any], data: st.DataObject) -> None:
    pipeline, sessions = pipelines["sd"], LayerSessions(pipelines["sd"])
    run = runs.begin(pipeline, request_of(NOISE))
    decision = replace(NOISE, codec_bits=8, layers=LayerShare(first="mid_block", last="mid_block", model_crc=1))
    sessions._crc = 1  # the checksum takes its time
    request = request_of(decision, schedule_crc=schedule_crc(run))
    sessions.open(request.frame().to_bytes())
    up, _ = LayerSplit(pipeline, Body(first="mid_block")).head(run, encode_run(pipeline, run))
    good = bytearray(crossing_frame("activations", 0, replace(up, skips=()), decision).to_bytes())
    good[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    for payload in (bytes(good), data.draw(st.binary(max_size=100))):
        with pytest.raises(PayloadError):
            sessions.step(request.request_id, 0, payload)
