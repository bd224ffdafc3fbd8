"""Measured quality of split generation: every combination of steps, split, merging, codec, channel noise and scale.

    edge: steps 0..k of N -> merge r, pack q bits (or add noise) -> device: steps k..N, decode, upscale by s -> metrics

Images at scale s are made at 1 / s of the target side and upscaled. All are compared with what the edge model makes of
the same noise in the largest number of steps at the full side. k = 0 is the device alone, k = N the edge alone. A cell
is one (s, N, k); cells are independent, so a stopped measurement goes on with those that are left.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from megopt.diffusion import codec
from megopt.errors import ConfigError
from megopt.ranges import require_whole, require_whole_list, require_within
from megopt.tables.schema import UPSCALED_ROWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What is measured.

    Attributes:
        num_steps: step counts N.
        num_splits: how many split steps k > 0 per N, evenly spread up to N; fewer where N is smaller.
        merge_ratios: shares of tokens merged.
        codec_bits: bits per value.
        sr_scales: 1, 2, 4.
        snr_db: received SNR of analog hand-overs [dB]; measured without merging at scale 1.
        model_split_steps: more step counts, of runs that are the edge's alone, at scale 1: with the next line, the
            action space of MEG-CVPO.
        model_split_ratios: more merge ratios of these, and of the edge's other runs at scale 1, at 16 bit.
        num_images: captions per cell.
    """

    num_steps: tuple[int, ...] = (2, 4, 8, 12, 25)
    num_splits: int = 8
    merge_ratios: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)
    codec_bits: tuple[int, ...] = (16, 8, 4)
    sr_scales: tuple[int, ...] = (1, 2, 4)
    snr_db: tuple[float, ...] = (0.0, 5.0, 10.0, 20.0)
    model_split_steps: tuple[int, ...] = tuple(range(4, 13))
    model_split_ratios: tuple[float, ...] = tuple(tenth / 10 for tenth in range(10))
    num_images: int = 96

    def __post_init__(self) -> None:
        require_whole_list("quality grid", 1, num_steps=self.num_steps, codec_bits=self.codec_bits)
        require_whole("quality grid", 1, num_splits=self.num_splits)
        require_whole("quality grid", 2, num_images=self.num_images)
        require_within("quality grid", 0, 1, merge_ratios=self.merge_ratios, model_split_ratios=self.model_split_ratios)
        if self.model_split_steps:
            require_whole_list("quality grid", 1, model_split_steps=self.model_split_steps)
        require_within("quality grid", -50, 100, snr_db=self.snr_db)
        for name, allowed in (("codec_bits", codec.BITS), ("sr_scales", (1, 2, 4))):
            wrong = [value for value in getattr(self, name) if value not in allowed]
            if wrong:
                message = f"quality grid: {name} {wrong[0]} is not offered; expected values of {allowed}"
                raise ConfigError(message)

    def split_steps(self, num_steps: int) -> tuple[int, ...]:
        """Return the split steps k of runs of `num_steps`, 0 and `num_steps` among them."""
        spread = np.rint(np.linspace(0, num_steps, self.num_splits + 1)).astype(int)
        return tuple(int(k) for k in np.unique(spread))

    def cells(self) -> list[Cell]:
        """Return all cells, costly ones first."""
        split = [
            Cell(sr_scale=s, num_steps=n, split_step=k)
            for s, n in product(sorted(self.sr_scales), sorted(self.num_steps, reverse=True))
            for k in self.split_steps(n)
        ]
        more = sorted(set(self.model_split_steps) - set(self.num_steps))
        return split + [Cell(sr_scale=1, num_steps=n, split_step=n) for n in more]

    def handovers(self, cell: Cell) -> list[Handover]:
        """Return the ways of handing over that are measured in a cell; the device alone has one, nothing is sent."""
        if cell.split_step == 0:
            return [Handover()]
        is_full, is_edge_run = cell.sr_scale == 1, cell.split_step == cell.num_steps
        is_extra = is_full and is_edge_run and cell.num_steps in self.model_split_steps
        extra = [Handover(merge_ratio=r, codec_bits=16) for r in self.model_split_ratios] if is_extra else []
        if cell.num_steps not in self.num_steps:
            return extra
        packed = [Handover(merge_ratio=r, codec_bits=q) for r, q in product(self.merge_ratios, self.codec_bits)]
        noisy = [Handover(codec_bits=None, snr_db=snr) for snr in self.snr_db] if is_full else []
        return list(dict.fromkeys(packed + extra + noisy))


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Cell:
    """Images of one scale, step count and split step."""

    sr_scale: int
    num_steps: int
    split_step: int

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"scale{self.sr_scale}_steps{self.num_steps:03d}_split{self.split_step:03d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """How a latent crosses the link: merged and packed, or as it is through noise."""

    merge_ratio: float = 0.0
    codec_bits: int | None = 16
    snr_db: float | None = None


def row_knobs(cell: Cell, handover: Handover, kind: str) -> dict[str, Any]:
    """Return the knob cells of quality.csv; None is an empty cell.

    The rows are of step split; those of k = 0 and k = N serve device only, model split and edge only too.
    """
    is_packed = handover.snr_db is None
    return {
        "scheme": UPSCALED_ROWS[kind],
        "num_steps": cell.num_steps,
        "split_step": cell.split_step,
        "merge_ratio": handover.merge_ratio if is_packed else None,
        "sr_scale": cell.sr_scale,
        "codec_bits": handover.codec_bits,
        "region_ratio": None,
        "snr_db": handover.snr_db,
    }
