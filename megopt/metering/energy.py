"""Joules of a window of time, each with its source: a stated power, or none.

    meter.begin()
    ...
    energy = meter.end()

Counters count everything that the device draws in the window, its idle power and other processes included. What is not
measured is NaN, never 0 J; a counter that did not move in a window that it cannot resolve has measured nothing. The
counters are in nvml_meter.py and rapl_meter.py, recordings in replay_meter.py; `meters.best_meter` chooses.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from megopt.errors import ConfigError
from megopt.tables.schema import ENERGY_SOURCES


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Joules of one window.

    Attributes:
        energy_j: energy [J]; NaN if and only if `source` is "not_measured".
        source: a key of `megopt.tables.schema.ENERGY_SOURCES`.
        device: what was metered, in words.
    """

    energy_j: float
    source: str
    device: str

    def __post_init__(self) -> None:
        is_known = self.source in ENERGY_SOURCES and (self.source == "not_measured") == math.isnan(self.energy_j)
        if not is_known or self.energy_j < 0.0 or math.isinf(self.energy_j):
            message = (
                f"energy: {self.energy_j} J from {self.source!r}; expected joules >= 0 from one of "
                f"{', '.join(ENERGY_SOURCES)}, and NaN only where not measured"
            )
            raise ConfigError(message)


class Meter(Protocol):
    """Meters windows of time, one after the other."""

    @property
    def device(self) -> str:
        """What it meters, in words."""

    @property
    def shortest_window_s(self) -> float:
        """Windows shorter than this [s] tell little: the counter moves in steps."""

    def begin(self) -> None:
        """Open a window."""

    def end(self) -> Energy:
        """Close the window and return its joules."""


@dataclass(slots=True)
class NoMeter:
    """Measures nothing, and says so."""

    device: str = "none"
    shortest_window_s: float = 0.0

    def begin(self) -> None:
        """Do nothing."""

    def end(self) -> Energy:
        """Return NaN J."""
        return not_measured(self.device)


@dataclass(slots=True)
class PowerModelMeter:
    """Stated watts times time: a model, never a measurement.

    Attributes:
        power_w: what the device is said to draw [W].
        device: what it is, in words.
    """

    power_w: float
    device: str
    shortest_window_s: float = 0.0
    clock: Callable[[], float] = time.perf_counter
    _begun_s: float = math.nan

    def __post_init__(self) -> None:
        if not 0.0 < self.power_w < math.inf:
            message = f"power model of {self.device}: power_w is {self.power_w}; expected watts > 0"
            raise ConfigError(message)

    def begin(self) -> None:
        """Open a window."""
        self._begun_s = self.clock()

    def end(self) -> Energy:
        """Close the window and return watts times seconds."""
        energy_j = self.power_w * (self.clock() - self._begun_s)
        return Energy(energy_j=energy_j, source="power_model", device=f"{self.device}, stated {self.power_w:g} W")


def synchronise_cuda(index: int | None = None) -> None:
    """Wait until a GPU, by default the current one, is done; return at once where torch or CUDA is not in use."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize(index)


def counted(energy_j: float, source: str, device: str) -> Energy:
    """Return what a counter counted; one that did not move has measured nothing."""
    return Energy(energy_j=energy_j, source=source, device=device) if energy_j > 0.0 else not_measured(device)


def not_measured(device: str) -> Energy:
    """Return the energy of a window that nothing has measured: NaN."""
    return Energy(energy_j=math.nan, source="not_measured", device=device)
