"""Time and energy of rows, put together from the components that a profile times at the rows' resolution.

    edge run, latent sent    t_text + N t_step              where text_encoder is not timed: pipeline_overhead
    edge run, image made     t_overhead + N t_step          where pipeline_overhead is not: text_encoder + vae_decode
    device run               t_text + N t_step + t_decode
    upscaling by s > 1       the component of `UPSCALERS` for s, at the full resolution

All but the upscaling is generation: a row with the factor s is generated at 1/s of the full side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megopt.arrays import BoolArray, FloatArray
from megopt.errors import SchemeError
from megopt.schemes.scheme import require
from megopt.system.compute import step_latency_s
from megopt.tables.profile import Side, join_kinds
from megopt.tables.schema import UPSCALERS

if TYPE_CHECKING:
    from megopt.tables.profile import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCosts:
    """What a piece of the work costs in each row.

    Attributes:
        latency_s: time [s], shape (num_rows,).
        energy_j: energy [J], shape (num_rows,); NaN where it was not measured.
        kind: provenance kinds behind them.
    """

    latency_s: FloatArray
    energy_j: FloatArray
    kind: str

    def __add__(self, other: RowCosts) -> RowCosts:
        """Return one piece after the other."""
        return RowCosts(
            latency_s=self.latency_s + other.latency_s,
            energy_j=self.energy_j + other.energy_j,
            kind=join_kinds(self.kind, other.kind),
        )

    def repeated(self, num_times: FloatArray) -> RowCosts:
        """Return the piece `num_times` over, shape (num_rows,)."""
        return RowCosts(
            latency_s=step_latency_s(num_times, step_s=self.latency_s),
            energy_j=num_times * self.energy_j,
            kind=self.kind,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCoster:
    """Looks the components of rows up.

    Attributes:
        profile: the measured tables.
        scheme: name of the scheme, for messages.
        sr_scale: upscaling factor s of each row, shape (num_rows,).
    """

    profile: Profile
    scheme: str
    sr_scale: FloatArray

    def of(self, side: Side, component: str, is_charged: BoolArray | None = None) -> RowCosts:
        """Return the cost of one component at the side that each row is generated at.

        Args:
            side: "edge" or "device".
            component: a key of `schema.COMPONENTS`.
            is_charged: rows that need it, shape (num_rows,); None for all. The others cost nothing.

        Raises:
            NotOfferedError: if the profile does not time it there.
        """
        charged = np.ones(len(self.sr_scale), dtype=np.bool_) if is_charged is None else is_charged
        pieces = [
            (charged & (self.sr_scale == scale), component, generation_px(self.profile, scale))
            for scale in np.unique(self.sr_scale[charged])
        ]
        return self._gathered(side, pieces)

    def upscaling(self, sr_kind: str) -> RowCosts:
        """Return what the device pays to bring its image to the full side.

        Raises:
            NotOfferedError: if the profile does not time that factor.
        """
        full_px = self.profile.provenance.resolution_px
        factors = [scale for scale in np.unique(self.sr_scale) if scale > 1]
        pieces = [(self.sr_scale == scale, f"{UPSCALERS[sr_kind]}{scale:g}", full_px) for scale in factors]
        return self._gathered("device", pieces)

    def edge_latent_run(self, num_steps: FloatArray) -> RowCosts:
        """Return what the edge pays for `num_steps` steps (num_rows,) whose latent it hands over."""
        # a whole run's overhead holds a decode that is not needed, so it is the second choice
        is_timed = self._is_timed("edge", "text_encoder") or self.profile.has("edge", "text_encoder")
        begin = self._text_encoder("edge") if is_timed else self.of("edge", "pipeline_overhead")
        return begin + self.of("edge", "denoise_step").repeated(num_steps)

    def edge_image_run(self, num_steps: FloatArray) -> RowCosts:
        """Return what the edge pays for `num_steps` steps (num_rows,) and the decoded image."""
        if self._is_timed("edge", "pipeline_overhead"):
            overhead = self.of("edge", "pipeline_overhead")
        else:
            overhead = self._text_encoder("edge") + self.of("edge", "vae_decode")
        return overhead + self.of("edge", "denoise_step").repeated(num_steps)

    def device_run(self, num_steps: FloatArray) -> RowCosts:
        """Return what the device pays for `num_steps` steps (num_rows,), prompt encoding and decoding."""
        steps = self.of("device", "denoise_step").repeated(num_steps)
        return self._text_encoder("device") + steps + self.of("device", "vae_decode")

    def _text_encoder(self, side: Side) -> RowCosts:
        """Return the cost of the prompt: it does not depend on the side of the image, so the full one's will do."""
        if self._is_timed(side, "text_encoder"):
            return self.of(side, "text_encoder")
        full_px = self.profile.provenance.resolution_px
        return self._gathered(side, [(np.ones(len(self.sr_scale), dtype=np.bool_), "text_encoder", full_px)])

    def _is_timed(self, side: Side, component: str) -> bool:
        """Return whether the component is timed at every side that rows are generated at."""
        sides_px = [generation_px(self.profile, scale) for scale in np.unique(self.sr_scale)]
        return all(self.profile.has(side, component, resolution_px=px) for px in sides_px)

    def _gathered(self, side: Side, pieces: list[tuple[BoolArray, str, int]]) -> RowCosts:
        """Return the costs of (rows, component, side of the image [px]); rows that no piece names cost nothing."""
        latency_s, energy_j, kinds = np.zeros(len(self.sr_scale)), np.zeros(len(self.sr_scale)), []
        for is_row, component, resolution_px in pieces:
            require(self.profile, self.scheme, (side, component), resolution_px=resolution_px)
            cost = self.profile.cost(side, component, resolution_px=resolution_px)
            latency_s[is_row], energy_j[is_row] = cost.latency_s, cost.energy_j
            kinds.append(cost.kind)
        return RowCosts(latency_s=latency_s, energy_j=energy_j, kind=join_kinds(*kinds))


def work_columns(
    edge: RowCosts, device: RowCosts, downlink_bits: FloatArray, uplink_bits: float
) -> dict[str, FloatArray | float]:
    """Return the columns of `Work` for rows with one message each way."""
    return {
        "edge_s": edge.latency_s,
        "device_s": device.latency_s,
        "downlink_bits": downlink_bits,
        "uplink_bits": uplink_bits,
        "num_round_trips": 1.0,
        "edge_energy_j": edge.energy_j,
        "device_energy_j": device.energy_j,
    }


def generation_px(profile: Profile, sr_scale: float) -> int:
    """Return the side that is generated at for the upscaling factor `sr_scale` [px].

    Raises:
        SchemeError: if image or latent cannot be divided by the factor.
    """
    full_px, (_, height, width) = profile.provenance.resolution_px, profile.provenance.latent_shape
    if any(side % sr_scale for side in (full_px, height, width)):
        message = (
            f"profile {profile.name}: sr_scale {sr_scale:g} does not divide the image of {full_px} px and the latent "
            f"of {height}x{width}; expected a divisor of all; change sr_scales"
        )
        raise SchemeError(message)
    return int(full_px // sr_scale)
