"""How much longer a batch takes at the edge than one request, and what each of its members costs.

    T(b) = ratio(b) T(1),     E(b) = b share(b) E(1)

From a profile that timed several batch sizes these are the measured values of a whole run, linear between them, and no
batch is larger than the largest measured. Other profiles get a stated line, T(b) = (1 + slope (b - 1)) T(1): slope 1
is one request after another, slope 0 a batch for free.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.errors import ConfigError
from megopt.ranges import require_number, require_whole, require_within
from megopt.tables.profile import Profile, join_kinds


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCurve:
    """Time and energy over the batch size b = 0..max_batch.

    Attributes:
        latency_ratio: T(b) / T(1) [1], shape (max_batch + 1,); 0 for b = 0.
        energy_share: energy of one member over its energy alone [1], shape (max_batch + 1,).
        kind: provenance kinds of the rows behind it; "modelled" for the line.
    """

    latency_ratio: FloatArray
    energy_share: FloatArray
    kind: str

    def __post_init__(self) -> None:
        where = f"batch curve ({self.kind})"
        require_within(where, 0.0, 1e6, latency_ratio=self.latency_ratio, energy_share=self.energy_share)
        if len(self.latency_ratio) < 2 or np.any(np.diff(self.latency_ratio) < 0.0) or self.latency_ratio[1] != 1.0:
            message = f"{where}: latency_ratio is {self.latency_ratio}; expected 0, 1 and then no smaller values"
            raise ConfigError(message)
        if self.energy_share.shape != self.latency_ratio.shape or self.energy_share[1] != 1.0:
            message = f"{where}: energy_share is {self.energy_share}; expected one value per batch size, 1 for b = 1"
            raise ConfigError(message)

    @property
    def max_batch(self) -> int:
        """Largest batch."""
        return len(self.latency_ratio) - 1

    @classmethod
    def line(cls, *, max_batch: int, slope: float = 1.0) -> BatchCurve:
        """Return the stated line up to `max_batch`, with the joules of a member as if it were alone."""
        require_whole("batch curve", 1, max_batch=max_batch)
        require_number("batch curve", 0.0, 1.0, slope=slope)
        size = np.arange(max_batch + 1)
        ratio = np.where(size > 0, 1.0 + slope * (size - 1), 0.0)
        return cls(latency_ratio=ratio, energy_share=np.ones(max_batch + 1), kind="modelled")

    @classmethod
    def of(cls, profile: Profile, *, max_batch: int | None = None, slope: float = 1.0) -> BatchCurve:
        """Return the measured curve of a profile, or the line where it measured one batch size only.

        Args:
            profile: measured tables; read for its edge denoise_step and pipeline_overhead, or whole_generation.
            max_batch: largest batch; None takes the largest measured, or 8 on the line.
            slope: slope of the line, where it is needed.

        Raises:
            ConfigError: for a number out of range, or `max_batch` above the largest measured: nothing is extrapolated.
        """
        require_number("batch curve", 0.0, 1.0, slope=slope)
        sizes = _measured_sizes(profile)
        if sizes.max() == 1:
            return cls.line(max_batch=8 if max_batch is None else max_batch, slope=slope)
        largest = int(sizes.max()) if max_batch is None else max_batch
        require_whole("batch curve", 1, max_batch=largest)
        if largest > sizes.max():
            message = (
                f"batch curve: max_batch is {largest}; profile {profile.name} measured batches of 1 to {sizes.max()}; "
                "lower max_batch, or measure larger batches"
            )
            raise ConfigError(message)
        size = np.arange(1, largest + 1)
        latency_s, energy_j = (np.interp(size, sizes, values) for values in _runs(profile, sizes))
        share = energy_j / (size * energy_j[0])
        return cls(
            latency_ratio=np.concatenate([[0.0], latency_s / latency_s[0]]),
            energy_share=np.concatenate([[1.0], np.where(np.isnan(share), 1.0, share)]),
            kind=join_kinds(*(profile.cost("edge", part).kind for part, _ in _parts(profile))),
        )


def _parts(profile: Profile) -> list[tuple[str, int]]:
    """Return the components of a whole run at the edge and how often each runs; the fewest steps that were measured."""
    if profile.has("edge", "denoise_step"):
        overhead = [("pipeline_overhead", 1)] if profile.has("edge", "pipeline_overhead") else []
        return [("denoise_step", profile.num_steps_range()[0]), *overhead]
    return [("whole_generation", 1)]


def _measured_sizes(profile: Profile) -> IntArray:
    """Return the batch sizes that were timed, up to the largest that every component of a run has, ascending from 1."""
    rows = profile.compute[
        (profile.compute["side"] == "edge") & (profile.compute["resolution_px"] == profile.provenance.resolution_px)
    ]
    of_parts = [rows.loc[rows["component"] == part, "batch_size"].to_numpy() for part, _ in _parts(profile)]
    sizes = np.unique(np.concatenate([[1], *of_parts])).astype(np.int64)
    return np.asarray(sizes[sizes <= min(part.max(initial=1) for part in of_parts)])


def _runs(profile: Profile, sizes: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return time [s] and energy [J] of a whole run of a batch of each size, each of shape (num_sizes,)."""
    latency_s, energy_j = np.zeros(len(sizes)), np.zeros(len(sizes))
    for part, times in _parts(profile):
        costs = [profile.cost("edge", part, batch_size=int(size)) for size in sizes]
        latency_s += times * np.array([cost.latency_s for cost in costs])
        energy_j += times * np.array([cost.energy_j for cost in costs])
    return latency_s, energy_j
