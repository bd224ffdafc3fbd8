"""Runs and images as parts of a frame, and back: exact, or packed at 16, 8 or 4 bits with merged tokens.

The receiver has begun the same run itself, from the prompt and the seed, so only what the steps made is sent: the
latent, the solver's history, and the schedule where both ends would choose another. Sizes follow from the decision, and
a payload of another size is refused before it is decoded.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from megopt.diffusion import codec, merging
from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.codec import Latent
from megopt.errors import PayloadError
from megopt.live.decision import EXACT_BITS, Decision
from megopt.live.modes_runs import as_batch, region_of, with_noise, with_region
from megopt.live.tensors import tensors_of, tensors_part
from megopt.live.wire import Frame, Part
from megopt.metering.image_codecs import ImageCodec

Image = NDArray[np.uint8]
"""RGB image, shape (height, width, 3)."""


def schedule_crc(checkpoint: Checkpoint) -> int:
    """Return a checksum of the times and noise levels of a run."""
    values = [tensor.detach().cpu().double().numpy().tobytes() for tensor in _schedule(checkpoint).values()]
    return zlib.crc32(b"|".join(values))


def checkpoint_parts(checkpoint: Checkpoint, decision: Decision, receiver_crc: int) -> tuple[Part, ...]:
    """Return what a receiver needs that has begun the run of `checkpoint` itself.

    Args:
        checkpoint: of one image.
        decision: says how the latent is merged and packed.
        receiver_crc: `schedule_crc` of the receiver's own run.
    """
    if decision.codec_bits == EXACT_BITS:
        return (Part(name="run", encoding="checkpoint", payload=checkpoint.without_prompt().to_bytes()),)
    parts = [_packed(name, one_image(tensor), decision) for name, tensor in _moving(checkpoint)]
    if schedule_crc(checkpoint) != receiver_crc:
        schedule = {name: tensor.detach().cpu().numpy() for name, tensor in _schedule(checkpoint).items()}
        parts.append(tensors_part("schedule", schedule))
    return tuple(parts)


def received_checkpoint(frame: Frame, begun: Checkpoint, step: int, decision: Decision) -> Checkpoint:
    """Return the run that `frame` hands over; in region split and layer split, one that knows what came of it.

    Args:
        frame: holds the parts of `checkpoint_parts`, or the one of `share_part`.
        begun: the receiver's own run of the same request, at any step.
        step: steps that the sender states.
        decision: what the sender applied.

    Raises:
        PayloadError: if a part is missing, damaged, of another size, or of another run.
    """
    if not 0 <= step <= begun.num_steps:
        message = f"hand-over at step {step}: expected 0 to {begun.num_steps}; the sender ran something else"
        raise PayloadError(message)
    if decision.region is not None:
        region = region_of(decision.region, begun.resolution_px, begun.latent_space.scale_factor)
        known = received_share(frame, "region", (_shape_of(begun)[0], region.height, region.width), decision)
        return with_region(begun, decision.region, region, as_batch(known, begun.latent))
    if decision.layers is not None:
        noise = received_share(frame, "noise", _shape_of(begun), decision)
        return with_noise(begun, as_batch(noise, begun.latent), step)
    if decision.codec_bits == EXACT_BITS:
        return _exact(frame, begun, step)
    names = [part.name for part in frame.parts]
    num_past = sum(name.startswith("history.") for name in names)
    shape = _shape_of(begun)
    history = tuple(
        as_batch(_unpacked(frame, f"history.{index}", shape, decision), begun.latent) for index in range(num_past)
    )
    schedule = _received_schedule(frame, begun) if "schedule" in names else _schedule(begun)
    return replace(
        begun,
        latent=as_batch(_unpacked(frame, "latent", shape, decision), begun.latent),
        step=step,
        solver_history=history,
        timesteps=schedule["timesteps"],
        noise_levels=schedule["noise_levels"],
    )


def share_part(name: str, values: Latent, decision: Decision) -> Part:
    """Return a tensor that is no whole run as one part: a region, noise, or activations.

    Args:
        name: of the part.
        values: shape (channels, height, width).
        decision: says how it is merged and packed; at `EXACT_BITS` nothing is changed.
    """
    if decision.codec_bits == EXACT_BITS:
        return tensors_part(name, {"values": values})
    return _packed(name, values, decision)


def received_share(frame: Frame, name: str, shape: tuple[int, int, int], decision: Decision) -> Latent:
    """Return the tensor of a part of `share_part`, float32, shape `shape`.

    Raises:
        PayloadError: if the part is missing, damaged, of another size, or not finite.
    """
    if decision.codec_bits == EXACT_BITS:
        values: Latent = tensors_of(frame.part(name), {"values": ("float32", shape)})["values"]
    else:
        values = _unpacked(frame, name, shape, decision)
    if not np.isfinite(values).all():
        message = f"{name}: some values are not finite; the sender's model failed, finish without it"
        raise PayloadError(message)
    return values


def one_image(tensor: torch.Tensor) -> Latent:
    """Return the values of a batch of one, float32, shape (channels, height, width)."""
    assert len(tensor) == 1, "a hand-over is of one image"
    values: Latent = tensor.detach().float().cpu().numpy()[0]
    return values


def image_part(image: Image, decision: Decision) -> Part:
    """Return an image in the decision's format."""
    chosen = ImageCodec(codec=decision.image_codec, codec_quality=decision.image_quality or None)
    return Part(name="image", encoding=decision.image_codec, payload=chosen.encode(np.ascontiguousarray(image)))


