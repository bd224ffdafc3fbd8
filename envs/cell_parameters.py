"""What does not change while requests come to the cells of `megopt/Cell-v0`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import BoolArray
from megopt.envs.arrivals import Arrivals, Poisson
from megopt.envs.band import check_allocation
from megopt.envs.batching import BatchCurve
from megopt.envs.parameters import EnvParams
from megopt.envs.queueing import LAST_RANK
from megopt.errors import ConfigError
from megopt.ranges import require_number, require_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class CellParams(EnvParams):
    """What does not change while requests come; beside the attributes of `EnvParams`, of which an episode has slots.

    Attributes:
        num_devices: devices of a cell.
        slot_s: length of a slot [s].
        arrivals: where requests come from.
        curve: time and energy of a batch at the edge over its size.
        allocation: how the band is shared, one of `megopt.envs.band.ALLOCATIONS`.
        capacity: requests that can wait at a device; more are lost.
        edge_rank: place of each row in the order of edge times, shape (num_rows,).
        joins: rows that need the edge or the band, shape (num_rows,).

    Raises:
        ConfigError: for a number outside its range, or a battery: devices of a cell are on mains.
    """

    num_devices: int = 8
    slot_s: float = 2.0
    arrivals: Arrivals = field(default_factory=Poisson)
    curve: BatchCurve = field(default_factory=lambda: BatchCurve.line(max_batch=8))
    allocation: str = "equal"
    capacity: int = 8
    edge_rank: NDArray[np.uint16] = field(init=False, repr=False)
    joins: BoolArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        EnvParams.__post_init__(self)
        require_whole("cell", 1, num_devices=self.num_devices, capacity=self.capacity)
        require_number("cell", 1e-6, 1e9, slot_s=self.slot_s)
        check_allocation(self.allocation)
        self.arrivals.check(self.num_devices)
        if self.has_battery or len(self.table) >= LAST_RANK:
            came = f"battery_j is {self.battery_j:g}" if self.has_battery else f"{len(self.table)} rows are offered"
            message = f"cell: {came}; expected devices on mains and fewer than {LAST_RANK} rows; leave some out"
            raise ConfigError(message)
        work = self.table.work
        rank = np.searchsorted(np.unique(work.edge_s), work.edge_s).astype(np.uint16)
        object.__setattr__(self, "edge_rank", rank)
        object.__setattr__(self, "joins", (work.edge_s > 0.0) | (work.downlink_bits > 0.0))
