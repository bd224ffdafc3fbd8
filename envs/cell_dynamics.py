"""Slot by slot in a cell: pure, batched state, transition and observation; `megopt.envs.cell` is the shell around them.

In each slot every device with a waiting request decides the oldest one by a row of the action table. The request is
sent up, computed at the edge, sent down and finished on the device:

    latency = waiting for a slot + uplink and round trips + wait for the edge + batch at the edge
              + wait for the band + airtime + wait for the device + device compute

The edge and the band are those of `megopt.envs.queueing`; a device computes its requests one after another. All queues
are first come first served and nothing is taken back, so a decision fixes the whole future of its request: its outcome
is known, and rewarded, in the slot of the decision. Its payload is sent at the SNR of that slot.

A device sends up in a band of its own. Down, the power density is constant: the energy that the edge's radio spends on
a payload does not depend on its share of the band, and the device listens as long as the payload is in the air.

Arrays of devices are flat: device d of cell c is entry c x num_devices + d.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.envs.arrivals import Waiting
from megopt.envs.cell_parameters import CellParams
from megopt.envs.cell_state import CellState, CellTransition
from megopt.envs.dynamics import SNR_RANGE_DB
from megopt.envs.queueing import LAST_RANK, Demand, Service, serve
from megopt.system.link import LinkState
from megopt.system.outcome import Outcome
from megopt.units import db_from_linear

__all__ = ["CELL_FIELDS", "DEVICE_FIELDS", "CellParams", "initial", "observe", "transition"]

DEVICE_FIELDS = ("snr", "num_waiting", "waited", "device_busy", "previous_latency")
"""Fields of each device in an observation, in order; `megopt.envs.cell` holds the data sheet."""
CELL_FIELDS = ("edge_busy", "band_busy", "progress")
"""Fields of the cell in an observation, in order, after those of the devices."""


def initial(params: CellParams, rng: np.random.Generator, num_cells: int) -> CellState:
    """Return the first state of `num_cells` new episodes: first channel states, then the arrivals of slot 0."""
    num_flat = num_cells * params.num_devices
    channel = params.channel.initial(rng, num_flat)
    slot, zero = np.zeros(num_cells, dtype=np.int64), np.zeros(num_cells)
    counts = params.arrivals.counts(rng, slot, params.num_devices, params.slot_s)
    waiting, _ = Waiting.nobody(num_flat, params.capacity).with_arrivals(counts.ravel(), channel.slot)
    return CellState(
        channel=channel,
        link=params.link.state(params.channel.snr(channel)),
        waiting=waiting,
        device_busy_s=np.zeros(num_flat),
        previous_latency_s=np.zeros(num_flat),
        edge_busy_s=zero,
        band_busy_s=zero,
    )


def transition(
    params: CellParams, state: CellState, rows: IntArray, rng: np.random.Generator, weights: FloatArray | None = None
) -> CellTransition:
    """Return what the waiting requests lead to when they take `rows`.

    Args:
        params: the environment.
        state: states of the cells.
        rows: legal rows of the action table, shape (num_cells x num_devices,); read where a request waits.
        rng: generator of channel and arrivals; as much is drawn whatever the rows are.
        weights: weights of the shares for the allocation "chosen" [1], same shape.
    """
    is_decided = state.waiting.num_waiting > 0
    demand = _demand(params, state.link, rows, is_decided, weights)
    service = serve(
        demand,
        edge_busy_s=state.edge_busy_s,
        band_busy_s=state.band_busy_s,
        curve=params.curve,
        allocation=params.allocation,
        is_pipelined=params.is_pipelined,
    )
    device_s = np.where(is_decided, params.table.work.device_s.take(rows), 0.0)
    begin_s = np.maximum(service.over_s.ravel(), np.where(is_decided, state.device_busy_s, 0.0))
    slot_wait_s = params.slot_s * state.waiting.waited_slots(state.channel.slot)
    device_wait_s = begin_s - service.over_s.ravel()
    waiting_s = slot_wait_s + (service.edge_wait_s + service.band_wait_s).ravel() + device_wait_s
    outcome = _outcome(params, state.link, rows, demand, service, waiting_s)
    busy_s = np.where(is_decided, begin_s + device_s, state.device_busy_s)
    following, num_lost = _following(params, state, service, busy_s, outcome.latency_s, is_decided, rng)
    return CellTransition(
        state=following,
        outcome=outcome,
        is_decided=is_decided,
        waiting_s=waiting_s,
        service=service,
        num_lost=num_lost,
        is_truncated=following.slot >= params.episode_length,
    )


def _demand(
    params: CellParams, link: LinkState, rows: IntArray, is_decided: BoolArray, weights: FloatArray | None
) -> Demand:
    """Return what the decided requests ask of edge and band, shape (num_cells, num_devices)."""
    work, shape = params.table.work, (-1, params.num_devices)
    is_joining = is_decided & params.joins.take(rows)
    reach_s = _airtime(work.uplink_bits.take(rows), link.uplink_s_per_bit, is_joining)
    if link.round_trip_s > 0.0:
        reach_s += np.where(is_joining, work.num_round_trips.take(rows) * link.round_trip_s, 0.0)
    return Demand(
        is_joining=is_joining.reshape(shape),
        rank=np.where(is_joining, params.edge_rank.take(rows), np.uint16(LAST_RANK)).reshape(shape),
        edge_s=np.where(is_joining, work.edge_s.take(rows), 0.0).reshape(shape),
        reach_s=reach_s.reshape(shape),
        alone_s=_airtime(work.downlink_bits.take(rows), link.downlink_s_per_bit, is_joining).reshape(shape),
        weights=None if weights is None else weights.reshape(shape),
    )


def _airtime(bits: FloatArray, s_per_bit: FloatArray, is_sent: BoolArray) -> FloatArray:
    """Return bits x seconds per bit where something is sent, else 0, also on a dead link."""
    is_sent = is_sent & (bits > 0.0)
    return np.multiply(bits, s_per_bit, out=np.zeros_like(bits), where=is_sent)


def _outcome(
    params: CellParams,
    link: LinkState,
    rows: IntArray,
    demand: Demand,
    service: Service,
    waiting_s: FloatArray,
) -> Outcome:
    """Return the outcomes: those of the rows on their share of the band, and what batch and queues change in them."""
    shared = replace(link, downlink_s_per_bit=link.downlink_s_per_bit * service.stretch.ravel())
    result = params.terms.outcome(rows, shared, is_alive=not params.can_die)
    changes = {"latency_s": result.latency_s + (waiting_s + (service.batch_s - demand.edge_s).ravel())}
    if "edge_energy_j" in params.terms.measured:
        extra_j = _extra_edge_energy_j(params, link, rows, demand, service)
        for name in {"edge_energy_j", "energy_j"} & set(params.terms.measured):
            changes[name] = getattr(result, name) + extra_j
    return replace(result, **changes)


def _extra_edge_energy_j(
    params: CellParams, link: LinkState, rows: IntArray, demand: Demand, service: Service
) -> FloatArray:
    """Return what batching saves in compute, and sharing in radio energy for the same bits [J], (num_flat,)."""
    share = params.curve.energy_share.take(service.batch_size.ravel()) - 1.0
    compute_j = share * params.table.work.edge_energy_j.take(rows)
    if link.edge_tx_power_w == 0.0:
        return compute_j
    return compute_j + link.edge_tx_power_w * (demand.alone_s - demand.alone_s * service.stretch).ravel()


def _following(
    params: CellParams,
    state: CellState,
    service: Service,
    busy_s: FloatArray,
    latency_s: FloatArray,
    is_decided: BoolArray,
    rng: np.random.Generator,
) -> tuple[CellState, IntArray]:
    """Return the state before the next slot, and how many requests found no place."""
    channel = params.channel.advance(rng, state.channel)
    slot = channel.slot.reshape(-1, params.num_devices)[:, 0]
    counts = params.arrivals.counts(rng, slot, params.num_devices, params.slot_s).ravel()
    waiting, num_lost = state.waiting.without_oldest().with_arrivals(counts, channel.slot)
    following = CellState(
        channel=channel,
        link=params.link.state(params.channel.snr(channel)),
        waiting=waiting,
        device_busy_s=np.maximum(busy_s - params.slot_s, 0.0),
        previous_latency_s=np.where(is_decided, latency_s, state.previous_latency_s),
        edge_busy_s=np.maximum(service.edge_free_s - params.slot_s, 0.0),
        band_busy_s=np.maximum(service.band_free_s - params.slot_s, 0.0),
    )
    return following, num_lost


def observe(params: CellParams, state: CellState) -> NDArray[np.float32]:
    """Return what an agent sees, shape (num_cells, 5 num_devices + 3), float32 within [-1, 1].

    Args:
        params: the environment.
        state: states of the cells.
    """
    num_cells, num_devices = len(state.edge_busy_s), params.num_devices
    scale_s = params.scales[1, 0]
    seen = np.empty((num_cells, len(DEVICE_FIELDS) * num_devices + len(CELL_FIELDS)), dtype=np.float32)
    devices = np.empty((len(DEVICE_FIELDS), num_cells * num_devices), dtype=np.float32)
    low, high = SNR_RANGE_DB
    devices[0] = np.clip((2.0 * db_from_linear(state.link.snr) - (high + low)) / (high - low), -1.0, 1.0)
    devices[1] = state.waiting.num_waiting / state.waiting.capacity
    devices[2] = params.slot_s * state.waiting.waited_slots(state.channel.slot)
    devices[3] = state.device_busy_s
    devices[4] = state.previous_latency_s
    devices[2:] /= devices[2:] + scale_s
    of_devices = seen[:, : -len(CELL_FIELDS)].reshape(num_cells, len(DEVICE_FIELDS), num_devices)
    of_devices[...] = devices.reshape(len(DEVICE_FIELDS), num_cells, num_devices).transpose(1, 0, 2)
    seen[:, -3] = state.edge_busy_s / (state.edge_busy_s + scale_s)
    seen[:, -2] = state.band_busy_s / (state.band_busy_s + scale_s)
    seen[:, -1] = state.slot / params.episode_length
    return seen
