"""What earlier requests of a device teach about its predictions: how fast both models are, what the runtime adds.

    T = f_edge t_edge + f_device t_device + t_link + t_spent + t_runtime

with the seconds of the table, the time t_spent that observing and deciding has taken already, and medians over the last
requests: f = measured / table of a side, t_runtime = what was neither models nor link nor spent. Other work on the
machine slows a model down; a table that was measured before knows nothing of it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np

from megopt.errors import ConfigError
from megopt.ranges import require_whole
from megopt.system.outcome import Work

CALIBRATIONS = ("none", "runtime", "speed")
"""What is learned: nothing, the runtime alone, or the runtime and the speed of both models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What one request took, in seconds.

    Attributes:
        edge_s: of the edge's models [s].
        device_s: of the device's models [s].
        runtime_s: neither models nor link nor deciding [s].
    """

    edge_s: float
    device_s: float
    runtime_s: float


@dataclass(slots=True)
class Calibration:
    """Medians over the last requests of one device.

    Attributes:
        learns: one of `CALIBRATIONS`.
        num_kept: requests that count [1].
    """

    learns: str = "runtime"
    num_kept: int = 7
    _edge: deque[float] = field(init=False)
    _device: deque[float] = field(init=False)
    _runtime_s: deque[float] = field(init=False)

    def __post_init__(self) -> None:
        if self.learns not in CALIBRATIONS:
            message = f"calibration {self.learns!r}: expected one of {', '.join(CALIBRATIONS)}; choose one of them"
            raise ConfigError(message)
        require_whole("calibration", 1, num_kept=self.num_kept)
        self._edge, self._device, self._runtime_s = (deque(maxlen=self.num_kept) for _ in range(3))

    @property
    def runtime_s(self) -> float:
        """What the runtime adds to a request after it is decided [s]; 0 before the first."""
        return _median(self._runtime_s, 0.0) if self.learns != "none" else 0.0

    def corrected(self, work: Work) -> Work:
        """Return `work` with the seconds and joules of models as fast as they were in the last requests."""
        if self.learns != "speed":
            return work
        edge, device = _median(self._edge, 1.0), _median(self._device, 1.0)
        return replace(
            work,
            edge_s=edge * work.edge_s,
            device_s=device * work.device_s,
            edge_energy_j=edge * work.edge_energy_j,
            device_energy_j=device * work.device_energy_j,
        )

    def learn(self, table: Work, took: Taken) -> None:
        """Take a request into account that went as decided; `table` holds its row alone, fields of shape (1,)."""
        self._runtime_s.append(took.runtime_s)
        for ratios, expected, came_s in (
            (self._edge, table.edge_s, took.edge_s),
            (self._device, table.device_s, took.device_s),
        ):
            if expected[0] > 0.0 and came_s > 0.0:
                ratios.append(came_s / float(expected[0]))


def _median(values: deque[float], before: float) -> float:
    return float(np.median(values)) if values else before
