"""Joules of a CPU package by RAPL, from the counters below /sys/class/powercap."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from megopt.errors import ConfigError
from megopt.metering.energy import Energy, counted

POWERCAP_ROOT = Path("/sys/class/powercap")
MOST_PACKAGE_W = 1000.0
"""More than any processor package draws: bounds how long a RAPL counter surely wraps at most once."""


class RaplMeter:
    """All processor packages of an Intel or AMD machine, through the powercap tree of Linux."""

    shortest_window_s = 0.05  # fifty steps of the counters, which move every millisecond

    def __init__(self, root: Path = POWERCAP_ROOT, clock: Callable[[], float] = time.perf_counter) -> None:
        """Find the packages below `root`.

        Raises:
            ConfigError: if there are none, or their counters may not be read.
        """
        self._clock, self._begun_s, self._begun_uj = clock, math.nan, [0]
        # "intel-rapl:0:1" is a part of a package, "intel-rapl-mmio:0" the same package once more
        domains = sorted(path for path in root.glob("intel-rapl:*") if path.name.count(":") == 1)
        packages = [path for path in domains if _read(path / "name").startswith("package")]
        if not packages:
            message = f"meter rapl: no processor package below {root}; expected intel-rapl:0; choose another meter"
            raise ConfigError(message)
        self._counters = [path / "energy_uj" for path in packages]
        self._ranges_uj = [int(_read(path / "max_energy_range_uj")) for path in packages]
        self._counts_uj()
        self.device = f"RAPL {', '.join(_read(path / 'name') for path in packages)}"

    def begin(self) -> None:
        """Open a window."""
        self._begun_s, self._begun_uj = self._clock(), self._counts_uj()

    def end(self) -> Energy:
        """Close the window and return its joules.

        Raises:
            ConfigError: if the window was so long that a counter may have wrapped around more than once.
        """
        duration_s, longest_s = self._clock() - self._begun_s, min(self._ranges_uj) / 1e6 / MOST_PACKAGE_W
        if duration_s > longest_s:
            message = f"meter rapl: a window of {duration_s:.0f} s; expected at most {longest_s:.0f} s; divide it"
            raise ConfigError(message)
        energy_uj = 0
        for now, before, span in zip(self._counts_uj(), self._begun_uj, self._ranges_uj, strict=True):
            energy_uj += now - before if now >= before else now - before + span
        return counted(energy_uj / 1e6, "rapl", self.device)

    def _counts_uj(self) -> list[int]:
        return [int(_read(path)) for path in self._counters]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError as error:
        remedy = f"allow it with: sudo chmod a+r {path}" if isinstance(error, PermissionError) else "use another meter"
        message = f"meter rapl: {path}: {error.strerror}; expected a file that may be read; {remedy}"
        raise ConfigError(message) from error
