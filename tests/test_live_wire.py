"""Frames: round trip, damage, headers that lie, streams; nothing but PayloadError, and no large allocation."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megopt.errors import ConfigError, PayloadError
from megopt.live.tensors import tensors_of, tensors_part
from megopt.live.wire import (
    CHECKSUM,
    ENCODINGS,
    MAGIC,
    PROLOGUE,
    PROTOCOL_VERSION,
    Frame,
    FrameLimits,
    FrameReader,
    Part,
    stated_bytes,
)

SMALL = FrameLimits(max_header_bytes=1 << 12, max_body_bytes=1 << 14)
words = st.from_regex(r"\A[a-z][a-z0-9_.]{0,10}\Z")
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=10,
)
parts = st.lists(
    st.builds(Part, name=words, encoding=st.sampled_from(sorted(ENCODINGS)), payload=st.binary(max_size=60)),
    max_size=4,
    unique_by=lambda part: part.name,
)
frames = st.builds(
    Frame, kind=words, fields=st.dictionaries(st.text(max_size=8), plain, max_size=4), parts=parts.map(tuple)
)


def sealed(text: bytes, body: bytes = b"", version: int = PROTOCOL_VERSION) -> bytes:
    """A frame with right sizes and checksum around any header."""
    frame = PROLOGUE.pack(MAGIC, version, len(text), len(body)) + text + body
    return frame + CHECKSUM.pack(zlib.crc32(frame))


def example() -> Frame:
    return Frame(
        kind="result",
        fields={"step": 3, "edge_s": 0.25, "prompt": "ein roter Würfel"},
        parts=(
            Part(name="latent.0", encoding="latent", payload=bytes(range(50))),
            tensors_part("schedule", {"timesteps": np.arange(8)}),
        ),
    )


# --- round trip -----------------------------------------------------------------------------------------------------


@given(frame=frames)
def test_round_trip(frame: Frame) -> None:
    payload = frame.to_bytes()
    assert Frame.from_bytes(payload) == frame
    assert stated_bytes(payload[: PROLOGUE.size]) == len(payload)


def test_known_bytes() -> None:
    text = b'{"fields":{"a":1},"kind":"hello","parts":[["x","raw",2]]}'
    expected = b"MEGW\x01" + len(text).to_bytes(4, "little") + (2).to_bytes(8, "little") + text + b"\x07\x09"
    frame = Frame(kind="hello", fields={"a": 1}, parts=(Part(name="x", encoding="raw", payload=b"\x07\x09"),))
    assert frame.to_bytes() == expected + zlib.crc32(expected).to_bytes(4, "little")


@given(sent=st.lists(frames, min_size=1, max_size=3), cuts=st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_a_stream_gives_the_same_frames_however_it_is_cut(sent: list[Frame], cuts: list[int]) -> None:
    stream = b"".join(frame.to_bytes() for frame in sent)
    reader, received, at = FrameReader(), [], 0
    while at < len(stream):
        size = cuts[len(received) % len(cuts)] + at % 7
        received += reader.feed(stream[at : at + size])
        at += size
    assert received == sent
    assert reader.is_empty


def test_a_stream_that_ends_within_a_frame_is_not_empty() -> None:
    reader = FrameReader()
    assert reader.feed(example().to_bytes()[:-1]) == []
    assert not reader.is_empty


# --- damage ---------------------------------------------------------------------------------------------------------


@given(frame=frames, data=st.data())
def test_a_truncated_frame_is_refused(frame: Frame, data: st.DataObject) -> None:
    payload = frame.to_bytes()
    kept = data.draw(st.integers(0, len(payload) - 1))
    with pytest.raises(PayloadError):
        Frame.from_bytes(payload[:kept])


@given(frame=frames, data=st.data())
def test_a_flipped_bit_is_refused(frame: Frame, data: st.DataObject) -> None:
    payload = bytearray(frame.to_bytes())
    bit = data.draw(st.integers(0, 8 * len(payload) - 1))
    payload[bit // 8] ^= 1 << bit % 8
    with pytest.raises(PayloadError):
        Frame.from_bytes(bytes(payload))


@given(frame=frames, tail=st.binary(min_size=1, max_size=20))
def test_bytes_after_the_frame_are_refused(frame: Frame, tail: bytes) -> None:
    with pytest.raises(PayloadError):
        Frame.from_bytes(frame.to_bytes() + tail)


@settings(max_examples=100)
@given(payload=st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(payload: bytes) -> None:
    with pytest.raises(PayloadError):
        Frame.from_bytes(payload)


@settings(max_examples=100)
@given(text=st.binary(max_size=80) | plain.map(lambda value: json.dumps(value).encode()), body=st.binary(max_size=20))
def test_any_header_under_a_right_checksum_is_refused(text: bytes, body: bytes) -> None:
    with pytest.raises(PayloadError):
        Frame.from_bytes(sealed(text, body))


@pytest.mark.slow
@settings(max_examples=100)
@given(kind=plain, fields=plain, stated=plain | st.lists(st.lists(plain, max_size=4), max_size=3))
def test_lying_headers_are_refused(kind: Any, fields: Any, stated: Any) -> None:
    assume(not (isinstance(fields, dict) and isinstance(kind, str)) or stated != [])
    text = json.dumps({"kind": kind, "fields": fields, "parts": stated}).encode()
    with pytest.raises(PayloadError):
        Frame.from_bytes(sealed(text, b"xy"))


@pytest.mark.parametrize(
    "text",
    [
        b'{"fields":{"a":NaN},"kind":"k","parts":[]}',
        b'{"fields":{"a":-Infinity},"kind":"k","parts":[]}',
        b'{"fields":{"a":1,"a":2},"kind":"k","parts":[]}',
        b'{"fields":{},"kind":"k","parts":[],"more":1}',
        b'{"fields":{},"kind":"K","parts":[]}',
        b'{"fields":{},"kind":"../k","parts":[]}',
        b'{"fields":{},"kind":"k","parts":[["x","pickle",0]]}',
        b'{"fields":{},"kind":"k","parts":[["x","raw",-1]]}',
        b'{"fields":{},"kind":"k","parts":[["x","raw",true]]}',
        b'{"fields":{},"kind":"k","parts":[["x","raw",0],["x","raw",0]]}',
        b'{"fields":{},"kind":"k","parts":[["x","raw",9223372036854775808]]}',
        b"[" * 50_000,
        b'{"fields":' + b"9" * 5000 + b"}",
    ],
    ids=range(13),
)
def test_headers_of_no_encoder_are_refused(text: bytes) -> None:
    with pytest.raises(PayloadError):
        Frame.from_bytes(sealed(text))


@pytest.mark.parametrize(("header_bytes", "body_bytes"), [(2**32 - 1, 0), (10, 2**64 - 1), (1 << 30, 1 << 30)])
def test_huge_sizes_are_refused_at_the_prologue_without_holding_them(header_bytes: int, body_bytes: int) -> None:
    prologue = PROLOGUE.pack(MAGIC, PROTOCOL_VERSION, header_bytes, body_bytes)
    reader = FrameReader(SMALL)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError, match="it states a header of"):
            reader.feed(prologue)
        with pytest.raises(PayloadError, match="expected at most"):
            Frame.from_bytes(prologue, SMALL)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@settings(max_examples=100)
@given(noise=st.binary(min_size=1, max_size=200), at=st.integers(0, 200))
def test_no_payload_allocates_more_than_a_few_times_its_size(noise: bytes, at: int) -> None:
    payload = bytearray(example().to_bytes())
    payload[at : at + len(noise)] = noise
    frame = bytes(payload[:-4]) + CHECKSUM.pack(zlib.crc32(bytes(payload[:-4])))
    tracemalloc.start()
    try:
        with contextlib.suppress(PayloadError):
            Frame.from_bytes(frame)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 16


def test_ten_thousand_damaged_frames_are_refused() -> None:
    rng, good = np.random.default_rng(0), example().to_bytes()
    for _ in range(10_000):
        payload = bytearray(good)
        at, size = int(rng.integers(len(good))), int(rng.integers(1, 40))
        way = rng.integers(4)
        if way == 0:  # truncated
            del payload[at:]
        elif way == 1:  # overwritten
            payload[at : at + size] = rng.bytes(size)
        elif way == 2:  # duplicated
            payload[at:at] = payload[at : at + size]
        else:  # header overwritten under a right checksum
            at = PROLOGUE.size + at % (len(good) - PROLOGUE.size - CHECKSUM.size)
            payload[at] = int(rng.integers(256))
            payload[-4:] = CHECKSUM.pack(zlib.crc32(bytes(payload[:-4])))
        if bytes(payload) == good:
            continue
        with contextlib.suppress(
            PayloadError
        ):  # a changed text under a right checksum is another frame, and a good one
            Frame.from_bytes(bytes(payload))
            assert way == 3


def test_another_version_is_named() -> None:
    with pytest.raises(PayloadError, match="version 2; expected b'MEGW', version 1; both ends must speak"):
        Frame.from_bytes(sealed(b"{}", version=2))


def test_fields_that_are_no_plain_data_do_not_leave() -> None:
    for value in (float("nan"), object(), b"bytes"):
        with pytest.raises(PayloadError, match="no plain data"):
            Frame(kind="k", fields={"a": value}).to_bytes()


def test_a_missing_part_is_named() -> None:
    with pytest.raises(PayloadError, match=r"no part 'image'; it holds latent\.0, schedule"):
        example().part("image")


def test_limits_are_whole_positive_numbers() -> None:
    with pytest.raises(ConfigError, match="max_body_bytes is 0"):
        FrameLimits(max_body_bytes=0)


# --- tensors --------------------------------------------------------------------------------------------------------


def test_tensors_come_back_with_dtype_and_shape() -> None:
    sent = {"a": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3), "b": np.arange(4)}
    found = tensors_of(tensors_part("t", sent), {"a": ("float32", (2, 3)), "b": ("int64", (4,))})
    assert all(np.array_equal(found[name], sent[name]) for name in sent)


@pytest.mark.parametrize("expected", [("float32", (3, 2)), ("float64", (2, 3)), ("int32", (6,)), ("float32", (2, 300))])
def test_other_tensors_are_refused(expected: tuple[str, tuple[int, ...]]) -> None:
    part = tensors_part("t", {"a": np.zeros((2, 3), dtype=np.float32)})
    with pytest.raises(PayloadError, match="part t"):
        tensors_of(part, {"a": expected})


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_tensors_are_refused_or_of_the_expected_size(data: st.DataObject) -> None:
    payload = bytearray(tensors_part("t", {"a": np.zeros(8, dtype=np.float32)}).payload)
    at = data.draw(st.integers(0, len(payload) - 1))
    payload[at] = data.draw(st.integers(0, 255))
    try:
        found = tensors_of(Part(name="t", encoding="tensors", payload=bytes(payload)), {"a": ("float32", (8,))})
    except PayloadError:
        return
    assert found["a"].shape == (8,)
    assert found["a"].dtype == np.float32
