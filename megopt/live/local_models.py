"""What a device has of its own: a model, upscalers, and a meter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megopt.diffusion.bundled import load_upscaler
from megopt.diffusion.pipelines import Pipeline, load
from megopt.diffusion.super_resolution import Upscaler
from megopt.metering.energy import Meter
from megopt.torch_devices import set_threads

if TYPE_CHECKING:
    from megopt.metering.profile_request import SideRequest
    from megopt.schemes.action_table import ActionTable


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LocalModels:
    """The models of a device.

    Attributes:
        pipeline: a model of the edge's latent space.
        upscalers: light ones, by factor.
        kinds: others, by kind and factor.
        meter: of its joules.
    """

    pipeline: Pipeline
    upscalers: Mapping[int, Upscaler]
    kinds: Mapping[tuple[str, int], Upscaler]
    meter: Meter

    @classmethod
    def load(
        cls, side: SideRequest, table: ActionTable, sr_kind: str = "light", stated: tuple[str, int] | None = None
    ) -> LocalModels:
        """Load what the rows of `table` need, and let it use as many threads as `side` states.

        Args:
            side: the device.
            table: the rows.
            sr_kind: how rows that are enlarged are enlarged.
            stated: kind and factor of a decision that is no row; None without one.

        Raises:
            ConfigError: for threads, a device or a dtype that cannot be.
            PipelineError: if a model cannot be loaded.
        """
        set_threads("models", side.num_threads)
        wanted = {(sr_kind, scale) for scale in _scales(table)} | ({stated} if stated is not None else set())
        loaded = {(kind, scale): load_upscaler(kind, scale) for kind, scale in sorted(wanted) if scale > 1}
        return cls(
            pipeline=load(side.model, side.torch_device, side.dtype),
            upscalers={scale: one for (kind, scale), one in loaded.items() if kind == "light"},
            kinds={name: one for name, one in loaded.items() if name[0] != "light"},
            meter=side.meter().meter,
        )


def _scales(table: ActionTable) -> list[int]:
    """Return the upscaling factors above 1 of a table, rising."""
    names = [knob.name for knob in table.knobs]
    held = np.unique(table.settings[:, names.index("sr_scale")]) if "sr_scale" in names else np.empty(0)
    return [int(scale) for scale in held if scale > 1]
