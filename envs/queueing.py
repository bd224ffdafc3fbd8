"""The edge server and the downlink band of a cell, as two queues in a row that batches pass first come first served.

The requests of one slot that need the edge or the band are put in the order of their edge time, shortest first, and cut
into batches of at most `max_batch`. Batch j of n members starts when all its members have reached the edge and the
server is free, computes in lock step, and then has the band to itself until the last of its payloads is over:

    start_j  = max(free_j, max uplink_i)             free_(j+1) = done_j with pipelining, else over_j
    done_j   = start_j + ratio(n) max edge_i
    on_air_j = max(done_j, over_(j-1))
    over_j   = on_air_j + max airtime_i,             airtime_i = alone_i stretch_i

With pipelining the edge computes a batch while the previous one is on the air. What is left of both queues at the end
of a slot is carried into the next one in seconds (Lindley's recursion), so nothing depends on which slot it came from.
Members that need less edge time than the longest of their batch wait for it: an upper bound on continuous batching.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.envs.band import stretch
from megopt.envs.batching import BatchCurve

Number = TypeVar("Number", np.float64, np.int64)
LAST_RANK = np.iinfo(np.uint16).max
"""Rank of a device that joins no batch; ranks of rows are below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What the devices of each cell ask of edge and band in one slot; fields of shape (num_cells, num_devices).

    Attributes:
        is_joining: whether the device has a request that needs the edge or the band.
        rank: place in the order of edge times, uint16; `LAST_RANK` for devices that join no batch.
        edge_s: time at the edge alone [s].
        reach_s: when the request reaches the edge, after the beginning of the slot [s].
        alone_s: airtime of the payload alone in the band [s].
        weights: weights of the shares for the allocation "chosen" [1]; None for the others.
    """

    is_joining: BoolArray
    rank: NDArray[np.uint16]
    edge_s: FloatArray
    reach_s: FloatArray
    alone_s: FloatArray
    weights: FloatArray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """When batches were served; fields of shape (num_cells, num_devices) unless stated, 0 where no batch was joined.

    Attributes:
        edge_wait_s: from reaching the edge to the start of the batch [s].
        batch_s: time of the batch at the edge [s].
        batch_size: members of the batch [1].
        band_wait_s: from the end of the batch to the beginning of its transmission [s].
        stretch: airtime over airtime alone [1]; 1 where nothing is sent.
        over_s: when the payload has arrived, after the beginning of the slot [s].
        edge_free_s: when the edge is free, after the beginning of the slot [s], shape (num_cells,).
        band_free_s: when the band is free, after the beginning of the slot [s], shape (num_cells,).
        edge_used_s: time that the slot's batches take at the edge [s], shape (num_cells,).
    """

    edge_wait_s: FloatArray
    batch_s: FloatArray
    batch_size: IntArray
    band_wait_s: FloatArray
    stretch: FloatArray
    over_s: FloatArray
    edge_free_s: FloatArray
    band_free_s: FloatArray
    edge_used_s: FloatArray


def serve(
    demand: Demand,
    *,
    edge_busy_s: FloatArray,
    band_busy_s: FloatArray,
    curve: BatchCurve,
    allocation: str,
    is_pipelined: bool,
) -> Service:
    """Return how the requests of one slot pass through edge and band (equations above).

    Args:
        demand: what is asked.
        edge_busy_s: time for which the edge is busy with earlier slots [s], shape (num_cells,).
        band_busy_s: time for which the band is busy with earlier slots [s], shape (num_cells,).
        curve: time over batch size.
        allocation: one of `megopt.envs.band.ALLOCATIONS`.
        is_pipelined: whether the edge computes while the previous batch is on the air.
    """
    cut = _Cut.of(demand, curve.max_batch)
    alone_s = cut.batched(demand.alone_s)
    weights = None if demand.weights is None else cut.batched(demand.weights)
    stretched = stretch(allocation, alone_s, weights)
    batch_s = curve.latency_ratio[cut.sizes] * cut.batched(demand.edge_s).max(axis=2)
    reach_s, air_s = cut.batched(demand.reach_s).max(axis=2), (alone_s * stretched).max(axis=2)
    start_s, on_air_s = np.zeros_like(batch_s), np.zeros_like(batch_s)
    edge_free_s, band_free_s = edge_busy_s, band_busy_s
    for j in range(cut.num_batches):
        is_some = cut.sizes[:, j] > 0
        start_s[:, j] = np.maximum(edge_free_s, reach_s[:, j])
        done_s = start_s[:, j] + batch_s[:, j]
        on_air_s[:, j] = np.maximum(done_s, np.where(air_s[:, j] > 0.0, band_free_s, 0.0))
        over_s = on_air_s[:, j] + air_s[:, j]
        band_free_s = np.where(air_s[:, j] > 0.0, over_s, band_free_s)
        edge_free_s = np.where(is_some, done_s if is_pipelined else over_s, edge_free_s)
    joins = demand.is_joining
    start, on_air, own_batch_s = (cut.of_devices(x) for x in (start_s, on_air_s, batch_s))
    own_stretch = np.where(joins, cut.unsorted(stretched), 1.0)
    over = on_air + demand.alone_s * own_stretch
    return Service(
        edge_wait_s=np.where(joins, start - demand.reach_s, 0.0),
        batch_s=np.where(joins, own_batch_s, 0.0),
        batch_size=np.where(joins, cut.of_devices(cut.sizes), 0),
        band_wait_s=np.where(joins, on_air - (start + own_batch_s), 0.0),
        stretch=own_stretch,
        over_s=np.where(joins, over, 0.0),
        edge_free_s=edge_free_s,
        band_free_s=band_free_s,
        edge_used_s=batch_s.sum(axis=1),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """Devices in the order of their edge time, cut into batches.

    Attributes:
        order: flat index of the device at each place, shape (num_cells, num_devices).
        max_batch: places per batch.
        sizes: members of each batch, shape (num_cells, num_batches).
    """

    order: IntArray
    max_batch: int
    sizes: IntArray

    @classmethod
    def of(cls, demand: Demand, max_batch: int) -> _Cut:
        """Return the cut of a slot's requests into batches of at most `max_batch`."""
        num_cells, num_devices = demand.rank.shape
        size = min(max_batch, num_devices)
        num_batches = -(-num_devices // size)
        joining = np.count_nonzero(demand.is_joining, axis=1)[:, np.newaxis]
        order = np.argsort(demand.rank, axis=1, kind="stable")  # a radix sort on uint16
        order += num_devices * np.arange(num_cells)[:, np.newaxis]
        return cls(order=order, max_batch=size, sizes=np.clip(joining - size * np.arange(num_batches), 0, size))

    @property
    def num_batches(self) -> int:
        """Batches per cell, empty ones included."""
        return int(self.sizes.shape[1])

    def batched(self, values: FloatArray) -> FloatArray:
        """Return values of devices in order of service, (num_cells, num_batches, max_batch); 0 in empty places."""
        num_cells, num_devices = self.order.shape
        padded = np.zeros((num_cells, self.num_batches * self.max_batch))
        padded[:, :num_devices] = values.ravel().take(self.order)
        return padded.reshape(num_cells, self.num_batches, self.max_batch)

    def unsorted(self, places: FloatArray) -> FloatArray:
        """Return values of places (num_cells, num_batches, max_batch) by device, shape (num_cells, num_devices)."""
        num_cells, num_devices = self.order.shape
        values = np.empty(num_cells * num_devices)
        values[self.order] = places.reshape(num_cells, -1)[:, :num_devices]
        return values.reshape(num_cells, num_devices)

    def of_devices(self, batches: NDArray[Number]) -> NDArray[Number]:
        """Return values of batches (num_cells, num_batches) by device, shape (num_cells, num_devices)."""
        num_devices = self.order.shape[1]
        spread = np.repeat(batches, self.max_batch, axis=1)[:, :num_devices]
        values = np.empty(self.order.size, dtype=batches.dtype)
        values[self.order] = spread
        return values.reshape(self.order.shape)