def received_image(frame: Frame, decision: Decision, resolution_px: tuple[int, int]) -> Image:
    """Return the image of a frame, shape (height, width, 3).

    Args:
        frame: holds the part of `image_part`.
        decision: what the sender applied.
        resolution_px: height and width that were asked for [px]; others are refused before a pixel is decoded.

    Raises:
        PayloadError: if the part is missing, damaged, in another format or of another size.
    """
    part, shape = frame.part("image"), (*resolution_px, 3)
    if part.encoding != decision.image_codec:
        message = f"image as {part.encoding}: expected {decision.image_codec}; the sender applied another decision"
        raise PayloadError(message)
    if part.encoding == "raw":
        if len(part.payload) != np.prod(shape):
            message = f"raw image of {len(part.payload)} B: expected {np.prod(shape)} B; receive it again"
            raise PayloadError(message)
        return np.frombuffer(part.payload, dtype=np.uint8).reshape(shape)
    return _decoded(part, shape)


def _decoded(part: Part, shape: tuple[int, ...]) -> Image:
    from PIL import Image as PillowImage

    try:
        with PillowImage.open(io.BytesIO(part.payload), formats=[part.encoding.upper()]) as opened:
            if (*opened.size[::-1], len(opened.getbands())) != shape:
                message = f"image of {opened.size} px and {opened.mode}: expected {shape}; receive it again"
                raise PayloadError(message)
            return np.asarray(opened)
    except PayloadError:
        raise
    except (OSError, SyntaxError, ValueError, PillowImage.DecompressionBombError) as error:
        message = f"image as {part.encoding}: cannot be read ({error}); receive it again"
        raise PayloadError(message) from error


def _schedule(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {"timesteps": checkpoint.timesteps, "noise_levels": checkpoint.noise_levels}


def _moving(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what the steps of a run change."""
    yield "latent", checkpoint.latent
    for index, past in enumerate(checkpoint.solver_history):
        yield f"history.{index}", past


def _packed(name: str, values: Latent, decision: Decision) -> Part:
    if decision.merge_ratio == 0.0:
        return Part(name=name, encoding="latent", payload=codec.encode(values, decision.codec_bits))
    merged = merging.merge(values, decision.merge_ratio)
    return Part(name=name, encoding="merged", payload=merging.encode(merged, decision.codec_bits))


def _unpacked(frame: Frame, name: str, shape: tuple[int, int, int], decision: Decision) -> Latent:
    part = frame.part(name)
    if decision.merge_ratio == 0.0:
        encoding, expected = "latent", codec.payload_bytes(shape, decision.codec_bits)
    else:
        encoding = "merged"
        expected = merging.merged_payload_bytes(shape, decision.merge_ratio, decision.codec_bits)
    if part.encoding != encoding or len(part.payload) != expected:
        message = (
            f"{name} as {part.encoding} of {len(part.payload)} B: expected {encoding} of {expected} B; the sender "
            "applied another decision"
        )
        raise PayloadError(message)
    merged = encoding == "merged"
    values = merging.unmerge(merging.decode(part.payload)) if merged else codec.decode(part.payload)
    if values.shape != shape:
        message = f"{name} of shape {values.shape}: expected {shape}; the sender ran something else"
        raise PayloadError(message)
    return values


def _shape_of(begun: Checkpoint) -> tuple[int, int, int]:
    _, channels, height, width = begun.latent.shape
    return channels, height, width


def _received_schedule(frame: Frame, begun: Checkpoint) -> dict[str, torch.Tensor]:
    stated = {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in _schedule(begun).items()
    }
    found = tensors_of(frame.part("schedule"), stated)
    return {name: torch.from_numpy(array.copy()) for name, array in found.items()}


def _exact(frame: Frame, begun: Checkpoint, step: int) -> Checkpoint:
    try:
        sent = Checkpoint.from_bytes(frame.part("run").payload)
    except OverflowError as error:  # an infinite number where a whole one belongs
        message = f"checkpoint: a number that is none ({error}); the sender is no megopt encoder"
        raise PayloadError(message) from error
    same = ("num_steps", "sampler", "guidance_scale", "guidance_rescale", "seeds", "conditioning_hash")
    differing = [name for name in same if getattr(sent, name) != getattr(begun, name)]
    if sent.step != step or sent.latent.shape != begun.latent.shape or differing:
        came = f"step {sent.step}, latent {tuple(sent.latent.shape)}, other {', '.join(differing) or 'none'}"
        expected = f"step {step}, latent {tuple(begun.latent.shape)} of the same run"
        message = f"checkpoint: {came}; expected {expected}; the sender ran something else"
        raise PayloadError(message)
    return replace(sent, prompt=begun.prompt, negative_prompt=begun.negative_prompt)
