"""What the user gets along a trade-off curve: images really made the way that the optimum chose, limit by limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megopt.analysis.contact_sheet import write_contact_sheet
from megopt.analysis.tradeoff import Sweep, Tradeoff
from megopt.schemes.action_table import ActionTable
from megopt.tables.profile import Profile

if TYPE_CHECKING:
    from megopt.diffusion.rendering import Images
    from megopt.metering.quality_generator import Generator
    from megopt.metering.quality_grid import Cell, Handover

NUM_ROWS, NUM_CAPTIONS = 7, 8
SEED = 3000
"""Of captions and noise; neither training nor measuring takes it."""
_UNITS = {"latency_s": "s", "energy_j": "J", "device_energy_j": "J", "edge_energy_j": "J"}


def can_be_drawn(profile: Profile) -> bool:
    """Return whether the models of a profile are the bundled ones, which any machine can run."""
    return set(profile.compute["model"]) == {"bundled/edge", "bundled/device"}


def save_curve_images(found: Tradeoff, table: ActionTable, profile: Profile, sweep: Sweep, path: Path) -> Path | None:
    """Write a contact sheet with a row per limit, of the configuration that most requests chose there.

    Limits whose choice repeats that of the limit before are left out, and then all but `NUM_ROWS`, evenly.

    Returns:
        The path; None where no limit can be kept.
    """
    chosen: dict[int, float] = {}
    for limit, solution in zip(found.limits, found.solutions, strict=True):
        rows = solution.rows[solution.is_feasible]
        if len(rows) and 2 * len(rows) >= len(solution.rows):
            chosen.setdefault(int(np.bincount(rows).argmax()), float(limit))
    return save_row_images(chosen, table, profile, sweep.quantity, [path])[0] if chosen else None


def save_row_images(
    chosen: Mapping[int, float], table: ActionTable, profile: Profile, quantity: str, paths: Sequence[Path]
) -> list[Path]:
    """Write a contact sheet with the images of some rows, at most `NUM_ROWS` of them, evenly.

    Args:
        chosen: the limit under which each row is chosen, by row of `table`.
        table: the rows.
        profile: whose models make the images, see `can_be_drawn`.
        quantity: the limited quantity.
        paths: of the PNG or PDF, or of both.
    """
    from megopt.diffusion.evaluation import truth

    picked = np.unique(np.linspace(0, len(chosen) - 1, NUM_ROWS).round().astype(int))
    told = truth(NUM_CAPTIONS, seed=SEED, split="unseen", resolution_px=profile.provenance.resolution_px)
    generator = _generator(profile, told.captions)
    shown = {
        f"≤ {limit:.3g} {_UNITS.get(quantity, '')}\n{table.label[row]}": _images(generator, table, row)
        for row, limit in (list(chosen.items())[number] for number in picked)
    }
    sheet = shown | {"real scene": told.images}
    return [write_contact_sheet(path, sheet, told.captions) for path in paths]


def _generator(profile: Profile, captions: tuple[str, ...]) -> Generator:
    from megopt.diffusion.bundled import load_upscaler
    from megopt.diffusion.evaluation import Sampling
    from megopt.diffusion.pipelines import load
    from megopt.metering.quality_generator import Generator, Models

    models = Models(
        edge=load("bundled/edge"),
        device=load("bundled/device"),
        upscalers={("light", scale): load_upscaler("light", scale).upscale for scale in (2, 4)},
        resolution_px=profile.provenance.resolution_px,
        sampling=Sampling(seed=SEED),
    )
    return Generator(models, captions)


def _images(generator: Generator, table: ActionTable, row: int) -> Images:
    cell, handover = _made_as(table, row)
    return next(images for _, _, images in generator.images(cell, [handover]))


def _made_as(table: ActionTable, row: int) -> tuple[Cell, Handover]:
    """Return how the images of a row are made; a row without a split sends nothing, or all steps are the edge's."""
    from megopt.metering.quality_grid import Cell, Handover

    knobs = {knob.name: table.settings[row, number] for number, knob in enumerate(table.knobs)}
    num_steps = int(knobs["num_steps"])
    split_step = knobs.get("split_step", np.nan)
    if np.isnan(split_step):
        split_step = num_steps if table.work.downlink_bits[row] > 0 else 0
    return (
        Cell(sr_scale=int(knobs["sr_scale"]), num_steps=num_steps, split_step=int(split_step)),
        Handover(merge_ratio=float(knobs["merge_ratio"]), codec_bits=int(knobs["codec_bits"])),
    )
