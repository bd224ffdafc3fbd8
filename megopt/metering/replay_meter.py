"""Joules of a recording, window by window: for tests, and for boards that are read elsewhere."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from megopt.errors import ConfigError
from megopt.metering.energy import Energy

REPLAY_COLUMNS = ("energy_j", "energy_source", "device")


class ReplayMeter:
    """Returns recorded joules, window by window; for tests and for energies that were measured elsewhere."""

    shortest_window_s = 0.0  # a recording has no time

    def __init__(self, path: Path) -> None:
        """Read a csv file with the columns of `REPLAY_COLUMNS`, a row per window; an empty energy was not measured.

        Raises:
            ConfigError: if the file is missing, has other columns, or a row is no energy.
        """
        self._path, self._windows = path, _recorded(path)
        self._num_replayed = 0
        self.device = ", ".join(dict.fromkeys(window.device for window in self._windows))

    def begin(self) -> None:
        """Open the next window; a ConfigError if all were replayed."""
        if self._num_replayed == len(self._windows):
            message = f"{self._path.name}: all {len(self._windows)} recorded windows are replayed; record more"
            raise ConfigError(message)

    def end(self) -> Energy:
        """Return the joules of the window."""
        self._num_replayed += 1
        return self._windows[self._num_replayed - 1]


def _recorded(path: Path) -> list[Energy]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        energies = [
            Energy(energy_j=float(row["energy_j"] or math.nan), source=row["energy_source"], device=row["device"])
            for row in rows
        ]
    except (OSError, KeyError, TypeError, ValueError) as error:
        message = f"{path.name}: {type(error).__name__}: {error}; expected the columns {', '.join(REPLAY_COLUMNS)}"
        raise ConfigError(message) from error
    return energies
