"""The affine coefficients of `megopt.system.outcome`, laid out so that a step gathers only what it needs.

`RowTerms.outcome` gives, bit for bit, the columns of `megopt.problem.evaluate` that were measured; it is about ten
times faster because constants are not gathered, slopes of zero are not multiplied, and no column is computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.schemes.action_table import ActionTable
from megopt.system.link import Link, LinkState
from megopt.system.outcome import COST_QUANTITIES, AffineCost, Outcome, terms

ENERGIES = ("energy_j", "device_energy_j", "edge_energy_j")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTerms:
    """Coefficients of every row; each array has the shape (num_rows,), or (1,) where all rows have the same value.

    Attributes:
        costs: constant and slopes by cost quantity.
        edge_s: compute time at the edge [s].
        downlink_bits: payload from edge to device [bit].
        uplink_bits: payload from device to edge [bit].
        quality: the problem's metric; NaN where it has none.
        measured: quantities that are known in some row; the others are NaN throughout.
        observed_energy: the widest energy that was measured: of both sides, else of the device, else of the edge.
    """

    costs: dict[str, AffineCost]
    edge_s: FloatArray
    downlink_bits: FloatArray
    uplink_bits: FloatArray
    quality: FloatArray
    measured: tuple[str, ...]
    observed_energy: str

    @classmethod
    def of(cls, table: ActionTable, link: Link, metric: str) -> RowTerms:
        """Return the coefficients of `table` on `link`."""
        alive = link.state(np.array([1.0]))
        costs = {name: _narrow_cost(terms(table.work, alive, name)) for name in COST_QUANTITIES}
        quality = table.metric(metric) if metric else np.full(len(table), np.nan)
        constants = {name: cost.constant for name, cost in costs.items()} | {"quality": quality}
        measured = tuple(name for name, values in constants.items() if not np.all(np.isnan(values)))
        return cls(
            costs=costs,
            edge_s=_narrow(table.work.edge_s),
            downlink_bits=_narrow(table.work.downlink_bits),
            uplink_bits=_narrow(table.work.uplink_bits),
            quality=_narrow(quality),
            measured=measured,
            observed_energy=next((name for name in ENERGIES if name in measured), ENERGIES[0]),
        )

    def outcome(
        self, rows: IntArray, link: LinkState, *, is_alive: bool, previous_airtime_s: FloatArray | None = None
    ) -> Outcome:
        """Return the outcome of `rows` (num_envs,) on `link` (num_envs,).

        Args:
            rows: rows of the table.
            link: the link that each request meets.
            is_alive: whether every link is known to carry data; else no payload is free on a dead link.
            previous_airtime_s: with pipelining, the time that the edge computes while the previous payload is on
                the air [s], shape (num_envs,); None without.
        """
        down, up = link.downlink_s_per_bit, link.uplink_s_per_bit
        downlink_s = _carried(self.downlink_bits, rows, down, is_alive)
        uplink_s = _carried(self.uplink_bits, rows, up, is_alive)
        latency_s = _sum(_gather(self.costs["latency_s"].constant, rows), downlink_s, uplink_s)
        unknown = _spread(None, len(rows))
        edge_s = unknown
        if previous_airtime_s is not None:
            edge_s = _gather(self.edge_s, rows)
            latency_s = latency_s - np.minimum(edge_s, previous_airtime_s)
        zero = _spread(0.0, len(rows))
        return Outcome(
            latency_s=latency_s,
            edge_s=edge_s,
            device_s=unknown,
            downlink_s=zero if downlink_s is None else downlink_s,
            uplink_s=zero if uplink_s is None else uplink_s,
            payload_bits=unknown,
            quality=_gather(self.quality, rows),
            **{name: _at(self.costs[name], rows, down, up, is_alive) for name in ENERGIES},
        )


def _narrow(values: FloatArray) -> FloatArray:
    """Return one value where all rows have the same, NaN being the same as NaN."""
    return values[:1].copy() if np.array_equal(values, np.broadcast_to(values[:1], values.shape), True) else values


def _narrow_cost(cost: AffineCost) -> AffineCost:
    return AffineCost(
        constant=_narrow(cost.constant), per_downlink=_narrow(cost.per_downlink), per_uplink=_narrow(cost.per_uplink)
    )


def _gather(column: FloatArray, rows: IntArray) -> FloatArray:
    """Return the column at `rows`, which are legal; a read-only view where the column is one value."""
    if len(column) > 1:
        return column.take(rows, mode="clip")
    return _spread(None if np.isnan(column[0]) else float(column[0]), len(rows))


@lru_cache(maxsize=64)
def _spread(value: float | None, num_envs: int) -> FloatArray:
    """Return one value, NaN for None, as a read-only view of shape (num_envs,)."""
    return np.broadcast_to(np.nan if value is None else value, num_envs)


def _carried(slope: FloatArray, rows: IntArray, s_per_bit: FloatArray, is_alive: bool) -> FloatArray | None:
    """Return slope x seconds per bit of `rows`, with 0 x inf = 0; None where no row has a slope."""
    if len(slope) == 1 and slope[0] == 0.0:
        return None
    gathered = _gather(slope, rows)
    if is_alive:
        return gathered * s_per_bit
    with np.errstate(invalid="ignore"):
        return np.where(gathered == 0.0, 0.0, gathered * s_per_bit)


def _sum(constant: FloatArray, downlink: FloatArray | None, uplink: FloatArray | None) -> FloatArray:
    """Return constant + downlink + uplink, in the order in which `AffineCost.at` adds."""
    total = constant if downlink is None else constant + downlink
    return total if uplink is None else total + uplink


def _at(cost: AffineCost, rows: IntArray, down: FloatArray, up: FloatArray, is_alive: bool) -> FloatArray:
    """Return a cost of `rows` at the given seconds per bit."""
    if len(cost.constant) == 1 and np.isnan(cost.constant[0]):
        return _spread(None, len(rows))
    return _sum(
        _gather(cost.constant, rows),
        _carried(cost.per_downlink, rows, down, is_alive),
        _carried(cost.per_uplink, rows, up, is_alive),
    )
