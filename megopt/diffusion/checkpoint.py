"""A diffusion run at a step boundary: all that another process needs to go on, as a record and as bytes.

    frame = prologue | header (JSON) | body (safetensors) | CRC-32

| part | bytes | content |
|---|---|---|
| prologue | 17 | magic "MEGC", version u8, header bytes u32, body bytes u64, little-endian |
| header | stated | the scalar fields of `Checkpoint`, and dtype and shape of every tensor |
| body | stated | latent, timesteps, noise levels, solver history |
| checksum | 4 | CRC-32 of everything before it |

The header is plain data and the body holds tensors only: reading a checkpoint runs nothing that the sender wrote.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from megopt.diffusion.pipelines import LatentSpace
from megopt.errors import PayloadError

MAGIC = b"MEGC"
VERSION = 1
PROLOGUE = struct.Struct("<4sBIQ")
CHECKSUM = struct.Struct("<I")
MAX_HEADER_BYTES = 1 << 20
MAX_BODY_BYTES = 1 << 30
MAX_NUM_STEPS = 10_000
MAX_HISTORY = 3
"""Most earlier model outputs that a solver may ask for."""
BODY_OVERHEAD_BYTES = 4096
"""Most that safetensors' own header may add to the tensors."""
SCALARS = (
    "step",
    "num_steps",
    "sampler",
    "guidance_scale",
    "guidance_rescale",
    "seeds",
    "conditioning_hash",
    "prompt",
    "negative_prompt",
)
DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64)
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """A run of `num_steps` steps after `step` of them.

    Attributes:
        latent: shape (batch, channels, height, width), in the scaling of the sampler.
        step: steps done, 0..num_steps.
        num_steps: steps of the whole run.
        sampler: name in `megopt.diffusion.schedulers.SAMPLERS`.
        timesteps: model time of every step, shape (num_steps,).
        noise_levels: sigma before each step and after the last, shape (num_steps + 1,); (0,) if the sampler keeps none.
        solver_history: earlier model outputs that the next step asks for, each of the latent's shape. Leaving it out
            makes a multistep solver restart with one first-order step.
        guidance_scale: weight of classifier-free guidance [1]; no guidance up to 1.
        guidance_rescale: of `megopt.diffusion.guidance`, 0 to 1 [1].
        conditioning_hash: `megopt.diffusion.conditioning.conditioning_hash` of the prompts.
        latent_space: where the latent lives.
        seeds: of the initial noise: one for the whole batch, or one per image.
        prompt: one text per image; None if the receiver knows them.
        negative_prompt: one text per image; None for the model's own empty conditioning, or with an absent prompt.
    """

    latent: torch.Tensor
    step: int
    num_steps: int
    sampler: str
    timesteps: torch.Tensor
    noise_levels: torch.Tensor
    solver_history: tuple[torch.Tensor, ...] = ()
    guidance_scale: float
    guidance_rescale: float = 0.0
    conditioning_hash: str
    latent_space: LatentSpace
    seeds: tuple[int, ...]
    prompt: tuple[str, ...] | None = None
    negative_prompt: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check that the fields belong together."""
        problems = [problem for problem, is_there in self._problems().items() if is_there]
        if problems:
            message = f"checkpoint at step {self.step} of {self.num_steps}: {'; '.join(problems)}"
            raise PayloadError(message)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the latent."""
        return self.latent.dtype

    @property
    def resolution_px(self) -> tuple[int, int]:
        """Height and width of the image [px]."""
        height, width = self.latent.shape[2:]
        return height * self.latent_space.scale_factor, width * self.latent_space.scale_factor

    def without_prompt(self) -> Checkpoint:
        """Return the same checkpoint without its texts, for a receiver that has them."""
        return replace(self, prompt=None, negative_prompt=None)

    def to_bytes(self) -> bytes:
        """Return the checkpoint as bytes; the same checkpoint always gives the same bytes."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors().items()}
        header = {name: getattr(self, name) for name in SCALARS}
        header["latent_space"] = asdict(self.latent_space)
        header["tensors"] = {name: [_dtype_name(tensor), list(tensor.shape)] for name, tensor in tensors.items()}
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        body = safetensors.torch.save(tensors)
        frame = PROLOGUE.pack(MAGIC, VERSION, len(text), len(body)) + text + body
        return frame + CHECKSUM.pack(zlib.crc32(frame))

    @staticmethod
    def from_bytes(payload: bytes) -> Checkpoint:
        """Return the checkpoint of `payload`, on the CPU.

        Raises:
            PayloadError: if the payload is truncated, damaged, too large, of another version, or states impossible
                sizes. Sizes, shapes and dtypes are checked before any tensor is made.
        """
        header, body = _open_frame(payload)
        try:
            stated = {str(name): _stated(entry) for name, entry in header["tensors"].items()}
            _check_stated(stated, len(body))
            scalars = _scalars(header)
            tensors = safetensors.torch.load(body)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError, SafetensorError) as error:
            message = f"checkpoint: cannot be read ({type(error).__name__}: {error}); the sender is no megopt encoder"
            raise PayloadError(message) from error
        if {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} != stated:
            message = "checkpoint: the body does not hold the tensors that the header states"
            raise PayloadError(message)
        history = tuple(tensors[name] for name in _history_names(len(stated) - 3))
        return Checkpoint(
            latent=tensors["latent"],
            timesteps=tensors["timesteps"],
            noise_levels=tensors["noise_levels"],
            solver_history=history,
            **scalars,
        )

    def _tensors(self) -> dict[str, torch.Tensor]:
        history = dict(zip(_history_names(len(self.solver_history)), self.solver_history, strict=True))
        return {"latent": self.latent, "timesteps": self.timesteps, "noise_levels": self.noise_levels, **history}

    def _problems(self) -> dict[str, bool]:
        """Return every way in which the fields could not belong together, and whether it is the case."""
        shape = tuple(self.latent.shape)
        batch = shape[0] if shape else 0
        texts = [text for text in (self.prompt, self.negative_prompt) if text is not None]
        return {
            f"steps must be 0 <= step <= num_steps <= {MAX_NUM_STEPS}": not 0
            <= self.step
            <= self.num_steps
            <= MAX_NUM_STEPS,
            f"latent of shape {shape}; expected (batch, channels, height, width)": len(shape) != 4 or 0 in shape,
            f"latent of dtype {self.latent.dtype}; expected floating point": not self.latent.is_floating_point(),
            "the latent has not the channels of its space": len(shape) == 4 and shape[1] != self.latent_space.channels,
            f"{self.timesteps.shape} timesteps": tuple(self.timesteps.shape) != (self.num_steps,),
            f"{self.noise_levels.shape} noise levels": tuple(self.noise_levels.shape)
            not in {(0,), (self.num_steps + 1,)},
            "solver history of another shape than the latent": any(
                tuple(past.shape) != shape for past in self.solver_history
            ),
            f"more than {MAX_HISTORY} earlier model outputs": len(self.solver_history) > MAX_HISTORY,
            f"{len(self.seeds)} seeds for {batch} images; expected one, or one per image": len(self.seeds)
            not in {1, batch},
            f"not one prompt per image, for {batch} images": any(len(text) != batch for text in texts),
            "guidance_scale is not finite": not math.isfinite(self.guidance_scale),
            f"guidance_rescale {self.guidance_rescale}, not 0 to 1": not 0.0 <= self.guidance_rescale <= 1.0,
        }


def _open_frame(payload: bytes) -> tuple[dict[str, Any], bytes]:
    """Return header and body of a frame whose sizes, version and checksum are as they should be."""
    if len(payload) < PROLOGUE.size + CHECKSUM.size:
        message = f"checkpoint of {len(payload)} B: too short; receive it again"
        raise PayloadError(message)
    magic, version, header_bytes, body_bytes = PROLOGUE.unpack_from(payload)
    if magic != MAGIC or version != VERSION:
        message = f"checkpoint: magic {magic!r}, version {version}; expected {MAGIC!r}, version {VERSION}"
        raise PayloadError(message)
    expected = PROLOGUE.size + header_bytes + body_bytes + CHECKSUM.size
    if header_bytes > MAX_HEADER_BYTES or body_bytes > MAX_BODY_BYTES or len(payload) != expected:
        message = (
            f"checkpoint of {len(payload)} B: states a header of {header_bytes} B and a body of {body_bytes} B; "
            f"expected {expected} B, at most {MAX_HEADER_BYTES} and {MAX_BODY_BYTES} B"
        )
        raise PayloadError(message)
    if zlib.crc32(memoryview(payload)[: -CHECKSUM.size]) != CHECKSUM.unpack(payload[-CHECKSUM.size :])[0]:
        message = "checkpoint: the checksum does not match; it was damaged on the way, receive it again"
        raise PayloadError(message)
    end = PROLOGUE.size + header_bytes
    return _parsed(payload[PROLOGUE.size : end]), payload[end : -CHECKSUM.size]


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"checkpoint: the header is not JSON ({error})"
        raise PayloadError(message) from error
    if not isinstance(header, dict):
        message = "checkpoint: the header is not a JSON object"
        raise PayloadError(message)
    return header


def _scalars(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `Checkpoint` that are no tensors; the caller catches what a wrong header raises."""
    prompt, negative_prompt = header["prompt"], header["negative_prompt"]
    return {
        "step": int(header["step"]),
        "num_steps": int(header["num_steps"]),
        "sampler": str(header["sampler"]),
        "guidance_scale": float(header["guidance_scale"]),
        "guidance_rescale": float(header["guidance_rescale"]),
        "seeds": tuple(int(seed) for seed in header["seeds"]),
        "conditioning_hash": str(header["conditioning_hash"]),
        "prompt": None if prompt is None else tuple(str(text) for text in prompt),
        "negative_prompt": None if negative_prompt is None else tuple(str(text) for text in negative_prompt),
        "latent_space": LatentSpace(**header["latent_space"]),
    }


def _stated(entry: Any) -> tuple[torch.dtype, tuple[int, ...]]:
    name, shape = entry
    return DTYPES[name], tuple(int(side) for side in shape)


def _check_stated(stated: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], body_bytes: int) -> None:
    """Check names and sizes of the tensors against the size of the body that is to hold them."""
    expected = {"latent", "timesteps", "noise_levels", *_history_names(len(stated) - 3)}
    num_bytes = sum(dtype.itemsize * math.prod(shape) for dtype, shape in stated.values())
    is_possible = all(side >= 0 for _, shape in stated.values() for side in shape)
    if set(stated) != expected or not is_possible or not 0 <= body_bytes - num_bytes <= BODY_OVERHEAD_BYTES:
        message = f"tensors {sorted(stated)} of {num_bytes} B in a body of {body_bytes} B"
        raise ValueError(message)


def _history_names(num_outputs: int) -> list[str]:
    return [f"solver_history.{index}" for index in range(num_outputs)]


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
