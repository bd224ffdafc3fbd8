"""What a device has of its own: a model, upscalers, and a meter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megopt.diffusion.bundled import load_upscaler
from megopt.diffusion.pipelines import Pipeline, load
from megopt.diffusion.super_resolution import Upscaler
from megopt.live.service import set_threads
from megopt.metering.energy import Meter

if TYPE_CHECKING:
    from megopt.metering.profiling import SideRequest
    from megopt.schemes.action_table import ActionTable


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LocalModels:
    """The models of a device.

    Attributes:
        pipeline: a model of the edge's latent space.
        upscalers: by factor.
        meter: of its joules.
    """

    pipeline: Pipeline
    upscalers: Mapping[int, Upscaler]
    meter: Meter

    @classmethod
    def load(cls, side: SideRequest, table: ActionTable) -> LocalModels:
        """Load what the rows of `table` need, and let it use as many threads as `side` states.

        Raises:
            PipelineError: if the model cannot be loaded.
        """
        set_threads(side.num_threads)
        return cls(
            pipeline=load(side.model, side.torch_device, side.dtype),
            upscalers={scale: load_upscaler("light", scale) for scale in _scales(table)},
            meter=side.meter().meter,
        )


def _scales(table: ActionTable) -> list[int]:
    """Return the upscaling factors above 1 of a table, rising."""
    names = [knob.name for knob in table.knobs]
    held = np.unique(table.settings[:, names.index("sr_scale")]) if "sr_scale" in names else np.empty(0)
    return [int(scale) for scale in held if scale > 1]
