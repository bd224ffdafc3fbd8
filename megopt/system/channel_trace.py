"""A recorded SNR as a channel, from numbers or from a csv file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.errors import ConfigError
from megopt.ranges import require_within
from megopt.system.fading import Channel, ChannelState
from megopt.units import linear_from_db


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace(Channel):
    """A recorded SNR, replayed in order, and again from its beginning.

    Attributes:
        snr_db: SNR of each slot [dB], or the path of a csv file with the column `snr_db`; -inf is an outage.
        start_row: row that device 0 starts at.
        device_stride: rows between the starts of two neighbouring devices.

    Raises:
        ConfigError: if the file or its column is missing, or if a value is no number.
    """

    snr_db: Sequence[float] | str | Path
    start_row: int = 0
    device_stride: int = 0
    recorded_snr: FloatArray = field(init=False, repr=False, compare=False)
    """Recorded SNR [1], shape (num_rows,)."""

    def __post_init__(self) -> None:
        if isinstance(self.snr_db, str | Path):
            where, recorded_db = f"channel Trace: {self.snr_db}", _read_column(Path(self.snr_db))
        else:
            where, recorded_db = "channel Trace", list(self.snr_db)
        if not recorded_db:
            message = f"{where}: no rows; expected at least one SNR; give the trace a row"
            raise ConfigError(message)
        require_within(where, -np.inf, 200.0, snr_db=recorded_db)
        for name, row in (("start_row", self.start_row), ("device_stride", self.device_stride)):
            require_within(where, 0, 1e12, **{name: row})
            if row != int(row):
                message = f"{where}: {name} is {row}; expected a whole number of rows; round {name}"
                raise ConfigError(message)
        object.__setattr__(self, "recorded_snr", linear_from_db(recorded_db))

    def place(self, rng: np.random.Generator, num_devices: int) -> tuple[FloatArray, FloatArray]:
        """Return the SNR of the rows that the devices start at, all of it specular."""
        return self._row(self._start(num_devices)), np.ones(num_devices)

    def slot_correlation(self) -> float:
        """Return 1: what moves is the record."""
        return 1.0

    def advance(self, rng: np.random.Generator, state: ChannelState) -> ChannelState:
        """Return the next row of each device; the last row is followed by the first."""
        slot = state.slot + 1
        return replace(state, mean_snr=self._row(self._start(slot.size) + slot), slot=slot)

    def sample_snr(self, rng: np.random.Generator, num_requests: int, num_devices: int = 1) -> FloatArray:
        """Return the replayed SNR [1], shape (num_requests, num_devices); the generator changes nothing."""
        require_within("channel", 1, np.inf, num_requests=num_requests, num_devices=num_devices)
        return self._row(self._start(num_devices) + np.arange(num_requests)[:, np.newaxis])

    def _start(self, num_devices: int) -> IntArray:
        return int(self.start_row) + int(self.device_stride) * np.arange(num_devices)

    def _row(self, row: IntArray) -> FloatArray:
        """Return the recorded SNR [1] of rows of any shape, counted round and round."""
        return self.recorded_snr[row % self.recorded_snr.size]


def _read_column(path: Path) -> list[float]:
    """Return the column `snr_db` of a csv file; empty or non-numeric cells become NaN and are refused by the caller."""
    if not path.is_file():
        message = f"channel Trace: {path}: no such file; expected a csv with the column snr_db; change channel.snr_db"
        raise ConfigError(message)
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if "snr_db" not in (reader.fieldnames or ()):
            came = ", ".join(reader.fieldnames or ()) or "none"
            message = f"channel Trace: {path}: columns are {came}; expected snr_db among them; rename one or add it"
            raise ConfigError(message)
        return [_number(row["snr_db"]) for row in reader]


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return float("nan")
