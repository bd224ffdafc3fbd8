"""Shared steps: a group runs its first c steps once, under a public prompt; then each member goes on alone.

    T = t_overhead,edge + (c + y) t_step,edge + Z/R + z t_step,device + t_overhead,device,     c + y + z = N
    E_edge = (e_overhead,edge + c e_step,edge)/G + y e_step,edge,       E_device = e_overhead,device + z e_step,device

A member waits for the common steps in full but pays for 1/G of them, G being the size of the group. The steps y run on
the edge and z on the device under the member's own prompt. Who shares with whom is chosen in
`megopt.solvers.grouping`; here the group is given, by its size and by the similarity of public and personal prompt.
Source: HIS, ICC 2025 (equations 1 to 13); DistributedDiffusion (arXiv 2304.03446).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from megopt.arrays import FloatArray
from megopt.errors import NotOfferedError, SchemeError
from megopt.ranges import require_whole, require_within
from megopt.schemes.action_table import ActionTable, Knob
from megopt.schemes.offer import NUM_STEPS
from megopt.schemes.row_costs import RowCoster
from megopt.schemes.scheme import require, table
from megopt.schemes.shared_steps_quality import NUM_STEPS as MEASURED_STEPS
from megopt.schemes.shared_steps_quality import published_curves
from megopt.schemes.step_split import NEEDS
from megopt.system.payload import frame_bits
from megopt.tables.profile import join_kinds

if TYPE_CHECKING:
    from megopt.tables.profile import Profile

KNOBS = (
    NUM_STEPS,
    Knob(name="common_steps", unit="1", low=0, high=1000, meaning="steps that the group runs once"),
    Knob(name="split_step", unit="1", low=0, high=1000, meaning="steps run on the edge, common ones included"),
)

MEASURED_BITS = 16
"""Bits per latent value behind the published quality."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSteps:
    """Rows (num_steps, common_steps, split_step).

    Attributes:
        num_steps: steps N of a request; the published quality holds for 28.
        max_common_steps: largest number of common steps c.
        max_edge_steps: largest number of steps y that a member runs alone on the edge.
        group_size: members G of the group; its common steps are paid for together.
        similarity: cosine of public and personal prompt [1].
        variant: "sim_npi" (weaker guidance while shared, negative prompt after) or "plain".
        codec_bits: bits per latent value [bit].
        prompt_bits: size of the prompt on the uplink [bit].
    """

    num_steps: int = MEASURED_STEPS
    max_common_steps: int = 13
    max_edge_steps: int = 16
    group_size: int = 2
    similarity: float = 0.6
    variant: str = "sim_npi"
    codec_bits: int = 16
    prompt_bits: float = 1024.0
    name: str = field(default="shared_steps", init=False)

    def __post_init__(self) -> None:
        where = f"scheme {self.name}"
        require_whole(where, 1, num_steps=self.num_steps, group_size=self.group_size, codec_bits=self.codec_bits)
        require_whole(where, 0, max_common_steps=self.max_common_steps, max_edge_steps=self.max_edge_steps)
        require_within(where, 0, 1e12, prompt_bits=self.prompt_bits)
        if self.max_common_steps >= self.num_steps:
            message = (
                f"{where}: max_common_steps is {self.max_common_steps} of {self.num_steps} steps; expected at least "
                "one step under the personal prompt; lower max_common_steps"
            )
            raise SchemeError(message)
        published_curves(self.variant).quality(0, self.similarity)

    def compile(self, profile: Profile) -> ActionTable:
        """Return one row per (common_steps, split_step); quality is NaN for other than 28 steps.

        Raises:
            NotOfferedError: if the profile lacks a component, or did not measure so many steps.
        """
        require(profile, self.name, *NEEDS)
        self._require_steps(profile)
        settings = self._settings()
        common, split = settings["common_steps"], settings["split_step"]
        is_measured = self.num_steps == MEASURED_STEPS and self.codec_bits == MEASURED_BITS
        clip = published_curves(self.variant).quality(common, self.similarity) if is_measured else common * np.nan
        work, kind = self._work(profile, common, split)
        return table(
            scheme=self.name,
            profile=profile,
            labels=[
                f"{c:g} common, {k:g} of {self.num_steps} steps at the edge, group of {self.group_size}"
                for c, k in zip(common, split, strict=True)
            ],
            knobs=KNOBS,
            settings=settings,
            work=work,
            quality={"clip": clip},
            kind=[join_kinds(kind, "published" if is_measured else "")] * len(common),
        )

    def _require_steps(self, profile: Profile) -> None:
        low, high = profile.num_steps_range()
        if not low <= self.num_steps <= high:
            message = (
                f"scheme {self.name}: num_steps = {self.num_steps}; expected {low} to {high}, which profile "
                f"{profile.name} measured; choose experiment=published for {MEASURED_STEPS} steps, whose quality is "
                f"known, or scheme.{self.name}.num_steps={high} for latency and energy alone"
            )
            raise NotOfferedError(message)

    def _settings(self) -> dict[str, FloatArray]:
        """Return the knob columns, each of shape (num_rows,): c, and k = c + y up to N - 1."""
        pairs = [
            (c, c + y)
            for c in range(self.max_common_steps + 1)
            for y in range(self.max_edge_steps + 1)
            if 1 <= c + y < self.num_steps
        ]
        common, split = np.array(pairs, dtype=np.float64).T
        return {"num_steps": np.full(len(common), float(self.num_steps)), "common_steps": common, "split_step": split}

    def _work(
        self, profile: Profile, common: FloatArray, split: FloatArray
    ) -> tuple[dict[str, FloatArray | float], str]:
        """Return the columns of `Work`, and the provenance kinds behind them."""
        coster = RowCoster(profile=profile, scheme=self.name, sr_scale=np.ones_like(common))
        shared, alone = coster.edge_latent_run(common), coster.of("edge", "denoise_step").repeated(split - common)
        device = coster.device_run(self.num_steps - split)
        columns: dict[str, FloatArray | float] = {
            "edge_s": shared.latency_s + alone.latency_s,
            "device_s": device.latency_s,
            "downlink_bits": float(frame_bits(profile.provenance.latent_shape, self.codec_bits)),
            "uplink_bits": self.prompt_bits,
            "num_round_trips": 1.0,
            "edge_energy_j": shared.energy_j / self.group_size + alone.energy_j,
            "device_energy_j": device.energy_j,
        }
        return columns, join_kinds(shared.kind, device.kind)
