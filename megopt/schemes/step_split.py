"""Step split: the edge runs the first k of N denoising steps, the device the rest.

    T = t_overhead,edge + k t_step,edge + Z(r, q)/R + (N - k) t_step,device + t_overhead,device

Edge and device model share a latent space; the hand-over is one checkpoint. k = N is model split, k = 0 device only,
and both are left to `conventional`, so the rows here are 1 <= k <= N - 1.
Source: Hybrid-SD (arXiv 2408.06646) and MEG-CVPO (arXiv 2407.07245) for the split; system model of megopt for the sum.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from megopt.arrays import FloatArray
from megopt.errors import SchemeError
from megopt.ranges import require_whole_list, require_within
from megopt.schemes.action_table import ActionTable, Knob
from megopt.schemes.conventional import NUM_STEPS
from megopt.schemes.edge_run import device_steps, edge_steps
from megopt.schemes.scheme import refuse_unmeasured, require, table
from megopt.system.payload import latent_bits
from megopt.tables.profile import join_kinds

if TYPE_CHECKING:
    from megopt.tables.profile import Profile

KNOBS = (
    NUM_STEPS,
    Knob(name="split_step", unit="1", low=0, high=1000, meaning="steps run on the edge"),
    Knob(name="merge_ratio", unit="1", low=0, high=1, meaning="share of latent tokens merged away before sending"),
    Knob(name="codec_bits", unit="bit", low=1, high=32, meaning="bits per latent value on the link"),
)
NEEDS = (
    ("edge", "denoise_step"),
    ("edge", "pipeline_overhead"),
    ("device", "text_encoder"),
    ("device", "denoise_step"),
    ("device", "vae_decode"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSplit:
    """Rows (num_steps, split_step, merge_ratio, codec_bits).

    Attributes:
        num_steps: step counts N to offer.
        split_steps: edge steps k to offer; None for all of 1..N-1.
        merge_ratios: merging ratios to offer; above 0 needs merge and unmerge rows and measured quality.
        codec_bits: bits per latent value to offer; other than 16 needs measured quality.
        prompt_bits: size of the prompt on the uplink [bit].
    """

    num_steps: tuple[int, ...]
    split_steps: tuple[int, ...] | None = None
    merge_ratios: tuple[float, ...] = (0.0,)
    codec_bits: tuple[int, ...] = (16,)
    prompt_bits: float = 1024.0
    name: str = field(default="step_split", init=False)

    def __post_init__(self) -> None:
        require_whole_list(f"scheme {self.name}", 1, num_steps=self.num_steps, codec_bits=self.codec_bits)
        if self.split_steps is not None:
            require_whole_list(f"scheme {self.name}", 1, split_steps=self.split_steps)
        require_within(f"scheme {self.name}", 0, 1e12, prompt_bits=self.prompt_bits)
        require_within(f"scheme {self.name}", 0, 1, merge_ratios=self.merge_ratios)

    def compile(self, profile: Profile) -> ActionTable:
        """Return one row per combination of the knobs; see `Scheme.compile`."""
        require(profile, self.name, *NEEDS)
        is_merging, is_coded = any(r > 0 for r in self.merge_ratios), any(q != 16 for q in self.codec_bits)
        refuse_unmeasured(
            profile, self.name, merge_ratio=is_merging, codec_bits=is_coded, num_steps=len(self.num_steps) > 1
        )
        settings = self._settings(profile)
        num_rows = len(settings["num_steps"])
        labels = [
            f"{k:g} of {n:g} steps at the edge" + (f", merge {r:g}" if r else "") + ("" if q == 16 else f", {q:g} bit")
            for n, k, r, q in zip(*(settings[knob.name] for knob in KNOBS), strict=True)
        ]
        quality = {m: profile.quality_at(self.name, m, settings) for m in dict.fromkeys(profile.quality["metric"])}
        kind = join_kinds(edge_steps(profile).kind, device_steps(profile).kind, profile.quality_kind(self.name))
        return table(
            scheme=self.name,
            profile=profile,
            labels=labels,
            knobs=KNOBS,
            settings=settings,
            work=self._work(profile, settings),
            quality=quality,
            kind=[kind] * num_rows,
        )

    def _settings(self, profile: Profile) -> dict[str, FloatArray]:
        """Return the knob columns, each of shape (num_rows,)."""
        points: list[tuple[float, ...]] = []
        for n in self.num_steps:
            profile.check_num_steps(n)
            split_steps = range(1, n) if self.split_steps is None else self.split_steps
            wrong = [k for k in split_steps if not 1 <= k < n]
            if wrong:
                message = f"scheme step_split: split_step {wrong[0]} with num_steps {n}; expected 1 to {n - 1}"
                raise SchemeError(message)
            points += product([n], split_steps, self.merge_ratios, self.codec_bits)
        columns = np.array(points, dtype=np.float64).T
        return {knob.name: column for knob, column in zip(KNOBS, columns, strict=True)}

    def _work(self, profile: Profile, settings: dict[str, FloatArray]) -> dict[str, FloatArray | float]:
        edge, device = edge_steps(profile), device_steps(profile)
        n, k, r = settings["num_steps"], settings["split_step"], settings["merge_ratio"]
        merge_s, merge_j = _merge_cost(profile, "edge", "merge", r)
        unmerge_s, unmerge_j = _merge_cost(profile, "device", "unmerge", r)
        num_values = float(np.prod(profile.provenance.latent_shape))
        return {
            "edge_s": edge.latency_s(k) + merge_s,
            "device_s": device.latency_s(n - k) + unmerge_s,
            "downlink_bits": latent_bits(num_values, settings["codec_bits"], r),
            "uplink_bits": self.prompt_bits,
            "num_round_trips": 1.0,
            "edge_energy_j": edge.energy_j(k) + merge_j,
            "device_energy_j": device.energy_j(n - k) + unmerge_j,
        }


def _merge_cost(profile: Profile, side: str, component: str, merge_ratio: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return time [s] and energy [J] of merging or unmerging, each (num_rows,); 0 where nothing is merged."""
    zero = np.zeros_like(merge_ratio)
    if not np.any(merge_ratio > 0):
        return zero, zero
    require(profile, "step_split", (side, component))
    cost = profile.cost(side, component)  # type: ignore[arg-type]
    return np.where(merge_ratio > 0, cost.latency_s, 0.0), np.where(merge_ratio > 0, cost.energy_j, 0.0)
