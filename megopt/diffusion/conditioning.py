"""Prompts as the denoiser hears them: embeddings of all families in one record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.pipelines import Pipeline, family
from megopt.diffusion.placement import device_of
from megopt.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conditioning:
    """What the denoiser is told beside latent and time. With guidance the unconditional half comes first.

    Attributes:
        hash: `conditioning_hash` of the texts.
        is_guided: whether it holds both halves.
        text: text embeddings, shape (batch or 2 batch, tokens, width).
        pooled: pooled text embeddings, shape (batch or 2 batch, width); None for the sd family.
        sizes_px: SDXL's size conditioning, shape (batch or 2 batch, 6); None for the others.
    """

    hash: str
    is_guided: bool
    text: torch.Tensor
    pooled: torch.Tensor | None = None
    sizes_px: torch.Tensor | None = None


def encode(
    pipeline: Pipeline,
    prompt: str | Sequence[str],
    *,
    negative_prompt: str | Sequence[str] | None = None,
    guidance_scale: float,
    resolution_px: tuple[int, int],
) -> Conditioning:
    """Return the conditioning of one image per prompt.

    Args:
        pipeline: whose text encoders to use.
        prompt: one text, or one per image.
        negative_prompt: one text for all, or one per image; None for the pipeline's own empty conditioning.
        guidance_scale: weight of classifier-free guidance [1]; no guidance up to 1.
        resolution_px: height and width of the image [px].

    Raises:
        ConfigError: if there is no prompt, or the numbers of texts differ.
    """
    texts, negatives = checked_texts(prompt, negative_prompt)
    is_guided = guidance_scale > 1.0
    with torch.no_grad():
        text, pooled = _embeddings(pipeline, texts, negatives, is_guided=is_guided)
    height, width = resolution_px
    sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=text.dtype, device=text.device)
    return Conditioning(
        hash=conditioning_hash(texts, negatives),
        is_guided=is_guided,
        text=text,
        pooled=pooled,
        sizes_px=sizes.repeat(len(text), 1) if family(pipeline).name == "sdxl" else None,
    )


def encode_run(pipeline: Pipeline, run: Checkpoint) -> Conditioning:
    """Return what `pipeline` is told of the prompts of a run."""
    assert run.prompt is not None
    return encode(
        pipeline,
        run.prompt,
        negative_prompt=run.negative_prompt,
        guidance_scale=run.guidance_scale,
        resolution_px=run.resolution_px,
    )


def conditioning_hash(prompt: tuple[str, ...], negative_prompt: tuple[str, ...] | None) -> str:
    """Return a hash of the texts, equal on both ends whatever number format their text encoders run in."""
    return hashlib.sha256(json.dumps([prompt, negative_prompt], ensure_ascii=False).encode()).hexdigest()


def checked_texts(
    prompt: str | Sequence[str], negative_prompt: str | Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Return one prompt and, if there are any, one negative prompt per image.

    Raises:
        ConfigError: if there is no prompt, or the numbers of texts differ.
    """
    texts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    negatives = negative_prompt if negative_prompt is None else tuple(negative_prompt)
    if isinstance(negative_prompt, str):
        negatives = (negative_prompt,) * len(texts)
    if not texts or (negatives is not None and len(negatives) != len(texts)):
        num_negatives = "no" if negatives is None else len(negatives)
        message = (
            f"{len(texts)} prompts, {num_negatives} negative prompts: expected one or more, and as many negative ones"
        )
        raise ConfigError(message)
    return texts, negatives


def _embeddings(
    pipeline: Pipeline, texts: tuple[str, ...], negatives: tuple[str, ...] | None, *, is_guided: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return text and pooled embeddings; with guidance the unconditional ones come first."""
    arguments: dict[str, Any] = {
        "prompt": list(texts),
        "device": device_of(pipeline),
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": is_guided,
        "negative_prompt": None if negatives is None else list(negatives),
    }
    if family(pipeline).name == "sd3":
        arguments |= {"prompt_2": None, "prompt_3": None}
    # (text, unconditional text), and for two encoders (..., pooled, unconditional pooled)
    encoded = pipeline.encode_prompt(**arguments)
    halves = [encoded[index : index + 2] for index in range(0, len(encoded), 2)]
    joined = [torch.cat([without, given]) if is_guided else given for given, without in halves]
    return joined[0], joined[1] if len(joined) > 1 else None
