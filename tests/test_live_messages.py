"""Records on the wire and hand-overs: round trip, what is refused, sizes, exactness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megopt.diffusion import codec, merging
from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.sampling import advance, start
from megopt.errors import ConfigError, PayloadError
from megopt.live.decision import Decision
from megopt.live.handover import checkpoint_parts, image_part, received_checkpoint, received_image, schedule_crc
from megopt.live.messages import Request, Result
from megopt.live.wire import Frame, Part

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SPLIT = Decision(mode="step_split", num_steps=4, split_step=2)
REQUEST = Request(
    request_id="0123456789abcdef" * 2,
    prompt="a red cube",
    negative_prompt=None,
    sampler="ddim",
    guidance_scale=3.0,
    seed=7,
    height_px=32,
    width_px=32,
    schedule_crc=1,
    checkpoint_every=0,
    deadline_s=5.0,
    decision=SPLIT,
)
any_value = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.just([])


@pytest.fixture(scope="module")
def run(load_tiny: Callable[[str], Any]) -> Checkpoint:
    """A run of the multistep solver at step 2 of 4, which has a history."""
    pipeline = load_tiny("sd")
    begun = start(pipeline, "a red cube", num_steps=4, seed=7, sampler="dpmpp_2m", guidance_scale=3.0)
    return advance(pipeline, begun, 2)


def begun(run: Checkpoint) -> Checkpoint:
    return replace(run, step=0, solver_history=(), latent=torch.zeros_like(run.latent))


def sent(run: Checkpoint, decision: Decision, crc: int | None = None) -> Frame:
    parts = checkpoint_parts(run, decision, schedule_crc(run) if crc is None else crc)
    return Frame.from_bytes(Frame(kind="result", parts=parts).to_bytes())


# --- records --------------------------------------------------------------------------------------------------------


def test_a_request_comes_back_as_it_was() -> None:
    assert Request.of_frame(Frame.from_bytes(REQUEST.frame().to_bytes())) == REQUEST


@pytest.mark.slow
@settings(max_examples=100)
@given(name=st.sampled_from(sorted(asdict(REQUEST))), value=any_value)
def test_any_value_in_a_request_is_read_or_refused(name: str, value: Any) -> None:
    try:
        found = Request.of_frame(Frame(kind="request", fields={**asdict(REQUEST), name: value}))
    except PayloadError:
        return
    assert getattr(found, name) == value


@settings(max_examples=100)
@given(name=st.sampled_from(sorted(asdict(SPLIT))), value=any_value)
def test_any_value_in_a_decision_is_read_or_refused(name: str, value: Any) -> None:
    fields = {**asdict(REQUEST), "decision": {**asdict(SPLIT), name: value}}
    try:
        found = Request.of_frame(Frame(kind="request", fields=fields))
    except PayloadError:
        return
    assert getattr(found.decision, name) == value


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"split_step": 4}, "split_step 4 of 4 steps"),
        ({"split_step": 0}, "split_step 0 of 4 steps"),
        ({"mode": "model_split"}, "split_step 2 of 4 steps"),
        ({"mode": "device_only"}, "split_step 2 of 4 steps"),
        ({"num_steps": 0}, "num_steps 0, not 1 to 1000"),
        ({"merge_ratio": float("nan")}, "merge_ratio nan"),
        ({"codec_bits": 12}, "codec_bits 12"),
        ({"codec_bits": 32, "merge_ratio": 0.5}, "merging at 32 bits"),
        ({"image_codec": "jpeg"}, "image_quality 0 for jpeg"),
        ({"image_quality": 90}, "image_quality 90 for png"),
        ({"sr_scale": 3}, "sr_scale 3"),
    ],
)
def test_impossible_decisions_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        replace(SPLIT, **changes)


def test_frames_of_another_kind_or_with_other_fields_are_refused() -> None:
    with pytest.raises(PayloadError, match="expected request"):
        Request.of_frame(Frame(kind="result", fields=asdict(REQUEST)))
    with pytest.raises(PayloadError, match="expected exactly request_id, step"):
        Result.of_frame(Frame(kind="result", fields={"step": 1}))


# --- hand-overs -----------------------------------------------------------------------------------------------------


def test_exact_hand_over_changes_nothing(run: Checkpoint) -> None:
    decision = replace(SPLIT, codec_bits=32)
    found = received_checkpoint(sent(run, decision), begun(run), 2, decision)
    assert torch.equal(found.latent, run.latent)
    assert torch.equal(found.solver_history[0], run.solver_history[0])
    assert found.prompt == run.prompt


@pytest.mark.parametrize("merge_ratio", [0.0, 0.5])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_packed_hand_over_is_what_the_codec_makes_of_it(run: Checkpoint, bits: int, merge_ratio: float) -> None:
    decision = replace(SPLIT, codec_bits=bits, merge_ratio=merge_ratio)
    frame = sent(run, decision)
    found = received_checkpoint(frame, begun(run), 2, decision)
    latent = run.latent[0].numpy()
    if merge_ratio:
        expected = merging.unmerge(merging.decode(merging.encode(merging.merge(latent, merge_ratio), bits)))
        size = merging.merged_payload_bytes((4, 8, 8), merge_ratio, bits)
    else:
        expected, size = codec.decode(codec.encode(latent, bits)), codec.payload_bytes((4, 8, 8), bits)
    assert np.array_equal(found.latent[0].numpy(), expected)
    assert len(frame.part("latent").payload) == size
    assert [part.name for part in frame.parts] == ["latent", "history.0"]
    assert torch.equal(found.timesteps, run.timesteps)


def test_a_schedule_that_differs_is_sent(run: Checkpoint) -> None:
    other = replace(begun(run), timesteps=run.timesteps + 1, noise_levels=run.noise_levels * 2)
    assert schedule_crc(other) != schedule_crc(run)
    found = received_checkpoint(sent(run, SPLIT, schedule_crc(other)), other, 2, SPLIT)
    assert torch.equal(found.timesteps, run.timesteps)
    assert torch.equal(found.noise_levels, run.noise_levels)


def test_hand_overs_of_another_decision_step_or_run_are_refused(run: Checkpoint) -> None:
    exact = replace(SPLIT, codec_bits=32)
    with pytest.raises(PayloadError, match="the sender applied another decision"):
        received_checkpoint(sent(run, SPLIT), begun(run), 2, replace(SPLIT, codec_bits=8))
    with pytest.raises(PayloadError, match="expected 0 to 4"):
        received_checkpoint(sent(run, SPLIT), begun(run), 5, SPLIT)
    with pytest.raises(PayloadError, match="expected step 3"):
        received_checkpoint(sent(run, exact), begun(run), 3, exact)
    with pytest.raises(PayloadError, match="other seeds"):
        received_checkpoint(sent(replace(run, seeds=(8,)), exact), begun(run), 2, exact)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_hand_overs_are_refused_or_of_the_right_size(run: Checkpoint, data: st.DataObject) -> None:
    decision = replace(SPLIT, codec_bits=data.draw(st.sampled_from([32, 8])), merge_ratio=0.0)
    frame = sent(run, decision)
    payload = bytearray(frame.parts[0].payload)
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = replace(frame, parts=(replace(frame.parts[0], payload=bytes(payload)), *frame.parts[1:]))
    with pytest.raises(PayloadError):
        received_checkpoint(damaged, begun(run), 2, decision)


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["raw", "png", "jpeg", "webp"])
def test_images_come_back(name: str) -> None:
    image = np.full((16, 24, 3), 90, dtype=np.uint8)
    quality = 0 if name in ("raw", "png") else 90
    decision = replace(SPLIT, image_codec=name, image_quality=quality)
    frame = Frame(kind="result", parts=(image_part(image, decision),))
    found = received_image(frame, decision, (16, 24))
    assert np.abs(found.astype(int) - image).max() <= (0 if name in ("raw", "png") else 3)
    with pytest.raises(PayloadError, match=r"image of"):
        received_image(frame, decision, (24, 16) if name != "raw" else (24, 24))


@settings(max_examples=60)
@given(payload=st.binary(max_size=60), name=st.sampled_from(["png", "jpeg", "webp", "raw"]))
def test_bytes_that_are_no_image_are_refused(payload: bytes, name: str) -> None:
    decision = replace(SPLIT, image_codec=name, image_quality=0 if name in ("raw", "png") else 90)
    frame = Frame(kind="result", parts=(Part(name="image", encoding=name, payload=payload),))
    with pytest.raises(PayloadError):
        received_image(frame, decision, (8, 8))
