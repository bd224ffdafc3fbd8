"""Time and energy of a run at the edge, whichever rows the profile has for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megopt.arrays import FloatArray, Real
from megopt.errors import NotOfferedError
from megopt.system.compute import step_latency_s
from megopt.tables.profile import Cost, join_kinds

if TYPE_CHECKING:
    from megopt.tables.profile import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class SteppedRun:
    """A run on one side as overhead + steps x step.

    Attributes:
        overhead_s: time besides the steps [s].
        step_s: time of one step [s].
        overhead_j: energy besides the steps [J].
        step_j: energy of one step [J].
        kind: provenance kinds behind it.
    """

    overhead_s: float
    step_s: float
    overhead_j: float
    step_j: float
    kind: str

    def latency_s(self, num_steps: Real) -> FloatArray:
        """Return the time of a run of `num_steps` steps [s], any shape."""
        return step_latency_s(num_steps, step_s=self.step_s, overhead_s=self.overhead_s)

    def energy_j(self, num_steps: Real) -> FloatArray:
        """Return the energy of a run of `num_steps` steps [J], any shape; NaN where it was not measured."""
        return np.asarray(self.overhead_j + np.asarray(num_steps, dtype=np.float64) * self.step_j)


def edge_steps(profile: Profile) -> SteppedRun:
    """Return the edge's run as a line in steps."""
    step, overhead = profile.cost("edge", "denoise_step"), profile.cost("edge", "pipeline_overhead")
    return SteppedRun(
        overhead_s=overhead.latency_s,
        step_s=step.latency_s,
        overhead_j=overhead.energy_j,
        step_j=step.energy_j,
        kind=join_kinds(step.kind, overhead.kind),
    )


def device_steps(profile: Profile) -> SteppedRun:
    """Return the device's run as a line in steps; the overhead is prompt encoding plus image decoding."""
    text, decode = profile.cost("device", "text_encoder"), profile.cost("device", "vae_decode")
    step = profile.cost("device", "denoise_step")
    return SteppedRun(
        overhead_s=text.latency_s + decode.latency_s,
        step_s=step.latency_s,
        overhead_j=text.energy_j + decode.energy_j,
        step_j=step.energy_j,
        kind=join_kinds(text.kind, step.kind, decode.kind),
    )


def edge_full_runs(profile: Profile, num_steps: tuple[int, ...]) -> list[tuple[float, Cost]]:
    """Return (step count, cost) of a full edge run for each step count.

    A profile that only times whole generations has one run, of unknown count (NaN).

    Raises:
        NotOfferedError: if the profile times neither.
        OutOfTableError: if a step count lies outside the tables.
    """
    if profile.has("edge", "denoise_step"):
        run = edge_steps(profile)
        for steps in num_steps:
            profile.check_num_steps(steps)
        return [
            (
                float(n),
                Cost(latency_s=float(run.latency_s(n)), energy_j=float(run.energy_j(n)), kind=run.kind),
            )
            for n in num_steps
        ]
    if profile.has("edge", "whole_generation"):
        return [(float("nan"), profile.cost("edge", "whole_generation"))]
    message = (
        f"profile {profile.name} times neither edge denoise_step nor edge whole_generation; add one to compute.csv"
    )
    raise NotOfferedError(message)
