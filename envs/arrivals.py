"""Requests that come to the devices of a cell, slot by slot, and the requests that wait at each device.

Time is slotted: what arrives during a slot is gathered and waits from the beginning of the next slot on, which is where
its latency begins to count. A device decides at most one request a slot, the oldest.
"""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from megopt.arrays import BoolArray, IntArray
from megopt.errors import ConfigError
from megopt.ranges import require_whole, require_within


class Arrivals(ABC):
    """A source of requests."""

    __slots__ = ()

    @abstractmethod
    def counts(self, rng: np.random.Generator, slot: IntArray, num_devices: int, slot_s: float) -> IntArray:
        """Return how many requests each device gets at the beginning of a slot, shape (num_cells, num_devices).

        Args:
            rng: generator; as much is drawn whatever the cells are in.
            slot: slot of each cell's episode, shape (num_cells,).
            num_devices: devices per cell.
            slot_s: length of a slot [s].
        """

    def check(self, num_devices: int) -> None:  # noqa: B027  most sources fit any number of devices
        """Raise `ConfigError` unless this source fits cells of `num_devices`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Poisson(Arrivals):
    """Independent Poisson streams.

    Attributes:
        requests_per_s: mean rate of each device [1/s], one number for all or one per device of a cell.
    """

    requests_per_s: float | Sequence[float] = 0.03

    def __post_init__(self) -> None:
        require_within("arrivals Poisson", 0.0, 1e6, requests_per_s=self.requests_per_s)

    def check(self, num_devices: int) -> None:
        """Raise `ConfigError` unless there is one rate, or one per device."""
        if np.ndim(self.requests_per_s) and np.shape(self.requests_per_s) != (num_devices,):
            came = np.shape(self.requests_per_s)
            message = (
                f"arrivals Poisson: requests_per_s has shape {came}; expected one number, or {num_devices}: one per "
                "device; change requests_per_s or num_devices"
            )
            raise ConfigError(message)

    def counts(self, rng: np.random.Generator, slot: IntArray, num_devices: int, slot_s: float) -> IntArray:
        """Return Poisson counts; see `Arrivals.counts`."""
        mean = np.asarray(self.requests_per_s, dtype=np.float64) * slot_s
        return rng.poisson(mean, (len(slot), num_devices))


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalTrace(Arrivals):
    """Recorded counts, replayed in order, and again from their beginning.

    Attributes:
        num_requests: requests of each slot [1], or the path of a csv file with the column `num_requests`; (1,) is a
            request in every slot.
        device_stride: rows between the starts of two neighbouring devices of a cell.

    Raises:
        ConfigError: if the file or its column is missing, or if a value is no count.
    """

    num_requests: Sequence[int] | str | Path = (1,)
    device_stride: int = 0
    recorded: IntArray = field(init=False, repr=False, compare=False)
    """Recorded counts [1], shape (num_rows,)."""

    def __post_init__(self) -> None:
        require_whole("arrivals ArrivalTrace", 0, device_stride=self.device_stride)
        where = "arrivals ArrivalTrace"
        came: Sequence[float] | str | Path = self.num_requests
        if isinstance(came, str | Path):
            where, came = f"{where}: {came}", _read_column(Path(came))
        if len(came):
            require_within(where, 0, 1e6, num_requests=came)
        recorded = np.array(list(came), dtype=np.float64)
        if not recorded.size or np.any(recorded != np.floor(recorded)):
            wrong = f"{recorded[recorded != np.floor(recorded)][0]:g} in a row" if recorded.size else "no rows"
            message = f"{where}: {wrong}; expected whole numbers of requests, one a slot; correct num_requests"
            raise ConfigError(message)
        object.__setattr__(self, "recorded", recorded.astype(np.int64))

    def counts(self, rng: np.random.Generator, slot: IntArray, num_devices: int, slot_s: float) -> IntArray:
        """Return the recorded counts; the generator changes nothing."""
        row = slot[:, np.newaxis] + int(self.device_stride) * np.arange(num_devices)
        return np.asarray(self.recorded[row % self.recorded.size])


def _read_column(path: Path) -> Sequence[float]:
    """Return the column `num_requests` of a csv file; cells that are no number become NaN and are refused later."""
    if not path.is_file():
        message = f"arrivals ArrivalTrace: {path}: no such file; expected a csv with the column num_requests"
        raise ConfigError(message)
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if "num_requests" not in (reader.fieldnames or ()):
            came = ", ".join(reader.fieldnames or ()) or "none"
            message = f"arrivals ArrivalTrace: {path}: columns are {came}; expected num_requests among them; rename one"
            raise ConfigError(message)
        return [_number(row["num_requests"]) for row in reader]


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """The requests that wait at each device, oldest first, in a ring of `capacity` places.

    Attributes:
        arrived_slot: slot in which the request of each place arrived, shape (num_devices, capacity).
        first: place of the oldest request, shape (num_devices,).
        num_waiting: how many wait, shape (num_devices,).
    """

    arrived_slot: IntArray
    first: IntArray
    num_waiting: IntArray

    @classmethod
    def nobody(cls, num_devices: int, capacity: int) -> Waiting:
        """Return empty rings."""
        zero = np.zeros(num_devices, dtype=np.int64)
        return cls(arrived_slot=np.zeros((num_devices, capacity), dtype=np.int64), first=zero, num_waiting=zero)

    @property
    def capacity(self) -> int:
        """Places per device."""
        return int(self.arrived_slot.shape[1])

    def waited_slots(self, slot: IntArray) -> IntArray:
        """Return for how many slots the oldest request has waited at `slot` (num_devices,); 0 where none waits."""
        oldest = self.arrived_slot.ravel().take(np.arange(len(self.first)) * self.capacity + self.first)
        return np.where(self.num_waiting > 0, slot - oldest, 0)

    def without_oldest(self) -> Waiting:
        """Return the rings after each device that has a request gave its oldest away."""
        gave = (self.num_waiting > 0).astype(np.int64)
        return replace(self, first=(self.first + gave) % self.capacity, num_waiting=self.num_waiting - gave)

    def with_arrivals(self, counts: IntArray, slot: IntArray) -> tuple[Waiting, IntArray]:
        """Return the rings after `counts` requests came in `slot`, and how many found no place; all (num_devices,)."""
        taken = np.minimum(counts, self.capacity - self.num_waiting)
        device = np.repeat(np.arange(len(taken)), taken)
        nth = np.arange(len(device)) - np.repeat(np.cumsum(taken) - taken, taken)
        place = ((self.first + self.num_waiting)[device] + nth) % self.capacity
        arrived_slot = self.arrived_slot.copy()
        arrived_slot[device, place] = slot[device]
        return replace(self, arrived_slot=arrived_slot, num_waiting=self.num_waiting + taken), counts - taken

    def where(self, is_fresh: BoolArray, fresh: Waiting) -> Waiting:
        """Return `fresh` in the devices where `is_fresh` (num_devices,) and these rings in the others."""
        return Waiting(
            arrived_slot=np.where(is_fresh[:, np.newaxis], fresh.arrived_slot, self.arrived_slot),
            first=np.where(is_fresh, fresh.first, self.first),
            num_waiting=np.where(is_fresh, fresh.num_waiting, self.num_waiting),
        )
