"""What one request costs: from seconds, joules and bits of work, and a link, to an `Outcome`.

Latency and energy of a request are affine in the seconds per bit of the link, u = 1/rate:

    T = t_edge + t_device + n_rt t_rt + b_down u_down + b_up u_up
    E_device = e_device + p_rx b_down u_down + p_tx b_up u_up
    E_edge   = e_edge + p_air b_down u_down

That is written once, in `terms`; outcomes evaluate it and the solvers use its coefficients.
Source: system model of Mobile Edge Generation (MEGSplitting, ICC 2025; MEG-CVPO, arXiv 2407.07245) with radio terms.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from megopt.arrays import FloatArray, IntArray, Real
from megopt.errors import ProblemError
from megopt.system.link import LinkState

COST_QUANTITIES = ("latency_s", "device_energy_j", "edge_energy_j", "energy_j")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Channel-free work of requests; all fields have the same shape (num_rows,).

    Attributes:
        edge_s: compute time at the edge [s].
        device_s: compute time at the device [s].
        downlink_bits: payload from edge to device [bit].
        uplink_bits: payload from device to edge [bit].
        num_round_trips: message round trips [1].
        edge_energy_j: compute energy at the edge [J]; NaN where it was not measured.
        device_energy_j: compute energy at the device [J]; NaN where it was not measured.
    """

    edge_s: FloatArray
    device_s: FloatArray
    downlink_bits: FloatArray
    uplink_bits: FloatArray
    num_round_trips: FloatArray
    edge_energy_j: FloatArray
    device_energy_j: FloatArray

    def __post_init__(self) -> None:
        shapes = {field.name: np.shape(getattr(self, field.name)) for field in fields(self)}
        if len(set(shapes.values())) != 1:
            message = f"Work: fields have the shapes {shapes}; expected one shape for all"
            raise ValueError(message)

    def take(self, rows: IntArray) -> Work:
        """Return the work of the given `rows`, any shape."""
        return Work(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @classmethod
    def concat(cls, parts: list[Work]) -> Work:
        """Return all `parts` one after another."""
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineCost:
    """A cost `constant + per_downlink u_down + per_uplink u_up`, fields of shape (num_rows,)."""

    constant: FloatArray
    per_downlink: FloatArray
    per_uplink: FloatArray

    def at(self, downlink_s_per_bit: Real, uplink_s_per_bit: Real) -> FloatArray:
        """Return the cost for link times [s/bit] that broadcast against the rows; no payload is free on a dead link."""
        down, up = _airtime(self.per_downlink, downlink_s_per_bit), _airtime(self.per_uplink, uplink_s_per_bit)
        return np.asarray(self.constant + down + up)


def _airtime(slope: FloatArray, s_per_bit: Real) -> FloatArray:
    """Return slope x s_per_bit with 0 x inf = 0."""
    with np.errstate(invalid="ignore"):
        return np.where(slope == 0.0, 0.0, slope * s_per_bit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What requests cost and gave, whether simulated, solved for or measured live; fields of shape (num_requests,).

    Attributes:
        latency_s: from request to finished image [s].
        edge_s: compute time at the edge [s].
        device_s: compute time at the device [s].
        downlink_s: time of the payload on the downlink [s].
        uplink_s: time of the payload on the uplink [s].
        edge_energy_j: edge compute and edge radio [J]; NaN where not measured.
        device_energy_j: device compute and device radio [J]; NaN where not measured.
        energy_j: edge and device together [J]; NaN where one of them was not measured.
        payload_bits: downlink payload [bit].
        quality: value of the problem's metric [metric's unit]; NaN where not measured.
    """

    latency_s: FloatArray
    edge_s: FloatArray
    device_s: FloatArray
    downlink_s: FloatArray
    uplink_s: FloatArray
    edge_energy_j: FloatArray
    device_energy_j: FloatArray
    energy_j: FloatArray
    payload_bits: FloatArray
    quality: FloatArray

    def quantity(self, name: str) -> FloatArray:
        """Return the column `name`: one of the cost quantities, or "quality"."""
        if name not in (*COST_QUANTITIES, "quality"):
            message = f"Outcome: no quantity {name!r}; expected one of {', '.join((*COST_QUANTITIES, 'quality'))}"
            raise ProblemError(message)
        return np.asarray(getattr(self, name))


def terms(work: Work, link: LinkState, quantity: str) -> AffineCost:
    """Return the affine coefficients of one cost `quantity` for every row of `work` (equations above).

    Args:
        work: rows, shape (num_rows,).
        link: only its round-trip time and radio powers are read, not its rates.
        quantity: one of `COST_QUANTITIES`.

    Raises:
        ProblemError: if `quantity` is not a cost.
    """
    if quantity == "latency_s":
        constant = work.edge_s + work.device_s + work.num_round_trips * link.round_trip_s
        return AffineCost(constant=constant, per_downlink=work.downlink_bits, per_uplink=work.uplink_bits)
    if quantity == "device_energy_j":
        return AffineCost(
            constant=work.device_energy_j,
            per_downlink=link.device_rx_power_w * work.downlink_bits,
            per_uplink=link.device_tx_power_w * work.uplink_bits,
        )
    if quantity == "edge_energy_j":
        return AffineCost(
            constant=work.edge_energy_j,
            per_downlink=link.edge_tx_power_w * work.downlink_bits,
            per_uplink=np.zeros_like(work.uplink_bits),
        )
    if quantity == "energy_j":
        device, edge = terms(work, link, "device_energy_j"), terms(work, link, "edge_energy_j")
        return AffineCost(
            constant=device.constant + edge.constant,
            per_downlink=device.per_downlink + edge.per_downlink,
            per_uplink=device.per_uplink,
        )
    message = f"cost {quantity!r} is unknown; expected one of {', '.join(COST_QUANTITIES)}"
    raise ProblemError(message)


def outcome(work: Work, link: LinkState, quality: FloatArray) -> Outcome:
    """Return the outcome of `work` (num_requests,) on `link` (num_requests,) with `quality` (num_requests,)."""
    down, up = link.downlink_s_per_bit, link.uplink_s_per_bit
    zero = np.zeros_like(work.edge_s)
    return Outcome(
        latency_s=terms(work, link, "latency_s").at(down, up),
        edge_s=work.edge_s,
        device_s=work.device_s,
        downlink_s=AffineCost(constant=zero, per_downlink=work.downlink_bits, per_uplink=zero).at(down, up),
        uplink_s=AffineCost(constant=zero, per_downlink=zero, per_uplink=work.uplink_bits).at(down, up),
        edge_energy_j=terms(work, link, "edge_energy_j").at(down, up),
        device_energy_j=terms(work, link, "device_energy_j").at(down, up),
        energy_j=terms(work, link, "energy_j").at(down, up),
        payload_bits=work.downlink_bits,
        quality=quality,
    )
