"""The images of split generation, cell by cell: models, hand-over through merging and codec or noise, upscaling.

Runs of the edge are shared by the cells of one scale and step count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from megopt.diffusion import codec, merging
from megopt.diffusion.conditioning import Conditioning, encode
from megopt.diffusion.evaluation import IMAGES_PER_BATCH, Sampling
from megopt.diffusion.pipelines import Pipeline
from megopt.diffusion.rendering import Images
from megopt.diffusion.sampling import advance, decode, start
from megopt.metering.quality_grid import Cell, Handover
from megopt.units import linear_from_db

if TYPE_CHECKING:
    from megopt.diffusion.checkpoint import Checkpoint


Upscalers: TypeAlias = Mapping[tuple[str, int], Callable[[Images], Images]]
"""Upscalers by kind and scale."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Models:
    """What makes the images.

    Attributes:
        edge: pipeline of the edge.
        device: pipeline of the device, of the same latent space.
        upscalers: by kind, a key of `schema.UPSCALERS`, and scale; light for every scale above 1.
        resolution_px: side of the target.
        sampling: how both sample.
    """

    edge: Pipeline
    device: Pipeline
    upscalers: Upscalers
    resolution_px: int
    sampling: Sampling


class Generator:
    """Makes the images of cells for fixed captions; runs of the edge are shared by the cells of a run."""

    def __init__(self, models: Models, captions: tuple[str, ...]) -> None:
        self._models, self._captions = models, captions
        self._run: tuple[int, int] = (0, 0)
        self._at: list[Checkpoint] = []
        self._told: dict[tuple[str, int, int], Conditioning] = {}

    def images(self, cell: Cell, handovers: list[Handover]) -> Iterator[tuple[Handover, str, Images]]:
        """Yield each hand-over and kind of super-resolution with its images.

        They are uint8, shape (num_images, resolution_px, resolution_px, 3). Kinds other than light are for the first
        hand-over alone: what merging and packing change is known from light ones.
        """
        checkpoints = self._edge_at(cell)
        for handover in handovers:
            parts = [
                self._finished(number, handed_over(checkpoint, handover, self._models.sampling.seed))
                for number, checkpoint in enumerate(checkpoints)
            ]
            made = np.concatenate(parts)
            for kind in self.kinds(cell, handover, handovers):
                yield handover, kind, made if cell.sr_scale == 1 else self._models.upscalers[kind, cell.sr_scale](made)

    def kinds(self, cell: Cell, handover: Handover, handovers: list[Handover]) -> list[str]:
        """Return the kinds of super-resolution that are measured of a hand-over."""
        if cell.sr_scale == 1 or handover != handovers[0]:
            return ["light"]
        return [kind for kind, scale in self._models.upscalers if scale == cell.sr_scale]

    def reference(self, num_steps: int) -> Images:
        """Return the images of the edge model alone at the full side."""
        whole = Cell(sr_scale=1, num_steps=num_steps, split_step=num_steps)
        return np.concatenate([decode(self._models.edge, checkpoint) for checkpoint in self._edge_at(whole)])

    def _edge_at(self, cell: Cell) -> list[Checkpoint]:
        """Return one checkpoint per batch after the edge's steps of a cell."""
        run = (cell.sr_scale, cell.num_steps)
        if run != self._run or self._at[0].step > cell.split_step:
            self._run, self._at = run, [self._begun(cell, part) for part in self._batches()]
        edge = self._models.edge
        self._at = [
            advance(edge, checkpoint, cell.split_step, self._conditioning("edge", number, checkpoint))
            for number, checkpoint in enumerate(self._at)
        ]
        return self._at

    def _batches(self) -> list[slice]:
        num = len(self._captions)
        return [slice(first, min(num, first + IMAGES_PER_BATCH)) for first in range(0, num, IMAGES_PER_BATCH)]

    def _begun(self, cell: Cell, part: slice) -> Checkpoint:
        sampling = self._models.sampling
        return start(
            self._models.edge,
            self._captions[part],
            num_steps=cell.num_steps,
            seed=range(sampling.seed + part.start, sampling.seed + part.stop),
            sampler=sampling.sampler,
            guidance_scale=sampling.guidance_scale,
            guidance_rescale=sampling.guidance_rescale,
            resolution_px=self._models.resolution_px // cell.sr_scale,
        )

    def _finished(self, number: int, checkpoint: Checkpoint) -> Images:
        device, told = self._models.device, self._conditioning("device", number, checkpoint)
        return decode(device, advance(device, checkpoint, checkpoint.num_steps, told))

    def _conditioning(self, side: str, number: int, checkpoint: Checkpoint) -> Conditioning:
        """Return the conditioning of a batch, encoded once."""
        key = side, number, checkpoint.resolution_px[0]
        if key not in self._told:
            assert checkpoint.prompt is not None
            self._told[key] = encode(
                getattr(self._models, side),
                checkpoint.prompt,
                guidance_scale=checkpoint.guidance_scale,
                resolution_px=checkpoint.resolution_px,
            )
        return self._told[key]


def handed_over(checkpoint: Checkpoint, handover: Handover, seed: int) -> Checkpoint:
    """Return the checkpoint as the other side receives it; at step 0 nothing but the seed is sent.

    Packed latents are really packed and unpacked. Noise has the power of the latent over the SNR; image i gets that of
    seed + i, whatever its neighbours.
    """
    import torch

    if checkpoint.step == 0:
        return checkpoint
    sent = checkpoint.latent.float().cpu().numpy()
    received = np.stack(
        [
            _received(latent, handover, np.random.default_rng((seed, own_seed)))
            for latent, own_seed in zip(sent, checkpoint.seeds, strict=True)
        ]
    )
    return replace(checkpoint, latent=torch.from_numpy(received).to(checkpoint.latent))


def _received(latent: codec.Latent, handover: Handover, rng: np.random.Generator) -> codec.Latent:
    if handover.snr_db is not None:
        deviation = np.sqrt(np.mean(np.square(latent)) / linear_from_db(handover.snr_db))
        return np.asarray(latent + deviation * rng.standard_normal(latent.shape), dtype=np.float32)
    assert handover.codec_bits is not None
    if handover.merge_ratio == 0.0:
        return codec.decode(codec.encode(latent, handover.codec_bits))
    merged = merging.merge(latent, handover.merge_ratio)
    return merging.unmerge(merging.decode(merging.encode(merged, handover.codec_bits)))
