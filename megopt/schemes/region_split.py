"""Region split (generation splitting): the edge makes the primary region, the device completes the image.

    D(x, p) = x (U_E + Z/R) + beta [c + (1 - x) b] (p/P)^(-kappa)
    E(x, p) = p beta [c + (1 - x) b] (p/P)^(-kappa)                      for x < 1

Rows are a grid over the region ratio x and the device power ratio p/P; x = 1 is model split (see `conventional`).
The continuous optimum is in `megopt.solvers.generation_splitting`.
Source: MEGSplitting (ICC 2025), parameters derived in profiles/megsplitting_*.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from megopt.arrays import FloatArray
from megopt.ranges import require_whole, require_within
from megopt.schemes.action_table import ActionTable, Knob
from megopt.schemes.scheme import refuse_unmeasured, require, table
from megopt.system.compute import power_control_energy_j, power_control_latency_s
from megopt.system.payload import latent_bits
from megopt.tables.profile import Side, join_kinds

if TYPE_CHECKING:
    from megopt.tables.profile import Profile

KNOBS = (
    Knob(name="region_ratio", unit="1", low=0, high=1, meaning="share of the image made at the edge"),
    Knob(name="device_power_ratio", unit="1", low=0, high=1, meaning="device power over its maximum"),
)
NEEDS: tuple[tuple[Side, str], ...] = (
    ("edge", "whole_generation"),
    ("device", "coarse_pass"),
    ("device", "refine_pass"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionSplit:
    """Rows (region_ratio, device_power_ratio).

    Attributes:
        num_region_ratios: how many ratios x to offer, evenly over the range that the profile measured.
        num_device_powers: how many powers p/P to offer, log-spaced from `device_power_ratio_min` to 1.
        device_power_ratio_min: smallest p/P.
        cost_factor: beta, how many times slower the device is than the source's unit.
        codec_bits: bits per latent value [bit].
        prompt_bits: size of the prompt on the uplink [bit].
    """

    num_region_ratios: int = 51
    num_device_powers: int = 80
    device_power_ratio_min: float = 0.001
    cost_factor: float = 2.0
    codec_bits: int = 16
    prompt_bits: float = 1024.0
    name: str = field(default="region_split", init=False)

    def __post_init__(self) -> None:
        where = f"scheme {self.name}"
        require_whole(where, 2, num_region_ratios=self.num_region_ratios, num_device_powers=self.num_device_powers)
        require_whole(where, 1, codec_bits=self.codec_bits)
        require_within(where, 1e-9, 1e9, cost_factor=self.cost_factor)
        require_within(where, 0, 1e12, prompt_bits=self.prompt_bits)
        require_within(where, 1e-9, 1.0, device_power_ratio_min=self.device_power_ratio_min)

    def compile(self, profile: Profile) -> ActionTable:
        """Return one row per (region_ratio, device_power_ratio); see `Scheme.compile`."""
        require(profile, self.name, *NEEDS)
        refuse_unmeasured(profile, self.name, profile.quality_knobs(self.name), codec_bits=self.codec_bits != 16)
        span = (profile.parameter("region_ratio_min").value, profile.parameter("region_ratio_max").value)
        ratios = np.linspace(*span, self.num_region_ratios)
        powers = np.geomspace(self.device_power_ratio_min, 1.0, self.num_device_powers)
        ratio, power_ratio = (axis.ravel() for axis in np.meshgrid(ratios, powers, indexing="ij"))
        settings = {"region_ratio": ratio, "device_power_ratio": power_ratio}
        kinds = [profile.cost(side, component).kind for side, component in NEEDS]
        kind = join_kinds(*kinds, profile.quality_kind(self.name))
        return table(
            scheme=self.name,
            profile=profile,
            labels=[
                f"{x:.2f} of the image at the edge, {p:.2f} of the power"
                for x, p in zip(ratio, power_ratio, strict=True)
            ],
            knobs=KNOBS,
            settings=settings,
            work=self._work(profile, ratio, power_ratio),
            quality={m: profile.quality_at(self.name, m, settings) for m in profile.metrics(self.name)},
            kind=[kind] * len(ratio),
        )

    def _work(self, profile: Profile, ratio: FloatArray, power_ratio: FloatArray) -> dict[str, FloatArray | float]:
        full = profile.cost("edge", "whole_generation")
        coarse, refine = profile.cost("device", "coarse_pass"), profile.cost("device", "refine_pass")
        max_power_w = profile.parameter("device_power_max_w").value
        exponent = profile.parameter("device_power_exponent").value
        full_power_s = self.cost_factor * (coarse.latency_s + (1.0 - ratio) * refine.latency_s)
        num_values = float(np.prod(profile.provenance.latent_shape))
        return {
            "edge_s": ratio * full.latency_s,
            "device_s": power_control_latency_s(full_power_s, power_ratio, exponent),
            "downlink_bits": ratio * latent_bits(num_values, self.codec_bits),
            "uplink_bits": self.prompt_bits,
            "num_round_trips": 1.0,
            "edge_energy_j": ratio * full.energy_j,
            "device_energy_j": power_control_energy_j(full_power_s, power_ratio, exponent, full_power_w=max_power_w),
        }
