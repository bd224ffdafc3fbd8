"""The one binary frame that edge and device exchange: a plain header, typed parts, a checksum. Nothing in it is run.

    frame = prologue | header (JSON) | parts, one after another | CRC-32

| part | bytes | content |
|---|---|---|
| prologue | 17 | magic "MEGW", protocol version u8, header bytes u32, body bytes u64, little-endian |
| header | stated | `{"kind": ..., "fields": {...}, "parts": [[name, encoding, bytes], ...]}` |
| parts | stated | the bytes of every part, each in one of `ENCODINGS` |
| checksum | 4 | CRC-32 of everything before it |

A reader knows from the prologue alone how much is to come, and refuses it before it holds it. Every part states how it
is encoded and how long it is; what it decodes to is checked against what the receiver expects by whoever decodes it.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from megopt.errors import PayloadError
from megopt.live.header import header_bytes, parsed_header
from megopt.ranges import require_whole

MAGIC = b"MEGW"
PROTOCOL_VERSION = 1
PROLOGUE = struct.Struct("<4sBIQ")
CHECKSUM = struct.Struct("<I")
MAX_NUM_PARTS = 64
ENCODINGS = MappingProxyType(
    {
        "checkpoint": "megopt.diffusion.checkpoint, every number as it is",
        "latent": "megopt.diffusion.codec, 16, 8 or 4 bits a value",
        "merged": "megopt.diffusion.merging, tokens merged and packed",
        "tensors": "safetensors",
        "raw": "pixels, uint8, row-major",
        "png": "image",
        "jpeg": "image",
        "webp": "image",
    }
)
_WORD = re.compile(r"[a-z][a-z0-9_.]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameLimits:
    """Most that a receiver is ready to hold of one frame.

    Attributes:
        max_header_bytes: of the header [B].
        max_body_bytes: of all parts together [B].
    """

    max_header_bytes: int = 1 << 16
    max_body_bytes: int = 1 << 26

    def __post_init__(self) -> None:
        require_whole("frame limits", 1, max_header_bytes=self.max_header_bytes, max_body_bytes=self.max_body_bytes)

    @property
    def max_frame_bytes(self) -> int:
        """Size of the largest frame [B]."""
        return PROLOGUE.size + self.max_header_bytes + self.max_body_bytes + CHECKSUM.size


DEFAULT_LIMITS = FrameLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One payload of a frame.

    Attributes:
        name: what it is, unique in its frame: lower case, digits, points and underscores.
        encoding: a key of `ENCODINGS`.
        payload: its bytes.
    """

    name: str
    encoding: str
    payload: bytes

    def __post_init__(self) -> None:
        if not _WORD.fullmatch(self.name) or self.encoding not in ENCODINGS:
            message = (
                f"frame part {self.name[:64]!r} as {self.encoding[:64]!r}: expected a lower-case name and one of "
                f"{', '.join(ENCODINGS)}; both ends must run the same megopt"
            )
            raise PayloadError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One message.

    Attributes:
        kind: what it says; lower case, digits, points and underscores.
        fields: plain data: numbers, texts, lists and mappings of them, null; no NaN and no infinity.
        parts: payloads with different names.
    """

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if not _WORD.fullmatch(self.kind) or len(set(names)) < len(names) or len(names) > MAX_NUM_PARTS:
            message = (
                f"frame of kind {self.kind[:64]!r} with {len(names)} parts: expected a lower-case kind and at most "
                f"{MAX_NUM_PARTS} parts of different names; the sender is no megopt encoder"
            )
            raise PayloadError(message)

    def part(self, name: str) -> Part:
        """Return the part `name`.

        Raises:
            PayloadError: if the frame holds none of that name.
        """
        for candidate in self.parts:
            if candidate.name == name:
                return candidate
        have = ", ".join(part.name for part in self.parts) or "none"
        message = f"frame {self.kind}: no part {name!r}; it holds {have}; both ends must run the same megopt"
        raise PayloadError(message)

    def to_bytes(self) -> bytes:
        """Return the frame as bytes; the same frame always gives the same bytes.

        Raises:
            PayloadError: for fields that are no plain data.
        """
        stated = [[part.name, part.encoding, len(part.payload)] for part in self.parts]
        text = header_bytes(self.kind, self.fields, stated)
        body = b"".join(part.payload for part in self.parts)
        frame = PROLOGUE.pack(MAGIC, PROTOCOL_VERSION, len(text), len(body)) + text + body
        return frame + CHECKSUM.pack(zlib.crc32(frame))

    @staticmethod
    def from_bytes(payload: bytes, limits: FrameLimits = DEFAULT_LIMITS) -> Frame:
        """Return the frame of `payload`.

        Raises:
            PayloadError: if the payload is truncated, damaged, too large, of another version, or its header states what
                it does not hold.
        """
        if len(payload) < PROLOGUE.size:
            message = f"frame of {len(payload)} B: shorter than its prologue of {PROLOGUE.size} B; receive it again"
            raise PayloadError(message)
        expected = stated_bytes(payload, limits)
        if len(payload) != expected:
            message = f"frame of {len(payload)} B: it states {expected} B; receive it again"
            raise PayloadError(message)
        if zlib.crc32(memoryview(payload)[: -CHECKSUM.size]) != CHECKSUM.unpack(payload[-CHECKSUM.size :])[0]:
            message = "frame: the checksum does not match; it was damaged on the way, receive it again"
            raise PayloadError(message)
        end = PROLOGUE.size + PROLOGUE.unpack_from(payload)[2]
        header = parsed_header(payload[PROLOGUE.size : end])
        parts = tuple(_cut(header["parts"], payload[end : -CHECKSUM.size]))
        return Frame(kind=header["kind"], fields=header["fields"], parts=parts)


class FrameReader:
    """Cuts a stream of bytes into frames and never holds more than one frame and what was fed with its end.

    Attributes:
        limits: of one frame.
    """

    def __init__(self, limits: FrameLimits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self._held = bytearray()

    @property
    def is_empty(self) -> bool:
        """Whether the stream is at the end of a frame."""
        return not self._held

    def feed(self, chunk: bytes) -> list[Frame]:
        """Return the frames that end in `chunk`.

        Raises:
            PayloadError: as `Frame.from_bytes`; a frame too large is refused at its first bytes.
        """
        self._held += chunk
        frames = []
        while len(self._held) >= PROLOGUE.size:
            num_bytes = stated_bytes(self._held, self.limits)
            if len(self._held) < num_bytes:
                break
            frames.append(Frame.from_bytes(bytes(self._held[:num_bytes]), self.limits))
            del self._held[:num_bytes]
        return frames


def stated_bytes(prologue: bytes | bytearray, limits: FrameLimits = DEFAULT_LIMITS) -> int:
    """Return the size of a whole frame [B] from its first bytes.

    Raises:
        PayloadError: for another format or version, or a frame beyond `limits`.
    """
    magic, version, header_bytes, body_bytes = PROLOGUE.unpack_from(prologue)
    if magic != MAGIC or version != PROTOCOL_VERSION:
        message = (
            f"frame: magic {magic!r}, version {version}; expected {MAGIC!r}, version {PROTOCOL_VERSION}; both ends "
            "must speak the same protocol version"
        )
        raise PayloadError(message)
    if header_bytes > limits.max_header_bytes or body_bytes > limits.max_body_bytes:
        message = (
            f"frame: it states a header of {header_bytes} B and a body of {body_bytes} B; expected at most "
            f"{limits.max_header_bytes} and {limits.max_body_bytes} B; send less, or raise the receiver's limit"
        )
        raise PayloadError(message)
    return int(PROLOGUE.size + header_bytes + body_bytes + CHECKSUM.size)


def _cut(stated: list[Any], body: bytes) -> Iterator[Part]:
    """Yield the parts that the header states; together they must be the body."""
    begin = 0
    if len(stated) > MAX_NUM_PARTS:
        message = f"frame: {len(stated)} parts; expected at most {MAX_NUM_PARTS}"
        raise PayloadError(message)
    for entry in stated:
        is_entry = isinstance(entry, list) and [type(item) for item in entry] == [str, str, int]
        if not is_entry or not 0 <= entry[2] <= len(body) - begin:
            message = (
                f"frame: a part is stated as {str(entry)[:80]}; expected name, encoding and bytes left in the body"
            )
            raise PayloadError(message)
        name, encoding, num_bytes = entry
        yield Part(name=name, encoding=encoding, payload=body[begin : begin + num_bytes])
        begin += num_bytes
    if begin != len(body):
        message = f"frame: the parts hold {begin} B of a body of {len(body)} B"
        raise PayloadError(message)
