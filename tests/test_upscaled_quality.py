from __future__ import annotations

from typing import Any

import numpy as np

from megopt.diffusion.evaluation import Sampling
from megopt.diffusion.hybrid_super_resolution import HybridUpscaler, Tiling
from megopt.diffusion.super_resolution import BicubicUpscaler
from megopt.metering.quality_generator import Generator, Models
from megopt.metering.quality_grid import Cell, Handover, row_knobs
from megopt.tables.schema import COMPONENTS, UPSCALED_ROWS, UPSCALERS

CAPTIONS = ("a red cube on grass", "a blue cat")
PLAIN, PACKED = Handover(), Handover(codec_bits=4)


def generator(load_tiny: Any) -> Generator:
    cubic = BicubicUpscaler(scale=2)
    tiled = HybridUpscaler(foreground=cubic, background=cubic, tiling=Tiling(patch_px=12, overlap_px=2, context_px=0))
    upscalers = {
        ("light", 2): cubic.upscale,
        ("hybrid", 2): tiled.upscale,
        ("light", 4): BicubicUpscaler(scale=4).upscale,
    }
    edge, device = load_tiny("sd"), load_tiny("sd_device")
    sampling = Sampling(guidance_scale=1.0, seed=3)
    models = Models(edge=edge, device=device, upscalers=upscalers, resolution_px=32, sampling=sampling)
    return Generator(models, CAPTIONS)


def test_other_kinds_are_measured_of_the_first_handover_where_there_are_any(load_tiny: Any) -> None:
    cell = Cell(sr_scale=2, num_steps=2, split_step=1)
    made = list(generator(load_tiny).images(cell, [PLAIN, PACKED]))
    assert [(handover, kind) for handover, kind, _ in made] == [(PLAIN, "light"), (PLAIN, "hybrid"), (PACKED, "light")]
    assert all(images.shape == (2, 32, 32, 3) for *_, images in made)
    # the same cubic filter, whole and in patches: equal but for patches' borders
    inner = np.abs(made[0][2].astype(int) - made[1][2])
    assert np.median(inner) == 0
    assert not np.array_equal(made[0][2], made[2][2])


def test_at_full_side_nothing_is_upscaled(load_tiny: Any) -> None:
    made = generator(load_tiny).images(Cell(sr_scale=1, num_steps=2, split_step=2), [PLAIN, PACKED])
    assert [kind for _, kind, _ in made] == ["light", "light"]
    quarter = generator(load_tiny).images(Cell(sr_scale=4, num_steps=2, split_step=2), [PLAIN])
    assert [kind for _, kind, _ in quarter] == ["light"]


def test_every_kind_has_rows_and_components() -> None:
    cell = Cell(sr_scale=2, num_steps=2, split_step=1)
    assert UPSCALERS.keys() == UPSCALED_ROWS.keys()
    assert len({row_knobs(cell, PLAIN, kind)["scheme"] for kind in UPSCALERS}) == len(UPSCALERS)
    assert all(f"{component}{scale}" in COMPONENTS for component in UPSCALERS.values() for scale in (2, 4))
