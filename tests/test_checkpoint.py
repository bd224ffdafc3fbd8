"""Checkpoints as bytes: round trip, damage, headers that lie."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megopt.diffusion.checkpoint import CHECKSUM, PROLOGUE, Checkpoint
from megopt.diffusion.conditioning import conditioning_hash
from megopt.diffusion.pipelines import LatentSpace
from megopt.errors import PayloadError

PROMPTS = ("a red cube", "a blue cat")
SPACE = LatentSpace(
    family="sd",
    channels=4,
    scale_factor=8,
    scaling_factor=0.18215,
    shift_factor=0.0,
    prediction_type="epsilon",
    noise_schedule="scaled_linear 0.00085..0.012, 1000 levels",
)


@pytest.fixture(scope="module")
def sent() -> bytes:
    """A run of DPM-Solver++ at step 3 of 5, with values of no meaning."""
    generator = torch.Generator().manual_seed(0)
    latent, earlier = torch.randn((2, 2, 4, 8, 8), generator=generator)
    return Checkpoint(
        latent=latent,
        step=3,
        num_steps=5,
        sampler="dpmpp_2m",
        timesteps=torch.tensor([999, 799, 599, 400, 200]),
        noise_levels=torch.tensor([14.6, 7.0, 3.2, 1.4, 0.6, 0.0]),
        solver_history=(earlier,),
        guidance_scale=4.0,
        conditioning_hash=conditioning_hash(PROMPTS, None),
        latent_space=SPACE,
        seeds=(3,),
        prompt=PROMPTS,
    ).to_bytes()


def framed(header: dict[str, Any], body: bytes) -> bytes:
    """A checkpoint frame with a valid checksum around any header."""
    text = json.dumps(header).encode()
    frame = PROLOGUE.pack(b"MEGC", 1, len(text), len(body)) + text + body
    return frame + CHECKSUM.pack(zlib.crc32(frame))


def opened(payload: bytes) -> tuple[dict[str, Any], bytes]:
    end = PROLOGUE.size + PROLOGUE.unpack_from(payload)[2]
    header: dict[str, Any] = json.loads(payload[PROLOGUE.size : end])
    return header, payload[end : -CHECKSUM.size]


def test_bytes_round_trip(sent: bytes) -> None:
    checkpoint = Checkpoint.from_bytes(sent)
    assert checkpoint.to_bytes() == sent
    assert checkpoint.prompt == PROMPTS
    assert (checkpoint.step, checkpoint.num_steps, checkpoint.resolution_px) == (3, 5, (64, 64))
    assert checkpoint.seeds == (3,)
    assert checkpoint.latent_space == SPACE
    num_values = checkpoint.latent.numel()
    assert len(sent) < 2 * 4 * num_values + 1500  # latent and one earlier output; the rest is small


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_are_refused(sent: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(sent) - 1))
    flipped = sent[:position] + bytes([sent[position] ^ data.draw(st.integers(1, 255))]) + sent[position + 1 :]
    for broken in (flipped, sent[:position], sent + b"\0"):
        with pytest.raises(PayloadError, match="checkpoint"):
            Checkpoint.from_bytes(broken)


@pytest.mark.parametrize(
    "change",
    [
        {"step": 6},
        {"step": -1},
        {"num_steps": "many"},
        {"num_steps": 10**9},
        {"seeds": [1, 2, 3]},
        {"seeds": None},
        {"prompt": ["only one"]},
        {"guidance_scale": float("nan")},
        {"guidance_rescale": 1.5},
        {"latent_space": {"family": "sd"}},
        {"tensors": {}},
        {"tensors": None},
        {"tensors": {"latent": ["float32", [1 << 40]]}},
        {"tensors": {"latent": ["object", [1]]}},
    ],
)
def test_wrong_headers_are_refused(sent: bytes, change: dict[str, Any]) -> None:
    header, body = opened(sent)
    with pytest.raises(PayloadError, match="checkpoint"):
        Checkpoint.from_bytes(framed(header | change, body))


def test_wrong_bodies_are_refused(sent: bytes) -> None:
    header, body = opened(sent)
    wrong_shape = header | {"tensors": header["tensors"] | {"latent": ["float32", [2, 4, 4, 16]]}}
    with pytest.raises(PayloadError, match="does not hold the tensors"):
        Checkpoint.from_bytes(framed(wrong_shape, body))
    too_large = header | {"tensors": header["tensors"] | {"latent": ["float32", [2, 4, 1 << 20, 1 << 20]]}}
    with pytest.raises(PayloadError, match=r"tensors .* in a body of"):
        Checkpoint.from_bytes(framed(too_large, body))
    with pytest.raises(PayloadError, match="cannot be read"):
        Checkpoint.from_bytes(framed(header, b"\xff" * len(body)))
    frame = PROLOGUE.pack(b"MEGC", 1, 1, 0) + b"{"
    with pytest.raises(PayloadError, match="not JSON"):
        Checkpoint.from_bytes(frame + CHECKSUM.pack(zlib.crc32(frame)))


def test_stated_sizes_are_checked_first() -> None:
    frame = PROLOGUE.pack(b"MEGC", 1, 10, 1 << 60)
    with pytest.raises(PayloadError, match="states a header of 10 B and a body of 1152921504606846976 B"):
        Checkpoint.from_bytes(frame + b"\0" * 100)
    with pytest.raises(PayloadError, match="version 9"):
        Checkpoint.from_bytes(struct.pack("<4sBIQ", b"MEGC", 9, 0, 0) + b"\0" * 4)
