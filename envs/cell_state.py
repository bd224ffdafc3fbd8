"""What the cells of `megopt/Cell-v0` are in before a slot, and what the slot led to; arrays of devices are flat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.envs.arrivals import Waiting
from megopt.envs.dynamics import link_where
from megopt.envs.queueing import Service
from megopt.system.channel import ChannelState
from megopt.system.link import LinkState
from megopt.system.outcome import Outcome

Number = TypeVar("Number", np.float64, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellState:
    """What the cells are in before their waiting requests are decided.

    Attributes:
        channel: state of the channels, fields of shape (num_cells x num_devices,).
        link: link of each device alone in the band, same shape.
        waiting: requests that wait at each device, same first axis.
        device_busy_s: time for which each device is busy with earlier requests [s], same shape.
        previous_latency_s: latency of each device's previous request [s], same shape; 0 at the start.
        edge_busy_s: time for which the edge is busy with earlier slots [s], shape (num_cells,).
        band_busy_s: time for which the band is busy with earlier slots [s], shape (num_cells,).
    """

    channel: ChannelState
    link: LinkState
    waiting: Waiting
    device_busy_s: FloatArray
    previous_latency_s: FloatArray
    edge_busy_s: FloatArray
    band_busy_s: FloatArray

    @property
    def slot(self) -> IntArray:
        """Slots of each cell's episode so far [1], shape (num_cells,)."""
        return self.channel.slot.reshape(len(self.edge_busy_s), -1)[:, 0]

    def where(self, is_fresh: BoolArray, fresh: CellState) -> CellState:
        """Return `fresh` in the cells where `is_fresh` (num_cells,) and this state in the others."""
        if np.all(is_fresh):
            return fresh
        of_device = np.repeat(is_fresh, len(self.device_busy_s) // len(is_fresh))
        return CellState(
            channel=self.channel.where(of_device, fresh.channel),
            link=link_where(of_device, fresh.link, self.link),
            waiting=self.waiting.where(of_device, fresh.waiting),
            device_busy_s=np.where(of_device, fresh.device_busy_s, self.device_busy_s),
            previous_latency_s=np.where(of_device, fresh.previous_latency_s, self.previous_latency_s),
            edge_busy_s=np.where(is_fresh, fresh.edge_busy_s, self.edge_busy_s),
            band_busy_s=np.where(is_fresh, fresh.band_busy_s, self.band_busy_s),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CellTransition:
    """What one slot led to; fields of shape (num_cells x num_devices,) unless stated.

    Attributes:
        state: the state before the next slot.
        outcome: what each request cost and gave; only the columns of `RowTerms.measured` are filled, and they are
            meaningful where `is_decided`.
        is_decided: whether the device had a request.
        waiting_s: part of the latency that was spent waiting, for a slot, the edge, the band or the device [s].
        service: what happened at edge and band, fields of shape (num_cells, num_devices).
        num_lost: requests that found no place at their device in this slot [1].
        is_truncated: whether the episode has had all its slots, shape (num_cells,).
    """

    state: CellState
    outcome: Outcome
    is_decided: BoolArray
    waiting_s: FloatArray
    service: Service
    num_lost: IntArray
    is_truncated: BoolArray


def per_cell(column: NDArray[Number], num_devices: int) -> NDArray[Number]:
    """Return the sums over each cell's devices of a column (num_flat,) or of columns (num_flat, num_columns)."""
    return np.asarray(column.reshape(len(column) // num_devices, num_devices, *column.shape[1:]).sum(axis=1))
